"""A conversation goes to the replica that has read it, as long as that one has room and is not far busier.

Through a real router over real sockets, with two scripted engines of one model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import House, Reply, instance, until
from tests.fakes.faults import Upstream, completion

SYSTEM = {"role": "system", "content": "You answer questions about the river."}
Turns = list[dict[str, str]]


@pytest.fixture
async def two(house: House) -> AsyncIterator[dict[str, Upstream]]:
    """Both engines by their names; the router runs."""
    async with Upstream() as other:
        engines = {"small-1": house.local, "small-2": other}
        house.instances[:] = [instance(n, e.address, model="small", limit=2) for n, e in engines.items()]
        await house.start()
        yield engines


def opening(number: int) -> Turns:
    return [SYSTEM, {"role": "user", "content": f"{number}: how deep is it? " * 20}]


def on(turns: Turns, text: str = "And how wide?") -> Turns:
    """The next turn of a conversation."""
    return [*turns, {"role": "assistant", "content": "Hello there."}, {"role": "user", "content": text * 5}]


async def say(house: House, turns: Turns, key: str, **headers: str) -> Reply:
    reply = await house.post({"model": "small", "messages": turns}, key, headers=headers)
    assert reply.status == 200
    return reply


def where(engines: dict[str, Upstream], number: int) -> list[str]:
    """Which engines were sent this conversation."""
    sent = {n: [r.json()["messages"] for r in e.requests] for n, e in engines.items()}
    return [n for n, found in sent.items() for turns in found if turns[1]["content"].startswith(f"{number}:")]


async def test_every_turn_of_a_conversation_lands_where_the_first_did(
    house: House, two: dict[str, Upstream]
) -> None:  # fmt: skip
    key = house.key()
    for number in range(8):
        turns = opening(number)
        for _ in range(4):
            reply = await say(house, turns, key)
            turns = on(turns)
        assert len(set(where(two, number))) == 1
        assert " of this prompt before; private data" in reply.headers["x-headgate-reason"]
    assert all(engine.requests for engine in two.values()), "but not all conversations to one"


async def test_a_named_session_stays_though_nothing_of_its_text_does(house: House, two: dict[str, Upstream]) -> None:
    key = house.key()
    used = set()
    for session in range(8):
        before = {name: len(engine.requests) for name, engine in two.items()}
        for number in range(3):
            turns = [{"role": "user", "content": f"{session} {number}"}]
            reply = await say(house, turns, key, **{"x-headgate-session": f"s{session}"})
        grown = [name for name, engine in two.items() if len(engine.requests) > before[name]]
        assert len(grown) == 1
        assert f"{grown[0]} is where its session goes" in reply.headers["x-headgate-reason"]
        used |= {*grown}
    assert used == two.keys()


async def test_another_teams_same_prompt_is_no_hit(house: House, two: dict[str, Upstream]) -> None:
    """PG-033: engines keep prompts apart by team, and what the router says of them must not tell either."""
    turns, near = opening(1), "of this prompt before"
    red, blue = house.key(team="red"), house.key(team="blue")
    await say(house, turns, red)
    assert near not in (await say(house, turns, blue)).headers["x-headgate-reason"]
    assert near in (await say(house, turns, house.key(team="red"))).headers["x-headgate-reason"]


async def test_it_moves_while_its_replica_is_full_and_comes_back(house: House, two: dict[str, Upstream]) -> None:
    key, turns = house.key(), opening(1)
    await say(house, turns, key)
    (home,) = where(two, 1)
    await say(house, on(turns), key)
    assert where(two, 1) == [home] * 2
    two[home].script = {"gate": True}
    held = [asyncio.create_task(say(house, on(turns), key)) for _ in range(2)]
    await until(lambda: two[home].answering == 2)
    reply = await say(house, on(on(turns)), key)
    (other,) = two.keys() - {home}
    assert where(two, 1).count(other) == 1
    assert home not in reply.headers["x-headgate-reason"]
    two[home].gate.set()
    await asyncio.gather(*held)


async def test_it_moves_when_its_replica_is_gone_and_what_that_has_read_is_forgotten(
    house: House, two: dict[str, Upstream]
) -> None:  # fmt: skip
    key, turns = house.key(), opening(1)
    await say(house, turns, key)
    (home,), (other,) = where(two, 1), two.keys() - {*where(two, 1)}
    publish(house, home, state="failed", detail="it died")
    await until(lambda: state(house)[home] == "failed")
    await say(house, on(turns), key)
    assert where(two, 1) == [*two], "one turn each"
    publish(house, home, state="ready", detail="", restarts=1)
    await until(lambda: state(house)[home] == "ready")
    reply = await say(house, on(on(turns)), key)
    assert where(two, 1).count(other) == 2, "it stays where it is now"
    assert f"{other} has read" in reply.headers["x-headgate-reason"]


async def test_an_engine_that_was_started_again_has_read_nothing(house: House, two: dict[str, Upstream]) -> None:
    key, turns, near = house.key(), opening(1), "of this prompt before"
    await say(house, turns, key)
    assert near in (await say(house, turns, key)).headers["x-headgate-reason"]
    (home,) = {*where(two, 1)}
    publish(house, home, restarts=1)
    await until(lambda: restarts(house)[home] == 1)
    assert near not in (await say(house, turns, key)).headers["x-headgate-reason"]


async def test_what_was_believed_stands_beside_what_the_engines_confirm(
    house: House, two: dict[str, Upstream]
) -> None:  # fmt: skip
    """An engine that keeps nothing is found out, and its word then counts for more than having been asked before."""
    key, turns = house.key(), opening(1)
    denied = json.loads(completion()) | {"usage": {
        "prompt_tokens": 200, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0},
    }}  # fmt: skip
    for engine in two.values():
        engine.script = {"body": json.dumps(denied)}
    placed = []
    for _ in range(11):
        opened, *_ = await house.events(await say(house, turns, key))
        placed.append(opened["placed"])
    assert (placed[0], placed[1], placed[-1]) == ("session", "prefix", "session")
    page = await metrics(house)
    found = {kind: page["headgate_prefix_tokens_total", f"small,{kind}"] for kind in ("prompt", "believed", "found")}
    assert found["prompt"] == 2200 and found["found"] == 0 and 500 < found["believed"] < 1500
    assert page["headgate_placed_total", "small,prefix"] == placed.count("prefix")


async def test_nothing_is_looked_at_where_there_is_nothing_to_choose(house: House, two: dict[str, Upstream]) -> None:
    assert house.built is not None
    fleet = house.built.fleet

    def compared() -> list[str]:
        return [m for m in ("small", "lone", "cheap", "auto") if fleet.compares(m, substitute=False)]

    house.instances.append(instance("lone", house.local.address))
    publish(house, "lone")
    await until(lambda: "lone" in state(house))
    assert compared() == ["small", "cheap", "auto"]
    del house.instances[0]
    publish(house, "lone")
    await until(lambda: "small-1" not in state(house))
    assert compared() == []


def publish(house: House, name: str, **changed: Any) -> None:
    """Serving says something else of one engine from now on."""
    next(entry for entry in house.instances if entry["name"] == name).update(changed)
    house.serving.script = {"body": json.dumps(house.document())}


async def metrics(house: House) -> dict[tuple[str, str], float]:
    """What the operator sees counted, by name and labels."""
    connector = aiohttp.UnixConnector(str(house.home.socket("admin")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://router/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    return {(s.name, ",".join(v for _, v in sorted(s.labels.items(), reverse=True))): s.value
            for family in families for s in family.samples}  # fmt: skip


def state(house: House) -> dict[str, str]:
    assert house.built is not None
    return {e.name: e.state for e in house.built.fleet.snapshot().endpoints}


def restarts(house: House) -> dict[str, int | None]:
    assert house.built is not None
    return {e.name: e.restarts for e in house.built.fleet.snapshot().endpoints}
