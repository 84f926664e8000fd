"""Pure: how many requests an engine works on at once, where it was seen to let others wait, and how fast they end then.

An attached engine may take more requests than it works on: the rest wait inside it, where only its readings show them.
Times are monotonic and handed in.
"""

from __future__ import annotations

import math

from router.upstream.drain import Drain

READINGS, ENDS = 4, 4
"""In so many readings in a row it must have worked on as many, though so many ended meanwhile and others waited. Who
waits may wait for the next step, or for a long prompt; but then nobody takes the place of one that ends."""
ANOTHER_S = 0.1
"""Readings of moments that are closer than this are the same one, heard again."""


class Batch:
    """Those that one engine works on at the same time."""

    __slots__ = ("_alike", "_at", "_drain", "_ends", "_running", "size")

    def __init__(self) -> None:
        self.size: int | None = None
        """How many; None while it was never seen to let others wait."""
        self._running = self._alike = self._ends = 0
        """How many it worked on while others waited, in how many readings by now, and how many ended meanwhile."""
        self._at = -math.inf
        self._drain = Drain()

    def read(self, running: int, waiting: int, at: float) -> None:
        """The engine said at `at` how many it works on, and how many it lets wait. What it works on now it can."""
        if at - self._at < ANOTHER_S:
            return
        self._at = at
        if not waiting or running != self._running:
            self._running, self._alike, self._ends = running, 0, 0
        self._alike += waiting > 0
        steady = running > 0 and self._alike >= READINGS and self._ends >= ENDS
        if steady or (self.size is not None and running > self.size):
            self.size = running

    def ended(self, now: float) -> None:
        """One of ours has ended."""
        self._ends += 1
        if self.size is not None:
            self._drain.ended(now)

    def holds(self, there: int, now: float) -> None:
        """So many are there now, others' included."""
        if self.size is not None and there >= self.size:
            self._drain.full(now)
        else:
            self._drain.room(now)

    def crowded(self, there: int) -> bool:
        """Whether some of so many wait for others to end."""
        return self.size is not None and there > self.size

    def drained(self, now: float) -> float | None:
        """Requests of ours that end in a second while it has no place; None is unknown."""
        return None if self.size is None else self._drain.rate(now)
