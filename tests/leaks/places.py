"""Every place of a request that can carry text, for every inference route, made from the code's own tables.

A `Place` is a way to put one text into a body. The names of fields come from `serving/parameters.py`, parts and opaque
keys from `router/scanner/reading.py`, the routes from `router/api/inference.py`: a new one is tried without a line
here, and `test_matrix.py` fails where it could not be.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from router.api.inference import ROUTES
from router.records import Route
from router.scanner import reading
from serving import parameters
from tests.leaks.models import Inner, inner

UNKNOWN = "x_field_nobody_knows"
"""A field that no API has; the hosted models of the matrix take it, so that nothing but the search holds it back."""
SAID = "Say something about the river, please."

Put = Callable[[dict[str, Any], str], None]


class Place(NamedTuple):
    """One way to put a text into a body."""

    name: str
    field: str
    """The top-level field it stands in."""
    put: Put


def base(route: Route) -> dict[str, Any]:
    """The smallest body of a route, without its model. A route that is new has none, and the matrix fails."""
    said: dict[Route, dict[str, Any]] = {
        "chat/completions": {"messages": [{"role": "user", "content": SAID}]},
        "completions": {"prompt": SAID},
        "embeddings": {"input": SAID},
        "responses": {"input": SAID},
        "messages": {"messages": [{"role": "user", "content": SAID}], "max_tokens": 16},
        "messages/count_tokens": {"messages": [{"role": "user", "content": SAID}]},
    }
    return copy.deepcopy(said[route])


def sets_of(module: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """Every set of names that a module of tables holds, also those inside its mappings."""
    for name, value in vars(module).items():
        if isinstance(value, frozenset):
            yield name, value
        elif isinstance(value, Mapping) and not name.startswith("__"):
            if value and all(isinstance(one, frozenset) for one in value.values()):
                yield name, frozenset().union(*value.values())
            else:
                yield name, frozenset(one for one in value if isinstance(one, str))


def all_fields() -> frozenset[str]:
    """The name of every body field that the code knows, and one that it does not."""
    routes = frozenset(ROUTES.values())
    named = frozenset().union(*(names for name, names in sets_of(parameters) if not names <= routes))
    return named | {UNKNOWN, "headgate"}


def own_fields(route: Route) -> frozenset[str]:
    """Those that mean something on this route."""
    own = parameters.accepted(route, "vllm") | parameters.HARMLESS.get(route, frozenset())
    if route == "chat/completions":
        own |= parameters.OPENAI_CHAT
    return own | parameters.BOOKKEEPING | {UNKNOWN}


SHAPES: dict[str, Callable[[str], Any]] = {
    "text": lambda text: text,
    "value": lambda text: {"a": text},
    "key": lambda text: {text: 1},
    "list": lambda text: [text],
    "deep": lambda text: [{"a": [{"b": {"c": text}}]}],
}
"""What a field can hold, whatever it is for."""


def generic(route: Route) -> Iterator[Place]:
    """Every field there is, in every shape; those that mean nothing on this route in one."""
    own = own_fields(route)
    for field in sorted(all_fields() - {"model"}):
        for shape, make in SHAPES.items():
            if field in own or shape == "text":
                yield Place(f"{field} {shape}", field, _setting(field, make))
    yield Place("a field's own name", "", lambda body, text: body.__setitem__(text, 1))


def _setting(field: str, make: Callable[[str], Any]) -> Put:
    def put(body: dict[str, Any], text: str) -> None:
        body[field] = make(text)

    return put


def _message(**fields: Any) -> Callable[[str], dict[str, Any]]:
    """A message; `T` in its fields is the text, also as a key or inside one."""
    return lambda text: filled(fields, text)


def filled(value: Any, text: str) -> Any:
    """`value` with every `T` replaced."""
    if isinstance(value, str):
        return value.replace("\x00T", text)
    if isinstance(value, Mapping):
        return {filled(name, text): filled(one, text) for name, one in value.items()}
    return [filled(one, text) for one in value] if isinstance(value, list) else value


T = "\x00T"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "' + T + '"}'}}
MESSAGES: dict[str, dict[str, Any]] = {
    **{f"{role} content": {"role": role, "content": f"About {T}."}
       for role in ("system", "developer", "user", "assistant")},
    "tool result": {"role": "tool", "tool_call_id": "c1", "content": f"It is {T}."},
    "tool result in parts": {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": T}]},
    "tool call id": {"role": "tool", "tool_call_id": T, "content": "x"},
    "function result": {"role": "function", "name": "f", "content": T},
    "tool arguments": {"role": "assistant", "content": None, "tool_calls": [CALL]},
    "tool name": {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": T, "arguments": "{}"}}]},
    "tool arguments as object": {"role": "assistant", "tool_calls": [
        {**CALL, "function": {"name": "f", "arguments": {T: 1}}}]},
    "function call": {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": "' + T + '"}'}},
    "name": {"role": "user", "name": T, "content": "x"},
    "refusal": {"role": "assistant", "content": None, "refusal": T},
    "reasoning": {"role": "assistant", "content": "x", "reasoning_content": T},
    "annotations": {"role": "assistant", "content": "x", "annotations": [{"title": T, "url": f"https://a.example/{T}"}]},
    "unknown key": {"role": "user", "content": "x", "x_more": {T: [T]}},
    "role": {"role": T, "content": "x"},
    "a key beside the part's text": {"role": "user", "content": [{"type": "text", "text": "x", T: "y"}]},
}  # fmt: skip
"""Messages of a conversation; the text stands where `T` does."""
SCHEMA: dict[str, dict[str, Any]] = {
    "description": {"type": "object", "description": T},
    "property": {"type": "object", "properties": {T: {"type": "string"}}},
    "property's description": {"type": "object", "properties": {"a": {"type": "string", "description": T}}},
    "enum": {"type": "object", "properties": {"a": {"enum": [T, "b"]}}},
    "default": {"type": "object", "properties": {"a": {"type": "string", "default": T}}},
    "const": {"type": "object", "properties": {"a": {"const": {"b": T}}}},
    "examples": {"type": "object", "properties": {"a": {"type": "string", "examples": [T]}}},
    "required": {"type": "object", "required": [T]},
    "definition": {"type": "object", "$defs": {T: {"type": "string"}}},
    "comment": {"type": "object", "$comment": T},
    "deep": {"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [
        {"type": "object", "properties": {"b": {"type": "object", "properties": {"c": {"title": T}}}}}]}}}},
}  # fmt: skip
"""Schemas of tools and of answers."""


def _adding(field: str, value: Any) -> Put:
    """Append to the list in a field, before what the caller says last."""

    def put(body: dict[str, Any], text: str) -> None:
        listed = body.get(field)
        listed = listed if isinstance(listed, list) else []
        body[field] = [filled(value, text), *listed]

    return put


def _with(**fields: Any) -> Put:
    def put(body: dict[str, Any], text: str) -> None:
        body.update(filled(fields, text))

    return put


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """A content part of each readable type, with the text in its field and in one that is unknown."""
    for kind in sorted(reading.READABLE_PARTS):
        yield f"part {kind}", {"type": kind, "text": T}
        yield f"part {kind}, another field", {"type": kind, "text": "x", "more": {"a": [T]}}


def special(route: Route) -> Iterator[Place]:
    """What the route's own fields hold by their meaning."""
    talk = "messages" if "messages" in base(route) else None
    if talk:
        for name, message in MESSAGES.items():
            yield Place(f"messages, {name}", talk, _adding(talk, message))
        for name, part in parts():
            yield Place(f"messages, {name}", talk, _adding(talk, {"role": "user", "content": [part]}))
    for name, schema in SCHEMA.items():
        tool = {"type": "function", "function": {"name": "f", "description": "x", "parameters": schema}}
        flat = {"type": "function", "name": "f", "parameters": schema}
        if route.startswith("messages"):
            flat = {"name": "f", "input_schema": schema}
        yield Place(f"tools, {name}", "tools", _with(tools=[tool if route == "chat/completions" else flat]))
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        yield Place(f"response_format, {name}", "response_format", _with(response_format=form))
    yield Place("tools, name", "tools", _with(tools=[{"type": "function", "function": {"name": T}}]))
    described = {"type": "function", "function": {"name": "f", "description": T}}
    yield Place("tools, description of the tool", "tools", _with(tools=[described]))
    choice = {"type": "function", "function": {"name": T}}
    yield Place("tool_choice", "tool_choice", _with(tools=[], tool_choice=choice))
    yield Place("prediction", "prediction", _with(prediction={"type": "content", "content": T}))
    predicted = {"type": "content", "content": [{"type": "text", "text": T}]}
    yield Place("prediction in parts", "prediction", _with(prediction=predicted))
    if route == "chat/completions":
        yield from _named_by_the_client(route)
    yield from _of_route(route)


