"""How full an endpoint is: by places, by the wait before another request would start, by KV cache under pressure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision.saturation import overflows, saturation
from router.records import Endpoint, Pace, Saturation

PACE = Pace(prefill=1000.0, decode=50.0, first_s=0.05, drain=2.0, ratio=4.0, prompt=400.0)


def near(**live: Any) -> Endpoint:
    return Endpoint("near", "near", "unix:/near", "ready", **{"pace": PACE, "limit": 4, **live})


@pytest.mark.parametrize(
    ("live", "value", "why"),
    [
        ({}, 0.0, "it is idle"),
        ({"kv_use": 1.0, "waiting": 3}, 0.0, "it is idle"),  # a reading of a moment ago; nothing is there now
        ({"stale": True}, 0.0, "it is idle"),
        ({"in_flight": 1}, 0.25, "1 of 4 places taken"),
        ({"in_flight": 4}, 1.0, "4 of 4 places taken"),
        ({"in_flight": 1, "others": 3}, 1.0, "4 of 4 places taken, 3 by others"),
        ({"in_flight": 1, "others": 3, "places": 16}, 0.25, "1 of 4 places taken"),
        ({"others": 3, "places": 4, "limit": 2}, 0.75, "3 of 4 places taken, 3 by others"),
        ({"in_flight": 1, "unstarted": 1000}, 0.5, "a wait of 1.00 s where 2 s are allowed"),
        ({"in_flight": 1, "unstarted": 9000}, 4.5, "a wait of 9.00 s where 2 s are allowed"),
        ({"in_flight": 1, "unstarted": 9000, "pace": None}, 0.25, "1 of 4 places taken"),
        ({"in_flight": 1, "unstarted": 9000, "pace": Pace(ratio=4.0)}, 0.25, "1 of 4 places taken"),
        ({"in_flight": 2, "kv_use": 0.99}, 0.5, "2 of 4 places taken"),  # cache that is used and wanted by nobody else
        ({"in_flight": 2, "kv_use": 0.9, "waiting": 3}, 1.0, "90% of its KV cache is in use and 3 wait"),
        ({"in_flight": 2, "kv_use": 0.9, "waiting": 0}, 0.5, "2 of 4 places taken"),
        ({"in_flight": 1, "limit": 0, "pace": None}, 0.0, "nothing waits there"),
        ({"in_flight": 1, "busy": True}, 1.0, "it takes no more now"),
        ({"in_flight": 1, "stale": True}, 1.0, "its readings are too old to be believed"),
    ],
)
def test_how_full_it_is_and_why(live: dict[str, Any], value: float, why: str) -> None:
    assert saturation(near(**live), 2.0) == Saturation(pytest.approx(value), why)


@pytest.mark.parametrize(("ago", "value"), [(0.0, 1.1), (5.0, 1.1), (5.1, 0.5), (None, 0.5)])
def test_a_request_that_was_put_back_is_a_sign_for_five_seconds(ago: float | None, value: float) -> None:
    found = saturation(near(in_flight=2, kv_use=0.99, preempted_s=ago), 2.0)
    assert found.value == pytest.approx(value)


def test_the_wait_that_is_allowed_is_what_it_is_held_against() -> None:
    assert saturation(near(in_flight=1, unstarted=4000), 8.0).value == pytest.approx(0.5)


@given(
    st.integers(0, 8), st.integers(0, 8), st.integers(0, 10**7), st.none() | st.floats(0, 1),
    st.none() | st.integers(0, 9), st.booleans(), st.integers(0, 8),
)  # fmt: skip
def test_an_idle_endpoint_is_never_saturated(
    in_flight: int, others: int, unstarted: int, kv_use: float | None, waiting: int | None, stale: bool, limit: int
) -> None:
    """Whatever its readings say: they are of a moment ago, and the router's own count is of now."""
    live = {"kv_use": kv_use, "waiting": waiting, "stale": stale, "limit": limit}
    assert saturation(near(**live), 2.0).value == 0
    more = saturation(near(in_flight=in_flight, others=others, unstarted=unstarted, **live), 2.0)
    assert more.value >= 0 and more.why


def test_it_overflows_at_one_and_comes_back_below_four_fifths() -> None:
    values, spilling, found = (0.5, 0.9, 1.0, 0.9, 0.8, 0.79, 0.9, 1.2), False, []
    for value in values:
        spilling = overflows(Saturation(value, ""), spilling=spilling)
        found.append(spilling)
    assert found == [False, False, True, True, True, False, False, True]
