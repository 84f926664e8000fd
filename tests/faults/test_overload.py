"""More than there is room for, and what comes back after an outage (PX-028, PX-029); how far retries may go."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from router.api import shedding
from tests.conftest import ask, until
from tests.faults import wire
from tests.faults.conftest import MIB, FaultHouse
from tests.faults.line import Line
from tests.faults.wire import Outcome

PATIENT = {"first_byte_timeout_s": 20, "total_timeout_s": 20, "idle_timeout_s": 20, "first_token_timeout_s": 20}


async def crowd(house: FaultHouse, count: int, key: str) -> list[Outcome]:
    return list(await asyncio.gather(*(house.tell(ask("small"), key) for _ in range(count))))


async def test_px_028_at_ten_times_the_load_what_is_admitted_is_answered(house: FaultHouse) -> None:
    """Goodput, and how long the admitted take, are measured by benchmarks/overhead.py; here the form of it."""
    house.most_bytes, house.most_stall_s = 64 * MIB, 1.0  # so many callers are on this loop as well
    house.serve(house.local.address, limit=4)
    await house.start(router={"queue_length": 8, "queue_wait_s": 5, **PATIENT})
    house.fail_all({"delay_s": 0.02})
    key = house.key("private")
    found = await crowd(house, 120, key)
    codes = Counter(one.code for one in found)
    assert codes["ok"] >= 12, codes
    assert set(codes) <= {"ok", "queue_full", "overloaded"}, codes
    assert house.local.most <= 4, "the engine got more than it takes"
    assert house.asked() == codes["ok"]
    refused = [one for one in found if one.status != 200]
    assert all(one.status in (429, 503) and int(one.headers["retry-after"]) > 0 for one in refused)
    # Goodput under the load of a hundred is that of the four the engine takes: whoever was admitted waited in line.
    again = await crowd(house, 12, key)
    assert {one.status for one in again} == {200}
    assert house.leaked() == 0


async def test_px_028_more_than_the_router_takes_is_refused_at_once(house: FaultHouse) -> None:
    await house.start(router={"max_requests": 3, **PATIENT})
    house.serve(house.local.address)
    house.fail_all({"gate": True})
    key = house.key()
    asked = [asyncio.create_task(house.tell(ask("small"), key)) for _ in range(10)]
    await until(lambda: sum(one.done() for one in asked) == 7)
    refused = [one.result() for one in asked if one.done()]
    assert {(one.status, one.code) for one in refused} == {(503, "overloaded")}
    assert all(int(one.headers["retry-after"]) > 0 for one in refused)
    house.local.gate.set()
    assert Counter([(await one).status for one in asked]) == {200: 3, 503: 7}


HELD_MB = 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_px_028_large_bodies_are_held_within_a_bound(house: FaultHouse, chunked: bool) -> None:
    """Many at once have far more bytes than the bound. What is past it is refused, and all of it is given back."""
    house.most_stall_s = 1.0  # a dozen callers with a megabyte each are on this loop as well
    limit = HELD_MB * shedding.BODIES_SHARE
    house.serve(house.local.address, context=10_000_000)
    models = {"small": {"context": 10_000_000}}
    await house.start(router={"max_body_mb": 1, "memory_limit_mb": limit, **PATIENT}, models=models)
    assert house.built is not None
    load = house.built.edge.load
    load._used = lambda: 0  # that of these tests is over such a limit
    house.fail_all({"gate": True})
    key, body = house.key(), json.dumps(ask("small", user="u" * (900 * 1024))).encode()
    sent = wire.request(body, key)
    if chunked:
        head = wire.request(b"", key).replace(b"content-length: 0", b"transfer-encoding: chunked")
        sent = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    asked = [asyncio.create_task(house.send(sent)) for _ in range(12)]
    await until(lambda: sum(one.done() for one in asked) == 10, within_s=10)
    assert 2 * len(body) <= load.bodies <= HELD_MB * MIB
    refused = [one.result() for one in asked if one.done()]
    assert {(one.status, one.code) for one in refused} == {(503, "overloaded")}
    assert all(int(one.headers["retry-after"]) > 0 for one in refused)
    house.local.gate.set()
    assert Counter([(await one).status for one in asked]) == {200: 2, 503: 10}
    assert load.bodies == 0
    assert (await house.send(sent)).status == 200


async def test_px_028_bodies_that_never_come_whole_are_given_back(house: FaultHouse) -> None:
    """By the deadline, by a caller that leaves, and by bytes that are no chunk."""
    await house.start(router={"max_body_mb": 1, "body_timeout_s": 0.2})
    assert house.built is not None
    load, key = house.built.edge.load, house.key()
    half = wire.request(b"x" * 50_000, key, headers={"content-length": "100000"})
    async with Line(house) as line:
        await line.send(half)
        await until(lambda: load.bodies == 50_000)
        assert (await line.answer()).status == 408
        await until(lambda: load.bodies == 0)
    async with Line(house) as line:
        await line.send(half)
        await until(lambda: load.bodies == 50_000)
    await until(lambda: load.bodies == 0)
    async with Line(house) as line:
        await line.send(wire.request(b"", key).replace(b"content-length: 0", b"transfer-encoding: chunked"))
        await line.send(b"5\r\nabcde\r\n")
        await until(lambda: load.bodies > 0)
        await line.send(b"nonsense\r\n")
        assert (await line.answer()).status == 400
        await until(lambda: load.bodies == 0)


async def test_px_029_after_an_outage_one_request_goes_ahead(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that failed is well again: the crowd does not fall upon it before one request has shown that it is."""
    monkeypatch.setattr("router.upstream.health.REST_S", 0.2)
    monkeypatch.setattr("router.upstream.health.PENALTY_S", 0.0)
    house.serve(house.replicas[0].address, house.replicas[1].address, limit=16)
    await house.start(router={"queue_length": 50, "queue_wait_s": 10, **PATIENT})
    key = house.key()
    back, well = house.replicas[:2]
    back.script = {"status": 502, "body": "{}"}
    while not house.endpoint()["resting"]:
        assert {one.status for one in await crowd(house, 4, key)} == {200}
    back.script, back.most = {"gate": True}, 0
    await until(lambda: not house.endpoint()["resting"], within_s=5)
    for _ in range(5):
        asked = asyncio.create_task(crowd(house, 8, key))
        await until(lambda asked=asked: asked.done() or back.answering)
        if back.answering:
            break
        await asked
    assert {one.status for one in await crowd(house, 12, key)} == {200}, "nobody waits for the one that tries"
    assert back.most == 1, "all came at once"
    back.script = {"delay_s": 0.02}
    back.gate.set()
    assert {one.status for one in await asked} == {200}
    back.most = 0
    assert {one.status for one in await crowd(house, 24, key)} == {200}
    assert back.most < 8, "its places were not filled slowly"
    assert well.most > back.most


