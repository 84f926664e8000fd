"""Whom a request goes to next when an endpoint fails, how often, and when it gives up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.errors import HeadgateError
from router.records import MOST_ATTEMPTS, Ask, Decision
from router.upstream.connection import Address
from router.upstream.fleet import Access
from router.upstream.health import Health
from router.upstream.tries import LEAST, SHARE
from serving.catalogue import Model
from tests.conftest import until
from tests.fakes.asking import ask, decided, endpoint
from tests.fakes.busy import busy
from tests.fakes.faults import Script, Upstream, completion
from tests.router.upstream.test_attempts import FAR, NEAR, SSE, WHO, Rig, rig_at, said

NAMES = ("near", "near-2", "near-3", "near-4")
BROKEN: Script = {"status": 502, "body": "{}"}


class Replicas:
    """Four engines that serve one model."""

    def __init__(self, rig: Rig, engines: list[Upstream]) -> None:
        self.rig, self.engines = rig, engines

    def decision(self, asked: Ask, *more: Model, **changed: dict[str, Any]) -> Decision:
        served = [endpoint(NEAR, name=name, **changed.get(name, {})) for name in NAMES[: len(self.engines)]]
        return decided(asked, WHO, NEAR, *more, endpoints=[*served, *map(endpoint, more)])

    async def run(self, *scripts: Script, asked: Ask | None = None, **changed: dict[str, Any]) -> list[str]:
        """The outcomes of the tries, where the engines do as in `scripts`, in the order they are asked."""
        asked = asked or ask("near")
        for engine, script in zip(self.engines, scripts, strict=False):
            engine.script = script
        with contextlib.suppress(HeadgateError):
            await self.rig.run(self.decision(asked, **changed), asked)
        self.rig.ledger.store.flush()
        assert self.rig.room.total() == self.rig.attempts._retries.running == 0
        return [a["outcome"] for a in self.rig.ledger.store.events(asked.id)[-1]["attempts"]]


@pytest.fixture
async def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replicas]:
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(rig_at(tmp_path))
        engines = [rig.near, *[await stack.enter_async_context(Upstream()) for _ in NAMES[1:]]]
        reach = {name: Access(Address.parse(one.address)) for name, one in zip(NAMES, engines, strict=True)}
        monkeypatch.setattr(rig.fleet, "access", reach.__getitem__)
        yield Replicas(rig, engines)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ({"status": 500, "body": "{}"}, "error"),
        ({"status": 502, "body": "{}"}, "error"),
        ({"status": 504, "body": "{}"}, "timeout"),
        ({"status": 520, "body": "{}"}, "error"),
        ({"status": 529, "body": "{}"}, "overloaded"),
        ({"status": 503, "body": "{}"}, "overloaded"),
        ({"status": 429, "body": "{}"}, "rate_limited"),
        ({"status": 302, "body": "", "headers": {"location": "http://127.0.0.1:1/"}}, "error"),
        ({"status": 204, "body": ""}, "error"),
        ({"raw": "nonsense"}, "bad_response"),
        ({"reset": 0}, "reset"),
        ({"never": True}, "first_byte_timeout"),
        ({"body": "<html>", "headers": {"content-type": "text/html"}}, "wrong_type"),
        ({"body": '{"choices": ['}, "unusable"),
    ],
)
async def test_what_failed_there_is_asked_of_a_replica(replicas: Replicas, script: Script, outcome: str) -> None:
    tries = await replicas.run(script)
    assert tries[1:] == ["answered"]
    assert tries[0] == outcome or {tries[0], outcome} == {"reset", "closed"}


async def test_a_wrong_request_is_asked_of_nobody_else_and_is_no_fault_of_the_engine(replicas: Replicas) -> None:
    for number in range(4):
        asked = ask("near")._replace(id=f"req_{number}")
        assert await replicas.run({"status": 400, "body": "{}"}, asked=asked) == ["bad_request"]
    assert not replicas.rig.attempts._health.failing("near", 0.0)
    assert replicas.engines[1].accepted == 0


async def test_only_so_many_tries_and_an_inner_error_is_tried_once_more(replicas: Replicas) -> None:
    assert await replicas.run(*[BROKEN] * 4) == ["error"] * MOST_ATTEMPTS
    asked = ask("near")._replace(id="req_2")
    replicas.rig.attempts._health = Health()
    assert await replicas.run(*[{"status": 500, "body": "{}"}] * 4, asked=asked) == ["error"] * 2


async def test_without_retry_budget_the_error_is_the_answer(replicas: Replicas) -> None:
    retries = replicas.rig.attempts._retries
    retries.running, before = 100, retries.running
    replicas.engines[0].script = BROKEN
    with pytest.raises(HeadgateError) as told:
        await replicas.rig.run(replicas.decision(ask("near")), ask("near"))
    retries.running = before
    assert (told.value.status, [e.accepted for e in replicas.engines[1:]]) == (502, [0, 0, 0])


async def test_a_hung_engine_is_left_for_another_and_the_last_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody else is left a first token may take as long as the whole answer."""
    async with contextlib.AsyncExitStack() as stack:
        rig = await stack.enter_async_context(rig_at(tmp_path))
        other = await stack.enter_async_context(Upstream())
        reach = {"near": Access(Address.parse(rig.near.address)), "near-2": Access(Address.parse(other.address))}
        monkeypatch.setattr(rig.fleet, "access", reach.__getitem__)
        limits = rig.sending._connections._deadlines
        rig.sending._connections._deadlines = replace(limits, first_byte_s=3.0, first_token_s=0.1)
        asked = ask("near", stream=True)
        rig.near.script = {"never": True}
        other.script = {"stream": ["a"], "body_delay_s": 0.3}
        both = [endpoint(NEAR), endpoint(NEAR, name="near-2")]
        assert b"[DONE]" in await rig.run(decided(asked, WHO, NEAR, endpoints=both), asked)
        assert [a["outcome"] for a in rig.closed()["attempts"]] == ["first_token_timeout", "answered"]


