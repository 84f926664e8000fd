"""What is written down: events, each bound by its hash to all before it of the same writer; and how that is checked."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson


class Event(NamedTuple):
    """One thing that happened. `cost` in US dollars: the hold of an `opened`, the price of a `closed`."""

    at: float
    kind: str
    request: str
    key: str
    body: dict[str, Any]
    cost: float | None = None


def text(body: dict[str, Any]) -> str:
    """A body as it is written."""
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
