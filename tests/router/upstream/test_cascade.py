"""An answer that is not what its caller's schema asks for is asked of another model, once, and both are paid for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.records import Ask, Decision
from serving.catalogue import Model
from tests.conftest import until
from tests.fakes.asking import ask, decided, endpoint, hosted
from tests.fakes.busy import busy
from tests.fakes.faults import Script, completion
from tests.router.upstream.test_attempts import NEAR, WHO, Rig, rig_at, said

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
ASKED = ask(response_format=FORM)
FAR = hosted(lanes=("cheap",))
GOOD, BAD = completion('{"n": 1}'), completion('{"n": "one"}')
NEAR_COST, FAR_COST = (9 * 1 + 3 * 2) / 1e6, (9 * 10 + 3 * 50) / 1e6


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_at(tmp_path) as made:
        yield made


def checking(*models: Model, asked: Ask = ASKED, **state: Any) -> Decision:
    """A decision on a route that checks answers; held for both, as decide.py holds."""
    decision = decided(asked, WHO, *models, **state)
    return decision._replace(check="json_schema", hold=sum(cost or 0 for cost in decision.worst))


async def outcome(rig: Rig, near: Script, far: Script, *models: Model, **state: Any) -> tuple[bytes, dict[str, Any]]:
    rig.near.script, rig.door.script = near, far
    relayed = await rig.run(checking(*(models or (NEAR, FAR)), **state), ASKED)
    assert (rig.room.total(), rig.room.waiting()) == (0, 0)
    return relayed, rig.closed()


def tries(closed: dict[str, Any]) -> list[tuple[str, str]]:
    return [(a["model"], a["outcome"]) for a in closed["attempts"]]


async def test_an_answer_that_fits_is_passed_on(rig: Rig) -> None:
    relayed, closed = await outcome(rig, {"body": GOOD}, {})
    assert relayed == GOOD.encode()
    assert (closed["check"], closed["trigger"], closed["model"]) == ("passed", "", "near")
    assert rig.door.requests == []


async def test_one_that_does_not_is_asked_of_the_next_model_and_both_are_paid(rig: Rig) -> None:
    relayed, closed = await outcome(rig, {"body": BAD}, {"body": GOOD})
    assert relayed == GOOD.encode()
    assert (closed["check"], closed["trigger"], closed["model"]) == ("passed", "cascade", "far")
    assert tries(closed) == [("near", "check_failed"), ("far", "answered")]
    first, second = closed["attempts"]
    assert (first["prompt_tokens"], first["output_tokens"]) == (9, 3)
    assert first["detail"] == "choice 0: the schema does not hold"
    assert [first["cost_usd"], second["cost_usd"]] == [pytest.approx(NEAR_COST), pytest.approx(FAR_COST)]
    assert closed["cost"] == pytest.approx(NEAR_COST + FAR_COST)
    assert (closed["estimated"], closed["unpriced"], closed["prompt_tokens"]) == (False, False, 9)


async def test_a_second_answer_is_passed_on_even_if_it_does_not_fit_either(rig: Rig) -> None:
    worse = completion("Sorry.")
    relayed, closed = await outcome(rig, {"body": BAD}, {"body": worse}, NEAR, FAR, hosted("farther"))
    assert relayed == worse.encode()
    assert (closed["check"], closed["trigger"], closed["model"]) == ("failed", "cascade", "far")
    assert tries(closed) == [("near", "check_failed"), ("far", "answered")]


@pytest.mark.parametrize(
    ("far", "failed", "charged"),
    [
        (said(502, "sent", "provider_refused_key"), "error", False),
        (said(400, "sent"), "bad_request", False),
        ({"reset": 0}, "reset", True),
        ({"body": "[]", "headers": {"x-headgate-door": "sent"}}, "unusable", True),
    ],
)
async def test_where_the_next_model_fails_the_first_answer_is_passed_on(
    rig: Rig, far: Script, failed: str, charged: bool
) -> None:
    relayed, closed = await outcome(rig, {"body": BAD}, far)
    assert relayed == BAD.encode()
    assert (closed["outcome"], closed["check"], closed["trigger"]) == ("answered", "failed", "")
    assert (closed["model"], closed["status"], closed["output_tokens"]) == ("near", 200, 3)
    assert tries(closed) == [("near", "answered"), ("far", failed)]
    worst = checking(NEAR, FAR).worst[1] or 0
    assert closed["cost"] == pytest.approx(NEAR_COST + (worst if charged else 0))


async def test_without_another_model_the_answer_is_passed_on_and_marked(rig: Rig) -> None:
    relayed, closed = await outcome(rig, {"body": BAD}, {}, NEAR)
    assert relayed == BAD.encode()
    assert (closed["check"], closed["trigger"], tries(closed)) == ("failed", "", [("near", "answered")])


async def test_a_replica_of_the_same_model_is_not_another_model(rig: Rig) -> None:
    twice = [endpoint(NEAR), endpoint(NEAR, name="near-2"), endpoint(FAR)]
    _, closed = await outcome(rig, {"body": BAD}, {"body": GOOD}, NEAR, FAR, endpoints=twice)
    assert tries(closed) == [("near", "check_failed"), ("far", "answered")]


async def test_another_model_that_is_full_is_not_waited_for(rig: Rig) -> None:
    rig.room.refresh({"near": 4, "far": 1})
    decision = checking(NEAR, FAR)
    rig.near.script = {"body": BAD}
    with busy(rig.room, "far"):
        assert await rig.run(decision, ASKED) == BAD.encode()
    assert tries(rig.closed()) == [("near", "answered")]


async def test_while_another_model_is_asked_the_first_ones_place_is_free(rig: Rig) -> None:
    rig.near.script, rig.door.script = {"body": BAD}, {"body": GOOD, "delay_s": 0.05}
    work = asyncio.create_task(rig.run(checking(NEAR, FAR), ASKED))
    await until(lambda: rig.door.requests, work)
    assert (rig.room.in_flight("near"), rig.room.in_flight("far")) == (0, 1)
    assert await work == GOOD.encode()


async def test_who_tried_and_failed_before_is_not_asked_again(rig: Rig) -> None:
    """The first of the order is broken, the second answers wrongly: nobody is left."""
    rig.near.script, rig.door.script = {"status": 500, "body": "{}"}, {"body": BAD}
    assert await rig.run(checking(NEAR, FAR), ASKED) == BAD.encode()
    closed = rig.closed()
    assert tries(closed) == [("near", "error"), ("far", "answered")]
    assert closed["check"] == "failed"


async def test_an_answer_that_came_after_waiting_is_checked_too(rig: Rig) -> None:
    rig.room.refresh({"near": 1, "far": 0})
    rig.near.script, rig.door.script = {"body": BAD}, said(500, "sent")
    served = [endpoint(NEAR, limit=1, in_flight=1), endpoint(FAR)]
    decision = checking(NEAR, FAR, endpoints=served)
    with busy(rig.room, "near"):
        work = asyncio.create_task(rig.run(decision, ASKED))
        await until(lambda: rig.room.waiting() == 1, work)
    assert await work == BAD.encode()
    closed = rig.closed()
    assert (closed["check"], tries(closed)) == ("failed", [("far", "error"), ("near", "answered")])


async def test_who_failed_before_the_wait_is_not_asked_after_it(rig: Rig) -> None:
    """The engine is full, the provider breaks, the engine takes it after all and answers wrongly."""
    rig.near.script, rig.door.script = {"status": 503, "body": "{}"}, said(500, "sent")
    work = asyncio.create_task(rig.run(checking(NEAR, FAR), ASKED))
    await until(lambda: rig.room.waiting() == 1, work)
    rig.near.script = {"body": BAD}
    assert await work == BAD.encode()
    tried = tries(rig.closed())
    assert tried.count(("far", "error")) == 1 and tried[-1] == ("near", "answered")
    assert set(tried[:-1]) == {("near", "overloaded"), ("far", "error")}, "it may have been full more than once"


async def test_what_cannot_be_judged_is_passed_on_and_says_nothing(rig: Rig) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/nowhere"}}}
    asked = ask(response_format=form)
    rig.near.script = {"body": BAD}
    assert await rig.run(checking(NEAR, FAR, asked=asked), asked) == BAD.encode()
    assert (rig.closed()["check"], rig.door.requests) == ("", [])


async def test_a_route_without_a_check_and_a_stream_are_not_checked(rig: Rig) -> None:
    rig.near.script = {"body": BAD}
    await rig.run(decided(ASKED, WHO, NEAR, FAR), ASKED)
    assert rig.closed()["check"] == ""
    rig.near.script = {}
    asked = ask(response_format=FORM, stream=True)._replace(id="req_2")
    assert b"[DONE]" in await rig.run(checking(NEAR, FAR, asked=asked), asked)
    rig.ledger.store.flush()
    assert rig.ledger.store.events("req_2")[-1]["check"] == ""
    assert rig.door.requests == []


async def test_a_caller_that_leaves_during_the_second_try_pays_for_both(rig: Rig) -> None:
    rig.near.script, rig.door.script = {"body": BAD}, {"never": True}
    work = asyncio.create_task(rig.run(checking(NEAR, FAR), ASKED))
    await until(lambda: rig.door.requests, work)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    closed = rig.closed()
    assert (closed["outcome"], tries(closed)) == ("client_left", [("near", "answered"), ("far", "client_left")])
    assert closed["cost"] == pytest.approx(NEAR_COST + (checking(NEAR, FAR).worst[1] or 0))
    assert rig.room.total() == 0


async def test_a_first_answer_of_unknown_usage_is_estimated_and_a_hosted_one_charged_at_its_worst(rig: Rig) -> None:
    bare = json.dumps({"choices": json.loads(BAD)["choices"]})
    one, two = hosted("one"), hosted("two")
    rig.door.script = {"body": bare}
    decision = checking(one, two, asked=ask("frontier", response_format=FORM))
    await rig.run(decision, ask("frontier", response_format=FORM))
    closed = rig.closed()
    assert tries(closed) == [("one", "check_failed"), ("two", "answered")]
    assert [a["cost_usd"] for a in closed["attempts"]] == [pytest.approx(cost) for cost in decision.worst]
    assert closed["estimated"] is True


async def test_a_check_that_breaks_leaves_no_place_taken(rig: Rig) -> None:
    class Surprise(Exception):
        pass

    def broken(*_: object) -> str:
        raise Surprise

    rig.attempts._checks = broken
    with pytest.raises(Surprise) as told:  # kept, so that nothing is tidied up with its traceback
        await rig.run(checking(NEAR, FAR), ASKED)
    assert (rig.room.total(), told.type) == (0, Surprise)
    assert rig.closed()["outcome"] == "failed"


async def test_no_word_of_an_answer_that_failed_is_written_down(rig: Rig) -> None:
    word = "canary-7f3a"
    await outcome(rig, {"body": completion(json.dumps({"n": word, word: word}))}, {"body": completion(word)})
    for file in rig.ledger.store.path.parent.iterdir():
        assert word.encode() not in file.read_bytes()


async def test_the_second_try_is_held_to_the_clearance_too(rig: Rig) -> None:
    decision = checking(NEAR, FAR)
    private = type(decision.traits.data_class).private
    decision = decision._replace(traits=decision.traits._replace(data_class=private))
    rig.near.script = {"body": BAD}
    assert await rig.run(decision, ASKED) == BAD.encode()
    assert tries(rig.closed()) == [("near", "answered"), ("far", "barred")]
    assert rig.door.accepted == 0
