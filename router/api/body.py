"""One strict parse of a request body: what two parsers could read differently is refused. Pure.

No duplicate keys, no NaN or Infinity, no whole number beyond 64 bits, UTF-8 only, at most 64 levels deep. Every check
is one pass of compiled code over the bytes, and what makes many values of few bytes is counted before anything is made
of it: the event loop stands still meanwhile. Of a body over AT_ONCE it does not: that is parsed in a thread, and each
step is short enough for the interpreter to be shared.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import orjson

from router.errors import BadRequest

AT_ONCE = 128 * 1024
"""Bytes that are parsed on the event loop: at most about 3 ms."""
PIECE = 2**20
"""Bytes of a large body that are searched in one step: the interpreter is passed on between two."""
MAX_DEPTH = 64
MOST_VALUES = 500_000
"""Values in one body: as many token ids as no context takes. What is made of each costs more time than its bytes."""
MOST_CONTAINERS = 50_000
"""Objects and lists in one body; each costs about ten times as much as a number or a text."""
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""A bracket as a signed byte: one level down, or one up."""
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
NO_BEGINNINGS = bytes(byte for byte in range(256) if byte not in b"[{,")
"""All but what stands before a value: each is the first of its object or list, or comes after a comma."""
DIGITS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
LONG = b"0" * 19
"""The shortest whole number that may not fit 64 bits, with every digit made 0."""


def parse(raw: bytes) -> dict[str, Any]:
    """The body as a mapping. Raises BadRequest with one sentence."""
    openings = raw.count(b"[") + raw.count(b"{")
    if openings > MAX_DEPTH or len(raw) > MOST_VALUES:
        _check_shape(raw, openings)
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as broken:
        raise BadRequest(f"The body is not valid JSON: {broken}", code="invalid_json") from broken
    if not isinstance(found, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    # orjson keeps the last of two equal keys, rounds numbers beyond 64 bits and says nothing of either. The slow look
    # with Python's parser, at every object and number, is only for bodies in which there may be something to find.
    if _lost_a_key(raw, found):
        json.loads(raw, object_pairs_hook=_unique)
    if LONG in raw.translate(DIGITS):
        json.loads(raw, parse_int=_whole)
    return found


def _lost_a_key(raw: bytes, found: dict[str, Any]) -> bool:
    """Whether the parsed body may have fewer keys than were written: each has its colon.

    Texts have colons too, as many here as there: only an escaped one is written in two ways. So False is certain.
    """
    if len(raw) > AT_ONCE:
        return _escapes_a_colon(raw) or _colons(found) != raw.count(b":")
    escaped = b"\\u003" in raw and (b"\\u003a" in raw or b"\\u003A" in raw)
    return escaped or orjson.dumps(found).count(b":") != raw.count(b":")


def _escapes_a_colon(raw: bytes) -> bool:
    """Piece by piece: to search 16 MiB of backslashes in one step takes 40 ms."""
    pieces = (raw[at : at + PIECE + 5] for at in range(0, len(raw), PIECE))
    return any(b"\\u003" in piece and (b"\\u003a" in piece or b"\\u003A" in piece) for piece in pieces)


def _colons(found: Any) -> int:
    """As many colons as are in `found` when it is written out, which would be one step and take longest of all."""
    count = 0
    left: list[Iterable[Any]] = [[found]]
    while left:
        for one in left.pop():
            kind = type(one)
            if kind is str:
                count += one.count(":")
            elif kind is list:
                left.append(one)
            elif kind is dict:
                count += len(one)
                left += one, one.values()
    return count


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) == len(pairs):
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            name = key[:80]
            raise BadRequest(f"The field {name!r} stands twice in one object.", code="duplicate_field", param=name)
        seen.add(key)


def _whole(text: str) -> None:
    # At most 309 digits come this far: orjson refuses what is not finite.
    if len(text) > 18 and not -(2**63) <= int(text) < 2**64:
        raise BadRequest(f"The number {text[:40]} does not fit 64 bits.", code="invalid_json")


def _check_shape(raw: bytes, openings: int) -> None:
    """Count levels and values outside strings before any parser makes something of them.

    `openings`: brackets that open, also inside strings. What is not JSON is left for the parser to say.
    """
    if openings <= MAX_DEPTH and len(raw.translate(None, NO_BEGINNINGS)) < MOST_VALUES:
        return
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * MOST_VALUES:  # two for each text, and two texts for each value that has a key
        raise _too_many()
    # Every second piece between quotes is inside a string, once escaped characters are out of the way.
    outside = b"".join(bare.split(b'"')[::2])
    steps = outside.translate(STEPS, NO_BRACKETS)
    depths = accumulate(array("b", steps[: 2 * MOST_CONTAINERS]))
    if max(depths, default=0) > MAX_DEPTH:
        raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="too_deep")
    if len(steps) > 2 * MOST_CONTAINERS or len(outside.translate(None, NO_BEGINNINGS)) >= MOST_VALUES:
        raise _too_many()


def _too_many() -> BadRequest:
    most = f"{MOST_VALUES:,} values, or {MOST_CONTAINERS:,} of them objects and lists"
    return BadRequest(f"The body holds more than {most}; send less in one request.", code="too_many_values")


def text_field(body: Mapping[str, Any], name: str) -> str:
    """A required text field. Raises BadRequest naming it."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"The field {name!r} is required and must be text.", code="missing_field", param=name)
    return value
