"""The fleet: its snapshots are of now, and no answer of serving or door, however odd, ends the polling."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.records import Endpoint, Pace
from router.upstream import fleet as fleets
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Door, Fleet
from router.upstream.health import REST_S, Health
from router.upstream.room import Room
from serving.home import Home
from tests.conftest import instance, until
from tests.fakes.busy import busy
from tests.fakes.faults import Upstream
from tests.fakes.serving import CATALOGUE, GPU, document


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    made = Connections(Deadlines(), Bounds())
    yield made
    await made.close()


@pytest.fixture
def room() -> Room:
    return Room(length=2, wait_s=1)


@pytest.fixture
def fleet(connections: Connections, room: Room, tmp_path: Path) -> Fleet:
    return Fleet(CATALOGUE, connections, Address.parse(f"unix:{tmp_path}/none"), None, room)


def test_what_is_in_flight_is_what_the_room_counts(fleet: Fleet, room: Room) -> None:
    fleet._take(document(instance("small", "unix:/run/small")))
    with busy(room, "small"), busy(room, "big"), busy(room, "big"):
        small, big = fleet.snapshot().endpoints
        assert (small.in_flight, big.in_flight) == (1, 2)
        assert fleet.state()["in_flight"] == 3 and fleet.state()["waiting"] == 0
    assert [e.in_flight for e in fleet.snapshot().endpoints] == [0, 0]


async def test_what_has_said_that_it_is_full_is_full(fleet: Fleet, room: Room) -> None:
    fleet._take(document(instance("small", "unix:/run/small", limit=0)))
    assert not fleet.snapshot().endpoints[0].full
    with busy(room, "small"):
        room.told_full("small")
        assert fleet.snapshot().endpoints[0].full and not fleet.snapshot().endpoints[1].full


def test_an_endpoint_keeps_all_that_serving_said_of_it() -> None:
    said: dict[str, Any] = {name: object() for name in Endpoint._fields}
    known = {"in_flight": 3, "limit": 4, "busy": True, "outstanding": 5, "resting": "it failed", "failing": True,
             "share": 0.5, "pace": Pace(prefill=1000.0), "unstarted": 7, "others": 2, "spilling": True,
             "cached": 9}  # fmt: skip
    found = Endpoint(**said).now(**known)
    assert {name: getattr(found, name) for name in said} == said | known


def test_what_comes_back_has_a_small_share_whether_or_not_its_limit_is_known(
    connections: Connections, room: Room, tmp_path: Path
) -> None:
    health = Health()
    fleet = Fleet(CATALOGUE, connections, Address.parse(f"unix:{tmp_path}/none"), None, room, health=health)
    fleet._take(document(*(instance(name, f"unix:/{name}", limit=limit) for name, limit in (("a", 40), ("b", 0)))))
    for name in ("a", "b"):
        health.failed(name, "refused", time.monotonic())
        health.answered(name, time.monotonic())
    a, b, _ = fleet.snapshot().endpoints
    assert (a.limit, b.limit) == (4, 0) and a.share == pytest.approx(b.share, abs=0.01)
    assert 0.1 <= b.share < 0.5


def test_after_a_rest_one_request_finds_out_and_not_all_that_wait(fleet: Fleet, room: Room) -> None:
    fleet._take(document(instance("a", "unix:/a", limit=7), instance("b", "unix:/b", limit=7)))
    fleet._health.failed("a", "refused", time.monotonic() - REST_S)
    assert (fleet._limits()["a"], fleet._limits()["b"]) == (1, 7)
    with busy(room, "a"):  # who was there before shows nothing
        assert fleet._limits()["a"] == 2


def test_a_place_is_waited_for_only_where_requests_are_taken(fleet: Fleet) -> None:
    fleet._take(document(
        instance("a", "unix:/a", limit=7), instance("b", "unix:/b", state="starting"),
        instance("c", "unix:/c", load={"asleep": True}), instance("d", "https://away.example"),
    ))  # fmt: skip
    assert fleet._limits() == {"a": 7, "big": 0}


def test_readings_that_serving_gave_long_ago_are_unknown(fleet: Fleet) -> None:
    load = {"running": 3, "waiting": 1, "kv_use": 0.25, "asleep": False, "age_s": 0.1}
    fleet._take(document(instance("small", "unix:/run/small", load=load, gpus=["GPU-a"]), gpus=[GPU]))
    fresh = fleet.snapshot().endpoints[0]
    assert (fresh.running, fresh.kv_use, [g.uuid for g in fresh.gpus]) == (3, 0.25, ["GPU-a"])
    assert [g.name for g in fleet.gpus] == ["H200"]
    fleet.heard -= 16
    old = fleet.snapshot().endpoints[0]
    assert (old.state, old.running, old.waiting, old.kv_use, old.gpus) == ("ready", None, None, None, ())
    assert fleet.gpus == ()


def test_what_the_engine_has_and_this_router_has_not_sent_is_others(fleet: Fleet) -> None:
    """With several routers each knows its own share at once, and the rest as of the last reading."""

    def say(load: Any) -> Endpoint:
        fleet._take(document(instance("small", "unix:/run/small", load=load)))
        return fleet.snapshot().endpoints[0]

    sent = fleet.paces.there("small", "small").sent(400, 0, time.monotonic() - 3)
    assert say({"running": 3, "waiting": 2, "age_s": 0.5}).others == 4
    assert say({"running": 3, "waiting": 2, "age_s": 4.0}).others == 5  # ours was not there yet
    assert say({"running": 1, "waiting": None, "age_s": 0.5}).others == 0
    assert say({"running": 5, "waiting": 0, "age_s": 0.5}).others == 4
    fleet.heard -= 16
    old = fleet.snapshot().endpoints[0]
    assert (old.others, old.stale, old.running) == (0, True, None)
    assert [say(load).others for load in ({"running": 5, "age_s": 60}, {}, None, "odd")] == [0, 0, 0, 0]
    sent.left(time.monotonic())


def test_what_was_never_read_is_not_too_old(fleet: Fleet) -> None:
    """A server without such metrics lives by the router's own count."""
    fleet._take(document(instance("small", "unix:/run/small", metrics="none")))
    fleet.heard -= 16
    assert not fleet.snapshot().endpoints[0].stale
    fleet._take(document(instance("small", "unix:/run/small", load={"running": 0, "age_s": 20})))
    assert fleet.snapshot().endpoints[0].stale


