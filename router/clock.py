"""The time that what ends is held against: approvals of models, and keys. It never goes back.

A clock that is set back would let an approval hold again that had ended. So whoever judges by the time knows the latest
moment that was ever seen, also by a process before it: the router from its ledger, the door from its own book. Where a
clock was ahead once, what ended by it stays ended until it is given a later end; that costs an answer, and no secret.
"""

from __future__ import annotations

import time
from collections.abc import Callable

BEHIND_S = 60.0
"""A clock that is so far behind the latest moment known was set back, and whoever starts with it says so."""


class Forward:
    """Unix seconds that go forward only: those of the clock, or of the latest moment known and what has passed since.

    For any thread. In a process that is frozen, or on a machine that sleeps, the clock alone goes on, and counts.
    """

    def __init__(
        self, seen: float = 0.0, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        """`seen`: the latest moment that a process before this one knew; 0 is none."""
        self._wall, self._steady = wall, steady
        self.behind_s = max(0.0, seen - wall())
        """How far the clock was behind at the start."""
        self._known = (seen, steady())
        """The latest moment, and when it was that by the clock that nobody sets. Two threads may both write it."""

    def now(self) -> float:
        """The time by which something has ended, or has not."""
        steady = self._steady()
        seen, since = self._known
        found = max(self._wall(), seen + (steady - since))
        self._known = (found, steady)
        return found

    def trouble(self) -> str:
        """That the clock was behind at the start, in words; "" where it was not."""
        if self.behind_s <= BEHIND_S:
            return ""
        return (
            f"the clock is {spoken(self.behind_s)} behind what was written down before; approvals and keys are held "
            "against the later time"
        )


def spoken(seconds: float) -> str:
    """A length of time for a person."""
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 60:.0f} minutes"
