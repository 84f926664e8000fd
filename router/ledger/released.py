"""What an operator sees of the history, and how a mark is cleared: never without an event in the ledger's chain."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router.ledger.marks import COLUMNS, LOST, Mark, rows
from router.ledger.store import Event, LedgerError, Store, connect


def look(path: Path, name: str, most: int = 50) -> list[Mark]:
    """The marks whose id begins with `name`, or that were noted in the request of that id. Raises LedgerError."""
    with _reading(path) as db:
        values: list[Any]
        if name.startswith("req_"):
            where, values = "request = ?", [name]
        elif name and not set(name.lower()) - set("0123456789abcdef"):
            where = "mark >= ? AND mark <= ?"
            values = [bytes.fromhex(name.lower().ljust(32, end)[:32]) for end in "0f"]
        else:
            return []
        statement = f"SELECT {COLUMNS} FROM marks WHERE {where} ORDER BY at DESC LIMIT ?"  # noqa: S608  names alone
        return list(rows(db.execute(statement, [*values, most])))


def lost_until(path: Path) -> float:
    """Until when everything counts as private since the marks were lost; 0 where they were not. Raises LedgerError."""
    with _reading(path) as db:
        found = db.execute("SELECT value FROM history WHERE name = ?", (LOST,)).fetchone()
        return float(found[0]) if found else 0.0


def release(path: Path, mark: Mark | None, who: str, now: float) -> None:
    """Clear a mark, or with None the loss of all; the ledger's chain says so first. Raises LedgerError."""
    named = LOST if mark is None else mark.id
    body: dict[str, Any] = {"mark": named, "by": "headgate privacy release", "user": who}
    if mark is not None:
        body |= {"what": mark.kind, "data_class": mark.data_class.name, "team": mark.team, "noted": mark.at}
    with contextlib.closing(Store(path)) as store:
        store.append(Event(now, "released", mark.request if mark else "", "", body))
        store.flush()
    try:
        with contextlib.closing(connect(path)) as db:
            if mark is None:
                db.execute("DELETE FROM history WHERE name = ?", (LOST,))
            else:
                db.execute("DELETE FROM marks WHERE mark = ?", (mark.mark,))
    except sqlite3.Error as broken:
        raise LedgerError(f"the history in {path} cannot be changed: {broken}") from broken


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            yield db
    except sqlite3.Error as broken:
        raise LedgerError(f"the history in {path} cannot be read: {broken}") from broken
