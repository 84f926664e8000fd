"""A local model that sleeps: nothing is sent there, what may not leave waits for it, and serving hears of it.

Through a real router over real sockets; serving and the engine are scripted, the hosted provider is behind the real
door.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from router.decision.decide import decide
from router.decision.saturation import saturation
from router.records import Decision
from router.upstream import demand
from router.upstream.demand import sleeper
from tests.conftest import House, ask, instance, until
from tests.fakes.asking import ask as asked
from tests.fakes.asking import caller, candidate, endpoint, hosted, local, searched, snapshot
from tests.fakes.faults import completion


async def start(house: House, *, hosted: bool = False, state: str = "asleep", **router: Any) -> None:
    house.instances[:] = [instance("small", house.local.address, state=state, detail="it sleeps", ready_in_s=42.0)]
    more = {"models": {"big": {"lanes": ["cheap", "frontier"]}}} if hosted else {}
    await house.start(hosted=hosted, router=router, **more)


def becomes(house: House, state: str) -> None:
    house.instances[0]["state"] = state
    house.serving.script = {"body": json.dumps(house.document())}


def demands(house: House) -> list[Any]:
    return [r.json() for r in house.serving.requests if (r.method, r.path) == ("POST", "/demand")]


async def test_a_private_request_waits_until_it_is_awake(house: House) -> None:
    await start(house, queue_wait_s=60)
    waiting = asyncio.create_task(house.post(ask("small"), house.key("private")))
    await until(lambda: demands(house), waiting)
    assert demands(house)[0] == {"model": "small"}
    becomes(house, "waking")
    await until(lambda: house.built and house.built.fleet.snapshot().endpoints[0].state == "waking", waiting)
    assert house.local.requests == [], "nothing is sent to what does not answer yet"
    becomes(house, "ready")
    reply = await waiting
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    *_, closed = await house.events(reply)
    assert closed["queued_ms"] > 0


async def test_serving_hears_of_it_once_a_second_however_many_wait(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demand.AGAIN_S == 1
    monkeypatch.setattr(demand, "AGAIN_S", 0.1)
    await start(house, queue_wait_s=60)
    assert house.built is not None
    key, began = house.key("private"), time.monotonic()
    crowd = [asyncio.create_task(house.post(ask("small"), key)) for _ in range(30)]
    await until(lambda: len(demands(house)) >= 3, crowd[0])
    assert len(demands(house)) <= (time.monotonic() - began) / 0.1 + 1
    becomes(house, "ready")
    assert {reply.status for reply in await asyncio.gather(*crowd)} == {200}
    on_its_way = house.built.fleet.demand._tasks
    await until(lambda: not on_its_way)
    heard = len(demands(house))
    await asyncio.sleep(0.3)  # nothing tells that nothing comes: three times what lies between two
    assert len(demands(house)) == heard, "nobody waits any more"


async def test_who_waited_in_vain_is_told_when_it_will_be_there(house: House) -> None:
    await start(house, queue_wait_s=1)
    reply = await house.post(ask("small"), house.key("private"))
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "queue_timeout", "42")


async def test_what_may_leave_goes_elsewhere_and_wakes_it_for_those_to_come(house: House) -> None:
    house.provider.script = {"body": completion("From afar.")}
    await start(house, hosted=True, queue_wait_s=60)
    reply = await house.post(ask("cheap"), house.key("public"))
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "hosted")
    assert reply.headers["x-headgate-trigger"] == "overflow"
    await until(lambda: demands(house))
    private = asyncio.create_task(house.post(ask("cheap"), house.key("private")))
    becomes(house, "ready")
    assert (await private).headers["x-headgate-place"] == "local"


async def test_batch_waits_for_it_though_it_may_leave(house: House) -> None:
    await start(house, hosted=True, queue_wait_batch_s=60)
    key = house.key("public")
    waiting = asyncio.create_task(house.post(ask("cheap"), key, headers={"x-headgate-latency": "batch"}))
    await until(lambda: demands(house), waiting)
    becomes(house, "ready")
    assert (await waiting).headers["x-headgate-place"] == "local"
    assert house.provider.requests == []


async def test_it_is_listed_and_the_decision_says_that_it_sleeps(house: House) -> None:
    await start(house)
    key = house.key("private")
    listed = (await house.get("/v1/models", key)).json()["data"]
    assert "small" in [entry["id"] for entry in listed]
    assert (await house.get("/ready")).json()["ready"], "a request would be answered, after a while"


async def test_serving_that_does_not_hear_stops_nobody(house: House) -> None:
    """It is away for a moment, or of an older version: the request waits all the same."""
    await start(house, queue_wait_s=60)
    document = house.serving.script
    house.serving.script = {"status": 404, "body": "{}"}
    waiting = asyncio.create_task(house.post(ask("small"), house.key("private")))
    await until(lambda: len(demands(house)) >= 2, waiting)
    house.serving.script = document
    becomes(house, "ready")
    assert (await waiting).status == 200


async def test_what_failed_before_it_fell_asleep_is_not_asked_in_its_sleep(house: House) -> None:
    await start(house, state="ready", queue_wait_s=60)
    assert house.built is not None
    house.local.script = {"reset": 0}
    key = house.key("private")
    for _ in range(4):
        assert (await house.post(ask("small"), key)).status in (502, 503)
    becomes(house, "asleep")
    await until(lambda: house.built and house.built.fleet.snapshot().endpoints[0].wakes)
    assert house.built.fleet.snapshot().endpoints[0].resting
    house.local.script = {"body": completion("Awake.")}
    heard = len(house.local.requests)
    waiting = asyncio.create_task(house.post(ask("small"), key))
    await until(lambda: demands(house), waiting)
    assert len(house.local.requests) == heard
    becomes(house, "ready")
    assert (await waiting).status == 200


@pytest.mark.parametrize(
    "page",
    [
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/collective_rpc",
        "/v1/sleep",
        "/v1/../sleep",
        "/v1/completions/../../sleep",
    ],
)
async def test_no_caller_reaches_the_pages_that_put_an_engine_to_sleep(house: House, page: str) -> None:
    await start(house, state="ready")
    before = len(house.local.requests)
    reply = await house.post({"model": "small", "prompt": "x", "messages": []}, house.key("private"), page + "?level=2")
    assert reply.status in (400, 404, 405)
    assert len(house.local.requests) == before


# ---- the decision


NEAR, OTHER, FAR = local("near"), local("other"), hosted(lanes=("cheap", "frontier"))


def decided(who: str, *states: str, model: str = "cheap") -> Decision:
    local_ones = [endpoint(m, state=s) for m, s in zip((NEAR, OTHER), states, strict=False)]
    now = snapshot(NEAR, OTHER, FAR, endpoints=[*local_ones, endpoint(FAR)])
    return decide(asked(model), caller(who), searched(asked(model).body), now)


@pytest.mark.parametrize("state", ["asleep", "waking"])
def test_what_sleeps_counts_as_full_and_stays_in_the_order(state: str) -> None:
    public = decided("public", state)
    assert [c.name for c in public.order] == ["far", "near"] and public.trigger == "overflow"
    assert f"overflow, since near is {state};" in public.reason
    assert [c.name for c in decided("private", state).order] == ["near"]
    assert f"waits, since near is {state};" in decided("private", state).reason
    assert [c.name for c in decided("private", state, "ready").order] == ["other", "near"]
    assert saturation(endpoint(NEAR, state=state), 2.0).value == 1.0


@pytest.mark.parametrize("state", ["starting", "draining", "failed", "stalled"])
def test_what_does_not_come_by_itself_is_still_refused(state: str) -> None:
    found = decided("private", state, model="near")
    assert not found.order and "not_ready" in {refusal.rule for refusal in found.refusals}


def test_a_request_that_somebody_awake_may_answer_wakes_nobody() -> None:
    asleep, awake, far = (candidate(m, state=s) for m, s in ((NEAR, "asleep"), (OTHER, "ready"), (FAR, "ready")))
    assert sleeper([far, asleep]) == "near"
    assert sleeper([asleep, awake]) is None
    assert sleeper([far]) is None
    coming = candidate(OTHER, state="waking")
    assert sleeper([asleep, coming, far]) == "other", "one is coming already"
