"""The door as a process of its own: how it starts, stops and dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import yaml

from router.door.book import verify
from serving import catalogue

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def start(house: Any) -> AsyncIterator[Start]:
    """Starts `python -m router.door` on the house's folder; what still runs at the end is killed."""
    started: list[asyncio.subprocess.Process] = []
    site = house.root / "headgate.yaml"
    models = {model.pop("name"): model for model in house.models}
    site.write_text(yaml.safe_dump({"providers": house.providers, "models": models}))
    house.catalogue = catalogue.load(site)

    async def go(*arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.door", "--config", str(site), *arguments,
            stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **house.environ, "HEADGATE_HOME": str(house.home.root)},
        )  # fmt: skip
        started.append(process)
        return process

    yield go
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_kill_9_in_the_middle_leaves_the_sending_in_the_book(house: Any, far: Any, start: Start) -> None:
    reached = asyncio.Event()

    async def never(writer: asyncio.StreamWriter) -> None:
        reached.set()
        await asyncio.Event().wait()

    far.reply = never
    process = await start()
    await house.up()
    sending = asyncio.create_task(house.send())
    await asyncio.wait_for(reached.wait(), 10)
    process.kill()
    await process.wait()
    with pytest.raises(aiohttp.ClientConnectionError):
        await sending
    assert [entry["kind"] for entry in house.book()] == ["opened", "sending"]
    assert verify(house.home.book) == []
    # The dead door's socket and lock are in nobody's way.
    again = await start()
    old = house.instance
    await house.up()
    assert house.instance != old and again.returncode is None


async def test_a_second_door_does_not_start_and_the_first_goes_on(house: Any, start: Start) -> None:
    await start()
    await house.up()
    second = await start()
    _, said = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode == 2
    assert said.decode().count("\n") == 1 and b"another door" in said
    assert (await house.status())["instance"] == house.instance


async def test_sigterm_lets_an_answer_under_way_end(house: Any, far: Any, start: Start) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def later(writer: asyncio.StreamWriter) -> None:
        reached.set()
        await go_on.wait()
        await far.answer(writer)

    far.reply = later
    process = await start()
    await house.up()
    sending = asyncio.create_task(house.send())
    await asyncio.wait_for(reached.wait(), 10)
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    go_on.set()
    assert (await sending)[0] == 200
    _, said = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0, said
    assert [entry["kind"] for entry in house.book()] == ["opened", "sending", "ended"]
    assert house.key.encode() not in said and b"hello" not in said
    assert not house.home.socket("door").exists()


async def test_the_end_of_the_parent_is_the_end_of_the_door(house: Any, start: Start) -> None:
    process = await start("--parent-pipe")
    await house.up()
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_wrong_setting_is_one_sentence_and_exit_code_2(house: Any, start: Start) -> None:
    (house.root / "headgate.yaml").write_text("providers:\n  far: {colour: red}\n")
    process = await start()
    _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().count("\n") == 1 and b"headgate.yaml:2" in said
