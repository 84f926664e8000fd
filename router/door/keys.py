"""Reads one API key's row from the ledger, read-only. Everything that goes wrong means: nothing leaves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from router.door.policy import Key

BUSY_S = 1.0
"""Seconds a locked ledger is waited for."""


class LedgerLost(Exception):
    """The ledger cannot be read; the text says why."""


def read_key(ledger: Path, key: str) -> Key | None:
    """The row of the key with this id, or None. Blocks; call it in a thread. Raises LedgerLost."""
    query = "SELECT id, team, data_class, lanes, expires, revoked, scopes, media_class, requires FROM keys WHERE id = ?"
    try:
        # Opened anew each time, so that a ledger that was replaced or lost is never answered from an old handle.
        with closing(sqlite3.connect(f"file:{quote(str(ledger))}?mode=ro", uri=True, timeout=BUSY_S)) as store:
            store.execute("PRAGMA query_only = 1")
            row = store.execute(query, (key,)).fetchone()
    except sqlite3.Error as lost:
        raise LedgerLost(f"the ledger {ledger} cannot be read: {lost}") from lost
    if row is None:
        return None
    name, team, data_class, lanes, expires, revoked, scopes, media_class, requires = row
    return Key(
        name, team, str(data_class), _listed(lanes), expires, revoked, _listed(scopes), str(media_class),
        _listed(requires),
    )  # fmt: skip


def _listed(text: object) -> frozenset[str]:
    return frozenset(one.strip() for one in str(text).split(",") if one.strip())


def check(ledger: Path) -> None:
    """Whether keys can be read at all. Blocks. Raises LedgerLost."""
    read_key(ledger, "")
