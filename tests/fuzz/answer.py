"""Fuzz target: what an upstream answers, fed to the client's connection over a wire that is not there.

However the bytes were cut, and whether it is read whole or passed on piece by piece as a stream is, the same answer
comes out of them or none does, and nothing but an UpstreamError ends it.
The first two bytes say where to cut, the rest is what the upstream sends before it closes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from tests.fuzz.cuts import cuts

ADDRESS = Address("unix", "", 0, "/engine.sock")
CHUNKS = re.compile(rb"(?<=\r\n)(?=[0-9a-f]{1,4}\r\n)")
"""Where a chunk begins: a stream's come whole, each in a piece of its own, and are not shown to the parser then."""
KINDS = frozenset({"bad_response", "too_large", "closed", "reset"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a caller of `post` gets: an answer, or the kind of failure."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    failed: str = ""


class Wire(asyncio.Transport):
    """A socket that takes everything and tells nobody."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol, self.closed = protocol, False

    def write(self, data: Any) -> None: ...
    def writelines(self, list_of_data: Any) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    close = abort


class Loop(asyncio.SelectorEventLoop):
    """A loop whose Unix sockets are `Wire`s."""

    wire: Wire | None = None

    async def create_unix_connection(self, protocol_factory: Callable[[], Any], path: Any = None, **_: Any) -> Any:  # type: ignore[override]
        protocol = protocol_factory()
        self.wire = Wire(protocol)
        protocol.connection_made(self.wire)
        return self.wire, protocol


async def ask(loop: Loop, pieces: list[bytes], *, stream: bool) -> tuple[Outcome, bool]:
    """The outcome of an exchange in which these pieces arrive, and whether all of them were looked at."""
    connections = Connections(Deadlines(), Bounds())
    task = asyncio.ensure_future(_read(connections, stream=stream))
    loop.wire = None
    while loop.wire is None:
        await asyncio.sleep(0)
    wire, whole = loop.wire, True
    await asyncio.sleep(0)
    for piece in pieces:
        if wire.closed or task.done():
            whole = False
            break
        wire.protocol.data_received(piece)
        for _ in range(3):  # let whoever waits take what there is
            await asyncio.sleep(0)
    if not wire.closed:
        wire.protocol.eof_received()
        wire.abort()
    try:
        return await task, whole
    finally:
        await connections.close()


async def _read(connections: Connections, *, stream: bool) -> Outcome:
    try:
        response = await connections.post(ADDRESS, "/v1/x", (), b"{}", stream=stream)
        passed: list[bytes] = []
        if stream:
            await response.forward(passed.append)
        body = b"".join(passed) if stream else await response.read()
    except UpstreamError as failed:
        assert failed.kind in KINDS, failed.kind
        return Outcome(failed=failed.kind)
    assert response.status >= 200, response.status
    assert not any(c in value for value in response.headers.values() for c in "\r\n\0"), response.headers
    return Outcome(response.status, tuple(response.headers.items()), body)


def check(data: bytes) -> None:
    """Raises AssertionError where the cuts decide what was answered."""
    if len(data) < 2:
        return
    loop = Loop()
    try:
        outcomes = [
            loop.run_until_complete(ask(loop, [p for p in pieces if p], stream=stream))
            for pieces in (*cuts(data[2:], data[0], data[1]), CHUNKS.split(data[2:])) for stream in (False, True)
        ]  # fmt: skip
    finally:
        loop.close()
    if all(whole for _, whole in outcomes):
        kinds = {outcome if not outcome.failed else "failed" for outcome, _ in outcomes}
        assert len(kinds) == 1, outcomes


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("answer")
