"""What a caller is told of an upstream's failure: the class of error, its code, when to come back, and who goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, get_args

import pytest

from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    LimitReached,
    TooFast,
    Unavailable,
    Unprocessable,
    UpstreamFailed,
    UpstreamTimeout,
)
from router.upstream.address import Kind
from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from router.upstream.failures import (
    MAX_RETRY_AFTER_S,
    RETRY_AFTER_S,
    Failure,
    asked_pause,
    most_telling,
    refusal,
    unreachable,
)
from tests.fakes.asking import candidate, hosted, local
from tests.fakes.faults import Upstream

NEAR, FAR = candidate(local()), candidate(hosted())
MOST, AFTER = MAX_RETRY_AFTER_S, RETRY_AFTER_S


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as made:
        yield made


async def failed(upstream: Upstream, script: dict[str, Any], *, place: str = "local") -> Failure:
    """What an answer as in `script` comes to."""
    upstream.script = {"body": "{}", **script}
    connections = Connections(Deadlines(), Bounds())
    response = await connections.post(Address.parse(upstream.address), "/", [], b"{}")
    try:
        return await refusal(NEAR if place == "local" else FAR, response)
    finally:
        response.close()
        await connections.close()


def said(message: str, code: Any = None) -> str:
    return json.dumps({"error": {"message": message, "code": code}})


BAD = "invalid_request"
FULL = "no_local_capacity"
WRONG = "upstream_bad_response"


@pytest.mark.parametrize(
    ("status", "error", "code", "retry_after", "final", "sent"),
    [
        (204, UpstreamFailed, WRONG, None, False, False),
        (302, UpstreamFailed, WRONG, None, False, False),
        (400, BadRequest, BAD, None, True, False),
        (401, UpstreamFailed, WRONG, None, False, False),
        (403, UpstreamFailed, WRONG, None, False, False),
        (404, BadRequest, BAD, None, True, False),
        (413, BadRequest, BAD, None, True, False),
        (422, BadRequest, BAD, None, True, False),
        (429, TooFast, "rate_limit_exceeded", RETRY_AFTER_S, False, False),
        (500, UpstreamFailed, WRONG, None, False, True),
        (502, UpstreamFailed, WRONG, None, False, True),
        (503, Unavailable, FULL, RETRY_AFTER_S, False, False),
        (504, UpstreamTimeout, "upstream_timeout", None, False, True),
        (529, Unavailable, "upstream_overloaded", RETRY_AFTER_S, False, False),
    ],
)
async def test_a_status(
    upstream: Upstream, status: int, error: type[HeadgateError], code: str, retry_after: int | None, final: bool,
    sent: bool,
) -> None:  # fmt: skip
    for place in ("local", "hosted"):
        if (status, place) == (503, "hosted"):  # only an engine's own limit is this site's capacity
            code = "upstream_overloaded"
        found = await failed(upstream, {"status": status, "body": "" if status == 204 else "{}"}, place=place)
        assert (type(found.error), found.error.code) == (error, code)
        assert (found.error.retry_after, found.final, found.sent) == (retry_after, final, sent)
        assert found.status == status


@pytest.mark.parametrize(
    ("status", "mark", "code", "error", "told", "retry_after", "sent"),
    [
        # A new permit mends it.
        (403, "refused", "permit_invalid", Unavailable, "door_closed", 1, False),
        (403, "refused", "permits_exhausted", Unavailable, "door_closed", 1, False),
        # Lasting.
        (403, "refused", "data_class_not_cleared", Forbidden, "data_class_not_cleared", None, False),
        (403, "refused", "policy_mismatch", Forbidden, "policy_mismatch", None, False),
        (403, "refused", "key_revoked", Forbidden, "key_revoked", None, False),
        (403, "refused", "permit_used", Forbidden, "permit_used", None, True),
        (403, "refused", None, Forbidden, "door_refused", None, False),
        # Passing.
        (503, "refused", "provider_key_missing", Unavailable, "provider_key_missing", 30, False),
        (503, "refused", None, Unavailable, "door_closed", 30, False),
        (503, "closed", "ledger_lost", Unavailable, "door_closed", 30, False),
        (502, "failed", "provider_unreachable", UpstreamFailed, "provider_unreachable", None, False),
        (504, "failed", "provider_unreachable", UpstreamTimeout, "provider_unreachable", None, False),
        (502, "failed", None, UpstreamFailed, WRONG, None, False),
        # The provider's own words.
        (502, "sent", "provider_refused_key", UpstreamFailed, "provider_refused_key", None, False),
        (502, "sent", "provider_redirected", UpstreamFailed, "provider_redirected", None, False),
        (502, "sent", "provider_failed", UpstreamFailed, "provider_failed", None, True),
    ],
)
async def test_what_the_door_says(
    upstream: Upstream, status: int, mark: str, code: str | None, error: type[HeadgateError], told: str,
    retry_after: int | None, sent: bool,
) -> None:  # fmt: skip
    script = {"status": status, "headers": {"x-headgate-door": mark}, "body": said("It went wrong", code)}
    found = await failed(upstream, script, place="hosted")
    assert (type(found.error), found.error.code) == (error, told)
    assert (found.error.retry_after, found.sent, found.final) == (retry_after, sent, False)
    assert "It went wrong" in found.error.message
    if mark != "sent":  # the door's own words are written down
        assert found.detail == (f"{code}: It went wrong" if code else "It went wrong")


async def test_only_what_comes_from_the_door_speaks_for_the_door(upstream: Upstream) -> None:
    """An engine's words quote what it refuses, whatever headers it sends."""
    script = {"status": 403, "headers": {"x-headgate-door": "refused"}, "body": said("no to 'Anna'", "odd")}
    found = await failed(upstream, script)
    assert found.outcome == "error" and "Anna" not in found.detail


