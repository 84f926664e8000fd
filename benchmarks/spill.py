"""What one router made of one load: the figures of the overflow benchmark, out of rows and counts. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.samples import BEHIND_S, quantile

TARGET_S = 1.0
"""A first token that comes later is of little use to somebody who waits for it. 0.5 s of it may be waiting here."""
ALLOWED_S = 0.5
"""`router.allowed_wait_s` of the router that predicts."""
DEADLINE_S = 5
"""`router.queue_wait_s`: so long private requests wait at most."""
TOGETHER_S = 0.02
"""Two that start within this of each other started together: the ledger's clock and the loop are no finer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request, from who asked and from the ledger. Seconds after the step's start."""

    private: bool
    due: float
    status: int
    """0 where no answer came."""
    good: bool
    """Whether it was answered to the end."""
    place: str = ""
    first: float | None = None
    """From when it was due to its first token."""
    late: float = 0.0
    """How late it was sent."""
    opened: float | None = None
    queued: float | None = None
    """Seconds it waited for room; None where it did not have to."""
    started: float | None = None
    """When an endpoint was given it; None where none was."""
    cost: float = 0.0
    off: float | None = None
    """How much later than the router expected its first token came; None where it expected nothing."""

    @property
    def refused(self) -> bool:
        """By who had no room."""
        return self.status in (429, 503)


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted beside the rows of a step."""

    tokens_per_s: float
    """Output tokens of the local engine, by its own count."""
    engine_cpu: float
    """CPU seconds a second that its processes took."""
    seconds: float
    """That requests were sent."""
    provider_requests: int
    marked_bytes: int
    """Of requests that hold the mark of private ones, at the provider."""
    maximum: float = 0.0
    """Output tokens a second that the engine made alone before and after the loads of this router."""


def maximum(counted: Sequence[Counted]) -> float:
    """What the engine could do in the minutes of these, as a machine that others use moves its speed."""
    return sum(c.maximum * c.seconds for c in counted) / sum(c.seconds for c in counted)


def figures(rounds: Sequence[Sequence[Row]], counted: Sequence[Counted], maximum: float) -> dict[str, Any]:
    """The figures of one router at one load, over all rounds. `maximum`: the engine's own tokens a second."""
    seconds, rows = sum(c.seconds for c in counted), [row for rows in rounds for row in rows]
    public, private = [r for r in rows if not r.private], [r for r in rows if r.private]
    tokens = sum(c.tokens_per_s * c.seconds for c in counted) / seconds
    cost, late = sum(r.cost for r in rows), quantile([r.late for r in rows], 0.9)
    off = [abs(r.off) for r in rows if r.off is not None]
    return {
        "asked": len(rows), "asked_per_s": len(rows) / seconds,
        "local": _share(rows, lambda r: r.good and r.place == "local"),
        "hosted": _share(rows, _left), "hosted_of_public": _share(public, _left),
        "refused": sum(r.refused for r in rows), "failed": sum(not r.good and not r.refused for r in rows),
        "public": of_kind(public, seconds), "private": of_kind(private, seconds),
        "goodput_per_s": sum(map(in_time, rows)) / seconds,
        "tokens_per_s": tokens, "of_maximum": tokens / maximum if maximum else None,
        "engine_cpu": sum(c.engine_cpu * c.seconds for c in counted) / seconds,
        "cost_usd": cost, "cost_usd_per_1000": 1000 * cost / max(1, len(rows)),
        "provider_requests": sum(c.provider_requests for c in counted),
        "private_bytes_out": sum(c.marked_bytes for c in counted),
        "overtaken": sum(overtaken([row for row in one if row.private]) for one in rounds),
        "past_deadline": past_deadline(private),
        "expected_off_p50_s": quantile(off, 0.5), "expected_off_p95_s": quantile(off, 0.95),
        "late_p90_s": late, "behind": (late or 0.0) > BEHIND_S,
    }  # fmt: skip


def of_kind(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """The same of requests of one kind. A quantile is of all that were asked: None where so many were not answered."""
    firsts = [r.first if r.good and r.first is not None else math.inf for r in rows]
    found = {name: _finite(quantile(firsts, q)) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {
        "asked": len(rows), "answered": sum(r.good for r in rows), "refused": sum(r.refused for r in rows),
        "first_s": found, "within": _share(rows, in_time), "goodput_per_s": sum(map(in_time, rows)) / seconds,
        "queued_p95_s": quantile([r.queued for r in rows if r.queued is not None], 0.95),
    }  # fmt: skip


def in_time(row: Row) -> bool:
    """Whether it was answered, and its first token came within the target."""
    return row.good and row.first is not None and row.first <= TARGET_S


def overtaken(rows: Sequence[Row]) -> int:
    """Requests of one round that still waited when one that came later was given an endpoint."""
    known = sorted((r for r in rows if r.opened is not None), key=lambda r: r.opened or 0.0)
    count, earliest = 0, math.inf
    for row in reversed(known):  # `earliest`: when the first of those that came later started
        until = (row.opened or 0.0) + (row.queued or 0.0)
        count += earliest < until - TOGETHER_S
        if row.started is not None:
            earliest = min(earliest, row.started)
    return count


def past_deadline(rows: Sequence[Row]) -> int:
    """Requests that waited for longer than they may; a second more is the machine's."""
    return sum((r.queued or 0.0) > DEADLINE_S + 1 for r in rows)


def _left(row: Row) -> bool:
    return row.good and row.place == "hosted"


def _share(rows: Sequence[Row], meant: Callable[[Row], bool]) -> float | None:
    return sum(map(meant, rows)) / len(rows) if rows else None


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
