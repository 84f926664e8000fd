"""Some made-up engines behind the router's own decisions: its order, its prediction, its queue. No I/O.

`decide`, `Room`, `Paces` and what they stand on are those of the router; made up are engines, provider and callers.
What is left out: the scanner (a class is what its key says), failures, other routers, sleep, prefix caches.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks import virtual
from benchmarks.mix import Planned
from benchmarks.replica import Replica
from benchmarks.scene import FAR, HERE, SEARCHED, Setup, ask_of, caller, catalogue
from benchmarks.spill import Counted, Row
from router.decision.decide import decide
from router.errors import DeadlinePassed, QueueFull
from router.records import Ask, Caller, Candidate, Decision, Endpoint, Snapshot, Usage
from router.upstream.attempts import FIRST_PAUSE_S, MOST_PAUSE_S
from router.upstream.pace import Paces
from router.upstream.queue import BATCH, INTERACTIVE
from router.upstream.room import Room
from router.upstream.tries import measured
from router.upstream.walk import within_hold
from serving.catalogue import DataClass

READ_S = 1.0
"""How old an engine's readings are at most."""
TODAY = dt.date(2026, 11, 21)


@dataclass(slots=True)
class Walk:
    """One request on its way."""

    one: Planned
    ask: Ask
    caller: Caller
    decision: Decision
    row: Row


