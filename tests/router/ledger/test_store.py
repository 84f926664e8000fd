"""The ledger's file: what was acknowledged is there, what was changed is found, and damage is never read as empty."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from router.ledger import store as module
from router.ledger.store import Event, LedgerError, Store, connect, verify


def event(number: int = 0, **changed: object) -> Event:
    fields: dict[str, object] = {
        "at": 1000.0 + number, "kind": "opened", "request": f"r{number}", "key": "k1", "body": {"n": number},
        "cost": 0.5,
    }  # fmt: skip
    return Event(**fields | changed)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(module, "BUSY_S", 0.02)  # tests do not wait five seconds for a lock
    made = Store(path)
    yield made
    with contextlib.suppress(LedgerError):
        made.close()


def broken(path: Path) -> list[str]:
    with contextlib.closing(connect(path)) as db:
        return verify(db)


def rows(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(connect(path, read_only=True)) as db:
        return db.execute("SELECT * FROM events ORDER BY writer, seq").fetchall()


async def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        await asyncio.sleep(0.01)


async def test_after_durable_another_process_can_read_it(store: Store, path: Path) -> None:
    for number in range(700):  # more than one group
        store.append(event(number))
    await store.durable()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM events").fetchone() == (700,)
    assert store.events("r5") == [{"at": 1005.0, "kind": "opened", "key": "k1", "cost": 0.5, "n": 5}]
    assert broken(path) == []


async def test_durable_is_at_once_where_nothing_waits(store: Store) -> None:
    await store.durable(timeout_s=0)
    store.append(event())
    await store.durable()
    await store.durable(timeout_s=0)


async def test_many_may_wait_at_once(store: Store) -> None:
    async def one(number: int) -> None:
        store.append(event(number))
        await store.durable()
        assert store.events(f"r{number}")

    await asyncio.gather(*(one(n) for n in range(100)))


def test_whole_numbers_and_odd_values_do_not_break_the_chain(store: Store, path: Path) -> None:
    for at, cost in ((7, 0), (8, None), (9, 10**6), (10.25, float("nan")), (11, 1e-12)):
        store.append(event(at=at, cost=cost))
    store.append(event(body={"text": "ключ \U0001f511 \x00", "deep": [{"a": None}]}))
    store.flush()
    assert broken(path) == []


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group is given so long to fill that no test would see it written for that."""
    monkeypatch.setattr(module, "GROUP_WAIT_S", 60.0)


@pytest.mark.usefixtures("patient")
async def test_whoever_waits_for_the_disk_does_not_wait_for_others(store: Store, path: Path) -> None:
    for number in range(3):  # the writer sleeps, or has begun a group already
        store.append(event(number))
        await store.durable()
    store.append(event(3))
    store.flush()
    store.append(event(4))
    store.close()
    assert len(rows(path)) == 5


@pytest.mark.usefixtures("patient")
async def test_what_comes_together_is_written_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    write = store._write
    monkeypatch.setattr(store, "_write", lambda group: (groups.append(len(group)), write(group)))
    for number in range(30):
        store.append(event(number))
        await asyncio.sleep(0)
    await store.durable()
    assert groups == [30]


def test_groups_of_every_size_are_written_with_few_statements(path: Path) -> None:
    """Each statement stays in memory; one for every size was the growth of a router's memory over its first hours."""
    module._insert.cache_clear()
    with contextlib.closing(Store(path)) as store:
        for size in range(1, module.GROUP + 1):
            store._waiting.extend(event(number) for number in range(size))
            store._appended += size
            store.flush()
        assert module._insert.cache_info().currsize <= len(module.SIZES) < 25
    assert [row[4] for row in rows(path)] == [f"r{n}" for size in range(1, module.GROUP + 1) for n in range(size)]
    assert broken(path) == []


async def test_what_nobody_waits_for_is_written_all_the_same(store: Store, path: Path) -> None:
    for number in range(3):
        store.append(event(number))
        await until(lambda expected=number + 1: len(rows(path)) == expected)