TIMEOUT = (UpstreamTimeout, "upstream_timeout", None, True)
GONE = (Unavailable, FULL, RETRY_AFTER_S)
CLOSED = (Unavailable, "door_closed", RETRY_AFTER_S, False)
BROKEN = (UpstreamFailed, WRONG, None, True)
TOO_MUCH = (Unprocessable, "answer_too_large", None, True)
CONNECTIONS: dict[str, tuple[Any, Any]] = {
    "refused": ((*GONE, False), CLOSED),
    "outside": ((*GONE, False), CLOSED),
    "pool_full": ((Unavailable, "overloaded", 1, False), (Unavailable, "overloaded", 1, False)),
    "connect_timeout": ((*GONE, False), CLOSED),
    "first_byte_timeout": (TIMEOUT, TIMEOUT),
    "first_token_timeout": (TIMEOUT, TIMEOUT),
    "idle_timeout": (TIMEOUT, TIMEOUT),
    "reset": ((*GONE, True), BROKEN),
    "closed": ((*GONE, True), BROKEN),
    "bad_response": (BROKEN, BROKEN),
    "too_large": (TOO_MUCH, TOO_MUCH),
    "unread": (BROKEN, BROKEN),
}
BLAMELESS = {"pool_full", "too_large", "unread"}
"""What is no failure of the endpoint: it does not come to rest by that."""


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_connection_that_gave_nothing(kind: Any) -> None:
    for place, expected in zip((NEAR, FAR), CONNECTIONS[kind], strict=True):
        found = unreachable(place, UpstreamError(kind, "it broke"))
        error = found.error
        assert (type(error), error.code, error.retry_after, found.sent) == expected
        assert found.final is (kind == "too_large"), "what one answer is too large for, that of a replica is as well"
        assert found.blamed is not (kind in BLAMELESS or found.outcome == "door_closed")


async def test_an_answer_too_large_for_the_door_is_so_for_its_caller(upstream: Upstream) -> None:
    script = {"status": 502, "headers": {"x-headgate-door": "sent"}, "body": said("x", "provider_answer_too_large")}
    found = await failed(upstream, script, place="hosted")
    assert (found.error.code, found.final, found.blamed) == ("answer_too_large", True, False)
    assert found.sent, "it is billed"
    assert (await failed(upstream, script)).outcome == "error", "an engine does not speak for the door"


@pytest.mark.parametrize(
    ("given", "pause", "told"),
    [("7", 7, 7), (" 7 ", 7, 7), ("100000", MOST, MOST), ("9" * 400, MOST, MOST), ("0", 0, 1),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 1), ("Wed, 21 Oct 2099 07:28:00 GMT", MOST, MOST),
     ("-3", None, AFTER), ("soon", None, AFTER), ("", None, AFTER), ("1e3", None, AFTER), ("٣", None, AFTER),
     ("Wed, 99 Oct 2015 07:28:00 GMT", None, AFTER), (None, None, AFTER)],
)  # fmt: skip
async def test_when_to_come_back_is_a_bounded_number(
    upstream: Upstream, given: str | None, pause: float | None, told: float
) -> None:
    assert asked_pause(given, 1_800_000_000) == pause
    if given is not None and not given.isascii():
        return
    for status, rest in ((429, AFTER if pause is None else pause), (503, pause)):
        headers = {} if given is None else {"retry-after": given}
        found = await failed(upstream, {"status": status, "headers": headers})
        assert (found.error.retry_after, found.pause_s) == (told, rest)


