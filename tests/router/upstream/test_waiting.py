"""Where nothing has room a request waits, in turn and not for ever; and how long it waited stands in its record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.errors import DeadlinePassed, HeadgateError, QueueFull
from router.records import MOST_ATTEMPTS, Ask, Decision
from router.upstream import attempts
from router.upstream.room import Room
from router.upstream.walk import within_hold
from serving.catalogue import Model
from tests.conftest import until
from tests.fakes.asking import ask, caller, candidate, decided, endpoint, hosted, local
from tests.fakes.busy import busy
from tests.router.upstream.test_attempts import FAR, NEAR, WHO, Rig, rig_at, said

OVER = {"status": 503, "body": '{"error": {"message": "too many queued requests"}}'}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path, limit=1) as made:
        yield made


def full(asked: Ask, *models: Model) -> Decision:
    """The decision while `near` has one of one place taken."""
    served = [endpoint(m, limit=1, in_flight=1) if m.place == "local" else endpoint(m) for m in models]
    decision = decided(asked, WHO, *models, endpoints=served)
    order = sorted(decision.order, key=lambda c: c.endpoint.full)  # as decide.py hands them out
    assert any(c.endpoint.full for c in order)
    worst = {c.name: cost for c, cost in zip(decision.order, decision.worst, strict=True)}
    return decision._replace(order=tuple(order), worst=tuple(worst[c.name] for c in order))


def waiting(rig: Rig, asked: Ask, decision: Decision) -> asyncio.Task[bytes]:
    return asyncio.create_task(rig.run(decision, asked))


async def test_it_is_answered_when_the_place_is_free_and_not_before(rig: Rig) -> None:
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR))
        await until(lambda: rig.room.waiting() == 1, work)
        assert rig.near.requests == []
    assert b"Hello" in await work
    closed = rig.closed()
    assert (closed["outcome"], closed["trigger"]) == ("answered", "")
    assert closed["queued_ms"] > 0
    assert [a["outcome"] for a in closed["attempts"]] == ["answered"]
    assert (rig.room.total(), rig.room.waiting()) == (0, 0)


async def test_what_never_had_to_wait_was_not_queued(rig: Rig) -> None:
    await rig.run(decided(ask("near"), WHO, NEAR), ask("near"))
    assert rig.closed()["queued_ms"] is None


async def test_a_place_taken_since_the_decision_is_waited_for_and_not_overrun(rig: Rig) -> None:
    decision = decided(ask("near"), WHO, NEAR)
    assert not decision.order[0].endpoint.full
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), decision)
        await until(lambda: rig.room.waiting() == 1, work)
        assert rig.room.in_flight("near") == 1
    await work


async def test_a_place_taken_since_the_decision_is_an_overflow_where_the_data_may_leave(rig: Rig) -> None:
    with busy(rig.room, "near"):
        await rig.run(decided(ask("near"), WHO, NEAR, FAR), ask("near"))
    closed = rig.closed()
    assert (closed["model"], closed["trigger"], closed["queued_ms"]) == ("far", "overflow", None)
    assert rig.near.accepted == 0


async def test_a_full_queue_is_its_own_outcome(rig: Rig) -> None:
    with busy(rig.room, "near"):
        crowd = [waiting(rig, ask("near")._replace(id=f"req_{n + 2}"), full(ask("near"), NEAR)) for n in range(2)]
        await until(lambda: rig.room.waiting() == 2)
        with pytest.raises(QueueFull):
            await rig.run(full(ask("near"), NEAR), ask("near"))
        rig.ledger.store.flush()
        closed = rig.ledger.store.events("req_1")[-1]
        assert (closed["outcome"], closed["status"], closed["error"]) == ("queue_full", 503, "queue_full")
        assert (closed["queued_ms"], closed["attempts"], closed["cost"]) == (None, [], 0)
    await asyncio.gather(*crowd)


async def test_a_deadline_is_its_own_outcome(rig: Rig) -> None:
    rig.room.wait_s = 0.02
    with busy(rig.room, "near"), pytest.raises(DeadlinePassed):
        await rig.run(full(ask("near"), NEAR), ask("near"))
    closed = rig.closed()
    assert (closed["outcome"], closed["status"], closed["error"]) == ("deadline_passed", 503, "queue_timeout")
    assert closed["queued_ms"] >= 20
    assert rig.near.accepted == 0


async def test_a_caller_that_leaves_the_queue_is_its_own_outcome_and_nothing_is_sent(rig: Rig) -> None:
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR))
        await until(lambda: rig.room.waiting() == 1, work)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    closed = rig.closed()
    assert (closed["outcome"], closed["status"], closed["attempts"]) == ("left_queue", 499, [])
    assert closed["queued_ms"] > 0
    assert (rig.near.accepted, rig.room.total(), rig.room.waiting()) == (0, 0, 0)


async def test_a_caller_that_leaves_after_it_waited_has_left_an_answer_and_no_queue(rig: Rig) -> None:
    rig.near.script = {"never": True}
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR))
        await until(lambda: rig.room.waiting() == 1, work)
    await rig.near.until(lambda: rig.near.requests)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (rig.closed()["outcome"], rig.room.total()) == ("client_left", 0)


# ---- an engine that says itself that it is full (vLLM's 503)


async def test_what_the_engine_has_no_room_for_goes_out_where_it_may(rig: Rig) -> None:
    rig.near.script = OVER
    await rig.run(decided(ask("near"), WHO, NEAR, FAR), ask("near"))
    closed = rig.closed()
    assert [(a["model"], a["outcome"]) for a in closed["attempts"]] == [("near", "overloaded"), ("far", "answered")]
    assert (closed["trigger"], closed["place"], closed["queued_ms"]) == ("overflow", "hosted", None)
    assert rig.room.is_told_full("near")


async def test_an_engine_that_is_broken_is_no_overflow(rig: Rig) -> None:
    rig.near.script = {"status": 500, "body": "{}"}
    await rig.run(decided(ask("near"), WHO, NEAR, FAR), ask("near"))
    assert (rig.closed()["trigger"], rig.room.is_told_full("near")) == ("", False)


async def test_what_may_not_leave_waits_until_the_engine_takes_it(rig: Rig) -> None:
    """However often it says no, and longer from time to time."""
    rig.near.script = OVER
    work = waiting(rig, ask("near"), decided(ask("near"), WHO, NEAR))
    await until(lambda: len(rig.near.requests) == 2, work)  # once, and once again after it had waited
    rig.near.script = {}
    assert b"Hello" in await work
    closed = rig.closed()
    assert [a["outcome"] for a in closed["attempts"]] == ["overloaded", "overloaded", "answered"]
    assert (closed["outcome"], closed["trigger"]) == ("answered", "")
    assert closed["queued_ms"] > 290  # 50 until it is asked again, then a first pause of 250
    assert rig.room.total() == 0


async def test_whoever_was_let_in_and_refused_is_not_turned_away_for_those_who_came_later(rig: Rig) -> None:
    def request(number: int) -> asyncio.Task[bytes]:
        asked = ask("near")._replace(id=f"req_{number}")
        return waiting(rig, asked, decided(asked, WHO, NEAR) if number == 0 else full(asked, NEAR))

    rig.near.script = OVER
    crowd = [request(0)]
    await until(lambda: rig.room.waiting() == 1, crowd[0])
    rig.near.script = {**OVER, "delay_s": 0.1}
    crowd.append(request(1))
    await until(lambda: len(rig.near.requests) == 2)  # the first has its turn
    crowd.append(request(2))
    await until(lambda: rig.room.waiting() == 2)  # the queue is full of others
    rig.near.script = {}
    assert all(b"Hello" in relayed for relayed in await asyncio.gather(*crowd))
    assert rig.room.total() == 0


async def test_an_engine_that_never_has_room_ends_in_the_deadline(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which counts from the first time the request had to wait, however often it was let in and refused."""
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.001)
    rig.near.script = OVER
    rig.room.wait_s = 0.12
    told = await rig.fails(ask("near"), NEAR)
    assert (told.status, told.code) == (503, "queue_timeout")
    closed = rig.closed()
    assert closed["outcome"] == "deadline_passed"
    assert [a["outcome"] for a in closed["attempts"]] == ["overloaded"] * len(rig.near.requests)
    assert 1 <= len(rig.near.requests) <= 4  # every 50 ms
    assert rig.room.total() == 0


