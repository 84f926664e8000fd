"""Whether a whole answer is what was asked for: its text against the caller's JSON schema. Pure.

The schema is a caller's own, so it is held to bounds before it is used: it names nothing outside itself, its patterns
run in linear time, and the steps it can cost are counted first. What passes no bound is not judged at all: the engine
has judged the schema itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
import orjson

from router.decision.dialects import Said, said, schema_of
from router.records import Ask, Route

MOST_BYTES = 2**20
"""A longer answer is not judged: the event loop stands still meanwhile, about 25 ms for this much. Reading JSON and
judging it both hold the interpreter, so a thread would not help."""
MOST_NODES = 5000
"""Values in a schema, with what its references stand for written out."""
MOST_STEPS = 20_000_000
"""Parts of the answer × parts of the schema: at most about 0.1 s."""
CHARACTERS = 8
"""A pattern reads about so many in the time of a step."""
PATTERN_NODES = 50
"""What a pattern counts for, since making one takes up to a millisecond."""
MULTIPLE_NODES = 4000
"""What `multipleOf` counts for: with very large numbers exact fractions take 20 µs each."""
PATTERNS = jsonschema_rs.RegexOptions(size_limit=2**18, dfa_size_limit=2**20)
"""Rust's regex engine: linear in the text, and bounded in bytes."""
NOT_JUDGED = frozenset({
    "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef", "unevaluatedItems",
    "unevaluatedProperties",
})  # fmt: skip
"""Words of schemas whose cost cannot be told beforehand. Engines do not take them either."""


class _NotPossible(Exception):
    """This schema or this answer is not judged."""


def checked(ask: Ask, body: bytes) -> str | None:
    """Why this answer does not fit the schema of its ask, in words that hold nothing of either; "" where it fits.

    None where it cannot be judged: no schema, one that is invalid or out of bounds, or a very long answer.
    """
    schema = schema_of(ask.route, ask.body)
    if schema is None or len(body) > MOST_BYTES:
        return None
    try:
        size, returns = _size(schema)
        validator = jsonschema_rs.validator_for(schema, pattern_options=PATTERNS, offline=True)
        for number, choice in enumerate(_choices(ask.route, body)):
            if fault := _fault(choice, validator, size * max(1, returns)):
                return f"choice {number}: {fault}"
    except (_NotPossible, ValueError, RecursionError, jsonschema_rs.ReferencingError):
        return None
    return ""


def _choices(route: Route, body: bytes) -> list[Said]:
    """Raises ValueError where there are none."""
    found = orjson.loads(body)
    if not isinstance(found, dict):
        raise ValueError("no answer")
    return said(route, found)


def _fault(choice: Said, validator: jsonschema_rs.Validator, weight: int) -> str:
    """What is wrong with one choice; "" where nothing is. Raises _NotPossible."""
    if choice.excused:
        return ""
    text = choice.text
    cut = " (cut at the output limit)" if choice.cut else ""
    if not isinstance(text, str) or not text:
        return f"no text{cut}"
    try:
        value = orjson.loads(text)
    except ValueError:
        return f"no JSON{cut}"
    if weight * _count(value) > MOST_STEPS:
        raise _NotPossible
    # Not `validate`, which says what is wrong: it forgets what it has judged, and a schema of a hundred bytes whose
    # alternatives lead back into it then takes a time that doubles with each level of the answer.
    return "" if validator.is_valid(value) else f"the schema does not hold{cut}"


def _count(value: Any) -> int:
    """Values and names in a JSON value, itself included; long text counts as several."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        count += 1
        if isinstance(one, str):
            count += len(one) // CHARACTERS
        elif isinstance(one, dict):
            left.extend(one.keys())
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
    return count


def _size(schema: dict[str, Any]) -> tuple[int, int]:
    """Values in a schema with its references written out, and how many of those lead back into themselves.

    The library remembers what it has judged of a reference that leads back, but writes out all others, so that a
    schema of twenty lines could cost years. Raises _NotPossible beyond MOST_NODES and for what cannot be counted.
    """
    size, returns = 0, 0
    left: list[tuple[Any, frozenset[str]]] = [(schema, frozenset())]
    while left:
        part, within = left.pop()
        size += 1
        if size > MOST_NODES:
            raise _NotPossible
        if isinstance(part, list):
            left.extend((one, within) for one in part)
        if not isinstance(part, dict):
            continue
        if NOT_JUDGED & part.keys() or ("$id" in part and part is not schema):  # an inner $id turns references round
            raise _NotPossible
        size += sum(PATTERN_NODES + len(pattern) // 64 for pattern in _patterns(part))
        size += MULTIPLE_NODES if "multipleOf" in part else 0
        for name, value in part.items():
            if name != "$ref" or not isinstance(value, str):
                left.append((value, within))
            elif value in within:
                returns += 1
            else:
                left.append((_target(schema, value), within | {value}))
    return size, returns


def _patterns(part: dict[str, Any]) -> Iterator[str]:
    if isinstance(part.get("pattern"), str):
        yield part["pattern"]
    if isinstance(part.get("patternProperties"), dict):
        yield from part["patternProperties"]


def _target(schema: dict[str, Any], reference: str) -> Any:
    """What a reference inside the schema points to (RFC 6901). Raises _NotPossible for any other."""
    if reference != "#" and not reference.startswith("#/"):
        raise _NotPossible
    found: Any = schema
    for step in unquote(reference[1:]).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise _NotPossible
    return found
