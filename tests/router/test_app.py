"""The router as it runs: what is open when the time to stop is over is told so, and is on record as that."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
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


async def test_a_scanner_that_does_not_start_is_seen_by_operator_and_caller_and_is_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, why = app._scanner, "a planted card was not found"
    mended = asyncio.Event()
    monkeypatch.setattr(app, "_scanner", lambda *given: make(*given) if mended.is_set() else why)
    monkeypatch.setattr("router.gate.TEST_S", 0.01)
    await house.start(hosted=True)
    key = house.key("public")
    refused = await house.post(ask("big"), key)
    assert (refused.status, refused.error["code"]) == (503, "door_closed") and "retry-after" in refused.headers
    assert "the scanner does not work" in refused.error["message"]
    assert (await house.post(ask("small"), key)).status == 200, "what stays is answered"
    assert not house.provider.requests

    async def told() -> tuple[Any, bool]:
        connector = aiohttp.UnixConnector(str(house.home.socket("admin")))
        async with aiohttp.ClientSession("http://admin", connector=connector) as operator:
            state = await (await operator.get("/status")).json()
            page = await (await operator.get("/metrics")).text()
        return state["scanner"]["trouble"], "headgate_scanner_healthy 1.0" in page

    assert await told() == (why, False)
    mended.set()
    assert house.built is not None
    gate = house.built.gate
    await until(lambda: not gate.trouble)
    assert await told() == ("", True)
    assert (await house.post(ask("big"), key)).status == 200
