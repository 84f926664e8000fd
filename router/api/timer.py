"""A timer that is moved often and set seldom: a connection has many moments to watch for, and hardly any comes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

NEVER = math.inf


class Timer:
    """Calls `due` at the time it was given or a little later; `due` says when it is to be called next.

    A moment that moves away costs nothing: the timer comes too early, is told the new moment and waits on. So `by`
    needs to be called only where the moment may be nearer than the one before. Times are those of the loop's clock.
    """

    __slots__ = ("_at", "_due", "_handle", "_loop", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[float], float]) -> None:
        self._loop, self._due = loop, due
        self._at = NEVER
        self._handle: asyncio.TimerHandle | None = None
        self.now = loop.time

    def by(self, when: float) -> None:
        """Call `due` at `when` at the latest."""
        if when < self._at:
            if self._handle is not None:
                self._handle.cancel()
            self._at, self._handle = when, self._loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._at, self._handle = NEVER, None
        self.by(self._due(self._loop.time()))

    def cancel(self) -> None:
        """Never call again; and let go of whom it would have called, which is freed at once then."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._at, self._due = -math.inf, _never


def _never(now: float) -> float:
    return NEVER