async def test_after_the_first_delta_nobody_else_is_asked(replicas: Replicas) -> None:
    asked = ask("near", stream=True)
    delta = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    assert await replicas.run({"chunks": [delta], "headers": SSE}, asked=asked) == ["answered"]
    assert replicas.engines[1].accepted == 0
    closed = replicas.rig.closed()
    assert (closed["outcome"], closed["output_tokens"]) == ("cut", 1)


async def test_what_rests_is_asked_where_nobody_else_is_left(replicas: Replicas) -> None:
    rest = {"resting": "it refuses connections"}
    replicas.engines = replicas.engines[:2]
    assert await replicas.run({}, {}, near=rest) == ["answered"]
    assert (replicas.engines[0].accepted, replicas.engines[1].accepted) == (0, 1)
    asked = ask("near")._replace(id="req_2")
    replicas.engines[1].script = BROKEN
    decision = replicas.decision(asked, near=rest)
    assert b"Hello" in await replicas.rig.run(decision, asked)
    replicas.engines = replicas.engines[:1]
    asked = ask("near")._replace(id="req_3")
    assert await replicas.run({}, asked=asked, near=rest) == ["answered"]


async def test_an_engine_that_is_gone_rests_and_the_next_request_knows(rig: Rig) -> None:
    await rig.near.__aexit__()
    await rig.fails(ask("near"), NEAR)
    assert "refuses connections" in rig.attempts._health.resting("near", 0.0)
    rig.ledger.store.flush()


async def test_without_a_local_engine_public_data_overflows(rig: Rig) -> None:
    await rig.near.__aexit__()
    await rig.run(decided(ask("near"), WHO, NEAR, FAR), ask("near"))
    closed = rig.closed()
    assert ([a["outcome"] for a in closed["attempts"]], closed["trigger"]) == (["refused", "answered"], "overflow")


async def test_a_pause_that_a_provider_asks_for_is_kept_and_told(rig: Rig) -> None:
    rig.door.script = {**said(429, "sent"), "headers": {"x-headgate-door": "sent", "retry-after": "7"}}
    told = await rig.fails(ask("frontier"), FAR)
    assert (told.status, told.code, told.retry_after) == (429, "rate_limit_exceeded", 7)
    assert "7 s more" in rig.attempts._health.resting("far", asyncio.get_running_loop().time())


async def test_a_cut_stream_counts_against_its_endpoint_and_a_caller_that_leaves_does_not(rig: Rig) -> None:
    health = rig.attempts._health
    delta = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    asked = ask("near", stream=True)
    rig.near.script = {"chunks": [delta] * 100, "pause_s": 0.02, "headers": SSE}
    begun = asyncio.Event()
    for number in range(4):
        one = asked._replace(id=f"req_{number + 2}")
        work = asyncio.create_task(rig.run(decided(one, WHO, NEAR), one, begun))
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert not health.failing("near", 0.0)
    rig.near.script = {"chunks": [delta], "headers": SSE}
    for number in range(3):
        one = asked._replace(id=f"req_{number + 7}")
        await rig.run(decided(one, WHO, NEAR), one)
    assert "failed again" in health.resting("near", asyncio.get_running_loop().time())


