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

from router.records import Endpoint
from router.upstream import fleet as fleets
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Door, Fleet
from router.upstream.health import Health
from router.upstream.room import Room
from serving.home import Home
from tests.conftest import instance, until
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
    with room.busy("small"), room.busy("big"), room.busy("big"):
        small, big = fleet.snapshot().endpoints
        assert (small.in_flight, big.in_flight) == (1, 2)
        assert fleet.state()["in_flight"] == 3 and fleet.state()["waiting"] == 0
    assert [e.in_flight for e in fleet.snapshot().endpoints] == [0, 0]


async def test_what_has_said_that_it_is_full_is_full(fleet: Fleet, room: Room) -> None:
    fleet._take(document(instance("small", "unix:/run/small", limit=0)))
    assert not fleet.snapshot().endpoints[0].full
    with room.busy("small"):
        room.told_full("small")
        assert fleet.snapshot().endpoints[0].full and not fleet.snapshot().endpoints[1].full


def test_an_endpoint_keeps_all_that_serving_said_of_it() -> None:
    said: dict[str, Any] = {name: object() for name in Endpoint._fields}
    known = {"in_flight": 3, "limit": 4, "busy": True, "outstanding": 5, "resting": "it failed", "failing": True,
             "share": 0.5}  # fmt: skip
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
    monkeypatch.setattr(fleets, "POLL_WHILE_STARTING_S", 0.002)
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
