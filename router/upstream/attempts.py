"""Attempts: the order is tried from the first to the last, one try each, until one answers.

Layers, outermost first: `first_answer` (waiting for room) → `_cascade` (an answer that fails its check is asked of
another model) → `_fallback` (along the order) → `once` (one try, recorded) → `Sending.send`.
Nothing here can widen the order, and a request whose class exceeds a model's clearance is stopped again right here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from router.errors import DeadlinePassed, Forbidden, HeadgateError, QueueFull
from router.records import MOST_ATTEMPTS, Ask, Attempt, Caller, Candidate, Decision
from router.upstream.answer import Answer, Log
from router.upstream.failures import OVERLOADED, TOO_LONG, Failure, most_telling
from router.upstream.fleet import Fleet
from router.upstream.room import Room
from router.upstream.sending import Sending

FIRST_PAUSE_S = 0.25
"""How long a request leaves an engine alone that was full though it seemed to have room; doubled each time."""


@dataclass(slots=True)
class Walk:
    """One request on its way along the order."""

    ask: Ask
    caller: Caller
    decision: Decision
    log: Log
    full: list[Candidate]
    """To be waited for."""
    errors: list[HeadgateError] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    """Endpoints that were asked."""
    trigger: str = ""
    """Why a hosted model answers where only a local one's turn showed it: `overflow` or `context`."""
    since: float | None = None
    """When it first had to wait; None until then."""
    pause_s: float = 0.0


