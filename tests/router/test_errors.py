"""Errors as callers' clients read them: in the words of their dialect, and whether to try again by themselves."""

from __future__ import annotations

import json

import pytest

from router import errors
from router.errors import HeadgateError, LimitReached, TooFast, Unavailable, dollars


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.BadRequest("no"), "invalid_request_error"),
        (errors.WrongMethod("no"), "invalid_request_error"),
        (errors.InvalidKey("no"), "authentication_error"),
        (errors.Forbidden("no"), "permission_error"),
        (errors.NotFound("no"), "not_found_error"),
        (errors.TooLarge("no"), "request_too_large"),
        (LimitReached("no"), "rate_limit_error"),
        (TooFast("no", retry_after=1), "rate_limit_error"),
        (errors.Overloaded("no", retry_after=1), "overloaded_error"),
        (errors.UpstreamFailed("no"), "api_error"),
        (errors.UpstreamTimeout("no"), "timeout_error"),
        (HeadgateError("no"), "api_error"),
    ],
)
def test_on_messages_an_error_has_a_type_that_anthropics_clients_know(error: HeadgateError, kind: str) -> None:
    whole = {"type": "error", "error": {"type": kind, "message": "no"}}
    assert json.loads(error.envelope("messages")) == whole
    assert error.event("messages") == b"event: error\ndata: " + error.envelope("messages") + b"\n\n"


def test_on_responses_an_error_event_has_its_place_in_the_stream() -> None:
    """As OpenAI's own stream has it: every event is numbered, and clients that check the form want the number."""
    error = errors.BadRequest("no", param="input")
    line = error.event("responses", 7).decode().splitlines()
    assert line[0] == "event: error"
    assert json.loads(line[1].removeprefix("data: ")) == {
        "type": "error", "sequence_number": 7, "code": "invalid_request", "message": "no", "param": "input",
    }  # fmt: skip


def test_below_messages_all_errors_are_anthropics() -> None:
    assert errors.NotFound("no").envelope("messages/count_tokens") == errors.NotFound("no").envelope("messages")


def test_who_asks_too_fast_is_not_told_that_money_is_missing() -> None:
    """Clients take `insufficient_quota` for final."""
    assert json.loads(TooFast("slower", retry_after=1).envelope())["error"] == {
        "message": "slower", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded",
    }  # fmt: skip
    assert json.loads(LimitReached("no money").envelope())["error"]["type"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("retry_after", "told"),
    [
        (None, {"x-should-retry": "false"}),
        (0.0301, {"retry-after": "1", "retry-after-ms": "31"}),
        (60, {"retry-after": "60", "retry-after-ms": "60000"}),
        (60.01, {"retry-after": "61", "x-should-retry": "false"}),
        (300, {"retry-after": "300", "x-should-retry": "false"}),
    ],
)
def test_short_waits_are_told_and_long_ones_and_none_are_not_to_be_tried(
    retry_after: float | None, told: dict[str, str]
) -> None:
    headers = Unavailable("no", retry_after=retry_after).headers()
    assert {name.decode(): value.decode() for name, value in headers} == told


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0.0, "$0"), (-1e-9, "$0"), (1e-6, "$0.0000010"), (0.00012, "$0.00012"), (0.0018, "$0.0018"), (20.0, "$20.0000")],
)
def test_a_sum_is_never_said_to_be_nothing_where_it_is_something(amount: float, said: str) -> None:
    assert dollars(amount) == said
