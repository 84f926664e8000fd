"""Reads every string and key of a request, and lists the parts nobody here can read.

Deterministic and without recursion, so that the depth of the input costs nothing. Knows no data class: what an opaque
part means is for whoever asks to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from router.records import Findings
from router.scanner.media import names_address

CONVERSATION = frozenset({"messages", "prompt", "input", "prediction"})
"""The top-level fields that carry what is said. The others (tools, schemas, options) are text throughout."""
READABLE_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
"""Content-part types that are text. Every other type, known or not, is opaque."""
OPAQUE_KEYS = frozenset(
    {"attachments", "file", "file_data", "file_id", "file_ids", "file_url", "files"}
    | {f"{medium}{form}" for medium in ("audio", "image", "video") for form in ("", "s", "_embeds", "_file", "_url")}
    | {f"input_{kind}" for kind in ("audio", "file", "image", "video")}
    | {"image_pil"}
)
"""Keys inside a conversation that hold, or point at, something that is not text."""
OPAQUE_FIELDS = frozenset({"multi_modal_data", "prompt_embeds", "prompt_token_ids"})
"""Top-level fields that stand in for text."""
REFERENCES = frozenset({"file_id", "file_ids", "vector_store_ids"})
"""Names of things the provider holds; opaque wherever a value stands beside them (in a schema it is a mapping)."""


class _Node(NamedTuple):
    """A value still to be read, and where it stands. A path is put together only where it is shown."""

    value: Any
    above: _Node | None
    step: str | int
    depth: int
    talk: bool
    """Whether it lies in the conversation."""
    hidden: bool = False
    """Whether it lies in a part that is listed already."""


def read(body: Mapping[str, Any]) -> Findings:
    """Walk the whole of `body`, keys included. Numbers are no text and are not counted."""
    scanned = 0
    opaque: list[str] = []
    stack = [_Node(dict(body), None, "", 0, False)]
    while stack:
        node = stack.pop()
        hidden = node.hidden or _is_opaque(node)
        if hidden and not node.hidden:
            opaque.append(_path(node))
        if isinstance(node.value, str):
            scanned += _bytes(node.value)
            # Detectors belong here, one call for each text and key with its path. There are none yet: a request
            # leaves only by the class its key states, never because nothing was found.
        elif isinstance(node.value, dict):
            scanned += sum(map(_bytes, node.value))
        stack.extend(_below(node, hidden))
    return Findings(scanned=scanned, opaque=tuple(opaque), fetches=names_address(body))


def _below(node: _Node, hidden: bool) -> list[_Node]:
    """What lies in a mapping or list, last first, so that the stack gives it in the order of the document."""
    depth = node.depth + 1
    if isinstance(node.value, dict):
        found = [
            _Node(value, node, key, depth, node.talk or (depth == 1 and key in CONVERSATION), hidden)
            for key, value in node.value.items()
        ]
    elif isinstance(node.value, list):
        # Numbers in a list are looked at with the list, so a million token ids make no million nodes.
        found = [
            _Node(value, node, index, depth, node.talk, hidden)
            for index, value in enumerate(node.value)
            if isinstance(value, str | dict | list)
        ]
    else:
        return []
    found.reverse()
    return found


def _is_opaque(node: _Node) -> bool:
    value, step = node.value, node.step
    if value is None or value == "" or value == [] or node.depth == 0:
        return False
    if step in REFERENCES and not isinstance(value, dict):
        return True
    if not node.talk:
        return node.depth == 1 and step in OPAQUE_FIELDS
    if step in OPAQUE_KEYS:
        return True
    if isinstance(value, dict) and _is_part(node):
        return value.get("type") not in READABLE_PARTS
    # A prompt of numbers is a prompt of token ids.
    return isinstance(value, list) and any(isinstance(item, int | float) for item in value)


def _is_part(node: _Node) -> bool:
    """Whether a mapping is a content part: `content` itself, an item of it, or an item of `input` or `prompt`."""
    if node.step == "content":
        return True
    if not isinstance(node.step, int) or node.above is None:
        return False
    return node.above.step == "content" or (node.above.step in ("input", "prompt") and "role" not in node.value)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _path(node: _Node) -> str:
    steps: list[str] = []
    here = node
    while here.above is not None:
        steps.append(f"[{here.step}]" if isinstance(here.step, int) else f".{here.step}")
        here = here.above
    return "".join(reversed(steps)).removeprefix(".")
