"""How sure a number is: a ratio of alternating runs, and a slope over time, each with its 95 % interval. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
        2.042)  # fmt: skip
"""Student's t at 97.5 % for 1 to 30 degrees of freedom; beyond them the normal value is near enough."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float


def student(freedom: int) -> float:
    """Student's t at 97.5 % for so many degrees of freedom."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.5 / freedom


def mean_ratio(pairs: Sequence[tuple[float, float]]) -> Interval:
    """The geometric mean of first ÷ second over pairs measured one after the other, by the t interval of their logs.

    Needs two pairs at least, all above 0. Pairs and not sums: what slows the machine for a minute slows both of a pair.
    """
    logs = [math.log(one / other) for one, other in pairs]
    middle = statistics.fmean(logs)
    half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def slope(times: Sequence[float], values: Sequence[float]) -> Interval:
    """The slope of the line through `values` over `times`, by least squares; needs points at three times at least.

    Neighbouring samples of a process resemble each other, so that the plain interval would be too narrow: the degrees
    of freedom are those of as many independent samples as the residuals' own correlation leaves (AR(1)).
    """
    n = len(times)
    centre, level = statistics.fmean(times), statistics.fmean(values)
    spread = sum((t - centre) ** 2 for t in times)
    rise = sum((t - centre) * (v - level) for t, v in zip(times, values, strict=True)) / spread
    rest = [v - level - rise * (t - centre) for t, v in zip(times, values, strict=True)]
    squares = sum(r * r for r in rest)
    alike = sum(a * b for a, b in itertools.pairwise(rest)) / squares if squares else 0.0
    alike = min(max(alike, 0.0), 0.95)
    independent = max(3.0, n * (1 - alike) / (1 + alike))
    error = math.sqrt(squares / max(1.0, n - 2) / spread) * math.sqrt(n / independent)
    half = student(max(1, round(independent) - 2)) * error
    return Interval(rise, rise - half, rise + half)
