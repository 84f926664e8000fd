"""The door's book: append-only lines of JSON, chained by hash, written by one process, synced before a byte leaves.

It knows no permits and no network, only entries. It never holds any text of a request. Every entry has `kind`, `at`
(Unix seconds), `boot`, `seq`, `prev` and `hash`. By kind, and in this order for one sending:

`opened`       the first of a boot: `policy`, `pid`, `torn` where a crash left something
`door_closed`  nothing leaves from here on: `by` (`operator`, `scanner`), `reason`; of the operator `user`, `since`
`door_opened`  it does again: `by`, and what `door_closed` said
`refused`      a request that nothing left of: `permit`, `request`, `key`, `model`, `code`
`sending`      about to leave: `permit`, `request`, `key`, `team`, `route`, `provider`, `model`, `path`, `host`,
               `policy`; `claimed`, the permit's class, and `data_class`, that of the door; `clearance`, and `rule`, why
               the model has it (`public`, `approved:CONTRACT`); `requires`, what the model promises; `found`, how often
               the door's scanner found each kind; `declassified`, why a class was lowered; `received_sha256`,
               `sent_sha256`; `sent_bytes`, the body, and `head_bytes`, its line and headers, without TLS or a proxy
`ended`        how that ended: `permit`, `request`, `status`, `bytes_in` (body), `head_bytes_in`, `ms`, `ended`,
               `error`; `left` is false where not a byte of it can have left, after all
`reopened`     the book can be written again: `after`
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

TAIL = 1 << 20
"""Bytes at the end of the book that are looked at on opening; an entry has about 1 KB."""
NOTE = ".head"
"""Added to the book's name: the file that holds its length and last hash, for a chain does not show that its end is
missing."""


class BookError(Exception):
    """The book cannot be written; nothing may leave. The text says why."""


@dataclass(slots=True)
class _Head:
    """Where the chain stands: the next number of this boot, the last hash, and the length up to there."""

    seq: int
    prev: str
    length: int


class Book:
    """The open book of one boot. Writes go through one thread, in order; the loop goes on meanwhile."""

    def __init__(
        self, path: Path, file: int, note: int, head: _Head, boot: str, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self.path = path
        self.boot = boot
        self.trouble = ""
        """Why nothing can be written; empty while the last write succeeded."""
        self._file, self._note = file, note
        self._head = head
        self._clock = clock
        self._lost = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="book")

    async def sending(self, entry: dict[str, Any]) -> None:
        """Write that something is about to leave, and return once it is on the disk. Raises BookError."""
        await self._in_thread("sending", entry, True)

    async def ended(self, entry: dict[str, Any]) -> None:
        """Write how a sending ended. Raises BookError."""
        await self._in_thread("ended", entry, False)

    async def refused(self, entry: dict[str, Any]) -> None:
        """Write that a request was refused. Raises BookError."""
        await self._in_thread("refused", entry, False)

    async def sampled(self, entry: dict[str, Any]) -> None:
        """Write what the kernel has counted. Raises BookError."""
        await self._in_thread("sample", entry, True)

    async def noted(self, kind: str, entry: dict[str, Any]) -> None:
        """Write `door_closed` or `door_opened`, and return once it is on the disk. Raises BookError."""
        await self._in_thread(kind, entry, True)

    async def probe(self) -> None:
        """After trouble, try whether the book can be written again. Raises BookError."""
        await self._in_thread("reopened", {"after": self.trouble}, True)

    async def _in_thread(self, kind: str, entry: dict[str, Any], sync: bool) -> None:
        # Shielded: a caller that is cancelled must not leave a write without its turn in the chain.
        loop = asyncio.get_running_loop()
        await asyncio.shield(loop.run_in_executor(self._thread, self.write, kind, entry, sync))

    def write(self, kind: str, entry: dict[str, Any], sync: bool) -> None:
        """Append one entry; only the book's own thread calls it once the book is in use. Raises BookError."""
        if self._lost:
            raise BookError(self.trouble)
        head = self._head
        fields = {"kind": kind, **entry, "seq": head.seq, "boot": self.boot, "at": self._clock(), "prev": head.prev}
        digest = _digest(fields)
        line = orjson.dumps({**fields, "hash": digest}, option=orjson.OPT_SORT_KEYS) + b"\n"
        try:
            _write_all(self._file, line)
        except OSError as full:
            self._take_back(full)
        if sync:
            try:
                os.fdatasync(self._file)
            except OSError as failed:
                # After a failed sync nobody can tell what is on the disk: no more writing until a new boot has read it.
                self._lose(f"the book {self.path} could not be synced: {failed.strerror}; restart the door")
        self._head = _Head(head.seq + 1, digest, head.length + len(line))
        self.trouble = ""
        with contextlib.suppress(OSError):  # in place: the disk need not have room for it
            os.pwrite(self._note, f"{self._head.length:020d} {digest}\n".encode(), 0)

    def _take_back(self, full: OSError) -> None:
        """Cut off what a failed write left behind; the entry was never acted on."""
        self.trouble = f"the book {self.path} cannot be written: {full.strerror}"
        try:
            os.ftruncate(self._file, self._head.length)
        except OSError:
            self._lose(f"{self.trouble}; restart the door once it can")
        raise BookError(self.trouble) from full

    def _lose(self, why: str) -> None:
        self._lost, self.trouble = True, why
        raise BookError(why)

    def close(self) -> None:
        """Wait for what is under way, and let go of the lock."""
        self._thread.shutdown(wait=True)
        _close(self._file, self._note)


