"""Reads every string and key of a request, and lists the parts nobody here can read.

Deterministic and without recursion, so that the depth of the input costs nothing. Knows no data class: what an opaque
part means is for whoever asks to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from router.records import Findings
from router.scanner.media import CONVERSATION, LINKS, about_media, fetched

READABLE_PARTS = frozenset(
    {"text", "input_text", "output_text", "refusal"}
    # Turns of an agent's work, in the words of OpenAI's responses and of Anthropic's messages.
    | {"custom_tool_call", "custom_tool_call_output", "function_call", "function_call_output"}
    | {"reasoning", "reasoning_text", "summary_text", "thinking"}
    | {"tool_addition", "tool_reference", "tool_removal", "tool_result", "tool_use"}
)
"""Types of content parts and input items that are text. Every other type, known or not, is opaque."""
OPAQUE_KEYS = frozenset(
    {"attachments", "encrypted_content", "file", "file_data", "file_id", "file_ids", "file_url", "files"}
    | {f"{medium}{form}" for medium in ("audio", "image", "video") for form in ("", "s", "_embeds", "_file", "_url")}
    | {f"input_{kind}" for kind in ("audio", "file", "image", "video")}
    | {"image_pil"}
)
"""Keys inside a conversation that hold, or point at, something that is not text."""
SIGNATURE, LONGEST_SIGNATURE = "signature", 64
"""A longer signature of thinking is no mark of who wrote it: Anthropic's holds the thinking itself, encrypted."""
OPAQUE_FIELDS = frozenset({"multi_modal_data", "prompt_embeds", "prompt_token_ids"})
"""Top-level fields that stand in for text."""
REFERENCES = frozenset({"file_id", "file_ids", "vector_store_ids"})
"""Names of things the provider holds; opaque wherever a value stands beside them (in a schema it is a mapping)."""
OF_PARTS = frozenset({"content", "output", "summary", "system"})
"""Lists of these names hold content parts."""
OF_ITEMS = frozenset({"input", "prompt"})
"""Lists of these names hold messages, which have a role, and parts or other items, which have none."""
CALLS = frozenset({"mcp_tool_use", "server_tool_use", "tool_use"})
"""Parts whose `input` is what a tool is called with: its own words, whatever its fields are called."""
_PLAIN = frozenset({"content", "id", "name", "role", "text", "type"})
"""Fields that hold no address where nothing around them is about media."""
_ANYWHERE = OPAQUE_FIELDS | REFERENCES
_IN_TALK = OPAQUE_KEYS | REFERENCES | {SIGNATURE}

WORDS = READABLE_PARTS | OPAQUE_KEYS | {
    "additionalProperties", "allOf", "annotations", "anyOf", "arguments", "array", "assistant", "auto", "boolean",
    "cache_control", "call_id", "const", "content", "default", "description", "detail", "developer", "document",
    "documents", "effort", "enum", "examples", "filename", "format", "function", "functions", "id", "include_usage",
    "index", "input", "input_schema", "instructions", "integer", "items", "json_object", "json_schema",
    "logit_bias", "max_completion_tokens", "max_output_tokens", "max_tokens", "message", "messages", "metadata",
    "model", "n", "name", "none", "nullable", "number", "object", "oneOf", "output", "parallel_tool_calls",
    "parameters", "pattern", "prediction", "prompt", "properties", "reasoning", "reasoning_content",
    "reasoning_effort", "refusal", "required", "response_format", "role", "schema", "seed", "signature", "source",
    "status", "stop", "stop_sequences", "stream", "stream_options", "strict", "string", "suffix", "summary",
    "system", "temperature", "text", "thinking", "title", "tool", "tool_call_id", "tool_calls", "tool_choice",
    "tool_use_id", "tools", "top_k", "top_p", "type", "url", "user",
}  # fmt: skip
"""Words of the APIs themselves. As keys, types and roles they carry nothing, and only they stand in a shown path."""
SAID = frozenset({
    "arguments", "content", "input", "output", "prompt", "reasoning", "reasoning_content", "refusal", "summary", "text",
    "thinking",
})  # fmt: skip
"""Where a conversation has what somebody says; beside that it has ids, names and marks."""
ROLES = frozenset({"assistant", "developer", "system", "tool", "user"})
BIG = 1_000_000
"""Numbers from here on can be those of a card, a phone or a person."""
HUGE = 1e40
"""From here on they are nobody's, and would be written out with up to 309 digits."""
PAYLOAD, PAYLOAD_STEP = re.compile(r"[A-Za-z0-9+/=_-]+"), 64 * 1024
"""What the bytes of media are written with, and how many of them are looked at in one step."""
PAYLOAD_HEAD, LEAST_PAYLOAD = re.compile(r"data:[^,\s]{0,200};base64,"), 256
"""How they may begin; without that, less is a word. What else a part says that nobody can read is text."""

