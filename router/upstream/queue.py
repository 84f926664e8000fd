"""Pure: the order of those that wait for a place, and who makes way where too many do.

At each endpoint interactive requests go before batch, but of ten places for which both wait batch gets one. Among
requests of one priority teams have equal shares (start-time fair queueing, one clock for each endpoint): the team goes
next that was given least, and its first that came. Every operation costs the logarithm of what waits, or less.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Protocol

INTERACTIVE, BATCH = 0, 1
BATCH_IN = 10
"""Of so many places for which both wait batch gets one, and of the queue itself as large a part."""
BYTES_A_TURN = 8192
"""So much of a prompt counts as another request: about what an engine reads while it writes one short answer."""
SPARE = 64
"""Entries of who has gone that may lie in a line beside twice as many of who waits."""


class Grant(Protocol):
    """What a request waits for: the name of the endpoint at which it has a place, or why it has none."""

    def done(self) -> bool: ...
    def set_result(self, result: str) -> None: ...
    def set_exception(self, exception: BaseException) -> None: ...


Entry = tuple[float, int, "Waiter"]


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in the queue."""

    names: tuple[str, ...]
    team: str
    priority: int
    size: int
    """Its prompt, by its upper bound in tokens, which is bytes."""
    since: float
    deadline: float
    number: int
    """Who came first of two that came at the same time."""
    back: bool
    """Whether it had its turn already, and was refused there: it keeps its rank."""
    granted: Grant
    ready: bool = False
    """Whether it stands in the lines; not while it leaves what becomes free to others."""
    gone: bool = False


class Tally:
    """How many of each team wait, and which team has most."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}
        self._with: dict[int, dict[str, None]] = {}
        """The teams that have so many."""
        self.total = self.most = 0

    def add(self, team: str) -> None:
        count = self._move(team, 1)
        self.most = max(self.most, count)

    def drop(self, team: str) -> None:
        self._move(team, -1)
        if self.most and self.most not in self._with:
            self.most -= 1

    def _move(self, team: str, by: int) -> int:
        count = self.of.pop(team, 0)
        if count:
            same = self._with[count]
            del same[team]
            if not same:
                del self._with[count]
        self.total += by
        count += by
        if count:
            self.of[team] = count
            self._with.setdefault(count, {})[team] = None
        return count

    def largest(self) -> str:
        """A team of which nobody has more."""
        return next(iter(self._with[self.most]))

    def up_to(self, limit: int) -> int:
        """How many wait where no team counts with more than `limit`."""
        return sum(min(count, limit) * len(teams) for count, teams in self._with.items())


class Line:
    """Those of one priority that wait at one endpoint."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.back = 0
        """How many of them had their turn already."""
        self.shares = 0.0
        """How many that is if each counts at its endpoints in equal parts."""
        self._came_back: list[Entry] = []
        self._teams: dict[str, list[Entry]] = {}
        self._order: list[tuple[float, int, str]] = []
        """Teams by what each was given, in places: the one with least is first."""
        self._now = 0.0
        """What the team had been given that was served last. Who begins to wait begins there: nothing is saved up."""
        self._given: dict[str, float] = {}
        self._held = 0
        """Entries in all lists; those of who has gone included."""

    def add(self, waiter: Waiter) -> None:
        """It waits here; a team of which nobody waited begins where the one served last had begun."""
        self.tally.add(waiter.team)
        self.shares += 1 / len(waiter.names)
        entry = waiter.since, waiter.number, waiter
        self._held += 1
        if waiter.back:
            self.back += 1
            heappush(self._came_back, entry)
            return
        theirs = self._teams.get(waiter.team)
        if theirs is None:
            theirs = self._teams[waiter.team] = []
            heappush(self._order, (max(self._now, self._given.get(waiter.team, 0.0)), waiter.number, waiter.team))
        heappush(theirs, entry)

    def drop(self, waiter: Waiter) -> None:
        """It has gone, for whatever reason; `waiter.gone` is set."""
        self.tally.drop(waiter.team)
        self.shares -= 1 / len(waiter.names)
        self.back -= waiter.back
        if not self.tally.total:
            self._forget()
        elif self._held > SPARE + 2 * self.tally.total:
            self._sweep()

    def first(self) -> Waiter | None:
        """Who is next; None where nobody can be."""
        if (waiter := self._head(self._came_back)) is not None:
            return waiter
        while self._order:
            team = self._order[0][2]
            if (waiter := self._head(self._teams[team])) is not None:
                return waiter
            heappop(self._order)
            del self._teams[team]
        return None

    def served(self, waiter: Waiter) -> None:
        """`waiter`, who was `first`, gets a place: its team was given that much more."""
        if waiter.back:
            return
        begun, _, team = heappop(self._order)
        self._now = begun
        given = begun + 1 + waiter.size / BYTES_A_TURN
        self._given[team] = given
        heappush(self._order, (given, waiter.number, team))
        if len(self._given) > SPARE + 2 * len(self._teams):
            self._given = {team: given for team, given in self._given.items() if given > self._now}

    def _head(self, entries: list[Entry]) -> Waiter | None:
        while entries:
            waiter = entries[0][2]
            if not waiter.gone and not waiter.granted.done():  # done and not gone: cancelled in this moment
                return waiter
            heappop(entries)
            self._held -= 1
        return None

    def _forget(self) -> None:
        """Nobody waits any more: what teams were given counts no more."""
        for entries in (self._came_back, self._order, self._teams, self._given):
            entries.clear()
        self._held, self._now, self.shares = 0, 0.0, 0.0

    def _sweep(self) -> None:
        """Forget the entries of those that have gone."""
        for entries in (self._came_back, *self._teams.values()):
            entries[:] = [entry for entry in entries if not entry[2].gone]
            heapify(entries)
        self._held = len(self._came_back) + sum(map(len, self._teams.values()))


