"""Heads and chunked bodies: the same whatever pieces they come in, and refused as soon as they cannot be good."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.heads import Chunks, check_growing, read_head
from router.api.inlet import Inlet
from router.errors import BadRequest, HeadersTooLarge, HeadgateError, TooLarge, UriTooLong

RAW = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nHost: a:1\r\nX-One:  two \t\r\nExpect: 100-continue\r\n"
    b"Content-Length: 5\r\n\r\n"
)


def test_a_head_is_read() -> None:
    head = read_head(RAW)
    assert (head.method, head.path, head.query) == ("POST", b"/v1/completions", b"a=b")
    assert (head.length, head.chunked, head.expects, head.keep_alive, head.old) == (5, False, True, True, False)
    assert head.value(b"x-one") == b"two"
    assert head.value(b"x-none") is None


@pytest.mark.parametrize("first", [b"POST /c\nX: HTTP/1.1", b"POST /c\nX:\t HTTP/1.1", b"POST \n/c HTTP/1.1"])
def test_a_line_of_old_within_the_first_line_is_refused(first: bytes) -> None:
    """The parser takes a line without a version, of HTTP/0.9, and what follows as a header."""
    with pytest.raises(BadRequest):
        read_head(first + b"\r\nHost: a\r\n\r\n")


def test_an_old_or_closing_head_ends_its_connection() -> None:
    assert not read_head(RAW.replace(b"HTTP/1.1", b"HTTP/1.0")).keep_alive
    assert not read_head(RAW.replace(b"X-One:  two", b"Connection: X, Close")).keep_alive


@given(st.lists(st.integers(1, 40), max_size=60))
def test_any_pieces_give_the_same_requests(cuts: list[int]) -> None:
    chunked = (
        b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"
    )
    data, found, inlet = RAW + b"hello" + chunked, list[tuple[bytes, bytes]](), Inlet()
    head = None
    for size in [*cuts, len(data)]:
        piece, data = data[:size], data[size:]
        if not piece:
            continue
        inlet.feed(piece)
        while inlet.buffer:
            if head is None:
                head = inlet.head()
                if head is None:
                    break
                inlet.expect(head, 100)
            body = inlet.body()
            if body is None:
                break
            found.append((head.path, body))
            head = None
    assert found == [(b"/v1/completions", b"hello"), (b"/c", b"abcde")]


@pytest.mark.parametrize(
    ("received", "error"),
    [(b"\x16\x03", BadRequest), (b"GET /" + b"a" * 9000, UriTooLong),
     (b"GET / HTTP/1.1\r\nA: " + b"a" * 17_000, HeadersTooLarge)],
)  # fmt: skip
def test_a_head_that_cannot_become_good_is_refused_before_its_end(received: bytes, error: type[HeadgateError]) -> None:
    with pytest.raises(error):
        check_growing(received)


def test_chunks_are_bounded_in_what_they_hold_and_in_what_they_cost() -> None:
    chunks = Chunks(10)
    with pytest.raises(TooLarge):
        chunks.feed(b"b\r\n" + b"x" * 11)
    chunks = Chunks(1000)
    with pytest.raises(TooLarge):
        chunks.feed(b"1\r\nx\r\n" * 4000)
    chunks = Chunks(10)
    with pytest.raises(BadRequest):
        chunks.feed(b"zz\r\n")


def test_what_follows_a_chunked_body_is_no_part_of_it() -> None:
    chunks = Chunks(10)
    chunks.feed(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n")
    assert (bytes(chunks.body), chunks.whole, chunks.more) == (b"x", True, True)
