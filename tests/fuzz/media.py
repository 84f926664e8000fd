"""Fuzz target: pictures, recordings and files inside a request. Taken within the bounds, or refused in our own words.

The first byte says of which type it is said to be; the lowest bit of the second, whether the rest is the base64 itself
or what is to be written in it. Every dialect says the same thing in its own way, and must get the same answer.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

from router.decision.inline import FILES, FORMS, LONGEST_SIDE, MOST, MOST_PIXELS, SHORTEST
from router.decision.inline import check as look
from router.errors import BadRequest
from router.records import Route

CODES = frozenset({"invalid_media", "media_too_large"})
TYPES = (*FORMS, *sorted(FILES), "image/svg+xml", "text/html", "IMAGE/PNG", "")
Said = tuple[Route, dict[str, Any]]


def check(data: bytes) -> None:
    """Raises AssertionError where something is taken that should not be, anything else where one is not met at all."""
    if len(data) < 2:
        return
    given, rest = TYPES[data[0] % len(TYPES)], data[2:]
    text = rest.decode("latin-1") if data[1] & 1 else base64.b64encode(rest).decode()
    kind = given.lower().partition("/")[0]
    if kind in ("image", "audio", "video"):
        verdicts = {taken(route, body) for route, body in said_as_media(kind, given, text)}
        assert len(verdicts) == 1, (given, text[:80], "one dialect takes what another does not")
        if verdicts == {True}:
            check_taken(given.lower(), text)
    for route, body in said_as_file(given, text):
        if taken(route, body) and len(text) >= SHORTEST:
            base64.b64decode(text, validate=True)


def taken(route: Route, body: dict[str, Any]) -> bool:
    """Whether it may go on. A refusal is short and repeats nothing of what was sent."""
    try:
        look(route, body)
    except BadRequest as refused:
        assert refused.code in CODES and len(refused.message) < 400, refused.message
        assert "<" not in refused.message, "it repeats what was sent"
        return False
    return True


def said_as_media(kind: str, given: str, text: str) -> Iterator[Said]:
    """The same picture, film or recording, as each dialect and each way to write it has it."""
    url = f"data:{given};base64,{text}"
    for holder in (url, {"url": url}):
        yield "chat/completions", chat({"type": f"{kind}_url", f"{kind}_url": holder})
    if kind == "image":
        yield "responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}
        source = {"type": "base64", "media_type": given, "data": text}
        yield "messages", chat({"type": "image", "source": source})
        yield "messages", chat({"type": "tool_result", "content": [{"type": "image", "source": source}]})
    if kind == "audio":
        yield "chat/completions", chat({"input_audio": {"data": text, "format": given.partition("/")[2]}})


def said_as_file(given: str, text: str) -> Iterator[Said]:
    """The same file in each dialect."""
    url = f"data:{given};base64,{text}"
    for one in (url, text):
        yield "chat/completions", chat({"type": "file", "file": {"file_data": one}})
        yield "responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": one}]}]}
    source = {"type": "base64", "media_type": given, "data": text}
    yield "messages", chat({"type": "document", "source": source})


def chat(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def check_taken(given: str, text: str) -> None:
    """Its base64 is strict, and a picture whose size stands at a fixed place is within the bounds."""
    raw = base64.b64decode(text, validate=True)
    if len(raw) < SHORTEST:
        return
    size = (0, 0)
    if given == "image/png":
        size = struct.unpack(">II", raw[16:24])
    elif given == "image/gif":
        size = struct.unpack("<HH", raw[6:10])
    assert size[0] * size[1] <= MOST_PIXELS and max(size) <= LONGEST_SIDE, size
    many = chat({"type": "image_url", "image_url": {"url": f"data:{given};base64,{text}"}})
    many["messages"] *= MOST + 1
    assert not taken("chat/completions", many), "their number is not bounded"


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("media")
