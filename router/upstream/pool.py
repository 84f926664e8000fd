"""The connections of one address: which are free, how many exchanges may run at once, and who waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import deque

from router.upstream.address import Address
from router.upstream.wire import Wire

CONNECTING = 64
"""Connections that are being opened to one address at once; more wait, so that a dead address piles up nothing."""
MOST_HEADS = 64
"""Kinds of requests whose first lines are remembered."""
_PATH = re.compile(r"/[!-~]*")


class Slots:
    """How many exchanges may run at once; the others wait in line. asyncio's semaphore costs several times as much."""

    def __init__(self, most: int) -> None:
        self.left = most
        """Free ones: there is a line only where there are none."""
        self.line: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take one if one is free."""
        if not self.left:
            return False
        self.left -= 1
        return True

    async def turn(self) -> None:
        """Wait in line and take one."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.cancelled():
                with contextlib.suppress(ValueError):  # looked at meanwhile, and passed over
                    self.line.remove(mine)
            else:  # given and cancelled in the same moment
                self.give()
            raise

    def give(self) -> None:
        """Give one back: to the first in line, if there is one."""
        while self.line:
            first = self.line.popleft()
            if not first.done():
                first.set_result(None)
                return
        self.left += 1


class Pool:
    """The connections of one address."""

    def __init__(self, address: Address, most: int, idle_most: int) -> None:
        self.address = address
        self.tcp = address.scheme != "unix"
        self.slots = Slots(most)  # one per exchange; idle connections hold none
        self.connecting = asyncio.Semaphore(CONNECTING)
        self.idle: list[Wire] = []  # used from the end, so that spare ones age and are closed by the peer
        self.open: set[Wire] = set()
        self.heads: dict[tuple[str, str], bytes] = {}
        """By method and path, the request up to the first header that varies."""
        self._idle_most = idle_most
        self.tls: ssl.SSLContext | None = None
        if address.scheme == "https":
            self.tls = ssl.create_default_context(cafile=address.ca_file or None)
            self.tls.set_alpn_protocols(["http/1.1"])

    def head(self, method: str, path: str) -> bytes:
        """The first lines of a request. Raises ValueError for a path that cannot be sent."""
        known = self.heads.get((method, path))
        if known is None:
            if not _PATH.fullmatch(path):
                raise ValueError("the path must begin with / and hold only visible ASCII")
            lines = f"{method} {path} HTTP/1.1\r\nhost: {self.address.authority}\r\naccept-encoding: identity\r\n"
            known = lines.encode("latin-1")
            if len(self.heads) < MOST_HEADS:
                self.heads[method, path] = known
        return known

    def again(self) -> Wire | None:
        """An idle connection with a slot; None where there is none. The end of the exchange gives the slot back."""
        while self.idle and self.slots.take():
            wire = self.idle.pop()
            if wire.usable:
                return wire
            self.slots.give()
        return None

    # ---- what its sockets tell

    def made(self, wire: Wire) -> None:
        self.open.add(wire)

    def lost(self, wire: Wire) -> None:
        self.open.discard(wire)

    def spoiled(self, wire: Wire) -> None:
        if wire in self.idle:
            self.idle.remove(wire)

    def free(self, wire: Wire) -> bool:
        """It can carry another request; False where there are enough."""
        if len(self.idle) >= self._idle_most:
            return False
        self.idle.append(wire)
        return True

    def ended(self) -> None:
        self.slots.give()
