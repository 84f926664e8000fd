"""The load of the overflow benchmark and of its simulation: who asks when for how much. Pure, the same for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import arrivals

LOADS = (0.5, 1.0, 2.0, 4.0)
"""Multiples of the engine's capacity."""
PRIVATE = 0.4
"""The share of requests that may not leave: alone 0.8 of the capacity at twice it, and above it at four times."""
OUTPUTS = (40, 80, 120)
"""Tokens of an answer, each as often as the others."""
WORDS = 40
"""Of a prompt."""
MEAN_OUTPUT = sum(OUTPUTS) / len(OUTPUTS)


@dataclass(frozen=True, slots=True)
class Planned:
    """One request that is to be sent."""

    at: float
    """Seconds after the start."""
    private: bool
    output: int
    prompt: int = 0
    """Tokens of its prompt; 0 where it is written and not simulated."""
    lane: str = "auto"
    batch: bool = False
    """Whether it has time."""


def plan(
    rate: float, seconds: float, seed: int, private: float = PRIVATE, outputs: Sequence[int] = OUTPUTS
) -> list[Planned]:
    """A Poisson process of so many requests a second, each of a kind and a length drawn by chance."""
    source = random.Random(f"mix:{seed}")
    return [Planned(at, source.random() < private, source.choice(outputs)) for at in arrivals(rate, seconds, seed)]
