"""Whole numbers by name that are changed under a lock: of one process, or shared by the workers of one router.

The shared ones lie in a mapped file, for a request must not wait for a database: a change is a lock, a look and a
write, some microseconds. What lies there is derived; it is made anew whenever the router starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Protocol, Self

ROWS = 65_536
"""Names a file has room for at least; a row is 40 bytes."""
ROW = struct.Struct("<16sd16s")
"""The name's digest, until when it counts, and the number."""
UNTIL = struct.Struct("<d")
WAIT_S = 0.05
"""How long the lock is waited for at most: whoever holds it does so for microseconds, or does not run any more."""
PAUSE_S = 0.0002
TIRED_S = 1.0
"""After a wait in vain nobody waits again for so long."""
FREE = bytes(16)


class Stuck(Exception):
    """The shared counters cannot be used now; one sentence."""


class Counters(Protocol):
    """Numbers by name; 0 where there is none. Used inside `with`: what happens there happens at once for everybody."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *raised: object) -> None: ...

    def get(self, name: str) -> int: ...

    def put(self, name: str, number: int, until: float, now: float) -> None:
        """Set it. From `until` on (on the clock of `now`) it may be forgotten."""


class Own:
    """Counters of one process alone."""

    def __init__(self, most: int = ROWS) -> None:
        self._numbers: dict[str, tuple[int, float]] = {}
        self._most = most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def get(self, name: str) -> int:
        found = self._numbers.get(name)
        return found[0] if found else 0

    def put(self, name: str, number: int, until: float, now: float) -> None:
        """See Counters. What may be forgotten goes once there are many."""
        self._numbers[name] = (number, until)
        if len(self._numbers) > self._most:
            self._numbers = {n: held for n, held in self._numbers.items() if held[1] > now}
            self._most = max(self._most, 2 * len(self._numbers))


class Shared:
    """Counters in a mapped file that several processes use; the lock is the kernel's and ends with its holder."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file is not there: `make` it first."""
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._file, 0)
        self._rows = len(self._map) // ROW.size
        self._places: dict[str, tuple[bytes, int]] = {}
        self._tired = 0.0

    def close(self) -> None:
        self._map.close()
        os.close(self._file)

    def __enter__(self) -> Self:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait()
        return self

    def _wait(self) -> None:
        end = time.monotonic() + WAIT_S
        while self._tired < (now := time.monotonic()) < end:
            time.sleep(PAUSE_S)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        self._tired = max(self._tired, now + TIRED_S) if now >= end else self._tired
        raise Stuck("another worker of this router holds the counters and does not go on")

    def __exit__(self, *raised: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def get(self, name: str) -> int:
        """See Counters. Without the lock it is as of a moment ago."""
        digest, place = self._place(name)
        for _ in range(self._rows):
            found, _, number = ROW.unpack_from(self._map, place * ROW.size)
            if found == digest:
                return int.from_bytes(number, "little", signed=True)
            if found == FREE:
                return 0
            place = (place + 1) % self._rows
        return 0

    def put(self, name: str, number: int, until: float, now: float) -> None:
        """See Counters. A row that may be forgotten is used again. Raises Stuck where there is no room."""
        digest, place = self._place(name)
        old: int | None = None
        for _ in range(self._rows):
            found, ends, _ = ROW.unpack_from(self._map, place * ROW.size)
            if found in (digest, FREE):
                break
            if old is None and ends <= now:
                old = place
            place = (place + 1) % self._rows
        else:
            found = b""
        if found != digest and old is not None:
            place = old
        elif not found:
            raise Stuck("the shared counters have no room for another key")
        self._write(place * ROW.size, None if found == digest else digest, until, number)

    def _write(self, at: int, digest: bytes | None, until: float, number: int) -> None:
        """Each part as one copy and the digest last: whoever is killed here leaves the row as it was, or as it is to
        be, and whoever looks without the lock sees one of the two. `pack_into` would clear the row first."""
        self._map[at + 16 : at + 24] = UNTIL.pack(until)
        self._map[at + 24 : at + 40] = number.to_bytes(16, "little", signed=True)
        if digest is not None:
            self._map[at : at + 16] = digest

    def _place(self, name: str) -> tuple[bytes, int]:
        """The name's digest and the row where the search for it begins."""
        found = self._places.get(name)
        if found is None:
            digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
            found = digest, int.from_bytes(digest[:8], "little") % self._rows
            if len(self._places) >= ROWS:
                self._places.clear()
            self._places[name] = found
        return found


def make(path: Path, names: int = 0) -> None:
    """An empty file for shared counters with room for `names` at ease, in place of an earlier one. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        # Not a file with holes: writing into one on a disk that has become full would kill the process (SIGBUS).
        os.posix_fallocate(file.fileno(), 0, ROW.size * max(ROWS, 4 * names))
    draft.replace(path)
