"""A clock that is set back opens nothing in the door: its book knows what time it was, also over restarts."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Any

import pytest

from router.door import app
from router.door.book import open_book
from tests.conftest import until


async def test_a_clock_that_is_set_back_lets_no_approval_and_no_key_hold_again(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).date().isoformat()
    approved = {"by": "security", "contract": "c1", "until": yesterday}
    house.models.append(house.model("trusted", clearance="private", approved=approved))
    house.add_key("kended", "public", expires=time.time() - 86_400)
    await house.start()
    await house.end()
    monkeypatch.setattr(open_book, "__defaults__", (lambda: time.time() - 2 * 86_400,))
    house.stop = asyncio.Event()
    await house.start()
    body = house.body(model="trusted")
    refused = [
        await house.send(body, model="trusted", key="kprivate", data_class="private"),
        await house.send(key="kended"),
    ]
    assert [found[2]["error"]["code"] for found in refused] == ["data_class_not_cleared", "key_expired"]
    assert far.bytes_seen == 0
    assert (await house.send())[0] == 200, "what is public still leaves"


async def test_a_door_that_has_nothing_to_write_down_still_knows_how_late_it_was(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = 0.0
    monkeypatch.setattr(open_book, "__defaults__", (lambda: time.time() + shift,))
    monkeypatch.setattr(app, "TIME_EVERY_S", 0.01)
    await house.start()
    entries, shift = len(house.book()), 5 * 86_400.0
    note = house.home.book.with_name("book.jsonl.head")
    await until(lambda: float(note.read_text().split()[3]) > time.time() + 4 * 86_400)
    assert len(house.book()) == entries
    await house.end()
    shift = 0.0
    book = open_book(house.home.book, "policy")
    book.close()
    assert book.time.behind_s > 4 * 86_400, "five days without a request, and then a clock that is set back"
