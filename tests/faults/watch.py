"""What this process takes: memory, threads, descriptors, and how long the loop's thread works in one go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections import Counter
from pathlib import Path

from tests.faults.waits import WAITS

MIB = 2**20


class Watch:
    """Samples what the process takes: the most memory, and the longest time the loop's thread worked in one go."""

    def __init__(self) -> None:
        self.stall_s = 0.0
        """CPU time, since wall time says more of a busy machine than of the code. Waiting is WAITS's to see."""
        self.most = self.start = resident()
        gc.freeze()  # what other tests left behind is not collected at this one's expense
        self._last = time.thread_time()
        self._task = asyncio.create_task(self._sample())
        WAITS.begin()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            now = time.thread_time()
            self.stall_s, self._last = max(self.stall_s, now - self._last), now
            self.most = max(self.most, resident())

    def excuse(self) -> None:
        """Leave out what the loop's thread has done since the last sample: it was the test's own work."""
        self._last = time.thread_time()

    async def end(self) -> None:
        gc.unfreeze()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    """The threads of this process, but for those of the gate: a few that begin with its first searches and stay."""
    return sum(not one.name.startswith(("search_", "note_", "mark_")) for one in threading.enumerate())


def descriptors() -> Counter[str]:
    """What the descriptors of this process point at, sockets and pipes without their numbers."""
    found: Counter[str] = Counter()
    for one in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            name = str(one.readlink()).split(":[")[0]
            # libuv keeps one in reserve for when it has none to accept with: of the first of these, then of the second.
            found["/dev/null" if name == "/" else name] += 1
    for name in [name for name in found if ".sqlite" in name]:
        del found[name]  # SQLite keeps one open until no connection of the process holds a lock on the file
    return found
