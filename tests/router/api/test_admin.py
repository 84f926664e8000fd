"""What the operator is told of several workers is told of all of them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from router.api.admin import of_all
from router.ledger.store import LedgerError
from tests.conftest import House, ask, until


def state(in_flight: int = 0, limit: int = 2, **changed: Any) -> dict[str, Any]:
    endpoint = {"name": "small", "in_flight": in_flight, "limit": limit, "outstanding": 10 * in_flight, "kv_use": 0.5}
    return {
        "endpoints": [endpoint], "in_flight": in_flight, "waiting": 1, "door": None,
        "queue": {"interactive": 1, "batch": 0, "teams": 1},
        "ledger": {"healthy": True, "trouble": ""}, "history": {"trouble": ""},
        "scanner": {"trouble": ""}, "saturations": {}, **changed,
    }  # fmt: skip


def test_one_worker_speaks_for_itself() -> None:
    own = state(3)
    assert of_all(1, own, {}) == own | {"workers": {"count": 1, "answer": [1]}}


def test_what_each_has_a_part_of_is_summed_and_what_all_see_is_not() -> None:
    found = of_all(2, state(3, limit=4), {1: state(1), 3: None, 4: state(2, endpoints=[])})
    assert found["endpoints"] == [{"name": "small", "in_flight": 4, "limit": 6, "outstanding": 40, "kv_use": 0.5}]
    assert (found["in_flight"], found["waiting"]) == (6, 3)
    assert found["queue"] == {"interactive": 3, "batch": 0, "teams": 1}
    assert found["workers"] == {"count": 4, "answer": [1, 2, 4]}


def test_trouble_of_any_worker_is_shown() -> None:
    trouble = {"healthy": False, "trouble": "database or disk is full"}
    assert of_all(1, state(), {2: state(), 3: state(ledger=trouble)})["ledger"] == trouble
    forgets = {"trouble": "what is private does not reach the disk: database is locked"}
    assert of_all(1, state(), {2: state(), 3: state(history=forgets)})["history"] == forgets
    broken = {"trouble": "a planted card was not found"}
    assert of_all(1, state(), {2: state(), 3: state(scanner=broken)})["scanner"] == broken


def test_an_endpoint_is_as_full_as_the_worker_says_that_finds_it_fullest() -> None:
    idle, full = {"value": 0.0, "why": "it is idle", "over": False}, {"value": 1.5, "why": "a wait", "over": True}
    three = (state(saturations={"small": idle, "b": full}), state(saturations={"small": full, "b": idle}), state())
    for own, two, none in ((0, 1, 2), (2, 1, 0)):
        found = of_all(1, three[own], {2: three[two], 3: three[none], 4: None})
        assert found["saturations"] == {"small": full, "b": full}


def test_a_worker_that_can_get_out_is_what_counts_of_isolation() -> None:
    held, open_one = {"asked": True, "way_out": ""}, {"asked": True, "way_out": "it has a route out, by eth0"}
    assert of_all(1, state(isolation=held), {2: state(isolation=held), 3: None})["isolation"] == held
    assert of_all(1, state(isolation=held), {2: state(isolation=open_one)})["isolation"] == open_one
    assert of_all(1, state(isolation=open_one), {2: state(isolation=held)})["isolation"] == open_one


async def operator(house: House, path: str) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(str(house.home.socket("admin")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://router{path}") as answer:
        return answer.status, json.loads(await answer.read())


async def test_records_are_shown_also_while_the_ledgers_disk_takes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.start()
    house.local.script = {"body": json.dumps({"object": "chat.completion", "choices": []})}
    reply = await house.post(ask("small"), house.key())
    await house.events(reply)

    async def never(timeout_s: float = 0) -> None:
        raise LedgerError("the ledger is not being written: database or disk is full")

    assert house.built is not None
    monkeypatch.setattr(house.built.store, "durable", never)
    await until(house.home.socket("admin").exists)
    code, found = await operator(house, f"/requests/{reply.headers['x-request-id']}")
    assert (code, [event["kind"] for event in found["events"]]) == (200, ["opened", "closed"])

    house.home.ledger.rename(house.home.root / "elsewhere")
    code, found = await operator(house, "/requests/req_1")
    assert (code, found["error"]["code"]) == (503, "ledger_unavailable")