def test_a_worker_has_its_share_of_the_places_and_knows_them_all(
    connections: Connections, room: Room, tmp_path: Path
) -> None:
    address = Address.parse(f"unix:{tmp_path}/none")
    fleet = Fleet(CATALOGUE, connections, address, None, room, share=lambda limit: limit // 4)
    fleet._take(document(instance("small", "unix:/run/small", limit=16)))
    assert (fleet.snapshot().endpoints[0].limit, fleet.snapshot().endpoints[0].places) == (4, 16)


def test_an_engine_whose_gpu_is_slowed_down_has_half_its_places(fleet: Fleet) -> None:
    for throttle, limit in (
        (["hardware thermal"], 8),
        (["power brake", "power cap"], 8),
        (["power cap"], 16),
        ([], 16),
    ):
        gpu = GPU | {"throttle": throttle}
        fleet._take(document(instance("small", "unix:/run/small", limit=16, gpus=["GPU-a"]), gpus=[gpu]))
        assert fleet.snapshot().endpoints[0].limit == fleet._limits()["small"] == limit


def test_what_was_learned_goes_with_the_process_it_was_learned_of(fleet: Fleet) -> None:
    def say(state: str) -> Endpoint:
        fleet._take(document(instance("small", "unix:/run/small", state=state)))
        return fleet.snapshot().endpoints[0]

    say("ready")
    sent = fleet.paces.there("small", "small").sent(40_000, 0, 1.0)
    sent.first(2.0)
    sent.left(3.0)
    fleet.spill([("small", True), ("gone", True)])
    known = say("ready")
    assert known.pace is not None and known.pace.prefill == 10_000 and known.spilling
    assert say("failed").pace is not None
    assert say("ready").pace is None
    fleet.spill([("small", False)])
    assert not fleet.snapshot().endpoints[0].spilling


def test_a_door_is_open_closed_or_not_there(fleet: Fleet, connections: Connections, room: Room) -> None:
    assert fleet.door_open is None
    behind = Fleet(CATALOGUE, connections, Address.parse("unix:/none"), Address.parse("unix:/door"), room)
    assert behind.door_open is False
    behind.door = Door("i", "v", open=True, at=time.time())
    assert behind.door_open is True
    behind.door = Door("i", "v", open=True, at=time.time() - 6)
    assert behind.door_open is False  # it has not answered for too long


def test_the_day_is_the_snapshots(fleet: Fleet) -> None:
    assert fleet.today() == fleet.snapshot().today == dt.datetime.now(dt.UTC).date()


ODD_ANSWERS = [
    "not json", "[]", "null", "7", '"x"', "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "instances": {}}',
    "[" * 5000, '{"version": 1, "instances": [null, 3]}', '{"instance": 1, "policy": 2, "open": 3, "providers": []}',
    '{"instance": 1, "policy": 2, "open": true, "closed_because": "", "providers": {"far": null}}',
]  # fmt: skip


@pytest.fixture
async def polled(
    connections: Connections, home: Home, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fleet, Upstream, Upstream, asyncio.Task[None]]]:
    """A fleet that polls without rest, and the serving and the door that it asks."""
    monkeypatch.setattr(fleets, "POLL_S", 0.002)
    monkeypatch.setattr(fleets, "POLL_OFTEN_S", 0.002)
    async with Upstream(path=home.socket("serving")) as serving, Upstream(path=home.socket("door")) as door:
        serving.script = door.script = {"body": "{}"}
        room = Room(length=2, wait_s=1)
        fleet = Fleet(CATALOGUE, connections, Address.parse(serving.address), Address.parse(door.address), room)
        task = asyncio.create_task(fleet.run())
        yield fleet, serving, door, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_no_answer_ends_the_polling_and_each_trouble_is_logged_once(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]], caplog: pytest.LogCaptureFixture
) -> None:
    fleet, serving, door, task = polled
    caplog.set_level(logging.INFO, "headgate.router")
    for text in ODD_ANSWERS:
        serving.script = door.script = {"body": text}
        enough = len(serving.requests) + 3, len(door.requests) + 3
        await until(lambda n=enough: len(serving.requests) > n[0] and len(door.requests) > n[1], task)
        assert fleet.snapshot().endpoints[-1].state == "closed"
    for part in ("serving: ", "door: "):
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith(part)]
        assert said and all(one != after for one, after in itertools.pairwise(said))


