"""Pure: how fast requests end at an endpoint while more wait for it, or would have to."""

from __future__ import annotations

KEEP = 0.97
"""What counts of all before when another request ends: about the last thirty decide."""
ENOUGH = 4.0
"""Requests that must have ended, so counted, before anything is said."""
OLD_S = 60.0
"""How long a rate is believed in while nothing is measured: who comes then may ask for something else."""


class Drain:
    """The rate at which requests end at one endpoint, over the time in which it was full. Times are monotonic."""

    __slots__ = ("_ends", "_full_since", "_last", "_seconds")

    def __init__(self) -> None:
        self._ends = self._seconds = self._last = 0.0
        self._full_since: float | None = None

    def full(self, now: float) -> None:
        """It is full from now on, if it was not before. What was measured too long ago is forgotten."""
        if self._full_since is not None:
            return
        if now - self._last > OLD_S:
            self._ends = self._seconds = 0.0
        self._full_since = now

    def ended(self, now: float) -> None:
        """A request has ended; it counts where the endpoint was full."""
        if self._full_since is None:
            return
        self._ends = self._ends * KEEP + 1
        self._seconds = self._seconds * KEEP + (now - self._full_since)
        self._full_since = self._last = now

    def room(self, now: float) -> None:
        """It is not full any more."""
        if self._full_since is not None:
            self._seconds += now - self._full_since
            self._full_since = None

    def rate(self, now: float) -> float | None:
        """Requests that end in a second; None where too little is known. One that stands still gets slower."""
        if self._ends < ENOUGH:
            return None
        since = self._full_since
        if since is None and now - self._last > OLD_S:
            return None
        seconds = self._seconds + (0.0 if since is None else now - since)
        return self._ends / seconds if seconds > 0 else None