def _named_by_the_client(route: Route) -> Iterator[Place]:
    """Every field inside the client's own request model, each way once; a conversation keeps what is said last."""
    seen = set[str]()
    for one in inner(route):
        if one.name not in seen:
            seen.add(one.name)
            yield Place(f"the client's {one.name}", one.steps[0].field, _inside(one))


def _inside(one: Inner) -> Put:
    def put(body: dict[str, Any], text: str) -> None:
        for field, value in one.body(text).items():
            body[field] = [*value, *body["messages"]] if field == "messages" else value

    return put


def _of_route(route: Route) -> Iterator[Place]:
    if route == "completions":
        yield Place("several prompts", "prompt", _with(prompt=["x", T]))
    elif route == "embeddings":
        yield Place("several inputs", "input", _with(input=["x", T]))
        for name, message in MESSAGES.items():
            yield Place(f"messages, {name}", "messages", _adding("messages", message))
    elif route == "responses":
        items: dict[str, dict[str, Any]] = {
            "message": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": T}]},
            "function_call": {"type": "function_call", "call_id": "c", "name": "f", "arguments": T},
            "function_call_output": {"type": "function_call_output", "call_id": "c", "output": T},
            "reasoning": {"type": "reasoning", "summary": [{"type": "summary_text", "text": T}]},
        }
        for name, item in items.items():
            yield Place(f"input, {name}", "input", _with(input=[item]))
    elif route.startswith("messages"):
        yield Place("system in parts", "system", _with(system=[{"type": "text", "text": T}]))
        used = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {T: T}}]}
        yield Place("messages, tool_use", "messages", _adding("messages", used))
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": T}]}
        yield Place("messages, tool_result", "messages", _adding("messages", result))


