"""The ledger's file as it is opened: its owner's alone, brought up to date, and damage is never read as empty."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.door.keys import LedgerLost, read_key
from router.ledger import schema
from router.ledger.entries import settle_lost
from router.ledger.keys import KeyBook, Keyring
from router.ledger.schema import SCHEMA_VERSION, LedgerError, connect
from router.ledger.store import Event, Store, verify
from serving.catalogue import DataClass, KeyDefaults


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path)) as made:
        made.append(Event(1.0, "opened", "r1", "k1", {"n": 1}, 0.5))
        made.flush()
        yield made


def test_only_the_owner_may_read_it(store: Store, path: Path) -> None:
    old = os.umask(0)
    try:
        schema._make(path.with_name("other.sqlite"))  # from the first moment on, not only once it is opened
    finally:
        os.umask(old)
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert {"ledger.sqlite", "ledger.sqlite-wal", "other.sqlite"} <= found.keys()
    assert set(found.values()) == {0o600}
    path.chmod(0o644)
    with contextlib.closing(connect(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def another_program(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE notes (text)")


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    ("is empty", lambda p: p.write_bytes(b"")),
    ("is no ledger", lambda p: p.write_bytes(b"x")),
    ("is damaged", lambda p: p.write_bytes(os.urandom(8192))),
    ("is damaged", lambda p: p.write_bytes(b"# Notes\n" * 2000)),
    ("is no ledger", another_program),
]


@pytest.mark.parametrize(("why", "damage"), DAMAGE)
@pytest.mark.parametrize("opener", [connect, Store, lambda p: KeyBook(p, "pepper"), lambda p: Keyring(p, "pepper")])
def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(
    path: Path, why: str, damage: Callable[[Path], object], opener: Callable[[Path], object]
) -> None:
    damage(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=f"{why}.*restore a backup"):
        opener(path)
    assert path.read_bytes() == before
    with pytest.raises(LedgerError):
        connect(path, read_only=True)


EARLIER_EVENTS = """
DROP TABLE settled;
ALTER TABLE events RENAME TO newer;
CREATE TABLE events (
    writer TEXT NOT NULL, seq INTEGER NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, request TEXT NOT NULL,
    key TEXT NOT NULL, cost REAL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL,
    PRIMARY KEY (writer, seq)) WITHOUT ROWID;
