"""How much one request may ask for, and of what form: each cap is named here with its reason. Pure.

What is refused here would cost the engine, or others, far more than it cost to send. One sentence with the remedy each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from router.decision import patterns
from router.decision.dialects import ANTHROPIC, LOCAL_ONLY, MANY, parts, turns
from router.decision.patterns import Pattern
from router.errors import BadRequest
from router.records import Ask, Findings

MOST_CHOICES = 8
"""Answers to one prompt: each takes a place in the engine's batch, and vLLM's own cap is in the thousands."""
MOST_PROMPTS = 2048
"""Prompts or inputs of one request, as OpenAI has it: each is a request of its own to the engine."""
MOST_STOPS = 16
"""Stop strings: the engine looks for each of them at every token."""
STOP_CHARACTERS = 256
"""Of a stop string, which the engine holds back from the stream in case it comes."""
SCHEMA_BYTES = 64 * 1024
"""Of a schema or grammar for the answer, which the engine compiles before the first token."""
SCHEMA_DEPTH = 32
"""Levels of a schema for the answer: compilers go down it by recursion."""
MOST_TOOLS = 128
"""Tools, as OpenAI has it: their descriptions are read again with every request."""
TOOLS_BYTES = 256 * 1024
"""Of all tools together."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TOOL_NAME_OF_MESSAGES = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Anthropic's own form, which tools of MCP servers need."""
TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
SCHEMAS = frozenset({"input_schema", "json", "parameters", "schema"})
"""Fields whose value is a schema."""
DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Fields of a schema that hold values, not schemas."""


def check(ask: Ask) -> None:
    """Raises BadRequest where a field asks for more than may be asked for, or is not of its form.

    Nothing here reads the texts of a request, so it is asked before anything does: what is too much is refused for
    what it costs to count. Patterns come last and are judged together, since they are what takes longest.
    """
    found: list[tuple[str, set[Pattern]]] = []
    for name, value in ask.body.items():
        if value is not None and (checking := CHECKS.get(name)) is not None and (those := checking(ask, name, value)):
            found.append((name, those))
    spent = 0
    for name, those in found:
        spent += sum(one.cost_us for one in those)
        if fault := patterns.fault(those, spent):
            raise _bad(name, fault, code="invalid_schema")


def check_stored(ask: Ask, findings: Findings) -> None:
    """Raises BadRequest for what names a thing that was to be kept from an earlier request."""
    if not findings.opaque or ask.route not in LOCAL_ONLY:
        return
    for turn in turns(ask.route, ask.body):
        if isinstance(turn, Mapping) and (turn.get("type") == "item_reference" or any(map(_is_stored, parts(turn)))):
            raise BadRequest(
                "Files and earlier items are not kept here; send what they hold inside the request.",
                code="not_stored", param="input" if ask.route == "responses" else "messages",
            )  # fmt: skip


def _is_stored(part: Mapping[str, Any]) -> bool:
    source = part.get("source")
    return bool(part.get("file_id") or (isinstance(source, Mapping) and source.get("file_id")))


def _bad(param: str, text: str, *, code: str | None = None) -> BadRequest:
    return BadRequest(text, code=code, param=param)


def count(body: Mapping[str, Any], name: str, at_least: int = 0) -> int | None:
    """A whole number. "5" or 5.0 would be read as 5 by some upstreams and not be counted here, so they are refused."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < at_least:
        raise _bad(name, f"The field {name!r} must be a whole number, at least {at_least}.")
    return value


def _choices(ask: Ask, name: str, value: Any) -> None:
    wanted = count(ask.body, name, at_least=1)
    if wanted is not None and wanted > MOST_CHOICES:
        raise _bad(name, f"At most {MOST_CHOICES} answers are made for one request; lower {name!r}.")


def _prompts(ask: Ask, name: str, value: Any) -> None:
    if ask.route not in MANY or not isinstance(value, list) or len(value) <= MOST_PROMPTS:
        return
    if any(isinstance(item, str | list) for item in value):
        raise _bad(name, f"At most {MOST_PROMPTS} texts are taken in one request; send them in several.")


