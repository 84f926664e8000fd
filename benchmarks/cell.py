"""Some made-up engines behind the router's own decisions: its order, its prediction, its queue. No I/O.

`decide`, `Room`, `Paces` and what they stand on are those of the router; made up are engines, provider and callers.
What is left out: the scanner (a class is what its key says), failures, other routers, sleep, prefix caches.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import virtual
from benchmarks.mix import Planned
from benchmarks.replica import Profile, Replica
from benchmarks.spill import Counted, Row
from router.decision.decide import decide
from router.errors import DeadlinePassed, QueueFull
from router.records import Ask, Caller, Candidate, Decision, Endpoint, Findings, Snapshot, Usage
from router.upstream.attempts import FIRST_PAUSE_S, within_hold
from router.upstream.pace import Paces
from router.upstream.room import Room
from router.upstream.tries import measured
from serving.catalogue import LANES, Catalogue, DataClass, Model, Price, Provider, RouterSettings, Site

BYTES_PER_TOKEN = 4
READ_S = 1.0
"""How old an engine's readings are at most."""
HERE, FAR = "here", "far"
TODAY = dt.date(2026, 11, 21)


@dataclass(frozen=True, slots=True)
class Far:
    """A hosted model of fixed speed, with US dollars a million tokens."""

    first_s: float = 0.4
    pause_s: float = 0.015
    input: float = 2.0
    output: float = 10.0

    def cost(self, prompt: int, output: int) -> float:
        return (prompt * self.input + output * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Setup:
    """A router's settings, and what stands behind it."""

    profile: Profile
    replicas: int
    known: int
    """The limit of each engine as the router knows it; 0 is unknown."""
    router: RouterSettings
    hosted: bool
    provider: Far = Far()
    teams: int = 1
    """Of private callers, who share what they wait for."""


class Cell:
    """A router and its engines in the middle of a run."""

    def __init__(self, setup: Setup, seed: int = 1) -> None:
        settings = setup.router
        self.setup, self.rows = setup, list[Row]()
        self.replicas = {f"{HERE}-{n}": Replica(setup.profile) for n in range(1, setup.replicas + 1)}
        self._catalogue, self._paces = catalogue(setup), Paces()
        self._room = Room(
            settings.queue_length, settings.queue_wait_s, wait_batch_s=settings.queue_wait_batch_s,
            clock=lambda: asyncio.get_running_loop().time(),
        )  # fmt: skip
        self._draw = random.Random(f"draw:{seed}")
        self._spilling: set[str] = set()
        self._limits = dict.fromkeys(self.replicas, setup.known) | ({FAR: 0} if setup.hosted else {})
        self._read: dict[str, Endpoint] = {}
        self._far = [Endpoint(FAR, FAR, "door", "ready")] if setup.hosted else []

    async def run(self, planned: Sequence[Planned], seconds: float, begin: float = 0.0) -> Counted:
        """Send everything at its time and wait for all ends. Rows are of what came at `begin` or later.

        Tokens are counted from `begin` to the end of the sends. It may be called again: what was learned stays.
        """
        start = asyncio.get_running_loop().time()
        self.read()
        polling, asked, before = asyncio.create_task(self._poll()), list[asyncio.Task[Row]](), 0.0
        try:
            for number, one in enumerate(planned):
                if one.at >= begin and (not number or planned[number - 1].at < begin):
                    before = await self._made(start + begin)
                await _until(start + one.at)
                asked.append(asyncio.create_task(self._ask(one, number)))
            made = await self._made(start + seconds) - before
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
            self._room.refresh(self._limits)

    def read(self) -> None:
        """Take the engines' readings, as serving would publish them."""
        self._room.refresh(self._limits)
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
            learned = (there.pace(now, room.drained(name)), there.unstarted(now)) if there else (None, 0)
            endpoints.append(endpoint.now(
                room.in_flight(name), endpoint.limit, room.is_told_full(name), room.outstanding(name), "", False, 1.0,
                learned[0], learned[1], 0, name in self._spilling,
            ))  # fmt: skip
        return Snapshot(
            at=now, today=TODAY, catalogue=self._catalogue, models=self._catalogue.models,
            endpoints=(*endpoints, *self._far), spent=0.0, draw=self._draw.random(),
        )  # fmt: skip

    async def _ask(self, one: Planned, number: int) -> Row:
        """One request from its arrival to its end."""
        now = asyncio.get_running_loop().time()
        ask, caller = ask_of(one, number), kept(number % self.setup.teams) if one.private else OPEN
        decision = decide(ask, caller, SEARCHED, self.snapshot(now))
        for name, spills in decision.spilling:
            (self._spilling.add if spills else self._spilling.discard)(name)
        row = Row(one.private, now, 0, False, opened=now)
        try:
            return await self._walk(Walk(one, ask, caller, decision, row))
        except (QueueFull, DeadlinePassed):
            ended = asyncio.get_running_loop().time()
            return replace(row, status=503, queued=ended - now if ended > now else None)

    async def _walk(self, walk: Walk) -> Row:
        """Along the order as `Attempts` goes: what has room, then what is full once it has a place."""
        room, full, loop = self._room, list[Candidate](), asyncio.get_running_loop()
        order = within_hold(walk.decision.order)
        for candidate in (c for c in order if not c.endpoint.full):
            if room.is_full(candidate.endpoint.name):
                full.append(candidate)
            elif (row := await self._try(walk, candidate, granted=False)) is not None:
                return row
            else:
                full.append(candidate)
        full += [c for c in order if c.endpoint.full]
        since, pause_s, first = (
            loop.time(),
            0.0 if full == [c for c in order if c.endpoint.full] else FIRST_PAUSE_S,
            True,
        )
        while full:
            names, traits = {c.endpoint.name: c for c in full}, walk.decision.traits
            priority = int(traits.latency == "batch")
            name = await room.turn(
                tuple(names), since + room.longest_s(priority), team=walk.caller.team, priority=priority,
                size=traits.prompt_tokens, since=None if first else since, pause_s=pause_s,
            )  # fmt: skip
            row, first = await self._try(walk, names[name], granted=True), False
            if row is not None:
                return row
            pause_s = max(FIRST_PAUSE_S, 2 * pause_s)
        raise QueueFull("nobody may answer")

    async def _try(self, walk: Walk, candidate: Candidate, *, granted: bool) -> Row | None:
        """One try; None where the engine refuses for want of room."""
        loop, one, name = asyncio.get_running_loop(), walk.one, candidate.endpoint.name
        started = loop.time()
        queued = started - walk.row.due if granted else None
        row = replace(walk.row, status=200, place=candidate.model.place, queued=queued, started=started)
        tokens = walk.decision.traits.prompt_tokens
        self._room.enter(name, tokens, granted=granted)
        try:
            if candidate.model.place == "hosted":
                provider = self.setup.provider
                await asyncio.sleep(provider.first_s)
                row = replace(row, first=loop.time() - walk.row.due, cost=provider.cost(one.prompt, one.output))
                await asyncio.sleep(provider.pause_s * (one.output - 1))
                return replace(row, good=True)
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
            expected = None if granted else expected_s(walk.decision, candidate)
            off = None if expected is None else came - started - expected
            return replace(row, first=came - walk.row.due, good=True, off=off)
        finally:
            self._room.leave(name, tokens)


async def _until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))


