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
    let a whole crowd try again at once after a quiet hour. Between `left` and `begun` nothing may be awaited; whoever
    begins later takes its share with `reserve`.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.running = 0
        """Attempts after a failed one that are under way or reserved."""
        self._earned = float(LEAST)
        """How many the requests that began have earned and not used up; bounded when it is asked for."""

    def left(self) -> bool:
        """Whether one more may begin."""
        share = SHARE * (self._room.total() + self._room.waiting())
        most = max(LEAST, share)
        self._earned = max(-most, min(self._earned, most))
        return self.running < LEAST or (self._earned >= 1 and self.running < share)

    def begun(self, again: bool) -> None:
        """An attempt begins; `again`: after a failed one of the same request, and not reserved before."""
        self.running += again
        self._earned += -1 if again else SHARE

    def reserve(self) -> None:
        """Take the share of an attempt that begins later: many that are promised one at once must not all get it."""
        self.begun(again=True)

    def unreserve(self) -> None:
        """The attempt will not begin after all."""
        self.running -= 1
        self._earned += 1


class Try:
    """One attempt under way. `over` whatever happens; the first call counts."""

    __slots__ = (
        "_again", "_endpoint", "_health", "_over", "_probe", "_retries", "_room", "_tokens", "permit", "response",
        "sent",
    )  # fmt: skip

    def __init__(
        self, candidate: Candidate, tokens: int, room: Room, retries: Retries, health: Health, *, granted: bool,
        again: bool, reserved: bool = False,
    ) -> None:  # fmt: skip
        """`granted`: its place is taken already. `again`: an attempt of the same request has failed before, and
        `reserved`: its share of the retry budget is taken already."""
        self.response: Response | None = None
        """What is closed with it while there is no answer that does so."""
        self.sent = False
        """Whether a connection was given the request, so that somebody may have worked on it."""
        self.permit = ""
        """The id of the permit under which it was handed to the door."""
        self._endpoint = candidate.endpoint.name
        self._room, self._retries, self._health = room, retries, health
        self._tokens, self._again, self._over = tokens, again, False
        room.enter(self._endpoint, tokens, granted=granted)
        if not reserved:
            retries.begun(again)
        self._probe = health.tried(self._endpoint, time.monotonic())

    def handed_over(self) -> None:
        """A connection was given the request."""
        self.sent = True

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