def _stops(ask: Ask, name: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _bad(name, f"The field {name!r} must be a text or a list of texts.")
    if len(stops) > MOST_STOPS:
        raise _bad(name, f"At most {MOST_STOPS} texts are taken in {name!r}; name fewer.")
    if not all(1 <= len(stop) <= STOP_CHARACTERS for stop in stops):
        raise _bad(name, f"Each text in {name!r} must have 1 to {STOP_CHARACTERS} characters.")


def _encoding(ask: Ask, name: str, value: Any) -> None:
    if value not in ("float", "base64"):  # vLLM has others, whose answer is no JSON
        raise _bad(name, f"The field {name!r} must be 'float' or 'base64'.")


def _options(ask: Ask, name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise _bad(name, f"The field {name!r} must be an object.")


def _background(ask: Ask, name: str, value: Any) -> None:
    if value is not False:
        text = "Answers are not kept here, so none is made in the background; leave 'background' out."
        raise _bad(name, text, code="unsupported_parameter")


def _form(ask: Ask, name: str, value: Any) -> set[Pattern]:
    """`response_format`, `text` and `output_config`, and vLLM's `structured_outputs`."""
    if ask.size > SCHEMA_BYTES and _size(value) > SCHEMA_BYTES:
        raise _bad(
            name, f"A schema or grammar may have {SCHEMA_BYTES >> 10} KiB; make it smaller.", code="schema_too_large"
        )
    if not isinstance(value, Mapping):
        return set()  # the engine says what is wrong with it
    found = _schema(value, name, SCHEMA_DEPTH)
    if isinstance(pattern := value.get("regex"), str):
        found.add(Pattern(pattern, linear=True))
    given = value.get("json")
    if isinstance(given, str):  # vLLM takes it as text too
        found |= _schema({"json": _parsed(given)}, name, SCHEMA_DEPTH)
    return found


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _tools(ask: Ask, name: str, value: Any) -> set[Pattern]:
    if not isinstance(value, list):
        raise _bad(name, f"The field {name!r} must be a list.")
    if len(value) > MOST_TOOLS:
        raise _bad(name, f"At most {MOST_TOOLS} tools are taken; send fewer.", code="tools_too_large")
    if ask.size > TOOLS_BYTES and _size(value) > TOOLS_BYTES:
        raise _bad(
            name, f"All tools together may have {TOOLS_BYTES // 1024} KiB; shorten them.", code="tools_too_large"
        )
    for number, tool in enumerate(value):
        _tool(ask, tool, f"{name}[{number}]")
    return _schema(value, name, None)


def _tool(ask: Ask, tool: Any, param: str) -> None:
    if not isinstance(tool, Mapping):
        raise _bad(param, "Each tool must be an object.")
    kind, form = tool.get("type"), TOOL_NAME
    holder: Any = tool
    if ask.route in ANTHROPIC:
        form = TOOL_NAME_OF_MESSAGES
        _offered(kind in (None, "custom"), param)
    elif ask.route == "responses":
        _offered(kind in ("function", "custom", "namespace"), param)
        grammar = tool.get("format")
        if kind == "custom" and isinstance(grammar, Mapping) and grammar.get("type") == "grammar":
            raise _bad(param, "A custom tool with a grammar cannot be used with local models; send it as a function.",
                       code="tool_not_offered")  # fmt: skip
        inner = tool.get("tools")
        for number, one in enumerate(inner if isinstance(inner, list) else ()):
            _tool(ask, one, f"{param}.tools[{number}]")
    else:
        bare = kind is None and ("name" in tool or "function" in tool)  # else {"googleSearch": {}} would be a tool
        _offered(bare or kind in ("function", "custom"), param)
        holder = next((tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), Mapping)), tool)
    named = holder.get("name")
    # Of one that is missing the engine says so itself.
    if named is not None and not (isinstance(named, str) and form.fullmatch(named)):
        most = form.pattern.rpartition(",")[2].rstrip("}")
        raise _bad(f"{param}.name", f"A tool's name must be 1 to {most} letters, digits, _ or -.", code="invalid_tool")


def _offered(offered: bool, param: str) -> None:
    """Its type is not repeated: what a caller writes there can be anything."""
    if not offered:
        raise _bad(param, "A tool of this type would be run by the provider, and no tool is run here; take it out of "
                   "the request, or send a function that you run yourself.", code="tool_not_offered")  # fmt: skip


def _size(value: Any) -> int:
    return len(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


def _schema(value: Any, param: str, deepest: int | None) -> set[Pattern]:
    """Every schema within: none names another document, and types are such. Its patterns. Without recursion."""
    found: set[Pattern] = set()
    left: list[tuple[Any, int, str]] = [(value, 0, "around")]
    while left:
        part, depth, what = left.pop()
        if deepest is not None and depth > deepest:
            raise _bad(param, f"A schema may be {deepest} levels deep; make it flatter.", code="schema_too_large")
        if not isinstance(part, dict):
            left.extend((inner, depth + (what != "around"), what) for inner in part if isinstance(inner, dict | list))
            continue
        for name, inner in part.items():
            if what == "schema":
                found.update(_word(name, inner, param))
            if isinstance(inner, dict | list):
                below = _within(name, what)
                left.append((inner, depth + (below != "around"), below))
    return found


def _within(name: str, what: str) -> str:
    """What stands in a field: what is around a schema, a schema, or data in one."""
    if what == "around":
        return "schema" if name in SCHEMAS else what
    return "data" if name in DATA else what


def _word(name: str, value: Any, param: str) -> Iterable[Pattern]:
    """One field of a schema; the patterns in it."""
    if name == "type":
        given = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        if not all(isinstance(one, str) and one in TYPES for one in given):
            raise _bad(param, f"A schema's type is one of {', '.join(sorted(TYPES))}.", code="invalid_schema")
    elif name in REFERENCES:
        if isinstance(value, str) and not value.startswith("#"):
            raise _bad(param, "A schema may refer to its own parts alone (#/…); write the other document into it.",
                       code="invalid_schema")  # fmt: skip
    elif name == "pattern" and isinstance(value, str):
        return (Pattern(value),)
    elif name == "patternProperties" and isinstance(value, dict):
        return map(Pattern, value)
    return ()


CHECKS: dict[str, Callable[[Ask, str, Any], set[Pattern] | None]] = {
    "n": _choices,
    "best_of": _choices,
    "prompt": _prompts,
    "input": _prompts,
    "stop": _stops,
    "stop_sequences": _stops,
    "stream_options": _options,
    "encoding_format": _encoding,
    "background": _background,
    "response_format": _form,
    "structured_outputs": _form,
    "text": _form,
    "output_config": _form,
    "tools": _tools,
    "functions": _tools,
}
"""The fields with caps of their own; each gives the patterns in it, which are judged together."""
