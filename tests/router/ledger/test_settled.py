"""What was left open is found at the next start, all of it, and without reading what was closed long ago."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.ledger import store as store_module
from router.ledger.budgets import Budgets
from router.ledger.entries import settle_lost
from router.ledger.settled import Unsettled, lost
from router.ledger.store import Event, LedgerError, Store, connect, verify

KINDS = st.lists(st.tuples(st.sampled_from(["opened", "closed", "refused"]), st.integers(0, 6)), max_size=40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as made:
        yield made


def event(kind: str, request: str, held: float = 0.0) -> Event:
    return Event(0.0, kind, request, "k1", {}, held)


def store_requests(store: Store, count: int) -> None:
    for _ in range(count):
        name = f"req_{secrets.token_hex(8)}"
        store.append(event("opened", name))
        store.append(event("closed", name))
    store.flush()


def steps(path: Path) -> int:
    """What SQLite does to find nothing lost."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    with contextlib.closing(connect(path, read_only=True)) as db:
        db.set_progress_handler(count, 10)
        assert lost(db)[0] == []
    return counted


def note(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


@settings(max_examples=200, deadline=None)
@given(drawn=KINDS, size=st.integers(1, 5))
def test_up_to_where_all_is_settled_nothing_is_open(drawn: list[tuple[str, int]], size: int) -> None:
    events = [event(kind, f"r{number}") for kind, number in drawn]
    unsettled = Unsettled()
    for at in range(0, len(events), size):
        unsettled.written(events[at : at + size])
        on_disk = events[: at + size]
        for seq, opened in enumerate(on_disk, 1):
            if opened.kind == "opened" and seq <= unsettled.settled:
                assert event("closed", opened.request) in on_disk[seq:]
    if not any(e.kind == "opened" for e in events):
        assert unsettled.settled == len(events)


def test_a_start_after_an_orderly_stop_reads_no_event(path: Path) -> None:
    found = []
    for count in (20, 400):
        with contextlib.closing(Store(path)) as store:
            store_requests(store, count)
        found.append(steps(path))
    assert found[1] < found[0] + 20  # one writer more, not twenty times the events


def test_a_start_after_a_crash_reads_what_came_since_the_last_note(path: Path) -> None:
    with contextlib.closing(Store(path)) as store:
        store_requests(store, 400)
    note(path, "DELETE FROM settled")
    all_of_it = steps(path)
    note(path, f"INSERT INTO settled VALUES ('{store.writer}', 760)")
    assert steps(path) < all_of_it / 5


def test_what_was_spent_is_read_out_of_the_indices_alone(store: Store, path: Path) -> None:
    """A ledger is far larger than memory; its events are not read at a start, only what the indices have of them."""
    plans: list[str] = []
    with contextlib.closing(connect(path, read_only=True)) as db:

        def look(statement: str) -> None:
            if not statement.startswith("EXPLAIN"):
                plans.extend(row[3] for row in planner.execute(f"EXPLAIN QUERY PLAN {statement}"))

        with contextlib.closing(connect(path, read_only=True)) as planner:
            db.set_trace_callback(look)
            Budgets().load(db, 1e9)
    read = [plan for plan in plans if plan.startswith(("SEARCH", "SCAN")) and plan != "SCAN keys"]
    assert len(read) == 2 and all("USING COVERING INDEX" in plan for plan in read), plans


def test_what_was_settled_once_is_not_looked_at_again(path: Path) -> None:
    with contextlib.closing(Store(path)) as store:
        store_requests(store, 400)
    note(path, "DELETE FROM settled")
    first = steps(path)
    with contextlib.closing(Store(path)) as store:
        assert settle_lost(store, 1.0) == 0
    assert steps(path) < first / 5


def test_looking_for_lost_requests_takes_as_long_as_there_are_requests(path: Path) -> None:
    """And not the square of it, where no note was made: a ledger of an earlier release is read to its end once."""
    found = []
    for _ in range(2):
        with contextlib.closing(Store(path)) as store:
            store_requests(store, 200)
        note(path, "DELETE FROM settled")
        found.append(steps(path))
    assert found[1] < 3 * found[0]


def test_a_request_that_stays_open_is_found_however_many_came_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "NOTE_EVERY", 10)
    with contextlib.closing(Store(path)) as store:
        store_requests(store, 20)
        store.append(event("opened", "stays", held=0.25))
        store_requests(store, 50)
    with contextlib.closing(connect(path, read_only=True)) as db:
        assert db.execute("SELECT seq FROM settled").fetchall() == [(40,)]
    with contextlib.closing(Store(path)) as later:
        assert settle_lost(later, 1.0) == 1
        closed = later.events("stays")[-1]
        assert (closed["kind"], closed["outcome"], closed["cost"]) == ("closed", "lost", 0.25)
    with contextlib.closing(Store(path)) as last:
        assert settle_lost(last, 2.0) == 0


def test_a_note_that_cannot_be_written_harms_no_record(store: Store, path: Path) -> None:
    note(path, "DROP TABLE settled")
    store_requests(store, 5)
    store.close()
    assert store.healthy
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM events").fetchone() == (10,)
        assert verify(db) == []


def test_a_ledger_that_cannot_be_read_is_said(store: Store, path: Path) -> None:
    store_requests(store, 1)
    note(path, "DROP TABLE settled")
    with pytest.raises(LedgerError, match="cannot be read"):
        settle_lost(store, 1.0)


WRITER = """
import sys
from pathlib import Path
from router.ledger import store as module
from router.ledger.store import Event, Store

module.NOTE_EVERY = 20
store, number = Store(Path(sys.argv[1])), 0
while True:
    number += 1
    store.append(Event(1.0, "opened", f"r{number}", "k1", {}, 0.5))
    if number % 50:
        store.append(Event(1.0, "closed", f"r{number}", "k1", {}, 0.1))
    if number % 5 == 0:
        store.flush()
        print(number, flush=True)
"""


def test_after_kill_9_all_that_was_open_is_closed_and_nothing_else(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    while int(child.stdout.readline()) < 300:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with contextlib.closing(connect(path, read_only=True)) as db:
        opened, closed = (
            {request for (request,) in db.execute("SELECT request FROM events WHERE kind = ?", (kind,))}
            for kind in ("opened", "closed")
        )
        assert db.execute("SELECT seq FROM settled").fetchall() == [(98,)]  # r50 was opened by event 99
    assert len(opened - closed) >= 6
    with contextlib.closing(Store(path)) as store:
        assert settle_lost(store, 2.0) == len(opened - closed)
        assert settle_lost(store, 2.0) == 0
    with contextlib.closing(connect(path, read_only=True)) as db:
        assert verify(db) == []
        again = "SELECT request FROM events WHERE kind = 'closed' GROUP BY request HAVING COUNT(*) > 1"
        assert db.execute(again).fetchall() == []