async def test_px_029_whoever_left_the_queue_is_never_sent(house: FaultHouse) -> None:
    house.serve(house.local.address, limit=1)
    await house.start(router={"queue_length": 50, "queue_wait_s": 10, **PATIENT})
    house.fail_all({"gate": True})
    key = house.key()
    first = asyncio.create_task(house.tell(ask("small"), key))
    await until(lambda: house.local.answering == 1)
    assert house.built is not None
    fleet = house.built.fleet
    doomed = [asyncio.create_task(house.tell(ask("small"), key)) for _ in range(5)]
    await until(lambda: fleet.state()["waiting"] == 5)
    for one in doomed:
        one.cancel()
    await until(lambda: fleet.state()["waiting"] == 0)
    house.local.gate.set()
    assert (await first).status == 200
    assert house.asked() == 1, "work was done for somebody who had left"


async def test_px_029_who_cannot_be_served_in_time_is_told_at_once(house: FaultHouse) -> None:
    """How long an answer takes is known by then; five times what fits before the deadline comes in one moment."""
    house.most_stall_s = 1.0  # so many callers are on this loop as well
    house.serve(house.local.address, limit=1)
    await house.start(router={"queue_length": 100, "queue_wait_s": 1, **PATIENT})
    house.fail_all({"delay_s": 0.05})
    key = house.key("private", latency="batch")
    assert {one.status for one in await crowd(house, 8, key)} == {200}
    found = await crowd(house, 100, house.key("private"))
    ended = Counter([(await house.closed(one))["outcome"] for one in found])
    assert set(ended) <= {"answered", "hopeless", "deadline_passed"}
    assert ended["answered"] >= 4 and ended["hopeless"] >= 40, ended
    refused = [one for one in found if one.status != 200]
    assert {(one.status, one.code) for one in refused} == {(503, "queue_timeout")}
    assert all(int(one.headers["retry-after"]) > 0 for one in refused)
    assert house.asked() == 8 + ended["answered"]


