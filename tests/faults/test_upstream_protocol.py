"""What an upstream says wrongly: statuses, headers, framing, bodies that are not what they claim (PR-…)."""

from __future__ import annotations

import functools
import json
import math
import time
from email.utils import formatdate
from typing import Any

import pytest

from router import app
from router.upstream.room import Room
from router.upstream.tries import Retries
from tests.conftest import ask, instance
from tests.fakes.faults import completion, events
from tests.faults.conftest import MIB, FaultHouse
from tests.faults.wire import Outcome

SECRET = "inner words of the engine at http://10.0.0.7:8000"


def failing(status: int, **headers: str) -> dict[str, Any]:
    """An answer with this status whose words nobody may see."""
    body = json.dumps({"error": {"message": SECRET, "type": "server_error", "code": status}})
    return {"status": status, "body": body, "headers": headers}


async def alone(house: FaultHouse, script: dict[str, Any], key: str, **body: Any) -> Outcome:
    """One request to the only replica, which does this."""
    house.fail_all(script)
    return await house.tell(ask("small", **body), key)


async def both_ways(house: FaultHouse, script: dict[str, Any], key: str, **body: Any) -> None:
    """The first replica asked does this, and another one answers."""
    house.fail_first(script)
    before = house.asked()
    found = await house.tell(ask("small", **body), key)
    assert found.status == 200, (script, found)
    assert house.asked() == before + 2, script
    assert SECRET not in found.body.decode()


def bad(found: Outcome) -> None:
    """502 upstream_bad_response, and none of the upstream's words."""
    assert (found.status, found.code) == (502, "upstream_bad_response"), found
    assert SECRET not in found.body.decode()


# ---- refusals


async def test_pr_001_a_429_is_left_alone_as_long_as_it_says(house: FaultHouse) -> None:
    await house.start(replicas=2)
    key = house.key()
    house.fail_first(failing(429, **{"retry-after": "7"}))
    assert (await house.tell(ask(), key)).status == 200
    asleep = [name for name in ("small", "small-2") if house.endpoint(name)["resting"]]
    assert len(asleep) == 1
    first = {id(one): len(one.requests) for one in house.replicas[:2]}
    for _ in range(5):
        assert (await house.tell(ask(), key)).status == 200
    grown = [len(one.requests) - first[id(one)] for one in house.replicas[:2]]
    assert sorted(grown) == [0, 5], "it was asked again"


async def test_pr_001_where_nobody_else_is_the_429_is_passed_on(house: FaultHouse) -> None:
    await house.start()
    found = await alone(house, failing(429, **{"retry-after": "7"}), house.key())
    assert (found.status, found.code) == (429, "rate_limit_exceeded")
    assert found.headers["retry-after"] == "7"
    assert SECRET not in found.body.decode()


RETRY_AFTER: dict[str, tuple[str | int, range]] = {
    "date": (120, range(60, 121)),  # seconds from now, said as a date
    "past": (-3600, range(31)),
    "negative": ("-5", range(31)),
    "word": ("abc", range(1, 31)),
    "huge": ("1000000000000", range(300, 301)),
    "fraction": ("1.5", range(31)),
    "nan": ("nan", range(31)),
    "infinite": ("inf", range(301)),
    "joined": ("7, 9", range(31)),
    "empty": ("", range(31)),
    "digits": ("٧", range(31)),
}


@pytest.mark.parametrize("form", RETRY_AFTER)
async def test_pr_002_every_form_of_retry_after_is_read_or_clamped(house: FaultHouse, form: str) -> None:
    said, seconds = RETRY_AFTER[form]
    value = said if isinstance(said, str) else formatdate(time.time() + said, usegmt=True)
    await house.start()
    script = failing(429)
    script["headers"] = {"retry-after": value.encode().decode("latin-1")}
    found = await alone(house, script, house.key())
    assert found.status == 429
    assert int(found.headers["retry-after"]) in seconds, value


