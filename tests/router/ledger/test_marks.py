"""The table of marks: what was added is there, whoever wrote it, and what a dead disk does not take opens nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.ledger import marks as module
from router.ledger.marks import Mark, Marks
from router.ledger.released import killed_at, look, release_loss
from router.ledger.store import LedgerError
from tests.conftest import ROOT, until
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


def opened(path: Path, clocks: Clocks | None = None, *, alone: bool = False) -> Marks:
    clocks = clocks or Clocks()
    return Marks(path, "check", path.with_name("begun"), 30, clocks.wall, clocks.monotonic, alone=alone)


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


def test_who_is_alone_knows_without_the_disk_what_was_never_noted(path: Path) -> None:
    with contextlib.closing(opened(path)) as before:
        old = mark(before)
        before.add([old])
        assert not before.in_memory and not before.none_of([b"x" * 16])  # another process may have noted it
    clocks = Clocks()
    with contextlib.closing(opened(path, clocks, alone=True)) as table:
        new = mark(table, 2)
        assert table.in_memory and table.none_of([new.mark, b"x" * 16]) and table.none_of([])
        assert not table.none_of([b"x" * 16, old.mark])
        table.add([new])
        assert not table.none_of([new.mark])
        table.flush()
        assert not table.none_of([new.mark]) and table.none_of([b"x" * 16])
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        assert table.none_of([b"x" * 16])
        other.rename(path)  # a copy from yesterday, say: it is read
        clocks.steady += module.LOOK_S
        assert not table.none_of([b"x" * 16])
    with contextlib.closing(opened(path, clocks, alone=True)) as table:
        assert table.none_of([b"x" * 16])
        path.unlink()
        clocks.steady += module.LOOK_S
        assert not table.none_of([b"x" * 16])


def test_nothing_is_certain_without_the_disk_after_a_loss_or_where_there_are_too_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 2)
    with contextlib.closing(opened(path, alone=True)) as table:
        table.add([mark(table, 1), mark(table, 2)])
        assert table.none_of([b"x" * 16])
        table.add([mark(table, 3)])
        assert not table.none_of([b"x" * 16])
    with contextlib.closing(opened(path, alone=True)) as table:
        assert not table.none_of([b"x" * 16])
    monkeypatch.undo()
    with contextlib.closing(opened(path, alone=True)) as table:
        assert table.none_of([b"x" * 16])
        table.dropped = True
        assert not table.none_of([b"x" * 16])
        table.dropped = False
    path.unlink()  # all that was noted is lost
    with contextlib.closing(opened(path, alone=True)) as table:
        assert table.lost() and not table.none_of([b"x" * 16])


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
            both = high._replace(expires=low.expires, kinds="card,email")
            assert one.find([low.mark]) == two.find([low.mark]) == [both]
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("DELETE FROM marks")
                db.commit()
    with contextlib.closing(opened(path, clocks)) as table:
        table.add([low])
        table.add([high])  # while the first one waits to be written
        assert table.find([low.mark]) == [both]


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
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    with pytest.raises(LedgerError, match="not all"):
        table.close()


def test_what_a_full_disk_does_not_take_at_the_end_is_told_and_lost_for_the_next_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.05)
    table = opened(path)
    monkeypatch.setattr(table, "_write", lambda group: (_ for _ in ()).throw(sqlite3.OperationalError("full")))
    table.add([mark(table)])
    with pytest.raises(LedgerError, match="everything counts as private"):
        table.close()
    with contextlib.closing(opened(path)) as again:
        assert again.lost() > 0 and again.killed == 0
    release_loss(path, "someone", 1.0)
    with contextlib.closing(opened(path)) as again:
        assert again.lost() == 0.0


def test_a_disk_that_comes_back_during_the_stop_takes_what_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    table = opened(path)
    tries, write = [0], table._write

    def locked_at_first(group: list[Mark]) -> None:
        tries[0] += 1
        if tries[0] < 3:
            raise sqlite3.OperationalError("database is locked")
        write(group)

    monkeypatch.setattr(table, "_write", locked_at_first)
    table.add([mark(table)])
    table.close()
    with contextlib.closing(opened(path)) as again:
        assert len(again.find([bytes([1]) * 16])) == 1 and again.lost() == 0.0


def test_a_process_that_was_killed_is_seen_by_the_next_one_and_a_live_one_is_not(path: Path) -> None:
    """A lock ends with its process, however that ends."""
    body = (
        "import os, sys; from pathlib import Path; from router.ledger.marks import Marks; path = Path(sys.argv[1])\n"
        "Marks(path, 'check', path.with_name('begun'), 30); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", body, str(path)], cwd=ROOT, check=False)
    with contextlib.closing(opened(path)) as one:
        assert one.killed == 1 and killed_at(path) > 0
        with contextlib.closing(opened(path)) as two:
            assert two.killed == 0
    with contextlib.closing(opened(path)) as last:
        assert last.killed == 0 and last.lost() == 0.0


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
