"""A thread that sees when the event loop stands still: it says where, and for a while the router counts as not ready.

Nobody is answered while the loop stands still, `/ready` included; afterwards that page is what tells whoever
spreads the load. A router that stands still for longer is ended by its keeper (`child.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator

LOG = logging.getLogger("headgate.router")

LIMIT_S = 3.0
"""Without a turn of the loop for so long it stands still."""
TOLD_S = 10.0
"""For so long after it went on it is told."""
TURNS = 6
"""Looks, and turns of the loop that are looked for, within LIMIT_S."""
FRAMES = 12
"""The innermost calls that are named."""


class Watchdog:
    """Of the loop it is started on."""

    def __init__(self, limit_s: float = LIMIT_S, told_s: float = TOLD_S) -> None:
        self._limit_s, self._told_s = limit_s, told_s
        self._turned = time.monotonic()
        self._stood = (float("-inf"), 0.0)
        """When it was last seen to stand still, and for how long it had done so."""
        self._end = threading.Event()

    def trouble(self) -> str:
        """That the loop stood still a moment ago, in words; else ""."""
        at, seconds = self._stood
        return f"the event loop stood still for {seconds:.0f} s" if time.monotonic() - at < self._told_s else ""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running loop inside `with`."""
        self._turned = time.monotonic()
        turning = asyncio.create_task(self._turn())
        thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()  # it ends by itself within a look; nobody need wait for that
            turning.cancel()

    async def _turn(self) -> None:
        while True:
            self._turned = time.monotonic()
            await asyncio.sleep(self._limit_s / TURNS)

    def _watch(self, thread: int) -> None:
        told = 0.0
        while not self._end.wait(self._limit_s / TURNS):
            turned, now = self._turned, time.monotonic()
            if now - turned < self._limit_s:
                continue
            self._stood = (now, now - turned)
            if turned != told:  # once for each time
                told = turned
                LOG.error("the event loop has stood still for %.1f s at: %s", now - turned, _where(thread))


def _where(thread: int) -> str:
    """What a thread is doing, innermost first: names of functions, files and lines, and nothing that they work on."""
    frame = sys._current_frames().get(thread)
    calls = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=FRAMES, lookup_lines=False)
    return " < ".join(f"{call.name} ({call.filename.rpartition('/')[2]}:{call.lineno})" for call in calls)
