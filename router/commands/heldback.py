"""What of a file would be held back if it were sent: found by the scanner that router and door use, and never shown."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from router.commands.context import Context, Stop
from router.scanner import reading
from router.scanner.reading import Text
from serving.catalogue import DataClass

if TYPE_CHECKING:
    from router.scanner.scanner import Scanner

MOST_BYTES = 64 * 2**20
"""Of one file; far more than a request may have."""
MOST_PLACES = 6
TALKS = ("messages", "prompt", "input")
"""A JSON object that has one of these is a request."""
PLACE = re.compile(r"(messages|prompt|input|prediction|system)(\[\d{1,6}\])*")
UNREADABLE, UNSEARCHED = "unreadable", "unsearched"
ACROSS = "over several lines"


@dataclass(slots=True)
class Row:
    """One kind of what was found in a file."""

    kind: str
    effect: DataClass
    count: int = 0
    where: list[str] = field(default_factory=list)

    @property
    def places(self) -> str:
        """The first few places, for a person."""
        shown, more = self.where[:MOST_PLACES], len(self.where) - MOST_PLACES
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Report:
    """What one file holds. `stays`: whether all or, of several requests, some of it would be held back."""

    file: str
    data_class: DataClass
    rows: list[Row]
    stays: bool
    meaning: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        rows = [{"kind": r.kind, "data_class": r.effect.name, "count": r.count, "where": r.where} for r in self.rows]
        return {"file": self.file, "data_class": self.data_class.name, "stays": self.stays, "meaning": self.meaning,
                "found": rows}  # fmt: skip


class Part:
    """What was found in one request or text of a file."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, kind: str, effect: DataClass, count: int, where: str) -> None:
        """Take note of a finding; the same kind at another place is one row."""
        row = self.rows.setdefault(kind, Row(kind, effect))
        row.effect = max(row.effect, effect)
        row.count += count
        if where and where not in row.where:
            row.where.append(where)

    @property
    def data_class(self) -> DataClass:
        return max((row.effect for row in self.rows.values()), default=DataClass.public)


def report_on(context: Context, files: Sequence[Path]) -> list[Report]:
    """Look through each file. Raises Stop where one cannot be read, or the scanner cannot be used."""
    scanner = _scanner(context)
    allowed = _allowed(context)
    return [_report(file, _read(file), scanner, allowed) for file in files]


def _scanner(context: Context) -> Scanner:
    # Here, since its patterns are compiled by a package that takes long to import.
    from router.scanner import rules
    from router.scanner.scanner import Scanner, ScannerError

    try:
        return Scanner(rules.of(context.found.site.privacy), context.home.root / "rules")
    except (ScannerError, rules.UnknownKind) as wrong:
        raise Stop(f"the scanner cannot be used: {wrong}") from wrong


def _allowed(context: Context) -> DataClass:
    """The highest class that some hosted model which is enabled may receive today; public where none is."""
    today = dt.datetime.now(dt.UTC).date()
    return max((model.cleared_for(today) for model in context.found.hosted()), default=DataClass.public)


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise Stop(f"{file} is larger than {MOST_BYTES >> 20} MiB, and no request may be")
        return file.read_bytes()
    except OSError as wrong:
        raise Stop(f"{file} cannot be read: {wrong.strerror}") from wrong


def _report(file: Path, data: bytes, scanner: Scanner, allowed: DataClass) -> Report:
    parts = list(_parts(file, data, scanner))
    whole = Part()
    for part in parts:
        for row in part.rows.values():
            whole.add(row.kind, row.effect, row.count, "")
            whole.rows[row.kind].where += row.where
    rows = sorted(whole.rows.values(), key=lambda row: (-row.effect, row.kind))
    held = sum(part.data_class > allowed for part in parts)
    return Report(str(file), whole.data_class, rows, held > 0, _meaning(held, len(parts), allowed))


def _meaning(held: int, parts: int, allowed: DataClass) -> str:
    if not held:
        return "may leave, where its key, team and route say so too"
    some = "stays here" if parts == 1 else f"{held} of {parts} requests stay here"
    return f"{some}: no hosted model that is enabled may receive more than {allowed.name}"


def _parts(file: Path, data: bytes, scanner: Scanner) -> Iterator[Part]:
    """Each request of a file, or the file as one text."""
    if file.suffix in (".jsonl", ".ndjson"):
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                body = _request(line)
                where = f"line {number}"
                yield _of_text(line, scanner, where) if body is None else _of_request(body, scanner, f"{where}: ")
        return
    body = _request(data)
    yield _of_text(data, scanner) if body is None else _of_request(body, scanner)


def _request(data: bytes) -> dict[str, Any] | None:
    """The body of a request; None where it is none."""
    try:
        body = orjson.loads(data)
    except ValueError:
        return None
    return body if isinstance(body, dict) and any(name in body for name in TALKS) else None


def _of_request(body: dict[str, Any], scanner: Scanner, before: str = "") -> Part:
    part, searched = Part(), scanner.search(reading.texts(body))
    for one in searched.found:
        part.add(one.kind, one.effect, one.count, before + (one.where or "its fields"))
    for path in reading.read(body).opaque:
        place = PLACE.match(path)
        part.add(UNREADABLE, DataClass.private, 1, before + (place[0] if place else "its fields"))
    if searched.unread:
        part.add(UNSEARCHED, DataClass.private, 1, f"{before}{searched.unread}")
    return part


def _of_text(data: bytes, scanner: Scanner, where: str = "") -> Part:
    """A text, searched whole; then its lines one by one, only to say where."""
    part, text = Part(), data.decode("utf-8", "replace")
    if "\0" in text:
        part.add(UNREADABLE, DataClass.private, 1, where or "it is no text")
        return part
    searched = scanner.search([Text("", text, "user", said=True)])
    lines = {} if where or not searched.found else _by_line(text, scanner)
    for one in searched.found:
        part.add(one.kind, one.effect, one.count, where)
        if not where:
            part.rows[one.kind].where += lines.get(one.kind, [ACROSS])
    if searched.unread:
        part.add(UNSEARCHED, DataClass.private, 1, where or searched.unread)
    return part


def _by_line(text: str, scanner: Scanner) -> dict[str, list[str]]:
    """The lines in which each kind is found."""
    lines = [Text(f"line {number}", line, "field") for number, line in _lines(text)]
    found: dict[str, list[str]] = {}
    for line, some in zip(lines, scanner.search(lines).by_text, strict=True):
        for one in some:
            found.setdefault(one.kind, []).append(line.where)
    return found


def _lines(text: str) -> Iterable[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
