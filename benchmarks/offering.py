"""Offers one load to one router, and gathers what the callers, the ledger, the engine and the provider say of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks import wire
from benchmarks.asking import Asking, prompt
from benchmarks.bare import Vllm
from benchmarks.engine import Spell, spell
from benchmarks.hosted import Hosted
from benchmarks.installation import Installation
from benchmarks.mix import WORDS, Planned
from benchmarks.openloop import Kind, OpenLoop, Sent
from benchmarks.spill import DEADLINE_S, Counted, Row
from router.ledger.store import connect

RAMP = 0.2
"""The share of a load that is let pass before the engine's tokens are counted: it must first fill."""
SETTLE_S = 0.3
"""After the last answer: what the ledger still has to write."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Two callers, and the text that all requests of the second one hold."""

    public: str = field(repr=False)
    private: str = field(repr=False)
    mark: str

    def asking(self, url: str, planned: Planned, seed: str, number: int) -> Asking:
        """One request. Every text differs from its first word on, and the mark stands at the end of it."""
        text = prompt(WORDS, zlib.crc32(seed.encode()), number)
        content = f"{text} {self.mark}" if planned.private else text
        key = self.private if planned.private else self.public
        return Asking(
            url=url, key=key, model="auto", max_tokens=planned.output,
            extra={"messages": [{"role": "user", "content": content}], "ignore_eos": True},
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stand:
    """What a load is offered to, and what says of it afterwards how it went."""

    headgate: Installation
    engine: Vllm
    provider: Hosted
    keys: Keys


def offered(stand: Stand, planned: Sequence[Planned], seed: str, seconds: float) -> tuple[list[Row], Counted]:
    """Send all of it at its times, and wait for the last answer. Raises Stop, OSError."""
    url, keys, provider = stand.headgate.url, stand.keys, stand.provider
    kinds = [Kind(wire.place(keys.asking(url, one, seed, number))) for number, one in enumerate(planned)]
    before, at = provider.seen(), time.time()
    loop = OpenLoop(kinds, 0.0, drain_s=DEADLINE_S + 20.0, arrivals=[one.at for one in planned])
    begin, sent, found = uvloop.run(_watched(loop, stand.engine, seconds))
    time.sleep(SETTLE_S)
    after = provider.seen()
    counted = Counted(
        found.flow.output, found.cores, seconds, after["requests"] - before["requests"],
        after["marked_bytes"] - before["marked_bytes"],
    )  # fmt: skip
    return rows(planned, sent, written(stand.headgate, at), begin, at), counted


async def _watched(loop: OpenLoop, engine: Vllm, seconds: float) -> tuple[float, list[Sent], Spell]:
    """Run the loop; what the engine did from RAMP of the time to the end of the sends."""
    begin = time.monotonic()
    task = asyncio.create_task(loop.run(seconds))
    try:
        await asyncio.sleep(seconds * RAMP)
        found = await spell(engine.engine, begin + seconds - time.monotonic(), engine.pids)
        sent = await task
    finally:
        task.cancel()
    return begin, sent, found


def written(headgate: Installation, since: float) -> dict[str, dict[str, Any]]:
    """What the ledger says of the requests since then, by their ids: opened, closed, cost."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.closing(connect(headgate.home.ledger, read_only=True)) as db:
        query = "SELECT request, kind, at, cost, body FROM events WHERE at >= ? AND kind IN ('opened', 'closed')"
        for request, kind, at, cost, body in db.execute(query, (since - 1,)):
            known = found.setdefault(request, {})
            known[kind] = at
            if kind == "closed":
                said = json.loads(body)
                known |= {"cost": cost or 0.0, "queued_ms": said["queued_ms"], "attempts": len(said["attempts"])}
                known["off_ms"] = _off(said.get("predicted") or {}, said.get("met") or {})
    return found


def _off(predicted: Mapping[str, float | None], met: Mapping[str, float | None]) -> float | None:
    """How much later its first token came than was expected, after it was sent; None where either is not known."""
    expected, came = predicted.get("first_token_ms"), met.get("first_token_ms")
    return None if expected is None or came is None else came - expected


def rows(
    planned: Sequence[Planned], sent: Sequence[Sent], ledger: Mapping[str, Mapping[str, Any]], begin: float, at: float
) -> list[Row]:  # fmt: skip
    """Callers and ledger put together. `begin`: the start by the monotonic clock, `at` by the wall's. Pure."""
    return [_row(planned[s.kind], s, ledger.get(s.heard.request, {}) if s.heard else {}, begin, at) for s in sent]


def _row(planned: Planned, sent: Sent, known: Mapping[str, Any], begin: float, at: float) -> Row:
    heard = sent.heard
    row = Row(planned.private, sent.due - begin, 0, False)
    if heard is None:
        return row
    opened = known["opened"] - at if "opened" in known else None
    queued = known.get("queued_ms")
    waited = None if queued is None else queued / 1000
    tried = opened is not None and known.get("attempts", 0) > 0
    off = known.get("off_ms")
    return dataclasses.replace(
        row, status=heard.status, good=heard.good, place=heard.place, late=heard.sent - sent.due,
        first=heard.first - sent.due if heard.first else None, opened=opened, queued=waited,
        started=(opened or 0.0) + (waited or 0.0) if tried else None, cost=known.get("cost", 0.0),
        off=None if off is None else off / 1000,
    )  # fmt: skip
