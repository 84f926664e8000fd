"""The HTTP edge, over real sockets: what callers meet."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from router.api.asking import UNSAID_OUTPUT, asked_tokens
from router.api.body import AT_ONCE, parse
from router.records import Route
from tests.conftest import House, ask, until
from tests.fakes.asking import ask as an_ask


async def test_an_answer_says_who_gave_it_and_why(house: House) -> None:
    await house.start()
    reply = await house.post(ask("small"), house.key())
    assert reply.status == 200
    assert reply.json()["choices"]
    assert reply.headers["x-headgate-model"] == "small"
    assert reply.headers["x-headgate-place"] == "local"
    assert reply.headers["x-headgate-lane"] == "named"
    assert "private data may go to small" in reply.headers["x-headgate-reason"]
    assert reply.headers["x-request-id"].startswith("req_")


async def test_a_stream_ends_with_done_and_hides_the_usage_nobody_asked_for(house: House) -> None:
    await house.start()
    reply = await house.post(ask(stream=True), house.key())
    events = [line for line in reply.body.decode().split("\n\n") if line]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "data: [DONE]"
    assert all(json.loads(event[6:])["choices"] for event in events[:-1])
    opened, *_, closed = await house.events(reply)
    assert (opened["kind"], closed["kind"], closed["outcome"]) == ("opened", "closed", "answered")
    assert closed["output_tokens"] is not None
    assert closed["estimated"] is False


async def test_usage_that_was_asked_for_is_passed_on(house: House) -> None:
    await house.start()
    reply = await house.post(ask(stream=True, stream_options={"include_usage": True}), house.key())
    assert b'"usage"' in reply.body


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (None, {}),
        ("hg_nonsense", {}),
        ("", {"Authorization": "Basic abc"}),
        ("", {"Authorization": "Bearer "}),
        ("", {"Authorization": "Bearer " + "x" * 5000}),
    ],
)
async def test_a_wrong_key_is_401_and_nothing_is_sent(house: House, key: str | None, headers: dict[str, str]) -> None:
    await house.start()
    reply = await house.post(ask(), key, headers=headers)
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert house.local.requests == []


async def test_two_different_keys_are_refused(house: House) -> None:
    await house.start()
    key = house.key()
    reply = await house.post(ask(), key, headers={"x-api-key": house.key()})
    assert reply.status == 401
    assert (await house.post(ask(), key, headers={"x-api-key": key})).status == 200


async def test_x_api_key_works_too(house: House) -> None:
    await house.start()
    assert (await house.post(ask(), headers={"x-api-key": house.key()})).status == 200


async def test_a_revoked_key_stops_working(house: House) -> None:
    await house.start()
    key = house.key()
    assert (await house.post(ask(), key)).status == 200
    import contextlib

    from router.ledger.keys import KeyBook

    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        book.revoke(key.split("_")[1])
    assert house.built is not None
    keyring = house.built.keyring
    await until(lambda: keyring.find(key, 0) is None, within_s=5)
    assert (await house.post(ask(), key)).status == 401


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b'{"model": "small", "model": "big", "messages": []}', 400, "duplicate_field"),
        (b'{"model": "small", "messages": [], "temperature": NaN}', 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b'{"messages": []}', 400, "missing_field"),
        (b'{"model": "small", "stream": "yes", "messages": []}', 400, "invalid_request"),
        (b'{"model": "nobody", "messages": []}', 404, "model_not_found"),
        (b'{"model": "small", "messages": [], "api_base": "http://x"}', 400, "unsupported_parameter"),
        (b'{"model": "small", "messages": [], "headgate": {"data_class": "open"}}', 400, "invalid_request"),
        (b'{"model": "small", "messages": "' + b"x" * 40_000 + b'"}', 400, "context_length_exceeded"),
    ],
)
async def test_bad_input_is_one_clear_answer(house: House, body: bytes, status: int, code: str) -> None:
    await house.start()
    reply = await house.post(body, house.key())
    assert (reply.status, reply.error["code"]) == (status, code), reply.body
    assert house.local.requests == []


async def test_what_asks_for_too_much_is_refused_before_it_is_read(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read what has ten thousand tools takes far longer than to count them."""
    read: list[Any] = []
    monkeypatch.setattr("router.scanner.reading.read", read.append)
    await house.start()
    reply = await house.post(ask("small", tools=[{"type": "function"}] * 129), house.key())
    assert (reply.status, reply.error["code"]) == (400, "tools_too_large")
    assert read == []


