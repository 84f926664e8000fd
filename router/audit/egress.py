"""Joins the three counts of what left: reads ledger, book and kernel samples once each, reconciles, sums up.

Nothing is held in memory that grows with the number of requests: rows are sorted in a temporary file of SQLite's.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from router.audit.chained import Chained, Line
from router.audit.counters import Interval, intervals
from router.audit.excerpt import Excerpt
from router.audit.kernel import Kernel
from router.audit.ledger import SLACK_S, Records
from router.audit.reconcile import UNDER_WAY_S, Finding, Row, Window, reconcile

NEEDED = {
    "sending": frozenset({
        "permit", "request", "key", "team", "provider", "model", "path", "host", "claimed", "data_class", "clearance",
        "rule", "policy", "boot", "received_sha256", "sent_bytes", "head_bytes", "at",
    }),
    "ended": frozenset({
        "permit", "request", "status", "ended", "left", "bytes_in", "head_bytes_in", "connections", "at",
    }),
    "refused": frozenset({"permit", "request", "code", "at"}),
    "sample": frozenset({"read_at", "boot", "namespace", "alone", "interfaces", "datagrams", "again"}),
}  # fmt: skip
"""The fields of the book's and the samples' entries that are looked at."""
COUNTS = ("sent_bytes", "head_bytes", "bytes_in", "head_bytes_in", "connections", "datagrams", "again")
TYPES: dict[str, Any] = {
    **dict.fromkeys(COUNTS, int),
    **dict.fromkeys(("at", "read_at"), (int, float)), **dict.fromkeys(("left", "alone"), bool),
    "status": (int, type(None)), "interfaces": dict,
}  # fmt: skip
"""What is no text of them."""
WHAT = {"sending": "sent", "ended": "ended", "refused": "refused"}
SHOWN = 1000
"""Findings of each sort that are written out; all are counted."""
Verdict = Literal["balanced", "not balanced", "cannot say"]


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
    earlier: list[int] = field(default_factory=lambda: [0, 0, 0])
    """What a door of an earlier release sent, which cannot be reconciled: requests, sendings, bytes of bodies."""
    boots: set[str] = field(default_factory=set)
    """Of such doors."""
    discrepancies: Findings = field(default_factory=Findings)
    doubts: Findings = field(default_factory=Findings)
    """What nobody can say from what there is."""
    notes: Findings = field(default_factory=Findings)
    excerpts: dict[str, Excerpt] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return "not balanced" if self.discrepancies.kinds else "cannot say" if self.doubts.kinds else "balanced"

    @property
    def balanced(self) -> bool:
        return self.verdict == "balanced"

    def excerpt(self, name: str, line: bytes, *, wanted: bool) -> None:
        """Add a line of a source to what goes along with the statement, where one is written."""
        if self.excerpts:
            self.excerpts[name].add(line, wanted=wanted)


class _Sorter:
    """Rows in the order of requests and permits, however many: in a temporary file, not in memory."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE found (request TEXT, permit TEXT, row BLOB)")
        self._db.execute("BEGIN")
        self._waiting: list[tuple[str, str, bytes]] = []

    def add(self, row: Row) -> None:
        self._waiting.append((str(row["request"]), str(row["permit"]), orjson.dumps(row)))
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

    `folder`: where excerpts of the sources are written, enough to work out the sums without them.
    """
    found = Egress(window, Records(ledger, window), Chained(book, "Book"), Chained(samples, "Kernel"), Kernel())
    with contextlib.closing(_Sorter()) as sorter, contextlib.ExitStack() as files:
        if folder is not None:
            for name in ("ledger", "book", "kernel"):
                found.excerpts[name] = Excerpt((folder / f"{name}.jsonl").open("wb"))
                files.callback(found.excerpts[name].close)
        _read_ledger(found, sorter)
        _read_kernel(found)
        _read_book(found, sorter)
        found.window = Window(window.since, window.until, found.book.boot, found.records.newest)
        for source in (found.records, found.book, found.samples):
            for problem in source.problems:
                found.discrepancies.add(Finding("changed", f"{problem}."))
        for doubt in (*found.book.doubts, *found.samples.doubts):
            found.doubts.add(Finding("unsure_end", f"{doubt}."))
        if not ledger.exists() and book.exists():
            found.discrepancies.add(Finding("changed", "Ledger: it is gone, and the door's book is there."))
        _reconcile(found, sorter)
    for one in found.kernel.findings():
        found.discrepancies.add(one)
    return found


def _read_ledger(found: Egress, sorter: _Sorter) -> None:
    writer = ""
    for event in found.records.read():
        for row in event.rows:
            sorter.add(row)
        if found.excerpts:
            if event.writer != writer:
                found.excerpts["ledger"].cut()
                writer = event.writer
            found.excerpt("ledger", orjson.dumps(event.said, option=orjson.OPT_SORT_KEYS) + b"\n", wanted=event.wanted)


def _read_kernel(found: Egress) -> None:
    def samples() -> Iterator[Mapping[str, Any]]:
        for line in found.samples.lines():
            within = _near(found.window, line.entry, 0.0, 0.0)
            found.excerpt("kernel", line.raw, wanted=within)
            _opened(found, line, "Kernel")
            if within and line.entry.get("kind") == "sample" and _whole(found, line, "Kernel"):
                found.kernel.samples += 1
                found.kernel.shared += not line.entry["alone"]
                yield line.entry

    spans: list[Interval] = []
    try:
        spans += intervals(samples())
    except (TypeError, IndexError) as odd:
        found.discrepancies.add(Finding("changed", f"Kernel: a sample is none: {odd}."))
    found.kernel.begin(spans)


def _read_book(found: Egress, sorter: _Sorter) -> None:
    long = set[str]()
    """Permits of what was sent before all that is looked at, and has not ended by then."""
    for line in found.book.lines():
        entry, kind, permit = line.entry, line.entry.get("kind"), str(line.entry.get("permit", ""))
        # From an hour before: what was sent then may still be answered, and that takes packets of the window.
        near = _near(found.window, entry, UNDER_WAY_S, SLACK_S)
        ends = kind == "ended" and found.kernel.going(permit)
        found.excerpt("book", line.raw, wanted=near or ends)
        _opened(found, line, "Book")
        if kind == "opened":
            found.kernel.stopped(_at(entry))
            long.clear()
        elif kind == "sending" and not near:
            long.add(permit)
        elif kind == "ended" and permit in long:
            long.discard(permit)
        elif kind in WHAT and permit and (near or ends):
            _book_row(found, sorter, line)
    found.kernel.stopped()


def _book_row(found: Egress, sorter: _Sorter, line: Line) -> None:
    """What the book says of a sending: to the ledger's word of it, and to the kernel's count."""
    entry, kind = line.entry, line.entry["kind"]
    if line.earlier:
        found.boots.add(str(entry.get("boot")))
        if kind == "sending":
            size = entry.get("sent_bytes", 0)
            row = {"what": "earlier", "request": entry.get("request"), "permit": entry["permit"], "at": entry["at"]}
            sorter.add({**row, "bytes": size if isinstance(size, int) else 0})
    elif _whole(found, line, "Book"):
        sorter.add({"what": WHAT[kind], **{k: v for k, v in entry.items() if k not in ("kind", "prev", "hash")}})
        if kind == "sending":
            found.kernel.sent(entry)
        elif kind == "ended":
            found.kernel.ended(entry)


def _opened(found: Egress, line: Line, source: str) -> None:
    """What the door found as it opened a file that lies within the window's time."""
    entry = line.entry
    if entry.get("kind") != "opened" or not _near(found.window, entry, SLACK_S, SLACK_S):
        return
    where = f"{source}, line {line.number}: as the door opened it"
    if missing := entry.get("missing"):
        found.discrepancies.add(Finding("changed", f"{where} {missing:,} bytes at its end were missing."))
    if entry.get("unnoted") and line.after:
        text = f"{where} the note of its end was gone; what was cut off before that cannot show."
        found.discrepancies.add(Finding("changed", text))
    if unsynced := entry.get("unsynced"):
        lost = "were missing that had not been on the disk for sure, as after a power cut"
        found.doubts.add(Finding("unsure_end", f"{where} {unsynced:,} bytes at its end {lost}."))
    if torn := entry.get("torn"):
        text = f"{where} a crash had torn its end; {torn['bytes']:,} bytes lie in {torn['file']}."
        found.notes.add(Finding("torn", text))


def _whole(found: Egress, line: Line, source: str) -> bool:
    """Whether an entry has every field that is looked at; one that has not is named."""
    entry = line.entry
    lacking = {name for name in NEEDED[entry["kind"]] if not isinstance(entry.get(name), TYPES.get(name, str))}
    if lacking:
        text = f"{source}, line {line.number}: lacks {', '.join(sorted(lacking))}."
        found.discrepancies.add(Finding("changed", text))
    return not lacking


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
        more = (bool(judged.earlier), len(judged.earlier), sum(row["bytes"] for row in judged.earlier))
        found.earlier = [was + new for was, new in zip(found.earlier, more, strict=True)]
    if found.earlier[0]:
        requests, _, size = found.earlier
        text = f"From before this release: not reconciled, {requests:,} requests, {size:,} bytes by the book alone"
        found.doubts.add(Finding("earlier", f"{text}; the ledger had no word of what was handed over."))


def _at(entry: Mapping[str, Any]) -> float:
    at = entry.get("at")
    return float(at) if isinstance(at, float | int) else float("-inf")


def _near(window: Window, entry: Mapping[str, Any], before: float, after: float) -> bool:
    return window.since - before <= _at(entry) < window.until + after
