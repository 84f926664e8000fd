"""What one attempt takes while it lasts: a place at its endpoint and, after a failed one, a share of the retry budget.

It is given back exactly once, and how the attempt ended is told to the endpoint's health.
"""

from __future__ import annotations

import time

from router.records import Candidate
from router.upstream.answer import End
from router.upstream.failures import Failure
from router.upstream.health import Health
from router.upstream.response import Response
from router.upstream.room import Room

SHARE = 0.2
"""Of the requests that are open, how many may be attempts after a failed one: more would feed an outage."""
LEAST = 3
"""And so many in any case."""


class Retries:
    """The retry budget of this process: of what is open now, and of what began over time.

    The first alone would let through more than a fifth, for it is asked just when much is open; the second alone would
    let a whole crowd try again at once after a quiet hour.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.running = 0
        """Attempts after a failed one that are under way."""
        self._earned = float(LEAST)
        """How many the requests that began have earned and not used up."""

    def left(self) -> bool:
        """Whether one more may begin."""
        return self.running < LEAST or (self._earned >= 1 and self.running < self._share())

    def begun(self, again: bool) -> None:
        """An attempt begins; `again`: after a failed one of the same request."""
        self.running += again
        most = max(LEAST, self._share())
        self._earned = max(-most, min(self._earned + (-1 if again else SHARE), most))

    def _share(self) -> float:
        return SHARE * (self._room.total() + self._room.waiting())


class Try:
    """One attempt under way. `over` whatever happens; the first call counts."""

    __slots__ = ("_again", "_endpoint", "_health", "_over", "_probe", "_retries", "_room", "_tokens", "response")

    def __init__(
        self, candidate: Candidate, tokens: int, room: Room, retries: Retries, health: Health, *, granted: bool,
        again: bool,
    ) -> None:  # fmt: skip
        """`granted`: its place is taken already. `again`: an attempt of the same request has failed before."""
        self.response: Response | None = None
        """What is closed with it while there is no answer that does so."""
        self._endpoint = candidate.endpoint.name
        self._room, self._retries, self._health = room, retries, health
        self._tokens, self._again, self._over = tokens, again, False
        room.enter(self._endpoint, tokens, granted=granted)
        retries.begun(again)
        self._probe = health.tried(self._endpoint, time.monotonic())

    def answered(self) -> None:
        """It has come to its commit point."""
        self._health.answered(self._endpoint, time.monotonic())

    def failed(self, failed: Failure) -> None:
        """It brought no answer."""
        now = time.monotonic()
        if failed.pause_s is not None:
            self._health.asked_to_wait(self._endpoint, failed.pause_s, now)
        if failed.blamed:
            self._health.failed(self._endpoint, failed.outcome, now)

    def over(self, end: End = "left") -> None:
        """It has ended, and what it took is free."""
        if self._over:
            return
        self._over = True
        if self.response is not None:
            self.response.close()
        if end == "ended":
            self._health.ended(self._endpoint)
        elif end == "cut":
            self._health.failed(self._endpoint, end, time.monotonic())
        elif self._probe:
            self._health.left(self._endpoint)
        self._retries.running -= self._again
        self._room.leave(self._endpoint, self._tokens)
