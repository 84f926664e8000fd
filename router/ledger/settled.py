"""How far each writer's requests are known to be closed, so that a start looks only at what can be open.

A writer notes now and then up to which of its events everything that was opened is closed. A note that is missing or
old costs time and is never wrong: it is made from what is on disk, and what was closed stays closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import NamedTuple

from router.ledger.chain import Event

NOTE = "INSERT INTO settled VALUES (?, ?) ON CONFLICT (writer) DO UPDATE SET seq = excluded.seq"
NEXT_WRITER = "SELECT MIN(writer) FROM events WHERE writer > ?"
OPEN = """
SELECT request, key, cost FROM events o WHERE o.writer = :writer AND o.seq > :settled AND +o.kind = 'opened'
AND NOT EXISTS (SELECT 1 FROM events c INDEXED BY events_by_request WHERE c.request = o.request AND c.kind = 'closed')
"""
"""Requests that a writer opened and nobody closed. The plus has SQLite find them by their writer, and the index a
request's events by the request: left to itself it looks through all that were ever opened, or closed."""


class Lost(NamedTuple):
    """A request that was opened and never closed, and what was held for it."""

    request: str
    key: str
    held: float | None


class Unsettled:
    """The requests of one writer that are open by what is on disk."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        """By request, the number of the event that opened it; the oldest is the first."""
        self._last = 0

    def written(self, group: Sequence[Event]) -> None:
        """Take up the writer's next events, which are on disk now."""
        for seq, event in enumerate(group, self._last + 1):
            if event.kind == "opened":
                self._open.setdefault(event.request, seq)
            elif event.kind == "closed":
                self._open.pop(event.request, None)
        self._last += len(group)

    @property
    def settled(self) -> int:
        """The number of the last event up to which nothing is open."""
        return next(iter(self._open.values()), self._last + 1) - 1


def lost(db: sqlite3.Connection, gone: Collection[str] | None = None) -> tuple[list[Lost], dict[str, int]]:
    """What was opened and never closed, and the last event of each writer that was looked at.

    `gone`: those writers' alone; None: that of all.
    """
    found, ends = list[Lost](), dict[str, int]()
    for writer in _writers(db) if gone is None else gone:
        (end,) = db.execute("SELECT MAX(seq) FROM events WHERE writer = ?", (writer,)).fetchone()
        note = db.execute("SELECT seq FROM settled WHERE writer = ?", (writer,)).fetchone()
        settled = note[0] if note else 0
        if end is not None and end > settled:
            found += map(Lost._make, db.execute(OPEN, {"writer": writer, "settled": settled}))
            ends[writer] = end
    return found, ends


def _writers(db: sqlite3.Connection) -> list[str]:
    """All that ever wrote, by a step from each to the next: there are as many as there were starts."""
    found, last = list[str](), ""
    while (last := db.execute(NEXT_WRITER, (last,)).fetchone()[0]) is not None:
        found.append(last)
    return found