WHOLE = 400_000
"""Bytes that a search may cost so much for; of more text each may cost as much."""
MOST_TEXTS = 6_000
"""Texts and keys of so many bytes that are searched, at about eight microseconds with the reading of them."""

_Path = tuple[Any, str | int]
"""The path of what is above, or None, and the step from there. It is written out only where it is shown."""
_Node = tuple[Any, _Path | None, str, bool, bool, bool | None]
"""A value still to be read, its path, the nearest field's name, whether it lies in the conversation, whether in a part
that is listed already, and whether in a field about media (None: nobody would fetch what is named here)."""


class TooMany(Exception):
    """A request has more texts than are searched."""


class Text(NamedTuple):
    """One text or key of a request. Set by `texts`."""

    where: str
    """Its path, as far as it is made of the API's own words; of a key, that of what it stands in."""
    text: str
    role: str
    """Who says it: one of ROLES in a conversation; elsewhere `schema` (tools, forms of answers), `field` or `key`."""
    said: bool = False
    """Whether it is part of what is said, so that the next such text may go on with it."""


def most_texts(size: int) -> int:
    """How many texts are searched of a request with so many bytes."""
    return int(MOST_TEXTS * max(1.0, size / WHOLE))


def texts(body: Mapping[str, Any], most: float = math.inf) -> list[Text]:
    """Every text that could leave with the body, in its order: values, keys and big numbers.

    Where there are more than `most` it stops at the next one, so that whoever asked can tell.
    Words of the API itself are left out, and so are the bytes of media, whose class is not a matter of their text.
    """
    found: list[Text] = []
    stack: list[Text | tuple[_Node, str]] = [((body, None, "", False, False, None), "field")]
    while stack and len(found) <= most:
        if isinstance(top := stack.pop(), Text):
            found.append(top)
            continue
        (value, path, name, talk, hidden, media), role = top
        hidden = hidden or (path is not None and _is_opaque(value, path, talk))
        node = value, path, name, talk, hidden, media
        below: list[Text | tuple[_Node, str]] = []
        if isinstance(value, dict | Mapping):
            role = _role(value, role) if talk else role
            shown = _safe(path) if any(key not in WORDS for key in value) else ""
            plain = talk and not hidden and path is not None and _type(value) not in CALLS
            for key, inner in value.items():
                if key not in WORDS:  # right before its value: it can say what that is
                    below.append(Text(shown, key, role if talk else "key"))
                if plain and isinstance(inner, str) and key not in _IN_TALK:  # as below, for most of all texts
                    if inner not in WORDS:
                        below.append(Text(_safe((path, key)), inner, role, key in SAID))
                else:
                    below.append((_below(node, key, inner, hidden), _role_in(key, role, path)))
        elif isinstance(value, list):
            if numbers := [_digits(one) for one in value if _is_big(one)]:
                found.append(Text(_safe(path), ", ".join(numbers), role))
            inside = ((index, inner) for index, inner in enumerate(value) if isinstance(inner, str | dict | list))
            below += [((inner, (path, index), name, talk, hidden, media), role) for index, inner in inside]
        elif isinstance(value, str):
            if value not in WORDS and not (path == (None, "model") or (hidden and _is_payload(value))):
                found.append(Text(_safe(path), value, role, talk and (name in SAID or name == "")))
        elif _is_big(value):
            found.append(Text(_safe(path), _digits(value), role))
        below.reverse()
        stack += below
    return found


def _is_payload(value: str) -> bool:
    """Whether a text is the bytes of media from its first to its last character."""
    head = PAYLOAD_HEAD.match(value)
    at = head.end() if head else 0
    if head is None and len(value) < LEAST_PAYLOAD:
        return False
    return all(PAYLOAD.fullmatch(value, start, start + PAYLOAD_STEP) for start in range(at, len(value), PAYLOAD_STEP))


def _is_big(value: Any) -> bool:
    return isinstance(value, int | float) and not -BIG < value < BIG


def _digits(number: float) -> str:
    """A big number as it could stand for something; one that no account has so many digits for stays short."""
    return f"{number:.0f}" if abs(number) < HUGE else repr(number)


def _role(turn: Mapping[str, Any], role: str) -> str:
    """Who says what stands in a mapping of a conversation."""
    given = turn.get("role")
    if isinstance(given, str) and given in ROLES:
        return given
    if _type(turn) in ("custom_tool_call_output", "function_call_output", "tool_result"):
        return "tool"
    return "assistant" if _type(turn) in ("custom_tool_call", "function_call", "reasoning") else role


