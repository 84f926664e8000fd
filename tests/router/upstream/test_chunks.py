"""One socket's bytes as a stream: however they are cut, the same body, the same end and the same socket come of them.

A whole chunk that comes in one piece is known by its bytes alone and no parser sees it; nothing may pass there that
would not pass otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.address import Bounds, Deadlines, UpstreamError
from router.upstream.wire import Wire
from tests.fuzz.answer import Wire as Socket

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


class Home:
    """Where the wire belongs; it is taken back once."""

    tcp = False

    def __init__(self) -> None:
        self.freed = False

    def made(self, wire: Wire) -> None: ...
    def lost(self, wire: Wire) -> None: ...
    def spoiled(self, wire: Wire) -> None: ...
    def ended(self) -> None: ...
    def free(self, wire: Wire) -> bool:
        self.freed = True
        return True


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _follow(pieces: Sequence[bytes]) -> tuple[bytes, str, bool, bool]:
    home, got = Home(), bytearray()
    wire = Wire(home, Bounds(header_bytes=200, header_lines=5))
    socket = Socket(wire)
    wire.connection_made(socket)
    now = asyncio.get_running_loop().time()
    response = wire.send(b"", b"", Deadlines(), now, stream=True, whole=False, elsewhere=None)
    wire.data_received(HEAD)
    reading = asyncio.ensure_future(response.forward(got.extend))
    await asyncio.sleep(0)
    early, kind = False, ""
    for piece in filter(None, pieces):
        early = early or home.freed
        if not socket.closed:
            wire.data_received(piece)
    socket.abort()
    try:
        await reading
    except UpstreamError as failed:
        kind = failed.kind
    await wire.lost
    return bytes(got), kind, home.freed, early


def follow(pieces: Sequence[bytes]) -> tuple[bytes, str, bool, bool]:
    """What came of the body, how it failed, whether the socket may be used again, and whether bytes came after that."""
    return asyncio.run(_follow(pieces))


def cut(data: bytes, marks: Iterator[int]) -> list[bytes]:
    edges = sorted({0, len(data), *marks})
    return [data[a:b] for a, b in pairwise(edges)]


BODY = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"x" * 1100])
ODD = st.sampled_from([
    b"0\r\n", b"0\r\nx: y\r\n\r\n", b"5", b"\r\n", b"\n", b"5;a=b\r\nhello\r\n", b'5;a="b"\r\nhello\r\n',
    b"05\r\nhello\r\n", b"A\r\n0123456789\r\n", b"5 \r\nhello\r\n", b" 5\r\nhello\r\n", b"+5\r\nhello\r\n",
    b"0x5\r\nhello\r\n", b"4\r\nhello\r\n", b"6\r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhello\n", b"5\r\nhelloxx",
    b"1_0\r\n0123456789abcdef\r\n", b"-1\r\n\r\n",
])  # fmt: skip
PARTS = st.lists(BODY.map(chunk) | ODD, min_size=1, max_size=6)


@given(PARTS, st.booleans(), st.lists(st.integers(0, 5000), max_size=3))
def test_where_a_stream_is_cut_decides_nothing(parts: list[bytes], ends: bool, marks: list[int]) -> None:
    data = b"".join(parts) + (LAST if ends else b"")
    at = [sum(map(len, parts[:n])) for n in range(1, len(parts) + 1)]  # each part as one piece
    ways = [
        follow(way)
        for way in (cut(data, iter(at)), cut(data, iter([*at, *(m % (len(data) + 1) for m in marks)])), [data],
                    cut(data, iter(range(len(data)))))
    ]  # fmt: skip
    if not any(early for *_, early in ways):  # what comes behind the end is another answer, and never taken for one
        assert len(set(ways)) == 1, ways


@pytest.mark.parametrize("size", [1, 9, 15, 16, 17, 255, 256, 1023, 1024, 4096])
def test_chunks_of_any_size_come_whole_and_the_socket_can_be_used_again(size: int) -> None:
    part = b"\r\n" * (size // 2) + b"x" * (size % 2)
    assert follow([chunk(part)] * 5 + [LAST]) == (part * 5, "", True, False)


def test_a_chunk_that_lies_about_its_size_ends_the_answer() -> None:
    for wrong in (b"4\r\nhello\r\n", b"?\r\nhello\r\n", b"5\r\nhelloxx"):
        got, kind, freed, _ = follow([chunk(b"one"), chunk(b"two"), wrong, LAST])
        assert (got[:6], kind, freed) == (b"onetwo", "bad_response", False)


@pytest.mark.parametrize(
    "begun", [b"5", b"5;a=", b"5\r", b"f\r\nab\r\n", b"14\r\n0123\r\n", b"5\r\nhello", b"5\r\nhello\r"]
)
def test_what_looks_like_a_chunk_is_none_where_another_has_begun(begun: bytes) -> None:
    pieces = [chunk(b"one"), chunk(b"two"), begun, chunk(b"three"), chunk(b"four"), LAST]
    data = b"".join(pieces)
    assert follow(pieces) == follow([data]) == follow(cut(data, iter(range(len(data)))))
