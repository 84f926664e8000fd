"""Local models are full: what may leave goes out, what may not waits in turn, and each end of waiting is on record.

Through a real router over real sockets; an engine with one place, and a hosted provider behind the real door.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from router.api.answers import KEEP_ALIVE
from router.api.exchange import Exchange
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
    """UP-025: a bounded queue, and never more that wait."""
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


async def test_bu_009_a_loud_team_keeps_nobody_from_an_answer(house: House) -> None:
    """It fills the queue. Another team's request finds a place in it all the same, and is answered second."""
    await start(house, queue_length=6)
    loud, quiet, ended = house.key("private", team="loud"), house.key("private", team="quiet"), []

    async def asked(who: str, key: str, number: int) -> Reply:
        reply = await house.post(ask("small", user=f"{who} {number}"), key)
        ended.append((who, reply.status))
        return reply

    async with occupied(house):
        crowd = [asyncio.create_task(asked("loud", loud, n)) for n in range(6)]
        await until(lambda: live(house)["waiting"] == 6)
        crowd.append(asyncio.create_task(asked("quiet", quiet, 0)))
        await until(lambda: ended)
        assert live(house)["queue"] == {"interactive": 6, "batch": 0, "teams": 2}
    refused, *_ = [one.result() for one in crowd if one.done()]
    assert (refused.status, refused.error["code"]) == (503, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    *_, closed = await house.events(refused)
    assert (closed["outcome"], closed["attempts"]) == ("pushed_out", []) and closed["queued_ms"] > 0
    await asyncio.gather(*crowd)
    assert ended[0] == ("loud", 503)
    assert ended.index(("quiet", 200)) == 2


async def test_interactive_is_answered_before_batch_which_waits_for_longer(house: House) -> None:
    """By its key, by header or by body, in which order so ever they came."""
    await start(house, queue_wait_s=0)
    nightly, key = house.key("private", latency="batch"), house.key("private")
    async with occupied(house):
        late = [waiting(house, nightly, user="key"), waiting(house, key, user="body", headgate={"latency": "batch"})]
        body = ask("small", user="header")
        late.append(asyncio.create_task(house.post(body, key, headers={"x-headgate-latency": "batch"})))
        await until(lambda: live(house)["queue"]["batch"] == 3)
        reply = await house.post(ask("small"), nightly, headers={"x-headgate-latency": "interactive"})
        assert (reply.status, reply.error["code"]) == (503, "queue_timeout"), "it does not wait so long"
    found = [await one for one in late]
    assert [reply.status for reply in found] == [200] * 3
    assert [(await house.events(reply))[0]["latency"] for reply in found] == ["batch"] * 3
    assert [request.headers.get("x-vllm-priority") for request in house.local.requests] == [None, "1", "1", "1"]


async def test_a_server_that_is_not_ours_hears_nothing_of_it(house: House) -> None:
    """Nobody knows how it was started, and whether it takes the header at all."""
    house.instances[:] = [instance("small", house.local.address, attached=True)]
    await house.start()
    assert (await house.post(ask("small"), house.key("private", latency="batch"))).status == 200
    assert "x-vllm-priority" not in house.local.requests[-1].headers


async def test_a_stream_of_batch_is_kept_alive_for_as_long_as_it_waits(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Exchange] = []
    speaks = Exchange.keep_alive
    monkeypatch.setattr(Exchange, "keep_alive", lambda exchange: (speaks(exchange), said.append(exchange)))
    await start(house, queue_wait_s=0, keep_alive_s=0.02)
    async with occupied(house):
        late = waiting(house, house.key("private", latency="batch"), stream=True)
        await until(lambda: live(house)["queue"]["batch"] == 1, late)
        await until(lambda: len(said) > 2, late)
    reply = await late
    assert reply.status == 200
    assert reply.body.startswith(KEEP_ALIVE * 2) and reply.body.endswith(b"data: [DONE]\n\n")


async def test_a_way_to_wait_that_there_is_not_is_a_mistake_with_its_remedy(house: House) -> None:
    await start(house)
    reply = await house.post(ask("small"), house.key("private"), headers={"x-headgate-latency": "now"})
    assert (reply.status, reply.error["param"]) == (400, "x-headgate-latency")
    assert "interactive" in reply.error["message"] and "batch" in reply.error["message"]


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


# ---- by the wait that is expected


LONG = "river " * 2000
"""About 12 KB: three thousand tokens."""


def learned(house: House, a_second: float) -> None:
    """The router has found that the engine reads so many prompt tokens a second."""
    assert house.built is not None
    there, now = house.built.fleet.paces.there("small", "small"), time.monotonic() - 60
    for number in range(8):
        tokens = a_second * (1 + number % 4)
        sent = there.sent(int(tokens * 4), 0, now + 6 * number)
        sent.first(now + 6 * number + tokens / a_second)
        sent.left(now + 6 * number + 5)


def saying(*words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(words)}]