@dataclass(slots=True)
class Lines:
    """Those that wait at one endpoint."""

    of: tuple[Line, Line] = field(default_factory=lambda: (Line(), Line()))
    """Interactive, batch."""
    passed: int = 0
    """Places that interactive requests got since batch had one."""

    def first(self) -> Waiter | None:
        interactive, batch = (line.first() for line in self.of)
        if interactive is None or (batch is not None and self.passed >= BATCH_IN - 1):
            return batch
        return interactive

    def served(self, waiter: Waiter) -> None:
        """`waiter`, who was `first`, gets a place."""
        self.of[waiter.priority].served(waiter)
        self.passed = self.passed + 1 if waiter.priority == INTERACTIVE and self.of[BATCH].tally.total else 0

    def turns(self, team: str, priority: int, *, waits: bool = False) -> int:
        """How many places must become free until the team's next request has one; `waits`: until its last one has that
        waits already. Those that wait now are counted, each as one."""
        interactive, batch = self.of
        line = self.of[priority]
        own = line.tally.of.get(team, 0)
        turns = line.tally.up_to(own) if waits else line.tally.up_to(own + 1) + 1
        if priority == INTERACTIVE:
            return turns + min(batch.tally.total, turns // (BATCH_IN - 1))
        return turns + min(interactive.tally.total, (BATCH_IN - 1) * turns)

    def part(self, priority: int, names: int, *, waits: bool = False) -> float:
        """The part of those that wait here which will be served here, and not at another endpoint they wait for."""
        line = self.of[priority]
        if waits:
            return line.shares / line.tally.total
        return (line.shares + 1 / names) / (line.tally.total + 1)


class Queue:
    """Those that wait, at whichever endpoints. It holds no times but what is in them, and grants nothing itself."""

    def __init__(self) -> None:
        self._lines: dict[str, Lines] = {}
        self.tallies = Tally(), Tally()
        """Of all that wait, whether they stand in lines or not: interactive, batch."""
        self._newest: tuple[dict[str, OrderedDict[Waiter, None]], ...] = ({}, {})
        """By team, those that can be asked to make way, in the order in which they came."""

    def __len__(self) -> int:
        return self.tallies[INTERACTIVE].total + self.tallies[BATCH].total

    def enter(self, waiter: Waiter) -> None:
        """It begins to wait; `stand` puts it in line."""
        self.tallies[waiter.priority].add(waiter.team)
        if not waiter.back:
            self._newest[waiter.priority].setdefault(waiter.team, OrderedDict())[waiter] = None

    def stand(self, waiter: Waiter) -> None:
        """From now on it takes what becomes free."""
        waiter.ready = True
        for name in waiter.names:
            lines = self._lines.get(name)
            if lines is None:
                lines = self._lines[name] = Lines()
            lines.of[waiter.priority].add(waiter)

    def leave(self, waiter: Waiter) -> None:
        """It waits no more; a second call changes nothing."""
        if waiter.gone:
            return
        waiter.gone = True
        self.tallies[waiter.priority].drop(waiter.team)
        if not waiter.back:
            theirs = self._newest[waiter.priority][waiter.team]
            del theirs[waiter]
            if not theirs:
                del self._newest[waiter.priority][waiter.team]
        if waiter.ready:
            for name in waiter.names:
                lines = self._lines[name]
                lines.of[waiter.priority].drop(waiter)
                if not (lines.of[0].tally.total or lines.of[1].tally.total):
                    del self._lines[name]

    def first(self, endpoint: str) -> Waiter | None:
        """Who gets the next place at `endpoint`."""
        lines = self._lines.get(endpoint)
        return None if lines is None else lines.first()

    def served(self, waiter: Waiter, endpoint: str) -> None:
        """`waiter`, the first at `endpoint`, gets a place and waits no more."""
        self._lines[endpoint].served(waiter)
        self.leave(waiter)

    def at(self, endpoint: str) -> Lines | None:
        """Those that wait at one endpoint."""
        return self._lines.get(endpoint)

    def makes_way(self, team: str, priority: int, length: int) -> Waiter | None:
        """Who leaves a full queue of `length` so that one more of `team` may wait; None: nobody does.

        The newest of a team that has most, of the other priority where that has more than its part of the queue, else
        of the same priority where the team is more than one ahead.
        """
        part, batch = length // BATCH_IN, self.tallies[BATCH].total
        if priority == INTERACTIVE and batch > part:
            return self._last(BATCH)
        if priority == BATCH and batch < part and self.tallies[INTERACTIVE].total:
            return self._last(INTERACTIVE)
        return self._last(priority, self.tallies[priority].of.get(team, 0) + 1)

    def _last(self, priority: int, more: int = 0) -> Waiter | None:
        """The newest of a team that has most, and `more` than so many, of those teams that have one without a turn."""
        tally = self.tallies[priority]
        if tally.most <= more:
            return None
        if (last := self.last_of(tally.largest(), priority)) is not None:
            return last
        team = max(self._newest[priority], key=tally.of.__getitem__, default=None)
        return None if team is None or tally.of[team] <= more else self.last_of(team, priority)

    def last_of(self, team: str, priority: int) -> Waiter | None:
        """The one of a team that came last, of those that had no turn yet."""
        theirs = self._newest[priority].get(team)
        return next(reversed(theirs)) if theirs else None

    def newest(self) -> Iterator[Waiter]:
        """Of each team and priority the one that will have to wait longest."""
        for teams in self._newest:
            for theirs in list(teams.values()):
                yield next(reversed(theirs))
