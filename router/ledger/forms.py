"""How many new schemas for answers one key may bring in a minute: an engine compiles each before the first token.

What is compiled once is kept by the engine, so only what was not seen here lately counts. Times are passed in, in
seconds of `time.monotonic`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from router.errors import TooFast
from router.records import Caller

MOST_KNOWN = 4096
"""Schemas that are remembered, by their digest: about as many as an engine keeps compiled."""
MOST_KEYS = 4096
"""Keys of which it is remembered how many they have brought: after a minute nothing is left to remember."""


class Forms:
    """What was compiled lately, and who brought it. Of one process."""

    def __init__(self, per_minute: int) -> None:
        self._step_s = 60.0 / per_minute if per_minute else 0.0
        """How long one new schema counts; 0 is no limit."""
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._ends: dict[str, float] = {}
        """By account: when all that it brought will have run off."""

    def admit(self, caller: Caller, form: bytes, now: float) -> None:
        """Count `form`, as the caller wrote it, where it is new. Raises TooFast where its key brought too many."""
        if not form or not self._step_s:
            return
        digest = hashlib.sha256(form).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return
        end = max(self._ends.get(caller.account, now), now) + self._step_s
        wait = end - now - 60.0
        if wait > 0:
            most = round(60.0 / self._step_s)
            raise TooFast(
                f"key {caller.key} may bring {most} new schemas a minute, which engines compile one by one; use the "
                f"same one again, or try again in {wait:.3g} s. To change it: router.schemas_per_minute in "
                "headgate.yaml", code="rate_limit_exceeded", retry_after=wait,
            )  # fmt: skip
        self._known[digest] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self._remember(caller.account, end, now)

    def _remember(self, account: str, end: float, now: float) -> None:
        self._ends[account] = end
        if len(self._ends) > MOST_KEYS:
            self._ends = {one: until for one, until in self._ends.items() if until > now}
