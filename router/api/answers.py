"""The bytes of an answer's head, and the frame around a piece of its body."""

from __future__ import annotations

import http
from collections.abc import Iterable
from functools import lru_cache

Headers = Iterable[tuple[bytes, bytes]]
JSON = b"content-type: application/json\r\n"
EVENTS = "text/event-stream"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients of server-sent events read over it."""
LAST_CHUNK = b"0\r\n\r\n"


def _status_line(status: int) -> bytes:
    known = status in http.HTTPStatus.__members__.values()
    return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase if known else ''}\r\n".encode()


STATUS = {status: _status_line(status) for status in range(200, 600)}


def whole(status: int, lines: bytes, request_id: str, body: bytes, *, keep: bool, empty: bool = False) -> bytes:
    """A whole answer. `lines` are header lines that are encoded already; `empty` leaves out the body, as HEAD wants."""
    closing = b"" if keep else b"connection: close\r\n"
    named = b"x-request-id: %b\r\n" % request_id.encode() if request_id else b""
    return b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        STATUS[status], named, lines, closing, len(body), b"" if empty else body,
    )  # fmt: skip


def stream_head(lines: bytes, request_id: str, *, keep: bool, chunked: bool) -> bytes:
    """The head of a stream; without chunks it ends with the connection."""
    framing = b"transfer-encoding: chunked\r\n" if chunked else b""
    closing = b"" if keep else b"connection: close\r\n"
    return b"%bx-request-id: %b\r\n%b%b%b\r\n" % (STATUS[200], request_id.encode(), lines, framing, closing)


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def lines(headers: Headers) -> bytes:
    """Header lines."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


@lru_cache(512)
def fixed_lines(kind: str, fields: tuple[tuple[str, str], ...], stream: bool) -> bytes:
    """The header lines of an answer that many share: its type and why it is answered so."""
    head = [("content-type", kind), *fields]
    if stream:
        head.append(("cache-control", "no-cache"))
    return lines((name.encode(), header_value(value)) for name, value in head)


def header_value(text: str) -> bytes:
    """Printable ASCII only: a name that came from an upstream must not end a header and begin another."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return text.encode()
