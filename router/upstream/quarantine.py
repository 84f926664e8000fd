"""Requests that bring engines down: after the second one that ended over it a request is refused for a while.

An engine that dies takes all it has with it, so who is asked next may die as well, and so on to the last. A connection
that breaks is no death by itself: it counts where serving says that the process behind it ended. Kept of a request are
only its size and a keyed digest, in memory, with a key that this process drew and nobody else has. Each worker counts
for itself, and each team: what one of them asked shows in nothing that another is told. A request that was in the wrong
place twice is held as well; an answer clears it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from router.errors import Unprocessable
from router.records import Ask, Candidate

CRASHES = 2
"""Engines that ended over a request before it is refused."""
HELD_S = 600.0
MOST = 1024
"""Requests that are remembered at most; the oldest are forgotten first."""
DIED = frozenset({"reset", "closed"})
"""Outcomes of a try in which the connection broke before an answer began."""


class Crash(NamedTuple):
    """A connection that broke over a request."""

    endpoint: str
    process: Any
    """Which process it was, by serving's word at that time."""
    until: float
    """Until when it counts."""
    size: int
    """Bytes of the request."""


class Quarantine:
    """What crashed lately. Costs nothing while nothing has, and then next to nothing for a request of another size."""

    def __init__(self, published: Callable[[], Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`published`: serving's last document, as it came."""
        self._published, self._clock, self._key = published, clock, secrets.token_bytes(16)
        self._crashes: dict[bytes, tuple[Crash, ...]] = {}
        """By digest; who crashed last stands last."""
        self._sizes: Counter[int] = Counter()
        """How many of them have so many bytes. To hash a megabyte takes a millisecond, and few are of one size."""

    def crashed(self, ask: Ask, team: str, candidate: Candidate, outcome: str) -> None:
        """A try ended so. It is kept where an engine may have died."""
        if candidate.model.place != "local" or outcome not in DIED:
            return
        digest, name, now = self._digest(ask, team), candidate.endpoint.name, self._clock()
        self._forget(now)
        crash = Crash(name, process(self._published(), name), now + HELD_S, ask.size)
        others = [one for one in self._drop(digest) if not _same(one, crash)]
        self._crashes[digest] = (*others, crash)[-CRASHES:]
        self._sizes[ask.size] += 1
        while len(self._crashes) > MOST:
            self._drop(next(iter(self._crashes)))

    def answered(self, ask: Ask, team: str) -> None:
        """An engine answered it and lives: it was no fault of this request."""
        if ask.size in self._sizes:
            self._drop(self._digest(ask, team))

    def refuse(self, ask: Ask, team: str) -> None:
        """Raises Unprocessable for one that brought too many engines down."""
        if not self._crashes:  # nearly always
            return
        now = self._clock()
        self._forget(now)
        if ask.size not in self._sizes:
            return
        found, document = self._crashes.get(self._digest(ask, team), ()), self._published()
        ended = [one for one in found if now < one.until and process(document, one.endpoint) != one.process]
        if len(ended) >= CRASHES:
            left_s = min(one.until for one in ended) - now
            raise Unprocessable(
                f"{len(ended)} engines ended while they worked on this request, so it is given to no other for "
                f"{left_s:.0f} s.",
                code="request_quarantined", retry_after=left_s,
            )  # fmt: skip

    def _forget(self, now: float) -> None:
        """What is too old counts no more: else each request was looked up from the first crash on."""
        while self._crashes:
            digest, oldest = next(iter(self._crashes.items()))
            if now < oldest[-1].until:
                return
            self._drop(digest)

    def _drop(self, digest: bytes) -> tuple[Crash, ...]:
        """Take out what is known of one request."""
        found = self._crashes.pop(digest, ())
        if found:
            size = found[0].size
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]
        return found

    def _digest(self, ask: Ask, team: str) -> bytes:
        said = b"\0".join((f"{ask.size} {ask.route} {team}".encode(), orjson.dumps(dict(ask.body))))
        return hashlib.blake2b(said, key=self._key, digest_size=16).digest()


def _same(one: Crash, other: Crash) -> bool:
    """Whether both may be the end of one engine: of several copies of a request that it had they tell once."""
    return one.endpoint == other.endpoint and (one.process == other.process or None in (one.process, other.process))


def process(document: Any, endpoint: str) -> Any:
    """Which process serves an endpoint, by serving's document; None where it does not say, or there is none now."""
    entries = document.get("instances") if isinstance(document, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == endpoint:
            return None if entry.get("pid") is None else (entry["pid"], entry.get("restarts"))
    return None