# ---- retries


@pytest.mark.parametrize("stream", [False, True])
async def test_retries_stay_within_their_budget_when_everything_fails(house: FaultHouse, stream: bool) -> None:
    """Three replicas, all failing, many requests at any time: a fifth more at the upstreams, not three times."""
    house.most_stall_s = 1.0  # a hundred callers and their upstreams are on this loop as well
    house.serve(*(one.address for one in house.replicas), limit=200)
    await house.start(replicas=3, router=PATIENT | {"keep_alive_s": 20})
    house.fail_all({"status": 502, "body": "{}", "delay_s": 0.25})
    key, left = house.key(), list(range(400))

    async def go_on() -> None:
        while left:
            left.pop()
            assert (await house.tell(ask("small", stream=stream), key)).status in (502, 503)

    await asyncio.gather(*(go_on() for _ in range(100)))
    # Three may always run, however few requests there are, so at both ends of the crowd it is a little over a fifth.
    assert house.asked() <= 1.25 * 400, f"{house.asked()} attempts of 400 requests"
    await house.recorded()
    assert max([len(rows[-1]["attempts"]) for rows in house.rows().values()]) <= 3
    assert house.leaked() == 0


async def test_one_request_alone_is_tried_three_times_and_no_more(house: FaultHouse) -> None:
    await house.start(replicas=3)
    house.fail_all({"status": 502, "body": "{}"})
    found = await house.tell(ask("small"), house.key())
    assert found.status in (502, 503)
    assert len(await house.attempts(found)) == house.asked() == 3


async def test_one_request_at_which_two_connections_broke_is_not_tried_again(house: FaultHouse) -> None:
    """It may be what broke them (PX-020)."""
    await house.start(replicas=3)
    house.fail_all({"reset": 0})
    found = await house.tell(ask("small"), house.key())
    assert found.status in (502, 503)
    assert len(await house.attempts(found)) == house.asked() == 2


async def test_what_is_held_at_once_never_passes_the_budget(house: FaultHouse) -> None:
    """Far more at once than the key has money for: whatever is refused for it was not sent. The house looks at every
    hold (I3)."""
    house.may_leave = True
    await house.start(hosted=True)
    house.provider.script = {"gate": True}
    key = house.key("public", budget_usd=0.26)  # for five: a thousand tokens of output at $50 a million, and a little
    asked = [asyncio.create_task(house.tell(ask("big"), key)) for _ in range(20)]
    await until(lambda: sum(one.done() for one in asked) == 15 and len(house.provider.requests) == 5)
    refused = [one.result() for one in asked if one.done()]
    assert {(one.status, one.code) for one in refused} == {(429, "budget_exceeded")}
    house.provider.gate.set()
    assert Counter([(await one).status for one in asked]) == {200: 5, 429: 15}
