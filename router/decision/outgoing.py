"""The body one model is sent: its own name, the held output limit, and no field it does not take. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from router.decision.dialects import LIMIT, LOCAL_ONLY
from router.records import Ask, Candidate, Route
from serving.parameters import BOOKKEEPING, HARMLESS, REFUSED, accepted

THOUGHTS = frozenset({"reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks"})
"""Fields of an assistant's message in which servers give what a model thought."""
THOUGHT_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""Types of parts that hold it."""


def body_for(
    ask: Ask, candidate: Candidate, droppable: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body, and the fields left out since this model does not take them and they may be dropped."""
    dropped = dropped_for(ask, candidate, droppable)
    body = {name: value for name, value in ask.body.items() if value is not None and name not in dropped}
    body["model"] = candidate.endpoint.served or candidate.model.name
    if ask.route == "chat/completions" and foreign(ask, candidate):
        body["messages"] = without_thoughts(body.get("messages"))
    limits = LIMIT[ask.route]
    if limits and body.keys().isdisjoint(limits):
        body[limits[-1]] = output_limit(ask, candidate)
    if ask.route == "responses":
        body["store"] = False  # left out it would mean yes, and nothing is kept for a caller
    elif ask.stream and "stream_options" in accepted(ask.route, candidate.model.parameters):
        # Without it the stream ends without token counts, and the answer's cost would be an estimate.
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return body, dropped


def foreign(ask: Ask, candidate: Candidate) -> bool:
    """Whether the conversation may have been another model's: a hosted model that nobody named. Of local ones several
    take what they thought before, and their servers leave out what they do not."""
    return candidate.model.place == "hosted" and ask.model != candidate.model.name


def without_thoughts(messages: Any) -> Any:
    """A history without what an earlier model thought: another one has no use for it, and many APIs refuse it.

    The messages are not changed; what has no such thing is passed on as it is.
    """
    if not isinstance(messages, list) or not any(_thinks(message) for message in messages):
        return messages
    return [_said(message) if _thinks(message) else message for message in messages]


def _thinks(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return False
    return not THOUGHTS.isdisjoint(message) or any(_is_thought(part) for part in _parts(message))


def _said(message: dict[str, Any]) -> dict[str, Any]:
    left = {name: value for name, value in message.items() if name not in THOUGHTS}
    if parts := _parts(message):
        left["content"] = [part for part in parts if not _is_thought(part)] or ""
    return left


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in THOUGHT_PARTS


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
