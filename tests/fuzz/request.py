"""Fuzz target: the head of a request and the chunks of its body, held against a grammar without any leniency.

What is taken must be what RFC 9112 says without its allowances for old software, and must mean one thing only: so no
server before or behind can find another request in it. How the bytes of a chunked body were cut changes nothing.
The first two bytes say where to cut.
"""

from __future__ import annotations

import re

from router.api.heads import MAX_HEADERS, Chunks, Head, check_body, check_growing, read_head
from router.errors import HeadgateError
from tests.fuzz.cuts import cuts

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
LINE = re.compile(rb"([A-Z-]+) ([!-~\x80-\xff]+) HTTP/1\.[01]")
FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*((?:[!-~\x80-\xff]+(?:[ \t]+[!-~\x80-\xff]+)*)?)[ \t]*")
HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
STATUSES = frozenset({400, 405, 413, 414, 415, 431, 505})
LIMIT = 1000
BIG = 200


def check(data: bytes) -> None:
    """Raises AssertionError where something is taken that could be read in two ways."""
    if len(data) < 2:
        return
    head, end, body = data[2:].partition(b"\r\n\r\n")
    if end:
        check_head(head + end, data[0])
    check_chunks(body if end else data[2:], data[0], data[1])


def check_head(raw: bytes, cut: int) -> None:
    """Hold one head against the grammar."""
    try:
        check_growing(raw[: max(1, cut * (len(raw) - 1) // 255)])
        grew = True
    except HeadgateError as error:
        assert error.status in STATUSES
        grew = False
    try:
        head = read_head(raw)
        check_body(head, LIMIT)
    except HeadgateError as error:
        assert error.status in STATUSES, error.status
        return
    assert grew, "refused while it came, and taken when it had come"
    first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = LINE.fullmatch(first)
    assert line, first
    fields = [FIELD.fullmatch(one) for one in lines]
    assert all(fields), lines
    pairs = [(found[1].lower(), found[2]) for found in fields if found]
    assert head.headers == pairs, (head.headers, pairs)
    assert head.method.encode() == line[1]
    check_meaning(head)


def check_meaning(head: Head) -> None:
    """One host, one framing, a bounded number of headers."""
    assert len(head.headers) <= MAX_HEADERS
    hosts = [value for name, value in head.headers if name == b"host"]
    assert len(hosts) == 1 and HOST.fullmatch(hosts[0]), hosts
    lengths = [value for name, value in head.headers if name == b"content-length"]
    codings = [value.lower() for name, value in head.headers if name == b"transfer-encoding"]
    assert len(lengths) + len(codings) <= 1, (lengths, codings)
    assert codings in ([], [b"chunked"]) and head.chunked == bool(codings)
    assert not lengths or (lengths[0].isdigit() and head.length == int(lengths[0]) <= LIMIT)
    assert b"\r" not in head.path and b"\n" not in head.path and b" " not in head.path and b"?" not in head.path


def check_chunks(body: bytes, first: int, second: int) -> None:
    """Read the body in several cuts, and once with an own reader."""
    ways = [read_chunks(pieces) for pieces in cuts(body, first, second)]
    assert ways[0] == ways[1] == ways[2], ways
    if isinstance(ways[0], bytes):
        assert ways[0] == plain(body), (ways[0], plain(body))


def read_chunks(pieces: list[bytes]) -> bytes | int | None:
    """The body; the status of its refusal; None where its end has not come."""
    chunks = Chunks(BIG)
    try:
        for piece in pieces:
            if piece and not chunks.whole:
                chunks.feed(piece)
    except HeadgateError as error:
        assert error.status in STATUSES
        # Too large or malformed: which of the two is seen first may depend on the cuts.
        return 400
    return bytes(chunks.body) if chunks.whole else None


def plain(body: bytes) -> bytes:
    """What a chunked body holds; AssertionError where it is not strictly one."""
    found, at = b"", 0
    while True:
        line = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[^\r\n]*)?\r\n").match(body, at)
        assert line, body[at : at + 40]
        at, size = line.end(), int(line[1], 16)
        if not size:
            break
        found += body[at : at + size]
        at += size + 2
        assert body[at - 2 : at] == b"\r\n", body[at - 2 : at]
    trailers = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n").match(body, at)
    assert trailers, body[at : at + 40]
    return found


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("request")
