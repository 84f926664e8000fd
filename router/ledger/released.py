"""What an operator sees of the history, and how marks are cleared: never without an event of each in the ledger."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from router.ledger.chain import read_events
from router.ledger.marks import COLUMNS, KILLED, LATEST, LOST, Mark, rows
from router.ledger.store import Event, LedgerError, Store, connect

AT_ONCE = 500
"""Marks that are cleared in one transaction."""
MARK_DIGITS = 32


def look(path: Path, name: str) -> list[Mark]:
    """The marks whose id begins with `name`, or that were noted in the request of that id. Raises LedgerError."""
    if name.startswith("req_"):
        return _where(path, "request = ?", [name])
    if name and not set(name.lower()) - set("0123456789abcdef"):
        ends = [bytes.fromhex(name.lower().ljust(MARK_DIGITS, end)[:MARK_DIGITS]) for end in "0f"]
        return _where(path, "mark >= ? AND mark <= ?", ends)
    return []


def holding(path: Path, request: str) -> list[Mark] | None:
    """The marks that counted when this request was decided and are there still; None where nothing is known of it.

    Raises LedgerError.
    """
    with _reading(path) as db:
        opened = next((event for event in read_events(db, request) if event["kind"] == "opened"), None)
    if opened is None:
        return None
    return [mark for name in opened.get("marks", ()) if name != LOST for mark in look(path, name)]


def of_kinds(path: Path, stands: Callable[[str], bool]) -> tuple[list[Mark], int]:
    """The marks that are there only for kinds which `stands` for, and how many are there for other kinds as well.

    Raises LedgerError.
    """
    said = [(mark, {stands(kind) for kind in mark.kinds.split(",")}) for mark in _where(path, "1", [])]
    return [mark for mark, each in said if each == {True}], sum(len(each) > 1 for _, each in said)


def lost_until(path: Path) -> float:
    """Until when everything counts as private since marks were lost; 0 where none were, or that is over.

    Raises LedgerError.
    """
    state = _state(path)
    return until if (until := state.get(LOST, 0.0)) > state.get(LATEST, 0.0) else 0.0


def killed_at(path: Path) -> float:
    """When it was last seen that a process had ended without writing all down; 0 where none has. Raises LedgerError."""
    return _state(path).get(KILLED, 0.0)


def known_time(path: Path) -> float:
    """The latest time that the history knows: what ends before it has ended. Raises LedgerError."""
    return _state(path).get(LATEST, 0.0)


def release(path: Path, marks: Sequence[Mark], who: str, now: float) -> None:
    """Clear marks; the ledger's chain says so of each first. Raises LedgerError."""
    for start in range(0, len(marks), AT_ONCE):
        some = marks[start : start + AT_ONCE]
        _say(path, [(mark.request, {"mark": mark.id, **_told(mark)}) for mark in some], who, now)
        _clear(path, "DELETE FROM marks WHERE mark = ?", [(mark.mark,) for mark in some])


def release_loss(path: Path, who: str, now: float) -> None:
    """Have what was lost count for nothing; the ledger's chain says so first. Raises LedgerError."""
    _say(path, [("", {"mark": LOST})], who, now)
    _clear(path, "DELETE FROM history WHERE name = ?", [(LOST,)])


def _told(mark: Mark) -> dict[str, Any]:
    return {"what": mark.kind, "data_class": mark.data_class.name, "team": mark.team, "noted": mark.at}


def _say(path: Path, said: Sequence[tuple[str, dict[str, Any]]], who: str, now: float) -> None:
    by = {"by": "headgate privacy release", "user": who}
    with contextlib.closing(Store(path)) as store:
        for request, body in said:
            store.append(Event(now, "released", request, "", body | by))
        store.flush()


def _clear(path: Path, statement: str, values: Sequence[Any]) -> None:
    try:
        with contextlib.closing(connect(path)) as db, db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(statement, values)
    except sqlite3.Error as broken:
        raise LedgerError(f"the history in {path} cannot be changed: {broken}") from broken


def _where(path: Path, where: str, values: Sequence[Any]) -> list[Mark]:
    with _reading(path) as db:
        statement = f"SELECT {COLUMNS} FROM marks WHERE {where} ORDER BY at DESC"  # noqa: S608  names alone
        return list(rows(db.execute(statement, values)))


def _state(path: Path) -> dict[str, float]:
    with _reading(path) as db:
        found = db.execute("SELECT name, value FROM history WHERE name <> 'check'")
        return {name: float(value) for name, value in found}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            yield db
    except sqlite3.Error as broken:
        raise LedgerError(f"the history in {path} cannot be read: {broken}") from broken
