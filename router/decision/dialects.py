"""What differs between the routes: where a request says what, and where an answer does. Pure; tables and readers.

Nothing is translated: a body goes on as it came. Only what a decision needs is looked for, each time by the route.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from router.records import Route
from serving.parameters import LIMITS_OF_ROUTE

ABILITY: dict[Route, str] = {
    "chat/completions": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "chat",
    "messages": "chat",
    "messages/count_tokens": "chat",
}
TEXT: dict[Route, frozenset[str]] = {
    "chat/completions": frozenset({"messages"}),
    "completions": frozenset({"prompt"}),
    "embeddings": frozenset({"input"}),
    "responses": frozenset({"input", "instructions"}),
    "messages": frozenset({"messages", "system"}),
    "messages/count_tokens": frozenset({"messages", "system"}),
}
"""The fields that carry the text; on another route the same name is a field like any other."""
MANY: dict[Route, str] = {"completions": "prompt", "embeddings": "input"}
"""The field that may carry several prompts or inputs, each answered for itself."""
LIMIT: dict[Route, tuple[str, ...]] = {route: tuple(sorted(names)) for route, names in LIMITS_OF_ROUTE.items()}
"""The names of the output limit."""
ANTHROPIC: frozenset[Route] = frozenset({"messages", "messages/count_tokens"})
"""Routes in Anthropic's dialect."""
LOCAL_ONLY: frozenset[Route] = ANTHROPIC | {"responses"}
"""Routes in a dialect that only vLLM is asked in."""
MEDIA: dict[Route, str] = {"completions": "prompt", "embeddings": "input", "responses": "input"}
"""The field that may carry media, where it is not `messages`."""


class Said(NamedTuple):
    """What one choice of a whole answer says."""

    text: Any
    """The text; anything else where there is none."""
    excused: bool = False
    """A tool call or a refusal: no text was meant to come."""
    cut: bool = False
    """It ended at the output limit."""


def form_of(route: Route, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The form that the answer is to have: with `type`, and for JSON the schema. Empty where it is free."""
    form: Any = None
    if route in ("chat/completions", "completions"):
        form = body.get("response_format")
    elif route in _FORM:
        around = body.get(_FORM[route])
        form = around.get("format") if isinstance(around, Mapping) else None
    return form if form is not None and isinstance(form, Mapping) else _FREE


_FORM: dict[Route, str] = {"responses": "text", "messages": "output_config"}
_FREE: Mapping[str, Any] = {}


def schema_of(route: Route, body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON schema that the caller gave for the answer."""
    form = form_of(route, body)
    if form.get("type") != "json_schema":
        return None
    holder = form.get("json_schema") if route in ("chat/completions", "completions") else form
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    return schema if isinstance(schema, dict) else None


def compiled(route: Route, body: Mapping[str, Any]) -> bytes:
    """What an engine compiles before the first token, as the caller wrote it; empty where nothing is.

    Tools are compiled where the answer must be a call of one.
    """
    found: list[Any] = []
    if (form := form_of(route, body)).get("type") not in (None, "text", "json_object"):
        found.append(form)
    if body.get("structured_outputs"):
        found.append(body["structured_outputs"])
    choice = body.get("tool_choice")
    if body.get("tools") and (choice == "required" or (isinstance(choice, Mapping) and choice.get("type") != "auto")):
        found.append([body["tools"], choice])
    return orjson.dumps(found) if found else b""


def turns(route: Route, body: Mapping[str, Any]) -> list[Any]:
    """The messages of a conversation, or the items of its input; what is not a list of them has none."""
    found = body.get("input" if route == "responses" else "messages")
    return found if isinstance(found, list) else []


def parts(turn: Any) -> Iterator[Mapping[str, Any]]:
    """The content parts of one message or item, those inside a tool's result included."""
    if not isinstance(turn, Mapping):
        return
    for place in ("content", "output"):
        for part in _listed(turn, place):
            yield part
            if part.get("type") == "tool_result":
                yield from _listed(part, "content")


def _listed(holder: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    found = holder.get(name)
    return (part for part in found if isinstance(part, Mapping)) if isinstance(found, list) else iter(())


def said(route: Route, found: dict[str, Any]) -> list[Said]:
    """What each choice of a whole answer says. Raises ValueError where it is no answer of this route."""
    if route == "responses":
        return [_response(_mappings(found, "output"), found)]
    if route == "messages":
        blocks = _mappings(found, "content")
        text = "".join(block["text"] for block in blocks if isinstance(block.get("text"), str))
        calls = any(block.get("type") == "tool_use" for block in blocks)
        return [Said(text, calls, found.get("stop_reason") == "max_tokens")]
    choices = _mappings(found, "choices")
    if not choices:
        raise ValueError("no choices")
    return [_choice(choice) for choice in choices]


def _mappings(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = found.get(name)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"no {name}")
    return items


def _choice(choice: dict[str, Any]) -> Said:
    message = choice.get("message")
    holder = message if isinstance(message, dict) else choice
    text = holder.get("content") if holder is message else holder.get("text")
    excused = bool(holder.get("tool_calls") or holder.get("refusal"))
    return Said(text, excused, choice.get("finish_reason") == "length")


def _response(items: list[dict[str, Any]], found: dict[str, Any]) -> Said:
    spoken = [part for item in items if item.get("type") == "message" for part in parts(item)]
    calls = any(str(item.get("type")).endswith("_call") for item in items)
    refused = any(part.get("type") == "refusal" for part in spoken)
    text = "".join(part["text"] for part in spoken if isinstance(part.get("text"), str))
    return Said(text, calls or refused, found.get("status") == "incomplete")
