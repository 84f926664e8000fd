"""When this process takes no more: requests open at once, and its memory against what it may use.

Refusing early keeps the answers that are under way fast, and a process that is over its memory is killed with all of
them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from router.errors import Overloaded

CLOSING_SHARE, SHEDDING_SHARE = 0.92, 0.95
LOOK_S = 0.25
"""How often memory is read at most."""
UNLIMITED = 1 << 60
"""What is above is a control group's way to say that it has no limit."""


class Level(IntEnum):
    """How near the memory is to its limit."""

    fine = 0
    closing = 1
    """Connections are closed after their answer: what they hold becomes free."""
    shedding = 2
    """New requests are refused."""


def level(used: int, limit: int) -> Level:
    """The level at `used` of `limit` bytes; a limit of 0 is none."""
    if limit <= 0 or used <= CLOSING_SHARE * limit:
        return Level.fine
    return Level.closing if used <= SHEDDING_SHARE * limit else Level.shedding


def own_share(limit_mb: int, workers: int, read: Callable[[str], str]) -> int:
    """The bytes one worker may use: as set, else its share of the container's or the machine's. 0 is unknown."""
    if limit_mb:
        return limit_mb * 2**20
    return min([n for n in (_of_group(read), _of_machine(read)) if n], default=0) // max(1, workers)


def _of_group(read: Callable[[str], str]) -> int:
    """The limit of the own control group: version 2, by its path or as a container sees it; else version 1."""
    found = (line.rpartition(":")[2] for line in read("/proc/self/cgroup").splitlines() if line.startswith("0::"))
    path = next(found, "/").rstrip("/")
    places = (f"/sys/fs/cgroup{path}/memory.max", "/sys/fs/cgroup/memory.max",
              "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # fmt: skip
    limits = [int(text) for place in places if (text := read(place).strip()).isdigit()]
    return next((n for n in limits if n < UNLIMITED), 0)


def _of_machine(read: Callable[[str], str]) -> int:
    total = (line.split() for line in read("/proc/meminfo").splitlines() if line.startswith("MemTotal:"))
    return next((int(words[1]) * 1024 for words in total), 0)


def read_text(path: str) -> str:
    """A file of the system; "" where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def resident() -> int:
    """Bytes of memory this process holds; 0 where that cannot be read."""
    words = read_text("/proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if words else 0


class Load:
    """What is open now, and whether another request is taken."""

    def __init__(self, max_requests: int, memory_limit: int, used: Callable[[], int] = resident) -> None:
        self.open = 0
        self._most, self._limit, self._used = max_requests, memory_limit, used
        self._level, self._looked = Level.fine, float("-inf")

    def level(self, now: float) -> Level:
        """The level of memory, `now` in seconds of the loop's clock."""
        if now - self._looked >= LOOK_S:
            self._looked, self._level = now, level(self._used(), self._limit) if self._limit else Level.fine
        return self._level

    def check(self, now: float) -> None:
        """Raises Overloaded where another request would be one too many."""
        if self.open >= self._most:
            raise Overloaded(f"{self.open} requests are being answered already; try again later.", retry_after=1)
        # One at a time goes on: memory that the process holds is not always given back while it only refuses.
        if self.open and self.level(now) is Level.shedding:
            raise Overloaded("The router is short of memory; try again later.", retry_after=2)
