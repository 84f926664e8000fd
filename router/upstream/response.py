"""One answer of an upstream: its head, and its body as it arrives.

Knows nothing of framing; the connection fills it, the reader empties it, and both write down how far it has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from router.upstream.address import Deadlines, Kind, UpstreamError

LITTLE = 64
"""Bytes of a body which are too few to count as progress: whoever sends one at a time is as good as silent."""
HELD = 0.1
"""The part of its time in which an answer was not read, from which on its lateness is no fault upstream."""
NEVER = float("inf")
AGAIN_S = 10.0
"""After how many seconds a stream that is late, and could go nowhere else, is looked at again."""


class Socket(Protocol):
    """What an answer needs of the connection it comes over."""

    loop: asyncio.AbstractEventLoop

    def fail(self, kind: Kind, message: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def hurry(self) -> None: ...


class Progress:
    """How far an answer has come, for its deadlines. Times are those of the event loop."""

    __slots__ = (
        "by_event", "elsewhere", "end_at", "flowing", "heard_at", "held_s", "little", "patient", "sent_at", "token_at",
    )  # fmt: skip

    def __init__(
        self, now: float, started: float, deadlines: Deadlines, *, by_event: bool,
        elsewhere: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        self.sent_at = self.heard_at = now
        self.end_at = started + deadlines.total_s
        self.token_at = NEVER if elsewhere is None else now + deadlines.first_token_s
        """When the first token is due; NEVER where nobody else would be asked for it."""
        self.elsewhere = elsewhere
        """Whether somebody else can be asked now. Where nobody can, a late token is waited for."""
        self.by_event = by_event
        """Whether the reader says what is progress; else some bytes are."""
        self.flowing = False
        """Whether something of the body has come; of a stream, its head."""
        self.patient = False
        """Whether a stream has begun and no delta has come: the engine works, so silence is no sign of anything."""
        self.little = 0
        self.held_s = 0.0
        """For how long it was not read, since whoever takes it was not ready."""

    def held(self, since: float, now: float) -> None:
        """It was not read meanwhile: that silence is nobody's fault upstream."""
        self.held_s += now - since
        self.heard_at = now

    def begun(self, *, well: bool) -> None:
        """The head has come. `well`: with status 200; any other answer is no stream, whatever was asked for."""
        self.by_event = self.by_event and well
        # Before its first event a server may queue, read a long prompt or think for long. Whether it is waited for then
        # is for the deadline of the first token to say: it alone knows whether somebody else can be asked.
        self.flowing = self.patient = self.by_event

    def delta(self, now: float) -> None:
        """A stream's first delta has come: from here on silence counts."""
        self.token_at, self.patient, self.heard_at = NEVER, False, now

    def body(self, size: int, now: float) -> None:
        """Bytes of the body have come."""
        if not self.flowing:
            self.flowing = True
            self.heard_at = now
        elif not self.by_event:
            self.little += size
            if self.little >= LITTLE:
                self.little = 0
                self.heard_at = now

    def overdue(self, now: float, deadlines: Deadlines) -> tuple[Kind, str] | None:
        """Which deadline has passed, and how that is said; None where none has."""
        if now >= self.end_at:
            if self.held_s >= HELD * deadlines.total_s:
                return "unread", f"the answer was not taken whole within {deadlines.total_s:g} s"
            kind: Kind = "idle_timeout" if self.flowing else "first_byte_timeout"
            return kind, f"the answer was not complete after {deadlines.total_s:g} s"
        if now >= self.token_at:
            if self.elsewhere is not None and self.elsewhere():
                return "first_token_timeout", f"no first token within {deadlines.first_token_s:g} s"
            self.token_at = NEVER if self.elsewhere is None else now + AGAIN_S
        if not self.flowing:
            if now >= self.sent_at + deadlines.first_byte_s:
                return "first_byte_timeout", f"no answer within {deadlines.first_byte_s:g} s"
        elif not self.patient and now >= self.heard_at + deadlines.idle_s:
            return "idle_timeout", f"nothing more came for {deadlines.idle_s:g} s"
        return None

    def next_look(self, now: float, deadlines: Deadlines) -> float:
        """When to look again, at the latest. Later than `now`, where nothing is overdue then."""
        if self.flowing and not self.patient:
            return min(self.end_at, self.token_at, self.heard_at + deadlines.idle_s)
        # A first byte may come meanwhile, and be the last one.
        first = NEVER if self.patient else self.sent_at + deadlines.first_byte_s
        return min(self.end_at, self.token_at, first, now + deadlines.idle_s)


