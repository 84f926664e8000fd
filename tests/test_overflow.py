"""Local models are full: what may leave goes out, what may not waits in turn, and each end of waiting is on record.

Through a real router over real sockets; an engine with one place, and a hosted provider behind the real door.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from router.ledger.store import connect
from tests.conftest import House, Reply, ask, instance, until
from tests.fakes.faults import completion

OVER = {"status": 503, "body": '{"error": {"message": "too many queued requests"}}'}


async def start(house: House, *, limit: int = 1, hosted: bool = False, **settings: Any) -> None:
    house.instances[:] = [instance("small", house.local.address, limit=limit)]
    # The hosted model is in the lane that overflows.
    more = {"models": {"big": {"lanes": ["cheap", "frontier"]}}} if hosted else {}
    await house.start(hosted=hosted, router=settings, **more)


def live(house: House) -> dict[str, Any]:
    assert house.built is not None
    return house.built.fleet.state()


@contextlib.asynccontextmanager
async def occupied(house: House) -> AsyncIterator[asyncio.Task[Reply]]:
    """One request is being answered, and takes the only place until the block ends."""
    house.local.script = {"body_delay_s": 60, "body": completion("The first.")}
    key = house.key("private")
    first = asyncio.create_task(house.post(ask("small"), key))
    await until(lambda: live(house)["in_flight"] == 1 and house.local.requests, first)
    house.local.script = {}
    try:
        yield first
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def last_closed(house: House) -> dict[str, Any]:
    """How the request ended last that nobody has an answer of."""
    assert house.built is not None
    await house.built.store.durable()
    with contextlib.closing(connect(house.home.ledger, read_only=True)) as db:
        (body,) = db.execute("SELECT body FROM events WHERE kind='closed' ORDER BY at DESC").fetchone()
    found: dict[str, Any] = json.loads(body)
    return found


def waiting(house: House, key: str, **body: Any) -> asyncio.Task[Reply]:
    return asyncio.create_task(house.post(ask("small", **body), key))


# ---- data that may not leave


async def test_it_waits_and_is_answered_when_there_is_room(house: House) -> None:
    await start(house)
    async with occupied(house):
        second = waiting(house, house.key("private"))
        await until(lambda: live(house)["waiting"] == 1, second)
        assert (live(house)["in_flight"], len(house.local.requests)) == (1, 1)
    reply = await second
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    *_, closed = await house.events(reply)
    assert (closed["outcome"], closed["trigger"], closed["lane"]) == ("answered", "", "named")
    assert closed["queued_ms"] > 0
    assert (live(house)["in_flight"], live(house)["waiting"]) == (0, 0)


async def test_a_crowd_is_answered_without_ever_passing_the_limit(house: House) -> None:
    await start(house, limit=2)
    house.local.script = {"delay_s": 0.02}
    key, most = house.key("private"), 0
    crowd = asyncio.gather(*(waiting(house, key) for _ in range(12)))
    while not crowd.done():
        most = max(most, live(house)["in_flight"])
        await asyncio.sleep(0.001)
    assert [reply.status for reply in await crowd] == [200] * 12
    assert most == 2
    queued = [(await house.events(reply))[-1]["queued_ms"] for reply in await crowd]
    assert sum(ms is not None for ms in queued) == 10


async def test_a_full_queue_is_said_at_once_with_the_time_to_come_back(house: House) -> None:
    """UP-025: a bounded queue, and never more that wait. (That it is fair between teams is not there yet.)"""
    await start(house, queue_length=1, queue_wait_s=7)
    key = house.key("private")
    async with occupied(house):
        second = waiting(house, key)
        await until(lambda: live(house)["waiting"] == 1, second)
        reply = await waiting(house, key)
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "queue_full", "7")
        *_, closed = await house.events(reply)
        assert (closed["outcome"], closed["error"], closed["attempts"]) == ("queue_full", "queue_full", [])
    assert (await second).status == 200


async def test_no_room_in_time_is_said_with_the_time_to_come_back(house: House) -> None:
    """UP-025: with a deadline, then 503 and Retry-After."""
    await start(house, queue_wait_s=0)
    async with occupied(house):
        reply = await waiting(house, house.key("private"))
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "queue_timeout", "1")
    *_, closed = await house.events(reply)
    assert (closed["outcome"], closed["error"], closed["cost"]) == ("deadline_passed", "queue_timeout", 0)
    assert len(house.local.requests) == 1


async def test_whoever_leaves_the_queue_is_gone_at_once_and_nothing_is_sent(house: House) -> None:
    """CL-005"""
    await start(house)
    key = house.key("private")
    async with occupied(house):
        second, third = waiting(house, key), waiting(house, key, user="third")
        await until(lambda: live(house)["waiting"] == 2)
        second.cancel()
        await until(lambda: live(house)["waiting"] == 1)
        closed = await last_closed(house)
        assert (closed["outcome"], closed["status"], closed["attempts"]) == ("left_queue", 499, [])
        assert closed["queued_ms"] > 0
    assert (await third).status == 200
    assert len(house.local.requests) == 2


# ---- data that may leave


async def test_what_may_leave_goes_out_and_what_may_not_waits(house: House) -> None:
    await start(house, hosted=True)
    async with occupied(house):
        private = asyncio.create_task(house.post(ask(), house.key("private")))
        await until(lambda: live(house)["waiting"] == 1, private)
        public = await house.post(ask(), house.key("public"))
        assert (public.status, public.headers["x-headgate-place"]) == (200, "hosted")
        assert public.headers["x-headgate-trigger"] == "overflow"
        opened, *_, closed = await house.events(public)
        assert [(c["model"], c["full"]) for c in opened["order"]] == [("big", False), ("small", True)]
        assert (opened["trigger"], closed["trigger"], closed["queued_ms"]) == ("overflow", "overflow", None)
        assert (len(house.provider.requests), live(house)["waiting"]) == (1, 1)
    reply = await private
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    assert len(house.provider.requests) == 1


async def test_an_engine_that_says_itself_that_it_is_full(house: House) -> None:
    """vLLM answers 503 from its own admission limit while the router still counted on room."""
    await start(house, hosted=True, limit=4)
    house.local.script = OVER
    public = await house.post(ask(), house.key("public"))
    assert (public.status, public.headers["x-headgate-place"]) == (200, "hosted")
    assert public.headers["x-headgate-trigger"] == "overflow"
    *_, closed = await house.events(public)
    assert [a["outcome"] for a in closed["attempts"]] == ["overloaded", "answered"]
    again = await house.post(ask(), house.key("public"))  # known to be full by now, so it is not even asked
    assert ((await house.events(again))[0]["trigger"], len(house.local.requests)) == ("overflow", 1)
    private = asyncio.create_task(house.post(ask(), house.key("private")))
    await until(lambda: live(house)["waiting"] == 1, private)
    house.local.script = {}
    reply = await private
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    assert (await house.events(reply))[-1]["queued_ms"] > 0
    assert len(house.provider.requests) == 2


async def test_an_engine_that_refuses_a_stream_with_status_200_is_full_all_the_same(house: House) -> None:
    """vLLM 0.32 has sent its head by then, so its refusal is the first event of the stream."""
    await start(house, hosted=True, limit=4)
    error = {"error": {"message": "The engine is currently busy.", "type": "Service Unavailable", "code": 503}}
    house.local.script = {
        "headers": {"content-type": "text/event-stream"}, "body": f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n",
    }  # fmt: skip
    public = await house.post(ask(stream=True), house.key("public"))
    assert (public.status, public.headers["x-headgate-place"]) == (200, "hosted")
    assert public.headers["x-headgate-trigger"] == "overflow"
    *_, closed = await house.events(public)
    assert [a["outcome"] for a in closed["attempts"]] == ["overloaded", "answered"]
    private = asyncio.create_task(house.post(ask(stream=True), house.key("private")))
    await until(lambda: live(house)["waiting"] == 1, private)
    house.local.script = {}
    assert (await private).headers["x-headgate-place"] == "local"


async def test_a_prompt_that_only_the_engine_finds_too_long_goes_on_to_a_longer_model(house: House) -> None:
    await start(house, hosted=True, limit=4)
    told = {"message": "This model's maximum context length is 4096 tokens.", "code": 400}
    house.local.script = {"status": 400, "body": json.dumps({"error": told})}
    public = await house.post(ask(), house.key("public"))
    assert (public.headers["x-headgate-place"], public.headers["x-headgate-trigger"]) == ("hosted", "context")
    private = await house.post(ask(), house.key("private"))
    assert (private.status, private.error["code"]) == (400, "context_length_exceeded")
    assert len(house.provider.requests) == 1


async def test_a_hosted_model_that_has_room_first_is_an_overflow_too(house: House) -> None:
    """Both were full; the hosted one was free before the local one was."""
    house.instances[:] = [instance("small", house.local.address, limit=1)]
    await house.start(hosted=True, models={"big": {"lanes": ["cheap", "frontier"], "limit": 1}})
    house.provider.script = {"body_delay_s": 60, "body": completion("The first.")}
    async with occupied(house):
        far = asyncio.create_task(house.post(ask("big"), house.key("public")))
        await until(lambda: live(house)["in_flight"] == 2 and house.provider.requests, far)
        house.provider.script = {}
        public = asyncio.create_task(house.post(ask(), house.key("public")))
        await until(lambda: live(house)["waiting"] == 1, public)
        far.cancel()
        reply = await public
        assert (reply.headers["x-headgate-place"], reply.headers["x-headgate-trigger"]) == ("hosted", "overflow")
        assert (await house.events(reply))[-1]["trigger"] == "overflow"
        await asyncio.gather(far, return_exceptions=True)


async def test_a_provider_that_breaks_off_in_a_stream_may_have_worked_and_is_paid(house: House) -> None:
    await start(house, hosted=True)
    error = {"error": {"message": "overloaded", "code": 503}}
    house.provider.script = {
        "headers": {"content-type": "text/event-stream"}, "body": f"data: {json.dumps(error)}\n\n",
    }  # fmt: skip
    reply = await house.post(ask("big", stream=True), house.key("public"))
    *_, closed = await house.events(reply)
    assert [a["outcome"] for a in closed["attempts"]] == ["unusable"]
    assert closed["cost_usd"] > 0 and closed["estimated"]
