"""Reads the ledger writer by writer, checks every chain, and gives what it says of sendings.

One pass, each chain from its first event to its last: in which order the chains lie in the file means nothing, for an
upgrade writes them anew. What is held in memory are the heads of the chains and what is open.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from router.audit.reconcile import UNDER_WAY_S, Row, Window
from router.ledger.chain import Event, chain_hash
from router.ledger.store import LedgerError, connect

COLUMNS = ("writer", "seq", "at", "kind", "request", "key", "cost", "body", "prev", "hash")
ALL = f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY writer, seq"  # noqa: S608  our own words
IN_SHORT = ("writer", "seq", "at", "kind", "request", "hash")
"""What of an event goes along with a statement where its body says nothing of what left."""
ASKED = ("opened", "refused", "repeated")
"""The first event of a request."""
SENDING = frozenset({
    "permit", "door", "team", "provider", "model", "path", "data_class", "policy", "sha256", "bytes",
})  # fmt: skip
"""The fields of a `sending` that are looked at."""
SLACK_S = 60.0
"""Ledger and book write down one sending at two moments, and a permit lives for ten seconds at most."""


class Read(NamedTuple):
    """One event: what it says of sendings, and what of it goes along with a statement."""

    writer: str
    rows: list[Row]
    said: dict[str, Any]
    wanted: bool
    """Whether it has to go along; another one goes only where it lies between two such of its chain."""


@dataclass(slots=True)
class Records:
    """The ledger, read once with `read`; the rest is known after that."""

    path: Path
    window: Window
    problems: list[str] = field(default_factory=list)
    requests: int = 0
    """Those that were asked within the window, the refused and repeated ones among them."""
    events: int = 0
    """Of the window."""
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Of each chain, the last event's number and hash."""
    writers: set[str] = field(default_factory=set)
    """Those that wrote within the window."""
    newest: float = 0.0
    """When the last event of all was written."""
    digest: str = ""
    """SHA-256 over the hashes of the window's events, writer by writer."""
    _open: dict[str, float] = field(default_factory=dict)
    _early: set[str] = field(default_factory=set)
    """Requests that were met as closed and not yet as opened: another writer's start calls them lost."""
    _handed: set[str] = field(default_factory=set)

    def read(self) -> Iterator[Read]:
        """Every event that is as it was written. Raises LedgerError."""
        if not self.path.exists():
            return
        hashed = hashlib.sha256()
        try:
            with closing(connect(self.path, read_only=True)) as db:
                db.execute("BEGIN")  # one moment of it, whoever goes on writing
                for event in db.execute(ALL):
                    if not self._check(event):
                        continue
                    writer, seq, at, kind, request, key, _, body, _, digest = event
                    self.newest = max(self.newest, at)
                    if self.window.holds(at):
                        hashed.update(digest.encode())
                        self.writers.add(writer)
                        self.events += 1
                        self.requests += kind in ASKED
                    try:
                        rows = self._rows(at, kind, request, key, body)
                    except (ValueError, KeyError, TypeError) as lacking:
                        self.problems.append(f"Ledger, writer {writer}, event {seq}: lacks something ({lacking!r})")
                        rows = []
                    whole = any(_telling(row) for row in rows)
                    said = dict(zip(COLUMNS, event, strict=True))
                    said = said if whole else {name: said[name] for name in IN_SHORT}
                    yield Read(writer, rows, said, whole or self.window.holds(at))
                self._settled(db)
        except sqlite3.Error as broken:
            raise LedgerError(f"the ledger {self.path} cannot be read: {broken}; see: headgate doctor") from broken
        self.digest = hashed.hexdigest()
        self._closed()

    def _rows(self, at: float, kind: str, request: str, key: str, body: str) -> list[Row]:
        """What it says of sendings. Raises ValueError, KeyError, TypeError where it is not as this release writes."""
        if kind == "opened":
            if request in self._early:
                self._early.discard(request)
            else:
                self._open[request] = at
        elif kind == "closed":
            if self._open.pop(request, None) is None:
                self._early.add(request)
            # The start that calls it lost may be days later, and its chain may be the first one to be read.
            lost = '"outcome":"lost"' in body and at >= self.window.since - SLACK_S
            if request in self._handed or (lost and (self._near(at) or request in self._early)):
                self._handed.discard(request)
                return list(_finished(request, at, body))
        elif kind == "sending" and self._near(at):
            said = orjson.loads(body)
            if lacking := SENDING - said.keys():
                raise KeyError(", ".join(sorted(lacking)))
            self._handed.add(request)
            return [{"what": "handed", "request": request, "at": at, "key": key, **said}]
        return []

    def _near(self, at: float) -> bool:
        return self.window.since - SLACK_S <= at < self.window.until + SLACK_S

    def _check(self, event: tuple[Any, ...]) -> bool:
        """Whether it is an event as it was written. One that is not is named, and says nothing."""
        writer, seq, at, kind, request, key, cost, body, prev, digest = event
        last, head = self.heads.get(writer, (0, ""))
        try:
            right = chain_hash(prev, writer, seq, Event(at, kind, request, key, {}, cost), body)
        except (TypeError, ValueError):
            right = ""
        if seq != last + 1 or prev != head or right != digest:
            self.problems.append(f"Ledger, writer {writer}, event {seq}: changed, missing or out of order")
        self.heads[writer] = (seq if isinstance(seq, int) else last + 1, digest)
        return bool(right == digest)

    def _settled(self, db: sqlite3.Connection) -> None:
        """A writer notes how far it has come; what is cut off at the end of its chain shows by that alone."""
        for writer, seq in db.execute("SELECT writer, seq FROM settled ORDER BY writer"):
            last = self.heads.get(writer, (0, ""))[0]
            if seq > last:
                self.problems.append(f"Ledger, writer {writer}: events {last + 1} to {seq} at its end are missing")

    def _closed(self) -> None:
        """Whether every request was opened and closed once."""
        self.problems += [f"Ledger: request {request} was closed and not open then" for request in sorted(self._early)]
        for request, at in self._open.items():
            if at < self.newest - UNDER_WAY_S:  # a start would have closed it, as lost
                self.problems.append(f"Ledger: request {request} was opened and never closed, not even as lost")


def _telling(row: Row) -> bool:
    """Whether somebody who has not the ledger has to see it: of what is closed and not shown, all was answered."""
    return bool(row["what"] == "handed" or row["outcome"] != "answered")


def _finished(request: str, at: float, body: str) -> Iterator[Row]:
    """How the tries under a permit ended; of a lost request only that it was."""
    if '"permit":"' in body:
        for attempt in orjson.loads(body)["attempts"]:
            if permit := attempt.get("permit"):
                found = {"what": "finished", "request": request, "permit": permit, "at": at}
                yield {**found, "outcome": attempt["outcome"], "sent": attempt["sent"]}
    elif '"outcome":"lost"' in body:
        yield {"what": "finished", "request": request, "permit": "", "at": at, "outcome": "lost", "sent": True}
