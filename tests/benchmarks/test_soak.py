"""What a soak says: slopes with their intervals, what counts as a leak, and who must be accounted for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.gateways import direct
from benchmarks.intervals import Interval, mean_ratio, slope, student
from benchmarks.leaks import Callers, Sample, Written, leaks, memory_slope, unaccounted
from router.ledger.store import Event, Store

FLAT = Interval(0, -1, 1)
EVEN = Written(opened=100, closed=100, refused=0, never_closed=0, not_once=0)


def sample(at_s: float, **changed: float) -> Sample:
    given = {"resident_mb": 100.0, "descriptors": 60, "sockets": 40, "threads": 5, "open": 30, "tasks": 50, **changed}
    return Sample(at_s=at_s, **given)  # type: ignore[arg-type]


REST = sample(0, descriptors=20, sockets=5, open=0, tasks=8)
STEADY = [sample(5.0 * n) for n in range(60)]

# ---- how sure a number is


def test_a_slope_is_found_and_surely_so() -> None:
    source = random.Random(1)
    times = [n / 720 for n in range(120)]
    found = slope(times, [80 + 30 * t + source.gauss(0, 0.2) for t in times])
    assert found.low < 30 < found.high and found.low > 20
    still = slope(times, [80 + source.gauss(0, 0.2) for _ in times])
    assert still.low < 0 < still.high


def test_samples_that_resemble_each_other_make_a_slope_less_sure() -> None:
    source, value, walk = random.Random(2), 0.0, []
    for _ in range(200):
        value = 0.9 * value + source.gauss(0, 1)
        walk.append(value)
    shuffled = sorted(walk, key=lambda _: source.random())
    times = [float(n) for n in range(200)]
    alike, apart = slope(times, walk), slope(times, shuffled)
    assert alike.high - alike.low > 2 * (apart.high - apart.low)


def test_a_ratio_of_pairs_has_its_interval() -> None:
    found = mean_ratio([(99, 100), (198, 200), (49.5, 50)])
    assert found.value == pytest.approx(0.99) == found.low == found.high
    noisy = mean_ratio([(1, 1), (1.1, 1), (0.9, 1), (1.02, 1), (0.98, 1)])
    assert noisy.low < 1 < noisy.high and student(4) == 2.776 and student(1000) < 1.97


# ---- leaks


def test_what_holds_still_is_no_leak() -> None:
    assert leaks(REST, STEADY, REST, FLAT, 60) == []
    assert unaccounted(Callers(sent=100, answered=70, left=30, failed=0), EVEN) == []


@pytest.mark.parametrize("name", ["descriptors", "sockets", "threads", "open", "tasks"])
def test_what_grows_under_load_is_a_leak(name: str) -> None:
    growing = [sample(5.0 * n, **{name: 40 + n}) for n in range(60)]
    (said,) = leaks(REST, growing, REST, FLAT, 60)
    assert "grow" in said and name in said


def test_what_stays_when_all_have_gone_is_a_leak() -> None:
    after = sample(310, descriptors=40, sockets=5, open=1, tasks=8)
    assert [said.split(" stay")[0] for said in leaks(REST, STEADY, after, FLAT, 60)] == ["descriptors", "open requests"]


def test_memory_is_flat_only_where_that_is_sure() -> None:
    assert leaks(REST, STEADY, REST, Interval(60, 40, 80), 60) == ["memory grows by 60 MB an hour (40 to 80)"]
    (unsure,) = leaks(REST, STEADY, REST, Interval(5, -40, 50), 60)
    assert unsure.startswith("whether memory grows is not known: 5 MB an hour (-40 to 50)")
    assert leaks(REST, STEADY, REST, Interval(2, -1, 5), 60) == []
    warm = [sample(5.0 * n, resident_mb=min(100.0, 50 + 5 * n)) for n in range(60)]
    assert memory_slope(warm, 60).high < 1 < memory_slope(warm, 0).value, "warming up is not counted"


@pytest.mark.parametrize(
    ("written", "word"),
    [
        (Written(100, 99, 0, 1, 0), "never closed"),
        (Written(100, 101, 0, 0, 1), "more than once"),
        (Written(69, 69, 0, 0, 0), "the ledger knows 69"),
        (Written(100, 100, 1, 0, 0), "the ledger knows 101"),
    ],
)
def test_what_the_ledger_does_not_know_is_said(written: Written, word: str) -> None:
    (said,) = unaccounted(Callers(sent=100, answered=70, left=30, failed=0), written)
    assert word in said


def test_a_failed_request_is_said() -> None:
    assert unaccounted(Callers(100, 69, 30, 1), EVEN) == ["1 requests failed"]


# ---- what is read


def test_the_ledgers_events_are_counted_by_request(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite")
    for request, kinds in {
        "a": ["opened", "closed"],
        "b": ["opened"],
        "c": ["refused"],
        "d": ["opened", "closed", "closed"],
    }.items():
        for kind in kinds:
            store.append(Event(1.0, kind, request, "key", {}, None))
    store.flush()
    store.close()
    assert soak.written(tmp_path / "ledger.sqlite") == Written(
        opened=3, closed=2, refused=1, never_closed=1, not_once=1
    )


def test_a_metric_is_summed_over_its_series_and_unknown_where_it_is_not_there() -> None:
    text = '# HELP headgate_tasks x\nheadgate_requests_total{a="b"} 3.0\nheadgate_requests_total{a="c"} 4.0\n'
    assert soak.total(text, "headgate_requests_total") == 7 and soak.total(text, "headgate_tasks") is None
    assert soak.total("headgate_tasks 12.0\n", "headgate_tasks") == 12


def test_three_in_ten_callers_leave() -> None:
    drawn = soak.kinds(direct(1))
    assert sum(kind.share for _, kind in drawn) == pytest.approx(1)
    assert sum(kind.share for _, kind in drawn if kind.leaves_after_s) == pytest.approx(0.3)