class Cell:
    """A router and its engines in the middle of a run."""

    def __init__(self, setup: Setup, seed: int = 1) -> None:
        settings = setup.router
        self.setup, self.rows = setup, list[Row]()
        self.replicas = {f"{HERE}-{n}": Replica(setup.profile) for n in range(1, setup.replicas + 1)}
        self._catalogue, self._paces = catalogue(setup), Paces()
        self._room = Room(
            settings.queue_length, settings.queue_wait_s, wait_batch_s=settings.queue_wait_batch_s, clock=_now
        )
        self._draw = random.Random(f"draw:{seed}")
        self._spilling: set[str] = set()
        self._limits = dict.fromkeys(self.replicas, setup.known) | ({FAR: 0} if setup.hosted else {})
        self._read: dict[str, Endpoint] = {}
        self._far = [Endpoint(FAR, FAR, "door", "ready")] if setup.hosted else []

    async def run(self, planned: Sequence[Planned], seconds: float, begin: float = 0.0) -> Counted:
        """Send everything at its time and wait for all ends. Rows are of what came at `begin` or later.

        Tokens are counted from `begin` to the end of the sends. It may be called again: what was learned stays.
        """
        start = _now()
        self.read()
        polling, warmed_up = asyncio.create_task(self._poll()), asyncio.create_task(self._made(start + begin))
        asked = []
        try:
            for number, one in enumerate(planned):
                await _until(start + one.at)
                asked.append(asyncio.create_task(self._ask(one, number)))
            made = await self._made(start + seconds) - await warmed_up
            rows = await asyncio.gather(*asked)
        finally:
            polling.cancel()
        self.rows = [_shifted(row, start + begin) for row in rows if row.due >= start + begin]
        out = sum(row.private and row.place == "hosted" for row in self.rows)
        hosted = sum(row.place == "hosted" for row in self.rows)
        return Counted(made / (seconds - begin), 0.0, seconds - begin, hosted, out)

    async def _made(self, at: float) -> float:
        """Tokens that all engines have made by then."""
        await _until(at)
        return sum(replica.count(at) for replica in self.replicas.values())

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(READ_S)
            self.read()

    def read(self) -> None:
        """Take the engines' readings, as serving would publish them."""
        self._room.refresh(self._limits)
        now = _now()
        for name, replica in self.replicas.items():
            if (there := self._paces.known(name)) is not None:
                there.read(replica.running, replica.waiting, now)
        self._read = {
            name: Endpoint(
                name, HERE, "", "ready", limit=self.setup.known, running=replica.running, waiting=replica.waiting,
                kv_use=replica.kv_use, context=self._catalogue.models[HERE].context,
            )
            for name, replica in self.replicas.items()
        }  # fmt: skip

    def snapshot(self, now: float) -> Snapshot:
        """What the router knows now: its own counts at once, the engines' as they were last read."""
        room, endpoints = self._room, []
        for name, endpoint in self._read.items():
            there = self._paces.known(name)
            pace = there.pace(now, room.drained(name)) if there else None
            unstarted, others = (there.unstarted(now), there.others) if there else (0, 0)
            endpoints.append(endpoint.now(
                room.in_flight(name), endpoint.limit, room.is_told_full(name), room.outstanding(name), "", False, 1.0,
                pace, unstarted, others, name in self._spilling,
            ))  # fmt: skip
        return Snapshot(
            at=now, today=TODAY, catalogue=self._catalogue, models=self._catalogue.models,
            endpoints=(*endpoints, *self._far), spent=0.0, draw=self._draw.random(),
        )  # fmt: skip

    async def _ask(self, one: Planned, number: int) -> Row:
        """One request from its arrival to its end."""
        now, ask = _now(), ask_of(one, number)
        who = caller(DataClass.private, number % self.setup.teams) if one.private else caller(DataClass.public)
        decision = decide(ask, who, SEARCHED, self.snapshot(now))
        for name, spills in decision.spilling:
            (self._spilling.add if spills else self._spilling.discard)(name)
        row = Row(one.private, now, 0, False, opened=now)
        try:
            return await self._walk(Walk(one, ask, who, decision, row))
        except (QueueFull, DeadlinePassed):
            return replace(row, status=503, queued=_now() - now or None)

    async def _walk(self, walk: Walk) -> Row:
        """Along the order as `Attempts` goes: what has room, then what is full once it has a place."""
        order, traits, room = within_hold(walk.decision.order), walk.decision.traits, self._room
        full = [c for c in order if c.endpoint.full]
        for candidate in (c for c in order if not c.endpoint.full):
            free = not room.is_full(candidate.endpoint.name)
            if free and (row := await self._try(walk, candidate, granted=False)) is not None:
                return row
            full.append(candidate)
        first, again, pause_s = _now(), None, 0.0
        priority = BATCH if traits.latency == "batch" else INTERACTIVE
        names = {c.endpoint.name: c for c in full}
        while full:
            name = await room.turn(
                tuple(names), first + room.longest_s(priority), team=walk.caller.team, priority=priority,
                size=traits.prompt_tokens, since=again, pause_s=pause_s,
            )  # fmt: skip
            if (row := await self._try(walk, names[name], granted=True)) is not None:
                return row
            again, pause_s = first, min(MOST_PAUSE_S, max(FIRST_PAUSE_S, 2 * pause_s))
        raise QueueFull("nobody may answer")

    async def _try(self, walk: Walk, candidate: Candidate, *, granted: bool) -> Row | None:
        """One try; None where the engine refuses for want of room."""
        name, tokens, started = candidate.endpoint.name, walk.decision.traits.prompt_tokens, _now()
        row = replace(
            walk.row, status=200, good=True, place=candidate.model.place, started=started,
            queued=started - walk.row.due if granted else None,
        )  # fmt: skip
        self._room.enter(name, tokens, granted=granted)
        try:
            if candidate.model.place == "hosted":
                return await self._far_away(walk.one, row)
            return await self._here(walk, candidate, row, started)
        finally:
            self._room.leave(name, tokens)

    async def _far_away(self, one: Planned, row: Row) -> Row:
        """A hosted answer: as fast as all others, however many there are."""
        provider = self.setup.provider
        await asyncio.sleep(provider.first_s)
        first = _now()
        await asyncio.sleep(provider.pause_s * (one.output - 1))
        return replace(row, first=first - row.due, cost=provider.cost(one.prompt, one.output))

    async def _here(self, walk: Walk, candidate: Candidate, row: Row, started: float) -> Row | None:
        """A made-up engine's answer, of which the router learns as of a real one's. None where it refuses."""
        one, name = walk.one, candidate.endpoint.name
        job = self.replicas[name].submit(one.prompt, one.output)
        if job is None:
            self._room.told_full(name)
            return None
        shown = measured(self._paces, candidate, walk.ask, walk.decision.traits, started)
        came = await job.first + self.setup.profile.overhead_s
        if shown is not None:
            shown.first(came)
        ended = await job.ended
        if shown is not None:
            shown.ended(Usage(one.prompt, one.output), one.output, ended)
        expected = None if row.queued is not None else expected_s(walk.decision, candidate)
        return replace(row, first=came - row.due, off=None if expected is None else came - started - expected)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _shifted(row: Row, begin: float) -> Row:
    opened = None if row.opened is None else row.opened - begin
    started = None if row.started is None else row.started - begin
    return replace(row, due=row.due - begin, opened=opened, started=started)


async def _until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - _now()))


def expected_s(decision: Decision, candidate: Candidate) -> float | None:
    """The time to a first token that the decision expected there; None where it expected nothing."""
    found = dict(zip((c.endpoint.name for c in decision.order), decision.predicted, strict=False))
    said = found.get(candidate.endpoint.name)
    return None if said is None else said.first_token_s


def simulated(
    setup: Setup, planned: Sequence[Planned], seconds: float, begin: float = 0.0, seed: int = 1
) -> tuple[list[Row], Counted]:
    """One run in made-up time: what came of the requests from `begin` on, and what was counted from then."""
    cell = Cell(setup, seed)
    counted = virtual.run(cell.run(planned, seconds, begin))
    return cell.rows, counted
