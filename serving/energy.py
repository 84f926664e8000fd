"""Joules a GPU has used since it was first read, by its own count, or by its power where it has none. Pure."""

from __future__ import annotations

from typing import NamedTuple

LONGEST_GAP_S = 30.0
"""Power is not carried over a longer time without a reading: nobody knows what it was meanwhile."""
MOST_W = 20_000.0
"""No board draws more, so a count that says so has jumped."""


class Meter(NamedTuple):
    """One reading, and what has come together so far."""

    at: float
    """Monotonic seconds."""
    count_mj: int | None = None
    """The GPU's own count since its driver was loaded, in mJ."""
    power_w: float | None = None
    joules: float | None = None
    """None until there was a first reading."""

    def after(self, now: Meter) -> Meter:
        """This meter after one more reading. What that one could not read, the next count makes up for."""
        if now.at <= self.at or (now.count_mj is None and now.power_w is None):
            return self
        if self.joules is None:
            return now
        used = self._counted(now)
        # A count that tells nothing is filled in by power, and the next count begins from this one.
        return now._replace(joules=self.joules + (self._integrated(now) if used is None else used))

    def _counted(self, now: Meter) -> float | None:
        """Joules by the GPU's own count; None where it does not tell."""
        if now.count_mj is None or self.count_mj is None:
            return None
        # A smaller count is a driver that was loaded anew: all it has counted was used since.
        used = (now.count_mj - (self.count_mj if now.count_mj >= self.count_mj else 0)) / 1000
        return used if used <= MOST_W * (now.at - self.at + 1) else None

    def _integrated(self, now: Meter) -> float:
        passed = now.at - self.at
        if now.power_w is None or passed > LONGEST_GAP_S:
            return 0.0
        return (now.power_w + (now.power_w if self.power_w is None else self.power_w)) / 2 * passed


def first(at: float, count_mj: int | None, power_w: float | None) -> Meter:
    """A meter as it begins: at nothing, or at unknown where nothing can be read."""
    return Meter(at, count_mj, power_w, None if count_mj is None and power_w is None else 0.0)
