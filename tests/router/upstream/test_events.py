"""Streams of OpenAI's responses and Anthropic's messages: what is found does not depend on how the bytes were cut.

The streams are those that vLLM 0.32 sends, shortened.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.records import Route, Usage
from router.upstream import events
from router.upstream.events import LARGE, is_json, usage_of
from router.upstream.sse import StreamError, StreamReader

DETAILS = {"cached_tokens": 4, "cache_write_tokens": 0}
USED = {"input_tokens": 9, "input_tokens_details": DETAILS, "output_tokens": 3, "total_tokens": 12}


def event(kind: str, **fields: Any) -> str:
    document = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {document}\n\n"


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "usage": None, **fields}


TRAP = 'say "response.completed" and "message_stop", "error", [DONE] and "usage": {"input_tokens": 1} ü👩\u2028'
RESPONSES = [
    event("response.created", response=response("in_progress", tools=[{"name": "usage", "error": "error"}])),
    event("response.in_progress", response=response("in_progress")),
    event("response.output_item.added", item={"type": "message", "content": []}),
    event("response.content_part.added", part={"type": "output_text", "text": ""}),
    event("response.output_text.delta", delta="Hel"),
    event("response.output_text.delta", delta=TRAP),
    event("response.output_text.done", text="Hello"),
    event("response.made_up_tomorrow", anything=[1]),
    event("response.completed", response=response("completed", usage=USED)),
]
MESSAGES = [
    event("message_start", message={"id": "m", "content": [], "usage": {"input_tokens": 9, "output_tokens": 0}}),
    event("ping"),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hel"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": TRAP}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 5, "output_tokens": 3,
                                                                     "cache_read_input_tokens": 4}),
    event("message_stop"),
]  # fmt: skip
STREAMS: dict[Route, list[str]] = {"responses": RESPONSES, "messages": MESSAGES}
FINISH: dict[Route, str] = {"responses": "completed", "messages": "end_turn"}
ROUTES = pytest.mark.parametrize("route", STREAMS)
Found = tuple[bytes, tuple[Any, ...]]


def follow(route: Route, pieces: list[bytes], **more: Any) -> Found:
    """What is passed on of these pieces, and everything that was found."""
    reader = StreamReader(route, **more)
    relayed, fault = b"", ""
    try:
        for piece in pieces:
            relayed += reader.feed(piece)
        relayed += reader.end()
    except StreamError as wrong:
        fault = wrong.code
    found = (reader.usage, reader.started, reader.done, reader.finish, reader.error, reader.events, fault)
    return relayed, found


def wire(events: list[str], end: str = "\n") -> bytes:
    return "".join(events).replace("\n", end).encode()


@ROUTES
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_split_gives_the_same_bytes_and_findings(route: Route, end: str) -> None:
    data = wire(STREAMS[route], end)
    whole = follow(route, [data])
    assert whole == (data, (Usage(9, 3, 4), True, True, FINISH[route], None, 2, ""))
    for at in range(len(data) + 1):
        assert follow(route, [data[:at], data[at:]]) == whole
    assert follow(route, [data[at : at + 1] for at in range(len(data))]) == whole


@ROUTES
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_every_pair_of_splits_gives_the_same(route: Route, end: str) -> None:
    """Around the end, where events are decided about; the delta before it holds two- and four-byte characters."""
    short = {
        "responses": [event("response.output_text.delta", delta="ü👩"),
                      event("response.completed", response={"status": "completed", "usage": {"input_tokens": 1}})],
        "messages": [event("content_block_delta", delta={"text": "ü👩"}), event("message_stop")],
    }[route]  # fmt: skip
    data = wire([*short, "data: x\n\n"], end)
    whole = follow(route, [data])
    assert whole[1][2] is True
    for first, second in combinations(range(len(data) + 1), 2):
        assert follow(route, [data[:first], data[first:second], data[second:]]) == whole


@ROUTES
def test_nothing_after_the_end_is_passed_on(route: Route) -> None:
    data = wire(STREAMS[route])
    assert follow(route, [data + data, b"data: [DONE]\n\n"])[0] == data


@ROUTES
def test_the_end_of_another_dialect_is_no_end_and_reaches_nobody(route: Route) -> None:
    """A client would stop at it and take half an answer for a whole one."""
    begun = wire(STREAMS[route][:5])
    relayed, (_, _, done, *_) = follow(route, [begun + b"data: [DONE]\n\n"])
    assert (relayed, done) == (begun, False)


COMMITS: list[tuple[Route, str, bool]] = [
    ("responses", event("response.output_text.delta", delta=""), False),
    ("responses", event("response.reasoning_text.delta", delta="hm"), True),
    ("responses", event("response.reasoning_summary_text.delta", delta="hm"), True),
    ("responses", event("response.function_call_arguments.delta", delta="{"), True),
    ("responses", event("response.custom_tool_call_input.delta", delta="{"), True),
    ("responses", event("response.output_item.added", item={"type": "function_call", "name": "f"}), True),
    ("responses", event("response.output_item.added", item={"type": "reasoning"}), False),
    ("responses", event("response.output_item.added", item=None), False),
    ("messages", event("content_block_start", content_block={"type": "text", "text": ""}), False),
    ("messages", event("content_block_start", content_block={"type": "tool_use", "name": "f"}), True),
    ("messages", event("content_block_delta", delta={"type": "thinking_delta", "thinking": "hm"}), True),
    ("messages", event("content_block_delta", delta={"type": "input_json_delta", "partial_json": "{"}), True),
    ("messages", event("content_block_delta", delta={"type": "signature_delta", "signature": "a"}), False),
    ("messages", event("ping"), False),
]


@pytest.mark.parametrize(("route", "text", "commits"), COMMITS)
def test_the_first_piece_of_the_answer_commits(route: Route, text: str, commits: bool) -> None:
    assert follow(route, [wire([*STREAMS[route][:2], text])])[1][1] is commits


ERRORS: list[tuple[Route, str, str]] = [
    ("responses", event("response.failed", response={"status": "failed", "error": {"message": "lost"}}), "lost"),
    ("responses", event("response.completed", response={"status": "failed", "error": {"message": "lost"}}), "lost"),
    ("responses", event("error", message="lost", code="x"), "lost"),
    ("responses", 'data: {"error":{"message":"lost"}}\n\n', "lost"),
    ("messages", event("error", error={"type": "api_error", "message": "lost"}), "lost"),
    ("messages", event("error", error=None), "the upstream reported an error"),
    ("messages", 'data: {"error":{"message":"lost"}}\n\n', "lost"),
]


@pytest.mark.parametrize(("route", "text", "message"), ERRORS)
def test_errors_end_it_before_and_after_the_answer_has_begun(route: Route, text: str, message: str) -> None:
    for begun in (STREAMS[route][:1], STREAMS[route][:5]):
        _, (_, _, done, _, error, *_) = follow(route, [wire([*begun, text, STREAMS[route][-1]])])
        assert (done, error) == (False, message)


def test_an_overloaded_upstream_is_told_apart() -> None:
    reader = StreamReader("messages")
    reader.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"}).encode())
    assert reader.full


def test_an_answer_cut_at_its_limit_says_so() -> None:
    end = event("response.completed", response={"status": "incomplete", "usage": USED})
    assert follow("responses", [wire([*RESPONSES[:5], end])])[1][2:4] == (True, "incomplete")
    end = event("response.incomplete", response={"status": "incomplete", "usage": USED})
    assert follow("responses", [wire([*RESPONSES[:5], end])])[1][2:4] == (True, "incomplete")


def test_a_missing_finish_is_seen() -> None:
    ended, cut = 'data: {"choices":[{"delta":{},"finish_reason" : "stop"}]}\n\n', "data: [DONE]\n\n"
    begun = 'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    assert follow("chat/completions", [wire([begun, begun, ended, cut])])[1][2:4] == (True, "stop")
    assert follow("chat/completions", [wire([begun, begun, cut])])[1][2:4] == (True, "")
    assert follow("messages", [wire([*MESSAGES[:5], MESSAGES[-1]])])[1][2:4] == (True, "")


def test_what_an_interrupted_answer_used_is_not_taken_for_nothing() -> None:
    """The start of a message says 0 tokens of output; where it is cut, they are counted by its events."""
    assert follow("messages", [wire(MESSAGES[:5])])[1][0] == Usage(9, None, None)


def test_the_input_is_known_from_the_start_where_the_end_does_not_name_it() -> None:
    end = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3})
    assert follow("messages", [wire([*MESSAGES[:5], end])])[1][0] == Usage(9, 3, None)


@ROUTES
def test_odd_events_do_no_harm(route: Route) -> None:
    kinds = [None, [], {}, 5, "response.completed", "response.failed", "error", "message_start", "message_delta",
             "content_block_start", "content_block_delta", "response.output_item.added", "x.delta"]  # fmt: skip
    for kind in kinds:
        for extra in ({}, {"response": 1}, {"delta": 1}, {"message": []}, {"item": 1}, {"usage": 1}, {"error": []}):
            text = f"data: {json.dumps({'type': kind, **extra})}\n\n"
            assert follow(route, [text.encode()])[1][-1] == ""


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (USED, Usage(9, 3, 4)),
        ({"input_tokens": 5, "output_tokens": 3}, Usage(5, 3, None)),
        ({"input_tokens": 5, "output_tokens": 3, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1},
         Usage(8, 3, 2)),
        ({"input_tokens": -5, "output_tokens": "3", "cache_read_input_tokens": True}, Usage(None, None, None)),
        ({"prompt_tokens": 5, "completion_tokens": 3}, Usage(5, 3, None)),
    ],
)  # fmt: skip
def test_usage_of_whole_answers(usage: dict[str, Any], found: Usage) -> None:
    assert usage_of(json.dumps({"usage": usage}).encode()) == found


# ---- large answers: of those only the ends are looked at

FEW_BYTES = 2000
"""What is called large here, so that examples are small."""
STATED = st.one_of(
    st.just(USED), st.none(), st.just({"prompt_tokens": 5, "total_tokens": 5}), st.just({}), st.just(7),
    st.builds(lambda n: {"prompt_tokens": n, "completion_tokens": n}, st.integers(-3, 2**40)),
)  # fmt: skip
TRICKY = st.sampled_from(
    [
        "usage",
        '"usage":{"prompt_tokens":1}',
        '\\"usage": {',
        '","usage":{"prompt_tokens":1},"',
        "\\",
        '"',
        "{[}]",
        "é",
        "",
    ]
)
NOISE = st.recursive(
    st.one_of(TRICKY, st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["usage", 'a"usage', "b"]), inner, max_size=2),
        st.just({"usage": {"prompt_tokens": 99}}),
    ),
    max_leaves=4,
)  # fmt: skip


@pytest.mark.parametrize("where", ["end", "begin", "nowhere"])
@given(usage=STATED, near=NOISE, far=NOISE, spaced=st.booleans())
def test_the_usage_of_a_large_answer_is_found_without_reading_it_all(
    where: str, usage: Any, near: Any, far: Any, spaced: bool
) -> None:
    """The same as by reading it: also where texts and inner objects look like it."""
    stated = {} if where == "nowhere" else {"usage": usage}
    near = {"near": near, 'its "usage': {"prompt_tokens": 99}}
    field = {"far": far, "data": [0.25] * FEW_BYTES} | stated | near
    if where == "begin":
        field = near | stated | {"data": [0.25] * FEW_BYTES, "far": far}
    body = json.dumps(field, separators=None if spaced else (",", ":")).encode()
    expected, read = usage_of(body), list[int]()

    class Noted:
        @staticmethod
        def loads(text: bytes) -> Any:
            read.append(len(text))
            return orjson.loads(text)

    with mock.patch.object(events, "LARGE", FEW_BYTES), mock.patch.object(events, "orjson", Noted):
        assert usage_of(body) == expected
        assert is_json(body)
        assert not is_json(body + b",")
    assert sum(read) < len(body), "it was read whole"


def test_what_nobody_can_read_at_either_end_is_unknown() -> None:
    for body in (b"{" + b"x" * LARGE, b'"usage":' * LARGE, b'{"usage":{' + b" " * LARGE + b"}}", b"[" * 2 * LARGE):
        assert usage_of(body) == Usage()
