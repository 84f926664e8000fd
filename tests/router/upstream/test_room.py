"""Who waits for room gets it in turn, no place is given twice or lost, and whoever leaves stands in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import DeadlinePassed, Hopeless, PushedOut, QueueFull
from router.upstream.queue import BATCH
from router.upstream.room import MOST_RETRY_S, Room
from tests.fakes.busy import busy

FAR_S = 60.0


def later() -> float:
    return time.monotonic() + FAR_S


async def settle() -> None:
    """Let everything run that can run now."""
    for _ in range(5):
        await asyncio.sleep(0)


class Guest:
    """One request: waits for a place at one of `names`, then keeps it until `end` is set."""

    def __init__(self, room: Room, *names: str, **how: Any) -> None:
        self.room, self.names, self.how = room, names, how
        self.kind = names, how.get("team"), how.get("priority")
        self.at: str | None = None
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        name = await self.room.turn(self.names, self.how.pop("deadline", later()), **self.how)
        with busy(self.room, name, granted=True):
            self.at = name
            await self.end.wait()

    @property
    def waits(self) -> bool:
        return self.at is None and not self.task.done()

    async def leave(self) -> None:
        self.task.cancel()
        await settle()
        assert self.task.cancelled()


def room(length: int = 10, wait_s: float = 7.2, busy_s: float = FAR_S, **limits: int) -> Room:
    made = Room(length, wait_s, busy_s)
    made.refresh(limits)
    return made


@contextlib.asynccontextmanager
async def guests(*made: Guest) -> AsyncIterator[tuple[Guest, ...]]:
    try:
        await settle()
        yield made
    finally:
        for guest in made:
            guest.task.cancel()
        await asyncio.gather(*(g.task for g in made), return_exceptions=True)


async def test_the_first_that_came_goes_first_and_the_limit_holds() -> None:
    here = room(a=1)
    async with guests(*(Guest(here, "a") for _ in range(4))) as came:
        for served, guest in enumerate(came):
            assert [g.at for g in came[served:]] == ["a"] + [None] * (3 - served)
            assert (here.in_flight("a"), here.waiting()) == (1, 3 - served)
            guest.end.set()
            await settle()
    assert (here.total(), here.waiting()) == (0, 0)


async def test_a_newcomer_does_not_overtake_who_was_granted_a_place_and_has_not_gone_on() -> None:
    here = room(a=1)
    with busy(here, "a"):
        waiting = Guest(here, "a")
        await settle()
    # The place is free this instant, and the waiter has not run yet.
    assert (here.in_flight("a"), here.is_full("a"), waiting.at) == (1, True, None)
    async with guests(waiting, Guest(here, "a")) as (first, newcomer):
        assert (first.at, newcomer.at) == ("a", None)


async def test_whoever_can_use_the_place_gets_it_past_those_who_cannot() -> None:
    here = room(a=1, b=1)
    with busy(here, "a"):
        with busy(here, "b"):
            three = Guest(here, "a"), Guest(here, "b", "a"), Guest(here, "b")
            await settle()
        await settle()
        async with guests(*three):
            assert [g.at for g in three] == [None, "b", None]


async def test_a_full_queue_says_so_at_once_and_when_to_come_back() -> None:
    here = room(length=1, a=1)
    with busy(here, "a"):
        async with guests(Guest(here, "a")):
            with pytest.raises(QueueFull) as told:
                await here.turn(["a"], later())
            assert (told.value.status, told.value.code, told.value.retry_after) == (503, "queue_full", 8)
            assert here.waiting() == 1


async def test_no_queue_at_all_still_gives_what_is_free() -> None:
    here = room(length=0, wait_s=0, a=1)
    assert await here.turn(["a"], 0.0) == "a"
    with pytest.raises(QueueFull) as told:
        await here.turn(["a"], later())
    assert told.value.retry_after == 1


async def test_a_deadline_ends_the_wait_and_leaves_nothing_behind() -> None:
    here = room(a=1)
    with busy(here, "a"):
        with pytest.raises(DeadlinePassed) as told:
            await here.turn(["a"], time.monotonic() + 0.01)
        assert (told.value.status, told.value.code, told.value.retry_after) == (503, "queue_timeout", 8)
        assert "7.2 s" in told.value.message
        assert here.waiting() == 0
    assert here.total() == 0


async def test_whoever_leaves_makes_way_and_wakes_nobody_wrongly() -> None:
    here = room(a=1)
    with busy(here, "a"):
        first, second = Guest(here, "a"), Guest(here, "a")
        await settle()
        await first.leave()
        assert (here.waiting(), second.at) == (1, None)
    async with guests(second):
        assert second.at == "a"


async def test_a_place_granted_to_one_who_leaves_in_that_moment_goes_on_to_the_next() -> None:
    here = room(a=1)
    with busy(here, "a"):
        first, second = Guest(here, "a"), Guest(here, "a")
        await settle()
    first.task.cancel()  # granted, and not gone on yet
    async with guests(first, second):
        assert first.task.cancelled()
        assert (second.at, here.in_flight("a")) == ("a", 1)
    assert here.total() == 0


async def test_a_place_that_becomes_free_while_one_is_leaving_is_not_lost() -> None:
    here = room(a=1)
    with busy(here, "a"):
        first, second = Guest(here, "a"), Guest(here, "a")
        await settle()
        first.task.cancel()  # leaving, and still in the queue when the place becomes free
    async with guests(first, second):
        assert (first.task.cancelled(), second.at) == (True, "a")


async def test_more_room_and_new_endpoints_are_used_at_once_and_gone_ones_by_nobody() -> None:
    here = room()
    async with guests(*(Guest(here, "a", "b") for _ in range(4))) as came:
        assert here.waiting() == 4  # nothing is known to take requests yet
        here.refresh({"a": 2})
        await settle()
        assert [g.at for g in came] == ["a", "a", None, None]
        here.refresh({"b": 1})  # a is gone
        came[0].end.set()
        await settle()
        assert [g.at for g in came] == ["a", "a", "b", None]
        here.refresh({"a": 0, "b": 1})  # back, without a limit that is known
        await settle()
        assert came[3].at == "a"


async def test_an_endpoint_that_said_it_is_full_gets_nothing_until_one_ends_there() -> None:
    here = room(a=3)
    with busy(here, "a"):
        with busy(here, "a"):
            here.told_full("a")  # it refused this one
            assert here.is_told_full("a")
        assert here.is_full("a")  # the end of the one it refused made no room
        waiting = Guest(here, "a")
        await settle()
        assert waiting.at is None
    async with guests(waiting):
        assert waiting.at == "a"
        assert not here.is_told_full("a")


async def test_an_endpoint_that_said_it_is_full_is_asked_again_after_a_while() -> None:
    here = room(busy_s=0.01, a=0)
    with busy(here, "a"):
        here.told_full("a")
    with busy(here, "a"):
        here.told_full("a")  # said again: it counts from now
    async with guests(Guest(here, "a")) as (waiting,):
        assert (waiting.at, here.is_full("a")) == (None, True)
        async with asyncio.timeout(5):
            while waiting.waits:
                await asyncio.sleep(0.001)
    assert (here.total(), here.is_told_full("a")) == (0, False)


async def test_who_may_wait_for_another_is_not_sent_to_what_rests() -> None:
    resting = {"a"}
    here = Room(10, 7.2, FAR_S, rests=lambda name: name in resting)
    here.refresh({"a": 1, "b": 1})
    async with guests(Guest(here, "a", "b"), Guest(here, "a", "b"), Guest(here, "a", "b")) as (one, two, three):
        await settle()
        assert (one.at, two.at, three.at) == ("b", None, None)
        here.refresh({"a": 1, "b": 1})
        one.end.set()
        await settle()
        assert (two.at, three.at) == ("b", None)
        resting.clear()
        here.refresh({"a": 1, "b": 1})
        await settle()
        assert three.at == "a"


async def test_what_rests_is_better_than_nothing() -> None:
    here = Room(10, 7.2, FAR_S, rests=lambda _: True)
    here.refresh({"a": 1, "b": 1})
    async with guests(Guest(here, "a", "b"), Guest(here, "a", "b"), Guest(here, "a")) as (one, two, three):
        await settle()
        assert (one.at, two.at, three.at) == ("a", "b", None)
        one.end.set()
        await settle()
        assert three.at == "a"


async def test_a_sign_of_room_where_no_limit_is_known_is_for_one_request_alone() -> None:
    """All that wait, let in at once, would only be refused again."""
    here = room(length=9, a=0)
    with busy(here, "a"):
        here.told_full("a")
    async with guests(*(Guest(here, "a") for _ in range(5))) as waiting:
        assert not any(guest.at for guest in waiting)
        for count in range(1, 6):
            here._room_again("a") if count == 1 else waiting[count - 2].end.set()
            await settle()
            assert sum(guest.at is not None for guest in waiting) == count


async def test_whoever_comes_back_keeps_its_rank_and_is_not_turned_away() -> None:
    here = room(length=1, a=1)
    with busy(here, "a"):
        second = Guest(here, "a")
        await settle()
        back = Guest(here, "a", since=0.0)
        await settle()
        assert here.waiting() == 2
    async with guests(back, second):
        assert (back.at, second.at) == ("a", None)


async def test_a_pause_leaves_the_place_to_others_and_ends_by_itself() -> None:
    here = room(a=1)
    async with guests(Guest(here, "a", since=0.0, pause_s=0.01)) as (pausing,):
        assert (here.waiting(), here.is_full("a")) == (1, False)
        async with guests(Guest(here, "a")) as (other,):
            assert other.at == "a"
        async with asyncio.timeout(5):
            while pausing.waits:
                await asyncio.sleep(0.001)
        assert pausing.at == "a"
    with pytest.raises(DeadlinePassed):
        await here.turn(["a"], time.monotonic() + 0.005, since=0.0, pause_s=FAR_S)
    assert (here.total(), here.waiting()) == (0, 0)


# ---- teams and priorities


async def test_teams_take_turns_and_interactive_goes_before_batch() -> None:
    here = room(length=20, a=1)
    with busy(here, "a"):
        late = Guest(here, "a", team="x", priority=BATCH)
        loud = [Guest(here, "a", team="x") for _ in range(4)]
        await settle()
        other = Guest(here, "a", team="y")
        await settle()
        assert here.waiting() == 6
        assert here.queued() == {"interactive": 5, "batch": 1, "teams": 2}
    async with guests(late, other, *loud):
        order = []
        while len(order) < 6:
            (now,) = [g for g in (late, other, *loud) if g.at and not g.end.is_set()]
            order.append(now)
            now.end.set()
            await settle()
        assert order == [loud[0], other, *loud[1:], late]


async def test_in_a_full_queue_the_team_that_fills_it_makes_way_and_is_told() -> None:
    here = room(length=3, a=1)
    with busy(here, "a"):
        loud = [Guest(here, "a", team="loud") for _ in range(3)]
        async with guests(*loud, Guest(here, "a", team="new")) as (*_, new):
            assert (new.waits, here.waiting()) == (True, 3)
            with pytest.raises(PushedOut) as told:
                await loud[2].task
            assert (told.value.status, told.value.code, told.value.retry_after) == (503, "queue_full", 8)
            assert loud[0].waits and loud[1].waits
            with pytest.raises(QueueFull):
                await here.turn(["a"], later(), team="loud")


async def test_one_who_leaves_in_the_moment_in_which_it_is_to_make_way_just_leaves() -> None:
    here = room(length=2, a=1)
    with busy(here, "a"):
        async with guests(*(Guest(here, "a", team="loud") for _ in range(2))) as loud:
            new = Guest(here, "a", team="new")
            loud[1].task.cancel()  # the newcomer looks before it has gone
            async with guests(new):
                assert new.waits and loud[1].task.cancelled()
                assert here.waiting() == 2


# ---- how long it takes


class Watch:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


def drained(here: Room, clock: Watch, *names: str, each_s: float, count: int = 20) -> None:
    """`count` requests end at each of these endpoints, which stay full all the while."""
    for _ in range(count):
        clock.now += each_s
        for name in names:
            here.leave(name)
            here.enter(name)


def full_room(*names: str, each_s: float) -> tuple[Room, Watch]:
    """A room whose endpoints have one place each, which is taken; requests have ended there at this pace."""
    clock = Watch()
    here = Room(50, 7.2, FAR_S, clock=clock)
    here.refresh(dict.fromkeys(names, 1))
    for name in names:
        here.enter(name)
    drained(here, clock, *names, each_s=each_s)
    return here, clock


async def test_who_is_turned_away_is_told_when_a_place_will_be_free() -> None:
    clock = Watch()
    here = Room(4, 7.2, FAR_S, clock=clock)
    here.refresh({"a": 2})
    here.enter("a"), here.enter("a")
    assert (here.drained("a"), here.retry_after(["a"])) == (None, 8)  # nothing is known yet
    drained(here, clock, "a", each_s=5.0)
    assert here.drained("a") == pytest.approx(0.2)
    assert here.retry_after(["a"]) == 5
    far = clock.now + 600
    async with guests(*(Guest(here, "a", team="x", deadline=far) for _ in range(4))):
        assert here.retry_after(["a"], "x") == 25  # four of its own before it
        assert here.retry_after(["a"], "y") == 10  # and one, where it has its own turn
        assert here.retry_after(["a"], "y", BATCH) == 25
        with pytest.raises(QueueFull) as told:
            await here.turn(["a"], far, team="x")
        assert told.value.retry_after == 25
        clock.now += 10_000  # it stands still
        assert here.retry_after(["a"], "x") == MOST_RETRY_S


async def test_replicas_count_together() -> None:
    here, clock = full_room("a", "b", each_s=8.0)
    async with guests(*(Guest(here, "a", "b", deadline=clock.now + 600) for _ in range(3))):
        assert here.retry_after(["a", "b"]) == 16
        assert here.retry_after(["b"]) == 20  # of the three about half are served there


async def test_who_cannot_have_a_place_in_time_is_told_at_once() -> None:
    here, clock = full_room("a", each_s=1.0)
    end = clock.now + 10
    async with guests(*(Guest(here, "a", deadline=end) for _ in range(24))) as came:
        late = [g for g in came if g.task.done()]
        assert [g.waits for g in came] == [True] * 19 + [False] * 5, "so many do not end in ten seconds"
        assert all(isinstance(g.task.exception(), Hopeless) for g in late)
        told = late[0].task.exception()
        assert isinstance(told, Hopeless) and (told.status, told.code, told.retry_after) == (503, "queue_timeout", 20)
        clock.now += 6  # nothing has ended since: who is last hears it now, and not at the end
        here.refresh({"a": 1})
        await settle()
        still = [g.waits for g in came].index(False)
        assert 0 < still < 19 and not any(g.waits for g in came[still:])


async def test_who_is_next_is_not_told_so_by_an_average() -> None:
    """One answer of a minute is on its way, and may have begun a minute ago."""
    here, clock = full_room("a", each_s=60.0)
    async with guests(*(Guest(here, "a", deadline=clock.now + 30) for _ in range(4))) as came:
        assert [g.waits for g in came] == [True, True, False, False]
        here.leave("a")
        await settle()
        assert came[0].at == "a"


async def test_of_more_places_than_were_measured_nothing_is_known() -> None:
    """An engine that comes back after a rest has few places at first, and those who wait must not pay for that."""
    here, clock = full_room("a", each_s=5.0)
    async with guests(*(Guest(here, "a", deadline=clock.now + 60) for _ in range(18))) as came:
        clock.now += 5
        here.refresh({"a": 16})
        await settle()
        assert here.drained("a") is None and not any(g.task.done() for g in came)
        assert sum(g.waits for g in came) == 3


async def test_who_has_a_turn_in_time_is_not_told_so_for_a_loud_team() -> None:
    here, clock = full_room("a", each_s=1.0)
    end = clock.now + 10
    async with guests(*(Guest(here, "a", team="loud", deadline=end) for _ in range(30))) as loud:
        assert sum(g.task.done() for g in loud) == 11
        async with guests(Guest(here, "a", team="new", deadline=end)) as (new,):
            here.refresh({"a": 1})
            await settle()
            assert new.waits
            assert sum(g.task.done() for g in loud) == 12, "its last one gave way to the other team's"


async def test_where_one_of_its_endpoints_is_not_known_nobody_is_told_that_it_waits_in_vain() -> None:
    """A model that is being woken, say, or a replica that was never full."""
    clock = Watch()
    here = Room(50, 7.2, FAR_S, clock=clock)
    here.refresh({"a": 1, "b": 1})
    here.enter("a"), here.enter("b")
    drained(here, clock, "a", each_s=100.0)
    async with guests(Guest(here, "a", "b", deadline=clock.now + 5)) as (waiting,):
        here.refresh({"a": 1, "b": 1})
        await settle()
        assert waiting.waits


async def test_an_endpoint_that_is_gone_is_forgotten_with_its_rate() -> None:
    here, _ = full_room("a", each_s=1.0)
    here.leave("a")
    here.refresh({})
    assert (here.drained("a"), here._drains) == (None, {})


async def test_what_failed_at_once_is_no_sign_of_how_fast_requests_end() -> None:
    here, clock = full_room("a", each_s=10.0)
    before = here.drained("a")
    for _ in range(40):
        clock.now += 0.005
        here.leave("a", served=False)
        here.enter("a")
    after = here.drained("a")
    assert before is not None and after is not None and after <= before


async def test_what_an_endpoint_refused_is_no_sign_of_how_fast_it_is() -> None:
    here, _ = full_room("a", each_s=1.0)
    before = here.drained("a")
    here.told_full("a")
    here.leave("a")
    assert here.drained("a") == before


# ---- any interleaving

NAMES = st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a"), ("c", "a")])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), NAMES, st.sampled_from("xyz"), st.integers(0, 1)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("leave"), st.integers(0, 9)),
        st.tuples(st.just("late"), st.integers(0, 9)),
        st.tuples(st.just("full"), st.integers(0, 9)),
        st.tuples(st.just("refresh"), st.dictionaries(st.sampled_from("abc"), st.integers(0, 3))),
        st.tuples(st.just("run"), st.none()),
    ),
    max_size=40,
)


class Watched(Room):
    """Checks each place as it is taken: within the limit."""

    def _take(self, endpoint: str) -> str:
        limit = self._limits[endpoint]
        taken = super()._take(endpoint)
        assert not limit or self.in_flight(endpoint) <= limit
        return taken


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_whatever_happens_in_whatever_order(steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[tuple[Any, ...]]) -> None:
    here = Watched(6, FAR_S, FAR_S)
    here.refresh({"a": 1, "b": 2})
    came: list[Guest] = []
    for what, which, *who in steps:
        inside, queued = [g for g in came if g.at and not g.task.done()], [g for g in came if g.waits]
        if what == "come":
            came.append(Guest(here, *which, team=who[0], priority=who[1]))
        elif what == "refresh":
            here.refresh(which)
        elif what == "end" and inside:
            inside[which % len(inside)].end.set()
        elif what == "full" and inside:
            guest = inside[which % len(inside)]
            if not guest.end.is_set():
                here.told_full(str(guest.at))
                guest.end.set()
        elif what == "leave" and queued:
            queued[which % len(queued)].task.cancel()
        elif what == "late" and queued:
            for waiter in list(here._queue.newest())[: which + 1]:
                here._too_late(waiter)
        elif what == "run":
            await settle()
            check(here, came)
    here.refresh({"a": 1, "b": 2, "c": 1})
    for guest in came:  # they end one after the other, and each makes room for the next
        guest.end.set()
    for name in ("a", "b", "c"):
        if here.is_told_full(name):
            here._room_again(name)
    async with asyncio.timeout(5):
        await asyncio.gather(*(g.task for g in came), return_exceptions=True)
    told = QueueFull, DeadlinePassed
    assert all(g.at or g.task.cancelled() or isinstance(g.task.exception(), told) for g in came)
    assert (here.total(), here.waiting(), here._refused) == (0, 0, {})


def check(here: Room, came: list[Guest]) -> None:
    """What holds whenever everything has run that can run."""
    queued = [g for g in came if g.waits]
    assert here.waiting() == len(queued)
    for name in ("a", "b", "c"):
        assert here.in_flight(name) == sum(g.at == name and not g.task.done() for g in came)
    for guest in queued:  # nobody waits for what is free
        assert not any(name in here._limits and not here.is_full(name) for name in guest.names)
    for kind in {g.kind for g in came}:  # who wants the same is served in turn
        alike = [g for g in came if g.kind == kind and (g.at or g.waits)]
        assert [bool(g.at) for g in alike] == sorted((bool(g.at) for g in alike), reverse=True)
