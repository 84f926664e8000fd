"""When this process takes no more: requests open at once, the bytes of their bodies, and its memory against its limit.

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
BODIES_SHARE = 8
"""All bodies together may have this part of the memory: one is there as it came, as it was parsed, where a text may
take four bytes a character, and as it is sent on."""
BODIES_UNKNOWN = 64
"""Bodies of the largest size that are taken where the memory's limit is not known."""
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


def most_of_bodies(max_body: int, memory_limit: int) -> int:
    """Bytes that all bodies together may have: never less than the largest one that is taken."""
    return max(max_body, memory_limit // BODIES_SHARE) if memory_limit else BODIES_UNKNOWN * max_body


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

    def __init__(
        self, max_requests: int, memory_limit: int, used: Callable[[], int] = resident, max_body: int = 16 * 2**20
    ) -> None:
        self.open = 0
        self.bodies = 0
        """Bytes of bodies that are being read, or belong to a request that is open."""
        self._most, self._limit, self._used = max_requests, memory_limit, used
        self._most_bodies = most_of_bodies(max_body, memory_limit)
        self._level, self._looked = Level.fine, float("-inf")

    def level(self, now: float) -> Level:
        """The level of memory, `now` in seconds of the loop's clock."""
        if now - self._looked >= LOOK_S:
            self._looked, self._level = now, level(self._used(), self._limit) if self._limit else Level.fine
        return self._level

    def hold(self, more: int) -> None:
        """Count `more` bytes of a body, which whoever calls this gives back by `free`. Raises Overloaded."""
        self.bodies += more
        if self.open > 1:  # one alone goes on: it is never larger than one may be
            self._check_bodies(0)

    def free(self, held: int) -> None:
        """A request is over, and so many bytes of its body with it."""
        self.bodies -= held

    def _check_bodies(self, more: int) -> None:
        if self.bodies + more > self._most_bodies:
            raise Overloaded(
                f"{self.bodies / 2**20:.0f} MiB of request bodies are held already; try again later.", retry_after=2
            )

    def check(self, now: float, body: int = 0) -> None:
        """Raises Overloaded where another request, whose body is to have `body` bytes, would be one too many.

        What a head says of its body is held against the bound and not counted: only bytes that have come are.
        """
        if self.open >= self._most:
            raise Overloaded(f"{self.open} requests are being answered already; try again later.", retry_after=1)
        if not self.open:
            # One at a time goes on: memory that the process holds is not always given back while it only refuses.
            return
        if self.level(now) is Level.shedding:
            raise Overloaded("The router is short of memory; try again later.", retry_after=2)
        self._check_bodies(body)
