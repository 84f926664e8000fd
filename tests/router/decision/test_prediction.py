"""What a request would meet at an endpoint, by what is known of it; and nothing where that is nothing."""

from __future__ import annotations

from typing import Any

import pytest

from router.decision.prediction import NOTHING, predict, tokens_of, wait_s
from router.records import Endpoint, Pace, Prediction

PACE = Pace(prefill=1000.0, decode=50.0, first_s=0.05, drain=2.0, ratio=4.0, prompt=400.0)


def near(**live: Any) -> Endpoint:
    return Endpoint("near", "near", "unix:/near", "ready", **{"pace": PACE, "limit": 4, **live})


@pytest.mark.parametrize(
    ("live", "wait", "first", "speed"),
    [
        ({}, 0.0, 2.05, 50.0),
        ({"in_flight": 3}, 0.0, 2.05, 50.0),  # they write, and nothing is read before this one
        ({"in_flight": 1, "unstarted": 3000}, 3.0, 5.05, 50.0),
        ({"in_flight": 4}, 0.5, 2.55, 50.0),  # a place is free after half a second
        ({"in_flight": 4, "unstarted": 3000}, 3.0, 5.05, 50.0),
        ({"in_flight": 2, "others": 3}, 1.0, 3.05, 50.0),  # two too many
        ({"in_flight": 2, "others": 3, "places": 8}, 0.0, 2.05, 50.0),  # its share of the places is not all of them
        ({"others": 2, "waiting": 2}, 0.8, 2.85, 50.0),  # others' prompts are taken to be as long as ours
        ({"in_flight": 2, "waiting": 2}, 0.0, 2.05, 50.0),  # those are ours, and known better
        ({"in_flight": 9, "limit": 0}, 0.0, 2.05, 50.0),
        ({"in_flight": 9, "limit": 0, "pace": PACE._replace(at_once=8)}, 1.0, 3.05, 50.0),  # two must end first
        ({"in_flight": 2, "others": 1, "pace": PACE._replace(at_once=3)}, 0.5, 2.55, 50.0),
        ({"in_flight": 2, "pace": PACE._replace(at_once=3)}, 0.0, 2.05, 50.0),
        ({"in_flight": 4, "pace": PACE._replace(drain=None)}, None, None, 50.0),
        ({"limit": 0, "busy": True}, None, None, 50.0),
        ({"unstarted": 9, "pace": PACE._replace(prefill=None)}, None, None, 50.0),
        ({"pace": PACE._replace(prefill=None)}, 0.0, None, 50.0),
        ({"pace": PACE._replace(decode=None)}, 0.0, 2.05, None),
    ],
)
def test_a_request_of_two_thousand_tokens(
    live: dict[str, Any], wait: float | None, first: float | None, speed: float | None
) -> None:
    found = predict(near(**live), 2000)
    assert found == (pytest.approx(wait), pytest.approx(first), speed)


def test_of_what_nothing_is_known_nothing_is_said() -> None:
    assert predict(near(pace=None, unstarted=5000, in_flight=9), 10) == NOTHING == Prediction(None, None, None)
    assert wait_s(near(pace=None)) == 0.0  # but that nobody is before it is known without


def test_what_is_cached_there_is_not_read_again() -> None:
    assert predict(near(), 2000, 1500).first_token_s == pytest.approx(0.55)
    assert predict(near(), 2000, 9000).first_token_s == pytest.approx(0.051)


def test_a_tiny_prompt_is_foreseen_before_it_is_known_how_fast_long_ones_are_read() -> None:
    pace = PACE._replace(prefill=None)
    assert predict(near(pace=pace), 100).first_token_s == pytest.approx(0.05)
    assert predict(near(pace=pace), 5000).first_token_s is None


def test_a_prompt_no_longer_makes_its_own_wait() -> None:
    assert predict(near(), 1_000_000).wait_s == 0.0


def test_tokens_are_counted_as_the_model_makes_them() -> None:
    assert tokens_of(near(pace=PACE._replace(ratio=2.0)), 4000) == 2000
    assert tokens_of(near(pace=None), 4000) == 1000
    assert tokens_of(near(), 4_000_000, pictured=True) == 4096
