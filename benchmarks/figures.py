"""The figures of the overhead benchmark: what each round read, and the medians over all of them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.closed import Done


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load. With `streams`, that many on each connection, one after the other."""

    name: str
    connections: int
    streams: int = 0
    pieces: int = 0
    """Chunks of one stream."""

    @property
    def unit(self) -> str:
        return "chunk" if self.streams else "request"


@dataclass(frozen=True, slots=True)
class Reading:
    """One round of one case at one target."""

    case: str
    target: str
    units: int
    """Requests, or chunks of streams."""
    cpu_s: Mapping[str, float]
    """CPU seconds by part."""
    done: Done

    def us(self, parts: Sequence[str] | None = None) -> float:
        """Microseconds of CPU a unit, of these parts or of all."""
        return sum(s for part, s in self.cpu_s.items() if parts is None or part in parts) / self.units * 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    """The medians of all rounds of a case at a target. CPU in microseconds a unit, times in milliseconds."""

    case: str
    unit: str
    target: str
    cpu_us: float | None
    lowest: float | None
    highest: float | None
    ratio: float | None
    """CPU as a multiple of nginx's in the same run."""
    ratio_smg: float | None
    """CPU as a multiple of smg's in the same run; None where it is not installed."""
    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    added_p50_ms: float | None
    """p50 above the one without anything in between; of streams: of the first token."""
    added_p99_ms: float | None
    errors: int


VIEWS: tuple[tuple[str, str, tuple[str, ...] | None], ...] = (
    ("direct", "direct", None),
    ("nginx", "nginx", None),
    ("router", "headgate", ("router",)),
    ("headgate, all processes", "headgate", None),
    ("router, searching", "headgate, searching", ("router",)),
    ("smg", "smg", None),
    ("litellm", "litellm", None),
)
"""A row of the table: its name, the target it reads, and the parts whose CPU it counts."""


def figures(cases: Sequence[Case], readings: Sequence[Reading]) -> list[Figure]:
    """The medians over the rounds. Pure. Rows without readings are left out."""
    found = []
    for case in cases:
        here = [r for r in readings if r.case == case.name]
        bare = [r for r in here if r.target == "direct"]
        nginx_us = _median([r.us() for r in here if r.target == "nginx"])
        smg_us = _median([r.us() for r in here if r.target == "smg"])
        for name, target, parts in VIEWS:
            if rows := [r for r in here if r.target == target]:
                found.append(_figure(case, name, rows, parts, bare, nginx_us, smg_us))
    return found


def _figure(
    case: Case, name: str, rows: Sequence[Reading], parts: tuple[str, ...] | None, bare: Sequence[Reading],
    nginx_us: float | None, smg_us: float | None,
) -> Figure:  # fmt: skip
    used = [r.us(parts) for r in rows] if rows[0].cpu_s else []
    times = [_times(case, r.done) for r in rows]
    without = [_times(case, r.done) for r in bare]
    p50, p99 = _median([t[0] for t in times]), _median([t[1] for t in times])
    bare50, bare99 = _median([t[0] for t in without]), _median([t[1] for t in without])
    middle = _median(used)
    return Figure(
        case=case.name, unit=case.unit, target=name, cpu_us=middle, lowest=min(used, default=None),
        highest=max(used, default=None), ratio=_over(middle, nginx_us), ratio_smg=_over(middle, smg_us),
        per_s=statistics.median(r.units / r.done.seconds for r in rows), p50_ms=p50, p99_ms=p99,
        added_p50_ms=_minus(p50, bare50), added_p99_ms=_minus(p99, bare99), errors=sum(r.done.errors for r in rows),
    )  # fmt: skip


def _times(case: Case, done: Done) -> tuple[float | None, float | None]:
    """p50 and p99 in milliseconds: of whole requests, and of the first token of streams."""
    found = (done.first_token_p50, done.first_token_p99) if case.streams else (done.p50, done.p99)
    return tuple(None if t is None else t * 1000 for t in found)  # type: ignore[return-value]


def _median(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def _over(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Time to the first token through a gateway, in milliseconds: medians of the rounds' p50 and p99."""

    target: str
    streams: int
    """At once."""
    p50_ms: float | None
    p99_ms: float | None
    added_p50_ms: float | None
    """Above the same quantile without anything in between."""
    added_p99_ms: float | None
    errors: int
    reached_p50_ms: float | None = None
    """Until the upstream had the request; None where it did not say."""
    back_p50_ms: float | None = None
    """From then on to the first token."""


def first_tokens(readings: Sequence[Reading], streams: Mapping[str, int]) -> list[FirstToken]:
    """One for each target, in the order of their readings. Pure. `streams`: how many at once each was given."""
    by_target: dict[str, list[Done]] = {}
    for reading in readings:
        by_target.setdefault(reading.target, []).append(reading.done)

    def both(rows: Sequence[Done]) -> tuple[float | None, float | None]:
        return _ms(_median([d.first_token_p50 for d in rows])), _ms(_median([d.first_token_p99 for d in rows]))

    bare50, bare99 = both(by_target.get("direct", []))
    found = []
    for target, rows in by_target.items():
        p50, p99 = both(rows)
        found.append(FirstToken(
            target, streams[target], p50, p99, _minus(p50, bare50), _minus(p99, bare99), sum(d.errors for d in rows),
            _ms(_median([d.reached_p50 for d in rows])), _ms(_median([d.back_p50 for d in rows])),
        ))  # fmt: skip
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