CHANGES = [
    "UPDATE events SET cost=cost+0.01 WHERE seq=3",
    "UPDATE events SET cost=NULL WHERE seq=3",
    "UPDATE events SET at=at+1 WHERE seq=3",
    "UPDATE events SET kind='closed' WHERE seq=3",
    "UPDATE events SET request='other' WHERE seq=3",
    "UPDATE events SET key='other' WHERE seq=3",
    "UPDATE events SET body='{}' WHERE seq=3",
    "UPDATE events SET body=CAST(body AS BLOB) WHERE seq=3",
    "UPDATE events SET at='soon' WHERE seq=3",
    "UPDATE events SET hash=prev WHERE seq=3",
    "UPDATE events SET prev='' WHERE seq=3",
    "UPDATE events SET writer='other' WHERE seq=3",
    "DELETE FROM events WHERE seq=1",
    "DELETE FROM events WHERE seq=3",
    "DELETE FROM events WHERE seq IN (2, 3)",
    "UPDATE events SET seq=99 WHERE seq=3; UPDATE events SET seq=3 WHERE seq=4; UPDATE events SET seq=4 WHERE seq=99",
    "UPDATE events SET seq=seq+1000; UPDATE events SET seq=seq-999",
    "INSERT INTO events SELECT writer, seq+5, at, kind, request, key, cost, body, prev, hash FROM events WHERE seq=5",
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_row_edited_deleted_reordered_or_repeated_is_found(store: Store, path: Path, change: str) -> None:
    for number in range(5):
        store.append(event(number))
    store.flush()
    assert broken(path) == []
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(change)
    assert broken(path)


def test_a_break_is_named_where_it_is(store: Store, path: Path) -> None:
    for number in range(5):
        store.append(event(number))
    store.flush()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("UPDATE events SET cost=0 WHERE seq=4")
    assert broken(path) == [f"writer {store.writer}, event 4: changed, missing or out of order"]


def test_two_writers_on_one_file_keep_a_chain_each(path: Path) -> None:
    with contextlib.closing(Store(path)) as one, contextlib.closing(Store(path)) as two:
        for number in range(200):
            one.append(event(number))
            two.append(event(number))
        one.flush()
        two.flush()
    found = rows(path)
    assert {(row[0], row[1]) for row in found} == {(s.writer, n) for s in (one, two) for n in range(1, 201)}
    assert broken(path) == []


def test_workers_of_one_file_wait_for_each_other_and_lose_nothing(path: Path) -> None:
    Store(path).close()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", WRITER, str(path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    writers = set()
    for child in children:
        assert child.stdout is not None
        writers.add(child.stdout.readline().decode().strip())
    for child in children:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 90:
            pass
    for child in children:
        child.kill()
        child.communicate()
    counted = {writer: len([row for row in rows(path) if row[0] == writer]) for writer in writers}
    assert len(counted) == 3
    assert min(counted.values()) >= 90
    assert broken(path) == []


async def test_a_lock_that_another_worker_holds_for_a_moment_is_no_trouble(path: Path) -> None:
    with contextlib.closing(Store(path)) as store:
        with locked(path):
            store.append(event())
            waiting = asyncio.ensure_future(store.durable())
            await until(lambda: store._asked)
            assert store.healthy
        await waiting
        assert store.healthy
    assert len(rows(path)) == 1


WRITER = """
import asyncio, sys
from pathlib import Path
from router.ledger.store import Event, Store

async def main():
    store = Store(Path(sys.argv[1]))
    print(store.writer, flush=True)
    number = 0
    while True:
        number += 1
        store.append(Event(1.0, "opened", f"r{number}", "k1", {"n": number}, 0.5))
        if number % 3 == 0:
            await store.durable(10)
            print(number, flush=True)

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_acknowledged(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    for _ in range(2):  # the second start finds what the first left behind
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment)
        assert child.stdout is not None
        writer, acknowledged = child.stdout.readline().decode().strip(), 0
        while acknowledged < 60:
            acknowledged = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().decode().split()
        child.wait()
        child.stdout.close()
        acknowledged = max([acknowledged, *map(int, rest[:-1])])  # the last line may be half a line
        found = {row[4] for row in rows(path) if row[0] == writer}
        assert found >= {f"r{n}" for n in range(1, acknowledged + 1)}
        assert broken(path) == []


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds the file's write lock, as far as the store can see."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


async def test_a_disk_that_takes_nothing_is_said_and_nothing_is_lost(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPOOL_LIMIT", 50)
    with locked(path):
        store.append(event(0))
        await until(lambda: not store.healthy)
        assert "locked" in store.trouble
        started = time.monotonic()
        with pytest.raises(LedgerError, match=r"not being written: .*locked"):
            await store.durable(timeout_s=0.05)
        assert time.monotonic() - started < 1
        assert store._asked == []  # who gave up waiting is not kept
        with pytest.raises(LedgerError, match="not being written"):
            store.flush(timeout_s=0.05)
        for number in range(1, 50):
            assert not store.full
            store.append(event(number))
        assert store.full  # from here on whoever opens entries stops
    await store.durable(timeout_s=10)
    assert (store.healthy, store.trouble, store.full) == (True, "", False)
    assert [row[4] for row in rows(path)] == [f"r{n}" for n in range(50)]
    assert broken(path) == []


async def test_a_full_disk_is_said_and_nothing_is_lost(store: Store, path: Path) -> None:
    store.append(event(0))
    await store.durable()
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")
    for number in range(1, 400):
        store.append(event(number, body={"padding": "x" * 500}))
    await until(lambda: not store.healthy)
    assert "full" in store.trouble
    store._db.execute("PRAGMA max_page_count=1000000")
    await store.durable(timeout_s=10)
    assert store.healthy
    assert len(rows(path)) == 400
    assert broken(path) == []


def test_closing_writes_what_waits_and_says_what_is_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    for number in range(100):
        store.append(event(number))
    store.close()
    assert len(rows(path)) == 100
    store = Store(path)
    monkeypatch.setattr(module, "BUSY_S", 0.02)
    with locked(path):
        store.append(event(0))
        store.append(event(1))
        with pytest.raises(LedgerError, match=r"2 events .* could not be written: .*locked"):
            store.close()
    assert len(rows(path)) == 100


async def test_a_body_that_cannot_be_written_costs_one_body_and_not_the_ledger(store: Store, path: Path) -> None:
    store.append(event(0, body={"bad": object()}))
    store.append(event(1))
    await store.durable()
    assert [row[4] for row in rows(path)] == ["r0", "r1"]
    assert "unwritable" in store.events("r0")[0]
    assert broken(path) == []


class Shared(deque[Event]):
    """What waits, as the writer sees it while the event loop appends: an iterator breaks in the middle."""

    def __iter__(self) -> Iterator[Event]:
        raise RuntimeError("deque mutated during iteration")


async def test_what_is_appended_while_a_group_is_taken_stops_nothing(store: Store, path: Path) -> None:
    store._waiting = Shared()
    for number in range(300):
        store.append(event(number))
    await store.durable()
    assert len(rows(path)) == 300 and store.healthy
    assert broken(path) == []


async def test_what_nobody_foresaw_is_said_and_nothing_is_lost(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken_once:
        broken_once.setattr(module, "chain_hash", lambda *_: 1 / 0)
        store.append(event(0))
        await until(lambda: not store.healthy)
        assert "division" in store.trouble
    store.append(event(1))
    await store.durable(timeout_s=10)
    assert [row[4] for row in rows(path)] == ["r0", "r1"] and store.healthy
    assert broken(path) == []


def test_a_waiter_whose_loop_is_gone_does_not_stop_the_writer(store: Store, path: Path) -> None:
    async def give_up() -> None:
        store.append(event(0))
        task = asyncio.ensure_future(store.durable())
        await asyncio.sleep(0.05)
        # Left behind as a crash would: the future stays registered while its loop closes.
        loop = asyncio.get_running_loop()
        store._asked.append((1, partial(module._resolve_in, loop, loop.create_future())))
        task.cancel()

    with locked(path):
        asyncio.run(give_up())
    store.append(event(1))
    store.flush()
    assert len(rows(path)) == 2


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    path = tmp_path / "a b%20?x#y" / "ledger.sqlite"
    path.parent.mkdir()
    with contextlib.closing(Store(path)) as store:
        store.append(event())
        store.flush()
        assert store.events("r0")
    assert [p.name for p in path.parent.iterdir()] == ["ledger.sqlite"]  # no draft, no log
