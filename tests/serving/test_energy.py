"""Energy: never less than before, whatever a driver's own count does, and never more than a board can draw."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving import energy
from serving.energy import LONGEST_GAP_S, MOST_W, Meter


def joules(*readings: tuple[float, int | None, float | None]) -> float | None:
    """What the meter shows after these: seconds, the GPU's count in mJ, its power."""
    meter = energy.first(*readings[0])
    for reading in readings[1:]:
        meter = meter.after(energy.first(*reading))
    return meter.joules


def test_what_the_gpu_counts_is_what_it_used() -> None:
    assert joules((0, 5_000_000, 300)) == 0
    assert joules((0, 5_000_000, 300), (5, 6_500_000, 300), (10, 8_000_000, 300)) == 3000


def test_a_driver_loaded_anew_loses_nothing_that_was_counted() -> None:
    assert joules((0, 5_000_000, 300), (5, 6_500_000, 300), (10, 400_000, 300)) == 1500 + 400


def test_a_count_that_jumps_is_not_believed_and_power_stands_in() -> None:
    assert joules((0, 5_000_000, 300), (5, 10**15, 300)) == 1500
    assert joules((0, 5_000_000, 300), (5, 10**15, 300), (10, 10**15 + 1_000_000, 300)) == 2500


def test_without_a_count_power_over_time_is_taken() -> None:
    assert joules((0, None, 100), (5, None, 300)) == 1000
    assert joules((0, None, 100), (LONGEST_GAP_S + 1, None, 300)) == 0


def test_a_reading_that_failed_is_made_up_for_by_the_next_count() -> None:
    assert joules((0, 5_000_000, 300), (5, None, None), (10, 8_000_000, 300)) == 3000


def test_nothing_read_is_unknown_and_not_zero() -> None:
    assert joules((0, None, None)) is None and Meter(0.0).joules is None
    assert joules((0, None, None), (5, None, None)) is None
    assert joules((0, None, None), (5, 7_000_000, None), (10, 8_000_000, None)) == 1000


READING = st.tuples(
    st.floats(0.01, 100), st.none() | st.integers(0, 10**15), st.none() | st.floats(0, MOST_W)
)  # fmt: skip


@given(st.lists(READING, max_size=30))
def test_it_never_falls_and_never_grows_faster_than_a_board_can_draw(readings: list[tuple[float, int, float]]) -> None:
    meter, at = energy.first(0.0, 1, 1.0), 0.0
    for passed, count, watts in readings:
        at += passed
        before, meter = meter, meter.after(energy.first(at, count, watts))
        assert meter.joules is not None and before.joules is not None
        assert 0 <= meter.joules - before.joules <= MOST_W * (at - before.at + 1) + 1
