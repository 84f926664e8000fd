"""The router as it runs: what is open when the time to stop is over is told so, and is on record as that."""

from __future__ import annotations

import asyncio

import pytest

from router import app
from router.ledger.schema import connect
from router.ledger.store import read_events
from tests.conftest import House, ask, until


async def test_what_is_open_when_the_time_to_stop_is_over_is_told_and_on_record(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "DRAIN_S", 0.2)
    await house.start()
    key = house.key()
    house.local.script = {"gate": True}
    whole = asyncio.create_task(house.post(ask("small"), key))
    await until(lambda: len(house.local.requests) == 1)
    house.stop.set()
    reply = await whole
    assert (reply.status, reply.error["code"]) == (503, "overloaded")
    assert house.running is not None
    await house.running
    db = connect(house.home.ledger, read_only=True)
    events = list(read_events(db, reply.headers["x-request-id"]))
    db.close()
    assert [event["kind"] for event in events] == ["opened", "closed"]
    assert (events[1]["outcome"], events[1]["status"], events[1]["error"]) == ("stopped", 503, "overloaded")
    (attempt,) = events[1]["attempts"]
    assert attempt["outcome"] == "stopped", "the caller had not left, and nothing had failed"
    assert events[1]["cost_usd"] > 0, "a model was at work on it"