async def test_prompt_tokens_are_outstanding_until_the_answer_ends(rig: Rig) -> None:
    rig.near.script = {"body": completion(), "delay_s": 0.05}
    decision = decided(ask("near"), WHO, NEAR)
    work = asyncio.create_task(rig.run(decision, ask("near")))
    await until(lambda: rig.near.requests, work)
    assert rig.room.outstanding("near") == decision.traits.prompt_tokens > 0
    await work
    assert rig.room.outstanding("near") == 0
    assert json.loads(rig.near.requests[0].body)["model"] == "near"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path) as made:
        yield made


async def test_who_is_called_in_without_retry_budget_gives_the_place_back(replicas: Replicas) -> None:
    room, retries = replicas.rig.room, replicas.rig.attempts._retries
    replicas.engines = replicas.engines[:2]
    replicas.engines[0].script = BROKEN
    room.refresh({"near": 0, "near-2": 1})
    room.enter("near-2")
    decision = replicas.decision(ask("near"), **{"near-2": {"limit": 1, "in_flight": 1}})
    work = asyncio.create_task(replicas.rig.run(decision, ask("near")))
    await until(room.waiting, work)
    retries.running = 100
    room.leave("near-2")
    with pytest.raises(HeadgateError) as told:
        await work
    retries.running = 0
    assert (told.value.status, replicas.engines[1].accepted, room.total()) == (502, 0, 0)


async def test_what_rests_is_asked_too_where_what_was_waited_for_fails(replicas: Replicas) -> None:
    room = replicas.rig.room
    replicas.engines = replicas.engines[:2]
    replicas.engines[0].script = BROKEN
    room.refresh({"near": 1, "near-2": 1})
    room.enter("near")
    replicas.rig.attempts._health.failed("near-2", "refused", time.monotonic())
    changed = {"near": {"limit": 1, "in_flight": 1}, "near-2": {"resting": "it refuses connections"}}
    work = asyncio.create_task(replicas.rig.run(replicas.decision(ask("near"), **changed), ask("near")))
    await until(room.waiting, work)
    room.leave("near")
    assert b"Hello" in await work


async def test_who_waits_looks_again_at_what_rested(replicas: Replicas) -> None:
    """Else it waits its whole time for the full one, while the other is well again and answers whoever comes later."""
    room, health = replicas.rig.room, replicas.rig.attempts._health
    replicas.engines = replicas.engines[:2]
    room.refresh({"near": 1, "near-2": 1})
    health.asked_to_wait("near-2", 0.2, time.monotonic())
    changed = {"near": {"limit": 1, "in_flight": 1}, "near-2": {"resting": "it asked for a pause"}}
    with busy(room, "near"):
        assert b"Hello" in await replicas.rig.run(replicas.decision(ask("near"), **changed), ask("near"))
    assert [a["endpoint"] for a in replicas.rig.closed()["attempts"]] == ["near-2"]


async def test_a_replica_that_dies_does_not_take_the_queue_along(replicas: Replicas) -> None:
    """Its free places would go to those that wait, and each that fails there frees one for the next."""
    rig, (near, other, *_) = replicas.rig, replicas.engines
    room, few, many = rig.room, 8, 40
    room._length = many
    replicas.engines = replicas.engines[:2]
    room.refresh({"near": few, "near-2": few})
    other.script = {"delay_s": 0.02}
    taken = {name: {"limit": few, "in_flight": few} for name in NAMES[:2]}
    with contextlib.ExitStack() as there, contextlib.ExitStack() as elsewhere:
        for _ in range(few):
            there.enter_context(busy(room, "near"))
            elsewhere.enter_context(busy(room, "near-2"))
        asked = [ask("near")._replace(id=f"req_{number}") for number in range(many)]
        work = [asyncio.create_task(rig.run(replicas.decision(one, **taken), one)) for one in asked]
        await until(lambda: room.waiting() == many)
        await near.__aexit__()
        there.close()
        await until(lambda: rig.attempts._health.resting("near", time.monotonic()))
        elsewhere.close()
        ends = await asyncio.gather(*work, return_exceptions=True)
    assert sum(isinstance(end, bytes) and b"Hello" in end for end in ends) >= many - few, ends
    assert room.total() == 0


