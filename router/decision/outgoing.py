"""The body one model is sent: its own name, the held output limit, and no field it does not take. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from router.decision.dialects import LIMIT, LOCAL_ONLY
from router.records import Ask, Candidate, Route
from serving.parameters import BOOKKEEPING, HARMLESS, REFUSED, accepted


def body_for(
    ask: Ask, candidate: Candidate, droppable: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body, and the fields left out since this model does not take them and they may be dropped."""
    dropped = dropped_for(ask, candidate, droppable)
    body = {name: value for name, value in ask.body.items() if value is not None and name not in dropped}
    body["model"] = candidate.endpoint.served or candidate.model.name
    limits = LIMIT[ask.route]
    if limits and body.keys().isdisjoint(limits):
        body[limits[-1]] = output_limit(ask, candidate)
    if ask.route == "responses":
        body["store"] = False  # left out it would mean yes, and nothing is kept for a caller
    elif ask.stream and "stream_options" in accepted(ask.route, candidate.model.parameters):
        # Without it the stream ends without token counts, and the answer's cost would be an estimate.
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return body, dropped


def dropped_for(ask: Ask, candidate: Candidate, droppable: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The fields this model does not take and that may be left out: those that change no answer, and the route's own.

    `droppable` are those of the route, by headgate.yaml.
    """
    optional = may_drop(droppable, ask.route)
    if optional.isdisjoint(ask.body):  # nearly always
        return ()
    takes = accepted(ask.route, candidate.model.parameters)
    found = [n for n, v in ask.body.items() if v is not None and n in optional and n not in takes]
    if ask.route == "responses" and ask.body.get("store") is True:
        found.append("store")  # the caller's wish is not met, so it is told
    return tuple(sorted(found))


@lru_cache(maxsize=64)
def may_drop(droppable: frozenset[str], route: Route) -> frozenset[str]:
    """Every field that may be left out where a model does not take it; never one that is refused outright."""
    harmless = HARMLESS[route] if route in LOCAL_ONLY else frozenset()
    return (BOOKKEEPING | droppable | harmless | {"stream_options"}) - REFUSED.keys()


def output_limit(ask: Ask, candidate: Candidate) -> int:
    """The model's default, less where the prompt leaves little room (two bytes a token: on the safe side)."""
    context = candidate.endpoint.context or candidate.model.context
    return max(1, min(candidate.model.output, context - ask.size // 2))
