"""An answer on its way through: what the caller gets, what the ledger learns, and that its end is told as it was."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.records import Attempt, Usage
from router.upstream.answer import Answer, Unusable
from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from serving.catalogue import Model
from tests.fakes.asking import candidate, local
from tests.fakes.upstream import Script, Upstream, completion, events

SSE = {"content-type": "text/event-stream"}
FAILED = 'data: {"error":{"message":"out of memory"}}\n\n'
TEXT = [e.decode() for e in events(["Hel", "lo"])]
"""Role, two deltas, the finish, usage, [DONE]."""
DONE = TEXT[-1]


@dataclass
class Notes:
    """What an answer writes down."""

    attempts: list[Attempt] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    model: Model | None = None
    outcome: str = ""
    status: int = 0
    estimated_output: int = 0
    queued_ms: float | None = None
    trigger: str = ""
    check: str = ""
    begun: int = 0

    def first_byte(self) -> None:
        self.begun += 1

    async def durable(self) -> None:
        return


class Desk:
    """Takes answers of one scripted upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream, self.notes = upstream, Notes()
        self.connections = Connections(Deadlines(first_byte_s=0.3, idle_s=0.15, total_s=5.0), Bounds())

    async def begin(self, script: Script, *, stream: bool = True, hide_usage: bool = False) -> Answer:
        self.upstream.script = script
        response = await self.connections.post(Address.parse(self.upstream.address), "/", [], b"{}")
        answer = Answer(
            candidate(local()), response, self.notes, stream=stream, hide_usage=hide_usage, dropped=("user",)
        )
        try:
            await answer.begin()
        except BaseException:
            response.close()
            raise
        return answer

    async def take(self, script: Script, **how: Any) -> bytes:
        """All that the caller gets."""
        answer = await self.begin(script, **how)
        try:
            return b"".join([part async for part in answer.parts()])
        finally:
            answer.close()


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with Upstream() as upstream:
        made = Desk(upstream)
        yield made
        await made.connections.close()


def last(relayed: bytes) -> str:
    """The code of the error event at the end, or what stands there instead."""
    text = relayed.decode().strip().split("\n\n")[-1].removeprefix("data: ")
    return str(json.loads(text).get("error", {}).get("code")) if text.startswith("{") else text


@pytest.mark.parametrize(
    ("script", "ends", "outcome", "usage", "deltas"),
    [
        ({"chunks": TEXT}, "[DONE]", "", Usage(9, 2), 3),
        ({"chunks": [*TEXT[:-2], DONE]}, "[DONE]", "", Usage(), 3),
        ({"chunks": TEXT, "split": 7}, "[DONE]", "", Usage(9, 2), 3),
        # Ended before its end, in every way there is.
        ({"chunks": TEXT[:-1]}, "upstream_interrupted", "cut", Usage(9, 2), 3),
        ({"chunks": TEXT[:3]}, "upstream_interrupted", "cut", Usage(), 2),
        ({"chunks": TEXT, "cut": 430}, "upstream_interrupted", "cut", Usage(), 1),
        ({"chunks": TEXT, "reset": 430}, "upstream_interrupted", "cut", Usage(), 1),
        ({"chunks": [*TEXT[:2], "data: {"]}, "upstream_interrupted", "cut", Usage(), 1),
        # The upstream's own error is passed on, and no other after it.
        ({"chunks": [*TEXT[:3], FAILED, DONE]}, "None", "cut", Usage(), 2),
    ],
)
async def test_how_a_stream_ends_is_told_and_written_down(
    desk: Desk, script: Script, ends: str, outcome: str, usage: Usage, deltas: int
) -> None:
    relayed = await desk.take({"headers": SSE, **script})
    assert last(relayed) == ends
    assert (b"[DONE]" in relayed) is (ends == "[DONE]")
    assert relayed.count(b'"error"') == (0 if ends == "[DONE]" else 1)
    notes = desk.notes
    assert (notes.outcome, notes.usage, notes.begun) == (outcome, usage, 1)
    assert notes.estimated_output == deltas


async def test_a_stream_that_falls_silent_is_cut(desk: Desk) -> None:
    relayed = await desk.take({"headers": SSE, "chunks": ["".join(TEXT[:2]), DONE], "pause_s": 0.2})
    assert last(relayed) == "upstream_interrupted"
    assert desk.notes.outcome == "cut"


async def test_usage_nobody_asked_for_is_counted_and_not_shown(desk: Desk) -> None:
    relayed = await desk.take({"headers": SSE, "chunks": TEXT}, hide_usage=True)
    assert relayed == "".join([*TEXT[:-2], DONE]).encode()
    assert desk.notes.usage == Usage(9, 2)


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([": ping\n\n"], "before its first delta"),
        (TEXT[:1], "before its first delta"),
        ([TEXT[0], FAILED], "out of memory"),
        (["data: {\n\n"], "not valid JSON"),
    ],
)
async def test_a_stream_without_a_delta_is_left_to_another_model(desk: Desk, chunks: list[str], says: str) -> None:
    with pytest.raises(Unusable, match=says):
        await desk.begin({"headers": SSE, "chunks": chunks})
    assert desk.notes == Notes()


async def test_an_empty_answer_that_ends_well_is_an_answer(desk: Desk) -> None:
    assert await desk.take({"headers": SSE, "chunks": [TEXT[0], DONE]}) == (TEXT[0] + DONE).encode()
    assert desk.notes.outcome == ""


@pytest.mark.parametrize("body", ["", "[]", "nonsense", "<html>"])
async def test_what_is_no_json_object_is_no_answer(desk: Desk, body: str) -> None:
    with pytest.raises(Unusable, match="no JSON object"):
        await desk.begin({"body": body}, stream=False)


async def test_a_body_that_breaks_off_is_no_answer(desk: Desk) -> None:
    with pytest.raises(UpstreamError):
        await desk.begin({"body": completion(), "length": 5000, "close": True}, stream=False)


async def test_a_whole_answer_is_passed_on_as_it_came(desk: Desk) -> None:
    assert await desk.take({"body": completion("Grüße")}, stream=False) == completion("Grüße").encode()
    assert (desk.notes.usage, desk.notes.begun, desk.notes.outcome) == (Usage(9, 3), 1, "")


async def test_an_answer_that_was_read_whole_is_there_after_its_place_was_given_back(desk: Desk) -> None:
    """While another model is asked instead, the first answer is kept and holds nothing."""
    answer = await desk.begin({"body": completion("Grüße")}, stream=False)
    answer.close()
    assert answer.whole() == completion("Grüße").encode()
    assert b"".join([part async for part in answer.parts()]) == answer.whole()


async def test_what_was_read_is_known_even_where_the_relay_never_ended(desk: Desk) -> None:
    """A caller that leaves while it is written to leaves the relay's generator hanging."""
    answer = await desk.begin({"headers": SSE, "chunks": TEXT, "pause_s": 0.02})
    parts = answer.parts()
    await anext(parts)
    await anext(parts)
    answer.close()
    assert desk.notes.estimated_output >= 1
    await desk.upstream.until(lambda: not desk.upstream.open)


async def test_closing_lets_go_of_everything_and_twice_does_no_harm(desk: Desk) -> None:
    answer = await desk.begin({"headers": SSE, "chunks": TEXT, "pause_s": 0.02})
    ended = []
    with ExitStack() as stack:
        stack.callback(ended.append, True)
        answer.keep(stack.pop_all())
    assert ended == []
    answer.close()
    answer.close()
    assert ended == [True]
    await desk.upstream.until(lambda: not desk.upstream.open)