def open_book(path: Path, policy: str, clock: Callable[[], float] = time.time) -> Book:
    """Open the book for writing, alone, and write its `opened` entry. Raises BookError.

    What a crash tore at its end is moved to a file beside it, and the `opened` entry says so.
    """
    boot = secrets.token_hex(8)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        note = os.open(path.with_name(path.name + NOTE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as broken:
        raise BookError(f"the book {path} cannot be opened: {broken.strerror}") from broken
    try:
        # flock and not lockf: those locks would be dropped as soon as anything in this process read the book.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(file, 0o600)
        prev, length, torn = _mend(path, file, boot)
        missing = max(0, noted(path)[0] - length - torn.get("bytes", 0))
        book = Book(path, file, note, _Head(0, prev, length), boot, clock)
        found = {"torn": torn} if torn else {}
        found |= {"missing": missing} if missing else {}
        book.write("opened", {"policy": policy, "pid": os.getpid(), **found}, sync=True)
    except BlockingIOError as taken:
        _close(file, note)
        raise BookError(f"another door of this installation writes {path}; stop it first") from taken
    except (OSError, BookError) as broken:
        _close(file, note)
        raise BookError(f"the book {path} cannot be used: {broken}") from broken
    return book


def _mend(path: Path, file: int, boot: str) -> tuple[str, int, dict[str, Any]]:
    """The last good hash, the length up to it, and what was moved aside from behind it."""
    size = os.fstat(file).st_size
    start = max(0, size - TAIL)
    tail = os.pread(file, size - start, start)
    prev, good = "", tail.rfind(b"\n") + 1
    while good:
        begin = tail.rfind(b"\n", 0, good - 1) + 1
        if prev := _own_hash(tail[begin:good]):
            break
        good = begin
    if start and not prev:
        raise BookError("no whole entry stands at its end; move it away to begin a new one")
    length, rest = start + good, tail[good:]
    if not rest:
        return prev, length, {}
    aside = path.with_name(f"{path.name}.torn-{boot}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        copy.write(rest)
        copy.flush()
        os.fsync(copy.fileno())
    os.ftruncate(file, length)
    return prev, length, {"file": aside.name, "bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}


def noted(path: Path) -> tuple[int, str]:
    """The length of the book and its last hash as they were noted beside it; 0 and nothing where that is not known."""
    try:
        length, digest = path.with_name(path.name + NOTE).read_text().split()
        return int(length), digest
    except (OSError, ValueError):
        return 0, ""


def latest(path: Path, kind: str, field: str, most: int = 8 << 20) -> dict[str, dict[str, Any]]:
    """The last entry of `kind` for each value of `field`, out of the last `most` bytes. Raises OSError."""
    with path.open("rb") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - most))
        entries = [entry for line in lines if (entry := _parse(line))]
    return {str(entry.get(field)): entry for entry in entries if entry.get("kind") == kind}


def verify(path: Path) -> list[str]:
    """Every place where the book is not as it was written, one sentence each; empty is good. Raises OSError."""
    problems: list[str] = []
    prev, boot, seq = "", "", 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            entry = _parse(line) if line.endswith(b"\n") else None
            if entry is None:
                problems.append(f"line {number}: is no whole entry")
                continue
            if not _own_hash(line):
                problems.append(f"line {number}: was changed; its hash is not that of its fields")
            if entry.get("prev") != prev:
                problems.append(f"line {number}: does not follow the line before; one was removed, added or changed")
            seq = seq + 1 if entry.get("boot") == boot else 0
            if entry.get("seq") != seq or (entry.get("kind") == "opened") is not (seq == 0):
                problems.append(f"line {number}: its number is {entry.get('seq')} where {seq} is due")
            prev, boot = str(entry.get("hash")), str(entry.get("boot"))
            seq = entry["seq"] if isinstance(entry.get("seq"), int) else seq
    return problems


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) else None


def _own_hash(line: bytes) -> str:
    """The entry's hash where it is right, else nothing."""
    entry = _parse(line) or {}
    found = str(entry.pop("hash", ""))
    # The exact bytes count too: another spacing or order is a change.
    same = line.rstrip(b"\n") == orjson.dumps({**entry, "hash": found}, option=orjson.OPT_SORT_KEYS)
    return found if found and same and found == _digest(entry) else ""


def _digest(fields: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _write_all(file: int, line: bytes) -> None:
    done = 0
    while done < len(line):
        done += os.write(file, line[done:])
