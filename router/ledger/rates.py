"""How fast one key may ask: requests and tokens a minute, after the generic cell rate algorithm.

What is kept of a key and a limit is one moment: when all that was taken will have run off. So there is no window with
an edge to burst at. Times are passed in, in seconds of `time.monotonic`, which no change of the clock moves and which
is the same in every process of a machine. The counters are of one process or shared by all workers.
"""

from __future__ import annotations

import logging

from router.errors import TooFast
from router.ledger.counters import Counters, Own, Stuck
from router.records import Caller

NANO = 1_000_000_000
MINUTE = 60 * NANO
HEADERS = {
    "requests": (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    "tokens": (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}
"""By what is limited: the names of OpenAI's headers."""
LOG = logging.getLogger("headgate.router")


class Rates:
    """What the keys have taken of their limits."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = Own() if counters is None else counters

    def admit(self, caller: Caller, tokens: int, now: float) -> None:
        """Take one request and `tokens` of the caller's limits, all of it or nothing.

        More tokens than a minute has are taken as a minute's: such a request waits until nothing else is taken, and
        `settle` makes it right. Raises TooFast.
        """
        limits = _limits(caller, tokens)
        if not limits:
            return
        at = int(now * NANO)
        try:
            with self._counters as kept:
                ends = [_end(max(kept.get(name), at), amount, limit) for name, amount, limit in limits]
                waits = [end - at - MINUTE for end in ends]
                if max(waits) <= 0:
                    for (name, _, _), end in zip(limits, ends, strict=True):
                        kept.put(name, end, end / NANO, now)
                    return
        except Stuck as stuck:  # a limit on speed is no reason to stop
            LOG.warning("rate limits are not counted: %s", stuck)
            return
        which = waits.index(max(waits))
        name, _, limit = limits[which]
        what = name.partition(" ")[0]
        counted = what.removesuffix("s") if limit == 1 else what
        raise TooFast(
            f"key {caller.key} may use {limit} {counted} a minute; try again in {waits[which] / NANO:.3g} s. "
            f"To change it: headgate keys set {caller.key} --{what}-per-minute N",
            retry_after=waits[which] / NANO,
        )  # fmt: skip

    def settle(self, caller: Caller, held_tokens: int, used_tokens: int, now: float) -> None:
        """Put the tokens that were used in the place of those that `admit` took."""
        limit = caller.tokens_per_minute
        more = used_tokens - min(held_tokens, limit or 0)
        if not limit or not more:
            return
        name, at = f"tokens {caller.account}", int(now * NANO)
        try:
            with self._counters as kept:
                # What has run off meanwhile is not given back twice.
                end = _end(max(kept.get(name), at), more, limit)
                kept.put(name, end, end / NANO, now)
        except Stuck as stuck:
            LOG.warning("rate limits are not counted: %s", stuck)

    def headers(self, caller: Caller, now: float) -> list[tuple[bytes, bytes]]:
        """What is left to the caller, in OpenAI's headers; nothing for a key without limits."""
        limits = _limits(caller, 0)
        if not limits:
            return []
        at, found = int(now * NANO), list[tuple[bytes, bytes]]()
        try:
            with self._counters as kept:
                taken = [max(0, kept.get(name) - at) for name, _, _ in limits]
        except Stuck:
            return []
        for (name, _, limit), used in zip(limits, taken, strict=True):
            values = (str(limit), str(max(0, (MINUTE - used) * limit // MINUTE)), _span(used))
            found += zip(HEADERS[name.partition(" ")[0]], map(str.encode, values), strict=True)
        return found


def _limits(caller: Caller, tokens: int) -> list[tuple[str, int, int]]:
    """The counters of a caller's limits, with how much of each a request takes and what a minute has."""
    found = []
    if caller.requests_per_minute:
        found.append((f"requests {caller.account}", 1, caller.requests_per_minute))
    if caller.tokens_per_minute:
        found.append((f"tokens {caller.account}", min(tokens, caller.tokens_per_minute), caller.tokens_per_minute))
    return found


def _end(begin: int, amount: int, limit: int) -> int:
    """When all will have run off, if `amount` more is taken."""
    return begin + amount * MINUTE // limit


def _span(nanoseconds: int) -> str:
    """A length of time as OpenAI writes it: `120ms`, `6s`, `1m30s`; rounded up."""
    ms = -(-nanoseconds // 1_000_000)
    if ms < 1000:
        return f"{ms}ms"
    seconds = -(-ms // 1000)
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m{seconds % 60}s"
