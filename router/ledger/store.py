"""The ledger's SQLite file: append-only events in one hash chain per writer and boot, and the table of keys.

One thread writes, in groups, so that a request never waits for the disk unless it asks to (`durable`). A full disk or a
locked file stops nothing local: events wait in a bounded spool and `healthy` turns false.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE events (
    writer TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
    key TEXT NOT NULL, cost REAL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (writer, seq)) WITHOUT ROWID;
CREATE INDEX events_by_request ON events (request);
CREATE INDEX events_by_time ON events (kind, at);
CREATE TABLE keys (
    id TEXT PRIMARY KEY, team TEXT NOT NULL, data_class TEXT NOT NULL, mac TEXT NOT NULL, last4 TEXT NOT NULL,
    lanes TEXT NOT NULL, substitute INTEGER NOT NULL DEFAULT 0, budget_usd REAL, created REAL NOT NULL,
    expires REAL, revoked REAL, scopes TEXT NOT NULL DEFAULT '');
"""
UPGRADES = {1: "ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT ''"}
"""By the schema that is found, what makes the next one of it."""
SPOOL_LIMIT = 20_000
"""Events that may wait for a disk that does not take them: about 40 MB."""
GROUP = 512
"""Events written in one transaction at most."""
BUSY_S = 5.0
"""Seconds a lock that another process holds is waited for."""
RETRY_S = 0.25
"""Seconds between two tries at a disk that takes nothing."""


class LedgerError(Exception):
    """The ledger cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `cost` in US dollars: the hold of an `opened`, the price of a `closed`."""

    at: float
    kind: str
    request: str
    key: str
    body: dict[str, Any]
    cost: float | None = None


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the ledger's file, making it where it is missing. Raises LedgerError with the remedy.

    A file that is there and is no ledger is never made into one: an empty table of keys must not come out of damage.
    """
    try:
        if not read_only:
            _make(path)
            path.chmod(0o600)
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            if not read_only:
                _upgrade(db)
            _check(db, path)
            if not read_only:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # what was acknowledged must survive a power cut
        except BaseException:
            db.close()
            raise
        return db
    except (sqlite3.OperationalError, OSError) as broken:
        remedy = "see its folder's permissions and free space, and who else has it open"
        raise LedgerError(f"the ledger {path} cannot be opened: {broken}; {remedy}") from broken
    except sqlite3.DatabaseError as broken:
        raise LedgerError(f"the ledger {path} is damaged: {broken}; restore a backup") from broken


def _make(path: Path) -> None:
    """Make an empty ledger where there is no file. It appears whole or not at all, so two starts agree on one."""
    log = path.with_name(f"{path.name}-wal")
    left = log.exists()  # asked first: another start makes the file before its log
    if path.exists():
        return
    if left:
        raise LedgerError(f"{log} lies there without {path.name}; restore the ledger beside it, or move it away")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600, exist_ok=False)
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT; PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _upgrade(db: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier release to this one's schema. Nothing that was written is changed."""
    while (found := db.execute("PRAGMA user_version").fetchone()[0]) in UPGRADES:
        with db:  # all of it or nothing
            db.execute("BEGIN IMMEDIATE")
            # Asked again inside: another process may have done it meanwhile.
            if db.execute("PRAGMA user_version").fetchone()[0] == found:
                db.execute(UPGRADES[found])
                db.execute(f"PRAGMA user_version={found + 1}")


def _check(db: sqlite3.Connection, path: Path) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        empty = "is empty" if path.stat().st_size == 0 else "is no ledger"
        raise LedgerError(f"{path} {empty}; restore a backup, or remove it to begin anew without keys and records")
    if found in UPGRADES:
        raise LedgerError(f"{path} is of an earlier release (schema {found}); headgate up brings it up to date")
    if found != SCHEMA_VERSION:
        raise LedgerError(f"{path} has schema {found}, this release writes {SCHEMA_VERSION}; use the matching release")


