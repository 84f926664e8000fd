"""The stream reader: what it passes on is what came, and what it finds does not depend on how the bytes were cut."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.errors import UpstreamFailed
from router.records import Route, Usage
from router.upstream.sse import StreamError, StreamReader, usage_of

USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    document = {"id": "c", "object": "chat.completion.chunk", "choices": choices, **more}
    return "data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":"))


EVENTS = [
    ": welcome",
    chunk({"role": "assistant", "content": ""}, usage=None),
    'event: note\nid: 7\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"two lines"}}]}',
    chunk({"content": "Grüße 👩‍👩‍👧, 世界 \u2028 data: x"}, usage=None),
    chunk({"content": 'say "usage": {"prompt_tokens": 1} and "error" and [DONE]'}),
    chunk({}, "stop"),
    chunk(None, usage=USAGE),
    "data: [DONE]",
]
AFTER = ["data: [DONE]", chunk({"content": "too late"}), chunk(None, error={"message": "too late"})]
ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def wire(events: list[str], end: str = "\n") -> bytes:
    return "".join(event.replace("\n", end) + end + end for event in events).encode()


def follow(
    pieces: list[bytes], *, route: Route = "chat/completions", hide_usage: bool = False, **more: Any
) -> tuple[bytes, tuple[Any, ...]]:
    """What is passed on of these pieces, and everything that was found."""
    reader = StreamReader(route, hide_usage=hide_usage, **more)
    fault = ""
    relayed = b""
    try:
        for piece in pieces:
            relayed += reader.feed(piece)
        relayed += reader.end()
    except StreamError as wrong:
        fault = str(wrong)
    return relayed, (reader.usage, reader.started, reader.done, reader.error, reader.events, fault)


def found(events: list[str], **more: Any) -> tuple[Any, ...]:
    return follow([wire(events)], **more)[1]


# ---- the bytes


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "bom"])
def test_every_split_gives_the_same_bytes_and_findings(end: str, bom: str) -> None:
    data = bom.encode() + wire(EVENTS, end)
    whole = follow([data])
    assert whole[0] == data
    assert whole[1] == (Usage(9, 3, 4), True, True, None, 5, "")
    for at in range(len(data) + 1):
        assert follow([data[:at], data[at:]]) == whole
    assert follow([data[at : at + 1] for at in range(len(data))]) == whole


@pytest.mark.parametrize("hide_usage", [False, True])
@pytest.mark.parametrize("ends", [*([end] for end in ENDS.values()), ["\r", "\n"], ["\n", "\r", "\r\n"]], ids=repr)
def test_every_pair_of_splits_gives_the_same_bytes_and_findings(ends: list[str], hide_usage: bool) -> None:
    """All positions around the events that are decided about, which is where a split can do harm."""
    delta = 'data: {"choices":[{"delta":{"content":"ö"}}]}'
    events = [delta, 'data: {"choices":[],"usage":{"prompt_tokens":9}}', "data: [DONE]", "data: x"]
    data = b"".join(wire([event], ends[number % len(ends)]) for number, event in enumerate(events))
    whole = follow([data], hide_usage=hide_usage)
    for first, second in combinations(range(len(data) + 1), 2):
        assert follow([data[:first], data[first:second], data[second:]], hide_usage=hide_usage) == whole


def test_spare_empty_lines_and_half_a_comment_depend_on_no_split() -> None:
    for end in ENDS.values():
        data = wire([chunk({"content": "a"}), "", ": ping", ""], end) + b": half"
        whole = follow([data])
        assert whole[0] == data.removesuffix(b": half")
        for first, second in combinations(range(len(data) + 1), 2):
            assert follow([data[:first], data[first:second], data[second:]]) == whole


PIECES = st.lists(
    st.sampled_from(
        [*EVENTS, *AFTER, "", ": ping", "data", "data:", "data: 5", "data: {", "retry: 3", chunk({"content": "é"}),
         chunk({"tool_calls": [{"index": 0}]}), chunk(None, usage={"prompt_tokens": -1}), 'data: {"error":"x"}']
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@example(["data: {", ""], ["\n", "\r\n"], 0, False, [9])
@example([chunk(None, usage=USAGE), "", "data: {", ": x"], ["\n", "\r\n", "\n"], 0, False, [161])
@given(
    events=PIECES,
    ends=st.lists(st.sampled_from(list(ENDS.values())), min_size=1, max_size=4),
    cut=st.integers(0, 6),
    hide_usage=st.booleans(),
    splits=st.lists(st.integers(0, 3000), max_size=6),
)
def test_any_split_of_any_stream_is_the_same(
    events: list[str], ends: list[str], cut: int, hide_usage: bool, splits: list[int]
) -> None:
    data = b"".join(wire([event], ends[number % len(ends)]) for number, event in enumerate(events))
    data = data[: len(data) - cut]
    whole = follow([data], hide_usage=hide_usage)
    marks = sorted({0, len(data), *(split % (len(data) + 1) for split in splits)})
    assert follow([data[a:b] for a, b in pairwise(marks)], hide_usage=hide_usage) == whole


@settings(deadline=None)
@given(data=st.binary(max_size=200), split=st.integers(0, 200))
def test_no_bytes_break_it(data: bytes, split: int) -> None:
    assert follow([data[:split], data[split:]]) == follow([data])


@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_no_text_of_a_model_is_taken_for_something_else(text: str) -> None:
    for content in (text, f'"usage":{{"prompt_tokens":7}} {text}', f'"finish_reason":"stop"{text}', "[DONE]", "error"):
        data = wire([chunk({"content": "x"}), chunk({"content": content})])
        relayed, (usage, _, done, error, events, fault) = follow([data])
        assert relayed == data
        assert (usage, done, error, events, fault) == (Usage(), False, None, 2, "")


def test_a_complete_event_is_passed_on_at_once_and_half_of_one_is_not() -> None:
    reader = StreamReader(hide_usage=False)
    one, two = wire([chunk({"content": "a"})]), wire([chunk({"content": "b"})])
    assert reader.feed(one) is one
    assert reader.feed(two[:-1]) == b""
    assert reader.feed(two[-1:] + one[:5]) == two
    assert reader.feed(one[5:]) == one
    assert reader.feed(b"data: 1\r\r") == b"data: 1\r\r", "a lone CR ends a line too"


def test_hidden_usage_leaves_no_trace() -> None:
    for end in ENDS.values():
        relayed, (usage, *_) = follow([wire(EVENTS, end)], hide_usage=True)
        assert relayed == wire([event for event in EVENTS if '"choices":[]' not in event], end)
        assert usage == Usage(9, 3, 4)


def test_usage_beside_a_choice_is_never_hidden() -> None:
    data = wire([chunk({"content": "a"}, "stop", usage=USAGE)])
    assert follow([data], hide_usage=True)[0] == data


def test_nothing_after_the_end_is_passed_on() -> None:
    relayed, (_, _, done, error, events, _) = follow([wire([*EVENTS, *AFTER]), wire(AFTER)])
    assert relayed == wire(EVENTS)
    assert (done, error, events) == (True, None, 5)


def test_an_error_is_kept_back_and_no_end_of_success_comes_after_it() -> None:
    failed = 'data: {"error":{"message":"out of memory","code":500}}'
    relayed, (_, started, done, error, _, _) = follow([wire([chunk({"content": "a"}), failed, "data: [DONE]"])])
    assert relayed == wire([chunk({"content": "a"})])
    assert (started, done, error) == (True, False, "out of memory")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ('data: {"error": "plain"}', "plain"),
        ('data: {"error":{"code":1}}', "the upstream reported an error"),
        ('data: {"object": "error", "message": "old style"}', "old style"),
        ('data: {"error":null,"choices":[]}', None),
    ],
)
def test_errors_of_other_shapes(event: str, message: str | None) -> None:
    assert found([event])[3] == message


# ---- the findings


@pytest.mark.parametrize(
    ("delta", "started"),
    [
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"content": None, "tool_calls": []}, False),
        ({"content": " "}, True),
        ({"reasoning_content": "hm"}, True),
        ({"reasoning": "hm"}, True),
        ({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, True),
    ],
)
def test_the_first_delta_commits(delta: dict[str, Any], started: bool) -> None:
    assert found([": ping", chunk({"role": "assistant", "content": ""}), chunk(delta)])[1] is started


def test_a_byte_order_mark_hides_nothing() -> None:
    data = b"\xef\xbb\xbf" + wire([chunk({"content": "a"})])
    relayed, (_, started, *_) = follow([data])
    assert (relayed, started) == (data, True)


def test_the_text_of_a_plain_completion_commits() -> None:
    assert found(['data: {"choices":[{"index":0,"text":""}]}'])[1] is False
    assert found(['data: {"choices":[{"index":0,"text":"a"}]}'])[1] is True


def test_deltas_are_counted_for_an_estimate() -> None:
    deltas = [chunk({"content": "a"})] * 40
    opening = [": ping", chunk({"role": "assistant"})]
    assert found([*opening, *deltas, ": ping", chunk(None, usage=USAGE), "data: [DONE]"])[4] == 40


def test_the_last_usage_counts() -> None:
    running = [chunk({"content": "a"}, usage={"prompt_tokens": 9, "completion_tokens": n}) for n in (1, 2)]
    assert found([*running, chunk(None, usage=USAGE)])[0] == Usage(9, 3, 4)
    assert found([*running, chunk({}, "length", usage=None)])[0] == Usage(9, 2)


@pytest.mark.parametrize("bad", [-1, "9", 1e308, 2**40, 2**80, True, None, [], {}, 9.5])
def test_a_count_that_is_none_is_unknown(bad: object) -> None:
    usage = {"prompt_tokens": bad, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": bad}}
    assert found([chunk(None, usage=usage)])[0] == Usage(None, 3, None)
    assert usage_of(json.dumps({"usage": usage}).encode()) == Usage(None, 3, None)


def test_nan_is_no_count() -> None:
    assert found(['data: {"choices":[],"usage":{"prompt_tokens":NaN,"completion_tokens":3}}'])[0] == Usage(None, 3)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"usage":null}', b'{"usage":[]}', b'{"usage":7}', b"\xff"]
)
def test_a_body_without_usage_is_unknown_usage(body: bytes) -> None:
    assert usage_of(body) == Usage()


def test_usage_of_a_whole_answer() -> None:
    assert usage_of(json.dumps({"choices": [], "usage": USAGE}).encode()) == Usage(9, 3, 4)


# ---- what cannot be passed on


def test_an_event_without_end_is_cut_and_memory_stays_bounded() -> None:
    reader = StreamReader(hide_usage=False, event_bytes=10_000)
    good = wire([chunk({"content": "a"})])
    assert reader.feed(good + b"data: " + b"x" * 9_000) == good
    with pytest.raises(StreamError, match="10000 bytes"):
        reader.feed(b"x" * 2_000)
    with pytest.raises(StreamError):
        reader.feed(b"\n\n")
    with pytest.raises(StreamError):
        reader.end()


def test_good_events_before_an_endless_one_are_passed_on_first() -> None:
    good = wire([chunk({"content": "a"})])
    assert follow([good + b"data: " + b"x" * 200], event_bytes=100)[0] == good


def test_very_many_single_bytes_are_one_event() -> None:
    reader = StreamReader(hide_usage=False)
    for _ in range(300_000):
        reader.feed(b"x")
    assert reader.feed(b"\n\n").startswith(b"xxx")


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_all_that_came_before_a_broken_event_is_passed_on_however_it_was_split(end: str) -> None:
    good = wire([": ping", chunk({"role": "assistant"})], end) + end.encode()
    data = good + wire(["data: {"], end)
    for at in range(len(data) + 1):
        relayed, (*_, fault) = follow([data[:at], data[at:]])
        assert (relayed, fault) == (good, "an event is not valid JSON")


@pytest.mark.parametrize("text", ["{", "nonsense", "[DONE] or not", '{"choices":[}', "[" * 100_000])
def test_an_event_that_is_not_json_ends_the_stream(text: str) -> None:
    good = wire([": ping"])
    relayed, (*_, fault) = follow([good + wire([f"data: {text}"])])
    assert (relayed, fault) == (good, "an event is not valid JSON")


def test_an_event_without_data_is_no_broken_one() -> None:
    data = wire(["data:", "data", "id: 1", chunk({"content": "a"})])
    relayed, (_, started, *_, fault) = follow([data])
    assert (relayed, started, fault) == (data, True, "")


@pytest.mark.parametrize("route", ["messages", "responses"])
def test_an_event_without_data_counts_the_same_however_the_stream_was_cut(route: Route) -> None:
    """Found by fuzzing: among others it was counted by its words, and alone it was not."""
    kind = "content_block_delta" if route == "messages" else "response.output_text.delta"
    whole = json.dumps({"type": kind, "delta": {"text": "a"} if route == "messages" else "a"}, separators=(",", ":"))
    stream = wire([f"data: {whole}", f'event:"{kind}","delta":{{}}}}', f"data: {whole}"])
    ways = [[stream[:at], stream[at:]] for at in range(len(stream))]
    assert len({follow(way, route=route)[1] for way in ways}) == 1


def test_lone_surrogates_do_not_end_the_stream() -> None:
    data = b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'
    relayed, (_, started, *_, fault) = follow([data])
    assert (relayed, started, fault) == (data, True, "")


def test_only_bytes_that_are_no_utf8_are_replaced_and_the_reader_says_so() -> None:
    good = wire([chunk({"content": "Grüße 👩"})])
    data = good + b'data: {"choices":[{"delta":{"content":"\xff \xc3\xbc"}}]}\n\n'
    for at in range(len(data)):
        reader = StreamReader()
        relayed = reader.feed(data[:at]) + reader.feed(data[at:]) + reader.end()
        assert relayed == good + b'data: {"choices":[{"delta":{"content":"\xef\xbf\xbd \xc3\xbc"}}]}\n\n'
        assert reader.replaced
    clean = StreamReader()
    assert clean.feed(good) is good
    assert not clean.replaced


def test_a_last_event_without_its_empty_line_is_delivered() -> None:
    for ending in (b"", b"\n"):
        relayed, (_, _, done, *_) = follow([wire([chunk({"content": "a"})]) + b"data: [DONE]" + ending])
        assert relayed.endswith(b"data: [DONE]\n\n")
        assert done


def test_half_an_event_at_the_end_is_an_error_and_not_passed_on() -> None:
    """An error event sent after it would otherwise become part of the same line."""
    good = wire([chunk({"content": "a"})])
    for half in (chunk({"content": "b"})[:-3], "data: [DO"):
        relayed, (_, _, done, *_, fault) = follow([good + half.encode()])
        assert (relayed, done, fault) == (good, False, "the stream ended inside an event")


def test_an_error_event_is_one_event_in_openais_shape() -> None:
    event = UpstreamFailed('it "broke"\n\ndata: [DONE]', code="upstream_interrupted").event()
    relayed, (_, _, done, error, *_) = follow([event])
    assert (relayed, done, error) == (b"", False, 'it "broke"\n\ndata: [DONE]')
    assert event.count(b"\n") == 2
    parsed = orjson.loads(event.removeprefix(b"data: "))
    assert parsed["error"].keys() == {"message", "type", "param", "code"}
    assert parsed["error"]["code"] == "upstream_interrupted"


@pytest.mark.parametrize(
    "wrong", [b'data: {"choices":[{"delta":{"content":"b"}}]\n\n', b"data: <html>}\n\n", b'data: {"a": 1}]\r\n\r\n']
)
@pytest.mark.parametrize("joined", [True, False])
def test_an_event_in_the_midst_that_is_no_object_ends_the_stream(wrong: bytes, joined: bool) -> None:
    good = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    reader = StreamReader()
    assert reader.feed(good) == good
    with pytest.raises(StreamError) as told:
        for part in [good + wrong + good, good] if joined else [wrong, good]:
            assert reader.feed(part) in (good, b"")
    assert told.value.code == "upstream_bad_event"


def test_objects_are_passed_unread_however_their_lines_end(monkeypatch: pytest.MonkeyPatch) -> None:
    good = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}'
    reader = StreamReader()
    reader.feed(good + b"\n\n")
    monkeypatch.setattr("router.upstream.sse._decode", None)
    for end in (b"\n\n", b"\r\n\r\n", b"\r\r", b" \n\n"):
        assert reader.feed(good + end) == good + end
    spaceless = good.replace(b"data: ", b"data:") + b"\n\n"
    assert reader.feed(spaceless + b": comment\n\n" + good + b"\n\n")
    assert reader.events == 7
