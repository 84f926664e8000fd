"""What the samples of a soak say: whether memory, descriptors, threads or tasks grow. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.intervals import Interval, slope

GROWS_MB_PER_H = 10.0
"""Memory may grow by this much an hour and be no leak: 14 bytes a request, or a cache that is filled once more."""
NEAR = 0.15
"""Counts of the last third may be this share above those of the first third after warming up, or by a few: load is
drawn at random."""
FEW = 12
LEFT_OPEN = 8
"""Descriptors, threads and tasks that may be there after the load and were not before it: what is made on first use."""

NOTHING = "nothing grows beyond its bound, and every request is accounted for"
"""What is said where there is no leak."""


@dataclass(frozen=True, slots=True)
class Written:
    """What the ledger's file holds of requests."""

    opened: int
    closed: int
    refused: int
    """Ended before they were opened."""
    never_closed: int
    """Opened and not closed."""
    not_once: int
    """Closed more than once, or without having been opened."""


@dataclass(frozen=True, slots=True)
class Callers:
    """What the callers saw of their requests."""

    sent: int
    answered: int
    left: int
    """Whose caller went away."""
    failed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The router at one time. None is what could not be read."""

    at_s: float
    resident_mb: float
    descriptors: int
    sockets: int
    threads: int
    open: int | None
    """Requests it says are open."""
    tasks: int | None
    """Tasks of its event loop, by its own word."""


COUNTS: tuple[tuple[str, Callable[[Sample], int | None]], ...] = (
    ("descriptors", lambda s: s.descriptors),
    ("sockets", lambda s: s.sockets),
    ("threads", lambda s: s.threads),
    ("open requests", lambda s: s.open),
    ("tasks", lambda s: s.tasks),
)


def memory_slope(samples: Sequence[Sample], warm_s: float) -> Interval:
    """MB an hour after warming up. Where there are too few samples for that, all of them count."""
    counted = [s for s in samples if s.at_s >= warm_s]
    counted = counted if len(counted) > 3 else list(samples)
    return slope([s.at_s / 3600 for s in counted], [s.resident_mb for s in counted])


def leaks(
    rest: Sample, loaded: Sequence[Sample], after: Sample, memory: Interval, warm_s: float
) -> list[str]:  # fmt: skip
    """A sentence for everything that grows or stays open; empty where nothing does.

    `rest` before the load, `loaded` during it, `after` when all callers have gone. Memory is flat where its slope is
    surely below the bound, and not where that is only likely: a slope over minutes is an extrapolation.
    """
    found = []
    said = f"{memory.value:.0f} MB an hour ({memory.low:.0f} to {memory.high:.0f})"
    if memory.low > GROWS_MB_PER_H:
        found.append(f"memory grows by {said}")
    elif memory.high > GROWS_MB_PER_H:
        found.append(
            f"whether memory grows is not known: {said}; run it for longer, on a machine that does nothing else"
        )
    counted = [s for s in loaded if s.at_s >= warm_s]
    third = len(counted) // 3
    for name, read in COUNTS:
        if third and (early := _middle(counted[:third], read)) is not None:
            late = _middle(counted[-third:], read)
            if late is not None and late > early * (1 + NEAR) + FEW:
                found.append(f"{name} grow: {early:.0f} early, {late:.0f} late")
        before, left = read(rest), read(after)
        if before is not None and left is not None and left > before + (0 if name == "open requests" else LEFT_OPEN):
            found.append(f"{name} stay open: {before} before, {left} after")
    return found


def unaccounted(callers: Callers, written: Written) -> list[str]:
    """A sentence for everything that callers and ledger do not agree on. Whoever left may have gone unseen."""
    found = []
    if written.never_closed:
        found.append(f"{written.never_closed} requests were opened and never closed")
    if written.not_once:
        found.append(f"{written.not_once} requests were closed more than once, or never opened")
    known = written.opened + written.refused
    if not callers.sent - callers.left <= known <= callers.sent:
        found.append(f"{callers.sent} requests were sent, {callers.left} callers left, and the ledger knows {known}")
    if callers.failed:
        found.append(f"{callers.failed} requests failed")
    return found


def _middle(samples: Sequence[Sample], read: Callable[[Sample], int | None]) -> float | None:
    values = [value for s in samples if (value := read(s)) is not None]
    return statistics.median(values) if values else None