async def test_a_very_long_private_prompt_on_an_idle_endpoint_is_served_at_once(house: House) -> None:
    """By what is known it is read for a minute; nothing is before it, so it does not wait, and nothing is refused."""
    await start(house, hosted=True, limit=4, queue_wait_s=0, allowed_wait_s={"auto": 0.1})
    learned(house, 100.0)
    reply = await house.post(ask(messages=saying(LONG)), house.key("private"))
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    opened, closed = await house.events(reply)
    expected = opened["order"][0]["predicted"]
    assert expected["wait_ms"] == 0 and expected["first_token_ms"] > 20_000
    assert closed["queued_ms"] is None and closed["trigger"] == ""


async def test_an_idle_endpoint_never_overflows(house: House) -> None:
    await start(house, hosted=True, limit=4, allowed_wait_s={"auto": 0.1})
    learned(house, 100.0)
    reply = await house.post(ask(messages=saying(LONG)), house.key("public"))
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    opened, *_ = await house.events(reply)
    assert opened["order"][0]["saturation"] == {"value": 0.0, "why": "it is idle"}


async def test_who_would_wait_too_long_goes_out_where_that_is_allowed_and_is_told_the_numbers(house: House) -> None:
    """Places are free; a prompt before it is read for longer than the lane allows."""
    await start(house, hosted=True, limit=4, queue_wait_s=0, allowed_wait_s={"auto": 0.1})
    learned(house, 0.5)
    async with occupied(house):
        public = await house.post(ask(), house.key("public"))
        assert (public.headers["x-headgate-place"], public.headers["x-headgate-trigger"]) == ("hosted", "overflow")
        assert "overflow, since small is saturated (" in public.headers["x-headgate-reason"]
        assert " s where 0.1 s are allowed)" in public.headers["x-headgate-reason"]
        opened, *_, closed = await house.events(public)
        small = next(c for c in opened["order"] if c["model"] == "small")
        assert small["saturation"]["value"] > 1 and small["predicted"]["wait_ms"] > 100 and not small["full"]
        assert (opened["reason"], closed["trigger"]) == (public.headers["x-headgate-reason"], "overflow")
        private = await house.post(ask(), house.key("private"))  # there is room: it need not wait for anything here
        assert (private.status, private.headers["x-headgate-place"]) == (200, "local")
        assert (await house.events(private))[-1]["queued_ms"] is None
        assert house.built is not None and house.built.fleet.snapshot().endpoints[0].spilling
    again = await house.post(ask(), house.key("public"))
    assert again.headers["x-headgate-place"] == "local"
    assert house.built is not None and not house.built.fleet.snapshot().endpoints[0].spilling
    assert len(house.provider.requests) == 1


async def test_a_batch_request_waits_where_another_goes_out(house: House) -> None:
    await start(house, hosted=True)
    async with occupied(house):
        headers = {"x-headgate-latency": "batch"}
        batch = asyncio.create_task(house.post(ask(), house.key("public"), headers=headers))
        await until(lambda: live(house)["waiting"] == 1, batch)
        assert (await house.post(ask(), house.key("public"))).headers["x-headgate-place"] == "hosted"
    reply = await batch
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local")
    assert len(house.provider.requests) == 1