async def test_two_times_to_come_back_are_none(upstream: Upstream) -> None:
    raw = "HTTP/1.1 429 x\r\nretry-after: 7\r\nretry-after: 70\r\ncontent-length: 2\r\n\r\n{}"
    assert (await failed(upstream, {"raw": raw})).error.retry_after == AFTER


@pytest.mark.parametrize(
    ("status", "blamed"),
    [(204, True), (302, True), (400, False), (404, False), (429, False), (500, True), (502, True), (503, False),
     (504, True), (520, True), (529, True)],
)  # fmt: skip
async def test_what_counts_as_a_failure_of_the_endpoint(upstream: Upstream, status: int, blamed: bool) -> None:
    body = "" if status == 204 else "{}"
    assert (await failed(upstream, {"status": status, "body": body})).blamed is blamed


async def test_the_field_that_is_meant_is_named_and_a_long_prompt_has_none(upstream: Upstream) -> None:
    body = json.dumps({"error": {"message": "Too warm. (parameter=temperature, value=9.0)", "param": "temperature"}})
    error = (await failed(upstream, {"status": 400, "body": body})).error
    assert (error.message, error.param, error.code) == ("Too warm.", "temperature", BAD)
    long = "This model's maximum context length is 10 tokens. (parameter=input_tokens, value=11)"
    body = json.dumps({"error": {"message": long, "param": "input_tokens", "code": 400}})
    found = await failed(upstream, {"status": 400, "body": body})
    assert (found.error.param, found.error.code, found.final) == (None, "context_length_exceeded", False)
    assert found.error.message == "This model's maximum context length is 10 tokens."


async def test_a_server_without_the_route_is_not_the_callers_mistake_and_another_may_have_it(
    upstream: Upstream,
) -> None:
    found = await failed(upstream, {"status": 404, "body": '{"detail":"Not Found"}'})
    assert (found.error.status, found.error.code, found.final) == (404, "route_not_offered", False)
    assert found.outcome == "no_route"


@pytest.mark.parametrize("error", [{"param": "model", "code": 404}, {"param": None, "code": "model_not_found"}])
async def test_a_server_that_lost_the_model_has_failed_and_not_the_caller(
    upstream: Upstream, error: dict[str, Any]
) -> None:
    body = json.dumps({"error": {"message": "The model `other` does not exist.", **error}})
    for place in ("local", "hosted"):
        found = await failed(upstream, {"status": 404, "body": body}, place=place)
        assert (found.error.status, found.final, found.blamed) == (502, False, True)
        assert found.outcome == "no_model"
        assert "other" not in found.error.message


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (said("Too warm", "bad_temperature"), "Too warm", "bad_temperature"),
        (said("Too warm", 400), "Too warm", BAD),
        ('{"message": "old style", "code": "x"}', "old style", "x"),
        (said("This model's maximum context length is 10"), "maximum context", "context_length_exceeded"),
        (said("x" * 5000), "x" * 499 + "…", BAD),
        ("<html>", "near refused the request.", BAD),
        ("[]", "near refused the request.", BAD),
        ('{"error": "plain"}', "plain", BAD),
        ("", "near refused the request.", BAD),
    ],
)
async def test_an_engines_words_about_a_bad_request(upstream: Upstream, body: str, message: str, code: str) -> None:
    error = (await failed(upstream, {"status": 400, "body": body})).error
    assert message in error.message
    assert len(error.message) <= 500
    assert error.code == code


async def test_an_error_answer_that_breaks_off_is_still_told_by_its_status(upstream: Upstream) -> None:
    found = await failed(upstream, {"status": 429, "body": "{}", "length": 50, "close": True})
    assert (found.error.status, found.outcome) == (429, "rate_limited")


async def test_an_engines_inner_error_is_not_shown_and_a_providers_is(upstream: Upstream) -> None:
    script = {"status": 500, "body": said("CUDA error at line 7")}
    assert "CUDA" not in (await failed(upstream, script)).error.message
    assert "CUDA" in (await failed(upstream, script, place="hosted")).error.message


def test_of_several_errors_the_one_that_waiting_can_help_is_told_else_that_of_the_first_choice() -> None:
    wrong, lasting = UpstreamFailed("near broke"), Forbidden("the door refused it")
    passing, later = Unavailable("near restarts", retry_after=5), LimitReached("far is busy", retry_after=9)
    assert most_telling([wrong, lasting]) is wrong
    assert most_telling([lasting, wrong]) is lasting
    assert most_telling([wrong, passing, later]) is passing
    assert most_telling([passing]) is passing