def places(route: Route) -> list[Place]:
    """Every place of one route."""
    return [*generic(route), *special(route)]


def opaque(route: Route) -> list[Place]:
    """Parts that nobody here can read; the text stands beside them, in words no detector knows."""
    field = "input" if route in ("embeddings", "responses") else "prompt" if route == "completions" else "messages"
    found = [Place(f"opaque {name}", name, _with(**{name: ["AAAA"]})) for name in sorted(reading.OPAQUE_FIELDS)]
    found += [Place(f"opaque {name}", name, _with(**{name: ["f-1"]})) for name in sorted(reading.REFERENCES)]
    found.append(Place("opaque token ids", field, _with(**{field: [1, 2, 3]})))
    if "messages" not in base(route):
        return found
    data = "data:image/png;base64,AAAA"
    held = {"type": "text", "text": T}
    kinds: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data}}, {"type": "input_audio", "input_audio": {"data": "AAAA"}},
        {"type": "file", "file": {"file_data": "AAAA", "filename": T}}, {"type": "a_type_nobody_knows", "a": T},
        *({"type": "text", "text": "x", key: "AAAA"} for key in sorted(reading.OPAQUE_KEYS)),
    ]  # fmt: skip
    for number, part in enumerate(kinds):
        message = {"role": "user", "content": [held, part]}
        found.append(Place(f"opaque part {number} {part['type']}", "messages", _adding("messages", message)))
    return found


def made(route: Route, place: Place | None, text: str, model: str, **more: Any) -> dict[str, Any]:
    """The body of `route` with `text` in that place."""
    body = {"model": model, **base(route), **more}
    if place is not None:
        place.put(body, text)
    body["model"] = model
    return body