@dataclass(slots=True)
class Walk:
    """One request on its way."""

    one: Planned
    ask: Ask
    caller: Caller
    decision: Decision
    row: Row


def expected_s(decision: Decision, candidate: Candidate) -> float | None:
    """The time to a first token that the decision expected there; None where it expected nothing."""
    found = dict(zip((c.endpoint.name for c in decision.order), decision.predicted, strict=False))
    said = found.get(candidate.endpoint.name)
    return None if said is None else said.first_token_s


SEARCHED = Findings(scanned=0, opaque=(), searched=True)


def ask_of(one: Planned, number: int) -> Ask:
    """The request as the router would have parsed it; of its text only the length counts."""
    body: dict[str, Any] = {
        "model": one.lane, "messages": [{"role": "user", "content": "-"}], "max_tokens": one.output, "stream": True,
    }  # fmt: skip
    return Ask(
        id=str(number), route="chat/completions", body=body, size=max(1, one.prompt) * BYTES_PER_TOKEN, model=one.lane,
        stream=True, latency="batch" if one.batch else None,
    )  # fmt: skip


OPEN = Caller("open", "open", DataClass.public, frozenset(LANES))


@functools.cache
def kept(number: int) -> Caller:
    """A caller of one team whose data stays."""
    return Caller(f"kept-{number}", f"kept-{number}", DataClass.private, frozenset(LANES))


def catalogue(setup: Setup) -> Catalogue:
    """A local model, and a hosted one where one is allowed."""
    provider = setup.provider
    context = 1 << 20
    models = {
        HERE: Model(
            name=HERE, place="local", lanes=("private", "cheap"), context=context, output=4096, limit=setup.known
        )
    }
    far = Model(
        name=FAR, place="hosted", lanes=("cheap", "frontier"), context=context, output=4096, provider=FAR,
        provider_model=FAR, price=Price(input=provider.input, output=provider.output),
    )  # fmt: skip
    providers = {FAR: Provider(enabled=setup.hosted, base_url="http://127.0.0.1:9/v1")}
    if setup.hosted:
        models[FAR] = far
    return Catalogue(models=models, providers=providers, site=Site(router=setup.router))


def simulate(
    setup: Setup, planned: Sequence[Planned], seconds: float, begin: float = 0.0, seed: int = 1
) -> tuple[list[Row], Counted]:
    """One run in made-up time: what came of the requests from `begin` on, and what was counted from then."""
    cell = Cell(setup, seed)
    counted = virtual.run(cell.run(planned, seconds, begin))
    return cell.rows, counted


def _shifted(row: Row, begin: float) -> Row:
    opened = None if row.opened is None else row.opened - begin
    started = None if row.started is None else row.started - begin
    return replace(row, due=row.due - begin, opened=opened, started=started)