async def test_an_engine_that_fills_up_is_heard_of_more_often(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, serving, door, task = polled
    fine = {"instance": "i", "policy": "v", "open": True, "closed_because": "", "providers": {"far": {"reason": None}}}
    door.script = {"body": json.dumps(fine)}
    half = instance("small", "unix:/run/small", limit=4, load={"running": 2, "waiting": 0})
    serving.script = {"body": json.dumps(document(half))}
    await until(lambda: [e.running for e in fleet.snapshot().endpoints] == [2, None] and bool(fleet.door.at), task)
    monkeypatch.setattr(fleets, "POLL_S", 600)
    more = len(serving.requests) + 3
    await until(lambda: len(serving.requests) > more, task)  # it goes on at the other pace
    serving.script = {"body": json.dumps(document(half | {"load": {"running": 1, "waiting": 0}}))}
    await until(lambda: fleet.snapshot().endpoints[0].running == 1, task)
    asked = len(serving.requests)
    await asyncio.sleep(0.05)
    assert len(serving.requests) == asked


async def test_a_door_that_hangs_keeps_nobody_from_hearing_of_the_engines(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]],
) -> None:
    """serving puts an engine to sleep two seconds after it said so, and takes it that every router has heard it."""
    _, serving, door, task = polled
    door.script = {"never": True}
    await until(lambda: door.answering, task)
    more = len(serving.requests) + 20
    began = time.monotonic()
    await until(lambda: len(serving.requests) > more, task)
    assert time.monotonic() - began < 2 and door.answering


async def test_what_answers_again_is_used_again(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]], caplog: pytest.LogCaptureFixture
) -> None:
    fleet, serving, door, task = polled
    caplog.set_level(logging.INFO, "headgate.router")
    await until(lambda: len(caplog.records) == 2, task)
    serving.script = {"body": json.dumps(document(instance("small", "unix:/run/small")))}
    fine = {"instance": "i", "policy": "v", "open": True, "closed_because": "", "providers": {"far": {"reason": None}}}
    door.script = {"body": json.dumps(fine)}
    await until(lambda: [e.state for e in fleet.snapshot().endpoints] == ["ready", "ready"], task)
    assert fleet._room.in_flight(await fleet._room.turn(["small"], time.monotonic() + 5)) == 1  # places are handed out
    messages = {r.getMessage() for r in caplog.records}
    assert {"serving: it speaks another version", "serving answers again", "door answers again"} <= messages
    assert json.loads(json.dumps(fleet.state()))["door"]["providers"] == {"far": ""}
