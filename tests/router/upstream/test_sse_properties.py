"""The stream reader over recorded streams of every dialect: however they were cut, the same bytes and findings."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.records import Route, Usage
from tests.fuzz.driver import corpus
from tests.fuzz.sse import Followed, check, follow

RECORDED = {
    path.stem.removeprefix("vllm-"): path.read_bytes()[3:] for path in corpus("sse") if path.stem.startswith("vllm-")
}
"""By route: what vLLM 0.32 sent. The first three bytes of a file are for the fuzzer."""
USAGE = {
    "chat": Usage(19, 4, 0),
    "completions": Usage(4, 3, 0),
    "messages": Usage(19, 3, 0),
    "responses": Usage(19, 3, 0),
    "tools": Usage(156, 4, 0),
}
SHORT = {
    "chat": 'data: {"choices":[{"delta":{"content":"é 👩‍👧"}}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":9}}\n\n'
    "data: [DONE]\n\n",
    "responses": 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"é 👧"}\n\n'
    'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":9}}}\n\n',
    "messages": 'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"é 👧"}}\n\n'
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "broken": 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n: ping\n\n\ndata: {"choices":\n\ndata: x\n\n',
    "failed": 'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"no"}}\n\ndata: [DONE]\n\n',
}
ROUTE: dict[str, Route] = {"completions": "completions", "responses": "responses", "messages": "messages"}
ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def cut(kind: str, data: bytes, *marks: int) -> Followed:
    """The stream cut at these places, with a bound no event meets."""
    edges = sorted({0, len(data), *marks})
    return follow([data[a:b] for a, b in pairwise(edges)], ROUTE.get(kind, "chat/completions"), event_bytes=1 << 20)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("route", RECORDED)
def test_what_vllm_sent_passes_unchanged_at_every_split(route: str, end: str, bom: bytes) -> None:
    data = bom + RECORDED[route].replace(b"\n", end.encode())
    whole = cut(route, data)
    assert whole.relayed == data
    assert (whole.found[0], whole.fault) == (USAGE[route], "")
    assert cut(route, data, *range(len(data))) == whole
    for at in range(len(data)):
        assert cut(route, data, at) == whole, at


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("kind", SHORT)
def test_no_pair_of_splits_changes_a_short_stream(kind: str, end: str) -> None:
    data = SHORT[kind].replace("\n", end).encode()
    whole = cut(kind, data)
    for first, second in combinations(range(1, len(data)), 2):
        assert cut(kind, data, first, second) == whole, (first, second)


@pytest.mark.long
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("route", RECORDED)
def test_no_pair_of_splits_changes_what_vllm_sent(route: str, end: str) -> None:
    """All pairs of positions in its first and its last 1,200 bytes."""
    data = RECORDED[route].replace(b"\n", end.encode())
    for part in {data[:1200], data[-1200:]}:
        whole = cut(route, part)
        for first, second in combinations(range(1, len(part)), 2):
            assert cut(route, part, first, second) == whole, (first, second)


@given(st.sampled_from(sorted(RECORDED)), st.lists(st.integers(0, 5000), max_size=12), st.sampled_from(sorted(ENDS)))
def test_any_number_of_splits_changes_nothing(route: str, marks: list[int], end: str) -> None:
    data = RECORDED[route].replace(b"\n", ENDS[end].encode())
    assert cut(route, data, *(mark % len(data) for mark in marks)) == cut(route, data)


WAYS = (
    b'{"choices":[{"delta":{"content":"TEXT"},"finish_reason":null}]}', b'{"choices": [{"text": "TEXT", "index": 0}]}',
    b'{"choices":[{"delta":{"content":"TEXT":{},"finish_reason":null}]}', b'{"content":"TEXT":"stop"}',
)  # fmt: skip
SAID = (
    b"error", b"usage", b"finish_reason", b"[DONE]", b'"', b'\\"', b"\\", b"\\n", "é".encode(), b"\xff", b"", b"}",
    b"}\n\n", b'","x":"', b'"error":{"message":"no"}', b"a\n\ndata: {}", b"\n", b"\r", b'"},"finish_reason":"stop"',
)  # fmt: skip
"""Texts, most of which could be taken for something else."""
AFTER = (b"\n\n", b"\r\n\r\n", b"\n\r", b"\n\n\n", b"\n\r\n", b"\n: x\n\n", b"\n\n: ", b"\n\ndata: 1", b"\n")


@pytest.mark.parametrize("way", WAYS)
def test_an_event_known_by_what_stands_around_its_text_says_the_same(way: bytes) -> None:
    begin, last = b'{"choices":[{"delta":{"content":"w"}}]}', b'{"choices":[],"usage":{"prompt_tokens":9}}'
    for said, after in product(SAID, AFTER):
        events = [begin, *(way.replace(b"TEXT", text) for text in (b"a", said, b"c", b"d")), last]
        pieces = [b"data: " + event + b"\n\n" for event in events]
        pieces[2] = pieces[2][:-2] + after
        data = b"".join(pieces)
        apart, bytewise = cut("chat", data, *accumulate(map(len, pieces))), cut("chat", data, *range(len(data)))
        assert apart == bytewise, (said, after)


@given(
    st.sampled_from(corpus("sse")), st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 4), st.binary(
        min_size=2, max_size=2
    )
)  # fmt: skip
def test_no_mistake_in_a_stream_makes_the_cuts_matter(path: Path, at: int, put: bytes, over: int, ways: bytes) -> None:
    data = path.read_bytes()
    at = 3 + at % max(1, len(data) - 3)
    check(data[:1] + ways + data[3:at] + put + data[at + over :])