async def test_who_waited_is_not_kept_by_an_engine_that_hangs(replicas: Replicas) -> None:
    """Where another has room by then, a late first token is a reason to go there, as for one that never waited."""
    room, asked = replicas.rig.room, ask("near", stream=True)
    replicas.engines = replicas.engines[:2]
    replicas.engines[0].script = {"stream": [None]}
    replicas.engines[1].script = SSE
    limits = replicas.rig.sending._connections._deadlines
    replicas.rig.sending._connections._deadlines = replace(limits, first_token_s=0.1)
    room.refresh({"near": 1, "near-2": 1})
    taken = {name: {"limit": 1, "in_flight": 1} for name in NAMES[:2]}
    with busy(room, "near-2"):
        with busy(room, "near"):
            work = asyncio.create_task(replicas.rig.run(replicas.decision(asked, **taken), asked))
            await until(room.waiting, work)
        await until(lambda: replicas.engines[0].answering, work)
    assert b"[DONE]" in await work
    assert [a["outcome"] for a in replicas.rig.closed()["attempts"]] == ["first_token_timeout", "answered"]


async def test_a_provider_is_left_alone_for_as_long_as_it_asks(rig: Rig) -> None:
    rig.door.script = {**said(429, "sent"), "headers": {"x-headgate-door": "sent", "retry-after": "7"}}
    await rig.fails(ask("frontier"), FAR)
    asked, again = len(rig.door.requests), ask("frontier")._replace(id="req_2")
    with pytest.raises(HeadgateError) as told:
        await rig.run(decided(again, WHO, FAR), again)
    assert (told.value.status, told.value.code, len(rig.door.requests)) == (429, "rate_limit_exceeded", asked)
    assert told.value.retry_after is not None and 5 < told.value.retry_after <= 7
    assert rig.room.total() == 0


async def test_a_provider_that_the_door_cannot_reach_rests(rig: Rig) -> None:
    rig.door.script = said(502, "failed")
    for number in range(3):
        asked = ask("frontier")._replace(id=f"req_{number + 2}")
        with pytest.raises(HeadgateError):
            await rig.run(decided(asked, WHO, FAR), asked)
    assert "failed again" in rig.attempts._health.resting("far", asyncio.get_running_loop().time())


async def test_a_late_first_token_is_waited_for_where_no_other_can_be_asked_any_more(replicas: Replicas) -> None:
    connections, retries = replicas.rig.sending._connections, replicas.rig.attempts._retries
    connections._deadlines = replace(connections._deadlines, first_byte_s=5.0, first_token_s=0.1)
    asked = ask("near", stream=True)
    replicas.engines = replicas.engines[:2]
    replicas.engines[0].script = {"stream": ["a"], "delay_s": 0.4}
    work = asyncio.create_task(replicas.rig.run(replicas.decision(asked), asked))
    await until(lambda: replicas.engines[0].requests, work)
    retries.running = 100  # used up by others after it was sent
    assert b"[DONE]" in await work
    retries.running = 0
    assert [a["outcome"] for a in replicas.rig.closed()["attempts"]] == ["answered"]


async def test_many_first_tokens_that_are_late_at_once_share_the_retry_budget(replicas: Replicas) -> None:
    """All timers fire before the next try of any has begun; each alone would find the budget untouched."""
    rig, retries = replicas.rig, replicas.rig.attempts._retries
    connections = rig.sending._connections
    connections._deadlines = replace(connections._deadlines, first_byte_s=5.0, first_token_s=0.2)
    replicas.engines = replicas.engines[:2]
    for engine in replicas.engines:
        engine.script = {"never": True}
    rig.room.refresh({"near": 0, "near-2": 0})
    asked = [ask("near", stream=True)._replace(id=f"req_{number}") for number in range(30)]
    work = [asyncio.create_task(rig.run(replicas.decision(one), one)) for one in asked]
    first, second = replicas.engines
    await until(lambda: len(first.requests) == 30, work[0])
    time.sleep(0.25)  # the loop stands still until all of them are late
    await until(lambda: retries.running >= LEAST and retries.running == len(second.requests))
    assert LEAST < retries.running <= SHARE * 30
    assert rig.room.in_flight("near") == 30 - retries.running  # the others are waited for where they are
    for one in work:
        one.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    assert (retries.running, rig.room.total()) == (0, 0)


async def test_a_share_of_the_retry_budget_that_was_promised_is_given_back_by_who_leaves(replicas: Replicas) -> None:
    rig, retries = replicas.rig, replicas.rig.attempts._retries
    connections = rig.sending._connections
    connections._deadlines = replace(connections._deadlines, first_byte_s=5.0, first_token_s=0.1)
    replicas.engines = replicas.engines[:2]
    replicas.engines[0].script = {"never": True}
    asked = ask("near", stream=True)
    work = asyncio.create_task(rig.run(replicas.decision(asked), asked))
    await until(lambda: replicas.engines[0].requests, work)
    reserve = retries.reserve

    def promised() -> None:
        reserve()
        work.cancel()  # before its next try begins

    retries.reserve = promised  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (retries.running, replicas.engines[1].accepted) == (0, 0)
