"""Fuzz target: the reader of event streams. How the bytes were cut changes nothing, and nothing is made up.

The first byte says how to read (its lowest bit: hide the usage; the next two: the route), the next two where to cut;
the rest is the stream. In the corpus these three are plain letters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from router.records import Route
from router.upstream.sse import StreamError, StreamReader
from tests.fuzz.cuts import cuts

ROUTES: tuple[Route, ...] = ("chat/completions", "completions", "responses", "messages")
EVENT_BYTES = 2048
"""The bound in here, small, so that it is met."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of one stream."""

    relayed: bytes
    found: tuple[Any, ...]
    fault: str


def follow(
    pieces: list[bytes], route: Route = "chat/completions", *, hide_usage: bool = False, event_bytes: int = EVENT_BYTES
) -> Followed:
    """Let a reader follow these pieces to their end."""
    reader = StreamReader(route, hide_usage=hide_usage, event_bytes=event_bytes)
    relayed, fault = bytearray(), ""
    try:
        for piece in pieces:
            relayed += reader.feed(piece)
        relayed += reader.end()
    except StreamError as wrong:
        fault = str(wrong)
    # What stays at its beginning of a stream that ends in error is no promise.
    found = (reader.usage, reader.started, reader.done, reader.error, reader.full, reader.events)
    return Followed(bytes(relayed), found, fault)


def check(data: bytes) -> None:
    """Raises AssertionError where a promise of the reader does not hold."""
    if len(data) < 3:
        return
    hide_usage, route, stream = bool(data[0] & 1), ROUTES[data[0] >> 1 & 3], data[3:]
    ways = [follow(pieces, route, hide_usage=hide_usage) for pieces in cuts(stream, data[1], data[2])]
    # An event over the bound is passed on where it came whole in one piece; only cut streams are bounded.
    if not any("larger than" in way.fault for way in ways):
        assert ways[0] == ways[1] == ways[2], ways
    # `[DONE]` is no event of the newer dialects, and is not passed on there.
    if not hide_usage and (route in ROUTES[:2] or b"[DONE]" not in stream):
        for way in ways:
            check_relayed(way, stream)
    count_tokens(ways[0])


def check_relayed(way: Followed, stream: bytes) -> None:
    """What is passed on is how the stream begins, with an empty line at the end if it lacked one.

    Bytes that are not UTF-8 are replaced, and nothing else is.
    """
    given, sent = way.relayed, stream.decode("utf-8", "replace").encode()
    assert sent.startswith(given) or (
        sent.startswith(given.rstrip(b"\n")) and len(given) - len(given.rstrip(b"\n")) <= 4
    ), (given, stream)
    assert not given or way.fault or re.search(rb"(\r\n|\n|\r)(\r\n|\n|\r)?$", given), given


def count_tokens(way: Followed) -> None:
    """No count is negative or beyond reason."""
    usage = way.found[0]
    for count in (usage.prompt, usage.output, usage.cached):
        assert count is None or 0 <= count <= 2**31


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("sse")
