"""Joins the three counts of what left: reads ledger, book and kernel samples once each, reconciles, sums up.

Nothing is held in memory that grows with the number of requests: rows are sorted in a temporary file of SQLite's.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from router.audit import overhead
from router.audit.chained import Chained, Line
from router.audit.counters import Interval, intervals
from router.audit.ledger import SLACK_S, Records
from router.audit.overhead import Booked
from router.audit.reconcile import Finding, Left, Row, Window, reconcile

NEEDED = {
    "sending": frozenset({
        "permit", "request", "key", "team", "provider", "model", "path", "host", "claimed", "data_class", "clearance",
        "rule", "policy", "boot", "received_sha256", "sent_bytes", "head_bytes", "at",
    }),
    "ended": frozenset({"permit", "request", "status", "ended", "left", "at"}),
    "refused": frozenset({"permit", "request", "code", "at"}),
}  # fmt: skip
"""The fields of the book's entries that are looked at."""
WHAT = {"sending": "sent", "ended": "ended", "refused": "refused"}
SHOWN = 1000
"""Findings of each sort that are written out; all are counted."""
EDGE_S = 1.0
"""What is written down at one moment may pass the kernel's counter a little earlier or later."""


class Group(NamedTuple):
    """To whom something left, under which rule and class."""

    provider: str
    host: str
    model: str
    rule: str
    data_class: str


@dataclass(slots=True)
class Findings:
    """Findings of one sort: the first ones, and all of them counted."""

    shown: list[Finding] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    def add(self, found: Finding) -> None:
        self.kinds[found.kind] += 1
        self.bytes += found.bytes
        if len(self.shown) < SHOWN:
            self.shown.append(found)


@dataclass(slots=True)
class Excerpt:
    """What of one source goes with a statement. Without a file nothing is written, and everything is counted."""

    file: BinaryIO | None
    lines: int = 0
    size: int = 0
    digest: str = hashlib.sha256().hexdigest()
    _hash: Any = field(default_factory=hashlib.sha256)
    _lines: int = 0
    _size: int = 0

    def add(self, line: bytes, *, wanted: bool = True) -> None:
        """Add a line. One that is not wanted stays only where a wanted one follows: so a chain has no gaps."""
        if not wanted and not self.lines:
            return
        self._hash.update(line)
        self._lines, self._size = self._lines + 1, self._size + len(line)
        if self.file is not None:
            self.file.write(line)
        if wanted:
            self.lines, self.size, self.digest = self._lines, self._size, self._hash.copy().hexdigest()

    def close(self) -> None:
        """Cut off what nobody wanted, and close the file."""
        if self.file is not None:
            self.file.truncate(self.size)
            self.file.close()


@dataclass(slots=True)
class Kernel:
    """What the kernel counted in the window, and what the book says of the same moments."""

    spans: list[Interval] = field(default_factory=list)
    booked: list[Booked] = field(default_factory=list)
    samples: int = 0
    shared: int = 0
    """Samples taken while somebody else had a socket in the door's namespace."""

    def add(self, left: Left) -> None:
        """Put one sending into the intervals in which it may have passed."""
        end = left.until if left.until is not None else left.at
        index = max(0, bisect_left(self.spans, left.at - EDGE_S, key=lambda span: span.end))
        while index < len(self.spans) and self.spans[index].start <= end + EDGE_S:
            span, was = self.spans[index], self.booked[index]
            sure = left.sure and span.start + EDGE_S <= left.at and end + EDGE_S <= span.end and not _here(left.host)
            size = left.bytes + left.head
            self.booked[index] = Booked(was.sure + sure * size, was.possible + size, was.requests + 1)
            index += 1


@dataclass(slots=True)
class Egress:
    """What left within a window, by three counts."""

    window: Window
    records: Records
    book: Chained
    samples: Chained
    kernel: Kernel
    sums: dict[Group, list[int]] = field(default_factory=dict)
    """Of each group requests, sendings, bytes of bodies and bytes of heads."""
    requests: int = 0
    """Requests of which something left."""
    discrepancies: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    excerpts: dict[str, Excerpt] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return not self.discrepancies.kinds


