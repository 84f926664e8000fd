"""A key's limits a minute hold at every edge, are the same for all workers, and are said in OpenAI's headers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import LimitReached
from router.ledger import counters
from router.ledger.counters import Shared
from router.ledger.rates import Rates
from tests.fakes.asking import caller


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "rates.table"
    counters.make(made)
    return made


@pytest.fixture
def workers(path: Path) -> Iterator[tuple[Rates, Rates]]:
    """Two workers' rates; the same numbers."""
    with contextlib.closing(Shared(path)) as one, contextlib.closing(Shared(path)) as other:
        yield Rates(one), Rates(other)


def admitted(rates: Rates, times: list[float], tokens: int = 0, **limits: int) -> list[float]:
    """Those of these moments at which a request is let in."""
    found, who = [], caller(**limits)
    for now in times:
        with contextlib.suppress(LimitReached):
            rates.admit(who, tokens, now)
            found.append(now)
    return found


def told(rates: Rates, now: float, **limits: int) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in rates.headers(caller(**limits), now)}


def test_a_key_that_was_rotated_goes_on_with_what_it_has_taken() -> None:
    rates, limits = Rates(), {"requests_per_minute": 2, "tokens_per_minute": 100}
    old, new = caller(**limits), caller(key="k2", first=caller().key, **limits)
    rates.admit(old, 40, 0.0)
    rates.admit(new, 40, 0.0)
    for who in (old, new):
        with pytest.raises(LimitReached):
            rates.admit(who, 0, 0.0)
    rates.admit(caller(key="k2", **limits), 0, 0.0)


def test_a_minute_takes_its_requests_and_not_one_more() -> None:
    rates, who = Rates(), caller(requests_per_minute=60)
    assert len(admitted(rates, [100.0] * 61, requests_per_minute=60)) == 60
    with pytest.raises(LimitReached) as refused:
        rates.admit(who, 0, 100.25)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after == pytest.approx(0.75)
    assert "key k1 may use 60 requests a minute" in refused.value.message
    assert "headgate keys set k1 --requests-per-minute N" in refused.value.message
    slow = caller(requests_per_minute=1, key="k2")
    rates.admit(slow, 0, 100.0)
    with pytest.raises(LimitReached, match="key k2 may use 1 request a minute"):
        rates.admit(slow, 0, 100.0)
    rates.admit(who, 0, 101.0)  # as it was told


@given(st.integers(1, 100), st.lists(st.floats(0, 300), max_size=300), st.floats(0, 300), st.floats(0, 120))
def test_no_stretch_has_more_than_a_burst_and_what_came_back_in_it(
    limit: int, times: list[float], begin: float, length: float
) -> None:
    let_in = admitted(Rates(), sorted(times), requests_per_minute=limit)
    # Wherever it begins: there is no edge of a window to burst at twice.
    assert sum(begin <= at < begin + length for at in let_in) <= limit * (1 + length / 60) + 1e-6


@given(st.lists(st.floats(0, 60), max_size=200))
def test_what_is_refused_takes_nothing(times: list[float]) -> None:
    rates = Rates()
    asked = sorted([*times, *times, *times])
    assert len(admitted(rates, asked, requests_per_minute=20)) >= min(20, len(asked))


def test_tokens_that_are_held_and_not_used_come_back() -> None:
    rates, who = Rates(), caller(tokens_per_minute=1000)
    rates.admit(who, 900, 5.0)
    with pytest.raises(LimitReached, match="1000 tokens a minute") as refused:
        rates.admit(who, 200, 5.0)
    assert refused.value.retry_after == pytest.approx(6.0)
    rates.settle(who, 900, 100, 5.0)
    rates.admit(who, 900, 5.0)
    with pytest.raises(LimitReached):
        rates.admit(who, 1, 5.0)


def test_tokens_beyond_what_was_held_are_owed() -> None:
    rates, who = Rates(), caller(tokens_per_minute=60)
    rates.admit(who, 0, 5.0)
    rates.settle(who, 0, 180, 5.0)  # an answer of three minutes' worth
    with pytest.raises(LimitReached) as refused:
        rates.admit(who, 0, 5.0)
    assert refused.value.retry_after == pytest.approx(120.0)
    rates.admit(who, 0, 125.0)