class Store:
    """The one writer of a ledger file. `append` never blocks; `durable` waits until all before it is on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = secrets.token_hex(8)
        self.healthy = True
        self.trouble = ""
        self._db = connect(path)
        self._waiting: deque[Event] = deque()
        self._appended = self._written = 0
        self._durable: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._seq, self._head = 0, ""
        self._thread = threading.Thread(target=self._write_all, name="ledger", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the spool takes no more: then even local answers must stop."""
        return len(self._waiting) >= SPOOL_LIMIT

    def append(self, event: Event) -> None:
        with self._wake:
            self._waiting.append(event)
            self._appended += 1
            self._wake.notify_all()

    async def durable(self, timeout_s: float = 2.0) -> None:
        """Return when everything appended so far is on disk. Raises LedgerError where that takes too long."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._wake:
            if self._written >= self._appended:
                return
            wanted = (self._appended, loop, future)
            self._durable.append(wanted)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as late:
            raise LedgerError(f"the ledger is not being written: {self.trouble or 'the disk is slow'}") from late
        finally:
            with self._wake, contextlib.suppress(ValueError):  # gone already where it was written
                self._durable.remove(wanted)

    def flush(self, timeout_s: float = BUSY_S + 1) -> None:
        """Block until everything appended so far is on disk. Raises LedgerError where that takes too long."""
        with self._wake:
            target = self._appended
            if not self._wake.wait_for(lambda: self._written >= target, timeout_s):
                raise LedgerError(f"the ledger is not being written: {self.trouble or 'the disk is slow'}")

    def events(self, request: str) -> list[dict[str, Any]]:
        """All events of one request that are on disk, oldest first. Raises LedgerError where it cannot be read."""
        try:
            with contextlib.closing(connect(self.path, read_only=True)) as db:
                return list(read_events(db, request))
        except sqlite3.Error as broken:
            raise LedgerError(f"the ledger {self.path} cannot be read: {broken}") from broken

    def close(self) -> None:
        """Write what waits, then stop. Raises LedgerError naming how much a dead disk did not take."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout=BUSY_S + 1)
        if not self._thread.is_alive():  # a connection must not be closed under a thread that uses it
            self._db.close()
        if lost := len(self._waiting):
            raise LedgerError(f"{lost} events of the ledger {self.path} could not be written: {self.trouble}")

    def _write_all(self) -> None:
        try:
            while group := self._next_group():
                try:
                    self._write(group)
                except sqlite3.Error as broken:
                    self.healthy, self.trouble = False, str(broken)
                    with self._wake:
                        if self._stopping:
                            return
                        # The disk may come back. Nothing that waits is thrown away, and new events do not hurry it.
                        self._wake.wait_for(lambda: self._stopping, RETRY_S)
                    continue
                self.healthy, self.trouble = True, ""
                self._acknowledge(len(group))
        finally:
            if self._waiting:  # whatever ended it: nobody may believe that records are being kept
                self.healthy, self.trouble = False, self.trouble or "its writer has stopped"

    def _next_group(self) -> list[Event]:
        """The events to write next, as soon as there are some; none once the store is closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or self._stopping)
            return list(islice(self._waiting, GROUP))

    def _write(self, group: list[Event]) -> None:
        seq, head, rows = self._seq, self._head, []
        for event in group:
            seq += 1
            body = _text(event.body)
            digest = chain_hash(head, self.writer, seq, event, body)
            rows.append(
                (self.writer, seq, event.at, event.kind, event.request, event.key, event.cost, body, head, digest)
            )
            head = digest
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._seq, self._head = seq, head

    def _acknowledge(self, count: int) -> None:
        with self._wake:
            for _ in range(count):
                self._waiting.popleft()
            self._written += count
            ready = [d for d in self._durable if d[0] <= self._written]
            self._durable = [d for d in self._durable if d[0] > self._written]
            self._wake.notify_all()
        for _, loop, future in ready:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, future)


def _text(body: dict[str, Any]) -> str:
    try:
        return orjson.dumps(body).decode()
    except TypeError as broken:  # a bug of ours must cost one body, not the ledger
        return orjson.dumps({"unwritable": str(broken)}).decode()


def chain_hash(head: str, writer: str, seq: int, event: Event, body: str) -> str:
    """SHA-256 that binds an event to all before it of the same writer. Raises TypeError or ValueError for no event."""
    # As SQLite gives them back: a column of REAL makes 1 into 1.0.
    at, cost = float(event.at), None if event.cost is None else float(event.cost)
    fields = [head, writer, seq, at, event.kind, event.request, event.key, cost, body]
    return hashlib.sha256(orjson.dumps(fields)).hexdigest()


def read_events(db: sqlite3.Connection, request: str) -> Iterator[dict[str, Any]]:
    for at, kind, key, cost, body in db.execute(
        "SELECT at, kind, key, cost, body FROM events WHERE request=? ORDER BY at, seq", (request,)
    ):
        yield {"at": at, "kind": kind, "key": key, "cost": cost, **orjson.loads(body)}


def verify(db: sqlite3.Connection) -> list[str]:
    """Hold every chain against its hashes. Returns one sentence per break; an empty list is a whole ledger.

    Events cut off at the end of a chain leave no break behind; they show only against a head kept elsewhere.
    """
    problems, head, last = [], "", ("", 0)
    for writer, seq, at, kind, request, key, cost, body, prev, digest in db.execute(
        "SELECT writer, seq, at, kind, request, key, cost, body, prev, hash FROM events ORDER BY writer, seq"
    ):
        if writer != last[0]:
            head, last = "", (writer, 0)
        try:
            right = chain_hash(prev, writer, seq, Event(at, kind, request, key, {}, cost), body)
        except (TypeError, ValueError):
            right = ""
        if seq != last[1] + 1 or prev != head or right != digest:
            problems.append(f"writer {writer}, event {seq}: changed, missing or out of order")
        head, last = digest, (writer, seq)
    return problems


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
