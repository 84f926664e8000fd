"""Event streams that are cut anywhere, ended oddly or wrong in themselves (SS-…).

Through a real router: what a caller reads must not depend on how the network cut the bytes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.conftest import ask
from tests.fakes import answers
from tests.fakes.faults import events
from tests.faults.conftest import MIB, FaultHouse
from tests.faults.wire import Outcome

WORDS = ["Zwölf 🚣🏽‍♀️", "水位が", "e\u0301tage"]
"""Emoji of several code points, CJK, and a combining mark."""
USAGE = {"stream_options": {"include_usage": True}}


def chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return answers.event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


DONE = b"data: [DONE]\n\n"
SHORT = (
    chunk("ö🚣")[:-2]
    + b"\r\n\r\n"
    + b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
    + DONE
)


async def stream(house: FaultHouse, pieces: Iterable[Any], key: str, **body: Any) -> Outcome:
    """The only replica sends these pieces, each in a write of its own."""
    house.fail_all({"stream": list(pieces), "bare": True})
    return await house.tell(ask("small", stream=True, **(USAGE | body)), key)


async def cut(house: FaultHouse, data: bytes, places: Iterable[int], key: str) -> Outcome:
    """The stream `data`, cut at these places."""
    edges = [0, *places, len(data)]
    return await stream(house, [data[a:b] for a, b in itertools.pairwise(edges)], key)


def interrupted(found: Outcome) -> None:
    assert (found.status, found.code) == (200, "upstream_interrupted"), found


# ---- cut anywhere


async def test_ss_001_every_byte_may_come_alone(house: FaultHouse) -> None:
    await house.start()
    sent = events(WORDS)
    house.fail_all({"stream": sent, "bare": True, "split": 1})
    found = await house.tell(ask("small", stream=True, **USAGE), house.key())
    assert found.body == b"".join(sent)
    assert found.text == "".join(WORDS)
    closed = await house.closed(found)
    assert (closed["outcome"], closed["output_tokens"], closed["estimated"]) == ("answered", 3, False)


async def test_ss_001_a_cut_at_any_byte_changes_nothing(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for place in range(1, len(SHORT)):
        found = await cut(house, SHORT, [place], key)
        assert found.body == SHORT, place
    await house.recorded()
    rows = [rows[-1] for rows in house.rows().values()]
    assert {(row["outcome"], row["output_tokens"], row["estimated"]) for row in rows} == {("answered", 2, False)}


SPLITS = {
    "field": (b"data: {", 2), "cr_lf": (b"\r\n", 1), "lf_lf": (b"\n\n", 1), "between_crlfs": (b"\r\n\r\n", 2),
    "colon": (b"data: {", 5), "done": (b"[DONE]", 3), "usage": (b'"usage"', 4),
}  # fmt: skip


@pytest.mark.parametrize("where", SPLITS)
async def test_ss_002_an_event_cut_inside_its_marks_is_the_same(house: FaultHouse, where: str) -> None:
    mark, offset = SPLITS[where]
    await house.start()
    key, at = house.key(), SHORT.index(mark) + offset
    assert (await cut(house, SHORT, [at], key)).body == SHORT
    assert (await cut(house, SHORT, sorted({at, at + 1, at + 2}), key)).body == SHORT


ENDS = [b"\n", b"\r\n", b"\r"]


async def test_ss_003_every_kind_of_line_end_is_read(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    whole = b"".join(events(WORDS))
    for first in ENDS:
        for second in ENDS:
            sent = whole.replace(b"\n\n", first + second)
            if first + second == b"\r\n":
                continue  # that is one line end
            house.fail_all({"stream": [sent], "bare": True})
            found = await house.tell(ask("small", stream=True, **USAGE), key)
            assert (found.status, found.code, found.text) == (200, "ok", "".join(WORDS)), (first, second)
            closed = await house.closed(found)
            assert (closed["output_tokens"], closed["estimated"]) == (3, False), (first, second)
    mixed = [one.replace(b"\n", ENDS[n % 3]) for n, one in enumerate(events(WORDS))]
    assert (await stream(house, mixed, key)).text == "".join(WORDS)


ODD_FIELDS = {
    "no_space": chunk("a").replace(b"data: ", b"data:"),
    "two_spaces": chunk("a").replace(b"data: ", b"data:  "),
    "named": b"event: message\nid: 7\nretry: 100\n" + chunk("a"),
    "unknown": b"colour: blue\nnocolon\n" + chunk("a"),
    "comment": b": thinking\n\n: and again\n" + chunk("a"),
    "lines": b'data: {"id":"c1","choices":\ndata: [{"index":0,"delta":{"content":"a"}}]}\n\n',
    "empty_data": b"data:\n\ndata: \n\n" + chunk("a"),
    "empty_lines": b"\n\n\n\n" + chunk("a"),
}


@pytest.mark.parametrize("form", ODD_FIELDS)
async def test_ss_004_every_field_of_the_standard_is_read(house: FaultHouse, form: str) -> None:
    await house.start()
    key = house.key()
    found = await stream(house, [ODD_FIELDS[form], chunk("b"), DONE], key)
    assert (found.status, found.code, found.text) == (200, "ok", "ab")
    closed = await house.closed(found)
    assert closed["outcome"] == "answered"


async def test_ss_005_a_bom_is_passed_over_once(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    bom = b"\xef\xbb\xbf"
    for pieces in ([bom + chunk("a"), DONE], [bom[:1], bom[1:2], bom[2:] + chunk("a"), DONE]):
        found = await stream(house, pieces, key)
        assert found.status == 200
        assert found.body in (b"".join(pieces), b"".join(pieces).removeprefix(bom))
        assert (await house.closed(found))["outcome"] == "answered"


# ---- wrong in themselves


async def test_ss_006_an_event_without_end_is_cut_at_the_cap(house: FaultHouse) -> None:
    house.most_bytes, house.most_stall_s = 32 * MIB, 0.5  # what sends so much is on this loop as well
    await house.start(router={"first_byte_timeout_s": 30, "total_timeout_s": 30, "idle_timeout_s": 30,
                              "first_token_timeout_s": 30, "keep_alive_s": 30})  # fmt: skip
    key = house.key()
    piece = b"y" * (256 * 1024)
    found = await stream(house, [chunk("one"), b"data: ", *[piece] * 256], key)
    interrupted(found)
    assert found.text == "one"
    assert house.local.sent < 16 * MIB, "it was read on"
    found = await stream(house, [b"data: ", *[piece] * 256], key)
    assert (found.status, found.code) == (502, "upstream_bad_response")
    assert house.local.sent < 32 * MIB


NO_JSON = {
    "half": b'data: {"id": \n\n', "words": b"data: hello\n\n", "nan": b'data: {"choices": NaN,}\n\n',
    "deep": b"data: " + b"[" * 100_000 + b"\n\n", "html": b"data: <html>\n\n",
}  # fmt: skip


@pytest.mark.parametrize("form", NO_JSON)
async def test_ss_008_an_event_that_is_no_json_never_begins_an_answer(house: FaultHouse, form: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    house.fail_first({"stream": [NO_JSON[form]], "bare": True})
    found = await house.tell(ask(stream=True), key)
    assert (found.status, found.text) == (200, "Hello wörld")
    house.fail_all({"stream": [NO_JSON[form]], "bare": True})
    found = await house.tell(ask(stream=True), key)
    assert (found.status, found.code) == (502, "upstream_bad_response")


@pytest.mark.parametrize("form", NO_JSON)
async def test_ss_008_an_event_that_is_no_json_is_believed_in_nothing(house: FaultHouse, form: str) -> None:
    """Events that say nothing accounting needs are relayed unread; one that seems to must be readable."""
    await house.start()
    wrong = NO_JSON[form].replace(b"data: ", b'data: {"usage": {')
    found = await stream(house, [chunk("one"), wrong, chunk("two"), DONE], house.key())
    assert (found.status, found.code, found.text) == (200, "upstream_bad_event", "one")
    found = await stream(house, [chunk("one"), NO_JSON[form], chunk("two"), DONE], house.key())
    assert found.text.startswith("one") and found.code in ("ok", "upstream_bad_event")
    closed = await house.closed(found)
    assert closed["outcome"] == ("answered" if found.code == "ok" else "cut")
    assert 1 <= closed["output_tokens"] <= 3 and closed["estimated"]


AFTER_DONE = {
    "more": [DONE, chunk("more")], "twice": [DONE, DONE], "joined": [DONE + chunk("more") + DONE],
    "no_space": [b"data:[DONE]\n\n", chunk("more")], "garbage": [DONE, b"\xff" * 9],
    "error": [DONE, b'data: {"error": {"message": "late"}}\n\n'],
}  # fmt: skip


@pytest.mark.parametrize("form", AFTER_DONE)
async def test_ss_009_nothing_follows_the_first_done(house: FaultHouse, form: str) -> None:
    await house.start()
    found = await stream(house, [chunk("one"), *AFTER_DONE[form]], house.key())
    assert (found.status, found.code, found.text) == (200, "ok", "one")
    assert found.events[-1] == "[DONE]" and found.events.count("[DONE]") == 1
    closed = await house.closed(found)
    assert (closed["outcome"], closed["finish"]) == ("answered", "missing"), "no event of it says why it ends"


@pytest.mark.parametrize("finish", ["stop", "length"])
async def test_ss_009_why_it_ended_is_written_down(house: FaultHouse, finish: str) -> None:
    await house.start()
    ended = chunk("").replace(b'"finish_reason":null', b'"finish_reason":"%b"' % finish.encode())
    ended = ended.replace(b'"finish_reason": null', b'"finish_reason": "%b"' % finish.encode())
    assert finish.encode() in ended
    key = house.key()
    assert (await house.closed(await stream(house, [chunk("one"), ended, DONE], key)))["finish"] == finish
    late = await stream(house, [chunk("one"), DONE, ended], key)
    assert finish.encode() not in late.body
    assert (await house.closed(late))["finish"] == "missing", "what follows the end was believed"


async def test_ss_009_done_before_anything_was_said(house: FaultHouse) -> None:
    await house.start()
    found = await stream(house, [DONE], house.key())
    assert found.status in (200, 502)
    if found.status == 200:
        closed = await house.closed(found)
        assert closed["output_tokens"] in (0, None) and closed["finish"] == "missing"


BAD_TEXT = {
    "lone_byte": b"\xff",
    "half_character": "ö".encode()[:1],
    "overlong": b"\xc0\xaf",
    "surrogate": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("form", BAD_TEXT)
async def test_ss_010_wrong_utf_8_goes_on_and_touches_nothing_else(house: FaultHouse, form: str) -> None:
    await house.start()
    wrong = chunk("vor–X–nach").replace(b"X", BAD_TEXT[form])
    for pieces in ([wrong, chunk("zwölf"), DONE], [chunk("zwölf"), wrong, DONE]):
        found = await stream(house, pieces, house.key())
        assert (found.status, found.code) == (200, "ok")
        assert "zwölf" in found.text and "vor–\ufffd" in found.text and "–nach" in found.text
        assert found.body == b"".join(pieces).decode("utf-8", "replace").encode(), "what goes on is UTF-8"
        assert (await house.closed(found))["replaced"], "nobody can see that it was mended"
    assert not (await house.closed(await stream(house, [chunk("zwölf \ufffd"), DONE], house.key())))["replaced"]


async def test_ss_011_a_last_event_without_its_empty_line(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for end in (b"\n", b""):
        found = await stream(house, [chunk("one"), chunk("two")[:-2] + end], key)
        interrupted(found)
        assert found.text == "onetwo", "the event was lost"
        assert (await house.closed(found))["outcome"] == "cut"
        found = await stream(house, [chunk("one"), DONE[:-2] + end], key)
        assert (found.code, found.text) == ("ok", "one")


STRANGE = {"nul": "a\0b", "line_separator": "a\u2028b\u2029c", "escapes": "a\x1b[31m\x7f", "bidi": "a\u202eb"}


@pytest.mark.parametrize("form", STRANGE)
async def test_ss_014_strange_characters_pass_unharmed(house: FaultHouse, form: str) -> None:
    await house.start()
    found = await stream(house, [chunk(STRANGE[form]), chunk("z"), DONE], house.key())
    assert (found.status, found.code, found.text) == (200, "ok", STRANGE[form] + "z")


async def test_ss_014_a_lone_surrogate_or_a_raw_nul_harms_nobody(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for odd in (chunk("aXb").replace(b"X", b"\\ud800"), chunk("aXb").replace(b"X", b"\0")):
        for pieces in ([odd, chunk("z"), DONE], [chunk("z"), odd, DONE]):
            found = await stream(house, pieces, key)
            if found.status == 200 and found.code == "ok":
                assert found.body == b"".join(pieces)
            else:
                assert found.code in ("upstream_bad_response", "upstream_interrupted")


# ---- other dialects


async def test_ss_015_named_events_and_pings_of_messages_pass(house: FaultHouse) -> None:
    await house.start()
    sent = answers.streamed("/v1/messages")
    odd = answers.event({"type": "something_new", "x": [1]}, "something_new")
    house.fail_all({"stream": [sent[0], odd, *sent[1:]], "bare": True})
    body = {"model": "small", "max_tokens": 20, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    found = await house.tell(body, house.key(), "/v1/messages")
    assert found.status == 200, found
    assert found.body == b"".join([sent[0], odd, *sent[1:]])
    closed = await house.closed(found)
    assert (closed["outcome"], closed["prompt_tokens"], closed["output_tokens"]) == ("answered", 9, 2)


async def test_ss_015_events_of_responses_pass(house: FaultHouse) -> None:
    await house.start()
    sent = answers.streamed("/v1/responses")
    odd = answers.event({"type": "response.new.thing", "x": 1}, "response.new.thing")
    house.fail_all({"stream": [sent[0], odd, *sent[1:]], "bare": True})
    body = {"model": "small", "stream": True, "input": "Hello"}
    found = await house.tell(body, house.key(), "/v1/responses")
    assert found.status == 200, found
    assert found.body == b"".join([sent[0], odd, *sent[1:]])
    closed = await house.closed(found)
    assert (closed["outcome"], closed["prompt_tokens"], closed["output_tokens"]) == ("answered", 9, 3)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_ss_015_a_cut_stream_ends_in_its_own_dialect(house: FaultHouse, path: str) -> None:
    await house.start()
    sent = answers.streamed(path)
    house.fail_all({"stream": sent[:-1], "bare": True, "cut": 100_000})
    body: dict[str, Any] = {"model": "small", "stream": True}
    body |= {"input": "Hello"} if path.endswith("responses") else {
        "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]
    }  # fmt: skip
    found = await house.tell(body, house.key(), path)
    assert found.status == 200, found
    last = json.loads(found.events[-1])
    assert last["type"] == "error"
    if path.endswith("responses"):
        numbers = [json.loads(event)["sequence_number"] for event in found.events]
        assert numbers == list(range(len(sent))), "the error has the place of the event that did not come"
    assert (await house.closed(found))["outcome"] == "cut"
