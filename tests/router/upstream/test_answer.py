"""An answer on its way through: what the caller gets, what the ledger learns, and that its end is told as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from router.records import Attempt, Candidate, Usage
from router.upstream.answer import Answer, Unusable
from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from serving.catalogue import Model
from tests.fakes.asking import candidate, local
from tests.fakes.faults import Script, Upstream, completion, events

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
        self.ends: list[str] = []
        self.connections = Connections(Deadlines(first_byte_s=0.3, idle_s=0.15, total_s=5.0), Bounds())

    async def begin(
        self, script: Script, *, stream: bool = True, hide_usage: bool = False, who: Candidate | None = None
    ) -> Answer:
        self.upstream.script = script
        address = Address.parse(self.upstream.address)
        response = await self.connections.post(address, "/", [], b"{}", stream=stream, whole=not stream)
        answer = Answer(
            who or candidate(local()), response, self.notes, stream=stream, hide_usage=hide_usage, dropped=("user",),
            done=self.ends.append,
        )  # fmt: skip
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
        # The upstream's own words stay here.
        ({"chunks": [*TEXT[:3], FAILED, DONE]}, "upstream_interrupted", "cut", Usage(), 2),
        ({"chunks": [*TEXT[:3], 'data: {"usage": {]\n\n', DONE]}, "upstream_bad_event", "cut", Usage(), 2),
    ],
)
async def test_how_a_stream_ends_is_told_and_written_down(
    desk: Desk, script: Script, ends: str, outcome: str, usage: Usage, deltas: int
) -> None:
    relayed = await desk.take({"headers": SSE, **script})
    assert last(relayed) == ends
    assert (b"[DONE]" in relayed) is (ends == "[DONE]")
    assert relayed.count(b'"error"') == (0 if ends == "[DONE]" else 1)
    assert b"out of memory" not in relayed
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
        ([TEXT[0], FAILED], "it reported an error"),
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


@pytest.mark.parametrize("body", ["", "[]", "nonsense", "<html>", '{"choices": [{"mess'])
async def test_what_is_no_json_object_is_no_answer(desk: Desk, body: str) -> None:
    with pytest.raises(Unusable, match=r"no (whole )?JSON object"):
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


async def test_closing_tells_once_how_it_ended(desk: Desk) -> None:
    answer = await desk.begin({"headers": SSE, "chunks": TEXT, "pause_s": 0.02})
    assert desk.ends == []
    answer.close()
    answer.close()
    assert desk.ends == ["left"]
    await desk.upstream.until(lambda: not desk.upstream.open)
    await desk.take({"headers": SSE, "chunks": TEXT})
    await desk.take({"headers": SSE, "chunks": TEXT[:3]})
    await desk.take({}, stream=False)
    assert desk.ends == ["left", "ended", "cut", "ended"]


@pytest.mark.parametrize("script", [{"chunks": TEXT}, {"chunks": TEXT, "split": 5}, {"chunks": TEXT[:3]}])
async def test_pushed_and_pulled_it_is_the_same(desk: Desk, script: Script) -> None:
    pulled = await desk.take({"headers": SSE, **script})
    pulled_notes, desk.notes = desk.notes, Notes()
    pushed: list[bytes] = []

    def write(data: bytes) -> bool:
        pushed.append(data)
        return True

    answer = await desk.begin({"headers": SSE, **script})
    await answer.relay(write)
    answer.close()
    assert (b"".join(pushed), desk.notes) == (pulled, pulled_notes)


@pytest.mark.parametrize(
    "script",
    [
        {"chunks": TEXT, "pause_s": 0.01},
        {"chunks": ["".join(TEXT)]},
        {"chunks": TEXT[:3], "pause_s": 0.01},
        {"chunks": [*TEXT[:3], FAILED]},
        {"chunks": TEXT, "cut": 430, "pause_s": 0.01},
    ],
    ids=["in pieces", "at once", "ended early", "failed", "cut"],
)
@pytest.mark.parametrize("pulled", [False, True])
async def test_that_it_ends_is_told_before_its_last_bytes_go_out(desk: Desk, script: Script, pulled: bool) -> None:
    """Whoever has read all of it may come back at once, and then it must be known that there was an answer."""
    answer = await desk.begin({"headers": SSE, **script})
    order: list[bytes | None] = []
    answer.keep(lambda: order.append(None))
    if pulled:
        async for part in answer.parts():
            order.append(part)
    else:
        await answer.relay(lambda part: order.append(part) is None)
    answer.close()
    last_piece = len(order) - 1 - next(n for n, one in enumerate(reversed(order)) if one is not None)
    assert None in order[:last_piece]


async def test_that_a_whole_answer_ends_is_told_before_it_goes_out(desk: Desk) -> None:
    answer, told = await desk.begin({"body": completion("hi")}, stream=False), list[bool]()
    answer.keep(lambda: told.append(True))
    assert told == []
    answer.passed_on()
    answer.close()
    assert told == [True]


async def test_a_writer_that_wants_no_more_makes_the_upstream_wait(desk: Desk) -> None:
    many = [f'data: {{"choices":[{{"delta":{{"content":"{"x" * 60_000}"}}}}]}}\n\n'] * 200
    answer = await desk.begin({"headers": SSE, "chunks": [*many, DONE]})
    taken: list[bytes] = []
    welcome = False

    def write(data: bytes) -> bool:
        taken.append(data)
        return welcome

    relay = asyncio.create_task(answer.relay(write))
    await desk.upstream.until(lambda: desk.upstream.blocked)
    assert len(taken) <= 2
    welcome = True
    answer.resume()
    await relay
    answer.close()
    assert b"".join(taken) == "".join([*many, DONE]).encode()


async def test_what_follows_the_end_is_not_waited_for(desk: Desk) -> None:
    """And the connection is used again where it ends in time."""
    for text, peers in ((": late\n\n", 1), (": later\n\n", 1)):
        relayed = await desk.take({"headers": SSE, "chunks": [*TEXT, text], "pause_s": 0.01})
        assert last(relayed) == "[DONE]"
        await asyncio.sleep(0.1)
        assert desk.upstream.accepted == peers


async def test_comments_and_single_bytes_are_no_progress(desk: Desk) -> None:
    for pieces in ([": ping\n\n"] * 100, list("data: x" * 100)):
        relayed = await desk.take({"headers": SSE, "chunks": ["".join(TEXT[:2]), *pieces], "pause_s": 0.02})
        assert last(relayed) == "upstream_interrupted"
    assert desk.ends == ["cut", "cut"]
    await desk.upstream.until(lambda: not desk.upstream.open)


async def test_whoever_begins_and_has_no_token_yet_is_not_silent(desk: Desk) -> None:
    """A server that names the role at once, and then reads a long prompt."""
    relayed = await desk.take({"headers": SSE, "chunks": [TEXT[0], 0.2, *TEXT[1:]]})
    assert last(relayed) == "[DONE]"


@pytest.mark.parametrize("gap", ["", " "])
async def test_the_model_is_called_as_it_is_here(desk: Desk, gap: str) -> None:
    other = candidate(local(), served="org/other-7b")
    body = f'{{"model":{gap}"org/other-7b","choices":[{{"message":{{"content":"\\"model\\":\\"org/other-7b\\""}}}}]}}'
    expected = body.replace(f'"model":{gap}"org/other-7b"', f'"model":{gap}"near"', 1)
    assert await desk.take({"body": body}, stream=False, who=other) == expected.encode()
    events_here = [event.replace('"model":"m"', f'"model":{gap}"org/other-7b"') for event in TEXT]
    relayed = await desk.take({"headers": SSE, "chunks": events_here, "split": 9}, who=other)
    assert (b"org/other-7b" in relayed, relayed.count(b'"near"')) == (False, len(TEXT) - 1)


async def test_a_usage_far_below_what_was_seen_is_not_believed(desk: Desk) -> None:
    deltas = events(["a"] * 100)
    for tokens, believed in ((100, 100), (1, None), (-5, None), ("7", None), (1e308, None)):
        last_but_one = deltas[-2].replace(
            b'"completion_tokens":100', f'"completion_tokens":{json.dumps(tokens)}'.encode()
        )
        await desk.take({"headers": SSE, "chunks": [e.decode() for e in [*deltas[:-2], last_but_one, deltas[-1]]]})
        assert desk.notes.usage.output == believed
        assert desk.notes.estimated_output >= 100


async def test_a_whole_answer_without_usage_is_counted(desk: Desk) -> None:
    body = json.dumps({"choices": [{"message": {"content": "x" * 4000}}], "usage": None})
    await desk.take({"body": body}, stream=False)
    assert (desk.notes.usage, 1000 <= desk.notes.estimated_output <= 1100) == (Usage(), True)


async def test_what_comes_before_the_first_delta_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.upstream.answer.MOST_BEFORE", 1000)
    role = 'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    with pytest.raises(Unusable, match="very much"):
        await desk.begin({"chunks": [role] * 100})
    await desk.upstream.until(lambda: not desk.upstream.open)


@pytest.mark.parametrize("split", [0, 700])
async def test_a_stream_without_end_is_cut(desk: Desk, monkeypatch: pytest.MonkeyPatch, split: int) -> None:
    """However fast it comes, and each of its deadlines is kept: no caller and no session holds so much."""
    monkeypatch.setattr("router.upstream.answer.MOST_STREAM", 20_000)
    delta = events(["x" * 1000])[1].decode()
    relayed = await desk.take({"headers": SSE, "chunks": [delta] * 10_000, "split": split})
    assert last(relayed) == "upstream_interrupted" and b"larger than 20000 bytes" in relayed
    assert 15_000 < len(relayed) < 25_000
    assert (desk.notes.outcome, desk.ends) == ("cut", ["cut"]) and desk.notes.estimated_output > 10
    await desk.upstream.until(lambda: not desk.upstream.open)


async def test_sound_is_an_answer_too(desk: Desk) -> None:
    answer = await desk.begin(
        {"chunks": ['data: {"choices":[{"delta":{"audio":{"data":"AA=="}}}]}\n\n'] * 2, "pause_s": 9}
    )
    assert answer.whole()
    answer.close()


async def test_the_arguments_of_a_tool_are_left_as_they_are(desk: Desk) -> None:
    body = '{"content":[{"type":"tool_use","input":{"model":"there"}}],"model":"there","usage":{"input_tokens":1}}'
    found = json.loads(await desk.take({"body": body}, stream=False, who=candidate(local(), served="there")))
    assert (found["model"], found["content"][0]["input"]) == ("near", {"model": "there"})
