"""The third count: what the kernel saw between two samples, held against what the book says of that time."""

from __future__ import annotations

import datetime as dt
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.audit import overhead
from router.audit.counters import Interval
from router.audit.overhead import Booked
from router.audit.reconcile import Finding

EDGE_S = 1.0
"""What is written down at one moment may pass the kernel's counter a little earlier or later."""
LINGER_S = 45.0
"""A connection is kept for the next request, for 15 s at least and 30 s at most, and then closed."""


@dataclass(slots=True)
class Kernel:
    """What the kernel counted in the window, and what the book says of the same moments."""

    spans: list[Interval] = field(default_factory=list)
    booked: list[Booked] = field(default_factory=list)
    samples: int = 0
    shared: int = 0
    """Samples taken while somebody else had a socket in the door's namespace."""
    _going: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Sendings that have not ended yet, by their permits."""

    def begin(self, spans: list[Interval]) -> None:
        """Take up what was counted; sendings are put into it from then on."""
        self.spans = sorted(spans)
        self.booked = [Booked()] * len(spans)

    def going(self, permit: str) -> bool:
        return permit in self._going

    def sent(self, sending: Mapping[str, Any]) -> None:
        """The book says that it is about to leave."""
        self._going[sending["permit"]] = sending

    def ended(self, ended: Mapping[str, Any]) -> None:
        """The book says how that ended."""
        if sending := self._going.pop(ended["permit"], None):
            self._add(sending, ended["at"], ended)

    def stopped(self, at: float = math.inf) -> None:
        """Another door begins, or the book is read to its end: what goes on now never ends in it."""
        for sending in self._going.values():
            self._add(sending, at, None)
        self._going.clear()

    def _add(self, sending: Mapping[str, Any], end: float, ended: Mapping[str, Any] | None) -> None:
        """Put one sending into the intervals in which it may have passed, and where its connection may have closed."""
        at = sending["at"]
        index = bisect_left(self.spans, at - EDGE_S, key=lambda span: span.end)
        while index < len(self.spans) and self.spans[index].start <= end + LINGER_S:
            span, was = self.spans[index], self.booked[index]
            if span.start <= end + EDGE_S:
                within = span.start + EDGE_S <= at and end + EDGE_S <= span.end
                was = _with(was, sending, ended, sure=within and not _here(sending["host"]))
            self.booked[index] = was._replace(requests=was.requests + 1)
            index += 1

    def findings(self) -> Iterator[Finding]:
        """Where the two do not agree."""
        for span, booked in zip(self.spans, self.booked, strict=True):
            if more := overhead.unaccounted(booked, span.counted):
                text = f"{_during(span)} {more:,} bytes more on their way out than the book and its overhead explain."
                yield Finding("kernel_more", text)
            if fewer := overhead.missing(booked, span.counted):
                yield Finding("kernel_less", f"{_during(span)} {fewer:,} bytes fewer than the book says have left.")


def _with(was: Booked, sending: Mapping[str, Any], ended: Mapping[str, Any] | None, *, sure: bool) -> Booked:
    """What the book says of an interval, with one sending more."""
    left = ended is None or ended["left"] is not False
    size = left * (sending["sent_bytes"] + sending["head_bytes"])
    if ended is None or ended["ended"] != "answered" or not 200 <= (ended["status"] or 0) < 300:
        sure = False
    return Booked(
        sure=was.sure + sure * size, possible=was.possible + size, requests=was.requests,
        # A door that was killed could not say whether it had opened one.
        connections=was.connections + (1 if ended is None else ended["connections"]),
        answers=was.answers + (0 if ended is None else ended["bytes_in"] + ended["head_bytes_in"]),
        name=max(was.name, len(sending["host"])), going=was.going + (ended is None),
    )  # fmt: skip


def _here(host: str) -> bool:
    """Whether what is sent there passes loopback, which is not counted."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _during(span: Interval) -> str:
    first, last = (f"{dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%d %H:%M:%S}" for at in (span.start, span.end))
    return f"Between {first} and {last} UTC the kernel counted"
