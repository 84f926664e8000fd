"""A day of made-up traffic: how much is asked at which hour, of what sizes and kinds. Pure, the same for a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.mix import Planned

HOURS = 24
PEAK_AT = 15
"""The hour of the day in which most is asked."""


@dataclass(frozen=True, slots=True)
class Day:
    """The shape of a day and what is asked in it."""

    peak: float
    """Requests a second in the middle of the busiest hour."""
    swing: float = 0.6
    """The quietest hour has (1 - swing) ÷ (1 + swing) of the busiest: a cosine, with its top at 15:00."""
    private: float = 0.4
    batch: float = 0.15
    cheap: float = 0.2
    """Of what is not private: so much asks for the lane cheap, the rest for auto."""
    prompt: float = 1500.0
    """Tokens on average; sizes are log-normal."""
    output: float = 300.0
    prompt_sigma: float = 1.0
    output_sigma: float = 0.8
    most: tuple[int, int] = (32000, 4000)
    """Tokens of prompt and answer at most."""

    def rate(self, hour: float) -> float:
        """Requests a second at that hour."""
        now = 1 + self.swing * math.cos(2 * math.pi * (hour - PEAK_AT) / HOURS)
        return self.peak * now / (1 + self.swing)

    def requests(self) -> float:
        """Of the whole day, on average."""
        return sum(self.rate(hour + 0.5) for hour in range(HOURS)) * 3600


def traffic(day: Day, hour: int, share: float, seconds: float, seed: int) -> Iterator[Planned]:
    """So many seconds out of the middle of an hour, of that share of its requests: a Poisson process, thinned."""
    source = random.Random(f"day:{seed}:{hour}")
    rate, at = day.rate(hour + 0.5) * share, 0.0
    while (at := at + source.expovariate(rate)) < seconds:
        private, batch = source.random() < day.private, source.random() < day.batch
        lane = "cheap" if source.random() < day.cheap and not private else "auto"
        yield Planned(
            at, private, _size(source, day.output, day.output_sigma, day.most[1]),
            _size(source, day.prompt, day.prompt_sigma, day.most[0]), lane, batch,
        )  # fmt: skip


def _size(source: random.Random, mean: float, sigma: float, most: int) -> int:
    """Log-normal with that mean, before it is cut off."""
    return max(1, min(most, round(source.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma))))