async def test_who_was_refused_often_does_not_sleep_through_the_room_that_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(attempts, "MOST_PAUSE_S", 0.02)
    rig.near.script = OVER
    work = waiting(rig, ask("near"), decided(ask("near"), WHO, NEAR))
    await until(lambda: len(rig.near.requests) == 15, work)  # doubled each time it would wait for minutes by now
    rig.near.script = {}
    assert b"Hello" in await work


async def test_an_engine_that_asks_for_longer_than_a_request_may_wait_is_asked_once(rig: Rig) -> None:
    rig.near.script = {**OVER, "headers": {"retry-after": "60"}}
    told = await rig.fails(ask("near"), NEAR)
    assert (told.status, len(rig.near.requests)) == (503, 1)
    assert told.retry_after is not None and 55 < told.retry_after <= 60


async def test_an_engine_is_left_alone_for_as_long_as_it_asks(rig: Rig) -> None:
    rig.near.then = [{**OVER, "headers": {"retry-after": "1"}}]
    began = time.monotonic()
    assert b"Hello" in await rig.run(decided(ask("near"), WHO, NEAR), ask("near"))
    assert time.monotonic() - began >= 0.9 and len(rig.near.requests) == 2


async def test_a_provider_that_has_no_room_is_not_waited_for(rig: Rig) -> None:
    rig.door.script = said(503, "sent")
    told = await rig.fails(ask("frontier"), FAR)
    assert (told.status, len(rig.door.requests), rig.closed()["outcome"]) == (503, 1, "failed")


