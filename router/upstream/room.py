"""Who has room now: the places taken at each endpoint, and the requests that wait for one.

It knows endpoints by name and nothing of what is sent there. All of it runs in one event loop and never awaits between
looking and taking, so no lock is needed; every event that can make room hands it out at once, so none is lost.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from router.errors import DeadlinePassed, QueueFull

BUSY_S = 1.0
"""How long an endpoint counts as full that has said so itself: about the time until serving reads its load again."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One request in the queue."""

    names: tuple[str, ...]
    since: float
    granted: asyncio.Future[str]
    ready: bool
    """Whether its pause is over."""


class Room:
    """Counts what is in flight and lets at most `length` requests wait, `wait_s` seconds each."""

    def __init__(self, length: int, wait_s: float, busy_s: float = BUSY_S) -> None:
        self.wait_s = wait_s
        self._length, self._busy_s = length, busy_s
        self._limits: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        """Places in use, those included that were granted to a waiter which has not gone on yet."""
        self._total = 0
        self._tokens: dict[str, int] = {}
        """Prompt tokens of those requests."""
        self._told: dict[str, asyncio.TimerHandle] = {}
        self._refused: dict[str, int] = {}
        """Of those in flight, how many the endpoint has just refused: their end makes no room."""
        self._queue: list[Waiter] = []
        """Whoever came first is first."""

    def in_flight(self, endpoint: str) -> int:
        return self._taken.get(endpoint, 0)

    def outstanding(self, endpoint: str) -> int:
        """Prompt tokens of the requests that are there now."""
        return self._tokens.get(endpoint, 0)

    def total(self) -> int:
        return self._total

    def waiting(self) -> int:
        return len(self._queue)

    def is_told_full(self, endpoint: str) -> bool:
        return endpoint in self._told

    def is_full(self, endpoint: str) -> bool:
        """Whether another request would have to wait there; an endpoint without a known limit is full if it says so."""
        return endpoint in self._told or 0 < self._limits.get(endpoint, 0) <= self.in_flight(endpoint)

    def refresh(self, limits: Mapping[str, int]) -> None:
        """The endpoints that take requests now and how many each at once, 0 where unknown; nobody waits for another."""
        self._limits = dict(limits)
        self._hand_out()

    def told_full(self, endpoint: str) -> None:
        """`endpoint` has refused a request that is still counted: full until another one ends there, or BUSY_S."""
        self._refused[endpoint] = self._refused.get(endpoint, 0) + 1
        self._believe(endpoint)

    def _believe(self, endpoint: str) -> None:
        """Count it as full for BUSY_S from now."""
        if (earlier := self._told.pop(endpoint, None)) is not None:
            earlier.cancel()
        self._told[endpoint] = asyncio.get_running_loop().call_later(self._busy_s, self._room_again, endpoint)

    @contextmanager
    def busy(self, endpoint: str, *, granted: bool = False) -> Iterator[None]:
        """Count one request at `endpoint` while inside. `granted`: by `turn`, which has counted it already."""
        self.enter(endpoint, granted=granted)
        try:
            yield
        finally:
            self.leave(endpoint)

    def enter(self, endpoint: str, tokens: int = 0, *, granted: bool = False) -> None:
        """Count one request of so many prompt tokens; `leave` with the same, whatever happens."""
        if not granted:
            self._take(endpoint)
        if tokens:
            self._tokens[endpoint] = self._tokens.get(endpoint, 0) + tokens

    def leave(self, endpoint: str, tokens: int = 0) -> None:
        """It has ended there: the place goes to whoever waits."""
        if tokens:
            left = self._tokens[endpoint] - tokens
            if left:
                self._tokens[endpoint] = left
            else:
                del self._tokens[endpoint]
        refused = self._refused.get(endpoint, 0)
        if refused:
            self._refused[endpoint] = refused - 1
        self._release(endpoint)
        if not refused and endpoint in self._told:
            self._room_again(endpoint)
        if self._queue:
            self._hand_out()

    async def turn(
        self, names: Sequence[str], deadline: float, *, since: float | None = None, pause_s: float = 0.0
    ) -> str:
        """Wait for a place at one of these endpoints, the first named preferred, and take it: go on in `busy`.

        Times are those of `time.monotonic`. `since`: when a request that comes back first came; it keeps its rank and
        is not turned away. `pause_s`: how long it leaves what becomes free to others. Raises QueueFull, DeadlinePassed.
        """
        if pause_s <= 0 and (name := self._free(names)) is not None:
            return self._take(name)
        if since is None and len(self._queue) >= self._length:
            raise QueueFull(
                f"No model that may answer has room, and {self._length} requests wait already; try again later.",
                retry_after=self._retry_after(),
            )
        now, loop = time.monotonic(), asyncio.get_running_loop()
        waiter = Waiter(tuple(names), now if since is None else since, loop.create_future(), ready=pause_s <= 0)
        bisect.insort(self._queue, waiter, key=lambda one: one.since)
        timers = [loop.call_later(max(0.0, deadline - now), self._too_late, waiter)]
        if pause_s > 0:
            timers.append(loop.call_later(pause_s, self._pause_over, waiter))
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            # Granted and cancelled in the same moment: the place goes on to the next.
            if not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self._release(waiter.granted.result())
                self._hand_out()
            raise
        finally:
            for timer in timers:
                timer.cancel()
            if waiter in self._queue:
                self._queue.remove(waiter)

    def _hand_out(self) -> None:
        """Give every place that is free to the first waiter that can use it."""
        for waiter in list(self._queue):
            if not waiter.ready or waiter.granted.done():  # done and still here: cancelled, and not gone yet
                continue
            if (name := self._free(waiter.names)) is not None:
                self._grant(waiter, name)

    def _room_again(self, endpoint: str) -> None:
        """A sign of room at an endpoint that has said it is full.

        Where no limit is known the sign is for one request alone: all that wait at once would only be refused again.
        """
        if (told := self._told.pop(endpoint, None)) is not None:
            told.cancel()
        if endpoint in self._limits and self._limits[endpoint] == 0:
            first = next((w for w in self._queue if w.ready and not w.granted.done() and endpoint in w.names), None)
            if first is not None:
                self._grant(first, endpoint)
                self._believe(endpoint)
        self._hand_out()

    def _grant(self, waiter: Waiter, endpoint: str) -> None:
        self._queue.remove(waiter)
        waiter.granted.set_result(self._take(endpoint))

    def _free(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self._limits and not self.is_full(name)), None)

    def _take(self, endpoint: str) -> str:
        self._taken[endpoint] = self._taken.get(endpoint, 0) + 1
        self._total += 1
        return endpoint

    def _release(self, endpoint: str) -> None:
        self._taken[endpoint] -= 1
        self._total -= 1
        if not self._taken[endpoint]:  # endpoints come and go
            del self._taken[endpoint]
            self._refused.pop(endpoint, None)

    def _pause_over(self, waiter: Waiter) -> None:
        waiter.ready = True
        self._hand_out()

    def _too_late(self, waiter: Waiter) -> None:
        if waiter.granted.done():
            return
        self._queue.remove(waiter)
        text = f"No model that may answer had room within {self.wait_s:g} s; try again later."
        waiter.granted.set_exception(DeadlinePassed(text, retry_after=self._retry_after()))

    def _retry_after(self) -> int:
        """Whole seconds: by then all that wait now have gone."""
        return max(1, math.ceil(self.wait_s))
