"""HTTP/1.1 client over httptools: pooled connections to TCP, TLS and Unix-socket addresses, each phase with a deadline.

Owns sockets, framing and deadlines. Knows nothing of models, retries at other endpoints or what the bytes mean;
it follows no redirect, obeys no proxy and takes no address from a request.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Sequence
from typing import cast

import httptools

from router.upstream.address import Address, Bounds, Deadlines, Kind, UpstreamError
from router.upstream.response import Response

__all__ = ["Address", "Bounds", "Connections", "Deadlines", "Response", "UpstreamError"]

Headers = Sequence[tuple[str, str]]

DEAD_PEER_S = 20
"""Seconds after which a peer that acknowledges nothing is given up by the kernel."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PATH = re.compile(r"/[!-~]*")
_SET_HERE = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "upgrade", "te"})


class _Pool:
    """The connections of one address."""

    def __init__(self, address: Address, most: int) -> None:
        self.address = address
        self.slots = asyncio.Semaphore(most)  # one per exchange; idle connections hold none
        self.idle: list[_Connection] = []  # used from the end, so that spare ones age and are closed by the peer
        self.open: set[_Connection] = set()
        self.head = f" HTTP/1.1\r\nhost: {address.authority}\r\naccept-encoding: identity\r\n"
        self.tls: ssl.SSLContext | None = None
        if address.scheme == "https":
            self.tls = ssl.create_default_context(cafile=address.ca_file or None)
            self.tls.set_alpn_protocols(["http/1.1"])


