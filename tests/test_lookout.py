"""The hook that keeps tests on this machine sees what it must."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import pytest

from tests import lookout
from tests.lookout import LOOKOUT, Strayed

OUTSIDE = "192.0.2.7"
"""An address of the documentation."""


@pytest.fixture(autouse=True)
def forgiven() -> object:
    """What is tried here on purpose fails no test."""
    yield
    LOOKOUT.strays.clear()


def test_a_connection_that_leaves_this_machine_is_stopped_and_noted() -> None:
    with socket.socket() as tried, pytest.raises(Strayed):
        tried.connect((OUTSIDE, 80))
    with socket.socket() as tried, pytest.raises(Strayed):
        tried.connect_ex((OUTSIDE, 80))
    with socket.socket(type=socket.SOCK_DGRAM) as tried, pytest.raises(Strayed):
        tried.sendto(b"x", (OUTSIDE, 53))
    assert len(LOOKOUT.strays) == 3


def test_a_name_is_not_even_looked_up() -> None:
    for look in (socket.gethostbyname, lambda name: socket.getaddrinfo(name, 80)):
        with pytest.raises(Strayed):
            look("hub.example")
    assert len(LOOKOUT.strays) == 2


def test_another_thread_is_seen_too() -> None:
    def stray() -> None:
        with contextlib.suppress(Strayed):
            socket.create_connection((OUTSIDE, 80), 1)

    thread = threading.Thread(target=stray)
    thread.start()
    thread.join()
    assert LOOKOUT.strays


@pytest.mark.parametrize("make", [asyncio.new_event_loop, lookout.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("host", [OUTSIDE, "hub.example"])
def test_both_event_loops_are_watched(make: object, host: str) -> None:
    loop = make()  # type: ignore[operator]
    try:
        with pytest.raises(Strayed):
            loop.run_until_complete(loop.create_connection(asyncio.Protocol, host, 80))
        with pytest.raises(Strayed):
            loop.run_until_complete(loop.getaddrinfo(host if host != OUTSIDE else "other.example", 80))
    finally:
        loop.close()


def test_this_machine_may_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
    socket.getaddrinfo("localhost", 80)
    assert not LOOKOUT.strays


@pytest.mark.reaches("hub.example")
def test_what_a_test_names_may_be_reached() -> None:
    LOOKOUT.ask("hub.example", "here")
    with pytest.raises(Strayed):
        LOOKOUT.ask("other.example", "here")
