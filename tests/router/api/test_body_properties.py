"""The one strict parse takes exactly what two other parsers agree about, whatever is sent."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz.body import check

TOKENS = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\",
    '"a"',
    '"a":',
    '"\\u0061":',
    '"é"',
    '{"a":1}',
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-",
    "1",
    "01",
    "1.0",
    "0.1e1",
    "1e999",
    "-1e999",
    "1e-999",
    "1E400",
    "NaN",
    "Infinity",
    "-Infinity",
    "\ufeff",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "9" * 400,
    "9" * 5000,
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '"\\ude00\\ud83d"',
    '"\\u0000"',
    '"\x00"',
    '"\x7f"',
    " ",
    "\t",
    "\r\n",
    "\x0b",
    "\xa0",
    "//",
    "/**/",
    "'",
    "\\\\",
    '\\"',
    "[" * 40,
    "]" * 40,
    '{"a":' * 40,
    "}" * 40,
    '"' + "[" * 70 + '"',
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=400)
@example([b"{", b'"a":1,', b'"a":2', b"}"])
@given(st.lists(st.sampled_from([token.encode() for token in TOKENS]) | st.binary(max_size=3), max_size=14))
def test_any_sequence_of_tokens_is_read_as_two_parsers_agree(pieces: list[bytes]) -> None:
    check(b"".join(pieces))
    check(b'{"a":' + b"".join(pieces) + b"}")


@settings(max_examples=200)
@given(
    VALUES.map(lambda value: json.dumps({"a": value}).encode()),
    st.integers(0, 200),
    st.sampled_from([token.encode() for token in TOKENS]) | st.binary(max_size=2),
    st.integers(0, 2),
)
def test_a_body_with_one_mistake_in_it_is_read_as_two_parsers_agree(raw: bytes, at: int, put: bytes, over: int) -> None:
    check(raw)
    check(raw[:at] + put + raw[at + over :])


@settings(max_examples=30)
@given(st.integers(60, 68), st.integers(0, 64), st.sampled_from(["[", "{", "mixed"]), st.text('\\"[{a', max_size=20))
def test_the_64th_level_is_the_last(depth: int, beside: int, way: str, text: str) -> None:
    opened = [(b"[", b"]"), (b'{"b":', b"}")]
    levels = [opened[way == "{" or (way == "mixed" and n % 2)] for n in range(depth - 1)]
    inner = b"".join(a for a, _ in levels) + b"0" + b"".join(b for _, b in reversed(levels))
    check(b'{"a":' + inner + b',"c":[' + b",".join([b"[]"] * beside) + b'],"d":' + json.dumps(text).encode() + b"}")
