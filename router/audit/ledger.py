"""Reads the ledger from its first event to its last, checks every chain, and gives what it says of sendings.

One pass, in the order in which it was written; what is held in memory are the heads of the chains and what is open.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from router.audit.reconcile import GIVEN_UP, NOT_HANDED, UNDER_WAY_S, Row, Window
from router.ledger.chain import Event, chain_hash
from router.ledger.store import LedgerError, connect

COLUMNS = ("writer", "seq", "at", "kind", "request", "key", "cost", "body", "prev", "hash")
ALL = f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY rowid"  # noqa: S608  our own words
SLACK_S = 60.0
"""Ledger and book write down one sending at two moments, and a permit lives for ten seconds at most."""


@dataclass(slots=True)
class Records:
    """The ledger, read once with `rows`; the rest is known after that."""

    path: Path
    window: Window
    problems: list[str] = field(default_factory=list)
    requests: int = 0
    """Those that were asked within the window, the refused ones among them."""
    events: int = 0
    """Of the window."""
    heads: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Of each chain, the last event's number and hash."""
    writers: set[str] = field(default_factory=set)
    """Those that wrote within the window."""
    digest: str = ""
    """SHA-256 over the hashes of the window's events, in the order in which they lie there."""

    def rows(self) -> Iterator[tuple[Row, dict[str, Any] | None]]:
        """What it says of each sending, and with it the event that has to go into an excerpt. Raises LedgerError."""
        if not self.path.exists():
            return
        hashed, opened, newest, handed = hashlib.sha256(), dict[str, float](), 0.0, set[str]()
        try:
            with closing(connect(self.path, read_only=True)) as db:
                db.execute("BEGIN")  # one moment of it, whoever goes on writing
                for event in db.execute(ALL):
                    if not self._check(event):
                        continue
                    writer, _, at, kind, request, key, _, body, _, digest = event
                    newest = max(newest, at)
                    if self.window.holds(at):
                        hashed.update(digest.encode())
                        self.writers.add(writer)
                        self.events += 1
                        self.requests += kind in ("opened", "refused")
                    if kind == "opened":
                        opened[request] = at
                    elif kind == "closed":
                        if opened.pop(request, None) is None:
                            self.problems.append(f"Ledger: request {request} was closed and not open then")
                        if request in handed:
                            handed.discard(request)
                            yield from _with(event, list(_finished(request, at, body)))
                    elif kind == "sending" and self._near(at):
                        handed.add(request)
                        row = {"what": "handed", "request": request, "at": at, "key": key, **orjson.loads(body)}
                        yield row, dict(zip(COLUMNS, event, strict=True))
                self._settled(db)
        except sqlite3.Error as broken:
            raise LedgerError(f"the ledger {self.path} cannot be read: {broken}; see: headgate doctor") from broken
        self.digest = hashed.hexdigest()
        for request, at in opened.items():
            if at < newest - UNDER_WAY_S:  # a start would have closed it, as lost
                self.problems.append(f"Ledger: request {request} was opened and never closed, not even as lost")

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


def _with(event: tuple[Any, ...], rows: list[Row]) -> Iterator[tuple[Row, dict[str, Any] | None]]:
    """How tries ended; the event goes along once where it says why something did not leave."""
    stayed = any(row["outcome"] in NOT_HANDED | GIVEN_UP for row in rows)
    for number, row in enumerate(rows):
        yield row, dict(zip(COLUMNS, event, strict=True)) if stayed and not number else None


def _finished(request: str, at: float, body: str) -> Iterator[Row]:
    """How the tries under a permit ended; of a lost request only that it was."""
    if '"permit":"' in body:
        for attempt in orjson.loads(body)["attempts"]:
            if permit := attempt.get("permit"):
                found = {"what": "finished", "request": request, "permit": permit, "at": at}
                yield {**found, "outcome": attempt["outcome"], "sent": attempt["sent"]}
    elif '"outcome":"lost"' in body:
        yield {"what": "finished", "request": request, "permit": "", "at": at, "outcome": "lost", "sent": True}
