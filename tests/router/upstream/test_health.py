"""Who rests, for how long, and how an endpoint comes back. Times are handed in, so nothing waits."""

from __future__ import annotations

import pytest

from router.upstream.health import FIRST_SHARE, IN_A_ROW, MOST_REST_S, PENALTY_S, RAMP_S, REST_S, Health

NOW = 1000.0


@pytest.fixture
def health() -> Health:
    return Health()


def fail(health: Health, times: int, now: float = NOW, why: str = "reset") -> None:
    for _ in range(times):
        health.failed("a", why, now)


def test_one_refused_connection_is_enough_and_of_other_failures_it_takes_some_in_a_row(health: Health) -> None:
    fail(health, IN_A_ROW - 1)
    assert not health.resting("a", NOW)
    fail(health, 1)
    assert health.resting("a", NOW)
    health.failed("b", "refused", NOW)
    assert "refuses connections" in health.resting("b", NOW)
    assert not health.resting("c", NOW)


def test_an_answer_in_between_ends_the_row(health: Health) -> None:
    for _ in range(5):
        fail(health, IN_A_ROW - 1)
        health.ended("a")
    assert not health.resting("a", NOW)


def test_a_stream_that_begins_and_is_cut_again_and_again_is_a_failing_endpoint(health: Health) -> None:
    for _ in range(IN_A_ROW):
        health.answered("a", NOW)
        health.failed("a", "cut", NOW)
    assert health.resting("a", NOW)


def test_each_rest_is_longer_than_the_one_before_up_to_a_bound(health: Health) -> None:
    now, rests = NOW, []
    for _ in range(15):
        health.failed("a", "refused", now)
        start = now
        while health.resting("a", now):
            now += 1
        rests.append(now - start)
        now += 1
    assert rests[:3] == [REST_S, 2 * REST_S, 3 * REST_S]
    assert rests[-1] == MOST_REST_S == max(rests)


def test_what_fails_while_it_rests_makes_the_rest_no_longer(health: Health) -> None:
    """The last endpoint is still asked; those who ask it must not keep it out for ever."""
    fail(health, 50, why="refused")
    assert health.resting("a", NOW + REST_S - 1)
    assert not health.resting("a", NOW + REST_S)


def test_after_a_rest_one_request_finds_out_and_the_others_keep_away(health: Health) -> None:
    health.failed("a", "refused", NOW)
    later = NOW + REST_S
    assert not health.resting("a", later)
    health.tried("a", later)
    assert "finding out" in health.resting("a", later)
    health.left("a")  # whoever asked has gone: the next one finds out
    assert not health.resting("a", later)
    health.tried("a", later)
    fail(health, 1, later, why="reset")  # one failure is enough now
    assert health.resting("a", later + 2 * REST_S - 1)
    health.tried("a", later + 2 * REST_S)
    health.answered("a", later + 2 * REST_S)
    assert not health.resting("a", later + 2 * REST_S)


def test_its_share_grows_slowly_after_a_rest_and_never_is_nothing(health: Health) -> None:
    health.failed("a", "refused", NOW)
    assert health.limit("a", 100, NOW) == 100
    health.answered("a", NOW)
    assert health.limit("a", 100, NOW) == 100 * FIRST_SHARE
    assert health.limit("a", 100, NOW + RAMP_S / 2) == pytest.approx(55, abs=1)
    assert health.limit("a", 100, NOW + RAMP_S) == 100
    assert (health.limit("a", 1, NOW), health.limit("a", 0, NOW)) == (1, 0)
    assert [health.share("a", NOW + s) for s in (0, RAMP_S / 2, RAMP_S)] == pytest.approx([FIRST_SHARE, 0.55, 1])
    assert health.share("b", NOW) == 1


def test_a_pause_it_asked_for_is_kept_and_is_no_failure(health: Health) -> None:
    health.asked_to_wait("a", 7, NOW)
    assert "asked for a pause" in health.resting("a", NOW + 6.9)
    assert not health.resting("a", NOW + 7)
    health.answered("a", NOW + 7)
    assert health.limit("a", 100, NOW + 7) == 100
    health.asked_to_wait("b", 0, NOW)
    assert not health.resting("b", NOW)


def test_for_a_moment_after_a_failure_it_comes_behind_its_replicas(health: Health) -> None:
    fail(health, 1)
    assert (health.failing("a", NOW + PENALTY_S - 0.1), health.failing("a", NOW + PENALTY_S)) == (True, False)
    health.asked_to_wait("b", 1, NOW)
    assert health.failing("b", NOW + 2)


def test_after_being_well_for_long_a_rest_is_short_again(health: Health) -> None:
    for _ in range(4):
        health.failed("a", "refused", NOW)
        health.answered("a", NOW)
    health.failed("a", "refused", NOW + 1000)
    assert not health.resting("a", NOW + 1000 + REST_S)


def test_another_process_begins_anew_and_slowly_and_what_is_gone_is_forgotten(health: Health) -> None:
    health.failed("a", "refused", NOW)
    health.restarted("a", NOW + 1)
    assert not health.resting("a", NOW + 1)
    assert health.limit("a", 100, NOW + 1) == 10
    health.failed("b", "refused", NOW)
    health.only(["a"])
    assert not health.resting("b", NOW)


def test_an_answer_to_an_earlier_request_does_not_end_a_pause(health: Health) -> None:
    health.asked_to_wait("a", 7, NOW)
    health.answered("a", NOW + 1)
    assert "asked for a pause" in health.resting("a", NOW + 2)
    assert (health.pause("a", NOW + 2), health.pause("a", NOW + 8), health.pause("b", NOW)) == (5, 0, 0)
    health.answered("a", NOW + 7)
    assert not health.resting("a", NOW + 7)


def test_only_one_request_is_the_probe(health: Health) -> None:
    health.failed("a", "refused", NOW)
    assert not health.tried("a", NOW + 1)
    assert health.tried("a", NOW + REST_S)
    assert not health.tried("a", NOW + REST_S)
