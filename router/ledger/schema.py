"""The ledger's SQLite file: its tables, and how it is made, brought up to date, checked and opened."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path

SCHEMA_VERSION = 7
EVENTS = """
CREATE TABLE events (
    writer TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
    key TEXT NOT NULL, cost REAL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (writer, seq))
"""
"""Not WITHOUT ROWID: such a table puts what a row has beyond a quarter of a page into a page of its own, so each event
took 2.7 kB of disk and twice the time."""
INDICES = (
    "CREATE INDEX events_by_request ON events (request, kind, key, cost)",
    "CREATE INDEX events_by_time ON events (at, kind, request) WHERE kind = 'opened'",
    "CREATE INDEX refused_by_time ON events (at) WHERE kind = 'refused'",
)
"""With what a start reads of requests, so that it need not look at the events themselves; `closed` is in one alone."""
SETTLED = "CREATE TABLE settled (writer TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID"
"""Up to which event of a writer everything that was opened is closed; see `settled.py`."""
KEYS = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, team TEXT NOT NULL, data_class TEXT NOT NULL, mac TEXT NOT NULL, last4 TEXT NOT NULL,
    lanes TEXT NOT NULL, substitute INTEGER NOT NULL DEFAULT 0, budget_usd REAL, created REAL NOT NULL,
    expires REAL, revoked REAL, scopes TEXT NOT NULL DEFAULT '', requests_per_minute INTEGER,
    tokens_per_minute INTEGER, media_class TEXT NOT NULL DEFAULT 'private', requires TEXT NOT NULL DEFAULT '',
    latency TEXT NOT NULL DEFAULT 'interactive', first TEXT NOT NULL DEFAULT '')
"""
MARKS = (
    """
CREATE TABLE marks (
    mark BLOB PRIMARY KEY, kind TEXT NOT NULL, data_class INTEGER NOT NULL, team TEXT NOT NULL, request TEXT NOT NULL,
    kinds TEXT NOT NULL, at REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID
""",
    "CREATE INDEX marks_by_end ON marks (expires)",
    "CREATE TABLE history (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)
"""Keyed hashes of what was private once, and what is known of their table itself; see `marks.py`."""
SCHEMA = (EVENTS, *INDICES, SETTLED, KEYS, *MARKS)
FIRST_OF_KEYS = """
WITH RECURSIVE rotated (id, old) AS (
    SELECT key, json_extract(body, '$.instead') FROM events
    WHERE request = '' AND kind = 'key' AND json_extract(body, '$.instead') IS NOT NULL),
chain (id, first, steps) AS (
    SELECT id, old, 1 FROM rotated
    UNION ALL SELECT chain.id, rotated.old, steps + 1 FROM chain JOIN rotated ON rotated.id = chain.first
    WHERE steps < 1000)
UPDATE keys SET first = (SELECT first FROM chain WHERE chain.id = keys.id ORDER BY steps DESC LIMIT 1)
WHERE id IN (SELECT id FROM rotated)
"""
"""What earlier releases wrote down of rotations alone: in whose place a key was made, from one to the next."""
UPGRADES = {
    1: ("ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT ''",),
    2: (
        "ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER",
        "ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER",
    ),
    3: (
        "ALTER TABLE events RENAME TO earlier",
        EVENTS,
        "INSERT INTO events SELECT * FROM earlier ORDER BY writer, seq",
        "DROP TABLE earlier",  # and its indices, whose names the next ones have
        *INDICES,
        SETTLED,
    ),
    4: (
        "ALTER TABLE keys ADD COLUMN media_class TEXT NOT NULL DEFAULT 'private'",
        "ALTER TABLE keys ADD COLUMN requires TEXT NOT NULL DEFAULT ''",
        *MARKS,
    ),
    5: ("ALTER TABLE keys ADD COLUMN latency TEXT NOT NULL DEFAULT 'interactive'",),
    6: ("ALTER TABLE keys ADD COLUMN first TEXT NOT NULL DEFAULT ''", FIRST_OF_KEYS),
}
"""By the schema that is found, what makes the next one of it."""
BUSY_S = 5.0
"""Seconds a lock that another process holds is waited for."""


class LedgerError(Exception):
    """The ledger cannot be used; the text says why and what to do."""


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
        with contextlib.ExitStack() as half_open:
            half_open.callback(db.close)
            if not read_only:
                _upgrade(db)
            _check(db, path)
            if not read_only:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")  # what was acknowledged must survive a power cut
            half_open.pop_all()
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
            tables = ";".join(SCHEMA)
            db.executescript(f"BEGIN; {tables}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT; PRAGMA journal_mode=WAL")
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _upgrade(db: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier release to this one's schema. Nothing that was written is changed."""
    first = db.execute("PRAGMA user_version").fetchone()[0]
    while (found := db.execute("PRAGMA user_version").fetchone()[0]) in UPGRADES:
        with db:  # all of it or nothing
            db.execute("BEGIN IMMEDIATE")
            # Asked again inside: another process may have done it meanwhile.
            if db.execute("PRAGMA user_version").fetchone()[0] == found:
                for statement in UPGRADES[found]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={found + 1}")
    if first in UPGRADES:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else a log as large as the ledger would stay beside it


def _check(db: sqlite3.Connection, path: Path) -> None:
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        empty = "is empty" if path.stat().st_size == 0 else "is no ledger"
        raise LedgerError(f"{path} {empty}; restore a backup, or remove it to begin anew without keys and records")
    if found in UPGRADES:
        raise LedgerError(f"{path} is of an earlier release (schema {found}); headgate up brings it up to date")
    if found != SCHEMA_VERSION:
        raise LedgerError(f"{path} has schema {found}, this release writes {SCHEMA_VERSION}; use the matching release")