class _Sorter:
    """Rows in the order of requests and permits, however many: in a temporary file, not in memory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE found (request TEXT, permit TEXT, row BLOB)")
        self._db.execute("BEGIN")
        self._waiting: list[tuple[str, str, bytes]] = []

    def add(self, row: Row) -> None:
        self._waiting.append((row["request"], row["permit"], orjson.dumps(row)))
        if len(self._waiting) >= SHOWN:
            self._write()

    def _write(self) -> None:
        self._db.executemany("INSERT INTO found VALUES (?, ?, ?)", self._waiting)
        self._waiting.clear()

    def rows(self) -> Iterator[Row]:
        self._write()
        for (row,) in self._db.execute("SELECT row FROM found ORDER BY request, permit, rowid"):
            yield orjson.loads(row)

    def close(self) -> None:
        self._db.close()


def audit(ledger: Path, book: Path, samples: Path, window: Window, folder: Path | None = None) -> Egress:
    """Count what left within the window three times over. Raises LedgerError, OSError.

    `folder`: where excerpts of the sources are written, enough to check the sums without them.
    """
    found = Egress(window, Records(ledger, window), Chained(book, "Book"), Chained(samples, "Kernel"), Kernel())
    names = ("ledger", "book", "kernel")
    files = {name: (folder / f"{name}.jsonl").open("wb") if folder else None for name in names}
    found.excerpts = {name: Excerpt(file) for name, file in files.items()}
    with contextlib.closing(_Sorter()) as sorter, contextlib.ExitStack() as open_files:
        for excerpt in found.excerpts.values():
            open_files.callback(excerpt.close)
        _read_ledger(found, sorter)
        _read_kernel(found)
        _read_book(found, sorter)
        found.window = Window(window.since, window.until, found.book.boot)
        for problem in (*found.records.problems, *found.book.problems, *found.samples.problems):
            found.discrepancies.add(Finding("changed", f"{problem}."))
        _reconcile(found, sorter)
    _ask_kernel(found)
    return found


def _read_ledger(found: Egress, sorter: _Sorter) -> None:
    for row, event in found.records.rows():
        sorter.add(row)
        if event is not None:
            found.excerpts["ledger"].add(_line(event))


def _read_book(found: Egress, sorter: _Sorter) -> None:
    going: set[str] = set()
    for line in found.book.lines():
        entry, kind = line.entry, str(line.entry.get("kind"))
        near = _near(found.window, entry)
        ends = kind == "ended" and entry.get("permit") in going
        found.excerpts["book"].add(line.raw, wanted=near or ends)
        if kind == "opened" and near:
            _opened(found, line)
        needed = NEEDED.get(kind)
        if needed is None or not (near or ends):
            continue
        if needed - entry.keys():
            text = f"Book, line {line.number}: lacks {', '.join(sorted(needed - entry.keys()))}."
            found.discrepancies.add(Finding("changed", text))
        elif entry["permit"]:
            sorter.add({"what": WHAT[kind], **{k: v for k, v in entry.items() if k not in ("kind", "prev", "hash")}})
            (going.add if kind == "sending" else going.discard)(entry["permit"])


def _opened(found: Egress, line: Line) -> None:
    """What the door found as it opened its book."""
    if missing := line.entry.get("missing"):
        text = f"Book, line {line.number}: as the door opened it {missing:,} bytes at its end were missing."
        found.discrepancies.add(Finding("changed", text))
    if torn := line.entry.get("torn"):
        text = f"Book, line {line.number}: a crash tore its end; {torn['bytes']:,} bytes lie in {torn['file']}."
        found.notes.add(Finding("torn", text))


def _read_kernel(found: Egress) -> None:
    def samples() -> Iterator[Mapping[str, Any]]:
        for line in found.samples.lines():
            within = found.window.holds(line.entry.get("at", 0.0))
            found.excerpts["kernel"].add(line.raw, wanted=within)
            if within and line.entry.get("kind") == "sample":
                found.kernel.samples += 1
                found.kernel.shared += not line.entry["alone"]
                yield line.entry

    try:
        found.kernel.spans = list(intervals(samples()))
    except (KeyError, TypeError, IndexError) as lacking:
        found.discrepancies.add(Finding("changed", f"Kernel: a sample lacks something: {lacking}."))
    found.kernel.spans.sort()
    found.kernel.booked = [Booked()] * len(found.kernel.spans)


def _reconcile(found: Egress, sorter: _Sorter) -> None:
    for judged in reconcile(sorter.rows(), found.window):
        for one in judged.discrepancies:
            found.discrepancies.add(one)
        for note in judged.notes:
            found.notes.add(note)
        found.requests += bool(judged.left)
        counted = set[Group]()
        for left in judged.left:
            group = Group(left.provider, left.host, left.model, left.rule, left.data_class)
            sums = found.sums.setdefault(group, [0, 0, 0, 0])
            sums[0] += group not in counted
            sums[1] += 1
            sums[2] += left.bytes
            sums[3] += left.head
            counted.add(group)
            found.kernel.add(left)


def _ask_kernel(found: Egress) -> None:
    """Hold what the kernel counted against the book, for each moment between two samples."""
    for span, booked in zip(found.kernel.spans, found.kernel.booked, strict=True):
        if more := overhead.unaccounted(booked, span.counted):
            text = f"{_during(span)} {more:,} bytes more on their way out than the book and its overhead explain."
            found.discrepancies.add(Finding("kernel_more", text))
        if fewer := overhead.missing(booked, span.counted):
            text = f"{_during(span)} {fewer:,} bytes fewer than the book says have left."
            found.discrepancies.add(Finding("kernel_less", text))


def _near(window: Window, entry: Mapping[str, Any]) -> bool:
    at = entry.get("at")
    return isinstance(at, float | int) and window.since - SLACK_S <= at < window.until + SLACK_S


def _here(host: str) -> bool:
    """Whether what is sent there passes loopback, which is not counted."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _line(event: Mapping[str, Any]) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_SORT_KEYS) + b"\n"


def _during(span: Interval) -> str:
    first, last = (f"{dt.datetime.fromtimestamp(at, dt.UTC):%Y-%m-%d %H:%M:%S}" for at in (span.start, span.end))
    return f"Between {first} and {last} UTC the kernel counted"