async def test_only_a_large_body_is_parsed_beside_the_loop(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small one would only wait for a thread; a large one would hold everybody else up."""
    where: list[str] = []

    def noted(raw: bytes) -> Any:
        where.append(threading.current_thread().name)
        return parse(raw)

    monkeypatch.setattr("router.api.inference.parse", noted)
    await house.start()
    for padding in (0, AT_ONCE):
        reply = await house.post(ask("nobody", user="x" * padding), house.key())
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert where[0] == threading.main_thread().name
    assert where[1].startswith("bodies")
    assert (await house.post(b'{"a":1,"a":"' + b"x" * AT_ONCE + b'"}', house.key())).error["code"] == "duplicate_field"


async def test_a_minutes_tokens_count_answers_whose_length_nobody_said(house: House) -> None:
    """Three at once, of which each takes what an answer is likely to have; then it is settled by what it had."""
    await house.start()
    house.local.script = {"gate": True}
    key = house.key(tokens_per_minute=UNSAID_OUTPUT * 2 + 500)
    asked = [asyncio.create_task(house.post(ask("small"), key)) for _ in range(3)]
    await until(lambda: any(one.done() for one in asked))
    (refused,) = [one.result() for one in asked if one.done()]
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    house.local.gate.set()
    replies = await asyncio.gather(*asked)
    assert sorted(one.status for one in replies) == [200, 200, 429]
    last = await house.post(ask("small", max_tokens=8), key)
    assert int(last.headers["x-ratelimit-remaining-tokens"]) > UNSAID_OUTPUT * 2


@pytest.mark.parametrize(
    ("route", "body", "output"),
    [
        ("chat/completions", {}, UNSAID_OUTPUT),
        ("chat/completions", {"max_tokens": None}, UNSAID_OUTPUT),
        ("chat/completions", {"max_tokens": 5}, 5),
        ("chat/completions", {"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ("chat/completions", {"n": 3}, 3 * UNSAID_OUTPUT),
        ("chat/completions", {"n": "x", "max_tokens": "y"}, UNSAID_OUTPUT),
        ("completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 5}, 20),
        ("completions", {"prompt": [1, 2, 3], "max_tokens": 5}, 5),
        ("completions", {"prompt": []}, UNSAID_OUTPUT),
        ("responses", {"max_output_tokens": 9}, 9),
        ("messages", {}, UNSAID_OUTPUT),
        ("embeddings", {"input": "a"}, 0),
        ("messages/count_tokens", {}, 0),
    ],
)
def test_how_many_tokens_a_request_takes_of_a_minute(route: Route, body: dict[str, Any], output: int) -> None:
    assert asked_tokens(an_ask("m", route, size=400, **body)) == 100 + output


async def test_an_unknown_model_is_told_the_names(house: House) -> None:
    await house.start()
    reply = await house.post(ask("nobody"), house.key())
    assert "small" in reply.error["message"]
    assert "frontier" in reply.error["message"]


async def test_a_body_over_the_limit_is_413_before_it_is_read(house: House) -> None:
    await house.start(router={"max_body_mb": 0.001})
    reply = await house.post(ask(padding="x" * 3000), house.key())
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


async def test_get_is_405(house: House) -> None:
    await house.start()
    reply = await house.get("/v1/chat/completions", house.key())
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(house: House, stream: bool) -> None:
    await house.start()
    # A stream has begun and stalls; a plain answer has not begun.
    house.local.script = {"chunks": ["data: "] * 500, "pause_s": 0.05, "headers": {"content-type": "text/event-stream"}}
    if not stream:
        house.local.script = {"never": True}
    key = house.key()
    work = asyncio.create_task(house.post(ask(stream=stream), key))
    await house.local.until(lambda: house.local.requests)
    work.cancel()
    await house.local.until(lambda: not house.local.open)
    assert house.built is not None
    fleet = house.built.fleet
    await until(lambda: fleet.state()["in_flight"] == 0)
    await house.built.store.durable()


async def test_a_cut_stream_ends_with_an_error_event_and_not_as_a_success(house: House) -> None:
    await house.start()
    house.local.script = {"stream": ["one", "two", "three"], "cut": 700}
    reply = await house.post(ask(stream=True), house.key())
    assert reply.status == 200
    assert reply.broken  # and the body is not ended as if it were whole
    last = reply.body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_interrupted"
    assert b"[DONE]" not in reply.body
    *_, closed = await house.events(reply)
    assert closed["outcome"] == "cut"


async def test_fields_that_do_not_change_the_answer_are_dropped_and_named(house: House) -> None:
    await house.start()
    reply = await house.post(ask("small", metadata={"a": "b"}, store=False), house.key())
    assert reply.status == 200
    assert "metadata" in reply.headers["x-headgate-dropped"]
    assert "metadata" not in house.local.requests[-1].json()


async def test_the_held_output_limit_is_sent(house: House) -> None:
    await house.start()
    await house.post(ask("small"), house.key())
    assert house.local.requests[-1].json()["max_tokens"] == 64


async def test_models_health_ready_and_openapi(house: House) -> None:
    await house.start()
    key = house.key(lanes=frozenset({"private"}))
    listed = [m["id"] for m in (await house.get("/v1/models", key)).json()["data"]]
    assert listed == ["small", "auto", "private"]
    assert (await house.get("/v1/models")).status == 401
    assert (await house.get("/health")).json() == {"status": "ok"}
    assert (await house.get("/ready")).json() == {"ready": True, "why": ""}
    paths = (await house.get("/openapi.json")).json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= set(paths)
    missing = await house.get("/nothing")
    assert (missing.status, missing.error["code"]) == (404, "not_found")


async def test_embeddings_never_change_model(house: House) -> None:
    await house.start()
    reply = await house.post({"model": "auto", "input": "hi"}, house.key(), "/v1/embeddings")
    assert (reply.status, reply.error["code"]) == (400, "model_required")


async def test_no_local_instance_ready_is_503_with_retry_after(house: House) -> None:
    house.instances[0]["state"] = "starting"
    await house.start()
    reply = await house.post(ask(), house.key())
    assert (reply.status, reply.error["code"]) == (503, "no_local_capacity")
    assert int(reply.headers["retry-after"]) > 0


async def test_an_engine_that_is_gone_is_503_and_a_full_one_too(house: House) -> None:
    await house.start()
    house.local.script = {"status": 503, "body": "{}"}
    reply = await house.post(ask(), house.key())
    assert reply.status == 503
    assert "retry-after" in reply.headers


async def test_an_engines_own_error_is_passed_on_in_one_sentence(house: House) -> None:
    await house.start()
    house.local.script = {
        "status": 400,
        "body": json.dumps({"error": {"message": "This model's maximum context length is 10", "code": 400}}),
    }
    reply = await house.post(ask(), house.key())
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


WRONG = {"error": {
    "message": "1 validation error:\n  {'type': 'float_parsing', 'loc': 'body.temperature', 'msg': 'Input should be a "
               "valid number', 'input': 'warm'}",
    "type": "Bad Request", "param": "body.temperature", "code": 400,
}}  # fmt: skip


@pytest.mark.parametrize("route", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_finds_wrong_with_a_request_is_the_callers_to_mend(
    house: House, route: str, stream: bool
) -> None:
    """vLLM's words are made readable, in the dialect of the route; neither router nor model has failed."""
    await house.start()
    house.local.script = {"status": 400, "body": json.dumps(WRONG)}
    text = {"input": "Hi"} if route == "responses" else {"messages": [{"role": "user", "content": "Hi"}]}
    body = {"model": "small", "temperature": "warm", "stream": stream, **text}
    reply = await house.post(body, house.key(), f"/v1/{route}")
    told = "temperature: Input should be a valid number."
    assert reply.status == 400
    assert reply.headers["x-should-retry"] == "false"
    if route == "messages":
        assert reply.json() == {"type": "error", "error": {"type": "invalid_request_error", "message": told}}
    else:
        assert reply.error == {
            "message": told, "type": "invalid_request_error", "param": "temperature", "code": "invalid_request",
        }  # fmt: skip
    *_, closed = await house.events(reply)
    assert (closed["outcome"], closed["status"], closed["error"]) == ("bad_request", 400, "invalid_request")
    assert [attempt["outcome"] for attempt in closed["attempts"]] == ["bad_request"]
    assert len(house.local.requests) == 1, "nobody else is asked, for it would say the same"


async def test_what_an_engine_finds_wrong_once_its_stream_has_begun_is_the_callers_too(house: House) -> None:
    """vLLM says so with status 200 and an event. One caller's mistakes must not make an endpoint rest."""
    await house.start()
    said = "Requested sample logprobs of 500, which is greater than max allowed: 20"
    error = {"message": f"{said} (parameter=logprobs, value=500)", "type": "BadRequestError", "param": "logprobs"}
    house.local.script = {"stream": [{"error": {**error, "code": 400}}], "bare": True}
    key = house.key()
    for _ in range(4):
        reply = await house.post(ask("small", stream=True), key)
        assert reply.status == 400
        assert reply.error == {
            "message": said, "type": "invalid_request_error", "param": "logprobs", "code": "invalid_request",
        }  # fmt: skip
        *_, closed = await house.events(reply)
        assert (closed["outcome"], closed["status"]) == ("bad_request", 400)
        assert [attempt["outcome"] for attempt in closed["attempts"]] == ["bad_request"]
    assert house.built is not None
    assert not house.built.fleet.state()["endpoints"][0]["resting"]


async def test_a_prompt_is_counted_by_a_local_model_and_costs_nothing(house: House) -> None:
    """Claude Code asks so before it sends."""
    await house.start()
    body = {
        "model": "small", "messages": [{"role": "user", "content": "Hello"}], "system": "Be short.", "max_tokens": 9,
        "tools": [{"name": "ls", "input_schema": {"type": "object"}}], "metadata": {"user_id": "u"},
    }  # fmt: skip
    key = house.key(budget_usd=1.0)
    reply = await house.post(body, key, "/v1/messages/count_tokens?beta=true")
    assert reply.status == 200
    assert reply.json()["input_tokens"] == 9
    assert reply.headers["x-headgate-dropped"] == "max_tokens,metadata"
    assert reply.headers["x-headgate-model"] == "small"
    sent = house.local.requests[-1]
    assert sent.path == "/v1/messages/count_tokens"
    assert set(sent.json()) == {"model", "messages", "system", "tools"}
    opened, *_, closed = await house.events(reply)
    assert opened["route"] == "messages/count_tokens"
    assert 0 < opened["hold_usd"] <= len(json.dumps(body)) * 1e-6, "no more than the prompt is held for"
    assert (closed["outcome"], closed["cost_usd"], closed["estimated"]) == ("answered", 0, False)
    assert (closed["prompt_tokens"], closed["output_tokens"]) == (0, 0), "no model has read it"


async def test_a_count_is_one_whole_answer_by_a_local_model_alone(house: House) -> None:
    await house.start(hosted=True)
    said = {"messages": [{"role": "user", "content": "Hello"}]}
    path = "/v1/messages/count_tokens"
    streamed = await house.post({"model": "small", "stream": True, **said}, house.key(), path)
    assert (streamed.status, "stream" in streamed.json()["error"]["message"]) == (400, True)
    far = await house.post({"model": "big", **said}, house.key("public"), path)
    assert (far.status, far.json()["error"]["type"]) == (404, "not_found_error")
    assert not house.provider.requests


async def test_a_server_without_the_route_is_told_as_such(house: House) -> None:
    await house.start()
    house.local.script = {"status": 404, "body": '{"detail":"Not Found"}'}
    said = {"messages": [{"role": "user", "content": "Hello"}]}
    reply = await house.post({"model": "small", **said}, house.key(), "/v1/messages/count_tokens")
    assert (reply.status, reply.json()["error"]["type"]) == (404, "not_found_error")
    assert "no such route" in reply.json()["error"]["message"]


async def test_a_name_from_an_upstream_cannot_end_a_header(house: House) -> None:
    house.instances[0] |= {"name": "small", "served": "x\r\nx-evil: 1"}
    await house.start()
    reply = await house.post(ask("small"), house.key())
    assert reply.status == 200
    assert "x-evil" not in reply.headers
    assert house.local.requests[-1].json()["model"] == "x\r\nx-evil: 1"  # the server's own name for it


async def test_a_local_server_with_a_hosted_models_name_is_not_used(house: House) -> None:
    house.instances.append({**house.instances[0], "name": "big", "model": "big"})
    await house.start(models={"big": {"place": "hosted", "lanes": ["frontier"], "context": 10, "output": 5,
                                      "provider": "openai", "provider_model": "x"}})  # fmt: skip
    reply = await house.post(ask("big"), house.key("public"))
    assert reply.status == 503
    assert "another one" in reply.error["message"]


async def test_what_is_refused_before_a_decision_is_written_down_too(house: House) -> None:
    await house.start()
    for body, code in ((ask("nobody"), "model_not_found"), (b"{", "invalid_json")):
        reply = await house.post(body, house.key())
        (event,) = await house.events(reply)
        assert (event["kind"], event["outcome"], event["error"]) == ("refused", "refused", code)


async def test_what_breaks_before_a_decision_is_written_down_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.start()
    monkeypatch.setattr("router.pipeline.decide", lambda *_: 1 // 0)
    reply = await house.post(ask("small"), house.key())
    (event,) = await house.events(reply)
    assert (event["kind"], event["status"], event["error"]) == (
        "refused",
        500,
        "internal_error",
    ) and reply.status == 500


async def test_a_second_router_of_the_same_home_does_not_start(house: House) -> None:
    await house.start()
    from router import app
    from router.ledger.store import LedgerError
    from serving import catalogue

    with pytest.raises(LedgerError, match="runs already"):
        app.build(house.home, catalogue.load(house.home.root / "headgate.yaml"))
