"""Whose turn it is: first asked, first served; nobody is put out before its stay; nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.swapping import Member, Move, move, ready_in

STAY_S = 300.0


def here(name: str = "a", since: float = 0.0, worked: float | None = 0.0, **more: float) -> Member:
    return Member(name, "here", since, worked, **more)


def away(name: str = "b", asked: float | None = None, start_s: float | None = None) -> Member:
    return Member(name, "away", asked=asked, start_s=start_s)


def step(now: float, *members: Member) -> tuple[str, str] | None:
    found = move(members, now, STAY_S)
    return None if found is None else (found.to, found.name)


@pytest.mark.parametrize(
    ("now", "members", "wanted"),
    [
        (1000, [here(), away()], None),
        (10, [here(), away(asked=5)], None),
        (299, [here(), away(asked=5)], None),
        (300, [here(), away(asked=5)], ("rest", "a")),
        # Nobody ever asked for the one that runs first.
        (10, [here(worked=None), away(asked=5)], ("rest", "a")),
        # The work of the one that is there does not keep the others waiting.
        (300, [here(worked=300), away(asked=5)], ("rest", "a")),
        (400, [Member("a", "leaving"), away(asked=5)], None),
        # Alone and about to leave, when somebody asks for it after all; another that was asked for goes first.
        (400, [Member("a", "leaving", asked=399), away()], ("wake", "a")),
        (400, [Member("a", "leaving", asked=1), away(asked=5)], None),
        # The first one, which nobody asked for, fetches its weights; the other could start.
        (400, [Member("a", "coming", 399, fetching=True), away(asked=5)], ("rest", "a")),
        (400, [Member("a", "coming", 399, fetching=True), away()], None),
        (400, [Member("a", "coming", 399), away(asked=5)], None),
        (400, [away("a"), away(asked=5)], ("wake", "b")),
        # Who was asked for first.
        (400, [away("a", asked=6), away("b", asked=5)], ("wake", "b")),
        (400, [here("c"), away("a", asked=6), away("b", asked=5)], ("rest", "c")),
        (400, [away("a"), away("b")], None),
        # One that failed is left alone, and does not keep the place.
        (400, [Member("a", "barred", asked=1), away("b", asked=5)], ("wake", "b")),
        (400, [Member("a", "barred", asked=1)], None),
        # Alone, and nobody asks for it.
        (899, [here(sleep_after_s=600, worked=300)], None),
        (900, [here(sleep_after_s=600, worked=300)], ("rest", "a")),
        (600, [here(sleep_after_s=600, worked=None)], ("rest", "a")),
        (20, [here(sleep_after_s=10, worked=None)], None),
        (10_000, [here(worked=None)], None),
    ],
)
def test_whose_turn_it_is(now: float, members: list[Member], wanted: tuple[str, str] | None) -> None:
    assert step(now, *members) == wanted


def test_the_reason_is_said() -> None:
    found = move([here(), away(asked=5)], 400, STAY_S)
    assert found == Move("a", "rest", "requests wait for b, which gets its place")


@pytest.mark.parametrize(
    ("name", "now", "members", "wanted"),
    [
        ("a", 0, [here()], 0.0),
        ("b", 100, [here(), away(asked=90, start_s=60)], 200 + 60),
        ("b", 100, [here(worked=None), away(asked=90, start_s=60)], 60),
        ("b", 500, [here(), away(asked=90, start_s=60)], 60),
        ("b", 500, [here(), away(asked=90)], None),
        ("b", 110, [Member("b", "coming", 100, start_s=60)], 50),
        ("b", 210, [Member("b", "coming", 100, start_s=60)], 0),
        ("b", 210, [Member("b", "barred", start_s=60)], None),
        # Another was asked for sooner, and keeps the place for its stay.
        ("b", 500, [here(), away("c", asked=80, start_s=10), away(asked=90, start_s=60)], 10 + STAY_S + 60),
        ("b", 500, [here(), away("c", asked=95, start_s=10), away(asked=90, start_s=60)], 60),
        # One only fetches its weights, and one is coming now, and stays.
        ("b", 110, [Member("a", "coming", 100, start_s=30, fetching=True), away(start_s=60)], 60),
        ("b", 110, [Member("a", "coming", 100, start_s=30), away(start_s=60)], 20 + STAY_S + 60),
    ],
)
def test_when_it_will_be_there(name: str, now: float, members: list[Member], wanted: float | None) -> None:
    assert ready_in(name, members, now, STAY_S) == wanted


@dataclass
class Place:
    """A group over time: who is woken takes `start_s` to come, who rests `leave_s` to go."""

    names: tuple[str, ...]
    stay_s: float
    start_s: float
    leave_s: float
    phases: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float | None] = field(default_factory=dict)
    worked: dict[str, float | None] = field(default_factory=dict)
    put_out: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, name in enumerate(self.names):
            self.phases[name], self.since[name] = ("here", 0.0) if number == 0 else ("away", 0.0)
            self.asked[name] = self.worked[name] = None

    def ask(self, name: str, now: float) -> None:
        if self.phases[name] == "here":
            self.worked[name] = now
        elif self.asked[name] is None:
            self.asked[name] = now

    def look(self, now: float) -> None:
        for name, phase in self.phases.items():
            if phase == "coming" and now - self.since[name] >= self.start_s:
                asked = self.asked[name]
                assert asked is not None, "only who was asked for comes"
                self.waits.append(now - asked)
                self.phases[name], self.since[name], self.asked[name] = "here", now, None
                self.worked[name] = now
            elif phase == "leaving" and now - self.since[name] >= self.leave_s:
                self.phases[name] = "away"
        members = [
            Member(n, self.phases[n], self.since[n], self.worked[n], self.asked[n])  # type: ignore[arg-type]
            for n in self.names
        ]
        found = move(members, now, self.stay_s)
        if found is None:
            return
        if found.to == "rest":
            assert self.phases[found.name] == "here"
            self.put_out.append(now)
        self.phases[found.name], self.since[found.name] = ("coming" if found.to == "wake" else "leaving"), now
        assert sum(phase != "away" for phase in self.phases.values()) <= 1, "one at a time"


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=60),
    st.integers(5, 100), st.integers(1, 40), st.integers(0, 20),
)  # fmt: skip
def test_it_never_thrashes_and_everybody_is_served_in_time(
    asks: list[tuple[str, int]], stay_s: int, start_s: int, leave_s: int
) -> None:
    place = Place(("a", "b", "c"), stay_s, start_s, leave_s)
    until = 400 + 4 * (stay_s + start_s + leave_s + 3)
    for now in range(until):
        for name, at in asks:
            if at == now:
                place.ask(name, now)
        place.look(now)
    assert all(asked is None for asked in place.asked.values()), "everybody who was asked for came"
    assert len(place.put_out) <= until / stay_s + 1
    for first, second in zip(place.put_out, place.put_out[1:], strict=False):
        assert second - first >= stay_s
    # At most the two others come before it, each for its stay, and whoever is here now has its own.
    assert all(wait <= 3 * (stay_s + start_s + leave_s + 3) for wait in place.waits)
