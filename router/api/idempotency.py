"""`Idempotency-Key`: the first answer to a request is kept, and given again to whoever repeats it with the same key.

In memory, for each worker, and for requests that are not streamed. Bounded in entries and bytes: the oldest goes first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from router.errors import BadRequest, Conflict, HeadgateError, Unprocessable

LONGEST_KEY = 255
KEPT_S = 24 * 3600
MOST_ENTRIES, MOST_BYTES = 10_000, 64 * 2**20
PASSING = (403, 404, 429, 499)
"""Errors that the operator or time may change; they are not kept."""
Name = tuple[str, str, str]
"""The caller's key, the route, and what the caller named the request."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was first given."""

    status: int
    lines: bytes
    """Its header lines but for those of the connection."""
    request_id: str
    body: bytes


@dataclass(slots=True, eq=False)
class Claim:
    """One request that was named by its caller: being answered, or answered."""

    name: Name
    digest: bytes
    at: float
    kept: Kept | None = None


class Idempotency:
    """The requests that callers named, by their names. Times are those of a monotonic clock, passed in."""

    def __init__(self, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> None:
        self._claims: dict[Name, Claim] = {}
        """Oldest first."""
        self._most_entries, self._most_bytes, self._bytes = most_entries, most_bytes, 0

    def __len__(self) -> int:
        return len(self._claims)

    def claim(self, caller: str, route: str, given: bytes, body: bytes, now: float, choices: str = "") -> Claim:
        """Take a name, or find what was answered under it (`Claim.kept`). `choices`: those made outside the body.

        Whoever took it gives it back: with `keep` or `let_go`. Raises Conflict while another one is being answered
        under that name, Unprocessable where its body was another one, BadRequest where the name cannot be taken.
        """
        if not 0 < len(given) <= LONGEST_KEY or not given.isascii():
            raise BadRequest(f"Idempotency-Key: give 1 to {LONGEST_KEY} characters of ASCII.", param="Idempotency-Key")
        self._forget(now)
        name, digest = (caller, route, given.decode()), hashlib.sha256(body)
        digest.update(choices.encode())
        found = self._claims.get(name)
        if found is None:
            found = self._claims[name] = Claim(name, digest.digest(), now)
            return found
        if found.digest != digest.digest():
            raise Unprocessable("This Idempotency-Key was used for another request.", param="Idempotency-Key")
        if found.kept is None:
            raise Conflict("A request with this Idempotency-Key is being answered.", retry_after=1)
        return found

    def keep(self, claim: Claim, kept: Kept) -> None:
        """Give `kept` to whoever repeats the request from now on; one too large for that is let go."""
        if len(kept.body) > self._most_bytes // 8:
            self.let_go(claim)
            return
        claim.kept = kept
        self._bytes += _size(kept)
        self._shrink()

    def let_go(self, claim: Claim) -> None:
        """Forget it: the next one with this name is answered anew."""
        if self._claims.get(claim.name) is claim and claim.kept is None:
            del self._claims[claim.name]

    def _forget(self, now: float) -> None:
        """Drop what is too old."""
        while self._claims:
            oldest = next(iter(self._claims.values()))
            if now - oldest.at < KEPT_S or oldest.kept is None:
                return
            self._drop(oldest)

    def _shrink(self) -> None:
        """Drop the oldest answers until the rest is within its bounds; what is being answered stays."""
        while len(self._claims) > self._most_entries or self._bytes > self._most_bytes:
            oldest = next((claim for claim in self._claims.values() if claim.kept is not None), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, claim: Claim) -> None:
        assert claim.kept is not None
        self._bytes -= _size(claim.kept)
        del self._claims[claim.name]


def final(error: HeadgateError) -> bool:
    """Whether an error is the answer for good, so that it is kept like any other.

    A failure of ours or of an upstream is not: nobody was answered, and asking again has no effect but its cost. Nor is
    one that says when to ask again.
    """
    return error.status < 500 and error.status not in PASSING and error.retry_after is None


def _size(kept: Kept) -> int:
    return len(kept.body) + len(kept.lines)
