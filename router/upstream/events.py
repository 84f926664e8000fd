"""What one event of a stream says, and what a whole answer used, in each of the three dialects. Pure.

A dialect also says which events can say something new, so that the others need not be decoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from router.records import Route, Usage

MOST_TOKENS = 2**31
"""A count above this is a mistake of the upstream, not a number of tokens."""
FULL = (503, 529, "503", "529", "overloaded_error")
"""Codes and types of errors by which an upstream says that it takes no more now."""
WRONG = (400, 422, "400", "422", "BadRequestError", "invalid_request_error")
"""Those by which it says that the request itself is wrong. vLLM finds some of that only when the stream has begun."""
LARGE = 1024 * 1024
"""Bytes of a whole answer up to which it is parsed: that takes 5 ms. Lists of vectors have sixty times as many."""
MOST_USAGE = 4096
"""Bytes of a usage that are looked at near the beginning of a large answer."""
_TRIES = 8
"""How many fields named `usage` are looked at near each end of a large answer."""
_DELTAS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")
_NAMED, _BACKSLASH, _DECODER = b'"usage":', 92, json.JSONDecoder()
# Inside a JSON string the quotes would be escaped, so these cannot be a model's own words.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_FINISH = re.compile(rb'"finish_reason"\s*:\s*"')


class Seen(NamedTuple):
    """What one event says."""

    delta: bool = False
    """Content, reasoning or a tool call has come: the commit."""
    usage: Usage | None = None
    bare: bool = False
    """It holds nothing but usage."""
    finish: str = ""
    """Why the answer ends, in the dialect's own word."""
    done: bool = False
    """The stream has ended as it should."""
    error: str | None = None
    full: bool = False
    """Whether that error says that the upstream takes no more now."""
    wrong: bool = False
    """Whether it says that the request itself is wrong."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How streams of one route are read."""

    seen: Callable[[dict[str, Any], Usage], Seen]
    """What an event says, given the usage known before it."""
    notable: Callable[[bytes], bool]
    """Whether something in these events must be decoded once the answer has begun."""
    tokens: Callable[[bytes], int]
    """How many of these events carry a piece of the answer, about a token each."""
    closed_by_done: bool = False
    """Whether `[DONE]` is its end."""


def usage_of(body: bytes) -> Usage:
    """The usage a whole JSON answer of any dialect states; unknown where it states none, or nonsense.

    Of a large answer only the ends are looked at, where every server has it: unknown where it is farther inside.
    """
    if len(body) > LARGE:
        return _at_end(body[-LARGE:]) or _at_begin(body[:LARGE]) or Usage()
    try:
        found = orjson.loads(body)
    except ValueError:
        return Usage()
    return usage_in(found) or Usage() if isinstance(found, dict) else Usage()


def is_json(body: bytes) -> bool:
    """Whether this is whole JSON; of a large answer, whether it ends as an object does."""
    if len(body) > LARGE:
        return body.rstrip().endswith(b"}")
    try:
        orjson.loads(body)
    except ValueError:
        return False
    return True


def _at_end(body: bytes) -> Usage | None:
    """The usage that an answer states within its last LARGE bytes.

    What follows such a field closes one object and nothing else only where it is a field of the outermost one.
    """
    at = len(body)
    for _ in range(_TRIES):
        at = body.rfind(_NAMED, len(body) - LARGE, at)
        if at < 0:
            return None
        try:
            found = None if body[at - 1] == _BACKSLASH else orjson.loads(b"{" + body[at:])
        except ValueError:  # it belongs to something within
            continue
        if found is not None:
            return usage_in(found)
    return None


def _at_begin(body: bytes) -> Usage | None:
    """The usage that an answer states within its first LARGE bytes.

    What comes before such a field has opened one object and nothing else only where that is the outermost one.
    """
    at = 0
    for _ in range(_TRIES):
        at = body.find(_NAMED, at + 1, LARGE)
        if at < 0:
            return None
        value = body[at + len(_NAMED) : at + len(_NAMED) + MOST_USAGE].decode("utf-8", "replace").lstrip()
        try:
            if body[at - 1] != _BACKSLASH:
                orjson.loads(body[:at] + _NAMED + b"0}")
                return usage_in({"usage": _DECODER.raw_decode(value)[0]})
        except (ValueError, RecursionError):
            continue
    return None


