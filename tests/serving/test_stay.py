"""What is known of a model in a place: whether it works, whether it has finished, and what is published of it."""

from __future__ import annotations

import time

import pytest

from serving.endpoint import Timing, Watch
from serving.instance import State
from serving.probe import Target
from serving.scrape import Load
from serving.stay import Stay


def watch(load: Load | None, read_at: float | None = None) -> Watch:
    made = Watch(Target("unix:/nowhere"), Timing())
    made.load, made.read_at = load, time.monotonic() if read_at is None else read_at
    return made


def idle(prompt: int | None = 0, output: int | None = 0) -> Load:
    return Load(running=0, waiting=0, prompt_tokens=prompt, output_tokens=output)


def here() -> Stay:
    stay = Stay(shares=True)
    stay.begins()
    stay.came()
    stay.seen(watch(idle()))
    assert stay.member("a").worked is None
    return stay


@pytest.mark.parametrize(
    ("load", "works"),
    [
        (idle(), False),
        # One short text for a model of embeddings. A probe of our own is told apart by when it was asked.
        (idle(prompt=5, output=0), True),
        (idle(prompt=25, output=1), True),
        (idle(prompt=25, output=12), True),
        (idle(prompt=300, output=1), True),
        (Load(running=1, waiting=0), True),
        (Load(running=0, waiting=2), True),
        # What nobody can see is not idle.
        (Load(), True),
        (None, True),
    ],
)
def test_a_model_works_unless_it_is_seen_to_do_nothing(load: Load | None, works: bool) -> None:
    stay = here()
    stay.seen(watch(load))
    assert (stay.member("a").worked is not None) == works


def test_who_was_asked_for_counts_as_at_work_from_the_start() -> None:
    stay = Stay(wanted=False, shares=True)
    stay.ask(time.monotonic())
    assert stay.member("a").asked is not None and stay.member("a").phase == "away"
    stay.wake()
    stay.begins()
    assert stay.member("a").phase == "coming"
    stay.came()
    found = stay.member("a")
    assert (found.phase, found.asked) == ("here", None) and found.worked is not None
    assert found.start_s is not None


def test_a_model_has_finished_only_by_a_reading_from_after_every_router_knew() -> None:
    stay = here()
    stay.rest("b is wanted")
    now = time.monotonic()
    assert not stay.finished(watch(idle(), now + 1.9)), "a router may not have heard"
    assert stay.finished(watch(idle(), now + 2.1))
    assert not stay.finished(watch(Load(running=1, waiting=0), now + 2.1))
    assert not stay.finished(watch(Load(), now + 2.1)), "unknown is not nothing"
    assert not stay.finished(watch(None, now + 2.1))


def test_one_that_is_asked_for_before_it_begins_to_leave_keeps_its_place() -> None:
    stay = here()
    stay.rest("nobody has asked for it")
    stay.ask(time.monotonic())
    stay.wake()
    assert (stay.member("a").phase, stay.member("a").asked) == ("here", None)
    assert stay.shown("ready", "") == ("ready", "")
    stay.went()
    assert stay.shown("waiting", "it ended") == ("waiting", "it ended"), "a crash is said as it is"


def test_one_that_is_asked_for_while_it_falls_asleep_is_waited_for() -> None:
    """Requests must not be sent there: a sleeping engine takes them and answers none."""
    stay = here()
    stay.begins()
    stay.rest("nobody has asked for it")
    stay.goes()
    assert stay.member("a").phase == "leaving"
    stay.ask(time.monotonic())
    stay.wake()
    assert stay.shown("ready", "") == ("waking", "")
    stay.went("sleep")
    assert stay.member("a").phase == "coming" and stay.swaps["sleep"] == 1


def test_its_time_to_finish_is_bounded() -> None:
    stay = Stay(shares=True, drain_s=0.0)
    stay.came()
    stay.rest("b is wanted")
    assert stay.finished(watch(Load(running=5)))


def test_a_model_that_failed_leaves_its_place_and_is_left_alone_for_a_while() -> None:
    stay = here()
    stay.ask(time.monotonic())
    stay.failed()
    assert stay.member("a").phase == "barred" and stay.member("a").asked is None
    stay.forgiven()
    assert stay.member("a").phase == "away"
    always = Stay()
    always.failed()
    assert always.wanted, "one that shares nothing is tried again"


@pytest.mark.parametrize("state", ["ready", "stalled", "stopping", "waiting", "asleep"])
def test_what_rests_is_asleep_for_everybody_at_once(state: State) -> None:
    stay = here()
    stay.rest("b is wanted")
    assert stay.shown(state, "") == ("asleep", "b is wanted; it finishes its requests first")
    stay.went()
    assert stay.shown(state, "") == ("asleep", "b is wanted")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("starting", "waking"),
        ("weights", "waking"),
        ("waiting", "waking"),
        ("failed", "failed"),
        ("stopped", "stopped"),
    ],
)
def test_what_a_request_waits_for_is_waking_until_it_answers(state: State, shown: State) -> None:
    stay = Stay(wanted=False, shares=True)
    assert stay.shown("weights", "12 %") == ("weights", "12 %"), "it cannot come before all it needs is there"
    stay.ask(time.monotonic())
    stay.wake()
    assert stay.shown(state, "x") == (shown, "x")
    stay.begins()
    stay.came()
    assert stay.shown("ready", "") == ("ready", "")
    stay.went()
    assert stay.shown("waiting", "it ended") == ("waiting", "it ended"), "a crash is said as it is"


def test_what_shares_nothing_is_published_as_it_is() -> None:
    stay = Stay()
    for state in ("waiting", "starting", "ready", "stalled", "stopping"):
        assert stay.shown(state, "why") == (state, "why")


def test_a_request_that_is_not_made_again_counts_no_more_after_its_time() -> None:
    stay, now = Stay(wanted=False, shares=True), time.monotonic()
    stay.ask(now - 100, until=now - 1)
    assert stay.member("b").asked is None
    stay.ask(now, until=now + 3600)
    assert stay.member("b").asked == now, "who asks anew is not taken for the one of long ago"
    stay.ask(now + 1, until=now + 3601)
    assert stay.member("b").asked == now, "and one who goes on asking keeps the place in the queue"


def test_it_is_counted_how_often_a_model_came_and_went() -> None:
    stay = here()
    stay.went()  # a crash
    stay.came("start")
    stay.rest("b is wanted")
    stay.went("sleep")
    stay.went("stop")  # it ended in its sleep
    assert stay.swaps == {"start": 2, "stop": 0, "sleep": 1, "wake": 0}
    stay.wake()
    stay.came("wake")
    stay.rest("b is wanted")
    stay.went("stop")
    assert stay.swaps == {"start": 2, "stop": 1, "sleep": 1, "wake": 1}
