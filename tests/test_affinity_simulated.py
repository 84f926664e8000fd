"""Four replicas, many conversations that share a system text, and no engine: what affinity saves, and what it costs.

Events in their order, on a clock of their own; the code that decides and that remembers is the router's. An engine
reads 20,000 tokens a second, one prompt after the other, writes for a second or two, and keeps what it has read of
prompts as far as there is room for it.
"""

from __future__ import annotations

import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from router.decision.policies import MOST_AHEAD, cheapest, favoured
from router.decision.prefix import chain
from router.decision.traits import describe
from router.records import Ask, Candidate, Chain, Usage
from router.upstream.prefixes import Prefixes
from serving.catalogue import Site
from tests.fakes.asking import ask, caller, candidate, endpoint, local, searched

MODEL, WHO, SECRET = local(context=100_000), caller(), "s1"
PLACES = 32
READS = 20_000 * 4
"""Bytes a second."""
ROOM = 150_000
"""Bytes of prompts that an engine keeps: a twentieth of all, in the end."""
SYSTEM = "You are the assistant of the water board. " * 10

Choice = Callable[["Fleet", Ask, Chain], "Engine"]


@dataclass
class Engine:
    name: str
    kept: OrderedDict[int, int] = field(default_factory=OrderedDict)
    busy: int = 0
    free_at: float = 0.0
    """When it has read all the prompts it was given."""

    def read(self, begun: Chain, now: float) -> tuple[int, float]:
        """Bytes of the prompt that were there already, and when its first token comes."""
        there = 0
        for mark, size in zip(begun.hashes, begun.sizes, strict=True):
            if mark not in self.kept:
                break
            there = size
        before = 0
        for mark, size in zip(begun.hashes, begun.sizes, strict=True):
            self.kept.setdefault(mark, size - before)
            before = size
        for mark in reversed(begun.hashes):
            self.kept.move_to_end(mark)
        size = sum(self.kept.values())
        while size > ROOM:
            size -= self.kept.popitem(last=False)[1]
        self.free_at = max(now, self.free_at) + (begun.sizes[-1] - there) / READS
        return there, self.free_at


@dataclass
class Fleet:
    dice: random.Random
    engines: list[Engine] = field(default_factory=lambda: [Engine(f"r{number}") for number in range(4)])
    prefixes: Prefixes = field(default_factory=Prefixes)
    unread: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    read: int = 0
    spread: list[int] = field(default_factory=list)
    """At each arrival, by how much the busiest engine had more requests than the least busy one."""
    firsts: list[float] = field(default_factory=list)
    placed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefixes.heard([endpoint(MODEL, name=e.name, kv_tokens=ROOM // 4) for e in self.engines])

    def candidates(self, begun: Chain) -> list[Candidate]:
        return [
            candidate(MODEL, name=e.name, in_flight=e.busy, limit=PLACES, cached=self.prefixes.cached(e.name, begun),
                      unstarted=self.unread.get(e.name, 0))
            for e in self.engines
        ]  # fmt: skip


def by_affinity(fleet: Fleet, asked: Ask, begun: Chain) -> Engine:
    """As the router does."""
    candidates, draw = fleet.candidates(begun), fleet.dice.random()
    favours = favoured(candidates, asked, WHO, begun, draw)
    traits = describe(asked, WHO, searched(asked.body), Site())
    first = cheapest(candidates, traits, (), draw, favours)[0]
    fleet.placed.append(favours[MODEL.name].by)
    return next(e for e in fleet.engines if e.name == first.endpoint.name)


def by_chance(fleet: Fleet, asked: Ask, begun: Chain) -> Engine:
    return fleet.dice.choice([e for e in fleet.engines if e.busy < PLACES])


def by_two_choices(fleet: Fleet, asked: Ask, begun: Chain) -> Engine:
    return min(fleet.dice.sample(fleet.engines, 2), key=lambda e: e.busy)


def simulate(choose: Choice, *, conversations: int = 240, turns: int = 10, system: str = SYSTEM) -> Fleet:
    """One conversation by itself, and five seconds later all others in the course of a minute."""
    dice = random.Random(7)
    fleet = Fleet(random.Random(8))
    events: list[tuple[float, int, Callable[[float], None]]] = []

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, dice.getrandbits(60), what))

    def turn(messages: list[dict[str, str]], left: int, now: float) -> None:
        asked = ask(size=len(orjson.dumps(messages)) + 40, messages=messages)
        begun = chain(asked, WHO.team, SECRET)
        assert begun is not None
        engine = choose(fleet, asked, begun)
        busy = [e.busy for e in fleet.engines]
        fleet.spread.append(max(busy) - min(busy))
        believed = fleet.prefixes.cached(engine.name, begun)
        there, first = engine.read(begun, now)
        fleet.hits, fleet.read = fleet.hits + there, fleet.read + begun.sizes[-1]
        fleet.firsts.append(first - now)
        tokens = (begun.sizes[-1] - there) // 4
        fleet.unread[engine.name] = fleet.unread.get(engine.name, 0) + tokens
        engine.busy += 1

        def begins(_: float) -> None:
            fleet.unread[engine.name] -= tokens
            fleet.prefixes.sent(engine.name, begun)

        def ends(later: float) -> None:
            engine.busy -= 1
            usage = Usage(begun.sizes[-1] // 4, 100, there // 4)
            fleet.prefixes.ended(engine.name, begun, believed, usage)
            if left:
                said = [{"role": "assistant", "content": text(dice, 600)}, {"role": "user", "content": text(dice, 400)}]
                at(later + dice.expovariate(1 / 4), lambda when: turn([*messages, *said], left - 1, when))

        at(first, begins)
        at(first + dice.uniform(1, 2), ends)

    for number in range(conversations):
        begin = [{"role": "system", "content": system}, {"role": "user", "content": text(dice, 900)}]
        at(dice.uniform(5, 65) if number else 0, lambda when, begin=begin: turn(begin, turns - 1, when))
    while events:
        when, _, what = heapq.heappop(events)
        what(when)
    return fleet


def text(dice: random.Random, length: int) -> str:
    return "".join(f"{dice.getrandbits(32):x} " for _ in range(length // 9))


def rate(fleet: Fleet) -> float:
    return fleet.hits / fleet.read


def late(fleet: Fleet) -> float:
    """The first token that is later than nineteen of twenty."""
    return sorted(fleet.firsts)[len(fleet.firsts) * 19 // 20]


def test_conversations_find_their_caches_and_the_replicas_stay_evenly_loaded() -> None:
    ours, chance, two = simulate(by_affinity), simulate(by_chance), simulate(by_two_choices)
    assert rate(ours) > 2 * max(rate(chance), rate(two))
    assert late(ours) < 0.8 * min(late(chance), late(two))
    assert statistics.mean(ours.spread) < 0.8 * statistics.mean(chance.spread)
    assert max(ours.spread) < max(chance.spread)
    assert all(ours.placed.count(by) > 50 for by in ("prefix", "session", "guard")), "each rule has had its part"


def test_a_text_that_all_begin_with_draws_nobody_to_one_replica_alone() -> None:
    """Without the guard all would follow the first one, to the only replica that has read it."""
    fleet = simulate(by_affinity, system="The rules of the water board. " * 1000, turns=1, conversations=960)
    assert rate(fleet) > 0.9
    assert statistics.mean(fleet.spread) < 5 and max(fleet.spread) <= PLACES * MOST_AHEAD + 2
    assert len({e.name for e in fleet.engines if e.kept}) == 4
