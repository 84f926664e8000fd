"""One answer of an upstream: its head, and its body as it arrives.

Knows nothing of framing or deadlines; the connection fills it, the reader empties it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from router.upstream.address import Kind, UpstreamError


class Socket(Protocol):
    """What an answer needs of the connection it comes over."""

    loop: asyncio.AbstractEventLoop

    def fail(self, kind: Kind, message: str) -> None: ...
    def resume(self) -> None: ...


class Response:
    """One answer whose head has arrived. Take the body with `read` or `chunks`, and end with `close`."""

    __slots__ = ("_body_bytes", "_parts", "_waiter", "error", "headers", "held", "socket", "status")

    def __init__(self, socket: Socket, body_bytes: int) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: dict[str, str] = {}
        """By lower-case name; the last of several wins."""
        self.held = 0
        """Bytes that wait for the reader."""
        self.socket: Socket | None = socket
        """None once the answer has ended, well or not."""
        self.error: UpstreamError | None = None
        """Why it ended before its end."""
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
            taken.append(self._take())
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
        return self._take()

    def close(self) -> None:
        """End it: the socket of an answer that has not wholly arrived is aborted, any other is in the pool already."""
        if self.socket is not None:
            self.socket.fail("closed", "the answer was closed before its end")

    def _take(self) -> bytes:
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.held = 0
        if self.socket is not None:
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
        self._parts.append(part)
        self.held += len(part)

    def end(self, error: UpstreamError | None) -> None:
        """Nothing more will come: the answer is whole, or this went wrong."""
        self.socket = None
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
