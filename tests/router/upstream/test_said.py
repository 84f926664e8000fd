"""What an answer said is what its caller would send again, whichever way it came; and keeping it takes little."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.records import Route
from router.upstream.said import MOST_KEPT, Kept, Said
from tests.fakes.answers import completion

WORDS = ["The ", "bill ", 'says "owed"', "\n\n", "to\\", "\\n her", "é", "😀", ": ", "[1]", "12", "", " a\u2028b"]
LONG = "This sentence stands in the arguments of a tool, and is long enough to be known again."


def chat(delta: Any, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return event({"id": "c1", "object": "chat.completion.chunk", "created": 1, "choices": [choice], **more})


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def call(text: str, index: int) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def kept(route: Route, events: list[bytes], together: int = 1) -> Kept:
    made = Kept(route)
    for start in range(0, len(events), together):
        made.add(b"".join(events[start : start + together]))
    return made


def said(route: Route, events: list[bytes], together: int = 1) -> list[str]:
    return Said(route, kept=kept(route, events, together)).texts()


@pytest.mark.parametrize("together", [1, 2, 5, 1000])
def test_a_chat_stream_is_the_text_that_came(together: int) -> None:
    events = [chat({"role": "assistant", "content": ""}), *(chat({"content": w}) for w in WORDS), b"data: [DONE]\n\n"]
    assert said("chat/completions", events, together) == ["".join(WORDS)]


def test_choices_thoughts_and_calls_are_texts_of_their_own_and_the_shown_one_is_first() -> None:
    events = []
    for word in WORDS:
        events += [chat({"reasoning_content": f"t{word}"}), chat({"content": word}), chat({"content": f"2{word}"}, 1)]
        events += [chat(call(f"a{word}", 0)), chat(call(f"b{word}", 1))]
    found = said("chat/completions", events)
    marks = ["", "t", "2", "a", "b"]
    assert found == ["".join(mark + word for word in WORDS) for mark in marks]


def test_a_stream_of_completions() -> None:
    events = [event({"id": "1", "choices": [{"index": 0, "text": word}]}) for word in WORDS]
    assert said("completions", events) == ["".join(WORDS)]


def test_a_stream_of_responses_is_its_deltas_and_not_the_request_that_it_repeats() -> None:
    events = [event({"type": "response.created", "response": {"instructions": LONG}}, "response.created")]
    for number, word in enumerate(WORDS):
        for kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
            delta = {"type": kind, "sequence_number": number, "output_index": 0, "content_index": 0, "delta": word}
            events.append(event(delta, kind))
    events.append(event({"type": "response.completed", "response": {"instructions": LONG}}, "response.completed"))
    assert said("responses", events) == ["".join(WORDS)] * 2


@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_a_stream_with_what_a_tool_is_called_with(route: Route) -> None:
    """Its JSON as it came, and the long texts in it: a file that was written so is read again without the rest."""
    events = []
    for number, piece in enumerate(('{"to', f'do":["{LONG}', '", "short"]}')):
        kind = "response.function_call_arguments.delta"
        delta = {"type": kind, "sequence_number": number, "output_index": 1, "delta": piece}
        events.append(chat(call(piece, 0)) if route == "chat/completions" else event(delta, kind))
    assert said(route, events) == [f'{{"todo":["{LONG}", "short"]}}', LONG]


def test_a_stream_of_messages_with_what_a_tool_is_called_with() -> None:
    events = [event({"type": "message_start", "message": {"content": []}}, "message_start")]
    for word in WORDS:
        delta = {"type": "text_delta", "text": word}
        events.append(event({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"))
    for piece in ('{"to', f'do":"{LONG}', '"}'):
        delta = {"type": "input_json_delta", "partial_json": piece}
        events.append(event({"type": "content_block_delta", "index": 1, "delta": delta}, "content_block_delta"))
    assert said("messages", events) == ["".join(WORDS), f'{{"todo":"{LONG}"}}', LONG]


def test_tokens_of_a_usual_stream_are_kept_without_what_stands_around_them() -> None:
    made = kept("chat/completions", [chat({"content": "word "})] * 10_000)
    assert 50_000 <= made.size < 51_000
    assert Said("chat/completions", kept=made).texts() == ["word " * 10_000]


@pytest.mark.parametrize("odd", [False, True])
def test_what_is_too_long_is_not_kept(odd: bool) -> None:
    made = Kept("chat/completions")
    word = "w" * 2000
    for number in range(MOST_KEPT // 2000 + 20):
        made.add(chat({"content": word}, created=number if odd else 1))
    assert made.over
    assert Said("chat/completions", kept=made).texts() == []


def test_a_long_stream_of_which_no_two_events_are_alike_is_kept_by_its_text() -> None:
    events = [chat({"content": "word "}, obfuscation="x" * (n % 17), created=n) for n in range(20_000)]
    made = kept("chat/completions", events)
    assert made.size < 200_000
    assert Said("chat/completions", kept=made).texts() == ["word " * 20_000]


@pytest.mark.parametrize(
    "nonsense",
    [b"data: {\n\n", b": comment\n\n", b"data: [1]\n\n", b'data: {"choices":[{"index":[],"delta":{"content":7}}]}\n\n',
     b'data: {"choices":{"index":0}}\r\n\r\ndata: null\r\n\r\n', b"\xff\xfe", b'data: {"choices":[{"delta":[]}]}\n\n',
     b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":{},"function":3}]}}]}\n\n', b"data: 1"],
)  # fmt: skip
@pytest.mark.parametrize("route", ["chat/completions", "responses", "messages"])
def test_an_upstream_that_sends_nonsense_breaks_nothing(route: Route, nonsense: bytes) -> None:
    made = kept(route, [nonsense, chat({"content": "a"}), nonsense, chat({"content": "b"}), nonsense])
    assert Said(route, kept=made).texts() == (["ab"] if route == "chat/completions" else [])


def test_line_ends_of_every_kind() -> None:
    events = [chat({"content": word}).replace(b"\n", b"\r\n") for word in WORDS]
    assert said("chat/completions", events) == ["".join(WORDS)]
    assert said("chat/completions", events, 4) == ["".join(WORDS)]


def test_a_whole_answer() -> None:
    assert Said("chat/completions", completion("Yes.").encode()).texts() == ["Yes."]
    calls = [{"function": {"arguments": LONG * 2}}]
    message = {"content": "short", "reasoning_content": LONG, "tool_calls": calls}
    choices = [
        {"message": message, "logprobs": {"content": [{"token": LONG}]}},
        {"message": {"content": LONG * 3}},
    ]
    body = {"id": "x" * 100, "choices": choices}
    inside = {"message": {"content": None, "tool_calls": [{"function": {"arguments": json.dumps({"todo": LONG})}}]}}
    assert Said("chat/completions", json.dumps({"choices": [inside]}).encode()).texts()[-1] == LONG
    assert Said("chat/completions", json.dumps(body).encode()).texts() == ["short", LONG, LONG * 2, LONG * 3]


def test_whole_answers_of_other_dialects() -> None:
    responses = {"instructions": LONG, "output": [{"content": [{"type": "output_text", "text": "Yes."}]}]}
    assert Said("responses", json.dumps(responses).encode()).texts() == ["Yes."]
    called = {"type": "function_call", "name": "f", "arguments": json.dumps({"todo": LONG, "to": [LONG + "!"]})}
    found = Said("responses", json.dumps({"output": [called]}).encode()).texts()
    assert found == [called["arguments"], LONG, LONG + "!"]
    messages = {"content": [{"type": "text", "text": "Yes."}, {"type": "tool_use", "input": {"todo": LONG}}]}
    assert Said("messages", json.dumps(messages).encode()).texts() == ["Yes.", LONG]
    assert Said("embeddings", b'{"data":[{"embedding":[1]}]}').texts() == []
    assert Said("chat/completions", b"no JSON").texts() == []
    assert Said("chat/completions").texts() == []
