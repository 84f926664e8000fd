"""The table of marks: what was added is there, whoever wrote it, and what a dead disk does not take opens nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.ledger import marks as module
from router.ledger.marks import Mark, Marks
from router.ledger.released import look
from router.ledger.store import LedgerError
from tests.conftest import until
from tests.fakes.remembering import INTERNAL, PRIVATE, Clocks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def table(path: Path) -> Iterator[Marks]:
    made = opened(path)
    yield made
    with contextlib.suppress(LedgerError):
        made.close()


def opened(path: Path, clocks: Clocks | None = None) -> Marks:
    clocks = clocks or Clocks()
    return Marks(path, "check", path.with_name("begun"), 30, clocks.wall, clocks.monotonic)


def mark(table: Marks, number: int = 1, **changed: object) -> Mark:
    now = table.clock.now()
    made = Mark(bytes([number]) * 16, "answer", PRIVATE, "search", f"req_{number}", "card", now, now + 1000)
    return made._replace(**changed)  # type: ignore[arg-type]


def test_what_was_added_is_found_at_once_and_after_it_was_written(table: Marks, path: Path) -> None:
    one = mark(table)
    table.add([one])
    assert table.find([one.mark, b"x" * 16]) == [one]
    table.flush()
    assert table.find([one.mark]) == [one]
    assert look(path, one.id) == [one]


def test_the_higher_class_and_the_later_end_win_whoever_writes_first(path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(path, clocks)) as one, contextlib.closing(opened(path, clocks)) as two:
        low = mark(one, data_class=INTERNAL, kinds="email", kind="message", expires=clocks.at + 500)
        high = mark(one, request="req_2", expires=clocks.at + 100)
        for first, second in ((low, high), (high, low)):
            one.add([first])
            one.flush()
            two.add([second])
            two.flush()
            assert one.find([low.mark]) == two.find([low.mark]) == [high._replace(expires=low.expires)]
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("DELETE FROM marks")
                db.commit()
    with contextlib.closing(opened(path, clocks)) as table:
        table.add([low])
        table.add([high])  # while the first one waits to be written
        assert table.find([low.mark]) == [high._replace(expires=low.expires)]


def test_what_has_ended_is_removed(path: Path) -> None:
    clocks = Clocks()
    with contextlib.closing(opened(path, clocks)) as table:
        table.add([mark(table)])
        table.flush()
        clocks.pass_days(1)
        table.add([mark(table, 2)])
        table.flush()
        assert look(path, "01") == []
        assert table.find([bytes([1]) * 16]) == []
        assert len(look(path, "02")) == 1


async def test_a_disk_that_takes_nothing_loses_nothing_in_this_process(table: Marks, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE marks RENAME TO away")
        table.add([mark(table)])
        await until(lambda: table.trouble)
        with pytest.raises(LedgerError):
            table.find([bytes([1]) * 16])
        db.execute("ALTER TABLE away RENAME TO marks")
    table.flush()
    assert len(table.find([bytes([1]) * 16])) == 1
    assert table.trouble == ""


def test_beyond_what_may_wait_nothing_is_known_for_sure(
    table: Marks, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    monkeypatch.setattr(table, "_write", lambda group: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    table.add([mark(table, number) for number in range(1, 5)])
    with pytest.raises(LedgerError, match="more was private"):
        table.find([b"x" * 16])
    with pytest.raises(LedgerError, match="not all"):
        table.close()


def test_a_lock_that_is_held_long_stops_nobody_from_asking(table: Marks, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        table.add([mark(table)])
        assert len(table.find([bytes([1]) * 16])) == 1
        with pytest.raises(LedgerError, match="not being written"):
            table.flush(0.01)
        db.execute("COMMIT")
    table.flush()


def test_workers_that_start_together_take_a_beginning_for_no_loss(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        tables = [stack.enter_context(contextlib.closing(opened(path))) for _ in range(4)]
        assert [table.lost() for table in tables] == [0.0] * 4


def test_many_are_looked_up_at_once(table: Marks) -> None:
    many = [mark(table)._replace(mark=os.urandom(16)) for _ in range(1201)]
    table.add(many)
    table.flush()
    assert len(table.find([one.mark for one in many])) == 1201
