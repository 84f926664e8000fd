"""Every try is recorded and paid for, whoever leaves and whatever fails; and nothing of it stays open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from router.decision.checking import checked
from router.decision.outgoing import body_for
from router.errors import HeadgateError
from router.ledger.budgets import Budgets
from router.ledger.entries import Ledger
from router.ledger.metrics import Metrics
from router.ledger.store import LedgerError, Store
from router.records import MOST_ATTEMPTS, Ask, Decision
from router.upstream.attempts import Attempts
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Access, Fleet
from router.upstream.health import Health
from router.upstream.room import Room
from router.upstream.sending import Sending
from serving.catalogue import Catalogue, DataClass, Model, Site
from tests.conftest import House, instance, until
from tests.conftest import ask as body
from tests.fakes.asking import ask, caller, decided, hosted, local
from tests.fakes.faults import Script, Upstream, completion

WHO = caller("public", budget_usd=10.0)
FAR = hosted(same_as="near")
NEAR = local()
SENT = {"x-headgate-door": "sent"}
SSE = {"content-type": "text/event-stream"}


@dataclass
class Rig:
    """Attempts over real sockets, with a ledger: `near` plays an engine, `door` the door."""

    near: Upstream
    door: Upstream
    fleet: Fleet
    room: Room
    sending: Sending
    attempts: Attempts
    ledger: Ledger

    async def run(self, decision: Decision, asked: Ask, begun: asyncio.Event | None = None) -> bytes:
        """Answer `asked` as the pipeline does; returns what the caller got."""
        relayed = b""
        with self.ledger.entry(asked, WHO, decision) as entry:
            answer = await self.attempts.first_answer(asked, WHO, decision, entry)
            try:
                async for part in answer.parts():
                    relayed += part
                    if begun is not None:
                        begun.set()
            finally:
                answer.close()
        return relayed

    async def fails(self, asked: Ask, *models: Model) -> HeadgateError:
        with pytest.raises(HeadgateError) as told:
            await self.run(decided(asked, WHO, *models), asked)
        return told.value

    def closed(self) -> dict[str, Any]:
        self.ledger.store.flush()
        opened, *_, closed = self.ledger.store.events("req_1")
        assert closed["cost_usd"] <= opened["hold_usd"]
        assert self.ledger.spent(WHO) == pytest.approx(closed["cost_usd"])
        return closed


@contextlib.asynccontextmanager
async def rig_at(folder: Path, **endpoint: Any) -> AsyncIterator[Rig]:
    connections = Connections(Deadlines(connect_s=2.0, first_byte_s=0.15, idle_s=1.0, total_s=5.0), Bounds())
    async with Upstream() as near, Upstream() as door, Upstream() as serving:
        document = {"version": 1, "instances": [instance("near", near.address, **endpoint)]}
        serving.script = {"body": json.dumps(document)}
        catalogue = Catalogue(models={"near": NEAR}, providers={}, site=Site())
        health = Health()
        rests = lambda name: bool(health.resting(name, time.monotonic()))  # noqa: E731  as app.py joins them
        room = Room(length=2, wait_s=30, busy_s=0.05, rests=rests)
        fleet = Fleet(catalogue, connections, Address.parse(serving.address), None, room, health=health)
        polling = asyncio.create_task(fleet.run())
        await until(lambda: fleet.snapshot().endpoints, polling)
        polling.cancel()
        room.refresh({"near": endpoint.get("limit", 4), "far": 0})
        sending = Sending(connections, fleet, Address.parse(door.address), "s" * 32, "v1", body_for)
        attempts = Attempts(sending, fleet, room, checked, health)
        store = Store(folder / "ledger.sqlite")
        yield Rig(near, door, fleet, room, sending, attempts, Ledger(store, Budgets(), Metrics()))
        store.close()
        await connections.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path) as made:
        yield made


# ---- what a hosted attempt costs that gave no answer


def said(status: int, mark: str, code: str = "x") -> Script:
    """An error that comes through the door, or from the door itself."""
    error = json.dumps({"error": {"message": "it failed", "code": code}})
    return {"status": status, "headers": {"x-headgate-door": mark}, "body": error}


@pytest.mark.parametrize(
    ("script", "outcome", "charged"),
    [
        ({"never": True}, "first_byte_timeout", True),
        ({"reset": 0}, "reset", True),
        ({"cut": 60}, "closed", True),
        ({"raw": "nonsense"}, "bad_response", True),
        ({"body": "Hello", "headers": {"content-type": "text/plain", **SENT}}, "wrong_type", True),
        ({"body": "[]", "headers": SENT}, "unusable", True),
        (said(500, "sent"), "error", True),
        (said(503, "sent"), "overloaded", False),
        (said(504, "sent", "provider_timeout"), "timeout", True),
        (said(502, "sent", "provider_failed"), "error", True),
        # The provider refused: nothing was generated.
        (said(400, "sent"), "bad_request", False),
        (said(429, "sent"), "rate_limited", False),
        (said(502, "sent", "provider_refused_key"), "error", False),
        # It never left the door.
        (said(403, "refused"), "door_refused", False),
        (said(503, "closed"), "door_closed", False),
        (said(502, "failed", "provider_unreachable"), "unreachable", False),
        # A connection broke after sending, and the same permit was shown again.
        (said(403, "refused", "permit_used"), "door_refused", True),
    ],
)
async def test_a_hosted_attempt_without_an_answer_costs_what_it_may_have_cost(
    rig: Rig, script: Script, outcome: str, charged: bool
) -> None:
    rig.door.script = script
    decision = decided(ask("frontier"), WHO, FAR)
    await rig.fails(ask("frontier"), FAR)
    closed = rig.closed()
    assert decision.hold
    cost = pytest.approx(decision.hold) if charged else 0
    assert [(a["outcome"], a["cost_usd"]) for a in closed["attempts"]] == [(outcome, cost)]
    ended = "bad_request" if outcome == "bad_request" else "failed"  # the request itself was wrong
    assert (closed["outcome"], closed["cost"], closed["estimated"]) == (ended, cost, charged)
    assert rig.room.total() == 0


async def test_without_a_door_nothing_is_charged_and_waiting_helps(rig: Rig) -> None:
    await rig.door.__aexit__()
    told = await rig.fails(ask("frontier"), FAR)
    assert (told.status, told.code) == (503, "door_closed")
    assert told.retry_after
    assert rig.closed()["cost"] == 0


@pytest.mark.parametrize("text", [": nothing\n\n", 'data: {"error":{"message":"no"}}\n\n', "data: {\n\n"])
async def test_a_stream_that_gives_nothing_is_charged(rig: Rig, text: str) -> None:
    rig.door.script = {"chunks": [text], "headers": SSE}
    asked = ask("frontier", stream=True)
    assert (await rig.fails(asked, FAR)).status == 502
    closed = rig.closed()
    assert closed["attempts"][0]["outcome"] == "unusable"
    assert closed["cost"] == pytest.approx(decided(asked, WHO, FAR).hold)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hosted_answer_without_usage_costs_what_it_may_have_cost(rig: Rig, stream: bool) -> None:
    """Thinking that is not shown is billed too, so relayed text is no measure."""
    delta = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    whole: Script = {"body": '{"choices": []}'}
    rig.door.script = {"chunks": [delta, "data: [DONE]\n\n"], "headers": SSE} if stream else whole
    asked = ask("frontier", stream=stream)
    decision = decided(asked, WHO, FAR)
    await rig.run(decision, asked)
    closed = rig.closed()
    assert (closed["outcome"], closed["estimated"]) == ("answered", True)
    assert closed["cost"] == pytest.approx(decision.hold)


async def test_a_known_usage_is_the_cost(rig: Rig) -> None:
    await rig.run(decided(ask("frontier"), WHO, FAR), ask("frontier"))
    closed = rig.closed()
    assert closed["cost"] == closed["attempts"][0]["cost_usd"] == pytest.approx((9 * 10 + 3 * 50) / 1e6)
    assert closed["estimated"] is False


async def test_a_failed_attempt_before_a_fallback_is_paid_too(rig: Rig) -> None:
    rig.door.script = said(500, "sent")
    asked = ask("far")
    decision = decided(asked, WHO, FAR, NEAR)
    assert [c.name for c in decision.order] == ["far", "near"]
    await rig.run(decision, asked)
    closed = rig.closed()
    lost, answered = (a["cost_usd"] for a in closed["attempts"])
    assert (lost, answered) == (pytest.approx(decision.worst[0]), pytest.approx((9 * 1 + 3 * 2) / 1e6))
    assert closed["cost"] == pytest.approx(lost + answered)
    assert (closed["model"], closed["estimated"]) == ("near", True)


async def test_a_failed_local_attempt_costs_nothing(rig: Rig) -> None:
    rig.near.script = {"status": 500, "body": "{}"}
    await rig.run(decided(ask("near"), WHO, NEAR, FAR), ask("near"))
    assert [(a["outcome"], a["cost_usd"] > 0) for a in rig.closed()["attempts"]] == [
        ("error", False),
        ("answered", True),
    ]


async def test_only_so_many_are_tried_as_are_held_for(rig: Rig) -> None:
    rig.door.script = said(502, "sent")
    models = [hosted(f"far-{n}") for n in range(MOST_ATTEMPTS + 2)]
    assert len(decided(ask("frontier"), WHO, *models).order) == MOST_ATTEMPTS + 2
    await rig.fails(ask("frontier"), *models)
    assert len(rig.door.requests) == MOST_ATTEMPTS
    assert rig.closed()["cost"] == pytest.approx(decided(ask("frontier"), WHO, *models).hold)


async def test_a_bug_after_sending_is_recorded_and_charged(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Surprise(Exception):
        pass

    def broken(*_: object) -> None:
        raise Surprise

    monkeypatch.setattr("router.upstream.sending._check_kind", broken)
    decision = decided(ask("frontier"), WHO, FAR)
    with pytest.raises(Surprise):
        await rig.run(decision, ask("frontier"))
    closed = rig.closed()
    assert (closed["outcome"], closed["attempts"][0]["outcome"]) == ("failed", "failed")
    assert closed["cost"] == pytest.approx(decision.hold)
    assert rig.room.total() == 0


async def test_a_key_that_hangs_up_again_and_again_runs_out_of_budget(house: House) -> None:
    await house.start(hosted=True)
    house.provider.script = {"never": True}
    key = house.key("public", budget_usd=0.12)  # one request may cost about $0.05
    fleet = house.built.fleet if house.built else None
    assert fleet is not None
    for count in (1, 2):
        work = asyncio.create_task(house.post(body("big"), key))
        await house.provider.until(lambda wanted=count: len(house.provider.requests) == wanted)
        work.cancel()
        await until(lambda: fleet.state()["in_flight"] == 0)
    reply = await asyncio.wait_for(house.post(body("big"), key), 5)
    assert (reply.status, reply.error["code"]) == (429, "budget_exceeded")
    assert len(house.provider.requests) == 2


# ---- whoever leaves takes the upstream along

WAITING: dict[str, Script] = {
    "connecting": {},
    "head": {"never": True},
    "first delta": {"chunks": [": ping\n\n"] * 500, "pause_s": 0.02, "headers": SSE},
    "whole body": {"body": completion(), "body_delay_s": 30},
    "mid-stream": {"stream": ["a"] * 500, "pause_s": 0.02},
}


@pytest.mark.parametrize("place", ["local", "hosted"])
@pytest.mark.parametrize("stage", WAITING)
async def test_a_caller_that_leaves_stops_the_upstream_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, place: str
) -> None:
    async with rig_at(tmp_path) as rig:
        upstream, model = (rig.near, NEAR) if place == "local" else (rig.door, FAR)
        upstream.script = WAITING[stage]
        if stage == "connecting":  # a TLS handshake that nobody answers
            silent = Address.parse(f"https://127.0.0.1:{upstream.port}")
            monkeypatch.setattr(rig.fleet, "access", lambda _: Access(silent))
            monkeypatch.setattr(rig.sending, "_door", silent)
        asked = ask(model.name, stream=stage in ("first delta", "mid-stream"))
        decision, begun = decided(asked, WHO, model), asyncio.Event()
        work = asyncio.create_task(rig.run(decision, asked, begun))
        await until(lambda: upstream.accepted if stage == "connecting" else upstream.requests, work)
        if stage in ("first delta", "whole body"):
            await upstream.until(lambda: upstream.sent)
            await asyncio.sleep(0.02)
        elif stage == "mid-stream":
            await begun.wait()
        assert rig.room.total() == 1
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert rig.room.total() == 0
        await upstream.until(lambda: not upstream.open)
        closed = rig.closed()
        assert (closed["outcome"], closed["status"]) == ("client_left", 499)
        (attempt,) = closed["attempts"]
        assert attempt["outcome"] == ("answered" if stage == "mid-stream" else "client_left")
        prompt = decision.traits.prompt_tokens * 1e-6  # all that is known of what a local model has done
        if stage == "connecting":  # nobody was given the request
            assert (closed["cost"], closed["estimated"]) == (0, False)
        elif place == "hosted":  # the provider may go on, and bills all of it
            assert (closed["cost"], closed["estimated"]) == (pytest.approx(decision.hold), True)
        elif stage == "mid-stream":
            assert closed["cost"] >= prompt + 2e-6 * closed["output_tokens"] > prompt
        else:  # the engine reads the prompt, or has read it
            assert (closed["cost"], closed["estimated"]) == (pytest.approx(prompt), True)
            assert (closed["prompt_tokens"], closed["output_tokens"]) == (decision.traits.prompt_tokens, 0)


@pytest.mark.parametrize(
    "script",
    [
        {"endless": 100, "headers": {"content-type": "text/plain"}},
        {"chunks": ['data: {"error":"no"}\n\n', *[": ping\n\n"] * 500], "pause_s": 0.02, "headers": SSE},
    ],
)
async def test_an_answer_that_is_not_used_is_stopped(rig: Rig, script: Script) -> None:
    rig.near.script = script
    await rig.fails(ask("near", stream=True), NEAR)
    assert rig.room.total() == 0
    await rig.near.until(lambda: not rig.near.open)


async def test_a_caller_that_leaves_while_text_is_passed_on_is_charged_for_it(rig: Rig) -> None:
    """The relay was writing, not reading, when its caller went; what was read by then counts."""
    rig.near.script = {"stream": ["a", "b"], "pause_s": 0.05}
    asked = ask("near", stream=True)
    decision = decided(asked, WHO, NEAR)
    with contextlib.suppress(asyncio.CancelledError), rig.ledger.entry(asked, WHO, decision) as entry:
        answer = await rig.attempts.first_answer(asked, WHO, decision, entry)
        try:
            async for _ in answer.parts():
                raise asyncio.CancelledError
        finally:
            answer.close()
    assert rig.closed()["output_tokens"] >= 1


# ---- before anything is sent


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"data_class": DataClass.internal}, "data_class_not_cleared"),
        ({"unsearched": "it was not searched"}, "not_scannable"),
        ({"requires": frozenset({"no-training"})}, "requirement_not_met"),
    ],
)
async def test_what_may_not_leave_is_stopped_here_too(rig: Rig, wrong: dict[str, Any], code: str) -> None:
    decision = decided(ask("frontier"), WHO, FAR)
    decision = decision._replace(traits=decision.traits._replace(**wrong))
    with pytest.raises(HeadgateError) as told:
        await rig.run(decision, ask("frontier"))
    assert (told.value.status, told.value.code) == (403, code)
    closed = rig.closed()
    assert (closed["attempts"][0]["outcome"], closed["cost"]) == ("barred", 0)
    assert rig.door.accepted == 0


async def test_what_cannot_be_recorded_does_not_leave_and_a_local_twin_answers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full() -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(rig.ledger.store, "durable", full)
    await rig.run(decided(ask("far"), WHO, FAR, NEAR), ask("far"))
    monkeypatch.undo()
    attempts = rig.closed()["attempts"]
    assert [(a["outcome"], a["cost_usd"] > 0) for a in attempts] == [("not_recorded", False), ("answered", True)]
    assert rig.door.accepted == 0


# ---- keys of attached servers


async def test_a_key_file_is_used_and_a_rotated_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("first\n")
    async with rig_at(tmp_path, key_file=str(path)) as rig:
        for number, word in enumerate(("first", "first", "second")):
            path.write_text(f"{word}\n")
            os.utime(path, ns=(0, number // 2))
            asked = ask("near")._replace(id=f"req_{number}")
            await rig.run(decided(asked, WHO, NEAR), asked)
        assert [r.headers["authorization"] for r in rig.near.requests] == ["Bearer first"] * 2 + ["Bearer second"]


@pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff\xfe", "schlüssel".encode()])
async def test_a_key_that_cannot_be_used_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    async with rig_at(tmp_path, key_file=str(path)) as rig:
        told = await rig.fails(ask("near"), NEAR)
        assert (told.status, told.code) == (503, "no_local_capacity")
        assert "attach[].key_file" in told.message
        assert str(path) not in told.message
        assert "two" not in told.message
        assert rig.near.requests == []
        assert rig.closed()["attempts"][0]["outcome"] == "no_key"


@pytest.mark.parametrize(("reason", "noted"), [('"stop"', "stop"), ("null", "missing"), ('"Words, many"', "other")])
async def test_why_a_stream_ended_is_recorded_and_what_was_no_text(rig: Rig, reason: str, noted: str) -> None:
    delta = b'data: {"choices":[{"delta":{"content":"a\xff"}}]}\n\n' if noted == "missing" else b""
    last = f'data: {{"choices":[{{"delta":{{"content":"b"}},"finish_reason":{reason}}}]}}\n\ndata: [DONE]\n\n'
    rig.near.script = {"stream": [delta + last.encode()], "bare": True}
    asked = ask("near", stream=True)
    await rig.run(decided(asked, WHO, NEAR), asked)
    closed = rig.closed()
    assert (closed["outcome"], closed["finish"], closed["replaced"]) == ("answered", noted, noted == "missing")