class Response:
    """One answer whose head has arrived. Take the body with `read`, `chunks` or `forward`, and end with `close`."""

    __slots__ = (
        "_body_bytes", "_parts", "_waiter", "error", "headers", "held", "progress", "sink", "socket", "status",
        "whole",
    )  # fmt: skip

    def __init__(self, socket: Socket, body_bytes: int, progress: Progress, *, whole: bool) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: dict[str, str] = {}
        """By lower-case name; the last of several wins."""
        self.held = 0
        """Bytes that wait for the reader."""
        self.whole = whole
        """Whether its reader wants nothing before the end; only an answer with status 200 is waited for so."""
        self.socket: Socket | None = socket
        """None once the answer has ended, well or not."""
        self.error: UpstreamError | None = None
        """Why it ended before its end."""
        self.progress = progress
        self.sink: Callable[[bytes], None] | None = None
        """Who is handed each piece of the body as it comes; None where they wait for a reader."""
        self._body_bytes = body_bytes
        self._parts: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """The whole body. Raises UpstreamError; "too_large" beyond `Bounds.body_bytes`."""
        taken: list[bytes] = []
        size = 0
        while True:
            size += self.held
            coming = 0 if self.socket is None else int(self.headers.get("content-length", 0))
            if max(size, coming) > self._body_bytes:
                self.close()
                raise UpstreamError("too_large", f"the answer is larger than {self._body_bytes} bytes")
            taken.append(self.take())
            if self.socket is None:
                break
            await self.wait()
        if self.error is not None:
            raise self.error
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, everything that came since the last look as one piece. Raises UpstreamError."""
        return self

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        while not self.held:
            if self.error is not None:
                raise self.error
            if self.socket is None:
                raise StopAsyncIteration
            await self.wait()
        return self.take()

    async def forward(self, sink: Callable[[bytes], None]) -> None:
        """Hand each piece to `sink` as soon as it is there, until the end. Raises UpstreamError.

        `sink` runs inside the socket's own callback, so it must not raise; it may call `close`, `pause` and `finish`.
        """
        if self.held:
            sink(self.take())
        self.sink = sink
        try:
            while self.socket is not None:
                await self.wait()
        finally:
            self.sink = None
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """End it: the socket of an answer that has not wholly arrived is aborted, any other is in the pool already."""
        if self.socket is not None:
            self.socket.fail("closed", "the answer was closed before its end")

    def finish(self) -> None:
        """All that matters was read: what still belongs to the answer may come within a moment, and is dropped."""
        socket = self.socket
        if socket is not None:
            self._parts.clear()
            self.held = 0
            socket.hurry()
            self.end(None)

    def pause(self) -> None:
        """Whoever takes the pieces of `forward` is not ready for more."""
        if self.socket is not None:
            self.socket.pause()

    def resume(self) -> None:
        """It is again."""
        if self.socket is not None:
            self.socket.resume()

    def take(self) -> bytes:
        """Everything that has come since the last look."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.held = 0
        if self.sink is None and self.socket is not None:
            self.socket.resume()
        return data

    async def wait(self) -> None:
        """Sleep until something happens here. A reader that is cancelled meanwhile takes the socket along."""
        socket = self.socket
        if socket is None:
            return
        self._waiter = socket.loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def add(self, part: bytes) -> None:
        """A piece of the body has come."""
        if self.sink is not None:
            self.sink(part)
            return
        self._parts.append(part)
        self.held += len(part)

    def arrived(self) -> None:
        """Something new is here: let the reader know."""
        if self.sink is None and not (self.whole and self.status == 200):
            self.wake()

    def end(self, error: UpstreamError | None) -> None:
        """Nothing more will come: the answer is whole, or this went wrong."""
        self.socket = None
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
