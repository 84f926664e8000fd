"""Which openings many conversations have: those of an application's examples, which tell none from another.

As one process has seen it since it began. Until an opening was seen often enough it counts as one conversation's.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

MANY = 8
"""So many conversations that went on differently from one opening show that it is no conversation's own."""
SOON = 2
"""Messages after an opening within which that counts. A long conversation of which a client sends the first message and
the last ones looks alike, and has the same opening in each of its turns."""
MOST = 4096
"""Openings that are kept, those that were seen last."""


class Openings:
    """Learns from each request that has ended. For any thread."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._next: dict[bytes, set[bytes]] = {}
        """By an opening, with what conversations went on; the one seen last is the last."""
        self._shared: dict[bytes, None] = {}

    def saw(self, names: Sequence[bytes]) -> None:
        """Take up a conversation, by the names of its openings of ever more messages."""
        with self._lock:
            for at in range(max(0, len(names) - 1 - SOON), len(names) - 1):
                found = self._next.pop(names[at], None) or set()
                if len(found) < MANY:
                    found.add(names[at + 1])
                self._next[names[at]] = found
                if len(found) >= MANY:
                    for name in names[: at + 1]:  # what is shorter is shared by as many
                        self._shared.pop(name, None)
                        self._shared[name] = None
            for kept in (self._next, self._shared):
                while len(kept) > self._most:
                    del kept[next(iter(kept))]

    def own(self, names: Sequence[bytes]) -> list[bytes]:
        """Those that are not known to be shared by many conversations, the shortest first."""
        with self._lock:
            return [name for name in names if name not in self._shared]