class _Connection(asyncio.Protocol):
    """One socket: at most one exchange at a time, then back to its pool. Also httptools' listener (`on_…`)."""

    def __init__(self, pool: _Pool, bounds: Bounds, idle_most: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.lost = self.loop.create_future()
        self.used = False
        """Whether it has carried an exchange before: only then may a silent end be a stale keep-alive."""
        self.silent = True
        """Whether nothing has been received since the request was sent."""
        self._pool = pool
        self._bounds = bounds
        self._idle_most = idle_most
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._sent_at = self._heard_at = self._end_at = 0.0
        self._deadlines = Deadlines()
        self._begin(None)

    def _begin(self, response: Response | None) -> None:
        self._response = response
        self.silent = True
        self._complete = self._extra = self._reusable = self._until_eof = self._flowing = False
        self._header_size = self._dry = 0

    # ---- the exchange

    def send(self, request: bytes, body: bytes, deadlines: Deadlines, started: float) -> Response:
        """Write one request; the answer's head is waited for through the response."""
        response = Response(self, self._bounds.body_bytes)
        self._begin(response)
        transport = self._transport
        if transport is None:  # lost as soon as it was made
            self.fail("closed", "the connection was closed before anything was sent")
            return response
        self._deadlines = deadlines
        self._sent_at = self._heard_at = self.loop.time()
        self._end_at = started + deadlines.total_s
        transport.writelines((request, body)) if body else transport.write(request)
        self._watch(self._sent_at)
        return response

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def fail(self, kind: Kind, message: str) -> None:
        """Abort the socket and end the exchange, if there is one, with this error."""
        self._end(UpstreamError(kind, message))
        if self._transport is not None:
            self._transport.abort()

    def _end(self, error: UpstreamError | None) -> None:
        response = self._response
        if response is None:
            return
        self._response = None
        response.end(error)
        self._pool.slots.release()

    def _finish(self) -> None:
        """The answer is whole: give the socket back, or close it where the next answer could not be trusted."""
        transport = self._transport
        if transport is None:
            return
        self.resume()
        self._end(None)
        self.used = True
        # A peer that answered before it took the whole request would read the rest as the next one.
        if self._reusable and not transport.get_write_buffer_size() and len(self._pool.idle) < self._idle_most:
            self._pool.idle.append(self)
        else:
            transport.abort()

    def resume(self) -> None:
        """The reader has taken what was held; called at every take, so cheap when nothing was paused."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard_at = self.loop.time()  # the silence was ours
            self._transport.resume_reading()

    # ---- deadlines: one timer, moved only when it fires

    def _watch(self, now: float) -> None:
        """See to it that the timer fires within `idle_s`, and not after any other deadline.

        Each firing looks at what really happened, so that a chunk costs no timer.
        """
        deadlines = self._deadlines
        at = min(self._end_at, self._sent_at + deadlines.first_byte_s, now + deadlines.idle_s)
        if self._flowing:
            at = min(self._end_at, self._heard_at + deadlines.idle_s)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(at, self._check), at

    def _check(self) -> None:
        self._timer = None
        if self._response is None:
            return
        now = self.loop.time() + 0.001  # the loop may fire a clock tick early
        if self._paused:
            self._heard_at = now
        if now >= self._end_at:
            kind: Kind = "idle_timeout" if self._flowing else "first_byte_timeout"
            self.fail(kind, f"the answer was not complete after {self._deadlines.total_s:g} s")
        elif not self._flowing and now >= self._sent_at + self._deadlines.first_byte_s:
            self.fail("first_byte_timeout", f"no answer within {self._deadlines.first_byte_s:g} s")
        elif self._flowing and now >= self._heard_at + self._deadlines.idle_s:
            self.fail("idle_timeout", f"nothing more came for {self._deadlines.idle_s:g} s")
        else:
            self._watch(now)

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        self._pool.open.add(self)
        if self._pool.address.scheme != "unix":
            _tune(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nothing was asked: what comes now would be taken for the next answer
            self._drop()
            return
        self.silent = False
        self._heard_at = self.loop.time()
        held = response.held
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail("bad_response", "the answer is not valid HTTP/1.1")
            return
        if self._extra:
            self.fail("bad_response", "the answer is longer than it said")
            return
        # Bytes that bring no body are headers, trailers or chunk extensions, and those are bounded.
        self._dry = self._dry + len(data) if response.held == held else 0
        if self._header_size > self._bounds.header_bytes or self._dry > self._bounds.header_bytes:
            self.fail("too_large", f"the answer's headers are larger than {self._bounds.header_bytes} bytes")
        elif self._complete:
            self._finish()
        elif response.status:
            if response.held > self._bounds.buffer_bytes and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
            response.wake()

    def eof_received(self) -> None:
        if self._response is None:
            self._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._drop()
        self._transport = None
        self._pool.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if exc is None and self._until_eof:
            self._end(None)
        elif exc is None:
            self._end(UpstreamError("closed", "the connection was closed before the end of the answer"))
        else:
            self._end(UpstreamError("reset", "the connection broke before the end of the answer"))
        del self._parser  # it points back here
        if not self.lost.done():
            self.lost.set_result(None)

    def _drop(self) -> None:
        """Never hand it out again."""
        if self in self._pool.idle:
            self._pool.idle.remove(self)
        if self._transport is not None:
            self._transport.abort()

    # ---- httptools' side

    def on_message_begin(self) -> None:
        self._extra = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_size += len(name) + len(value) + 4
        if self._response is not None and not self._response.status:  # later ones are trailers
            self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        status = parser.get_status_code()
        if response is None or self._complete:
            return
        if 100 <= status < 200:  # 100 and 103 announce the answer; 101 makes httptools stop
            response.headers.clear()
            return
        coding = response.headers.get("transfer-encoding")
        if parser.get_http_version() != "1.1" or (coding is not None and coding.lower() != "chunked"):
            raise ValueError("framing this client does not take")  # ends feed_data with HttpParserError
        self._reusable = parser.should_keep_alive()  # asked here, since the parser forgets it at the message's end
        self._until_eof = coding is None and "content-length" not in response.headers
        response.status = status

    def on_body(self, body: bytes) -> None:
        response = self._response
        if response is not None:
            self._flowing = True
            response.add(body)

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._complete = True


class Connections:
    """All connections of this process to its upstreams, pooled by address."""

    def __init__(
        self, deadlines: Deadlines, bounds: Bounds, *, idle_per_address: int = 64, max_per_address: int = 1024
    ) -> None:
        self._deadlines = deadlines
        self._bounds = bounds
        self._idle = idle_per_address
        self._max = max_per_address
        self._pools: dict[Address, _Pool] = {}
        self._closed = False

    async def post(
        self, address: Address, path: str, headers: Headers, body: bytes, *, deadlines: Deadlines | None = None
    ) -> Response:
        """Send `body`; returns when the head of the answer has arrived, whatever its status.

        Raises UpstreamError, and ValueError where path or headers cannot be sent. Cancelling closes the socket.
        """
        lines = f"content-length: {len(body)}\r\n{_lines(headers)}\r\n"
        return await self._exchange(address, "POST", path, lines, body, deadlines or self._deadlines)

    async def get(
        self, address: Address, path: str, headers: Headers = (), *, deadlines: Deadlines | None = None
    ) -> Response:
        """Ask for `path`; otherwise as `post`."""
        return await self._exchange(address, "GET", path, f"{_lines(headers)}\r\n", b"", deadlines or self._deadlines)

    async def close(self) -> None:
        """Abort every socket, those of running exchanges too, and wait until they are gone."""
        self._closed = True
        for pool in list(self._pools.values()):
            left = list(pool.open)
            for connection in left:
                connection.fail("closed", "the router is stopping")
            for connection in left:
                await connection.lost

    async def _exchange(
        self, address: Address, method: str, path: str, lines: str, body: bytes, deadlines: Deadlines
    ) -> Response:
        if not _PATH.fullmatch(path):
            raise ValueError("the path must begin with / and hold only visible ASCII")
        started = asyncio.get_running_loop().time()
        pool = self._pools.get(address) or self._open_pool(address)
        request = f"{method} {path}{pool.head}{lines}".encode("latin-1")
        fresh = False
        while True:
            connection = await self._take(pool, deadlines, fresh)
            response = connection.send(request, body, deadlines, started)
            await response.wait()
            error = response.error
            if error is None or response.status:
                return response
            # The peer may close an idle connection just as we use it. Nothing was answered, so asking again is safe;
            # on a fresh connection it cannot happen twice.
            if not (connection.used and connection.silent and error.kind in ("closed", "reset")):
                raise error
            fresh = True

    def _open_pool(self, address: Address) -> _Pool:
        try:
            pool = self._pools[address] = _Pool(address, self._max)
        except OSError as broken:  # ssl.SSLError is one
            raise UpstreamError("refused", f"the CA file for {address} cannot be read") from broken
        return pool

    async def _take(self, pool: _Pool, deadlines: Deadlines, fresh: bool) -> _Connection:
        """A connection with a slot, idle or new. The end of the exchange gives the slot back."""
        if pool.slots.locked():
            try:
                async with asyncio.timeout(deadlines.connect_s):
                    await pool.slots.acquire()
            except TimeoutError as late:
                message = f"all {self._max} connections to {pool.address} are busy"
                raise UpstreamError("connect_timeout", message) from late
        else:
            await pool.slots.acquire()
        while pool.idle and not fresh:
            connection = pool.idle.pop()
            if connection.usable:
                return connection
        made = None
        try:
            made = await self._connect(pool, deadlines.connect_s)
        finally:
            if made is None:
                pool.slots.release()
        return made

    async def _connect(self, pool: _Pool, limit_s: float) -> _Connection:
        address, loop = pool.address, asyncio.get_running_loop()
        connection = _Connection(pool, self._bounds, self._idle)
        try:
            async with asyncio.timeout(limit_s):
                if self._closed:
                    raise UpstreamError("closed", "the router is stopping")
                if address.scheme == "unix":
                    await loop.create_unix_connection(lambda: connection, address.path)
                else:
                    await loop.create_connection(lambda: connection, address.host, address.port, ssl=pool.tls)
        except TimeoutError as late:
            raise UpstreamError("connect_timeout", f"no connection to {address} within {limit_s:g} s") from late
        except ssl.SSLCertVerificationError as wrong:
            raise UpstreamError("refused", f"the certificate of {address} is not trusted") from wrong
        except OSError as wrong:
            raise UpstreamError("refused", f"cannot connect to {address}: {wrong.strerror or 'it failed'}") from wrong
        if self._closed:  # meanwhile
            connection.fail("closed", "the router is stopping")
        return connection


def _lines(headers: Headers) -> str:
    """Header lines as sent. Raises ValueError for what would change the framing or begin another line."""
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or name.lower() in _SET_HERE:
            raise ValueError(f"the header {name!r} cannot be sent")
        if _CONTROL.search(value):
            raise ValueError(f"the value of the header {name!r} holds a control character")
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def _tune(sock: socket.socket) -> None:
    """Send small pieces at once, and notice a peer that vanished without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", DEAD_PEER_S // 2),
        ("TCP_KEEPINTVL", DEAD_PEER_S // 4),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", DEAD_PEER_S * 1000),
    ):
        if hasattr(socket, name):  # not everywhere
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
