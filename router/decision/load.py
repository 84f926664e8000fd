"""What the load of local endpoints means for a request that may leave: who overflows, and who waits all the same. Pure.

Nothing here admits anybody: it looks at those that may answer already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from router.decision.prediction import predict, tokens_of
from router.decision.question import Question, refuse
from router.decision.saturation import overflows, saturation
from router.records import Ask, Candidate, Prediction, Refusal, Saturation, Traits

MOST_EXPECTED = 8
"""Of so many of an order it is worked out what they would do: no more of them are tried."""


class Load(NamedTuple):
    """How full the local endpoints are."""

    found: Mapping[str, Saturation] = {}
    """By the endpoint's name; empty where it decides nothing."""
    over: Mapping[str, Saturation] = {}
    """Those that are so full that what may leave goes elsewhere."""
    changed: tuple[tuple[str, bool], ...] = ()
    """Those that are so now and were not before, and the other way round."""


NONE = Load()


def looked(ranked: Sequence[Candidate], question: Question, *, always: bool = False) -> Load:
    """How full they are, where that decides something: where a local and a hosted model may answer."""
    if len(ranked) < 2 and not always:
        return NONE
    local = [c.endpoint for c in ranked if c.model.place == "local"]
    leaves = 0 < len(local) < len(ranked)
    if not (leaves or always):
        return NONE
    waits = question.snapshot.catalogue.site.router.allowed_wait_s
    allowed, least = waits.of(question.traits.lane), waits.least
    found = {endpoint.name: saturation(endpoint, allowed) for endpoint in local}
    if not leaves:
        return Load(found)
    back = question.snapshot.catalogue.site.router.back_at
    over = {e.name: found[e.name] for e in local if overflows(found[e.name], spilling=e.spilling, back=back)}
    changed = []
    for endpoint in local:
        # Kept by the shortest of the allowed waits, so that lanes with others do not take it from each other.
        seen = found[endpoint.name] if allowed == least else saturation(endpoint, least)
        if (spills := overflows(seen, spilling=endpoint.spilling, back=back)) != endpoint.spilling:
            changed.append((endpoint.name, spills))
    return Load(found, over, tuple(changed))


def kept(
    ranked: list[Candidate], question: Question, met: Callable[[Candidate, Question], bool]
) -> tuple[list[Candidate], list[Refusal]]:
    """Without the hosted ones for a request that has time, while a local one that is well may answer: it waits.

    Not where a hosted one is what was asked for. `met`: whether a candidate is what is wanted first.
    """
    if question.traits.latency != "batch" or len(ranked) < 2:
        return ranked, []
    local = [c for c in ranked if c.model.place == "local"]
    named = question.traits.named
    wanted = any(c.model.place == "hosted" and (c.model.name == named or met(c, question)) for c in ranked)
    if wanted or not any(not c.endpoint.resting for c in local):
        return ranked, []
    hosted = [c for c in ranked if c.model.place == "hosted"]
    why, remedy = "this is a batch request, and those wait for local room", "x-headgate-latency: interactive"
    return local, [refuse(c, "batch_waits", why, remedy=remedy, passing=True) for c in hosted]


def expected(order: Sequence[Candidate], ask: Ask, traits: Traits) -> tuple[Prediction | None, ...]:
    """What each of an order would do now; () where nothing is known of any."""
    pictured, any_known = "vision" in traits.needs, False
    found: list[Prediction | None] = []
    for candidate in order[:MOST_EXPECTED]:
        endpoint = candidate.endpoint
        if endpoint.pace is None or candidate.model.place != "local" or endpoint.wakes:
            found.append(None)
            continue
        any_known = True
        cached = tokens_of(endpoint, endpoint.cached) if endpoint.cached else 0.0
        found.append(predict(endpoint, tokens_of(endpoint, ask.size, pictured=pictured), cached))
    return (*found, *[None] * (len(order) - len(found))) if any_known else ()