class Attempts:
    """Walks along orders. Built once."""

    def __init__(self, sending: Sending, fleet: Fleet, room: Room, checks: Callable[[Ask, bytes], str | None]) -> None:
        """`checks`: why a whole answer is not what its ask wants, "" where it is, None where that cannot be said."""
        self._sending, self._fleet, self._room, self._checks = sending, fleet, room, checks

    async def first_answer(self, ask: Ask, caller: Caller, decision: Decision, log: Log) -> Answer:
        """Waiting: what has room is tried first; then room at what was full is waited for, until one answers.

        Raises the error that tells the caller most.
        """
        reach = within_hold(decision.order)
        walk = Walk(ask, caller, decision, log, [c for c in reach if c.endpoint.full])
        answer = await self._cascade(walk, [c for c in reach if not c.endpoint.full])
        while answer is None:
            candidate = await self._turn(walk)
            answer = await self._cascade(walk, [candidate], granted=True)
            if answer is not None and candidate.model.place == "local" and log.trigger == "overflow":
                log.trigger = ""  # it was to overflow, and was answered here after all
            walk.pause_s = max(FIRST_PAUSE_S, 2 * walk.pause_s)
        return answer

    async def _turn(self, walk: Walk) -> Candidate:
        """Wait for a place at one of those that were full; it is taken then. Raises where none comes, or none can."""
        if not walk.full:
            raise most_telling(walk.errors)
        log, started = walk.log, time.monotonic()
        first = walk.since is None
        since = walk.since = started if walk.since is None else walk.since
        names = {c.endpoint.name: c for c in walk.full}
        if any(c.model.place == "local" for c in walk.full):
            walk.trigger = walk.trigger or "overflow"  # should a hosted one have room first
        log.outcome = "left_queue"  # should the caller leave now
        try:
            name = await self._room.turn(
                tuple(names), since + self._room.wait_s, since=None if first else since, pause_s=walk.pause_s
            )
            log.outcome = ""
        except QueueFull:
            log.outcome = "queue_full"
            raise
        except DeadlinePassed:
            log.outcome = "deadline_passed"
            raise
        finally:
            if log.outcome != "queue_full":
                log.queued_ms = (log.queued_ms or 0.0) + (time.monotonic() - started) * 1000
        walk.full.remove(names[name])
        return names[name]

    async def _cascade(self, walk: Walk, candidates: Sequence[Candidate], *, granted: bool = False) -> Answer | None:
        """Cascade: a whole answer is held against what was asked for; one that fails is asked of another model once."""
        answer = await self._fallback(walk, candidates, granted=granted)
        if answer is None or not walk.decision.check or answer.stream:
            return answer
        failed = self._check(walk, answer)
        other = self._another(walk, answer) if failed else None
        if other is None:
            return answer
        answer.close()  # it was read to its end: its place is free while another model is asked
        return await self._second(walk, answer, other)

    async def _second(self, walk: Walk, first: Answer, other: Candidate) -> Answer:
        """The answer of `other`, whatever its check says; where it has none, the first one."""
        log, number, usage = walk.log, len(walk.log.attempts) - 1, walk.log.usage
        try:
            second = await self.once(walk, other)
        except Failure:
            return first
        log.attempts[number] = replace(log.attempts[number], outcome="check_failed", usage=usage)
        log.trigger = "cascade"
        self._check(walk, second)
        return second

    def _check(self, walk: Walk, answer: Answer) -> bool:
        """Hold an answer against what was asked for, and write down how that went. True where it fails."""
        log = walk.log
        with ExitStack() as unless_judged:
            unless_judged.callback(answer.close)
            reason = self._checks(walk.ask, answer.whole())
            unless_judged.pop_all()
        log.check = "" if reason is None else "failed" if reason else "passed"
        if reason:
            log.attempts[-1] = replace(log.attempts[-1], detail=reason)
        return bool(reason)

    def _another(self, walk: Walk, answer: Answer) -> Candidate | None:
        """The next of the order that is another model, was not asked yet and has room."""
        order = within_hold(walk.decision.order)
        later = order[order.index(answer.candidate) + 1 :]
        for candidate in later:
            name = candidate.endpoint.name
            other = candidate.model.name != answer.candidate.model.name
            if other and name not in walk.tried and not self._room.is_full(name):
                return candidate
        return None

    async def _fallback(self, walk: Walk, candidates: Sequence[Candidate], *, granted: bool = False) -> Answer | None:
        """Fallback: walk along `candidates` until one answers; None where none does.

        Those that are full by now are kept to be waited for. `granted`: there is one, and its place is taken already.
        """
        for candidate in candidates:
            if not granted and self._room.is_full(candidate.endpoint.name):
                walk.full.append(candidate)
                if candidate.model.place == "local":
                    walk.trigger = "overflow"
                continue
            try:
                answer = await self.once(walk, candidate, granted=granted)
            except Failure as failed:
                if failed.final:
                    raise failed.error from failed
                walk.errors.append(failed.error)
                if _refused_for_room(candidate, failed):
                    walk.full.append(candidate)
                    walk.trigger = "overflow"
                elif failed.outcome == TOO_LONG and candidate.model.place == "local":
                    walk.trigger = "context"
                continue
            if candidate.model.place == "hosted":
                walk.log.trigger = walk.log.trigger or walk.trigger
            return answer
        return None

    async def once(self, walk: Walk, candidate: Candidate, *, granted: bool = False) -> Answer:
        """One try at one endpoint, recorded however it ends: a provider bills one that nobody waits for too.

        Counted as in flight until the answer is closed. Raises Failure.
        """
        log, started, place = walk.log, time.monotonic(), candidate.model.place
        name, endpoint = candidate.model.name, candidate.endpoint.name
        outcome, status, detail, sent = "failed", None, "", False
        walk.tried.add(endpoint)
        with ExitStack() as held:
            held.enter_context(self._room.busy(endpoint, granted=granted))
            try:
                await self._admit(walk.decision, candidate, log)
                sent = place == "hosted"
                answer = await self._sending.send(walk.ask, walk.caller, walk.decision, candidate, log, held)
                outcome, status = "answered", answer.status
                log.model, log.status = candidate.model, answer.status
                return answer
            except Failure as failed:
                outcome, status, detail = failed.outcome, failed.status, failed.detail
                sent = sent and failed.sent
                if _refused_for_room(candidate, failed):
                    self._room.told_full(endpoint)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                outcome = "client_left"
                raise
            finally:
                ms = (time.monotonic() - started) * 1000
                log.attempts.append(Attempt(name, endpoint, place, outcome, status, ms, detail, sent))

    async def _admit(self, decision: Decision, candidate: Candidate, log: Log) -> None:
        """The last look before anything is sent. Raises Failure."""
        if decision.traits.data_class > candidate.model.cleared_for(self._fleet.today()):
            # The rule in eligibility has already refused this; whoever comes here met a bug, and it ends here.
            raise Failure(Forbidden("This request may not be sent there.", code="data_class_not_cleared"), "barred")
        if candidate.model.place == "hosted":
            try:
                await log.durable()
            except HeadgateError as late:
                raise Failure(late, "not_recorded") from late


def within_hold(order: Sequence[Candidate]) -> list[Candidate]:
    """What may be tried: the first MOST_ATTEMPTS, which the hold covers, and local ones that are waited for."""
    return [
        candidate
        for number, candidate in enumerate(order)
        if number < MOST_ATTEMPTS or (candidate.endpoint.full and candidate.model.place == "local")
    ]


def _refused_for_room(candidate: Candidate, failed: Failure) -> bool:
    """Whether an engine's own admission limit refused it (vLLM answers 503); of a provider nothing is waited for."""
    return candidate.model.place == "local" and failed.outcome == OVERLOADED
