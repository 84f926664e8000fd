"""The door's files are checked a second way; what a chain cannot show is shown by what is noted beside it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import orjson
import pytest

from router.audit.chained import Chained
from router.door.book import noted, open_book, verify


def problems(path: Path) -> list[str]:
    found = Chained(path, "Book")
    for _ in found.lines():
        pass
    return found.problems


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.jsonl"
    for boot in range(2):
        made = open_book(path, "v1")
        for number in range(5):
            made.write("refused", {"permit": f"p{boot}{number}", "code": "x"}, sync=False)
        made.close()
    return path


def test_both_checks_find_nothing_in_a_whole_book(book: Path) -> None:
    assert problems(book) == verify(book) == []
    assert noted(book)[0] == book.stat().st_size


def test_whatever_is_changed_is_found_by_both(book: Path) -> None:
    lines = book.read_bytes().splitlines(keepends=True)
    for changed in (
        lines[:3] + lines[4:], [*lines[:3], lines[4], lines[3], *lines[5:]], [*lines[:4], lines[3], *lines[4:]],
        [*lines[:2], lines[2].replace(b'"code":"x"', b'"code":"y"'), *lines[3:]], [*lines[:2], b"{}\n", *lines[2:]],
        [*lines[:2], lines[2].replace(b",", b", ", 1), *lines[3:]],
    ):  # fmt: skip
        book.write_bytes(b"".join(changed))
        assert problems(book) and verify(book)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_end_that_was_cut_off_leaves_a_whole_chain_and_is_found(count: int, book: Path) -> None:
    lines = book.read_bytes().splitlines(keepends=True)
    book.write_bytes(b"".join(lines[:-count]))
    assert verify(book) == []
    (one,) = problems(book)
    assert one == f"Book: {sum(map(len, lines[-count:])):,} bytes at its end are missing"


def test_a_door_that_finds_its_book_shorter_writes_that_into_it(book: Path) -> None:
    """For from then on the note is that of the new end."""
    last = book.read_bytes().splitlines(keepends=True)[-1]
    book.write_bytes(book.read_bytes().removesuffix(last))
    open_book(book, "v1").close()
    assert orjson.loads(book.read_bytes().splitlines()[-1])["missing"] == len(last)
    assert problems(book) == []


def test_what_a_crash_has_torn_is_not_missing(book: Path) -> None:
    with book.open("ab") as file:
        file.write(b'{"at":1')
    open_book(book, "v1").close()
    entry = orjson.loads(book.read_bytes().splitlines()[-1])
    assert entry["torn"]["bytes"] == 7 and "missing" not in entry


def test_another_book_of_the_same_length_is_found(book: Path) -> None:
    """As whole a chain as the one before, and not the one that was noted."""
    note = book.with_name("book.jsonl.head")
    length, digest, *rest = note.read_text().split()
    note.write_text(f"{length} {'0' * 64} {' '.join(rest)}\n")
    assert len(problems(book)) == 1 and digest != "0" * 64


def test_a_book_that_is_gone_is_missed(book: Path) -> None:
    book.unlink()
    assert "it is gone" in problems(book)[0]
    book.with_name("book.jsonl.head").unlink()
    assert problems(book) == []


@pytest.mark.parametrize("left", ["", "00000\n"])
def test_a_book_without_its_note_may_have_been_cut_off(left: str, book: Path) -> None:
    """Whoever cuts off an end can delete what shows it; then it is that what is missing."""
    note = book.with_name("book.jsonl.head")
    note.unlink()
    if left:
        note.write_text(left)
    (one,) = problems(book)
    assert "the note of its end (book.jsonl.head) is missing" in one
    open_book(book, "v1").close()
    assert problems(book) == [] and orjson.loads(book.read_bytes().splitlines()[-1])["unnoted"]


def test_a_first_entry_is_noted_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever looks in the first moment finds a book without its note."""
    path, seen = tmp_path / "book.jsonl", []
    sync = os.fdatasync

    def looked(file: int) -> None:
        seen.append(problems(path))
        sync(file)

    monkeypatch.setattr(os, "fdatasync", looked)
    open_book(path, "v1").close()
    assert seen == [[]]


def test_what_a_power_cut_may_have_taken_is_told_as_such(tmp_path: Path) -> None:
    """What was synced is there; what was not may be gone, and its note be there."""
    path = tmp_path / "book.jsonl"
    made = open_book(path, "v1")
    made.write("sending", {"permit": "p"}, sync=True)
    synced = path.read_bytes()
    made.write("ended", {"permit": "p"}, sync=False)
    kept, note = path.read_bytes(), path.with_name("book.jsonl.head").read_bytes()
    made.close()
    for there, sort in ((synced, "doubts"), (synced.splitlines(keepends=True)[0], "problems"), (kept, "")):
        path.write_bytes(there)
        path.with_name("book.jsonl.head").write_bytes(note)
        found = Chained(path, "Book")
        assert len(list(found.lines())) == len(there.splitlines())
        assert (len(found.problems), len(found.doubts)) == (sort == "problems", sort == "doubts"), sort
        if sort:
            open_book(path, "v1").close()
            opened = orjson.loads(path.read_bytes().splitlines()[-1])
            assert opened["missing" if sort == "problems" else "unsynced"] == len(kept) - len(there)


def test_a_book_of_an_earlier_release_is_told_apart_by_who_wrote_it(tmp_path: Path, book: Path) -> None:
    """It has no note, and its entries fewer fields; after one of this release there is none of them any more."""
    path = tmp_path / "earlier.jsonl"
    earlier(path)
    found = Chained(path, "Book")
    assert [line.earlier for line in found.lines()] == [True, True]
    assert found.problems == [] and "is missing" in found.doubts[0]
    open_book(path, "v1").close()
    found = Chained(path, "Book")
    assert [line.earlier for line in found.lines()] == [True, True, False]
    assert found.problems == found.doubts == []
    earlier(book)
    assert any("is of an earlier release" in one for one in problems(book))


def earlier(path: Path) -> None:
    """What the first releases wrote: chained alike."""
    last = orjson.loads(path.read_bytes().splitlines()[-1])["hash"] if path.exists() else ""
    with path.open("ab") as file:
        for seq, kind in enumerate(("opened", "sending")):
            fields = {"kind": kind, "permit": "p", "seq": seq, "boot": "old", "at": 1.0, "prev": last}
            last = hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
            file.write(orjson.dumps({**fields, "hash": last}, option=orjson.OPT_SORT_KEYS) + b"\n")