async def test_readings_that_are_too_old_never_refuse_private_work(house: House) -> None:
    await start(house, hosted=True, limit=4, queue_wait_s=0)
    load = {"running": 0, "waiting": 0, "kv_use": 0.1, "age_s": 60}
    house.instances[:] = [instance("small", house.local.address, limit=4, load=load)]
    house.serving.script = {"body": json.dumps(house.document())}
    await until(lambda: live(house)["endpoints"][0]["stale"])
    alone = await house.post(ask(), house.key("public"))
    assert alone.headers["x-headgate-place"] == "local"  # nothing of ours is there, and that is known at once
    async with occupied(house):
        private = await house.post(ask(), house.key("private"))
        assert (private.status, private.headers["x-headgate-place"]) == (200, "local")
        public = await house.post(ask(), house.key("public"))
        assert (public.headers["x-headgate-place"], public.headers["x-headgate-trigger"]) == ("hosted", "overflow")
        assert "its readings are too old to be believed" in public.headers["x-headgate-reason"]


async def test_what_others_do_at_an_engine_counts_against_its_places(house: House) -> None:
    await start(house, hosted=True, limit=4)
    load = {"running": 3, "waiting": 2, "kv_use": 0.1, "age_s": 0.1}
    house.instances[:] = [instance("small", house.local.address, limit=4, load=load)]
    house.serving.script = {"body": json.dumps(house.document())}
    await until(lambda: live(house)["endpoints"][0]["others"] == 5)
    public = await house.post(ask(), house.key("public"))
    assert public.headers["x-headgate-place"] == "hosted"
    assert "5 of 4 places taken, 5 by others" in public.headers["x-headgate-reason"]
    private = await house.post(ask(), house.key("private"))
    assert (private.status, private.headers["x-headgate-place"]) == (200, "local")


async def test_what_was_expected_and_what_came_stand_in_the_record_and_the_metrics(house: House) -> None:
    await start(house, hosted=True, limit=4)
    learned(house, 10_000.0)
    house.local.script = {"stream": ["a"] * 40}
    key = house.key("private")
    replies = [await house.post(ask("small", stream=True), key) for _ in range(3)]
    *_, closed = await house.events(replies[-1])
    assert closed["predicted"]["wait_ms"] == 0 and closed["predicted"]["first_token_ms"] > 0
    assert closed["predicted"]["tokens_per_s"] > 0  # learned from the answers before it
    assert closed["met"]["first_token_ms"] > 0 and closed["met"]["tokens_per_s"] > 0
    connector = aiohttp.UnixConnector(path=str(house.home.socket("admin")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://router/metrics") as answer:
        text = await answer.text()
    assert 'headgate_prediction_error_ratio_count{endpoint="small",what="first_token"} 3.0' in text
    assert 'headgate_prediction_error_ratio_count{endpoint="small",what="speed"} 2.0' in text


async def test_nothing_is_predicted_where_it_decides_nothing_but_explain_says_it(house: House) -> None:
    """One local endpoint and no provider: a request is not to pay for a number that nobody uses."""
    await start(house, limit=4)
    learned(house, 10_000.0)
    house.local.script = {"stream": ["a"] * 40}
    reply = await house.post(ask("small", stream=True), house.key("private"))
    opened, *_, closed = await house.events(reply)
    assert not {"predicted", "met"} & closed.keys() and "predicted" not in opened["order"][0]
    connector, where = aiohttp.UnixConnector(path=str(house.home.socket("admin"))), "http://router/explain"
    async with aiohttp.ClientSession(connector=connector) as session, session.post(where, json=ask("small")) as answer:
        shown = await answer.json()
    assert shown["order"][0]["predicted"]["first_token_ms"] > 0
