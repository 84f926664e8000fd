"""From headers and body to the ask: which class was asked for, and for which reason."""

from __future__ import annotations

from typing import Any

import pytest

from router.api.asking import make_ask
from router.errors import BadRequest
from router.records import Ask
from serving.catalogue import DataClass


def made(headers: dict[str, str] | None = None, **body: Any) -> Ask:
    given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return make_ask("req_1", "chat/completions", {"model": "auto", "messages": [], **body}, 10, given)


def test_nobody_says_anything() -> None:
    asked = made()
    assert (asked.data_class, asked.declassify, asked.escalate) == (None, None, None)


def test_a_class_and_a_reason_by_header_or_by_body() -> None:
    by_header = made({"x-headgate-data-class": "public", "x-headgate-reason": "press-release"})
    by_body = made(headgate={"data_class": "public", "reason": "press-release"})
    for asked in (by_header, by_body):
        assert (asked.data_class, asked.declassify) == (DataClass.public, "press-release")
    assert "headgate" not in by_body.body
    # Of both the body's reason counts, and of all labels the highest.
    both = made({"x-headgate-data-class": "private", "x-headgate-reason": "a"}, headgate={
        "data_class": "public", "reason": "b"})  # fmt: skip
    assert (both.data_class, both.declassify) == (DataClass.private, "b")


def test_how_a_request_waits_is_said_by_header_or_else_by_body() -> None:
    assert made().latency is None  # its key says it
    assert made({"x-headgate-latency": " Batch "}).latency == "batch"
    by_body = made(headgate={"latency": "batch"})
    assert by_body.latency == "batch" and "headgate" not in by_body.body
    assert made({"x-headgate-latency": "interactive"}, headgate={"latency": "batch"}).latency == "interactive"


@pytest.mark.parametrize("given", ["soon", "", "batch, interactive", 5, ["batch"], {"batch": True}])
def test_another_way_to_wait_is_a_mistake_and_the_right_ones_are_named(given: Any) -> None:
    with pytest.raises(BadRequest) as refused:
        made(headgate={"latency": given})
    assert refused.value.param == "x-headgate-latency"
    assert "interactive" in refused.value.message and "batch" in refused.value.message
    if isinstance(given, str):
        with pytest.raises(BadRequest):
            made({"x-headgate-latency": given})


@pytest.mark.parametrize("reason", ["Anna is ill", "x" * 41, "ÄRGER", "a;b", "-a"])
@pytest.mark.parametrize("name", ["x-headgate-reason", "x-headgate-escalate"])
def test_a_reason_is_a_label_so_that_it_can_carry_no_text(name: str, reason: str) -> None:
    with pytest.raises(BadRequest) as refused:
        made({name: reason})
    assert refused.value.param == name and name in refused.value.message
    assert reason not in refused.value.message


@pytest.mark.parametrize("given", [{"reason": ["a"]}, {"reason": {"a": 1}}, {"reason": 5}, {"why": "a"}])
def test_a_reason_of_another_form_is_a_mistake(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        made(headgate=given)


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({}, {}, None),
        ({"prompt_cache_key": "p", "metadata": {"session_id": "m"}}, {"x-headgate-session": "h"}, "h"),
        ({"prompt_cache_key": "p", "metadata": {"session_id": "m"}}, {}, "m"),
        ({"prompt_cache_key": "p", "user": "u", "safety_identifier": "s", "metadata": {"user_id": "u"}}, {}, None),
        ({"metadata": {"session_id": "m"}}, {"x-headgate-session": ""}, "m"),
        ({"metadata": {"session_id": ["m"]}}, {}, None),
        ({"metadata": "session_id"}, {}, None),
        ({"metadata": {"session_id": "m" * 500}}, {}, "m" * 200),
    ],
)
def test_a_session_is_named_by_what_names_one_conversation_and_never_by_a_cache_or_a_user(
    body: dict[str, Any], headers: dict[str, str], session: str | None
) -> None:
    assert made(headers, **body).session == session
