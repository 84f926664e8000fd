"""HTTP/1.1 client: pooled connections to TCP, TLS and Unix-socket addresses.

Opens sockets and decides which one carries a request. Knows nothing of models, retries at other endpoints or what the
bytes mean; it follows no redirect, obeys no proxy and takes no address from a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from router.upstream.address import Address, Bounds, Deadlines, Kind, UpstreamError
from router.upstream.names import Names
from router.upstream.pool import Pool
from router.upstream.response import Response
from router.upstream.wire import Wire

__all__ = ["Address", "Bounds", "Connections", "Deadlines", "Kind", "Response", "UpstreamError"]

Headers = Sequence[tuple[str, str]]

HEAD_START_S = 0.25
"""How long one of several addresses of a name has before the next is tried beside it."""
WAITING = 1024
"""Requests that may wait for a connection to one address."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SET_HERE = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "upgrade", "te"})
_SENT: set[str] = set()
"""Names of headers that were looked at already. They are all words of this program."""
_MOST_SENT = 64


class Connections:
    """All connections of this process to its upstreams, pooled by address."""

    def __init__(
        self, deadlines: Deadlines, bounds: Bounds, *, idle_per_address: int = 64, max_per_address: int = 1024,
        outside: Callable[[str], bool] = lambda _: False, names: Names | None = None,
    ) -> None:  # fmt: skip
        """`outside`: whether an IP address is none of this site's, so that nothing may be connected to it."""
        self._deadlines, self._bounds = deadlines, bounds
        self._idle, self._max = idle_per_address, max_per_address
        self._outside, self._names = outside, names or Names()
        self._pools: dict[Address, Pool] = {}
        self._closed = False

    def post(
        self, address: Address, path: str, headers: Headers, body: bytes, *, deadlines: Deadlines | None = None,
        stream: bool = False, whole: bool = False, elsewhere: Callable[[], bool] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> Coroutine[Any, Any, Response]:  # fmt: skip
        """Send `body`; returns when the head of the answer has arrived, whatever its status.

        `stream`: its reader says which events are progress; bytes alone are none. `whole`: return an answer with
        status 200 only when all of it is there. `elsewhere`: the first token has a deadline, until the reader says it
        has come, and this is asked then: whether somebody else may be asked, so that waiting on is not better.
        `sent` is told when a connection is given the request; before, nobody can have worked on it.
        Raises UpstreamError, and ValueError where path or headers cannot be sent. Cancelling closes the socket.
        """
        pool = self._pools.get(address) or self._open_pool(address)
        head = pool.head("POST", path) + f"{_lines(headers)}content-length: {len(body)}\r\n\r\n".encode("latin-1")
        limits = deadlines or self._deadlines
        return self._exchange(
            pool, head, body, limits, stream=stream, whole=whole, elsewhere=elsewhere, sent=sent
        )  # fmt: skip

    async def get(
        self, address: Address, path: str, headers: Headers = (), *, deadlines: Deadlines | None = None
    ) -> Response:
        """Ask for `path`; otherwise as `post`."""
        pool = self._pools.get(address) or self._open_pool(address)
        head = pool.head("GET", path) + f"{_lines(headers)}\r\n".encode("latin-1")
        return await self._exchange(pool, head, b"", deadlines or self._deadlines)

    async def close(self) -> None:
        """Abort every socket, those of running exchanges too, and wait until they are gone."""
        self._closed = True
        self._names.close()
        for pool in list(self._pools.values()):
            left = list(pool.open)
            for wire in left:
                wire.fail("closed", "the router is stopping")
            for wire in left:
                await wire.lost

    async def _exchange(
        self, pool: Pool, head: bytes, body: bytes, deadlines: Deadlines, *, stream: bool = False,
        whole: bool = False, elsewhere: Callable[[], bool] | None = None, sent: Callable[[], None] | None = None,
    ) -> Response:  # fmt: skip
        started, fresh = asyncio.get_running_loop().time(), False
        while True:
            wire = (None if fresh else pool.again()) or await self._take(pool, deadlines, fresh)
            response = wire.send(head, body, deadlines, started, stream=stream, whole=whole, elsewhere=elsewhere)
            if sent is not None:
                sent()
            await response.wait()
            error = response.error
            if error is None or response.status:
                return response
            # The peer may close an idle connection just as we use it. Nothing was answered, so asking again is safe;
            # on a fresh connection it cannot happen twice.
            if not (wire.used and wire.silent and error.kind in ("closed", "reset")):
                raise error
            fresh = True

    def _open_pool(self, address: Address) -> Pool:
        try:
            pool = self._pools[address] = Pool(address, self._max, self._idle)
        except OSError as broken:  # ssl.SSLError is one
            raise UpstreamError("refused", f"the CA file for {address} cannot be read") from broken
        return pool

    async def _take(self, pool: Pool, deadlines: Deadlines, fresh: bool) -> Wire:
        """A connection with a slot, idle or new. The end of the exchange gives the slot back."""
        if not pool.slots.take():
            await self._wait(pool, deadlines.connect_s)
        while pool.idle and not fresh:
            wire = pool.idle.pop()
            if wire.usable:
                return wire
        made = None
        try:
            made = await self._connect(pool, deadlines.connect_s)
        finally:
            if made is None:
                pool.slots.give()
        return made

    async def _wait(self, pool: Pool, limit_s: float) -> None:
        """Wait in line for a slot, not for long and not with very many."""
        message = f"all {self._max} connections to {pool.address} are busy"
        if len(pool.slots.line) >= WAITING:
            raise UpstreamError("pool_full", message)
        try:
            async with asyncio.timeout(limit_s):
                await pool.slots.turn()
        except TimeoutError as late:
            raise UpstreamError("pool_full", message) from late

    # ---- connecting

    async def _connect(self, pool: Pool, limit_s: float) -> Wire:
        address = pool.address
        try:
            async with asyncio.timeout(limit_s), pool.connecting:
                if self._closed:
                    raise UpstreamError("closed", "the router is stopping")
                if address.scheme == "unix":
                    loop = asyncio.get_running_loop()
                    with self._wires(pool) as make:
                        wire = (await loop.create_unix_connection(make, address.path))[1]
                else:
                    wire = await self._first(pool, await self._names.addresses(address.host, address.port))
        except TimeoutError as late:
            raise UpstreamError("connect_timeout", f"no connection to {address} within {limit_s:g} s") from late
        except ssl.SSLCertVerificationError as wrong:
            raise UpstreamError("refused", f"the certificate of {address} is not trusted") from wrong
        except OSError as wrong:
            raise UpstreamError("refused", f"cannot connect to {address}: {wrong.strerror or 'it failed'}") from wrong
        if self._closed:  # meanwhile
            wire.fail("closed", "the router is stopping")
        return wire

    @contextlib.contextmanager
    def _wires(self, pool: Pool) -> Iterator[Callable[[], Wire]]:
        """What makes a wire to connect. uvloop never tells of its end one that is given up just as it connected."""
        made: list[Wire] = []

        def make() -> Wire:
            made.append(Wire(pool, self._bounds))
            return made[-1]

        connected = False
        try:
            yield make
            connected = True
        finally:
            if not connected:
                for wire in made:
                    pool.lost(wire)

    async def _first(self, pool: Pool, places: Sequence[str]) -> Wire:
        """The first that connects; each has a head start before the next. Raises OSError, UpstreamError."""
        if stranger := next((place for place in places if self._outside(place)), None):
            raise UpstreamError("outside", f"{pool.address} is now {stranger}, which is not of this site")
        if len(places) == 1:
            return await self._open(pool, places[0])
        left, trying, failed = list(places), set[asyncio.Task[Wire]](), OSError("no address")
        try:
            while left or trying:
                if left:
                    trying.add(asyncio.ensure_future(self._open(pool, left.pop(0))))
                wait_s = HEAD_START_S if left else None
                done, _ = await asyncio.wait(trying, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    trying.discard(task)
                    if (error := task.exception()) is None:
                        return task.result()
                    if not isinstance(error, OSError):
                        raise error
                    failed = error
            raise failed
        finally:
            for task in trying:
                task.cancel()
                task.add_done_callback(_let_go)

    async def _open(self, pool: Pool, place: str) -> Wire:
        loop, address = asyncio.get_running_loop(), pool.address
        name = address.host if pool.tls else None
        with self._wires(pool) as make:
            _, wire = await loop.create_connection(make, place, address.port, ssl=pool.tls, server_hostname=name)
        if wire.peer and self._outside(wire.peer):  # asked again of the socket itself: it is what the bytes go to
            wire.fail("outside", "the peer is not of this site")
            raise UpstreamError("outside", f"{address} led to {wire.peer}, which is not of this site")
        return wire


def _let_go(task: asyncio.Task[Wire]) -> None:
    """Close what was connected although another address was faster."""
    if not task.cancelled() and task.exception() is None:
        task.result().fail("closed", "another address was faster")


def _lines(headers: Headers) -> str:
    """Header lines as sent. Raises ValueError for what would change the framing or begin another line."""
    lines = ""
    for name, value in headers:
        if name not in _SENT:
            _look_at(name)
        if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
            raise ValueError(f"the value of the header {name!r} holds a control character")
        lines += f"{name}: {value}\r\n"
    return lines


def _look_at(name: str) -> None:
    """Raises ValueError for a name that cannot be sent."""
    if not _TOKEN.fullmatch(name) or name.lower() in _SET_HERE:
        raise ValueError(f"the header {name!r} cannot be sent")
    if len(_SENT) < _MOST_SENT:
        _SENT.add(name)
