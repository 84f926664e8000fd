"""Who has room now: the places taken at each endpoint, and the requests that wait for one.

It knows endpoints by name and nothing of what is sent there. All of it runs in one event loop and never awaits between
looking and taking, so no lock is needed; every event that can make room hands it out at once, so none is lost. Who
comes next is `queue.py`'s to say.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from router.errors import DeadlinePassed, Hopeless, PushedOut, QueueFull
from router.upstream.drain import Drain
from router.upstream.queue import INTERACTIVE, Lines, Queue, Waiter

BUSY_S = 1.0
"""How long an endpoint counts as full that has said so itself: about the time until serving reads its load again."""
DOUBT = 1.5
"""A request is told at once that it waits in vain only where it would be late even if all went so much faster."""
LUCK = 3.0
"""Nor where only so many standard deviations more had to end in its time than do on average: of few, chance decides."""
LEAST_RETRY_S, MOST_RETRY_S = 1, 300
NOBODY = Lines()
"""Those that wait where nobody does."""


class Room:
    """Counts what is in flight and lets at most `length` requests wait."""

    def __init__(
        self, length: int, wait_s: float, busy_s: float = BUSY_S, wait_batch_s: float | None = None,
        clock: Callable[[], float] = time.monotonic, rests: Callable[[str], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        """`wait_s`: seconds that an interactive request waits at most, `wait_batch_s` one of batch. `rests`: whether an
        endpoint is better left alone now: whoever may wait for another one does."""
        self.wait_s, self._wait_batch_s = wait_s, wait_batch_s
        self._length, self._busy_s, self._clock, self._rests = length, busy_s, clock, rests
        self._limits: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        """Places in use, those included that were granted to a waiter which has not gone on yet."""
        self._total = 0
        self._tokens: dict[str, int] = {}
        """Prompt tokens of those requests."""
        self._told: dict[str, asyncio.TimerHandle] = {}
        self._refused: dict[str, int] = {}
        """Of those in flight, how many the endpoint has just refused: their end makes no room."""
        self._drains: dict[str, Drain] = {}
        self._queue, self._numbers = Queue(), count()

    def in_flight(self, endpoint: str) -> int:
        return self._taken.get(endpoint, 0)

    def outstanding(self, endpoint: str) -> int:
        """Prompt tokens of the requests that are there now."""
        return self._tokens.get(endpoint, 0)

    def total(self) -> int:
        return self._total

    def waiting(self) -> int:
        """How many wait in all."""
        return len(self._queue)

    def queued(self) -> dict[str, int]:
        """Who waits, by priority, and of how many teams."""
        interactive, batch = self._queue.tallies
        teams = len(interactive.of.keys() | batch.of.keys())
        return {"interactive": interactive.total, "batch": batch.total, "teams": teams}

    def longest_s(self, priority: int) -> float:
        """How long a request may wait."""
        return self.wait_s if priority == INTERACTIVE or self._wait_batch_s is None else self._wait_batch_s

    def drained(self, endpoint: str) -> float | None:
        """Requests that end in a second at `endpoint` while it is full, as lately measured; None is unknown."""
        drain = self._drains.get(endpoint)
        return None if drain is None else drain.rate(self._clock())

    def retry_after(self, names: Sequence[str], team: str = "", priority: int = INTERACTIVE) -> int:
        """Whole seconds until the team's next request would have a place at one of these endpoints.

        Where nothing is known of how fast requests end, by then all that wait now have gone.
        """
        expected = self._expected(names, team, priority)
        if expected is None:
            return max(LEAST_RETRY_S, math.ceil(self.longest_s(priority)))
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, math.ceil(round(expected, 3))))

    def is_told_full(self, endpoint: str) -> bool:
        return endpoint in self._told

    def is_full(self, endpoint: str) -> bool:
        """Whether another request would have to wait there; an endpoint without a known limit is full if it says so."""
        return endpoint in self._told or 0 < self._limits.get(endpoint, 0) <= self.in_flight(endpoint)

    def refresh(self, limits: Mapping[str, int]) -> None:
        """The endpoints that take requests now and how many each at once, 0 where unknown; nobody waits for another.

        Whoever waits in vain by now is told.
        """
        before, self._limits, now = self._limits, dict(limits), self._clock()
        for name in limits:
            if self._queue:
                self._hand_out(name)
        for name in list(self._drains):
            if name not in limits and name not in self._taken:
                del self._drains[name]
            elif 0 < before.get(name, 0) < limits.get(name, 0):
                self._measure_anew(name)
            else:
                self._empties(name)
        if self._queue and self._drains:
            self._drop_hopeless(now)

    def told_full(self, endpoint: str) -> None:
        """`endpoint` has refused a request that is still counted: full until another one ends there, or BUSY_S."""
        self._refused[endpoint] = self._refused.get(endpoint, 0) + 1
        self._believe(endpoint)

    def _believe(self, endpoint: str) -> None:
        """Count it as full for BUSY_S from now."""
        if (earlier := self._told.pop(endpoint, None)) is not None:
            earlier.cancel()
        self._told[endpoint] = asyncio.get_running_loop().call_later(self._busy_s, self._room_again, endpoint)
        self._fills(endpoint)

    def enter(self, endpoint: str, tokens: int = 0, *, granted: bool = False) -> None:
        """Count one request of so many prompt tokens; `leave` with the same, whatever happens. `granted`: by `turn`,
        which has counted it already."""
        if not granted:
            self._take(endpoint)
        if tokens:
            self._tokens[endpoint] = self._tokens.get(endpoint, 0) + tokens

    def leave(self, endpoint: str, tokens: int = 0, *, served: bool = True) -> None:
        """It has ended there: the place goes to whoever waits. `served`: what failed shows nothing of how fast requests
        end."""
        if tokens:
            left = self._tokens[endpoint] - tokens
            if left:
                self._tokens[endpoint] = left
            else:
                del self._tokens[endpoint]
        refused = self._refused.get(endpoint, 0)
        if refused:
            self._refused[endpoint] = refused - 1
        if self._drains and served and not refused and (drain := self._drains.get(endpoint)) is not None:
            drain.ended(self._clock())
        self._release(endpoint)
        if not refused and endpoint in self._told:
            self._room_again(endpoint)
            return
        if self._queue:
            self._hand_out(endpoint)
        if self._drains:
            self._empties(endpoint)

    async def turn(
        self, names: Sequence[str], deadline: float, *, team: str = "", priority: int = INTERACTIVE, size: int = 0,
        since: float | None = None, pause_s: float = 0.0,
    ) -> str:  # fmt: skip
        """Wait for a place at one of these endpoints, the first named preferred, and take it: go on as `granted`.

        Times are those of the clock. `size`: the prompt, by its upper bound in tokens. `since`: when a request that
        comes back first came; it keeps its rank and is not turned away. `pause_s`: how long it leaves what becomes free
        to others. Raises QueueFull, DeadlinePassed.
        """
        if pause_s <= 0 and (name := self._free(names)) is not None:
            return self._take(name)
        now, loop, back = self._clock(), asyncio.get_running_loop(), since is not None
        granted: asyncio.Future[str] = loop.create_future()
        waiter = Waiter(
            tuple(names), team, priority, size, now if since is None else since, deadline, next(self._numbers), back,
            granted,
        )  # fmt: skip
        if not back:
            self._admit(waiter, now)
        self._queue.enter(waiter)
        timers = [loop.call_later(max(0.0, deadline - now), self._too_late, waiter)]
        if pause_s > 0:
            timers.append(loop.call_later(pause_s, self._pause_over, waiter))
        else:
            self._queue.stand(waiter)
        try:
            return await granted
        except asyncio.CancelledError:
            # Granted and cancelled in the same moment: the place goes on to the next.
            if not granted.cancelled() and granted.exception() is None:
                endpoint = granted.result()
                self._release(endpoint)
                self._hand_out(endpoint)
            raise
        finally:
            for timer in timers:
                timer.cancel()
            self._queue.leave(waiter)

    def _admit(self, waiter: Waiter, now: float) -> None:
        """Raises Hopeless where no place can come in time, QueueFull where nobody makes way in a full queue."""
        names, team, priority = waiter.names, waiter.team, waiter.priority
        if self._hopeless(waiter, now, waits=False):
            raise self._in_vain(waiter, Hopeless)
        if len(self._queue) < self._length:
            return
        other = self._queue.makes_way(team, priority, self._length) if self._length else None
        if other is None:
            raise QueueFull(
                f"No model that may answer has room, and {self._length} requests wait already; try again later.",
                retry_after=self.retry_after(names, team, priority),
            )
        text = "No model that may answer has room, and others of whom fewer wait went before; try again later."
        self._end(other, PushedOut(text, retry_after=self.retry_after(other.names, other.team, other.priority)))

    def _hopeless(self, waiter: Waiter, now: float, *, waits: bool) -> bool:
        """Whether a place can come too late alone, by how fast requests end at each endpoint it waits for."""
        if not self._drains:
            return False
        found = self._soonest(waiter.names, waiter.team, waiter.priority, waits=waits, all_known=True)
        if found is None:
            return False
        turns, rate = found
        ends = rate * max(0.0, waiter.deadline - now)
        return turns > max(DOUBT * ends, ends + LUCK * math.sqrt(ends))

    def _expected(self, names: Sequence[str], team: str, priority: int) -> float | None:
        """Seconds until the team's next request has a place; None is unknown."""
        found = self._soonest(names, team, priority)
        return None if found is None else found[0] / found[1]

    def _soonest(
        self, names: Sequence[str], team: str, priority: int, *, waits: bool = False, all_known: bool = False
    ) -> tuple[float, float] | None:
        """How many places must become free until the team's next request has one, `waits`: its last that waits; and
        how many do in a second. Of the endpoint where that is soonest; None is unknown.

        `all_known`: nothing is said where it might be sooner at an endpoint of which too little is known.
        """
        found, now = None, self._clock()
        for name in names:
            drain = self._drains.get(name)
            rate = None if drain is None else drain.rate(now)
            if rate is None:
                if all_known:
                    return None
                continue
            lines = self._queue.at(name) or NOBODY
            turns = lines.turns(team, priority, waits=waits) * lines.part(priority, len(names), waits=waits)
            if found is None or turns / rate < found[0] / found[1]:
                found = turns, rate
        return found

    def _drop_hopeless(self, now: float) -> None:
        """Tell whoever cannot have a place before its deadline any more, of each team from its last on."""
        for waiter in self._queue.newest():
            last: Waiter | None = waiter
            while last is not None and not last.granted.done():
                if not self._hopeless(last, now, waits=True):
                    break
                self._end(last, self._in_vain(last, Hopeless))
                last = self._queue.last_of(last.team, last.priority)

    def _in_vain(self, waiter: Waiter, kind: type[DeadlinePassed]) -> DeadlinePassed:
        text = f"No model that may answer {{}} room within {self.longest_s(waiter.priority):g} s; try again later."
        after = self.retry_after(waiter.names, waiter.team, waiter.priority)
        return kind(text.format("will have" if kind is Hopeless else "had"), retry_after=after)

    def _hand_out(self, endpoint: str) -> None:
        """Give every place that is free at `endpoint` to whoever is next."""
        while endpoint in self._limits and not self.is_full(endpoint):
            waiter = self._queue.first(endpoint)
            # One that fails at once has a free place at once: all that wait would run there, one after the other.
            if waiter is None or endpoint not in self._well(waiter.names):
                return
            self._grant(waiter, endpoint, self._free(waiter.names) or endpoint)

    def _room_again(self, endpoint: str) -> None:
        """A sign of room at an endpoint that has said it is full.

        Where no limit is known the sign is for one request alone: all that wait at once would only be refused again.
        """
        if (told := self._told.pop(endpoint, None)) is not None:
            told.cancel()
        if self._limits.get(endpoint) == 0 and (first := self._queue.first(endpoint)) is not None:
            if endpoint in self._well(first.names):
                self._grant(first, endpoint, endpoint)
            self._believe(endpoint)
        self._hand_out(endpoint)
        self._empties(endpoint)

    def _grant(self, waiter: Waiter, line: str, endpoint: str) -> None:
        """Give the first of the line at one endpoint a place at another it prefers, or there."""
        self._queue.served(waiter, line)
        waiter.granted.set_result(self._take(endpoint))

    def _free(self, names: Sequence[str]) -> str | None:
        return next((name for name in self._well(names) if not self.is_full(name)), None)

    def _well(self, names: Sequence[str]) -> Sequence[str]:
        """Those that take requests; of them the ones that do not rest, unless all do."""
        known = [name for name in names if name in self._limits]
        return [name for name in known if not self._rests(name)] or known

    def _take(self, endpoint: str) -> str:
        taken = self._taken[endpoint] = self._taken.get(endpoint, 0) + 1
        self._total += 1
        if endpoint in self._told or 0 < self._limits.get(endpoint, 0) <= taken:
            self._fills(endpoint)
        return endpoint

    def _fills(self, endpoint: str) -> None:
        """It is full from now on: how fast requests end there is measured."""
        drain = self._drains.get(endpoint)
        if drain is None:
            drain = self._drains[endpoint] = Drain()
        drain.full(self._clock())

    def _measure_anew(self, endpoint: str) -> None:
        """It has more places than before, so requests end faster: as after a rest, when they come back one by one."""
        del self._drains[endpoint]
        if self.is_full(endpoint):
            self._fills(endpoint)

    def _empties(self, endpoint: str) -> None:
        """Stop measuring where another request has room."""
        if (drain := self._drains.get(endpoint)) is not None and not self.is_full(endpoint):
            drain.room(self._clock())

    def _release(self, endpoint: str) -> None:
        self._taken[endpoint] -= 1
        self._total -= 1
        if not self._taken[endpoint]:  # endpoints come and go
            del self._taken[endpoint]
            self._refused.pop(endpoint, None)

    def _pause_over(self, waiter: Waiter) -> None:
        if waiter.granted.done():
            return
        if (name := self._free(waiter.names)) is not None:
            self._queue.leave(waiter)
            waiter.granted.set_result(self._take(name))
        else:
            self._queue.stand(waiter)

    def _too_late(self, waiter: Waiter) -> None:
        if not waiter.granted.done():
            self._end(waiter, self._in_vain(waiter, DeadlinePassed))

    def _end(self, waiter: Waiter, error: QueueFull | DeadlinePassed) -> None:
        """It waits no more, and hears why."""
        self._queue.leave(waiter)
        if not waiter.granted.done():  # else it was leaving by itself in this moment
            waiter.granted.set_exception(error)
