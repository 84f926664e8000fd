"""Work that waits for one thread: teams take turns, and of the bytes that may wait none has more than its share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SHARE = 2
"""No team may have more than one in so many of the bytes that may wait, but for one piece of work that is larger."""


class Backlog:
    """Takes work in any thread and does it in its own."""

    def __init__(self, name: str, most: int) -> None:
        """`most`: bytes that may wait."""
        self._thread, self._most = ThreadPoolExecutor(1, name), most
        self._lock = threading.Lock()
        self._turns: dict[str, deque[tuple[int, Callable[[], None]]]] = {}
        """What waits, by team; the first one is next."""
        self._held: dict[str, int] = {}
        """Bytes of each team that wait or are worked on."""

    @property
    def waiting(self) -> int:
        """Bytes that wait or are worked on."""
        return sum(self._held.values())

    def add(self, team: str, size: int, work: Callable[[], None]) -> bool:
        """Have it done soon. False where there is no room for it. Raises RuntimeError after `close`."""
        with self._lock:
            held = self._held.get(team, 0)
            if self.waiting + size > self._most or (held and held + size > self._most // SHARE):
                return False
            self._thread.submit(self._next)
            self._held[team] = held + size
            self._turns.setdefault(team, deque()).append((size, work))
        return True

    def close(self) -> None:
        """Take no more, and finish what waits."""
        self._thread.shutdown(wait=True)

    def _next(self) -> None:
        """Do the oldest work of the team whose turn it is."""
        with self._lock:
            team = next(iter(self._turns))
            mine = self._turns.pop(team)
            size, work = mine.popleft()
            if mine:
                self._turns[team] = mine  # behind all others
        try:
            work()
        finally:
            with self._lock:
                self._held[team] -= size
                if not self._held[team]:
                    del self._held[team]
