"""The way out to one client: how far it is behind, whether it still takes anything, whether it is still there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from router.api.exchange import Exchange
from router.api.timer import NEVER, Timer

HIGH_WATER = 64 * 1024
"""Bytes that may wait for a client to take them; then the upstream is read no further until most are gone."""
KERNEL_BYTES = 128 * 1024
"""And in the kernel (which doubles it): left alone that grows to megabytes for a client that reads slowly, and one that
reads on would seem to take nothing for as long as it lives on them."""
LOOKS = 4
"""How often a client that is behind is looked at within the time it has."""
PROBE_S, MOST_PROBE_S, PING_S = 0.02, 1.0, 15.0


class Outlet:
    """Writes to one client. `keep` is whether another request may follow on the connection."""

    __slots__ = ("_keep_alive_s", "_looked", "_now", "_timer", "_transport", "_write_timeout_s", "_written", "keep",
                 "paused", "resumes", "sent_at")  # fmt: skip

    def __init__(self, transport: asyncio.Transport, timer: Timer, write_timeout_s: float, keep_alive_s: float) -> None:
        self._transport, self._timer, self._now = transport, timer, timer.now
        self._write_timeout_s, self._keep_alive_s = write_timeout_s, keep_alive_s
        self.keep, self.paused, self.sent_at = True, False, 0.0
        self._written = 0
        self.resumes: Callable[[], None] | None = None
        self._looked: tuple[int, float] | None = None
        """Bytes the client had taken when it was first seen to be behind with them, and when that was."""
        transport.set_write_buffer_limits(high=HIGH_WATER)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)

    def write(self, data: bytes) -> None:
        """Send, now or as the client takes it."""
        transport = self._transport
        if transport.is_closing():  # it was let go, and whoever answers has not heard yet
            return
        self._written += len(data)
        self.sent_at = self._now()
        transport.write(data)

    def pause(self) -> None:
        """The client is behind."""
        self.paused = True
        self._looked = (self._taken(), self._now())
        self._timer.by(self._looked[1] + self._write_timeout_s / LOOKS)

    def resume(self) -> None:
        """It has caught up."""
        self.paused, self._looked = False, None
        if self.resumes is not None:
            self.resumes()

    def watch(self) -> None:
        """Something is to be written at the latest when the keep-alive time is over."""
        self.sent_at = self._now()
        self._timer.by(self.sent_at + self._keep_alive_s)

    def behind(self, now: float) -> float | None:
        """When to look again at a client that has not taken everything; NEVER once it was let go, None if it has."""
        if not self._transport.get_write_buffer_size():
            self._looked = None
            return None
        taken = self._taken()
        if self._looked is None or taken > self._looked[0]:
            self._looked = taken, now
        elif now - self._looked[1] >= self._write_timeout_s:
            self._transport.abort()
            return NEVER
        return now + self._write_timeout_s / LOOKS

    def _taken(self) -> int:
        return self._written - self._transport.get_write_buffer_size()


class HalfClosed:
    """A client that sends no more: it may have ended its side alone and wait for the answer, or have gone.

    On the wire both look the same until something is sent: a client that has gone refuses it. So after a moment, in
    which most answers are done anyway, something is sent that means nothing to one that waits.
    """

    def __init__(self, transport: asyncio.Transport, exchange: Exchange) -> None:
        self._transport, self._exchange = transport, exchange
        self._loop = asyncio.get_running_loop()
        self._pinged, self._wait_s = -PING_S, PROBE_S / 4
        self._next = self._loop.call_later(PROBE_S, self._probe)

    def _probe(self) -> None:
        if self._transport.is_closing():
            return
        if self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
            return
        if (now := self._loop.time()) - self._pinged >= PING_S:
            self._pinged = now
            self._exchange.ping()
        self._next = self._loop.call_later(self._wait_s, self._probe)
        self._wait_s = min(2 * self._wait_s, MOST_PROBE_S)

    def cancel(self) -> None:
        """Stop asking: it was answered, or the connection is gone."""
        self._next.cancel()
