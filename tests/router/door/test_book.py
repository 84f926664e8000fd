"""The book: whatever is done to it afterwards is found, and a crash loses nothing unseen."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from router.door.book import BookError, open_book, verify


async def written(path: Path, count: int = 3) -> list[bytes]:
    book = open_book(path, "v1")
    for number in range(count):
        await book.sending({"permit": f"p{number}"})
        await book.ended({"permit": f"p{number}", "status": 200})
    book.close()
    return path.read_bytes().splitlines(keepends=True)


async def test_an_untouched_book_is_good_over_several_boots(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    await written(path)
    lines = await written(path)
    assert verify(path) == []
    assert [orjson.loads(line)["seq"] for line in lines] == [*range(7), *range(7)]
    assert len({orjson.loads(line)["boot"] for line in lines}) == 2


async def test_every_single_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    whole = b"".join(await written(path, 1))
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert verify(path), f"byte {place} of {whole[place : place + 1]!r}"


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3] + lines[4:],
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[1:],
        lambda lines: lines[7:],
        lambda lines: [lines[0], *lines[7:]],
        lambda lines: [*lines[:4], b"not an entry\n", *lines[4:]],
        lambda lines: [*lines, lines[-1][:20]],
    ],
)
async def test_removed_swapped_repeated_and_added_lines_are_found(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    path = tmp_path / "book.jsonl"
    await written(path)
    lines = await written(path)
    path.write_bytes(b"".join(change(lines)))
    assert verify(path)


async def test_entries_written_at_the_same_time_form_one_chain(tmp_path: Path) -> None:
    book = open_book(tmp_path / "book.jsonl", "v1")
    await asyncio.gather(*(book.sending({"permit": str(n)}) for n in range(50)))
    book.close()
    assert verify(book.path) == [] and len(book.path.read_bytes().splitlines()) == 51


async def test_a_second_door_may_not_write_and_reading_does_not_free_the_lock(tmp_path: Path) -> None:
    book = open_book(tmp_path / "book.jsonl", "v1")
    verify(book.path)
    with pytest.raises(BookError, match="another door"):
        open_book(book.path, "v1")
    book.close()
    open_book(book.path, "v1").close()


@pytest.mark.parametrize("torn", [b'{"at":12', b"\0" * 300, b'{"at":1}\n{"whole": "but no entry"}\n', b"\n\n"])
async def test_what_a_crash_tore_is_kept_aside_and_named(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "book.jsonl"
    before = b"".join(await written(path))
    path.write_bytes(before + torn)
    open_book(path, "v1").close()
    assert verify(path) == []
    opened = orjson.loads(path.read_bytes().splitlines()[-1])
    assert opened["torn"]["bytes"] == len(torn)
    assert (tmp_path / opened["torn"]["file"]).read_bytes() == torn
    assert path.read_bytes().startswith(before)


async def test_a_sending_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = open_book(tmp_path / "book.jsonl", "v1")
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(os.fstat(file).st_size), real(file)))
    await book.sending({"permit": "p"})
    assert synced == [book.path.stat().st_size]
    book.close()


async def test_after_a_failed_sync_nothing_is_written_until_the_next_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = open_book(tmp_path / "book.jsonl", "v1")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(BookError, match="could not be synced"):
            await book.sending({"permit": "p"})
    for write in (book.sending({"permit": "q"}), book.probe()):
        with pytest.raises(BookError, match="could not be synced"):
            await write
    book.close()
    open_book(book.path, "v1").close()
    assert verify(book.path) == []
