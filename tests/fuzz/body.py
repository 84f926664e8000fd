"""Fuzz target: the one strict parse of a request body, held against orjson and Python's own parser.

It takes exactly what both take, less what they could read differently: keys that stand twice, numbers beyond 64 bits or
that are none, text that is not UTF-8, more than 64 levels. What it takes it reads as they do.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from router.api.body import MAX_DEPTH, parse
from router.errors import BadRequest

CODES = frozenset({"invalid_json", "duplicate_field", "too_deep", "too_many_values"})


def check(data: bytes) -> None:
    """Raises AssertionError where `parse` and the two parsers disagree."""
    try:
        found: dict[str, Any] | None = parse(data)
    except BadRequest as refused:
        assert refused.code in CODES and len(refused.message) < 400, refused.message
        found = None
    wanted = expected(data)
    assert (found is None) == (wanted is None), f"took {found!r}, expected {wanted!r}"
    if found is not None and wanted is not None:
        assert same(found, wanted), f"read {found!r}, expected {wanted!r}"


def expected(data: bytes) -> dict[str, Any] | None:
    """The slow and plain way to say what is to be read: None for what is to be refused."""
    try:
        text = data.decode()
        found = json.loads(text, object_pairs_hook=_pairs, parse_int=_whole, parse_float=_number, parse_constant=_none)
        quick = orjson.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or _depth(found) > MAX_DEPTH:
        return None
    assert same(found, quick)
    return found


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same kinds all the way down. -0 may be a whole number to one and none to the other."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and (type(one) is type(other) or (one == 0 and not isinstance(one, bool | type(None))))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _whole(text: str) -> int:
    if len(text) > 21 or not -(2**63) <= int(text) < 2**64:
        raise ValueError("beyond 64 bits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("not finite")
    return value


def _none(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("body")
