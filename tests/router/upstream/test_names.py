"""Names of servers: looked up beside the requests, kept while they cannot be, and never a way out of the site."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.upstream import connection, names
from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from router.upstream.inside import Inside
from router.upstream.names import Names
from tests.fakes.faults import Upstream, completion
from tests.fakes.serving import CATALOGUE

NAME = "gpu-1.internal"


class Server:
    """A name server that answers as it is told."""

    def __init__(self, *answers: str) -> None:
        self.answers: list[str] | None = list(answers)
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def lookup(self, host: str, port: int) -> list[Any]:
        self.asked += 1
        await self.gate.wait()
        if self.answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in self.answers]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as made:
        yield made


async def asked(client: Connections, upstream: Upstream) -> bytes:
    return await (await client.post(Address.parse(f"http://{NAME}:{upstream.port}"), "/x", [], b"{}")).read()


def client(server: Server, **more: Any) -> Connections:
    return Connections(Deadlines(connect_s=1.0), Bounds(), names=Names(server.lookup), **more)


async def test_a_name_is_looked_up_once_and_by_all_together(upstream: Upstream) -> None:
    server = Server("127.0.0.1")
    made = client(server, idle_per_address=0)
    assert set(await asyncio.gather(*(asked(made, upstream) for _ in range(10)))) == {completion().encode()}
    assert (server.asked, upstream.accepted) == (1, 10)
    await made.close()


async def test_a_name_that_is_lost_keeps_its_last_address_and_nobody_waits_for_it(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "FRESH_S", 0.0)
    server = Server("127.0.0.1")
    made = client(server, idle_per_address=0)
    await asked(made, upstream)
    server.gate.clear()
    await asked(made, upstream)  # the name server hangs
    server.answers = None
    server.gate.set()
    for _ in range(3):
        assert await asked(made, upstream) == completion().encode()
    assert server.asked > 2
    await made.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_name_that_was_never_known_is_an_error_in_time(upstream: Upstream, hangs: bool) -> None:
    server = Server()
    server.answers = None
    made = Connections(Deadlines(connect_s=0.05), Bounds(), names=Names(server.lookup))
    if hangs:
        server.gate.clear()
    with pytest.raises(UpstreamError) as told:
        await asked(made, upstream)
    assert told.value.kind == ("connect_timeout" if hangs else "refused")
    await made.close()


@pytest.mark.parametrize("answers", [["8.8.8.8"], ["127.0.0.1", "2001:4860:4860::8888"]])
async def test_a_name_that_leads_to_a_public_address_is_not_connected_to(
    upstream: Upstream, answers: list[str]
) -> None:
    made = client(Server(*answers), outside=Inside(CATALOGUE).outside)
    with pytest.raises(UpstreamError) as told:
        await asked(made, upstream)
    assert (told.value.kind, upstream.accepted) == ("outside", 0)
    await made.close()


async def test_what_it_is_connected_to_is_asked_again(upstream: Upstream) -> None:
    """A connection that was led elsewhere below the name."""
    seen: list[str] = []

    def second_time(ip: str) -> bool:
        seen.append(ip)
        return len(seen) > 1

    made = client(Server("127.0.0.1"), outside=second_time)
    with pytest.raises(UpstreamError) as told:
        await asked(made, upstream)
    assert (told.value.kind, seen, upstream.requests) == ("outside", ["127.0.0.1"] * 2, [])
    await made.close()


@pytest.mark.parametrize(
    ("ip", "out"),
    [("10.1.2.3", False), ("127.0.0.1", False), ("192.168.0.9", False), ("fd00::1", False), ("::1", False),
     ("fe80::1%eth0", False), ("100.64.0.1", True), ("169.254.169.254", True), ("0.0.0.0", True), ("2001::1", True),
     ("2002:a00:1::1", True), ("64:ff9b::a00:1", True), ("224.0.0.1", True), ("192.0.2.1", True),
     ("::ffff:10.0.0.1", False), ("8.8.8.8", True), ("2001:4860:4860::8888", True), ("::ffff:8.8.8.8", True),
     ("nonsense", True)],
)  # fmt: skip
def test_which_addresses_are_of_this_site(ip: str, out: bool) -> None:
    assert Inside(CATALOGUE).outside(ip) is out


async def test_an_address_without_a_route_costs_a_head_start(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address never answers; the second is tried soon after, and nothing of the first is left."""
    monkeypatch.setattr(connection, "HEAD_START_S", 0.02)
    with socket.socket(socket.AF_INET6) as full:
        full.bind(("::1", upstream.port))
        full.listen(0)
        waiting = [socket.socket(socket.AF_INET6) for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("::1", upstream.port))
        made = client(Server("::1", "127.0.0.1"))
        assert await asked(made, upstream) == completion().encode()
        await made.close()
        for one in waiting:
            one.close()


async def test_an_address_that_refuses_costs_nothing(upstream: Upstream) -> None:
    made = client(Server("::1", "127.0.0.1"))
    assert await asked(made, upstream) == completion().encode()
    await made.close()
    server = Server("::1", "127.0.0.2")
    made = client(server)
    with pytest.raises(UpstreamError) as told:
        await asked(made, upstream)
    assert told.value.kind == "refused"
    await made.close()


async def test_the_two_families_take_turns() -> None:
    server = Server("::1", "::2", "10.0.0.1", "::1", "10.0.0.2")
    assert await Names(server.lookup).addresses(NAME, 80) == ("::1", "10.0.0.1", "::2", "10.0.0.2")
    assert await Names(server.lookup).addresses("10.9.9.9", 80) == ("10.9.9.9",)
    assert server.asked == 1
