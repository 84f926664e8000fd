"""What was changed of keys, and by whom: an event of each in the ledger's chain, in the transaction of the change.

What an auditor asks of a request that left is who let its key send that. An event holds no secret and no part of one.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from router.ledger.chain import Event, chain_hash, text
from router.ledger.schema import LedgerError, connect

KIND = "key"
WRITE = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
READ = "SELECT at, key, body FROM events WHERE request = '' AND kind = ? ORDER BY at, rowid"
"""By the index of requests: an event of a key is of none, and so are few others."""


class Change(NamedTuple):
    """One change of one key. `old` and `new`: the settings that differ, by name; for a new key all of them are new."""

    at: float
    key: str
    what: str
    """`created`, `changed` or `revoked`."""
    user: str
    """The user of this machine who gave the command."""
    old: Mapping[str, Any]
    new: Mapping[str, Any]
    instead: str = ""
    """The key in whose place a new one was made."""


class Changes:
    """Writes changes as one chain of the ledger, through the connection that makes them."""

    def __init__(self, db: sqlite3.Connection, user: str) -> None:
        self._db, self._user = db, user
        self._writer, self._seq, self._head = secrets.token_hex(8), 0, ""

    def write(
        self, at: float, key: str, what: str, old: Mapping[str, Any], new: Mapping[str, Any], instead: str = ""
    ) -> None:
        """Within a transaction: what differs, if anything does. Raises sqlite3.Error."""
        differ = [name for name in new if name not in old or old[name] != new[name]]
        if not differ:
            return
        body: dict[str, Any] = {"what": what, "user": self._user, "old": {n: old[n] for n in differ if n in old}}
        body |= {"new": {name: new[name] for name in differ}} | ({"instead": instead} if instead else {})
        event, said, seq = Event(at, KIND, "", key, body), text(body), self._seq + 1
        digest = chain_hash(self._head, self._writer, seq, event, said)
        self._db.execute(WRITE, (self._writer, seq, at, KIND, "", key, None, said, self._head, digest))
        self._seq, self._head = seq, digest

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Where what is inside fails, what was written is taken back with it, and the chain goes on where it stood."""
        stood, done = (self._seq, self._head), False
        try:
            yield
            done = True
        finally:
            if not done:
                self._seq, self._head = stood


def read(path: Path, key: str = "") -> list[Change]:
    """Every change that was written down, of one key or of all, the oldest first. Raises LedgerError."""
    if not path.exists():
        return []
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            found = db.execute(READ, (KIND,)).fetchall()
        return [Change(at, name, **orjson.loads(body)) for at, name, body in found if key in ("", name)]
    except (sqlite3.Error, ValueError, TypeError) as broken:
        raise LedgerError(f"the changes of keys in {path} cannot be read: {broken}") from broken
