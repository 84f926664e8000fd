"""One strict parse of a request body: what two parsers could read differently is refused. Pure.

No duplicate keys, no NaN or Infinity, no whole number beyond 64 bits, UTF-8 only, at most 64 levels deep.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import orjson

from router.errors import BadRequest

MAX_DEPTH = 64
STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""A bracket as a signed byte: one level down, or one up."""
NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def parse(raw: bytes) -> dict[str, Any]:
    """The body as a mapping. Raises BadRequest with one sentence."""
    _check_depth(raw)
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as broken:
        raise BadRequest(f"The body is not valid JSON: {broken}", code="invalid_json") from broken
    if not isinstance(found, dict):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    # orjson keeps the last of two equal keys, rounds numbers beyond 64 bits and says nothing of either.
    json.loads(raw, object_pairs_hook=_unique, parse_int=_whole)
    return found


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


def _check_depth(raw: bytes) -> None:
    """Count brackets outside strings before any parser recurses. What is not JSON is left for the parser to say."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    # Every second piece between quotes is inside a string, once escaped characters are out of the way.
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    depths = accumulate(array("b", outside.translate(STEPS, NO_BRACKETS)))
    if max(depths, default=0) > MAX_DEPTH:
        raise BadRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="too_deep")


def text_field(body: Mapping[str, Any], name: str) -> str:
    """A required text field. Raises BadRequest naming it."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(f"The field {name!r} is required and must be text.", code="missing_field", param=name)
    return value
