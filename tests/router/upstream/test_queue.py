"""Whoever shouts loudest gets its share and no more, nobody waits for ever, and a full queue has room for others."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.upstream.queue import BATCH, BATCH_IN, BYTES_A_TURN, INTERACTIVE, SPARE, Queue, Waiter


class Ticket:
    """Stands in for the future that a request waits for."""

    def __init__(self) -> None:
        self.looks, self.over = 0, False

    def done(self) -> bool:
        self.looks += 1
        return self.over


class Hall:
    """A queue and who stands in it; `serve` gives one place away."""

    def __init__(self) -> None:
        self.queue, self.numbers = Queue(), itertools.count()

    def comes(
        self, team: str = "t", priority: int = INTERACTIVE, *names: str, size: int = 0, since: float | None = None
    ) -> Waiter:  # fmt: skip
        number = next(self.numbers)
        waiter = Waiter(
            names or ("a",), team, priority, size, float(number) if since is None else since, 1e9, number,
            since is not None, cast("Any", Ticket()),
        )  # fmt: skip
        self.queue.enter(waiter)
        self.queue.stand(waiter)
        return waiter

    def serve(self, endpoint: str = "a") -> Waiter | None:
        waiter = self.queue.first(endpoint)
        if waiter is not None:
            self.queue.served(waiter, endpoint)
        return waiter

    def served(self, count: int, endpoint: str = "a") -> list[str]:
        """The teams of those that get the next places."""
        return [waiter.team for _ in range(count) if (waiter := self.serve(endpoint)) is not None]


def test_batch_makes_way_though_its_largest_team_was_let_in_and_refused_once() -> None:
    """Those keep their rank and are not pushed out; there are others of batch."""
    hall = Hall()
    for number in range(51):
        hall.comes("x", BATCH, since=float(number))
    others = [hall.comes("y", BATCH) for _ in range(49)]
    assert hall.queue.makes_way("z", INTERACTIVE, 100) is others[-1]


# ---- fair shares


def test_bu_009_a_team_that_sends_a_hundred_times_as_much_gets_its_share_only() -> None:
    """Nine teams ask one thing after the other, one keeps a hundred in the queue. Each gets a tenth of the places."""
    hall, places = Hall(), 1000
    others = [f"team-{n}" for n in range(9)]
    for _ in range(100):
        hall.comes("loud")
    for team in others:
        hall.comes(team)
    got: Counter[str] = Counter()
    for _ in range(places):
        waiter = hall.serve()
        assert waiter is not None
        got[waiter.team] += 1
        hall.comes(waiter.team)  # whoever was served asks the next thing
    fair = places / 10
    assert all(got[team] >= 0.9 * fair for team in others), got
    assert got["loud"] <= 1.1 * fair


def test_shares_are_of_work_and_not_of_requests_alone() -> None:
    hall = Hall()
    for _ in range(200):
        hall.comes("long", size=9 * BYTES_A_TURN)
        hall.comes("short")
    got = Counter(hall.served(110))
    assert 9 <= got["short"] / got["long"] <= 11


def test_who_was_silent_has_saved_nothing_up_and_owes_nothing() -> None:
    hall = Hall()
    hall.comes("late", BATCH)
    for _ in range(60):
        hall.comes("busy")
    assert hall.served(33).count("busy") == 32
    hall.comes("late", BATCH)
    for _ in range(60):
        hall.comes("new")
    assert Counter(hall.served(18)) == {"busy": 8, "new": 9, "late": 1}
    hall.comes("late", BATCH)
    for team in ("busy", "new"):
        while (last := hall.queue.last_of(team, INTERACTIVE)) is not None:
            hall.queue.leave(last)
    hall.comes("new"), hall.comes("busy")
    assert hall.served(2) == ["new", "busy"], "nobody else waited: what was before that counts no more"


def test_within_a_team_the_first_that_came_is_first() -> None:
    hall = Hall()
    came = [hall.comes() for _ in range(50)]
    for gone in came[5:15]:
        hall.queue.leave(gone)
    assert [hall.serve() for _ in range(40)] == came[:5] + came[15:]
    assert (hall.serve(), len(hall.queue)) == (None, 0)


def test_whoever_had_its_turn_and_was_refused_is_before_all_others_in_the_order_in_which_they_came() -> None:
    hall = Hall()
    first, second = hall.comes("x"), hall.comes("y")
    again = [hall.comes("z", since=5.0), hall.comes("x", since=-1.0), hall.comes("y", since=2.0)]
    assert [hall.serve() for _ in range(5)] == [again[1], again[2], again[0], first, second]


def test_a_team_that_leaves_gets_nothing_for_what_it_did_not_ask() -> None:
    hall = Hall()
    gone = [hall.comes("gone") for _ in range(20)]
    for _ in range(5):
        hall.comes("here")
    for waiter in gone:
        hall.queue.leave(waiter)
    assert hall.served(6) == ["here"] * 5


# ---- priorities


def test_interactive_goes_first_and_batch_is_not_forgotten() -> None:
    hall = Hall()
    for _ in range(100):
        hall.comes("late", BATCH)
        hall.comes("now")
    got = hall.served(100)
    assert got[: BATCH_IN - 1] == ["now"] * (BATCH_IN - 1)
    assert Counter(got) == {"now": 90, "late": 10}
    assert got[BATCH_IN - 1 :: BATCH_IN] == ["late"] * 10, "evenly"


def test_batch_that_came_while_nobody_waited_has_no_claim_on_the_next_place() -> None:
    hall = Hall()
    for _ in range(50):
        hall.comes("now")
    assert set(hall.served(40)) == {"now"}
    hall.comes("late", BATCH)
    assert hall.served(BATCH_IN) == ["now"] * (BATCH_IN - 1) + ["late"]


def test_batch_alone_gets_everything_in_fair_shares() -> None:
    hall = Hall()
    for _ in range(30):
        hall.comes("x", BATCH)
    for _ in range(3):
        hall.comes("y", BATCH)
    assert Counter(hall.served(6)) == {"x": 3, "y": 3}


# ---- several endpoints


def test_each_place_goes_to_the_first_that_can_use_it_and_everybody_gets_one() -> None:
    hall = Hall()
    both, near, far = hall.comes("x", 0, "a", "b"), hall.comes("y", 0, "a"), hall.comes("z", 0, "b")
    assert [hall.serve("a"), hall.serve("b"), hall.serve("b"), hall.serve("a")] == [both, far, None, near]
    assert hall.queue.at("a") is None and hall.queue.at("b") is None


# ---- a full queue


def test_the_one_who_fills_the_queue_makes_way_for_whoever_has_fewer_there() -> None:
    hall, length = Hall(), 21
    loud = [hall.comes("loud") for _ in range(length)]
    assert hall.queue.makes_way("loud", INTERACTIVE, length) is None, "for itself nobody makes way"
    for expected in reversed(loud[11:]):
        assert hall.queue.makes_way("new", INTERACTIVE, length) is expected
        hall.queue.leave(expected)
        hall.comes("new")
    assert hall.queue.makes_way("new", INTERACTIVE, length) is None, "it would have more than half itself"
    assert hall.queue.makes_way("third", INTERACTIVE, length) is not None


def test_a_tenth_of_the_queue_is_batch_and_no_more_of_it_where_others_want_it() -> None:
    hall, length = Hall(), 20
    late = [hall.comes("late", BATCH) for _ in range(length)]
    for expected in reversed(late[2:]):
        assert hall.queue.makes_way("now", INTERACTIVE, length) is expected
        hall.queue.leave(expected)
        hall.comes("now")
    assert hall.queue.makes_way("now", INTERACTIVE, length) is None
    assert hall.queue.makes_way("late", BATCH, length) is None
    hall.queue.leave(late[0])
    last = hall.comes("now")
    assert hall.queue.makes_way("late", BATCH, length) is last


def test_whoever_had_its_turn_never_makes_way() -> None:
    hall = Hall()
    for n in range(5):
        hall.comes("loud", since=float(n))
    assert hall.queue.makes_way("new", INTERACTIVE, 5) is None
    assert list(hall.queue.newest()) == []


# ---- what it costs


@pytest.mark.parametrize("teams", [1, 50])
def test_a_place_is_given_away_without_looking_at_all_that_wait(teams: int) -> None:
    hall, count = Hall(), 2000
    waiters = [hall.comes(f"team-{n % teams}", size=n) for n in range(count)]
    for _ in range(count):
        hall.serve()
    looks = sum(cast("Any", waiter.granted).looks for waiter in waiters)
    assert looks <= 3 * count


def test_those_that_leave_are_not_kept_where_nobody_is_ever_served() -> None:
    hall = Hall()
    hall.comes("stays")
    for n in range(10 * SPARE):
        hall.queue.leave(hall.comes(f"team-{n % 3}"))
    lines = hall.queue.at("a")
    assert lines is not None
    assert lines.of[INTERACTIVE]._held <= 2 * SPARE
    assert hall.served(2) == ["stays"]


# ---- how long it will take

TEAMS = st.sampled_from(["x", "y", "z"])


@given(st.lists(TEAMS, max_size=30), TEAMS)
def test_how_many_places_it_takes_is_known_beforehand(crowd: list[str], team: str) -> None:
    """Of equal requests, whoever comes; within one round of the teams, for who of them began is left to chance."""
    hall = Hall()
    for other in crowd:
        hall.comes(other)
    lines = hall.queue.at("a")
    expected = 1 if lines is None else lines.turns(team, INTERACTIVE)
    mine = hall.comes(team)
    took = next(n for n in itertools.count(1) if hall.serve() is mine)
    assert abs(took - expected) <= len(set(crowd) | {team})


@given(st.integers(0, 40), st.integers(0, 40))
def test_how_long_batch_takes_counts_those_that_go_before(now: int, late: int) -> None:
    hall = Hall()
    for _ in range(now):
        hall.comes("x")
    for _ in range(late):
        hall.comes("y", BATCH)
    lines = hall.queue.at("a")
    expected = 1 if lines is None else lines.turns("y", BATCH)
    mine = hall.comes("y", BATCH)
    assert next(n for n in itertools.count(1) if hall.serve() is mine) == expected


def test_the_last_of_a_team_is_reckoned_from_where_it_stands() -> None:
    hall = Hall()
    for _ in range(9):
        hall.comes("x")
    for _ in range(3):
        hall.comes("y")
    lines = hall.queue.at("a")
    assert lines is not None
    assert (lines.turns("x", INTERACTIVE, waits=True), lines.turns("y", INTERACTIVE, waits=True)) == (12, 6)


# ---- any interleaving

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("come"), TEAMS, st.integers(0, 1), st.sampled_from([("a",), ("b",), ("a", "b")])),
        st.tuples(st.just("back"), TEAMS, st.integers(0, 1), st.sampled_from([("a",), ("b",), ("a", "b")])),
        st.tuples(st.just("leave"), st.integers(0, 99)),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
        st.tuples(st.just("serve"), st.sampled_from("ab")),
    ),
    max_size=80,
)


@given(MOVES)
def test_whatever_happens_everybody_who_can_be_served_is_and_nobody_twice(moves: list[tuple[Any, ...]]) -> None:
    hall = Hall()
    here: list[Waiter] = []
    for what, *how in moves:
        if what == "come":
            here.append(hall.comes(how[0], how[1], *how[2]))
        elif what == "back":
            here.append(hall.comes(how[0], how[1], *how[2], since=-1.0))
        elif what == "serve":
            able = [w for w in here if how[0] in w.names and not cast("Any", w.granted).over]
            waiter = hall.serve(how[0])
            assert (waiter is None) == (not able)
            if waiter is not None:
                assert waiter in able
                here.remove(waiter)
        elif here:
            waiter = here[how[0] % len(here)]
            cast("Any", waiter.granted).over = True  # it was cancelled, and its task has not run yet
            if what == "leave":
                hall.queue.leave(waiter)
                hall.queue.leave(waiter)
                here.remove(waiter)
        assert len(hall.queue) == len(here)
        for priority in (INTERACTIVE, BATCH):
            counts = Counter(w.team for w in here if w.priority == priority)
            tally = hall.queue.tallies[priority]
            assert tally.of == counts
            assert tally.most == max(counts.values(), default=0)
        for endpoint in "ab":
            lines = hall.queue.at(endpoint)
            there = sum(endpoint in w.names for w in here)
            assert (0 if lines is None else lines.of[0].tally.total + lines.of[1].tally.total) == there
