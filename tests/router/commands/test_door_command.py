"""`door close`, `door open`, `door status`: with no door running, and with a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from router.door import book, closing
from serving.home import Home
from tests.conftest import House, ask
from tests.fakes.command_line import Said
from tests.fakes.faults import Upstream

Say = Callable[..., Said]


def entries(home: Home) -> list[dict[str, Any]]:
    return [json.loads(line) for line in home.book.read_text().splitlines()]


def test_closing_without_a_door_holds_and_stands_in_the_book(home: Home, say: Say) -> None:
    said = say("door", "close", "--reason", "an audit")
    assert said.code == 0 and "nothing leaves" in said.out
    shut = closing.look(closing.marker(home.book))
    assert shut is not None and (shut.reason, bool(shut.by)) == ("an audit", True)
    assert "an audit" in say("door", "status").out
    assert say("door", "open").code == 0
    assert closing.look(closing.marker(home.book)) is None
    assert [e["kind"] for e in entries(home)] == ["opened", "door_closed", "opened", "door_opened"]
    assert entries(home)[1]["reason"] == "an audit" and book.verify(home.book) == []


def test_opening_what_nobody_closed_says_so_and_writes_nothing(home: Home, say: Say) -> None:
    assert "had not closed" in say("door", "open").out
    assert say("door", "open", "--json").json() == {"was_closed": False, "door": None}
    assert not home.book.exists()


def test_the_status_without_a_door(home: Home, say: Say) -> None:
    said = say("door", "status")
    assert said.code == 0 and "does not run" in said.out
    assert say("door", "status", "--json").json() == {"running": False, "operator": None, "door": None, "last": []}
    home.book.with_name("closed.json").write_text("?")
    assert "closed: the operator closed it" in say("door", "status").out


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
