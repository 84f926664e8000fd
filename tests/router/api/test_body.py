"""The one strict parse: what two parsers could read differently never gets in, and nothing makes it slow."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.body import AT_ONCE, MAX_DEPTH, MOST_CONTAINERS, MOST_VALUES, PIECE, parse, text_field
from router.errors import BadRequest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS
VALUES = st.recursive(
    SCALARS | TEXT, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


def code_of(raw: bytes) -> str:
    with pytest.raises(BadRequest) as refused:
        parse(raw)
    assert refused.value.status == 400
    return refused.value.code


def nested(depth: int, inside: str = "0") -> bytes:
    """An object of `depth` levels, the outermost one counted."""
    return b'{"a":' + b"[" * (depth - 1) + inside.encode() + b"]" * (depth - 1) + b"}"


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.booleans())
def test_what_was_written_is_what_is_read(body: dict[str, Any], escaped: bool) -> None:
    assert parse(json.dumps(body, ensure_ascii=escaped).encode()) == body


@given(st.lists(st.sampled_from(["[", "{", "dup"]), max_size=40), TEXT, st.booleans())
def test_a_key_that_stands_twice_is_refused_at_any_depth(way: list[str], key: str, escaped: bool) -> None:
    name = json.dumps(key)
    # The same key may be written in two ways.
    again = '"' + "".join(f"\\u{unit:04x}" for unit in _utf16(key)) + '"' if escaped else name
    inner = f'{{{name}:1,"other":2,{again}:1}}' if key != "other" else '{"other":1,"other":2}'
    for step in way:
        inner = f"[{inner}]" if step == "[" else f'{{"x":{inner}}}'
    assert code_of(f'{{"y":{inner}}}'.encode()) == "duplicate_field"


def _utf16(text: str) -> list[int]:
    raw = text.encode("utf-16-be")
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]


def test_the_same_key_in_two_objects_is_fine() -> None:
    assert parse(b'{"a": {"x": 1}, "b": {"x": 2}}') == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}{}",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 01}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 18446744073709551616}',
        b'{"a": -9223372036854775809}',
        b'{"a": [{"b": 123456789012345678901234567890}]}',
        b'{"a": "\xff"}',
        b'{"a": "\xc0\xaf"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"\xff": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"a": "\x00"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        '{"a": 1}'.encode("utf-32"),
        b'{"a": 1} // why',
        b'{"a": "' + b"\\" * 3 + b'"}',
    ],
)
def test_what_is_not_strict_json_is_refused(raw: bytes) -> None:
    assert code_of(raw) == "invalid_json"


LARGE = {"text": "a: b, " * 60_000, "deep": [[{"x:y": ["::", {"z": {}}], "n": [1, None, 2.5, True]}]] * 20}


@pytest.mark.parametrize("escaped", [False, True])
def test_a_large_body_is_read_as_strictly_as_a_small_one(escaped: bool) -> None:
    whole = json.dumps(LARGE)
    if escaped:
        whole = whole.replace("a: b", "a\\u003a b")
    assert len(whole) > AT_ONCE
    assert parse(whole.encode()) == LARGE
    assert code_of(whole.replace('"deep"', '"text"').encode()) == "duplicate_field"
    assert code_of(whole.replace('"n": [', '"x\\u003ay": [', 1).encode()) == "duplicate_field"
    assert code_of(whole.replace("2.5", "9" * 20, 1).encode()) == "invalid_json"


@pytest.mark.parametrize("before", range(-7, 8))
def test_an_escaped_colon_is_seen_on_the_edge_of_two_pieces(before: int) -> None:
    """A second key of the same name, and a colon that stands in for the one that is lost with the first."""
    start = b'{"t":"'
    raw = start + b"x" * (PIECE - len(start) + before) + b'\\u003A","a":1,"a":2}'
    assert code_of(raw) == "duplicate_field"


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 0, 1e308, 5e-324, -0.0])
def test_numbers_that_fit_stay_exact(number: float) -> None:
    found = parse(json.dumps({"a": number}).encode())["a"]
    assert (found, type(found)) == (number, type(number))


def test_depth_64_is_read_and_65_is_not() -> None:
    assert MAX_DEPTH == 64
    assert parse(nested(64))
    assert code_of(nested(65)) == "too_deep"
    assert code_of(b'{"a":' * 65 + b"1" + b"}" * 65) == "too_deep"
    assert code_of(b'{"a":[' * 33 + b"1" + b"]}" * 33) == "too_deep"


def test_many_levels_beside_each_other_are_not_deep() -> None:
    assert parse(b'{"a":[' + b",".join([b"[[[]]]"] * 1000) + b"]}")


@pytest.mark.parametrize("raw", [nested(100_000), b"[" * 100_000, b'{"a":' * 100_000, nested(5_000_000)])
def test_depth_costs_no_stack_and_little_time(raw: bytes) -> None:
    start = time.perf_counter()
    assert code_of(raw) == "too_deep"
    assert time.perf_counter() - start < 5  # seconds; one that recursed would have died, a quadratic one hangs


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200,
        "{[" * 100,
        '"' + "[" * 200,
        "\\" + '"' + "[" * 200,
        "\\\\" + "{" * 200,
        '\\"' * 50 + "[" * 200 + "\\" * 7,
        "\\",
        '"',
    ],
)
def test_brackets_inside_text_do_not_count(text: str) -> None:
    # As a value, as a key, and beside real levels.
    assert parse(json.dumps({"a": text, text: [[]] * 70}).encode()) == {"a": text, text: [[]] * 70}


@given(st.text('\\"[{a', max_size=60), st.integers(60, 70))
def test_no_escape_hides_or_makes_a_level(text: str, depth: int) -> None:
    raw = nested(depth, json.dumps(text + "[" * 65))
    if depth <= MAX_DEPTH:
        assert parse(raw)
    else:
        assert code_of(raw) == "too_deep"


@pytest.mark.parametrize(
    "inside",
    [
        "1," * MOST_VALUES + "1",
        '"",' * MOST_VALUES + '""',
        "[]," * MOST_CONTAINERS + "[]",
        '{"a":1},' * MOST_CONTAINERS + "{}",
        '"' + '","' * 3 * MOST_VALUES + '"',
    ],
    ids=["numbers", "texts", "lists", "objects", "very many texts"],
)
def test_many_values_of_few_bytes_are_refused_before_anything_is_made_of_them(inside: str) -> None:
    raw = f'{{"a":[{inside}]}}'.encode()
    start = time.process_time()
    assert code_of(raw) == "too_many_values"
    assert time.process_time() - start < 2  # seconds; reading them takes several times as long


def test_what_a_body_may_hold_it_may_hold() -> None:
    ids = {"prompt": list(range(MOST_VALUES - 10))}
    assert parse(json.dumps(ids).encode()) == ids
    turns = {"messages": [{"content": "[a, b]: {c}, " * 20}] * (MOST_CONTAINERS - 10)}
    assert parse(json.dumps(turns).encode()) == turns
    text = {"a": '[{,\\",' * MOST_VALUES}  # inside text nothing counts
    assert parse(json.dumps(text).encode()) == text


@pytest.mark.parametrize("colon", ["\\u003a", "\\u003A", ":", "\\\\u003a", "\\\\:"])
@pytest.mark.parametrize("form", ['{"a":1,"b":"%s","a":2}', '{"x%s":1,"a":0,"a":1}', '{"a":[{"%s":1,"c":1,"c":1}]}'])
def test_no_colon_in_a_text_hides_a_key_that_stands_twice(colon: str, form: str) -> None:
    assert code_of((form % (colon * 3)).encode()) == "duplicate_field"
    once = (form % colon).replace(',"a":2', "").replace(',"a":1}', "}").replace(',"c":1,"c":1', "").encode()
    assert parse(once) == json.loads(once)


@pytest.mark.parametrize("digits", ["1234567890123456789", "9" * 40])
def test_long_digits_are_fine_in_text_and_behind_a_point(digits: str) -> None:
    raw = f'{{"a": "{digits}", "{digits}": 0.{digits}}}'.encode()
    assert parse(raw) == json.loads(raw)


def test_a_late_duplicate_among_many_keys_is_found_in_time() -> None:
    keys = ",".join(f'"k{i}":0' for i in range(100_000))
    start = time.perf_counter()
    assert code_of(f'{{{keys},"k99999":1}}'.encode()) == "duplicate_field"
    assert time.perf_counter() - start < 3  # seconds; comparing each with each takes minutes


def test_the_refusal_names_the_key_and_cuts_a_long_one() -> None:
    with pytest.raises(BadRequest) as refused:
        parse(b'{"stop": 1, "stop": 2}')
    assert refused.value.param == "stop"
    assert "'stop'" in refused.value.message
    long = "x" * 10_000
    with pytest.raises(BadRequest) as refused:
        parse(f'{{"{long}": 1, "{long}": 2}}'.encode())
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("body", [{}, {"model": None}, {"model": ""}, {"model": 5}, {"model": ["m"]}])
def test_a_missing_text_field_is_named(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        text_field(body, "model")
    assert (refused.value.code, refused.value.param) == ("missing_field", "model")
    assert text_field({"model": "m"}, "model") == "m"
