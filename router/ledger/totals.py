"""The metrics of several workers as one page. Pure: pages in Prometheus' text form in, one such page out.

Counters and histograms are summed, and never go down: what a worker had counted when it ended still counts. Readings
of what all of them see (engines, GPUs) are the first worker's; where each has one of its own, JOINED says what those of
all that answer make together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.ledger.metrics import LIVE

JOINED: dict[str, Callable[[float, float], float]] = {
    "headgate_requests_open": operator.add,
    "headgate_in_flight": operator.add,
    "headgate_endpoint_limit": operator.add,
    "headgate_queue_length": operator.add,
    "headgate_queue_batch": operator.add,
    "headgate_queue_teams": max,
    "headgate_endpoint_drain": operator.add,
    "headgate_endpoint_saturation": max,
    "headgate_endpoint_wait_seconds": max,
    "headgate_tasks": operator.add,
    "headgate_router_workers": operator.add,
    "headgate_endpoint_resting": max,
    "headgate_ledger_healthy": min,
    "headgate_history_healthy": min,
    "headgate_scanner_healthy": min,
}
"""Gauges of which each worker has a reading of its own, and how two of them make one."""


@dataclass(slots=True)
class Family:
    """One metric of a page: its lines of help and type, and its values by name and labels as they stand there."""

    head: list[str]
    kind: str = "untyped"
    values: dict[str, float] = field(default_factory=dict)


Page = dict[str, Family]
"""The metrics of a page by name, in their order."""


def read(page: bytes) -> Page:
    """A page in Prometheus' text form. Raises ValueError where it is none."""
    found: Page = {}
    family = Family([])
    for line in page.decode().splitlines():
        if line.startswith("# "):
            _, what, name, *rest = line.split(" ", 3)
            family = found.setdefault(name, Family([]))
            family.head.append(line)
            if what == "TYPE":
                family.kind = rest[0]
        elif line:
            name, _, value = line.rpartition(" ")
            family.values[name] = float(value)
    return found


class Totals:
    """The first worker's memory of what the others have counted."""

    def __init__(self, *, successor: bool = False) -> None:
        """`successor`: an earlier first worker has ended, and its memory with it. Then all sums begin at 0 again, as
        those of one process do. If they only fell to what the others have, that would be taken for new."""
        self._successor = successor
        self._born: dict[int, float] = {}
        """By place, when the process there began to count."""
        self._last: dict[int, Page] = {}
        self._before: dict[int, Page] = {}
        """What earlier processes in that worker's place had counted when they were last heard."""
        self._told: dict[str, float] = {}

    def page(self, own: bytes, others: Sequence[bytes | None]) -> bytes:
        """One page of this worker's own and the others', each at its place always; None for one that is silent."""
        found = read(own)
        for place, page in enumerate(others):
            if page is not None:
                self._take(place, read(page), found)
            add(found, self._last.get(place, {}))
            add(found, self._before.get(place, {}))
        self._hold(found)
        return _text(found)

    def _take(self, place: int, page: Page, found: Page) -> None:
        """Remember what one worker has counted; what it has a part of just now is added at once."""
        for name in JOINED.keys() & page.keys():
            add(found, {name: page[name]}, JOINED[name])
        counted, born = _counted(page), _born(page)
        if place not in self._born:
            if self._successor:
                add(self._before.setdefault(place, {}), _negative(counted))
        elif born != self._born[place]:  # another process by now
            add(self._before.setdefault(place, {}), self._last[place])
        self._born[place], self._last[place] = born, counted

    def _hold(self, found: Page) -> None:
        """Sums of fractions may round to a little less in another order: then what was told before stays."""
        for family in _counted(found).values():
            for sample, value in family.values.items():
                family.values[sample] = self._told[sample] = max(value, self._told.get(sample, value))


def add(page: Page, more: Page, join: Callable[[float, float], float] = operator.add) -> None:
    """Take the values of `more` into `page`; two of the same name and labels are joined."""
    for name, family in more.items():
        known = page.setdefault(name, Family(family.head, family.kind))
        for sample, value in family.values.items():
            known.values[sample] = join(known.values[sample], value) if sample in known.values else value


def _counted(page: Page) -> Page:
    """What a worker has counted itself: it only grows."""
    return {n: f for n, f in page.items() if n not in LIVE and f.kind in ("counter", "histogram")}


def _born(page: Page) -> float:
    """When the process began to count: the earliest beginning of all its counts."""
    return min((at for n, f in page.items() if n.endswith("_created") for at in f.values.values()), default=0.0)


def _negative(page: Page) -> Page:
    return {n: Family(f.head, f.kind, {sample: -value for sample, value in f.values.items()}) for n, f in page.items()}


def _text(page: Page) -> bytes:
    lines = []
    for family in page.values():
        lines += family.head
        lines += [f"{sample} {_number(value)}" for sample, value in family.values.items()]
    return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value) or repr(value)