async def test_pr_002_a_retry_after_given_twice_is_one_of_them_or_none(house: FaultHouse) -> None:
    await house.start()
    script = failing(429)
    script["headers"] = [("retry-after", "7"), ("retry-after", "9")]
    found = await alone(house, script, house.key())
    assert found.status == 429
    assert 0 <= int(found.headers["retry-after"]) <= 30


async def test_pr_003_a_529_is_asked_of_another_and_is_a_503(house: FaultHouse) -> None:
    await house.start(replicas=2)
    key = house.key()
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": SECRET}}
    script = {"status": 529, "body": json.dumps(overloaded)}
    await both_ways(house, script, key)
    for _ in range(3):
        found = await alone(house, script, key)
        assert (found.status, found.code) == (503, "upstream_overloaded")
        assert int(found.headers["retry-after"]) > 0
        assert SECRET not in found.body.decode()
    assert all(house.endpoint(name)["resting"] for name in ("small", "small-2")), "it does not count as a failure"


async def test_pr_003_a_provider_that_is_overloaded_is_a_503(house: FaultHouse) -> None:
    house.may_leave = True
    await house.start(hosted=True)
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": SECRET}}
    house.provider.script = {"status": 529, "body": json.dumps(overloaded)}
    key = house.key("public")
    for _ in range(3):
        found = await house.tell(ask("big"), key)
        assert (found.status, found.code) == (503, "upstream_overloaded")
        assert int(found.headers["retry-after"]) > 0
        assert SECRET not in found.body.decode()
    assert house.endpoint("big")["resting"], "it does not count as a failure"


STATUSES = (500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526)


@pytest.mark.parametrize("stream", [False, True])
async def test_pr_004_errors_of_a_replica_are_hidden_by_another(house: FaultHouse, stream: bool) -> None:
    await house.start(replicas=2, router={"queue_wait_s": 5})  # a 503 is taken for a full engine for a second
    key = house.key()
    for status in STATUSES:
        await both_ways(house, failing(status), key, stream=stream)


@pytest.mark.parametrize("status", STATUSES)
async def test_pr_004_errors_are_mapped_and_never_relayed(house: FaultHouse, status: int) -> None:
    await house.start()
    found = await alone(house, failing(status), house.key())
    assert found.status == {503: 503, 504: 504}.get(status, 502)
    assert SECRET not in found.body.decode()
    if status != 503:
        assert house.asked() == 1


async def test_pr_004_no_more_than_three_attempts(house: FaultHouse) -> None:
    await house.start(replicas=3)
    house.fail_all(failing(502))
    found = await house.tell(ask("cheap"), house.key("private"))
    bad(found)
    assert house.asked() == len(await house.attempts(found)) == 3


