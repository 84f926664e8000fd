"""What is counted, in plain numbers, and the text that Prometheus reads of it.

Requests are counted as they come and go; they become metrics when somebody asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metric(NamedTuple):
    """One metric as Prometheus is told of it."""

    name: str
    text: str
    kind: str
    labels: tuple[str, ...]
    samples: list[tuple[str, tuple[str, ...], float]]
    """Of each sample what its name has beyond the metric's, the values of its labels, and its own value. One value more
    than there are labels is that of `le`, a histogram's bound."""

    def lines(self) -> Iterator[str]:
        """In Prometheus' text form (version 0.0.4)."""
        yield f"# HELP {self.name} {self.text.translate(IN_HELP)}"
        yield f"# TYPE {self.name} {self.kind}"
        for ending, values, value in self.samples:
            pairs = sorted(zip((*self.labels, "le"), values, strict=False))
            inside = ",".join(f'{label}="{said.translate(IN_LABEL)}"' for label, said in pairs)
            yield f"{self.name}{ending}{f'{{{inside}}}' if inside else ''} {float(value)}"


IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
IN_LABEL = IN_HELP | str.maketrans({'"': r"\""})
"""What stands for characters that would end a line or a label's value."""


class Count(dict[tuple[str, ...], float]):
    """A counter: a number by the values of its labels."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self._text, self._labels = name, text, labels
        self._began: dict[tuple[str, ...], float] = {}

    def __missing__(self, labels: tuple[str, ...]) -> float:
        self._began[labels] = time.time()
        return 0.0

    def metrics(self) -> Iterator[Metric]:
        """Itself, and when each of its numbers began to be counted."""
        yield Metric(self.name, self._text, "counter", self._labels, [("", *item) for item in self.items()])
        yield from _created(self.name.removesuffix("_total"), self._text, self._labels, self._began)


class Times(dict[tuple[str, ...], list[float]]):
    """A histogram: by the values of its labels, how many were within each of its bounds, how many beyond, the sum."""

    def __init__(self, name: str, text: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._began: dict[tuple[str, ...], float] = {}
        if not labels:
            self[()]  # without labels it is there from the start

    def __missing__(self, labels: tuple[str, ...]) -> list[float]:
        self._began[labels] = time.time()
        counts = self[labels] = [0.0] * (len(self._bounds) + 2)
        return counts

    def observe(self, labels: tuple[str, ...], value: float) -> None:
        counts = self[labels]
        counts[bisect_left(self._bounds, value)] += 1
        counts[-1] += value

    def metrics(self) -> Iterator[Metric]:
        """As Prometheus wants it: each bound with all that was within it, and when it began to be counted."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        found = Metric(self.name, self._text, "histogram", self._labels, [])
        for labels, counts in self.items():
            within = list(accumulate(counts[:-1]))
            found.samples.extend(("_bucket", (*labels, b), n) for b, n in zip(bounds, within, strict=True))
            found.samples.extend((("_count", labels, within[-1]), ("_sum", labels, counts[-1])))
        yield found
        yield from _created(self.name, self._text, self._labels, self._began)


def _created(
    name: str, text: str, labels: tuple[str, ...], began: dict[tuple[str, ...], float]
) -> Iterator[Metric]:  # fmt: skip
    """When each number of a metric began to be counted: one that begins anew belongs to another process."""
    if began:
        yield Metric(f"{name}_created", text, "gauge", labels, [("", *item) for item in began.items()])
