"""Faults of our own processes: a loop that is held up, descriptors that run out, children that nobody reaps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from router import app
from router.watchdog import Watchdog
from serving.command import Command
from serving.home import Home
from serving.instance import Instance, InstanceError
from tests.conftest import until
from tests.faults.conftest import FaultHouse
from tests.faults.test_upstream import ask

RESPAWNS = 40


async def readiness(house: FaultHouse) -> tuple[int, str]:
    async with house.client.get(f"{house.url}/ready", headers={"connection": "close"}) as answer:
        return answer.status, await answer.text()


def a_bug(seconds: float) -> None:
    """What no code on the loop may do."""
    time.sleep(seconds)


async def test_px_004_a_loop_that_is_held_up_is_told_with_its_place_and_the_router_is_not_ready(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "Watchdog", functools.partial(Watchdog, limit_s=0.3, told_s=1.0))
    await house.start()
    assert (await readiness(house))[0] == 200
    with caplog.at_level(logging.ERROR, "headgate.router"):
        a_bug(1.0)
    told = [one.getMessage() for one in caplog.records if "stood still" in one.getMessage()]
    assert len(told) == 1, "once for each time"
    assert "a_bug (test_process.py:" in told[0]
    status, why = await readiness(house)
    assert status == 503 and "stood still" in why
    end = time.monotonic() + 10
    while (await readiness(house))[0] != 200:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert (await house.tell(ask(), house.key())).status == 200


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """Let this process open only so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    with contextlib.ExitStack() as gaps:
        while (plug := os.dup(0)) < highest:  # numbers that are free below it would be taken too
            gaps.callback(os.close, plug)
        os.close(plug)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(highest, plug - 1) + 1 + more, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ended(one: socket.socket) -> bool:
    """Whether the other side has closed it."""
    try:
        return one.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def rests(turns: int = 20) -> bool:
    """Whether the loop sleeps when it has nothing to do; one that spins never gives its core back by itself."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(turns):
        await asyncio.sleep(0.005)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before > turns / 2


async def test_px_005_without_descriptors_nothing_spins_what_runs_goes_on_and_it_heals(house: FaultHouse) -> None:
    await house.start(router={"keep_alive_s": 5, "header_timeout_s": 10, "idle_timeout_s": 10, "total_timeout_s": 20})
    key = house.key()
    house.local.script = {"stream": ["one ", True, "two"]}
    running = asyncio.create_task(house.tell(ask(stream=True), key))
    await house.local.until(lambda: len(house.local.requests) == 1)
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(socket.socket()) for _ in range(20)]  # the router's ends are of the same process
        with few_descriptors(more=4):
            for one in ours:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", house.port))
            # Who finds no room is told so; for how many there is room is not known, as others' may be closed meanwhile.
            await until(lambda: any(map(ended, ours)))
            assert await rests(), "it tries to accept again and again"
            house.local.gate.set()
            assert (await running).text == "one two"
    house.local.script = {}
    assert (await house.tell(ask(), key)).status == 200


async def test_px_013_children_that_end_leave_no_zombie(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    for _ in range(RESPAWNS):
        engine = Instance("m", Command(("/bin/sh", "-c", "sleep 60 & exit 3"), {}), home, home.installation())
        await engine.start()
        with pytest.raises(InstanceError):
            await engine.ensure_ready(20)
        await engine.stop(0.1)
    left = [one for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]
    assert left == []
