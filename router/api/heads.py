"""The head of one request, held against every limit before a parser sees it, and the pieces of a chunked body.

What two servers in a row could read differently is refused, so that nothing can hide behind another request.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

import httptools

from router.errors import (
    BadRequest,
    HeadersTooLarge,
    TooLarge,
    UnsupportedEncoding,
    UriTooLong,
    WrongMethod,
    WrongVersion,
)

Headers = list[tuple[bytes, bytes]]
MAX_HEADERS, MAX_HEADER_BYTES, MAX_URL = 64, 16 * 1024, 8 * 1024
MAX_LINE = MAX_URL + 40
"""The request line: the URL, and around it the method and the version."""
HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|[A-Za-z0-9._-]{1,255})(?::([0-9]{1,5}))?")
FIRST = re.compile(rb"[!-~]+ [!-~\x80-\xff]+ [!-~]+")
"""Three parts with one space between two of them, and no other white space or control character."""
NEW = b" HTTP/1.1"
VERSION = re.compile(rb"HTTP/\d(\.\d)?")
FRAMING = 2
"""What is received of a chunked body may be this many times what it holds; one of tiny chunks is an attack."""
CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class Head:
    """One request without its body. It is filled by the parser, and by `read_head`."""

    __slots__ = ("chunked", "encoded", "expects", "headers", "keep_alive", "length", "method", "old", "path", "query")

    def __init__(self) -> None:
        self.method = ""
        self.path, self.query = b"", b""
        """As they were received: nothing is decoded or made shorter, so that no spelling means another path."""
        self.headers: Headers = []
        """Names in lower case, values without space around them."""
        self.length, self.chunked = 0, False
        """Bytes of the body, where it is not chunked."""
        self.keep_alive = True
        self.expects = False
        """Whether the client waits for `100 Continue` before it sends the body."""
        self.old = False
        """HTTP/1.0: no chunks, no interim answers."""
        self.encoded = False
        """Whether the body is compressed."""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def value(self, name: bytes) -> bytes | None:
        """The one header of this name; where there are several, the last."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


def check_growing(received: bytes) -> None:
    """Refuse a head that is not whole yet as soon as it cannot become a good one. Raises HeadgateError."""
    _check_first(received)
    line = received.find(b"\r\n", 0, MAX_LINE + 2)
    if line < 0 and len(received) > MAX_LINE:
        raise UriTooLong(f"The URL is longer than {MAX_URL // 1024} KiB.")
    if len(received) - max(line, 0) > max(MAX_HEADER_BYTES, MAX_LINE):
        raise HeadersTooLarge(f"Send at most {MAX_HEADER_BYTES // 1024} KiB of headers.")


def read_head(raw: bytes) -> Head:
    """The head that `raw` is, its last empty line included. Raises HeadgateError."""
    _check_first(raw)
    end = raw.find(b"\r\n")
    if end > MAX_LINE:
        raise UriTooLong(f"The URL is longer than {MAX_URL // 1024} KiB.")
    if len(raw) - end > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"Send at most {MAX_HEADER_BYTES // 1024} KiB of headers.")
    # The parser would take several spaces between the parts, nothing between two of them, and a line of HTTP/0.9.
    if FIRST.fullmatch(raw, 0, end) is None:
        raise BadRequest("The first line is not that of an HTTP request.", code="invalid_http")
    head = Head()
    if raw[end - len(NEW) : end] != NEW:
        _check_version(raw[:end])
        head.old, head.keep_alive = True, False
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass  # it is not taken up: the request is answered as if that had not been asked for
    except httptools.HttpParserInvalidMethodError as unknown:
        raise WrongMethod("There is no such method.") from unknown
    except httptools.HttpParserError as broken:
        raise BadRequest(f"The request is not valid HTTP: {broken}.", code="invalid_http") from broken
    if len(head.path) > MAX_URL:
        raise UriTooLong(f"The URL is longer than {MAX_URL // 1024} KiB.")
    if len(head.headers) > MAX_HEADERS:
        raise HeadersTooLarge(f"Send at most {MAX_HEADERS} headers.")
    if b"?" in head.path:
        head.path, _, head.query = head.path.partition(b"?")
    head.method = parser.get_method().decode("ascii")
    _read_headers(head)
    return head