def _role_in(key: str, role: str, path: _Path | None) -> str:
    """Who says what stands in a field: of the request's own fields by their names, elsewhere as around it."""
    if path is not None:
        return role
    if key in CONVERSATION:
        return "system" if key in ("instructions", "system") else "user"
    return "schema" if key in ("functions", "response_format", "text", "tools") else "field"


def _safe(path: _Path | None) -> str:
    """The path up to the first step that is no word of the API: that one is the caller's own."""
    steps: list[str | int] = []
    while path is not None:
        path, step = path
        steps.append(step)
    shown = ""
    for step in reversed(steps):
        if isinstance(step, int):
            shown += f"[{step}]"
        elif step in WORDS:
            shown += f".{step}"
        else:
            break
    return shown.removeprefix(".")


def read(body: Mapping[str, Any]) -> Findings:
    """Walk the whole of `body`, keys included. Numbers are no text and are not counted.

    Text is looked at where it stands; only what has something below it, or may be opaque, becomes a node.
    """
    # Nothing is looked for here, since most requests can only stay: `texts` lists what detectors are to search.
    scanned, fetches, opaque = 0, False, list[str]()
    stack: list[_Node] = [(body, None, "", False, False, None)]
    while stack:
        node = value, path, name, talk, hidden, media = stack.pop()
        if not hidden and path is not None and _is_opaque(value, path, talk):
            hidden = True
            opaque.append(_shown(path))
        if isinstance(value, Mapping):
            below: list[_Node] = []
            keys = "".join(value)
            scanned += len(keys) if keys.isascii() else _bytes(keys)
            suspects = _IN_TALK if talk else _ANYWHERE
            for key, inner in value.items():
                if isinstance(inner, str) and key not in suspects:
                    scanned += len(inner) if inner.isascii() else _bytes(inner)
                    if media is not None and not fetches and (media or key not in _PLAIN) and key not in LINKS:
                        fetches = fetched(key, inner, media or about_media(key))
                elif isinstance(inner, str | dict | list) or (key in suspects and inner is not None):
                    below.append(_below(node, key, inner, hidden))
            if below:
                below.reverse()  # so that the stack gives it in the order of the document
                stack += below
        elif isinstance(value, list):
            below = []
            for index, inner in enumerate(value):
                if isinstance(inner, str):
                    scanned += len(inner) if inner.isascii() else _bytes(inner)
                    fetches = fetches or (media is not None and fetched(name, inner, media))
                # Numbers in a list are looked at with the list, so a million token ids make no million nodes.
                elif isinstance(inner, dict | list):
                    below.append((inner, (path, index), name, talk, hidden, media))
            below.reverse()
            stack += below
        elif isinstance(value, str):
            scanned += _bytes(value)
            fetches = fetches or (media is not None and fetched(name, value, media))
    return Findings(scanned, tuple(opaque), fetches)


def _below(above: _Node, key: str, inner: Any, hidden: bool) -> _Node:
    """What lies in a field of a mapping."""
    value, path, _, talk, _, media = above
    if path is None:
        talk = key in CONVERSATION
        return inner, (None, key), "", talk, hidden, False if talk else None
    if not talk or (key == "input" and _type(value) in CALLS):
        return inner, (path, key), key, False, hidden, None
    return inner, (path, key), key, True, hidden, None if media is None or key in LINKS else media or about_media(key)


def _is_opaque(value: Any, path: _Path, talk: bool) -> bool:
    above, step = path
    if isinstance(value, dict):
        if not talk:
            return above is None and step in OPAQUE_FIELDS
        return step in OPAQUE_KEYS or (_is_part(value, path) and _type(value) not in READABLE_PARTS)
    if not value and (value is None or value == "" or value == []):
        return False
    if step in REFERENCES:
        return True
    if not talk:
        return above is None and step in OPAQUE_FIELDS
    if step == SIGNATURE and isinstance(value, str):
        return len(value) > LONGEST_SIGNATURE
    # A prompt of numbers is a prompt of token ids.
    return step in OPAQUE_KEYS or (isinstance(value, list) and any(isinstance(item, int | float) for item in value))


def _is_part(value: dict[str, Any], path: _Path) -> bool:
    """Whether a mapping is a content part or an item: `content` itself, or an item of a list that holds such."""
    above, step = path
    if step == "content":
        return True
    if above is None or not isinstance(step, int):
        return False
    return above[1] in OF_PARTS or (above[1] in OF_ITEMS and "role" not in value)


def _type(part: Mapping[str, Any]) -> str:
    found = part.get("type")
    return found if isinstance(found, str) else ""


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _shown(path: _Path | None) -> str:
    steps: list[str] = []
    while path is not None:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps)).removeprefix(".")
