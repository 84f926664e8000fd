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
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from router.upstream.address import Kind
from router.upstream.connection import Address, Bounds, Connections, Deadlines, UpstreamError
from router.upstream.failures import MAX_RETRY_AFTER_S, RETRY_AFTER_S, Failure, most_telling, refusal, unreachable
from tests.fakes.asking import candidate, hosted, local
from tests.fakes.upstream import Upstream

NEAR, FAR = candidate(local()), candidate(hosted())


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
        (429, LimitReached, "rate_limit_exceeded", RETRY_AFTER_S, False, False),
        (500, UpstreamFailed, WRONG, None, False, True),
        (502, UpstreamFailed, WRONG, None, False, True),
        (503, Unavailable, FULL, RETRY_AFTER_S, False, False),
        (504, UpstreamTimeout, "upstream_timeout", None, False, True),
        (529, Unavailable, FULL, RETRY_AFTER_S, False, False),
    ],
)
async def test_a_status(
    upstream: Upstream, status: int, error: type[HeadgateError], code: str, retry_after: int | None, final: bool,
    sent: bool,
) -> None:  # fmt: skip
    for place in ("local", "hosted"):
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


TIMEOUT = (UpstreamTimeout, "upstream_timeout", None, True)
GONE = (Unavailable, FULL, RETRY_AFTER_S)
CLOSED = (Unavailable, "door_closed", RETRY_AFTER_S, False)
BROKEN = (UpstreamFailed, WRONG, None, True)
CONNECTIONS: dict[str, tuple[Any, Any]] = {
    "refused": ((*GONE, False), CLOSED),
    "connect_timeout": ((*GONE, False), CLOSED),
    "first_byte_timeout": (TIMEOUT, TIMEOUT),
    "idle_timeout": (TIMEOUT, TIMEOUT),
    "reset": ((*GONE, True), BROKEN),
    "closed": ((*GONE, True), BROKEN),
    "bad_response": (BROKEN, BROKEN),
    "too_large": (BROKEN, BROKEN),
}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_connection_that_gave_nothing(kind: Any) -> None:
    for place, expected in zip((NEAR, FAR), CONNECTIONS[kind], strict=True):
        found = unreachable(place, UpstreamError(kind, "it broke"))
        error = found.error
        assert (type(error), error.code, error.retry_after, found.sent) == expected
        assert not found.final


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("7", 7), ("100000", MAX_RETRY_AFTER_S), ("9" * 400, MAX_RETRY_AFTER_S), ("0", RETRY_AFTER_S),
     ("-3", RETRY_AFTER_S), ("soon", RETRY_AFTER_S), ("Wed, 21 Oct 2026 07:28:00 GMT", RETRY_AFTER_S)],
)  # fmt: skip
async def test_when_to_come_back_is_a_bounded_number(upstream: Upstream, given: str, seconds: int) -> None:
    for status in (429, 503):
        found = await failed(upstream, {"status": status, "headers": {"retry-after": given}})
        assert found.error.retry_after == seconds


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (said("Too warm", "bad_temperature"), "Too warm", "bad_temperature"),
        (said("Too warm", 400), "Too warm", BAD),
        ('{"message": "old style", "code": "x"}', "old style", "x"),
        (said("This model's maximum context length is 10"), "maximum context", "context_length_exceeded"),
        (said("x" * 5000), "x" * 500, BAD),
        ("<html>", "near refused the request.", BAD),
        ("[]", "near refused the request.", BAD),
        ('{"error": "plain"}', "near refused the request.", BAD),
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
