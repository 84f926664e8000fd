"""What one attempt takes while it lasts: a place at its endpoint and, after a failed one, a share of the retry budget.

It is given back exactly once, and how the attempt ended is told to the endpoint's health.
"""

from __future__ import annotations

import time

from router.records import Ask, Candidate, Traits
from router.upstream.answer import End, Log
from router.upstream.failures import Failure
from router.upstream.health import Health
from router.upstream.pace import FEW, Paces, Sent
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


def measured(paces: Paces, candidate: Candidate, ask: Ask, traits: Traits, now: float) -> Sent | None:
    """A request that is sent now, for what it shows of its endpoint's pace; None where that is nothing."""
    if candidate.model.place != "local" or ask.route == "messages/count_tokens":
        return None
    endpoint, most = candidate.endpoint, traits.output_tokens
    blind = not ask.stream and (most is None or most >= FEW)
    there = paces.there(endpoint.name, endpoint.model)
    return there.sent(
        ask.size, endpoint.cached, now, streams=ask.stream, blind=blind, pictured="vision" in traits.needs
    )  # fmt: skip


class Try:
    """One attempt under way. `over` whatever happens; the first call counts."""

    __slots__ = (
        "_again", "_endpoint", "_failed", "_health", "_log", "_measured", "_over", "_probe", "_retries", "_room",
        "_tokens", "permit", "response", "sent",
    )  # fmt: skip

    def __init__(
        self, candidate: Candidate, tokens: int, room: Room, retries: Retries, health: Health, *, granted: bool,
        again: bool, reserved: bool = False, measured: Sent | None = None, log: Log | None = None,
    ) -> None:  # fmt: skip
        """`granted`: its place is taken already. `again`: an attempt of the same request has failed before, and
        `reserved`: its share of the retry budget is taken already. `measured`: what it shows of its endpoint's pace,
        where it shows something; what it met is written into `log`."""
        self.response: Response | None = None
        """What is closed with it while there is no answer that does so."""
        self.sent = False
        """Whether a connection was given the request, so that somebody may have worked on it."""
        self.permit = ""
        """The id of the permit under which it was handed to the door."""
        self._endpoint = candidate.endpoint.name
        self._room, self._retries, self._health = room, retries, health
        self._tokens, self._again, self._failed, self._over = tokens, again, False, False
        self._measured, self._log = measured, log
        room.enter(self._endpoint, tokens, granted=granted)
        if not reserved:
            retries.begun(again)
        self._probe = health.tried(self._endpoint, time.monotonic())

    def handed_over(self) -> None:
        """A connection was given the request."""
        self.sent = True

    def answered(self) -> None:
        """It has come to its commit point."""
        now = time.monotonic()
        self._health.answered(self._endpoint, now)
        if self._measured is not None and self._measured.streams:
            self._measured.first(now)

    def failed(self, failed: Failure) -> None:
        """It brought no answer."""
        now, self._failed = time.monotonic(), True
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
        self._room.leave(self._endpoint, self._tokens, served=not self._failed)
        if (measured := self._measured) is not None:
            log, now = self._log, time.monotonic()
            if end == "ended" and log is not None:
                log.met = measured.ended(log.usage, log.estimated_output, now)
            else:
                measured.left(now)
