"""A light client: HTTP/1.1 on `asyncio.Protocol`, so that what is measured is the server and not who asks.

Each connection asks one thing at a time and gives back what it heard. Closed loops, an open loop and streams that are
held open are made of it; `connections` are plain sockets, never a pool that thinks for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httptools

from benchmarks.asking import Asking

_TEXT = re.compile(rb'"content": ?"[^"]')
_STAMP = re.compile(rb"at([0-9.]{18});")
_REFUSED = b'data: {"error"'
UNENDING_S = 3600.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect, and a complete request."""

    host: str
    port: int
    path: str
    """A Unix socket; empty for TCP."""
    request: bytes

    async def connect(self) -> Wire:
        """A new connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self.path:
            return (await loop.create_unix_connection(Wire, self.path))[1]
        return (await loop.create_connection(Wire, self.host, self.port))[1]


def place(asking: Asking, number: int = 0) -> Place:
    """What `asking` sends as request `number`, as bytes. Its url may be `unix:/path`."""
    body = asking.body(number)
    unix = asking.url.removeprefix("unix:") if asking.url.startswith("unix:") else ""
    parts = urllib.parse.urlsplit(asking.url)
    host, port = parts.hostname or "localhost", parts.port or 80
    lines = [
        "POST /v1/chat/completions HTTP/1.1", f"host: {host}:{port}", "content-type: application/json",
        f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in asking.headers.items()),
    ]  # fmt: skip
    lines += [f"authorization: Bearer {asking.key}"] if asking.key else []
    return Place(host, port, unix, "\r\n".join([*lines, "", ""]).encode() + body)


@dataclass(slots=True)
class Heard:
    """What came of one request. Times by the monotonic clock."""

    sent: float
    status: int = 0
    """0 where no answer came."""
    first: float = 0.0
    """When the first text of a stream came; 0 where none did."""
    reached: float = 0.0
    """When the upstream answered, where its first text says so; else 0."""
    ended: float = 0.0
    whole: bool = False
    """Whether the answer came to its end; of a stream, with its last word."""
    texts: int = 0
    """Pieces of the body that came."""
    place: str = ""
    """Where Headgate says it was answered, `local` or `hosted`; empty where nobody says."""
    request: str = ""
    """The id that Headgate's ledger knows it by."""

    @property
    def good(self) -> bool:
        return self.status == 200 and self.whole


class Wire(asyncio.Protocol):
    """One connection. `ask` sends a request; `done` is called once with what was heard, however it ends."""

    def __init__(self) -> None:
        self.open = True
        self._heard: Heard | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, done: Callable[[Heard], Any]) -> Heard:
        """Send it; what is heard can be looked at while it comes."""
        self._parser = httptools.HttpResponseParser(self)
        self._done, self._streams, self._said_done = done, False, False
        self._heard = heard = Heard(time.monotonic())
        self._transport.write(request)
        return heard

    async def asked(self, request: bytes) -> Heard:
        """The same, waited for."""
        future: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self.ask(request, lambda heard: None if future.done() else future.set_result(heard))
        return await future

    def leave(self) -> None:
        """Close at once, as a client that is killed."""
        self.open = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        heard = self._heard
        if heard is None:
            return
        if not heard.first and _TEXT.search(data):
            heard.first = time.monotonic()
            if stamp := _STAMP.search(data):
                heard.reached = float(stamp[1])
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end()

    # ---- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._streams = value.startswith(b"text/event-stream")
        elif name == b"x-headgate-place" and self._heard is not None:
            self._heard.place = value.decode("ascii", "replace")
        elif name == b"x-request-id" and self._heard is not None:
            self._heard.request = value.decode("ascii", "replace")

    def on_headers_complete(self) -> None:
        if self._heard is not None:
            self._heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._heard is None:
            return
        self._heard.texts += 1
        if self._streams:
            self._said_done = self._said_done or b"[DONE]" in body
            if _REFUSED in body:
                self._heard.status = 0

    def on_message_complete(self) -> None:
        if self._heard is not None and self._parser.get_status_code() >= 200:
            self._heard.whole = self._said_done or not self._streams
            self.open = self.open and self._parser.should_keep_alive()
            if not self.open:
                self._transport.close()
            self._end()

    def _end(self) -> None:
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.ended = time.monotonic()
            self._done(heard)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without garbage collection, whose pauses would look like the server's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def closed(where: Sequence[Place], connections: int, times: int, spread_s: float = 0.0) -> list[Heard]:
    """Ask `times` times on each connection, the places in turn; `spread_s`: wait up to so long before each request."""
    found: list[Heard] = []
    source = random.Random(1)

    async def one(which: int) -> None:
        wire = await where[0].connect()
        for turn in range(times):
            # Without it all streams would start in step: as long as each other, they would stay so.
            if spread_s:
                await asyncio.sleep(source.uniform(0, spread_s))
            wire = wire if wire.open else await where[0].connect()
            found.append(await wire.asked(where[(which * times + turn) % len(where)].request))
        wire.leave()

    with undisturbed():
        await asyncio.gather(*(one(which) for which in range(connections)))
    return found


async def keep_asking(where: Sequence[Place], connections: int, seconds: float) -> list[Heard]:
    """Ask over and over for so many seconds; requests under way at the end are finished and counted."""
    found: list[Heard] = []
    until, numbers = time.monotonic() + seconds, iter(range(1 << 62))

    async def one() -> None:
        wire = await where[0].connect()
        while time.monotonic() < until:
            wire = wire if wire.open else await where[0].connect()
            found.append(await wire.asked(where[next(numbers) % len(where)].request))
            if not found[-1].good:
                await asyncio.sleep(0.05)  # a server that refuses is not to be asked a thousand times a second
        wire.leave()

    with undisturbed():
        await asyncio.gather(*(one() for _ in range(connections)))
    return found


@contextlib.asynccontextmanager
async def held(where: Place, count: int, at_once: int = 25, patience_s: float = 60.0) -> AsyncIterator[list[Heard]]:
    """`count` streams that have begun and are not read to their end; `at_once` are opened together."""
    wires: list[Wire] = []
    heard: list[Heard] = []
    try:
        while len(wires) < count:
            some = await asyncio.gather(*(where.connect() for _ in range(min(at_once, count - len(wires)))))
            wires += some
            heard += [wire.ask(where.request, lambda _: None) for wire in some]
            async with asyncio.timeout(patience_s):
                while not all(h.first or h.ended for h in heard[-len(some) :]):
                    await asyncio.sleep(0.005)
        yield heard
    finally:
        for wire in wires:
            wire.leave()
        await asyncio.sleep(0.05)