# ---- together with the rest of the order


async def test_data_that_may_leave_waits_for_nobody(rig: Rig) -> None:
    with busy(rig.room, "near"):
        await rig.run(full(ask("near"), NEAR, FAR), ask("near"))
    closed = rig.closed()
    assert [a["model"] for a in closed["attempts"]] == ["far"]
    assert (closed["queued_ms"], rig.near.accepted) == (None, 0)


async def test_data_that_may_leave_waits_where_every_provider_failed(rig: Rig) -> None:
    rig.door.script = said(502, "sent", "provider_refused_key")
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR, FAR))
        await until(lambda: rig.room.waiting() == 1, work)
    await work
    closed = rig.closed()
    assert [(a["model"], a["outcome"]) for a in closed["attempts"]] == [("far", "error"), ("near", "answered")]
    assert closed["queued_ms"] > 0


async def test_whatever_happened_before_the_caller_is_told_that_waiting_can_help(rig: Rig) -> None:
    rig.door.script = said(502, "sent", "provider_refused_key")
    rig.room.wait_s = 0.02
    with busy(rig.room, "near"), pytest.raises(HeadgateError) as told:
        await rig.run(full(ask("near"), NEAR, FAR), ask("near"))
    assert (told.value.status, told.value.code) == (503, "queue_timeout")
    assert told.value.retry_after


async def test_an_engine_that_breaks_once_its_turn_has_come_is_not_waited_for_again(rig: Rig) -> None:
    rig.near.script = {"status": 500, "body": "{}"}
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR))
        await until(lambda: rig.room.waiting() == 1, work)
    with pytest.raises(HeadgateError) as told:
        await work
    assert (told.value.status, len(rig.near.requests), rig.closed()["outcome"]) == (502, 1, "failed")


async def test_a_request_the_engine_refuses_as_wrong_ends_at_once_after_its_turn_too(rig: Rig) -> None:
    rig.near.script = {"status": 400, "body": "{}"}
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), full(ask("near"), NEAR))
        await until(lambda: rig.room.waiting() == 1, work)
    with pytest.raises(HeadgateError) as told:
        await work
    assert (told.value.status, rig.room.total()) == (400, 0)


async def test_the_clearance_is_looked_at_again_when_the_turn_has_come(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An approval that ended while a request waited."""
    decision = full(ask("near"), NEAR)
    with busy(rig.room, "near"):
        work = waiting(rig, ask("near"), decision)
        await until(lambda: rig.room.waiting() == 1, work)
        monkeypatch.setattr(Model, "cleared_for", lambda *_: decision.traits.data_class - 1)
    with pytest.raises(HeadgateError) as told:
        await work
    assert (told.value.code, rig.near.accepted) == ("data_class_not_cleared", 0)
    assert rig.room.total() == 0


def test_only_what_the_hold_covers_is_tried_and_every_full_local_one_is_waited_for() -> None:
    far = [candidate(hosted(f"far-{n}")) for n in range(MOST_ATTEMPTS + 1)]
    near = [candidate(local(f"near-{n}"), limit=1, in_flight=1) for n in range(2)]
    closed = candidate(hosted("closed"), limit=1, in_flight=1)
    assert within_hold([*far, *near, closed]) == [*far[:MOST_ATTEMPTS], *near]
    assert within_hold([closed, *near]) == [closed, *near]


async def test_room_is_counted_right_whoever_leaves_fails_or_is_answered(rig: Rig) -> None:
    """A crowd on one place: every one is answered, refused or gone, and no place stays taken."""
    rig.room = rig.attempts._room = Room(50, 30, 0.01)
    rig.room.refresh({"near": 2})
    most: list[int] = []

    async def one(number: int) -> Any:
        rig.near.script = {"status": 500, "body": "{}"} if number % 5 == 0 else {}
        asked = ask("near")._replace(id=f"req_{number}")
        task = waiting(rig, asked, full(asked, NEAR))
        if number % 3 == 0:
            asyncio.get_running_loop().call_later(number / 1000, task.cancel)
        try:
            return await task
        except (HeadgateError, asyncio.CancelledError) as ended:
            return type(ended)
        finally:
            most.append(rig.room.in_flight("near"))

    await asyncio.gather(*(one(n) for n in range(1, 31)))
    assert max(most) <= 2
    assert (rig.room.total(), rig.room.waiting()) == (0, 0)
    rig.ledger.store.flush()
    ends = [rig.ledger.store.events(f"req_{n}")[-1] for n in range(1, 31)]
    assert {e["kind"] for e in ends} == {"closed"}
    assert rig.ledger.spent(caller()) == pytest.approx(sum(e["cost"] for e in ends))