def _check_first(received: bytes) -> None:
    if not 65 <= received[0] <= 90:  # a capital letter: anything else is another protocol, TLS for one
        raise BadRequest("This is not HTTP/1.1.", code="invalid_http")


def _check_version(line: bytes) -> None:
    """A request line that does not end with HTTP/1.1: HTTP/1.0 is taken. Raises HeadgateError."""
    version = line.rpartition(b" ")[2]
    if version == b"HTTP/1.0":
        return
    if VERSION.fullmatch(version):
        raise WrongVersion("Use HTTP/1.1.")
    raise BadRequest("This is not HTTP/1.1.", code="invalid_http")


def _read_headers(head: Head) -> None:
    """Take from the headers what the connection must know."""
    hosts, headers = 0, head.headers
    for number, (name, value) in enumerate(headers):
        if value[-1:] in b" \t" and value:
            value = value.rstrip(b" \t")
            headers[number] = name, value
        if name == b"host":
            hosts += 1
            if not is_host(value):
                raise BadRequest("The Host header is not a host with or without a port.", code="invalid_host")
        elif name == b"content-length":
            head.length = int(value)  # the parser has refused what is no number, and a second one
        elif name == b"connection":
            if b"close" in value.lower():
                head.keep_alive = False
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or head.old:
                raise BadRequest("Send the body whole, or chunked with HTTP/1.1.", code="invalid_http")
            head.chunked = True
        elif name == b"content-encoding":
            head.encoded = head.encoded or value.lower() not in (b"", b"identity")
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise BadRequest("No such expectation can be met.", code="invalid_http")
            head.expects = not head.old
    if hosts != 1:
        raise BadRequest("Send exactly one Host header.", code="invalid_host")


@lru_cache(256)
def is_host(value: bytes) -> bool:
    """Whether this is a host with or without a port. Remembered: callers name the same one each time."""
    found = HOST.fullmatch(value)
    if found is None or not 0 < int(found[2] or 80) < 65_536:
        return False
    try:
        return found[1] is None or bool(IPv6Address(found[1].decode()))
    except AddressValueError:
        return False


def check_body(head: Head, limit: int) -> None:
    """Refuse by its head a body that would not be read. Raises HeadgateError."""
    if head.encoded:
        raise UnsupportedEncoding("Send the body without content-encoding.")
    if head.length > limit:
        raise too_large(limit)


def too_large(limit: int) -> TooLarge:
    """The error for a body over `limit` bytes."""
    return TooLarge(f"The body is larger than {limit / 2**20:g} MiB; raise router.max_body_mb in headgate.yaml if that "
                    "is meant.")  # fmt: skip


class Chunks:
    """A chunked body as it comes in. Trailers are read and forgotten."""

    def __init__(self, limit: int) -> None:
        self.body, self.whole = bytearray(), False
        self.more = False
        """Whether bytes came behind the end that belong to another request; they are lost."""
        self._limit, self._received = limit, 0
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(CHUNKED)

    def feed(self, data: bytes) -> None:
        """Read on. Raises HeadgateError."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as broken:
            if not self.whole:
                raise BadRequest(f"The body's chunks are not valid: {broken}.", code="invalid_http") from broken
            self.more = True
        if len(self.body) > self._limit or self._received > FRAMING * self._limit + MAX_HEADER_BYTES:
            raise too_large(self._limit)

    def on_message_begin(self) -> None:
        self.more = self.whole

    def on_body(self, data: bytes) -> None:
        if not self.whole:
            self.body += data

    def on_message_complete(self) -> None:
        self.whole = True
