"""How far an answer has come, held against its deadlines. Times are handed in, so nothing waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.upstream.address import Deadlines
from router.upstream.response import AGAIN_S, Progress

SENT = 1000.0
USUAL = Deadlines()


def stream(elsewhere: Callable[[], bool] | None = None) -> Progress:
    """A stream whose head came at once."""
    progress = Progress(SENT, SENT, USUAL, by_event=True, elsewhere=elsewhere)
    progress.begun(well=True)
    return progress


def overdue(progress: Progress, after_s: float) -> str:
    found = progress.overdue(SENT + after_s, USUAL)
    return found[0] if found else ""


def test_by_default_the_last_one_has_until_the_deadline_of_the_whole() -> None:
    alone, no_room = stream(), stream(lambda: False)
    for progress in (alone, no_room):
        assert overdue(progress, USUAL.first_byte_s + 1) == overdue(progress, USUAL.total_s - 1) == ""
        assert overdue(progress, USUAL.total_s)
    assert overdue(stream(lambda: True), USUAL.first_token_s) == "first_token_timeout"


def test_a_late_stream_that_could_go_nowhere_is_looked_at_again() -> None:
    """Room and the budget of retries come back."""
    room: list[bool] = []
    late = stream(lambda: bool(room))
    assert overdue(late, USUAL.first_token_s) == ""
    room.append(True)
    assert overdue(late, USUAL.first_token_s + 1) == ""
    assert overdue(late, USUAL.first_token_s + AGAIN_S) == "first_token_timeout"


def test_whoever_sends_no_head_has_only_until_the_first_byte_s_deadline() -> None:
    silent = Progress(SENT, SENT, USUAL, by_event=True, elsewhere=None)
    assert overdue(silent, USUAL.first_byte_s) == "first_byte_timeout"
    refused = Progress(SENT, SENT, USUAL, by_event=True, elsewhere=None)
    refused.begun(well=False)  # an error is no stream
    assert overdue(refused, USUAL.first_byte_s) == "first_byte_timeout"


def test_after_the_first_delta_silence_is_cut() -> None:
    progress = stream(lambda: True)
    progress.delta(SENT + 40)
    assert overdue(progress, 40 + USUAL.idle_s - 1) == "" and overdue(progress, 40 + USUAL.idle_s) == "idle_timeout"


@pytest.mark.parametrize("elsewhere", [None, lambda: False])
def test_the_timer_is_never_set_to_what_has_passed(elsewhere: Callable[[], bool] | None) -> None:
    """It would fire again at once, and take a whole core until the answer ends."""
    progress, now, looks = stream(elsewhere), SENT, 0
    while not progress.overdue(now, USUAL):
        later = progress.next_look(now, USUAL)
        assert later > now
        now, looks = later, looks + 1
    assert now == SENT + USUAL.total_s and looks < 100


def test_who_reads_too_slowly_is_to_blame_for_an_answer_that_is_late() -> None:
    """A moment in which it was not read proves nothing: most answers have one."""
    for held_s, kind in ((0.0, "idle_timeout"), (1.0, "idle_timeout"), (USUAL.total_s / 2, "unread")):
        late = stream()
        late.delta(SENT)
        late.held(SENT, SENT + held_s)
        late.heard_at = SENT + USUAL.total_s - 1
        assert overdue(late, USUAL.total_s - 1) == ""
        assert overdue(late, USUAL.total_s) == kind


def test_silence_is_counted_from_the_moment_in_which_it_was_read_again() -> None:
    late = stream()
    late.delta(SENT)
    late.held(SENT, SENT + 100)
    assert overdue(late, 100 + USUAL.idle_s - 1) == ""
    assert overdue(late, 100 + USUAL.idle_s) == "idle_timeout"
