"""Answers that are kept for whoever repeats a request: the caller's own, for a day, within bounds."""

from __future__ import annotations

import pytest

from router.api.idempotency import KEPT_S, Claim, Idempotency, Kept, final
from router.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    HeadgateError,
    LimitReached,
    Unavailable,
    Unprocessable,
    UpstreamFailed,
    UpstreamTimeout,
)


def claim(kept: Idempotency, name: bytes = b"n", *, key: str = "k", body: bytes = b"b", now: float = 0.0) -> Claim:
    return kept.claim(key, "chat/completions", name, body, now)


def answered(size: int = 10) -> Kept:
    return Kept(200, b"", "req_1", b"x" * size)


def test_a_repeated_request_finds_the_first_answer() -> None:
    kept = Idempotency()
    first = claim(kept)
    with pytest.raises(Conflict):
        claim(kept)
    kept.keep(first, answered())
    kept.let_go(first)  # what was answered stays
    assert claim(kept).kept == answered()
    with pytest.raises(Unprocessable):
        claim(kept, body=b"other")


def test_names_belong_to_a_caller_and_a_route() -> None:
    kept = Idempotency()
    kept.keep(claim(kept), answered())
    assert claim(kept, key="other").kept is None
    assert kept.claim("k", "embeddings", b"n", b"b", 0.0).kept is None


def test_what_was_let_go_is_answered_anew() -> None:
    kept = Idempotency()
    kept.let_go(claim(kept))
    assert claim(kept).kept is None


def test_answers_are_forgotten_after_a_day() -> None:
    kept = Idempotency()
    kept.keep(claim(kept), answered())
    assert claim(kept, now=KEPT_S - 1).kept is not None
    assert claim(kept, now=KEPT_S).kept is None


def test_the_oldest_answers_go_first_and_what_is_being_answered_stays() -> None:
    kept = Idempotency(most_entries=3, most_bytes=1000)
    running = claim(kept, b"running")
    for number in range(10):
        kept.keep(claim(kept, b"%d" % number), answered())
    assert len(kept) == 3
    assert claim(kept, b"9").kept is not None
    assert claim(kept, b"0").kept is None
    with pytest.raises(Conflict):
        claim(kept, b"running")
    kept.keep(running, answered())
    assert len(kept) <= 3


def test_bytes_are_bounded_too() -> None:
    kept = Idempotency(most_entries=100, most_bytes=1000)
    for number in range(20):
        kept.keep(claim(kept, b"%d" % number), answered(100))
    assert len(kept) == 10
    kept.keep(claim(kept, b"large"), answered(500))
    assert claim(kept, b"large").kept is None


@pytest.mark.parametrize("name", [b"", b"x" * 256, "ä".encode()])
def test_a_name_that_cannot_be_taken_is_refused(name: bytes) -> None:
    with pytest.raises(BadRequest):
        claim(Idempotency(), name)


@pytest.mark.parametrize(
    ("error", "for_good"),
    [
        (BadRequest("no"), True),
        (Unprocessable("no"), True),
        (Unprocessable("no", retry_after=600), False),
        (Forbidden("no"), False),
        (UpstreamFailed("no"), False),
        (UpstreamTimeout("no"), False),
        (HeadgateError("no"), False),
        (LimitReached("no"), False),
        (Unavailable("no", retry_after=1), False),
        (Unavailable("no"), False),
    ],
)
def test_only_what_trying_again_may_change_is_not_kept(error: HeadgateError, for_good: bool) -> None:
    assert final(error) is for_good
