"""Writes down what the kernel has counted of the door's network namespace: at the start, each minute, at the end.

A third count of what left beside the ledger and the book. Where it cannot be taken the door goes on: it is a witness
and no gate, and `headgate audit egress` says for which time it is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from router.audit import counters
from router.door.book import Book, BookError, open_book

LOG = logging.getLogger("headgate.door")
EVERY_S = 60.0
NAME = "kernel.jsonl"


@contextlib.asynccontextmanager
async def counting(book: Path, policy: str, every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Take samples, into a chained file beside the book, as long as the block lasts."""
    try:
        samples = await asyncio.to_thread(open_book, book.with_name(NAME), policy)
    except BookError as broken:
        LOG.error("the kernel's count is not written down: %s", broken)
        yield
        return
    await _sample(samples)
    going = asyncio.create_task(_each(samples, every_s))
    try:
        yield
    finally:
        going.cancel()
        await asyncio.wait((going,))
        await _sample(samples)
        samples.close()


async def _each(samples: Book, every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        await _sample(samples)


async def _sample(samples: Book) -> None:
    try:
        await samples.sampled(await asyncio.to_thread(counters.read))
    except (counters.CountersError, BookError) as broken:
        LOG.warning("no sample of the kernel's count: %s", broken)
