"""Pure: averages and lines through what was measured lately, as sums in which what is older counts less.

Older by time and by number. The time is handed in.
"""

from __future__ import annotations

import math

HALF_S = 600.0
"""After so many seconds a measurement counts half: heat, clocks and neighbours on a GPU change in minutes."""
HALF_COUNT = 32
"""And after so many newer ones: enough to even out noise, and at full load what changed is followed in seconds."""
OLDER = 0.5 ** (1 / HALF_COUNT)
SHORT_S = 1.0
"""Between measurements that come sooner the number alone counts: the power takes longer than all else."""
FEWEST = 4.0
"""Measurements, as they count by now, before a line is believed."""


class Mean:
    """An average of recent measurements, as sums that fade."""

    __slots__ = ("_at", "_w", "_y")

    def __init__(self) -> None:
        self._at = self._w = self._y = 0.0

    def add(self, value: float, weight: float, now: float) -> None:
        keep = OLDER if now - self._at < SHORT_S else OLDER * 0.5 ** ((now - self._at) / HALF_S)
        self._at, self._w, self._y = now, self._w * keep + weight, self._y * keep + weight * value

    def value(self) -> float | None:
        return self._y / self._w if self._w > 0 else None


class Line:
    """A straight line through recent measurements, as sums that fade. Nothing is kept of any single one."""

    __slots__ = ("_at", "_n", "_w", "_x", "_xx", "_xy", "_y", "_yy", "least")

    def __init__(self) -> None:
        self._at = self._n = self._w = self._x = self._y = self._xx = self._xy = self._yy = 0.0
        self.least = math.inf
        """The lowest that was measured: at 0 the line is no higher, though that be far from all it was drawn by."""

    def add(self, x: float, y: float, weight: float, now: float) -> None:
        """Take one more measurement."""
        keep = OLDER if now - self._at < SHORT_S else OLDER * 0.5 ** ((now - self._at) / HALF_S)
        self._at, self.least = now, min(self.least, y)
        self._n = self._n * keep + 1
        self._w = self._w * keep + weight
        self._x = self._x * keep + weight * x
        self._y = self._y * keep + weight * y
        self._xx = self._xx * keep + weight * x * x
        self._xy = self._xy * keep + weight * x * y
        self._yy = self._yy * keep + weight * y * y

    def means(self) -> tuple[float, float] | None:
        """The middle of what was measured; None where that is too little."""
        return (self._x / self._w, self._y / self._w) if self._n >= 1 and self._w > 0 else None

    def fit(self) -> tuple[float, float] | None:
        """Height at 0 and slope, neither below 0; None while the slope may be nothing but noise."""
        if self._n < FEWEST or self._w <= 0:
            return None
        x, y = self._x / self._w, self._y / self._w
        xx, xy = self._xx / self._w - x * x, self._xy / self._w - x * y
        if xx <= 1e-9 * x * x or xy <= 1e-9 * x * y:
            return None
        slope = xy / xx
        left = max(0.0, self._yy / self._w - y * y - slope * xy)
        if slope * slope * xx * self._n < 4 * left:  # less than two standard errors
            return None
        base = min(max(0.0, y - slope * x), self.least)
        return base, (y - base) / x
