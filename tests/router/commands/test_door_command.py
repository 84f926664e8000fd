"""`door close`, `door open`, `door status`: with no door running, and with a real one."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.commands import checks, door
from router.commands.context import Context
from router.door import book, closing
from router.upstream import fleet
from serving import catalogue
from serving.home import Home, listen_privately
from tests.conftest import House, ask, until
from tests.fakes.command_line import Said
from tests.fakes.faults import Upstream

Say = Callable[..., Said]


def entries(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in home.book.read_text().splitlines()]


def test_without_a_door_it_is_written_down_and_not_said_to_be_closed(home: Home, say: Say) -> None:
    """Nobody was seen to close, so the command does not end well; a door that starts here stays closed."""
    book.open_book(home.book, "").close()  # a door was here
    said = say("door", "close", "--reason", "an audit")
    assert said.code == 1 and "none was seen to close" in said.err and "door status" in said.err
    shut = closing.look(closing.marker(home.book))
    assert shut is not None and (shut.reason, bool(shut.by)) == ("an audit", True)
    assert "an audit" in say("door", "status").out
    assert say("door", "open").code == 0
    assert closing.look(closing.marker(home.book)) is None
    assert [e["kind"] for e in entries(home)] == ["opened"] * 2 + ["door_closed", "opened", "door_opened"]
    assert entries(home)[2]["reason"] == "an audit" and book.verify(home.book) == []


def test_where_no_door_has_been_no_book_is_begun(home: Home, say: Say) -> None:
    """In the router's container: the book lies with the door."""
    assert say("door", "close").code == 1 and say("door", "open").code == 0
    assert not home.book.exists()


def test_a_door_that_does_not_answer_was_not_seen_to_close(
    home: Home, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "WITHIN_S", 0.2)
    with listen_privately(home.socket("door")):
        said = say("door", "close")
    assert said.code == 1 and "was not seen to close" in said.err and "headgate down" in said.err
    assert closing.look(closing.marker(home.book)) is not None, "where it has this file it lets nothing more out"


async def test_a_door_that_goes_on_is_not_said_to_be_closed(home: Home, say: Say) -> None:
    async with Upstream(path=home.socket("door"), script={"body": json.dumps({"open": True})}):
        said = await asyncio.to_thread(say, "door", "close")
    assert said.code == 1 and "says that it is open" in said.err and "headgate down" in said.err


def test_opening_what_nobody_closed_says_so_and_writes_nothing(home: Home, say: Say) -> None:
    assert "had not closed" in say("door", "open").out
    assert say("door", "open", "--json").json() == {"was_closed": False, "door": None}
    assert not home.book.exists()


def test_the_status_without_a_door(home: Home, say: Say) -> None:
    said = say("door", "status")
    assert said.code == 0 and "does not run" in said.out
    assert say("door", "status", "--json").json() == {"running": False, "operator": None, "door": None, "last": []}
    home.book.with_name("closed.json").write_text("?")
    assert "does not run, and is to stay closed: the operator closed it" in say("door", "status").out


async def test_with_a_real_door_callers_are_told_and_local_models_go_on(home: Home, say: Say) -> None:
    async with Upstream() as local, Upstream() as provider:
        house = House(home, local, provider)
        try:
            await house.start(hosted=True)
            key = house.key("public")
            assert (await house.post(ask("big"), key)).status == 200
            left = provider.received.total()
            closed = await asyncio.to_thread(say, "door", "close", "--reason", "an audit")
            assert closed.code == 0, closed.err
            assert (await house.post(ask("small"), key)).status == 200
            for _ in range(2):
                reply = await house.post(ask("big"), key)
                assert (reply.status, reply.error["code"]) == (503, "door_closed")
            assert provider.received.total() == left
            shown = await asyncio.to_thread(say, "door", "status")
            assert "closed: the operator closed it" in shown.out and "self-test passed" in shown.out
            assert "an audit" in shown.out and b"an audit" not in reply.body
            row = (await asyncio.to_thread(say, "door", "status", "--json")).json()["last"][0]
            assert (row["provider"], row["model"], row["data_class"], row["ended"]) == (
                "far",
                "big",
                "public",
                "answered",
            )
            assert (await asyncio.to_thread(say, "door", "open")).code == 0
            reply = await house.post(ask("big"), key)
            while reply.status != 200:  # the router hears of it within a second
                await asyncio.sleep(0.05)
                reply = await house.post(ask("big"), key)
            kinds = [entry["kind"] for entry in entries(home)]
            assert kinds.index("door_closed") < kinds.index("door_opened") and book.verify(home.book) == []
        finally:
            await house.close()


@pytest.fixture
def elsewhere(home: Home) -> Iterator[Home]:
    """The router's container: the sockets are the door's, its folder is another one."""
    root = Path(tempfile.mkdtemp(prefix="hg-"))
    (root / "run").symlink_to(home.run)
    yield Home(root, root / "engines")
    shutil.rmtree(root)


async def test_it_is_closed_from_another_container_and_opened_from_its_own_alone(
    home: Home, elsewhere: Home, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Upstream() as local, Upstream() as provider:
        house = House(home, local, provider)
        try:
            await house.start(hosted=True)
            key = house.key("public")
            assert (await house.post(ask("big"), key)).status == 200
            left = provider.received.total()
            monkeypatch.setenv("HEADGATE_HOME", str(elsewhere.root))
            assert (await asyncio.to_thread(say, "door", "close", "--reason", "an audit")).code == 0
            assert closing.look(closing.marker(elsewhere.book)) is None, "nothing of it is there to be believed"
            assert (await house.post(ask("big"), key)).status == 503 and provider.received.total() == left
            shown = await asyncio.to_thread(say, "door", "status")
            assert "closed: the operator closed it" in shown.out and "an audit" in shown.out
            tried = await asyncio.to_thread(say, "door", "open")
            assert tried.code == 1 and "still closed" in tried.err and "docker compose exec door" in tried.err
            monkeypatch.setenv("HEADGATE_HOME", str(home.root))
            assert (await asyncio.to_thread(say, "door", "open")).code == 0
            (entry,) = [one for one in entries(home) if one["kind"] == "door_closed"]
            assert entry["reason"] == "an audit"
        finally:
            await house.close()


async def test_a_door_that_stands_still_lets_nothing_out_and_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "DOOR_STALE_S", 0.5)
    monkeypatch.setattr(checks, "DOOR_S", 0.2)
    async with Upstream() as local, Upstream() as provider:
        house = House(home, local, provider)

        async def named() -> list[tuple[str, str]]:
            context = Context(home, catalogue.load(home.root / "headgate.yaml"))
            return [(one.level, one.what) for one in await asyncio.to_thread(lambda: [*checks._way_out(context)])]

        try:
            await house.start(hosted=True)
            key, running = house.key("public"), house.built
            assert running is not None and await named() == [("ok", "the door answers and is open")]
            house.door.send_signal(signal.SIGSTOP)
            await until(lambda: not running.fleet.door_open)
            reply = await house.post(ask("big"), key)
            assert (reply.status, reply.error["code"]) == (503, "door_closed")
            assert "the door does not answer" in reply.error["message"]
            assert (await house.post(ask("small"), key)).status == 200
            assert await named() == [("wrong", "the door stands still, so nothing leaves")]
            assert provider.accepted == 0
        finally:
            house.door.send_signal(signal.SIGCONT)
            await house.close()