def test_what_has_run_off_is_not_given_back_again() -> None:
    rates, who = Rates(), caller(tokens_per_minute=60)
    rates.admit(who, 60, 0.0)
    rates.settle(who, 60, 0, 300.0)
    rates.admit(who, 60, 300.0)
    with pytest.raises(LimitReached):
        rates.admit(who, 1, 300.0)


def test_a_prompt_larger_than_the_limit_waits_for_a_whole_minute_and_is_then_answered() -> None:
    rates, who = Rates(), caller(tokens_per_minute=100)
    rates.admit(who, 1, 0.0)
    with pytest.raises(LimitReached) as refused:
        rates.admit(who, 5000, 0.0)
    rates.admit(who, 5000, refused.value.retry_after or 0)
    rates.settle(who, 5000, 0, refused.value.retry_after or 0)
    rates.admit(who, 100, refused.value.retry_after or 0)


def test_a_refusal_for_tokens_takes_no_request() -> None:
    rates, who = Rates(), caller(requests_per_minute=2, tokens_per_minute=10)
    rates.admit(who, 10, 0.0)
    for _ in range(5):
        with pytest.raises(LimitReached, match="tokens"):
            rates.admit(who, 10, 0.0)
    assert told(rates, 0.0, requests_per_minute=2, tokens_per_minute=10)["x-ratelimit-remaining-requests"] == "1"


def test_the_headers_say_what_is_left_as_openai_does() -> None:
    rates, limits = Rates(), {"requests_per_minute": 500, "tokens_per_minute": 6000}
    who = caller(**limits)
    assert told(rates, 0.0, **limits) == {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "500",
        "x-ratelimit-reset-requests": "0ms",
        "x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "6000", "x-ratelimit-reset-tokens": "0ms",
    }  # fmt: skip
    rates.admit(who, 600, 0.0)
    assert told(rates, 0.0, **limits) == {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "5400", "x-ratelimit-reset-tokens": "6s",
    }  # fmt: skip
    rates.settle(who, 600, 9000, 0.0)
    owed = told(rates, 0.0, **limits)
    assert (owed["x-ratelimit-remaining-tokens"], owed["x-ratelimit-reset-tokens"]) == ("0", "1m30s")
    assert set(told(rates, 0.0, requests_per_minute=1)) == {
        f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")
    }


def test_keys_share_nothing_and_one_without_limits_is_never_refused() -> None:
    rates = Rates()
    rates.admit(caller(key="a", requests_per_minute=1), 0, 0.0)
    rates.admit(caller(key="b", requests_per_minute=1), 0, 0.0)
    assert len(admitted(rates, [0.0] * 1000, tokens=10**9)) == 1000
    assert rates.headers(caller(), 0.0) == []


def test_two_workers_admit_together_what_one_may(workers: tuple[Rates, Rates]) -> None:
    one, other = workers
    who = caller(requests_per_minute=10, tokens_per_minute=1000)
    for rates in (one, other) * 5:
        rates.admit(who, 50, 7.0)
    for rates in workers:
        with pytest.raises(LimitReached):
            rates.admit(who, 50, 7.0)
        assert dict(rates.headers(who, 7.0))[b"x-ratelimit-remaining-tokens"] == b"500"
    one.settle(who, 50, 0, 7.0)
    assert dict(other.headers(who, 7.0))[b"x-ratelimit-remaining-tokens"] == b"550"


def test_a_worker_that_stands_still_stops_no_other(path: Path) -> None:
    with contextlib.closing(Shared(path)) as stuck, contextlib.closing(Shared(path)) as mine, stuck:
        rates, who = Rates(mine), caller(requests_per_minute=1)
        for _ in range(100):
            rates.admit(who, 0, 0.0)  # a limit on speed is no reason to stop
        assert rates.headers(who, 0.0) == []


def test_many_keys_do_not_make_the_memory_grow() -> None:
    kept = counters.Own(most=100)
    rates = Rates(kept)
    for number in range(10_000):
        rates.admit(caller(key=f"k{number}", requests_per_minute=60), 0, float(number))
    assert sys.getsizeof(kept._numbers) < 20_000
