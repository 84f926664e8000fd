"""The rounds of the overhead benchmark: CPU of each gateway's processes under load, and its time to first token.

Rounds alternate between the gateways, every other one in the opposite order, so that what disturbs one disturbs all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from benchmarks import closed, cpu, wire
from benchmarks.closed import Done
from benchmarks.figures import Case, Reading
from benchmarks.gateways import Gateway
from benchmarks.installation import Stop
from benchmarks.samples import quantile
from benchmarks.upstream import STAMP
from benchmarks.wire import Heard

SETTLE_S = 0.3
"""After a load: what the ledger still has to write belongs to it."""
SPREAD_S = 0.2


def measure(case: Case, target: Gateway, seconds: float, folder: Path) -> Reading:
    """One round. Raises Stop where nothing was answered."""
    before = cpu.seconds(target.processes())
    done = load(case, target, seconds, folder)
    time.sleep(SETTLE_S)
    parts = target.processes()
    used = cpu.between(before, cpu.seconds(parts))
    if not done.requests:
        raise Stop(f"{target.name} answered none of the requests of {case.name}")
    by_part: dict[str, float] = {}
    for pid, spent in used.items():
        by_part[parts[pid]] = by_part.get(parts[pid], 0.0) + spent
    return Reading(case.name, target.name, done.requests * (case.pieces or 1), by_part, done)


def load(case: Case, target: Gateway, seconds: float, folder: Path) -> Done:
    """The load of a round alone."""
    if case.streams:
        return streams(case, target)
    # wrk forgets what is under way at its end: with a gateway that takes a second for each that would be most of it.
    if closed.has_wrk() and target.effort >= 1:
        return closed.wrk(target.asking(), case.connections, seconds, folder)
    where = [wire.place(target.asking())]
    return done(uvloop.run(wire.keep_asking(where, case.connections, max(1.0, seconds * target.effort))))


def streams(case: Case, target: Gateway, spread_s: float = 0.0, words: str = "") -> Done:
    """Streams to their end. A slow gateway is given fewer at once, and fewer in all."""
    where = [wire.place(target.asking(words, stream=True))]
    times = max(1, round(case.streams * target.effort))
    return done(uvloop.run(wire.closed(where, at_once(case, target), times, spread_s)))


def at_once(case: Case, target: Gateway) -> int:
    """How many streams a target is given at once."""
    return max(1, round(case.connections * target.effort))


def done(heard: Sequence[Heard]) -> Done:
    """What a closed loop heard."""
    good = [h for h in heard if h.good]
    stamped = [h for h in good if h.reached]
    totals, firsts = [h.ended - h.sent for h in good], [h.first - h.sent for h in good if h.first]
    took = max((h.ended for h in heard), default=0.0) - min((h.sent for h in heard), default=0.0)
    return Done(
        requests=len(good), errors=len(heard) - len(good), seconds=took, p50=quantile(totals, 0.5),
        p99=quantile(totals, 0.99), first_token_p50=quantile(firsts, 0.5), first_token_p99=quantile(firsts, 0.99),
        reached_p50=quantile([h.reached - h.sent for h in stamped], 0.5),
        back_p50=quantile([h.first - h.reached for h in stamped], 0.5),
    )  # fmt: skip


def cpu_rounds(
    cases: Sequence[Case], targets: Sequence[Gateway], count: int, seconds: float, folder: Path
) -> Iterator[Reading]:
    """Every case at every target, over and over."""
    for number in range(count):
        for case in cases:
            for target in targets if number % 2 == 0 else reversed(targets):
                yield measure(case, target, seconds, folder)


def first_token_rounds(case: Case, targets: Sequence[Gateway], count: int, upstream: int) -> Iterator[Reading]:
    """Times to first token: gateways on one core, load and upstream (its process) on another, where there are two.

    Each stream starts a random while after the last one, so that 32 are under way and do not all start at one moment;
    what that costs is in the CPU rounds, whose streams do.
    """
    with cpu.apart([pid for target in targets for pid in target.processes()], [upstream]):
        for number in range(count):
            for target in targets if number % 2 == 0 else reversed(targets):
                found = streams(case, target, SPREAD_S, STAMP)
                yield Reading(case.name, target.name, max(1, found.requests) * case.pieces, {}, found)
