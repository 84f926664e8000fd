"""A caller's end of one connection: it sends exactly these bytes, reads when it likes, and leaves as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType

from tests.faults import wire
from tests.faults.conftest import FaultHouse
from tests.faults.wire import Outcome


class Line:
    """One connection to the router of a house. `async with Line(house) as line:`"""

    def __init__(self, house: FaultHouse, *, receive: int | None = None) -> None:
        self._house, self._receive = house, receive
        """`receive`: bytes the kernel may hold for it, for one that reads slowly."""

    async def __aenter__(self) -> Line:
        sock = socket.socket()
        sock.setblocking(False)
        if self._receive is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._house.port))
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2**20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.leave()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Send these bytes. A router that has ended the connection meanwhile is found by reading."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, within_s: float = 20.0) -> Outcome:
        """The next answer, read strictly."""
        async with asyncio.timeout(within_s):
            found = await wire.read(self.reader)
        self._house.outcomes.append(found)
        return found

    async def until(self, part: bytes, within_s: float = 20.0) -> bytes:
        """What comes up to this part, and that."""
        async with asyncio.timeout(within_s):
            return await self.reader.readuntil(part)

    async def ended(self, within_s: float = 10.0) -> bytes:
        """Wait until the router ends the connection; returns what came before."""
        came = b""
        async with asyncio.timeout(within_s):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(65_536):
                    came += part
        return came

    def stop_reading(self) -> None:
        """Leave what comes in the kernel, until that is full as well."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def go_on_reading(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def end_sending(self) -> None:
        """Half-close: nothing more will be sent, and the answer is still read."""
        self.writer.write_eof()

    def leave(self, *, reset: bool = False) -> None:
        """Go away; with a reset if asked for."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