def usage_in(found: dict[str, Any]) -> Usage | None:
    """The usage beside other fields; None where there is none. The three dialects name their counts differently."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    if "input_tokens" not in usage and "output_tokens" not in usage:
        return Usage(
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            _cached(usage, "prompt_tokens_details"),
        )
    prompt, cached = _count(usage.get("input_tokens")), _cached(usage, "input_tokens_details")
    if "input_tokens_details" not in usage and prompt is not None:
        # Anthropic counts what came from the cache, or went there, beside the input.
        cached = _count(usage.get("cache_read_input_tokens"))
        prompt = prompt + (cached or 0) + (_count(usage.get("cache_creation_input_tokens")) or 0)
    return Usage(prompt, _count(usage.get("output_tokens")), cached)


def _cached(usage: dict[str, Any], name: str) -> int | None:
    details = usage.get(name)
    return _count(details.get("cached_tokens")) if isinstance(details, dict) else None


def _count(value: object) -> int | None:
    # bool is an int in Python, but not a count
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _failed(error: object) -> Seen:
    """An error, as a mapping or as plain text."""
    if not isinstance(error, dict):
        return Seen(error=error if isinstance(error, str) else "the upstream reported an error")
    message = error.get("message")
    text = message if isinstance(message, str) and message else "the upstream reported an error"
    named = (error.get("code"), error.get("type"))
    return Seen(error=text, full=any(one in FULL for one in named), wrong=any(one in WRONG for one in named))


# ---- chat completions and completions


def _chat(found: dict[str, Any], before: Usage) -> Seen:
    error = found if found.get("object") == "error" else found.get("error")
    if error:
        return _failed(error)
    choices, delta, finish = found.get("choices"), False, ""
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            delta = delta or _has_delta(choice)
            reason = choice.get("finish_reason")
            finish = reason if isinstance(reason, str) else finish
    usage = usage_in(found)
    return Seen(delta, usage, bare=usage is not None and choices == [], finish=finish)


def _has_delta(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    return bool(choice.get("text")) or (isinstance(delta, dict) and any(delta.get(name) for name in _DELTAS))


def _chat_notable(events: bytes) -> bool:
    if b"[DONE]" in events or b'"error"' in events:
        return True
    if b'"usage"' in events and _USAGE.search(events) is not None:
        return True
    named = events.count(b'"finish_reason"')
    return named != events.count(b'"finish_reason":null') and _FINISH.search(events) is not None


def _chat_tokens(events: bytes) -> int:
    return events.startswith(b"data:") + events.count(b"\ndata:") + events.count(b"\rdata:")


# ---- responses


def _responses(found: dict[str, Any], before: Usage) -> Seen:
    kind = found.get("type")
    if not isinstance(kind, str):
        return _failed(found["error"]) if found.get("error") else Seen()
    if kind == "error":
        return _failed(found.get("error") or found)
    if kind.endswith(".delta"):
        return Seen(delta=bool(found.get("delta")))
    if kind == "response.output_item.added":
        item = found.get("item")
        return Seen(delta=isinstance(item, dict) and str(item.get("type")).endswith("_call"))
    response = found.get("response")
    if not isinstance(response, dict) or kind not in _ENDS:
        return Seen()
    status = response.get("status")
    if kind == "response.failed" or status == "failed":
        return _failed(response.get("error"))._replace(usage=usage_in(response))
    return Seen(usage=usage_in(response), finish=status if isinstance(status, str) else "", done=True)


_ENDS = ("response.completed", "response.incomplete", "response.failed")


def _responses_notable(events: bytes) -> bool:
    ended = b'"response.completed"' in events or b'"response.incomplete"' in events or b'"response.failed"' in events
    return ended or b'"error"' in events or b"[DONE]" in events


# ---- messages


def _messages(found: dict[str, Any], before: Usage) -> Seen:
    match found.get("type"):
        case "error":
            return _failed(found.get("error"))
        case "message_start":
            message = found.get("message")
            usage = usage_in(message) if isinstance(message, dict) else None
            # What it says of the output is the count before there is any.
            return Seen(usage=None if usage is None else Usage(usage.prompt, None, usage.cached))
        case "content_block_start":
            block = found.get("content_block")
            return Seen(delta=isinstance(block, dict) and str(block.get("type")).endswith("tool_use"))
        case "content_block_delta":
            delta = found.get("delta")
            return Seen(delta=isinstance(delta, dict) and any(delta.get(name) for name in _MESSAGES_DELTAS))
        case "message_delta":
            delta = found.get("delta")
            reason = delta.get("stop_reason") if isinstance(delta, dict) else None
            return Seen(usage=_merged(before, usage_in(found)), finish=reason if isinstance(reason, str) else "")
        case "message_stop":
            return Seen(done=True)
    return _failed(found["error"]) if found.get("error") else Seen()


def _merged(before: Usage, now: Usage | None) -> Usage | None:
    """The end may name the output alone; the input was named at the start."""
    if now is None or now.prompt is not None:
        return now
    return Usage(before.prompt, now.output, before.cached)


_MESSAGES_DELTAS = ("text", "thinking", "partial_json")


def _messages_notable(events: bytes) -> bool:
    around = b'"message_delta"' in events or b'"message_stop"' in events or b'"message_start"' in events
    return around or b'"error"' in events or b"[DONE]" in events


CHAT = Dialect(_chat, _chat_notable, _chat_tokens, closed_by_done=True)
RESPONSES = Dialect(_responses, _responses_notable, lambda events: events.count(b'.delta"'))
MESSAGES = Dialect(_messages, _messages_notable, lambda events: events.count(b'"content_block_delta"'))


def dialect_of(route: Route) -> Dialect:
    """How a stream of this route is read."""
    return {"responses": RESPONSES, "messages": MESSAGES}.get(route, CHAT)
