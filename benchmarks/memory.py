"""Memory of a gateway: at rest, and with streams open that say nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

import uvloop

from benchmarks import cpu, wire
from benchmarks.gateways import Gateway
from benchmarks.upstream import SILENT

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in MB of 10^6 bytes, of a gateway's processes together; of Headgate, of its router alone."""

    target: str
    idle_mb: float
    """Before the first stream, after a little load."""
    streams: int
    """That were open at once."""
    held_mb: float
    """With them open."""
    kb_per_stream: float | None
    """What each of them added, in KB of 10^3 bytes; None where none was opened."""
    after_mb: float
    """When all were closed again."""


def held_kb(before_mb: float, with_mb: float, streams: int) -> float | None:
    """KB that each of so many streams added. Pure."""
    return (with_mb - before_mb) * 1000 / streams if streams else None


def measured(target: Gateway, hold_s: float) -> Memory:
    """Open the streams the target is given, wait `hold_s` (a keep-alive comment comes at 15 s), and close them."""
    return uvloop.run(_measured(target, hold_s))


async def _measured(target: Gateway, hold_s: float) -> Memory:
    where = wire.place(target.asking(SILENT, stream=True))
    pids = [pid for pid, part in target.processes().items() if part in ("router", target.name)]
    before = cpu.total_mb(pids)
    at_once = 25 if target.effort >= 1 else 4
    async with wire.held(where, target.streams, at_once, PATIENCE_S) as heard:
        await asyncio.sleep(hold_s)
        with_all = cpu.total_mb(pids)
        begun = sum(1 for h in heard if h.first and not h.ended)
    await asyncio.sleep(1.0)
    return Memory(target.name, before, begun, with_all, held_kb(before, with_all, begun), cpu.total_mb(pids))


def described(found: list[Memory]) -> list[dict[str, object]]:
    """For the JSON of a result."""
    return [dataclasses.asdict(entry) for entry in found]
