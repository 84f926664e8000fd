"""The door's book: append-only lines of JSON, chained by hash, written by one process, synced before a byte leaves.

It knows no permits and no network, only entries. It never holds any text of a request. Every entry has `kind`, `at`
(Unix seconds), `boot`, `seq`, `prev` and `hash`. By kind, and in this order for one sending:

`opened`       the first of a boot: `policy`, `pid`, `format`; what was found: `torn` where a crash left something, how
               many bytes at the end were `missing`, or `unsynced` (missing, and never surely on the disk), `unnoted`
               where the note beside the book was gone
`door_closed`  nothing leaves from here on: `by` (`operator`, `scanner`), `reason`; of the operator `user`, `since`
`door_opened`  it does again: `by`, and what `door_closed` said
`refused`      a request that nothing left of: `permit`, `request`, `key`, `model`, `code`
`sending`      about to leave: `permit`, `request`, `key`, `team`, `route`, `provider`, `model`, `path`, `host`,
               `policy`; `claimed`, the permit's class, and `data_class`, that of the door; `clearance`, and `rule`, why
               the model has it (`public`, `approved:CONTRACT`); `requires`, what the model promises; `found`, how often
               the door's scanner found each kind; `declassified`, why a class was lowered; `received_sha256`,
               `sent_sha256`; `sent_bytes`, the body, and `head_bytes`, its line and headers, without TLS or a proxy
`ended`        how that ended: `permit`, `request`, `status`, `bytes_in` (body), `head_bytes_in`, `ms`, `ended`,
               `error`; `left` is false where not a byte of it can have left, after all; `connections` is how many
               were opened for it
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
from typing import Any, NamedTuple

import orjson

from router.clock import Forward

FORMAT = 2
"""Which fields entries have; the first releases wrote no number, and fewer fields."""
TAIL = 1 << 20
"""Bytes at the end of the book that are looked at on opening; an entry has about 1 KB."""
NOTE = ".head"
"""Added to the book's name: the file that holds its length and last hash, for a chain does not show that its end is
missing; up to where it was surely on the disk, for a power cut takes the rest, and not the note; and what time it
was."""
NOBODY = "-"
"""Stands for the hash where there is no entry yet."""


class Noted(NamedTuple):
    """How long the book was by the note beside it, its last hash, and up to where it was synced."""

    length: int = 0
    digest: str = ""
    """Empty where there is no note, or none that can be read."""
    synced: int = 0
    latest: float = 0.0
    """The latest moment that the door knew then, which a clock that is set back does not bring back."""


class BookError(Exception):
    """The book cannot be written; nothing may leave. The text says why."""


@dataclass(slots=True)
class _Head:
    """Where the chain stands: the next number of this boot, the last hash, the length up to there, and what of it is
    surely on the disk."""

    seq: int
    prev: str
    length: int
    synced: int


class Book:
    """The open book of one boot. Writes go through one thread, in order; the loop goes on meanwhile."""

    def __init__(
        self, path: Path, file: int, note: int, head: _Head, boot: str, clock: Callable[[], float], time: Forward
    ) -> None:  # fmt: skip
        self.path = path
        self.boot = boot
        self.trouble = ""
        """Why nothing can be written; empty while the last write succeeded."""
        self._file, self._note = file, note
        self._head = head
        self._clock = clock
        self.time = time
        """What approvals and keys are held against: it never goes back below what this book has seen."""
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

    async def remember(self) -> None:
        """Write beside the book what time it is, for a door that has nothing to write down for days."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._remember)

    def _remember(self) -> None:
        head = self._head
        with contextlib.suppress(OSError):  # in place: the disk need not have room for it
            _note(self._note, Noted(head.length, head.prev, head.synced, self.time.now()))

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
        length = head.length + len(line)
        self._head = _Head(head.seq + 1, digest, length, length if sync else head.synced)
        self.trouble = ""
        self._remember()

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
        head = self._head
        with contextlib.suppress(OSError):
            if head.synced < head.length and not self._lost:
                os.fdatasync(self._file)
                _note(self._note, Noted(head.length, head.prev, head.length, self.time.now()))
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
        before = noted(path)
        prev, length, torn, last = _mend(path, file, boot)
        if not length and not before.digest:  # first of all, so that an entry without a note is no first start
            _note(note, Noted(0, NOBODY, 0))
        seen = Forward(max(last, before.latest), clock)
        book = Book(path, file, note, _Head(0, prev, length, length), boot, clock, seen)
        found = _found(before, length, torn)
        book.write("opened", {"policy": policy, "pid": os.getpid(), "format": FORMAT, **found}, sync=True)
    except BlockingIOError as taken:
        _close(file, note)
        raise BookError(f"another door of this installation writes {path}; stop it first") from taken
    except (OSError, BookError) as broken:
        _close(file, note)
        raise BookError(f"the book {path} cannot be used: {broken}") from broken
    return book


def _found(before: Noted, length: int, torn: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with a book that is opened again: for from now on the note is that of the new end."""
    there = length + torn.get("bytes", 0)
    found: dict[str, Any] = {"torn": torn} if torn else {}
    if length and not before.digest:
        found["unnoted"] = True
    elif there < before.length:
        found["missing" if there < before.synced else "unsynced"] = before.length - there
    return found


def _mend(path: Path, file: int, boot: str) -> tuple[str, int, dict[str, Any], float]:
    """The last good hash, the length up to it, what was moved aside from behind it, and when that entry was written."""
    size = os.fstat(file).st_size
    start = max(0, size - TAIL)
    tail = os.pread(file, size - start, start)
    prev, good, last = "", tail.rfind(b"\n") + 1, 0.0
    while good:
        begin = tail.rfind(b"\n", 0, good - 1) + 1
        if prev := _own_hash(tail[begin:good]):
            last = _written(tail[begin:good])
            break
        good = begin
    if start and not prev:
        raise BookError("no whole entry stands at its end; move it away to begin a new one")
    length, rest = start + good, tail[good:]
    if not rest:
        return prev, length, {}, last
    aside = path.with_name(f"{path.name}.torn-{boot}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
        copy.write(rest)
        copy.flush()
        os.fsync(copy.fileno())
    os.ftruncate(file, length)
    torn = {"file": aside.name, "bytes": len(rest), "sha256": hashlib.sha256(rest).hexdigest()}
    return prev, length, torn, last


def noted(path: Path) -> Noted:
    """What the note beside the book says."""
    try:
        length, digest, *rest = path.with_name(path.name + NOTE).read_text().split()
        return Noted(int(length), digest, int(rest[0] if rest else length), float(rest[1]) if rest[1:] else 0.0)
    except (OSError, ValueError):
        return Noted()


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


def _written(line: bytes) -> float:
    """When an entry was written, as far as it says."""
    at = (_parse(line) or {}).get("at")
    return float(at) if isinstance(at, int | float) else 0.0


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


def _note(file: int, noted: Noted) -> None:
    line = f"{noted.length:020d} {noted.digest} {noted.synced:020d} {noted.latest:020.6f}\n"
    os.pwrite(file, line.encode(), 0)


def _close(*files: int) -> None:
    for file in files:
        os.close(file)


def _write_all(file: int, line: bytes) -> None:
    done = 0
    while done < len(line):
        done += os.write(file, line[done:])
