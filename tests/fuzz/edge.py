"""Fuzz target: a caller's connection, fed over a wire that is not there. However its bytes were cut, it says the same.

The first two bytes say where to cut; the rest is what a caller sends before it half-closes. Behind the connection is a
handler that answers with what it was given, so that a body taken for a request, or the other way round, shows.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Any

from router.api.edge import Edge
from router.api.exchange import Exchange
from router.api.heads import check_body
from router.api.protocol import Connection
from router.api.shedding import Load
from router.errors import HeadgateError, NotFound, WrongMethod
from router.ledger.rates import Rates
from serving.catalogue import RouterSettings
from tests.fuzz.cuts import cuts

LIMIT = 200
ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[a-z0-9-]+: [^\r\n]*\r\n)*)\r\n")


class Echo:
    """Answers every path below /v1/ with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, bytes]] = []

    def accept(self, exchange: Exchange) -> int:
        if not exchange.head.path.startswith(b"/v1/"):
            raise NotFound("There is nothing here.")
        if exchange.head.method != "POST":
            raise WrongMethod("Use POST.")
        check_body(exchange.head, LIMIT)
        return LIMIT

    def refuse(self, exchange: Exchange, error: HeadgateError) -> None: ...

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        self.asked.append((exchange.head.method, exchange.head.path, body))
        exchange.whole(200, b"content-type: text/plain\r\n", hashlib.sha256(body).hexdigest().encode())


class Wire(asyncio.Transport):
    """A socket that keeps what is written."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection, self.written, self.ended, self.gone = connection, b"", False, False

    def write(self, data: Any) -> None:
        assert not self.ended, "written after the end"
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return self.gone

    def close(self) -> None:
        if not self.gone:
            self.ended = self.gone = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close


async def say(pieces: list[bytes]) -> tuple[list[tuple[str, bytes, bytes]], list[tuple[int, bytes]]]:
    """What the handler was asked, and what was answered, when these pieces arrive."""
    echo = Echo()
    edge = Edge(RouterSettings(), echo, echo, Rates(), Load(100, 0), lambda _: None)
    connections: set[Any] = set()
    connection = Connection(edge, connections, set())
    wire = Wire(connection)
    connection.connection_made(wire)
    for piece in pieces:
        if wire.ended:
            break
        connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    wire.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not connections, "the connection is still counted"
    assert edge.load.open == 0, "a request is still counted"
    return echo.asked, answers(wire.written)


def answers(written: bytes) -> list[tuple[int, bytes]]:
    """The answers on the wire, each by its status and body; AssertionError where they are not well formed."""
    found, at = [], 0
    while at < len(written):
        if written.startswith(b"HTTP/1.1 100 Continue\r\n\r\n", at):
            at += 25
            continue
        head = ANSWER.match(written, at)
        assert head, written[at : at + 200]
        length = re.findall(rb"content-length: (\d+)\r\n", head[2])
        assert len(length) == 1, head[2]
        at = head.end()
        body = written[at : at + int(length[0])]
        if written.startswith(b"HTTP/1.1 ", at) or len(body) < int(length[0]):
            body = b""  # the answer to HEAD
        at += len(body)
        found.append((int(head[1]), body))
    return found


def check(data: bytes) -> None:
    """Raises AssertionError where the cuts decide what is asked or answered."""
    if len(data) < 2:
        return
    loop = asyncio.new_event_loop()
    try:
        ways = [loop.run_until_complete(say([p for p in pieces if p])) for pieces in cuts(data[2:], data[0], data[1])]
    finally:
        loop.close()
    # After a refusal the rest is read on only where all of the refused body is here already, so one may say more.
    for asked, answered in ways[1:]:
        assert alike(asked, ways[0][0]) and alike(kinds(answered), kinds(ways[0][1])), ways
        assert bool(answered) == bool(ways[0][1]), ways


def kinds(answered: list[tuple[int, bytes]]) -> list[int]:
    """Answered or refused; which of two reasons is seen first may depend on the cuts."""
    return [min(status, 400) for status, _ in answered]


def alike(one: list[Any], other: list[Any]) -> bool:
    """Whether one is how the other begins."""
    shorter, longer = sorted((one, other), key=len)
    return longer[: len(shorter)] == shorter


if __name__ == "__main__":
    from tests.fuzz.driver import drive

    drive("edge")
