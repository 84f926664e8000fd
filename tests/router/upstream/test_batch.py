"""An engine that takes more than it works on lets the rest wait inside; how long is seen from outside."""

from __future__ import annotations

import pytest

from router.decision.prediction import wait_s
from router.upstream.batch import READINGS, Batch
from router.upstream.fading import Mean
from router.upstream.pace import There
from tests.fakes.reading import Engine, Job


def seen(*readings: tuple[int, int], ends: int = 2) -> Batch:
    """What an engine said each quarter of a second: how many it works on, and how many it lets wait. `ends`: of ours,
    between two of these."""
    batch = Batch()
    for number, (running, waiting) in enumerate(readings):
        batch.read(running, waiting, 0.25 * number)
        for _ in range(ends):
            batch.ended(0.25 * number)
    return batch


def test_it_works_on_as_many_as_run_though_some_end_while_others_wait() -> None:
    assert seen(*[(8, 5)] * READINGS).size == 8
    assert seen(*[(9, 0)] * 20).size is None, "nobody waits, so it may take more"
    assert seen(*[(9, 0)] * 20, (9, 1)).size is None


def test_who_waits_for_the_next_step_or_for_a_long_prompt_says_nothing() -> None:
    assert seen(*[(3, 1), (3, 0)] * 20).size is None
    assert seen((5, 3), (4, 3), (4, 4), (3, 5), (6, 1), (5, 2)).size is None, "nobody takes the place of one that ends"
    assert seen(*[(3, 4)] * 20, ends=0).size is None, "one step of the engine may last as long as that"
    batch = Batch()
    for _ in range(20):  # one reading, heard again and again
        batch.read(3, 1, 5.0)
        batch.ended(5.0)
    assert batch.size is None


def test_what_it_works_on_now_it_can() -> None:
    assert seen(*[(4, 9)] * READINGS, (12, 0)).size == 12
    assert seen(*[(12, 9)] * READINGS, *[(5, 4)] * READINGS).size == 5, "its KV cache holds no more of these"


def test_how_fast_requests_end_counts_only_while_it_has_no_place() -> None:
    batch = seen(*[(2, 1)] * READINGS)
    for number in range(40):
        batch.holds(3, 10.0 + number)
        batch.ended(10.5 + number)
        batch.holds(2, 10.5 + number)
    batch.holds(1, 50.0)  # a place is free for ten minutes
    assert batch.drained(50.0) == pytest.approx(1.0, rel=0.1)
    assert batch.drained(700.0) is None, "who comes then may ask for something else"
    assert Batch().drained(50.0) is None


def test_a_wait_inside_an_engine_is_foreseen() -> None:
    """Forty come at once each twenty seconds, and it works on eight of them."""
    engine, there = Engine(seqs=8, each_s=0.001), There("near", Mean())
    jobs = [Job(20.0 * burst, 50, 60) for burst in range(12) for _ in range(40)]
    late = [job for job in engine.run(there, jobs) if job.at >= 100.0]
    pairs = [(wait_s(job.seen), job.began - job.at) for job in late]
    known = [(expected, came) for expected, came in pairs if expected is not None]
    assert len(known) > 0.9 * len(late)
    longest = max(came for _, came in known)
    assert longest > 4
    assert sum(abs(expected - came) for expected, came in known) / len(known) < 0.15 * longest


def test_an_engine_that_was_started_again_is_looked_at_anew() -> None:
    there = There("near", Mean())
    jobs = Engine(seqs=2, each_s=0.001).run(there, [Job(0.0, 50, 20) for _ in range(40)])
    end = max(job.ended for job in jobs)
    there.sent(40, 0, end)
    assert (known := there.pace(end)) is not None and known.at_once == 2
    there.forget()
    assert (known := there.pace(end)) is not None and known.at_once is None