async def test_pr_004_an_engine_without_room_is_asked_again_as_long_as_a_request_may_wait(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a try has done nothing there, so it is none of the three and takes nothing of the retry budget; what bounds
    it is the time to wait, and pauses that double."""
    monkeypatch.setattr(app, "Room", functools.partial(Room, busy_s=0.01))
    monkeypatch.setattr("router.upstream.attempts.FIRST_PAUSE_S", 0.01)
    budgeted: list[bool] = []
    begun = Retries.begun
    monkeypatch.setattr(Retries, "begun", lambda self, again: (budgeted.append(again), begun(self, again))[1])
    await house.start(router={"queue_wait_s": 1, "queue_length": 10})
    found = await alone(house, failing(503), house.key())
    assert (found.status, found.code) == (503, "queue_timeout")
    assert SECRET not in found.body.decode()
    tried = await house.attempts(found)
    assert set(tried) == {"overloaded"} and house.asked() == len(tried)
    assert 3 < len(tried) <= 2 + math.log2(1 / 0.01), "its pauses do not double"
    assert not any(budgeted), "it took from the retry budget"
    assert found.seconds < 3, "the time to wait is 1 s"


async def test_pr_005_a_wrong_request_is_asked_once_and_harms_nobody(house: FaultHouse) -> None:
    await house.start(replicas=2)
    key = house.key()
    body = {"error": {"message": "temperature must be at most 2", "type": "BadRequestError", "code": 400}}
    house.fail_all({"status": 400, "body": json.dumps(body), "headers": {"x-inner": "1", "server": "uvicorn"}})
    for number in range(1, 6):
        found = await house.tell(ask(), key)
        assert (found.status, found.code) == (400, "invalid_request")
        assert "x-inner" not in found.headers and "server" not in found.headers
        assert house.asked() == number, "it was asked again"
    assert not any(house.endpoint(name)["resting"] for name in ("small", "small-2"))


TOO_LONG = json.dumps({"error": {"message": "This model's maximum context length is 10 tokens", "code": 400}})


@pytest.mark.parametrize("status", [400, 413])
async def test_pr_008_a_prompt_too_long_here_does_not_leave(house: FaultHouse, status: int) -> None:
    await house.start()
    for key in (house.key("private"), house.key("internal")):
        house.fail_all({"status": status, "body": TOO_LONG})
        found = await house.tell(ask("cheap"), key)
        assert (found.status, found.code) == (400, "context_length_exceeded")
    assert not house.endpoint()["resting"]
    assert house.leaked() == 0


async def test_pr_008_a_public_one_may_go_to_a_longer_model(house: FaultHouse) -> None:
    house.may_leave = True
    await house.start(hosted=True)
    house.fail_all({"status": 400, "body": TOO_LONG})
    found = await house.tell(ask("cheap"), house.key("public"))
    assert (found.status, found.headers["x-headgate-place"]) == (200, "hosted")
    assert (await house.closed(found))["trigger"] == "context"


ERROR_EVENT = {"error": {"message": f"Traceback: {SECRET}", "type": "InternalServerError", "code": 500}}


async def test_pr_010_an_error_event_ends_a_stream_in_our_words(house: FaultHouse) -> None:
    await house.start(replicas=2)
    house.fail_first({"stream": ["one ", "two ", ERROR_EVENT, "three"]})
    found = await house.tell(ask(stream=True), house.key())
    assert (found.status, found.code, found.text) == (200, "upstream_interrupted", "one two ")
    assert SECRET not in found.body.decode()
    assert house.asked() == 1
    assert (await house.closed(found))["outcome"] == "cut"


async def test_pr_010_an_error_event_before_any_token_is_asked_of_another(house: FaultHouse) -> None:
    await house.start(replicas=2)
    key = house.key()
    await both_ways(house, {"stream": [ERROR_EVENT]}, key, stream=True)
    house.fail_all({"stream": [ERROR_EVENT]})
    found = await house.tell(ask(stream=True), key)
    bad(found)


# ---- another thing than was asked for

PAGE = "<html><body>Please log in</body></html>"


@pytest.mark.parametrize("stream", [False, True])
async def test_pr_011_a_page_is_no_answer(house: FaultHouse, stream: bool) -> None:
    await house.start(replicas=2)
    key = house.key()
    for kind in ("text/html; charset=utf-8", "text/plain", "", "application/octet-stream"):
        script = {"status": 200, "headers": {"content-type": kind}, "body": PAGE}
        await both_ways(house, script, key, stream=stream)
        house.fail_all(script)
        found = await house.tell(ask(stream=stream), key)
        bad(found)


CUT_BODIES: dict[str, dict[str, Any]] = {
    "half": {"body": completion()[:60]},
    "no_json": {"body": "no JSON at all"},
    "list": {"body": "[]"},
    "nothing": {"body": ""},
    "longer_said": {"body": completion(), "length": 5000, "close": True},
    "cut": {"body": completion(), "cut": 150},
    "reset": {"body": completion(), "reset": 150},
}


@pytest.mark.parametrize("how", CUT_BODIES)
async def test_pr_013_a_body_that_is_not_whole_is_asked_of_another(house: FaultHouse, how: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    await both_ways(house, CUT_BODIES[how], key)
    house.fail_all(CUT_BODIES[how])
    found = await house.tell(ask(), key)
    assert found.status in (502, 503), found
    assert found.code in ("upstream_bad_response", "no_local_capacity")


async def test_pr_013_a_body_longer_than_it_said_poisons_no_other_answer(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    body = completion()
    house.fail_all({"body": body + "HTTP/1.1 200 Fine\r\n\r\n", "length": len(body)})
    found = await house.tell(ask(), key)
    assert found.status == 502 or found.text == "Hello."
    house.fail_all({})
    assert (await house.tell(ask(), key)).text == "Hello."
    assert [r.peer for r in house.local.requests] == [1, 2], "the connection was used again"


# ---- framing

HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
FRAMING = {
    "bad_size": HEAD + "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "negative_size": HEAD + "transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "huge_size": HEAD + "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "no_end_of_chunk": HEAD + "transfer-encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "both": HEAD + "transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip": HEAD + "transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two_lengths": HEAD + "content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "no_number": HEAD + "content-length: two\r\n\r\n{}",
    "negative": HEAD + "content-length: -2\r\n\r\n{}",
}


@pytest.mark.parametrize("how", FRAMING)
async def test_pr_014_bad_framing_is_no_answer(house: FaultHouse, how: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    script = {"raw": FRAMING[how], "close": True}
    await both_ways(house, script, key)
    house.fail_all(script)
    bad(await house.tell(ask(), key))


async def test_pr_014_chunks_without_a_terminator_are_not_whole(house: FaultHouse) -> None:
    await house.start()
    body = completion()
    raw = f"{HEAD}transfer-encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n"
    found = await alone(house, {"raw": raw, "close": True}, house.key())
    assert found.status in (502, 503)


async def test_pr_014_a_million_chunks_of_a_byte_hold_nobody_up(house: FaultHouse) -> None:
    house.most_bytes = 96 * MIB
    await house.start(router={"first_byte_timeout_s": 30, "total_timeout_s": 30, "idle_timeout_s": 30})
    body = completion("x" * 1_000_000).encode()
    raw = bytearray(HEAD.encode() + b"transfer-encoding: chunked\r\n\r\n")
    raw += b"".join([b"1\r\n%c\r\n" % byte for byte in body]) + b"0\r\n\r\n"
    house.watch.excuse()  # making those bytes was the test's own work
    found = await alone(house, {"raw": bytes(raw), "split": 65_536}, house.key())
    assert found.status == 200
    assert found.body == body


# ---- heads

HEADS = {
    "one_mb": [("x-much", "y" * MIB)],
    "many": [(f"x-{n}", "y") for n in range(10_000)],
    "hundreds": [(f"x-{n}", "y") for n in range(500)],
    "nul": [("x-odd", "a\0b")],
    "bare_cr": [("x-odd", "a\rb: c")],
    "bare_lf": [("x-odd", "a\n b")],
    "no_name": [("", "a")],
    "space": [("x odd", "a")],
    "folded": [("x-odd", "a\r\n folded")],
}


@pytest.mark.parametrize("how", HEADS)
async def test_pr_016_large_and_odd_heads_are_not_relayed(house: FaultHouse, how: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    script = {"headers": HEADS[how], "body": completion()}
    tame = how in ("bare_lf", "folded")  # read as another header or a longer value: harmless, as none is passed on
    if not tame:
        await both_ways(house, script, key)
    house.fail_all(script)
    found = await house.tell(ask(), key)
    assert not [name for name in found.headers if name.startswith("x-") and name[2:5] in ("odd", "muc", "0", "1")]
    if found.status != 200 or not tame:
        bad(found)


BAD_HEADS = {
    "http_1_0": "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    "http_0_9": completion(),
    "http_2": "HTTP/2 200\r\n\r\n",
    "http_9": "HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "garbage": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\xff" * 40 + "\r\n\r\n",
    "no_status": "HTTP/1.1 abc OK\r\n\r\n",
    "status_9999": "HTTP/1.1 9999 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status_0": "HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\n{}",
    "ssh": "SSH-2.0-OpenSSH_9.9\r\n",
}


@pytest.mark.parametrize("how", BAD_HEADS)
async def test_pr_017_other_protocols_are_no_answer(house: FaultHouse, how: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    script = {"raw": BAD_HEADS[how], "close": True}
    await both_ways(house, script, key)
    house.fail_all(script)
    bad(await house.tell(ask(), key))


async def test_pr_018_early_answers_are_passed_over(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for inform in ([100], [103], [102, 103, 100]):
        found = await alone(house, {"inform": inform, "body": completion()}, key)
        assert (found.status, found.text) == (200, "Hello.")
        assert "x-early" not in found.headers
        found = await alone(house, {"inform": inform, "stream": ["a", "b"]}, key, stream=True)
        assert (found.status, found.text) == (200, "ab")


async def test_pr_018_other_successes_are_no_answer(house: FaultHouse) -> None:
    await house.start(replicas=2)
    key = house.key()
    for status in (201, 202, 204, 206, 304):
        raw = f"HTTP/1.1 {status} Odd\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
        script = {"raw": raw, "close": True}
        await both_ways(house, script, key)
        house.fail_all(script)
        bad(await house.tell(ask(), key))


# ---- too much


async def test_pr_020_an_answer_of_200_mb_is_cut_at_the_cap(house: FaultHouse) -> None:
    house.most_bytes = 160 * MIB
    slow = {"first_byte_timeout_s": 60, "total_timeout_s": 60, "idle_timeout_s": 60}
    await house.start(router=slow)
    key = house.key()
    piece = 256 * 1024
    too_large(await alone(house, {"endless": piece, "times": 200 * MIB // piece, "length": 200 * MIB}, key))
    assert house.local.sent < 32 * MIB, "it was read though its length said enough"
    too_large(await alone(house, {"endless": piece, "times": 200 * MIB // piece}, key))
    assert house.local.sent < 150 * MIB


def too_large(found: Outcome) -> None:
    """What was asked for is to blame, and it is said what to do."""
    assert (found.status, found.code) == (422, "answer_too_large"), found
    assert found.headers["x-should-retry"] == "false" and "base64" in found.error["message"]


async def test_pr_020_more_vectors_than_are_read_cost_one_run_and_no_replica(house: FaultHouse) -> None:
    """As many texts as may be asked, with 2048 numbers each: another replica would say just as much."""
    await house.start(replicas=3)
    house.fail_all({"endless": 65_536, "times": 1, "length": 84 * MIB})
    key, texts = house.key(), {"model": "small", "input": ["x"] * 2048}
    for number in range(1, 5):
        found = await house.tell(texts, key, "/v1/embeddings")
        too_large(found)
        assert (house.asked(), await house.attempts(found)) == (number, ["too_large"])
    assert not any(house.endpoint(name)["resting"] for name in ("small", "small-2", "small-3"))


async def test_pr_020_many_vectors_hold_up_nobody(house: FaultHouse) -> None:
    """35 MB of numbers: of them only the usage is looked for, and the model's name is that of here."""
    house.most_bytes = 400 * MIB
    house.instances[:] = [instance("small", house.local.address, model="small", served="org/its-name")]
    house.served = True
    await house.start(router={"first_byte_timeout_s": 60, "total_timeout_s": 60, "idle_timeout_s": 60})
    row = json.dumps([0.0123456789 + n * 1e-7 for n in range(1536)])
    rows = ",".join(f'{{"object":"embedding","index":{n},"embedding":{row}}}' for n in range(1000))
    usage = '{"prompt_tokens":5,"total_tokens":5}'
    body = f'{{"object":"list","data":[{rows}],"model":"org/its-name","usage":{usage}}}'
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    house.fail_all({"raw": (head + body).encode()})
    key = house.key()
    house.watch.excuse()  # to make it was the test's own work
    found = await house.tell({"model": "small", "input": ["x"] * 1000}, key, "/v1/embeddings")
    assert found.status == 200
    assert found.body == body.replace("org/its-name", "small").encode()
    assert (await house.closed(found))["prompt_tokens"] == 5


async def test_what_is_no_json_is_not_asked_for(house: FaultHouse) -> None:
    """vLLM answers some fields in bytes: that is the caller's wish, and no failure of an engine."""
    await house.start(replicas=2)
    house.fail_all({"body": "\0" * 8, "headers": {"content-type": "application/octet-stream"}})
    key = house.key()
    for route, body in (
        ("embeddings", {"input": "a", "encoding_format": "bytes"}),
        ("embeddings", {"input": "a", "encoding_format": "bytes_only"}),
        ("embeddings", {"input": "a", "stream": True}),
        ("messages/count_tokens", {"messages": [{"role": "user", "content": "a"}], "stream": True}),
    ):
        assert (await house.tell({"model": "small", **body}, key, f"/v1/{route}")).status == 400, (route, body)
    assert house.asked() == 0


async def test_pr_021_headers_of_an_upstream_stay_there(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    theirs = {
        "set-cookie": "id=1", "server": "inner", "via": "1.1 proxy", "x-envoy-upstream-service-time": "5",
        "openai-organization": "org-1", "x-ratelimit-remaining-requests": "0", "x-request-id": "theirs",
        "date": "Sat, 21 Nov 2026 00:00:00 GMT", "access-control-allow-origin": "*", "x-headgate-place": "hosted",
        "retry-after": "9", "strict-transport-security": "max-age=1", "alt-svc": "h3",
    }  # fmt: skip
    for script in ({"body": completion()}, {"stream": ["a"]}):
        found = await alone(house, {**script, "headers": theirs}, key, stream="stream" in script)
        assert found.status == 200
        kept = set(found.headers) & set(theirs)
        assert kept <= {"x-request-id", "x-headgate-place"}
        assert found.headers["x-request-id"].startswith("req_")
        assert found.headers["x-headgate-place"] == "local"


# ---- what it says of itself

ODD_USAGE = {
    "missing": None, "null": "null", "negative": '{"prompt_tokens": -9, "completion_tokens": -3}',
    "strings": '{"prompt_tokens": "9", "completion_tokens": "3"}',
    "huge": '{"prompt_tokens": 1e308, "completion_tokens": 1e308}',
    "large": '{"prompt_tokens": 99999999999999999, "completion_tokens": 99999999999999999}',
    "nan": '{"prompt_tokens": NaN, "completion_tokens": Infinity}',
    "list": "[9, 3]", "empty": "{}", "bool": '{"prompt_tokens": true, "completion_tokens": true}',
}  # fmt: skip


@pytest.mark.parametrize("form", ODD_USAGE)
async def test_pr_022_usage_that_cannot_be_is_counted_here(house: FaultHouse, form: str) -> None:
    await house.start()
    key, said = house.key(), ODD_USAGE[form]
    found = json.loads(completion())
    del found["usage"]
    whole = json.dumps(found)[:-1] + (f', "usage": {said}}}' if said else "}")
    answer = await alone(house, {"body": whole}, key)
    if form == "nan":
        bad(answer)  # that is no JSON
    else:
        assert answer.status == 200
        sane(await house.closed(answer))
    usage = f'data: {{"id":"c1","object":"chat.completion.chunk","choices":[],"usage":{said}}}\n\n'.encode()
    deltas = events(["one", "two", "three"], usage=False)
    listed = [*deltas[:-1], *([usage] if said else []), deltas[-1]]
    answer = await alone(house, {"stream": listed, "bare": True}, key, stream=True)
    closed = await house.closed(answer)
    sane(closed)
    assert closed["output_tokens"] >= 3


def sane(closed: dict[str, Any]) -> None:
    """The counts are our own, marked as such, and cost something that can be."""
    assert closed["estimated"]
    assert 0 <= closed["prompt_tokens"] < 10_000 and 0 <= closed["output_tokens"] < 10_000
    assert 0 <= closed["cost_usd"] < 1


async def test_pr_022_usage_smaller_than_what_was_counted_is_not_believed(house: FaultHouse) -> None:
    await house.start()
    usage = {"id": "c1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    deltas = events([f"word{n} " for n in range(40)], usage=False)
    script = {"stream": [*deltas[:-1], usage, deltas[-1]], "bare": True}
    closed = await house.closed(await alone(house, script, house.key(), stream=True))
    assert closed["output_tokens"] >= 40 and closed["estimated"]


def chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}


def delta(text: str | None, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": {} if text is None else {"content": text}, **more}


ODD_CHOICES: dict[str, list[Any]] = {
    "no_finish": [chunk([delta("a")])],
    "unknown_finish": [chunk([delta("a", finish_reason="tired")])],
    "empty_choices": [chunk([]), chunk([delta("a")]), chunk([])],
    "out_of_order": [chunk([delta("b", 1)]), chunk([delta("a", 0)]), chunk([delta("c", 7)])],
    "interleaved": [chunk([delta(t, n)]) for t, n in (("a", 0), ("b", 1), ("c", 0), ("d", 1))],
    "two_in_one": [chunk([delta("a", 0), delta("b", 1)])],
    "odd_types": [chunk([delta("a")]), {"choices": "none"}, {"choices": [3, None]}, chunk([{"delta": None}]),
                  chunk([delta("x", index="1")]), 5, [1], None],
}  # fmt: skip


@pytest.mark.parametrize("how", ODD_CHOICES)
async def test_pr_023_odd_choices_are_relayed_as_they_are(house: FaultHouse, how: str) -> None:
    await house.start()
    key = house.key()
    sent = [f"data: {json.dumps(one)}\n\n".encode() for one in ODD_CHOICES[how]] + [b"data: [DONE]\n\n"]
    found = await alone(house, {"stream": sent, "bare": True}, key, stream=True)
    assert (found.status, found.code) == (200, "ok")
    relayed = found.body.replace(b"\r", b"").replace(b": keep-alive\n\n", b"")  # of a machine that was slow to begin
    assert relayed == b"".join(sent)
    for choices in ([], [{"index": 3}], [{"index": 0, "message": {"content": "a"}, "finish_reason": None}]):
        body = json.dumps({"id": "c", "object": "chat.completion", "model": "m", "choices": choices})
        found = await alone(house, {"body": body}, key)
        assert (found.status, found.json()["choices"]) == (200, choices)


async def test_pr_024_the_alias_is_in_the_header_whatever_the_body_names(house: FaultHouse) -> None:
    await house.start()
    body = completion().replace('"m"', '"some-other-model"')
    found = await alone(house, {"body": body}, house.key())
    assert found.headers["x-headgate-model"] == "small"
    closed = await house.closed(found)
    assert (closed["model"], closed["attempts"][0]["model"]) == ("small", "small")


async def test_pr_025_records_go_by_our_own_ids(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    for script in ({"body": completion()}, {"body": completion().replace('"c1"', '""')}, {"stream": ["a"]}):
        for _ in range(2):
            found = await alone(house, script, key, stream="stream" in script)
            assert found.id.startswith("req_")
            assert (await house.closed(found))["outcome"] == "answered"
    await house.recorded()
    assert len(house.rows()) == 6
