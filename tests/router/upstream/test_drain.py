"""How fast requests end is measured while it matters, follows what changes, and is not made up."""

from __future__ import annotations

import pytest

from router.upstream.drain import ENOUGH, OLD_S, Drain


def ended(drain: Drain, count: int, every_s: float, now: float = 0.0) -> float:
    """So many requests end, one after the other, at an endpoint that stays full; returns the time afterwards."""
    drain.full(now)
    for _ in range(count):
        now += every_s
        drain.ended(now)
    return now


def test_the_rate_is_that_of_requests_that_end_while_it_is_full() -> None:
    drain = Drain()
    now = ended(drain, 50, 0.25)
    assert drain.rate(now) == pytest.approx(4.0)
    drain.room(now)
    drain.ended(now + 5)  # there was room: this says nothing of how fast it can be
    assert drain.rate(now + OLD_S - 1) == pytest.approx(4.0)
    assert drain.rate(now + OLD_S + 1) is None


def test_what_was_measured_long_ago_is_not_believed_again_when_it_is_full_again() -> None:
    """Else the long jobs of a night would say how long a short question waits in the morning."""
    drain = Drain()
    now = ended(drain, 20, 300.0)
    drain.room(now)
    drain.full(now + OLD_S + 1)
    assert drain.rate(now + OLD_S + 1) is None
    now = ended(drain, int(ENOUGH) + 1, 2.0, now + OLD_S + 1)
    assert drain.rate(now) == pytest.approx(0.5, rel=0.1)


def test_too_little_is_nothing() -> None:
    drain = Drain()
    assert drain.rate(10.0) is None
    now = ended(drain, int(ENOUGH) - 1, 1.0)
    assert drain.rate(now) is None


def test_it_follows_an_engine_that_gets_slower_and_one_that_stands_still() -> None:
    drain = Drain()
    now = ended(drain, 100, 0.1)
    now = ended(drain, 100, 1.0, now)
    assert drain.rate(now) == pytest.approx(1.0, rel=0.1)
    first, later = drain.rate(now + 10), drain.rate(now + 1000)
    assert first is not None and later is not None
    assert 1.0 > first > later > 0