INSERT INTO events SELECT * FROM newer;
DROP TABLE newer;
CREATE INDEX events_by_request ON events (request);
CREATE INDEX events_by_time ON events (kind, at);
"""
EARLIER = [1, 2, 3, 4, 5, 6]


def of_earlier(path: Path, earlier: int) -> None:
    """A ledger as an earlier release left it, with one key, two whole requests of two writers and a lost one."""
    newer = {
        6: ("first",),
        5: ("latency",),
        4: ("media_class", "requires"),
        2: ("requests_per_minute", "tokens_per_minute"),
        1: ("scopes",),
    }
    for number in range(2):
        with contextlib.closing(Store(path)) as store:
            for request in (f"r{number}", f"s{number}"):
                store.append(Event(1.0, "opened", request, "a", {"n": 1}, 0.5))
            store.append(Event(2.0, "closed", f"r{number}", "a", {"n": 1}, 0.1))
    with contextlib.closing(connect(path)) as db:
        if earlier < 5:
            db.executescript("DROP TABLE marks; DROP TABLE history")
        if earlier < 4:
            db.executescript(EARLIER_EVENTS)
        db.execute(
            "INSERT INTO keys VALUES "
            "('a','t','public','m','1234','cheap',0,NULL,1.0,NULL,NULL,'',60,NULL,'public','','batch','')"
        )
        for column in [name for version, names in newer.items() if version >= earlier for name in names]:
            db.execute(f"ALTER TABLE keys DROP COLUMN {column}")
        db.execute(f"PRAGMA user_version={earlier}")


def events_of(path: Path) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM events ORDER BY writer, seq").fetchall()


def tables_of(path: Path) -> set[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return set(db.execute("SELECT name, tbl_name FROM sqlite_master"))


@pytest.mark.parametrize("earlier", EARLIER)
def test_a_ledger_of_an_earlier_release_is_brought_up_to_date_and_loses_nothing(path: Path, earlier: int) -> None:
    of_earlier(path, earlier)
    before = events_of(path)
    with pytest.raises(LedgerError, match="headgate up brings it up to date"):
        connect(path, read_only=True)
    with contextlib.closing(connect(path)) as db:
        columns = "id, lanes, scopes, requests_per_minute, tokens_per_minute, media_class, requires, latency, first"
        found = db.execute(f"SELECT {columns} FROM keys").fetchall()
        # What an earlier release could not say is private: nobody has said otherwise.
        media, limit = "public" if earlier > 4 else "private", 60 if earlier > 2 else None
        latency = "batch" if earlier > 5 else "interactive"
        assert found == [("a", "cheap", "", limit, None, media, "", latency, "")]
        assert verify(db) == []
    assert events_of(path) == before and len(before) == 6
    with contextlib.closing(connect(path, read_only=True)) as db:  # and stays so
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    connect(path.with_name("new.sqlite")).close()
    assert tables_of(path) == tables_of(path.with_name("new.sqlite"))


def test_rotations_of_an_earlier_release_are_found_in_what_it_wrote_down(path: Path) -> None:
    with contextlib.closing(KeyBook(path, "pepper")) as book:
        first, _ = book.create("t", DataClass.public, KeyDefaults())
        other, _ = book.create("t", DataClass.public, KeyDefaults())
        second, _ = book.rotate(first.id, 60)
        book.set(second.id, team="u")
        third, _ = book.rotate(second.id, 60)
    with contextlib.closing(connect(path)) as db:
        db.execute("ALTER TABLE keys DROP COLUMN first")
        db.execute("PRAGMA user_version=6")
    with contextlib.closing(connect(path)) as db:
        found = dict(db.execute("SELECT id, first FROM keys").fetchall())
    assert found == {first.id: "", other.id: "", second.id: first.id, third.id: first.id}


@pytest.mark.parametrize("earlier", EARLIER)
def test_what_an_earlier_release_left_open_is_closed_by_this_one(path: Path, earlier: int) -> None:
    of_earlier(path, earlier)
    with contextlib.closing(Store(path)) as store:
        assert settle_lost(store, 3.0) == 2
        assert settle_lost(store, 3.0) == 0


@pytest.mark.parametrize("earlier", EARLIER)
def test_starts_at_the_same_moment_bring_it_up_to_date_once(path: Path, earlier: int) -> None:
    of_earlier(path, earlier)
    before = events_of(path)
    code = "import sys; from pathlib import Path; from router.ledger.schema import connect; connect(Path(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    children = [subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert events_of(path) == before


def test_an_upgrade_without_room_for_it_is_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_earlier(path, 3)
    before = events_of(path)
    monkeypatch.setitem(schema.UPGRADES, 3, (*schema.UPGRADES[3][:3], "SELECT * FROM nowhere"))
    with pytest.raises(LedgerError, match="permissions and free space"):
        connect(path)
    monkeypatch.undo()
    assert events_of(path) == before
    with contextlib.closing(connect(path)) as db:
        assert verify(db) == []


@pytest.mark.parametrize("earlier", EARLIER[:4])  # the later ones have all that the door reads
def test_the_door_lets_nothing_out_until_the_ledger_is_brought_up_to_date(path: Path, earlier: int) -> None:
    of_earlier(path, earlier)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        for statements in [schema.UPGRADES[version] for version in range(earlier, SCHEMA_VERSION)]:
            for statement in statements:
                db.execute(statement)
                with pytest.raises(LedgerLost, match="no such column"):  # what a key requires is not known yet
                    read_key(path, "a")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    assert (found := read_key(path, "a")) is not None
    assert (found.data_class, found.media_class, found.requires) == ("public", "private", frozenset())


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, -1])
def test_another_schema_is_refused_with_the_remedy(path: Path, version: int) -> None:
    connect(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={version}")
    with pytest.raises(LedgerError, match=f"has schema {version}, .* use the matching release"):
        connect(path)


def test_damage_inside_the_table_of_keys_is_never_an_empty_table(path: Path) -> None:
    with contextlib.closing(KeyBook(path, "pepper")) as book:
        book.create("search", DataClass.public, KeyDefaults())
        page = book._db.execute("SELECT rootpage FROM sqlite_master WHERE name='keys'").fetchone()[0]
        size = book._db.execute("PRAGMA page_size").fetchone()[0]
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(raw)
    with pytest.raises(LedgerError, match="keys cannot be read"):
        Keyring(path, "pepper")


def test_a_log_without_its_ledger_is_refused(path: Path) -> None:
    path.with_name(path.name + "-wal").write_bytes(b"left behind")
    with pytest.raises(LedgerError, match=r"without ledger\.sqlite; restore the ledger"):
        connect(path)
    assert not path.exists()


def test_what_cannot_be_opened_is_one_sentence_and_no_advice_to_throw_it_away(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="permissions and free space") as refused:
        connect(tmp_path / "nowhere" / "ledger.sqlite")
    assert "backup" not in str(refused.value)
    with pytest.raises(LedgerError, match="cannot be opened"):
        connect(tmp_path / "nothing.sqlite", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_starts_at_the_same_moment_agree_on_one_file(path: Path) -> None:
    code = "import sys; from pathlib import Path; from router.ledger.keys import KeyBook; "
    code += "from serving.catalogue import DataClass, KeyDefaults; "
    code += "print(KeyBook(Path(sys.argv[1]), 'p').create('t', DataClass.public, KeyDefaults())[0].id)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code, str(path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    made = {child.communicate()[0].decode().strip() for child in children}
    with contextlib.closing(KeyBook(path, "p")) as book:
        assert {key.id for key in book.list()} == made
    assert len(made) == 3
