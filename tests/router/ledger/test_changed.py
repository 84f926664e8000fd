"""Who let a key send what stands in the ledger's chain: every change of a key, with the user, and no secret."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.audit.ledger import Records
from router.audit.reconcile import Window
from router.ledger.changed import Change, read
from router.ledger.keys import KeyBook, KeyError_
from router.ledger.store import LedgerError, Store, connect, verify
from serving.catalogue import DataClass, KeyDefaults


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def book(path: Path) -> Iterator[KeyBook]:
    with contextlib.closing(KeyBook(path, "pepper", "jo")) as made:
        yield made


def last(path: Path) -> Change:
    return read(path)[-1]


def test_each_change_says_who_when_and_what_it_was_before(path: Path, book: KeyBook) -> None:
    before = time.time()
    key, _ = book.create("search", DataClass.private, KeyDefaults())
    made = last(path)
    assert (made.key, made.what, made.user, made.old) == (key.id, "created", "jo", {})
    assert made.new["data_class"] == "private" and made.new["team"] == "search" and before <= made.at <= time.time()
    book.set(key.id, data_class=DataClass.public, media_class=DataClass.internal)
    assert (last(path).what, last(path).old, last(path).new) == (
        "changed", {"data_class": "private", "media_class": "private"},
        {"data_class": "public", "media_class": "internal"},
    )  # fmt: skip
    book.set(key.id, scopes=frozenset({"declassify"}))
    assert (last(path).old, last(path).new) == ({"scopes": []}, {"scopes": ["declassify"]})
    book.revoke(key.id)
    assert last(path).what == "revoked" and last(path).old == {"revoked": None} and last(path).new["revoked"] > before
    assert len(read(path)) == len(read(path, key.id)) == 4 and read(path, "another") == []


def test_a_rotated_key_says_in_whose_place_it_is(path: Path, book: KeyBook) -> None:
    old, _ = book.create("search", DataClass.public, KeyDefaults())
    new, _ = book.rotate(old.id, 60)
    made, ends = read(path)[1:]
    assert (made.key, made.what, made.instead, made.new["data_class"]) == (new.id, "created", old.id, "public")
    assert (ends.key, ends.old, list(ends.new)) == (old.id, {"expires": None}, ["expires"])


def test_what_changes_nothing_is_no_change(path: Path, book: KeyBook) -> None:
    key, _ = book.create("search", DataClass.public, KeyDefaults())
    book.set(key.id, data_class=DataClass.public)
    book.revoke(key.id)
    book.revoke(key.id)
    assert [one.what for one in read(path)] == ["created", "revoked"]


def test_no_part_of_a_key_is_written_down(path: Path, book: KeyBook) -> None:
    key, text = book.create("search", DataClass.public, KeyDefaults())
    with contextlib.closing(connect(path, read_only=True)) as db:
        said = "".join(map(str, db.execute("SELECT * FROM events").fetchall()))
    assert key.id in said and key.mac not in said and text.split("_")[2] not in said


def test_no_change_without_its_record(path: Path, book: KeyBook) -> None:
    """A key that became public must not be there without who made it so."""
    key, _ = book.create("search", DataClass.private, KeyDefaults())
    with contextlib.closing(connect(path)) as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no room'); END")
        for change in (lambda: book.set(key.id, data_class=DataClass.public), lambda: book.rotate(key.id, 60)):
            with pytest.raises(LedgerError, match="no room"):
                change()
        assert [(one.id, one.data_class) for one in book.list()] == [(key.id, DataClass.private)]
        db.execute("DROP TRIGGER full")
    with pytest.raises(KeyError_):
        book.revoke("nobody")
    book.revoke(key.id)
    with contextlib.closing(connect(path, read_only=True)) as db:
        assert verify(db) == [] and len(read(path)) == 2


def test_the_audit_finds_the_chain_whole_and_nothing_of_it_is_a_sending(path: Path, book: KeyBook) -> None:
    key, _ = book.create("search", DataClass.private, KeyDefaults())
    book.set(key.id, data_class=DataClass.public)
    with contextlib.closing(Store(path)) as store:
        store.flush()
    records = Records(path, Window(0.0, time.time() + 1))
    assert [each.rows for each in records.read()] == [[], []]
    assert (records.problems, records.requests) == ([], 0)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE events SET body = replace(body, 'jo', 'al')")
    changed = Records(path, Window(0.0, time.time() + 1))
    assert [*changed.read()] == [] and len(changed.problems) == 2, "who it was cannot be changed unseen"
