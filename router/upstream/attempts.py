"""Attempts: the order is tried from the first to the last, one try each, until one answers.

Layers, outermost first: `first_answer` (waiting for room) → `_cascade` (an answer that fails its check is asked of
another model) → `_along` (the endpoints of one model, then the next model's) → `once` (one try, recorded) →
`Sending.send`. Nothing here can widen the order, and a request whose class exceeds a model's clearance is stopped
again right here. However many layers, there are at most MOST_ATTEMPTS tries that can cost something, and what comes
after a failed one takes from the retry budget.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from router.errors import DeadlinePassed, Forbidden, HeadgateError, Hopeless, LimitReached, PushedOut, QueueFull
from router.records import MOST_ATTEMPTS, Ask, Attempt, Caller, Candidate, Decision
from router.upstream.answer import Answer, Log
from router.upstream.demand import sleeper
from router.upstream.failures import OVERLOADED, TOO_LONG, Failure, most_telling
from router.upstream.fleet import Fleet
from router.upstream.health import Health
from router.upstream.pace import Paces
from router.upstream.quarantine import DIED, Quarantine
from router.upstream.room import Room
from router.upstream.sending import Sending
from router.upstream.tries import Retries, Try, measured
from router.upstream.walk import Walk, by_state, within_hold

LOG = logging.getLogger("headgate.router")
FIRST_PAUSE_S = 0.25
"""How long a request leaves an engine alone that was full though it seemed to have room; doubled each time."""
MOST_PAUSE_S = 2.0
"""Up to here: who waits for minutes must not sleep through the moment in which there is room."""
LEAST_REST_S = 0.25
"""How often those that wait look again at an endpoint whose rest is over, and of which one request is finding out."""
INNER_ERRORS = 2
"""Tries that may end in status 500 or with a broken connection. A request that makes two engines fail would make the
third one fail too."""
DOWN = frozenset({"refused", "connect_timeout"})
ENDS: dict[type[HeadgateError], str] = {
    QueueFull: "queue_full", PushedOut: "pushed_out", DeadlinePassed: "deadline_passed", Hopeless: "hopeless",
}  # fmt: skip
"""What a wait that brought no place is called where it is written down."""


class Attempts:
    """Walks along orders. Built once."""

    def __init__(
        self, sending: Sending, fleet: Fleet, room: Room, checks: Callable[[Ask, bytes], str | None],
        health: Health | None = None, paces: Paces | None = None,
    ) -> None:  # fmt: skip
        """`checks`: why a whole answer is not what its ask wants, "" where it is, None where that cannot be said."""
        self._sending, self._fleet, self._room, self._checks = sending, fleet, room, checks
        self._health, self._retries, self._paces = health or Health(), Retries(room), paces or Paces()
        self._quarantine = Quarantine(lambda: fleet.instances)

    async def first_answer(self, ask: Ask, caller: Caller, decision: Decision, log: Log) -> Answer:
        """Waiting: what has room is tried first; then room at what was full is waited for, until one answers.

        An endpoint that rests is asked where nobody else is left. Raises the error that tells the caller most.
        """
        self._quarantine.refuse(ask, caller.team)
        ready, full, resting = by_state(within_hold(decision.order))
        walk = Walk(ask, caller, decision, log, full)
        if decision.trigger == "overflow" and (asleep := sleeper(decision.order)) is not None:
            self._fleet.demand.say(asleep)  # this one goes elsewhere, and the next ones need not
        tried = self._cascade if decision.check else self._along
        try:
            answer = await tried(walk, ready) if ready else None
            while answer is None:
                now = time.monotonic()
                well = [c for c in resting if not walk.full or not self._health.resting(c.endpoint.name, now)]
                if well:
                    resting = [c for c in resting if c not in well]
                    answer = await tried(walk, well)
                    continue
                candidate = await self._turn_or_rest(walk, resting)
                if candidate is None:
                    continue
                answer = await tried(walk, [candidate], granted=True)
                if answer is not None and candidate.model.place == "local" and log.trigger == "overflow":
                    log.trigger = ""  # it was to overflow, and was answered here after all
                walk.pause_s = min(MOST_PAUSE_S, max(FIRST_PAUSE_S, 2 * walk.pause_s))
        finally:
            if walk.reserved:  # the try it was for never began
                self._retries.unreserve()
        return answer

    async def _turn_or_rest(self, walk: Walk, resting: Sequence[Candidate]) -> Candidate | None:
        """As `_turn`; None once one of those that rest may be well again: then it is asked like any other."""
        if not resting:
            return await self._turn(walk)
        now = time.monotonic()
        soonest_s = min(self._health.rest_s(candidate.endpoint.name, now) for candidate in resting)
        try:
            async with asyncio.timeout(max(LEAST_REST_S, soonest_s)):
                return await self._turn(walk)
        except TimeoutError:
            walk.log.outcome = ""
            return None

    async def _turn(self, walk: Walk) -> Candidate:
        """Wait for a place at one of those that were full; it is taken then. Raises where none comes, or none can."""
        if not walk.full or not self._may_try(walk):
            raise most_telling(walk.errors)
        log, started = walk.log, time.monotonic()
        first = walk.since is None
        since = walk.since = started if walk.since is None else walk.since
        priority, names = walk.priority, {c.endpoint.name: c for c in walk.full}
        asked_s = min(self._health.pause(name, started) for name in names)
        if any(c.model.place == "local" for c in walk.full):
            walk.trigger = walk.trigger or "overflow"  # should a hosted one have room first
        log.outcome = "left_queue"  # should the caller leave now
        waits = tuple(walk.full)
        try:
            with self._fleet.demand.waiting(lambda: self._fleet.sleeper(waits)):
                name = await self._room.turn(
                    tuple(names), since + self._room.longest_s(priority), team=walk.caller.team, priority=priority,
                    size=walk.decision.traits.prompt_tokens, since=None if first else since,
                    pause_s=max(walk.pause_s, asked_s),
                )  # fmt: skip
            log.outcome = ""
        except (QueueFull, DeadlinePassed) as error:
            log.outcome = ENDS[type(error)]
            if self._fleet.sleeper(waits) is not None:
                self._say_when(error, names)
            raise
        finally:
            if log.outcome != "queue_full":
                log.queued_ms = (log.queued_ms or 0.0) + (time.monotonic() - started) * 1000
        walk.full.remove(names[name])
        if not self._may_try(walk):  # meanwhile others have used the retry budget up
            self._room.leave(name, served=False)
            raise most_telling(walk.errors)
        return names[name]

    def _say_when(self, error: HeadgateError, endpoints: Iterable[str]) -> None:
        """Tell whoever waited for a model that sleeps when it is likely to be here."""
        if (seconds := self._fleet.ready_in_s(endpoints)) is not None:
            error.retry_after = max(1.0, seconds)

    async def _cascade(self, walk: Walk, candidates: Sequence[Candidate], *, granted: bool = False) -> Answer | None:
        """Cascade: a whole answer is held against what was asked for; one that fails is asked of another model once."""
        answer = await self._along(walk, candidates, granted=granted)
        if answer is None or answer.stream:
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
        log.attempts[number] = log.attempts[number]._replace(outcome="check_failed", usage=usage)
        log.trigger = "cascade"
        self._check(walk, second)
        return second

    def _check(self, walk: Walk, answer: Answer) -> bool:
        """Hold an answer against what was asked for, and write down how that went. True where it fails."""
        log = walk.log
        judged = False
        try:
            reason = self._checks(walk.ask, answer.whole())
            judged = True
        finally:
            if not judged:
                answer.close()
        log.check = "" if reason is None else "failed" if reason else "passed"
        if reason:
            log.attempts[-1] = log.attempts[-1]._replace(detail=reason)
        return bool(reason)

    def _another(self, walk: Walk, answer: Answer) -> Candidate | None:
        """The next of the order that is another model, was not asked yet and has room."""
        if not self._may_try(walk):
            return None
        order = within_hold(walk.decision.order)
        later = order[order.index(answer.candidate) + 1 :]
        for candidate in later:
            name = candidate.endpoint.name
            other = candidate.model.name != answer.candidate.model.name
            free = not candidate.endpoint.wakes and not self._room.is_full(name)
            if other and name not in walk.tried and free:
                return candidate
        return None

    async def _along(self, walk: Walk, candidates: Sequence[Candidate], *, granted: bool = False) -> Answer | None:
        """Retry and fallback: one try each until one answers, the endpoints of a model before those of the next.

        Those that are full by now are kept to be waited for. None where none answers; raises where no further try is
        allowed. `granted`: there is one candidate, and its place is taken already.
        """
        for number, candidate in enumerate(candidates):
            if not granted and self._room.is_full(candidate.endpoint.name):
                walk.full.append(candidate)
                if candidate.model.place == "local":
                    walk.trigger = "overflow"
                continue
            if candidate.model.place == "hosted" and (asked := self._asked_to_wait(candidate)) is not None:
                walk.errors.append(asked)
                if granted:
                    self._room.leave(candidate.endpoint.name, served=False)
                continue
            if walk.errors and not granted and not self._may_try(walk):
                raise most_telling(walk.errors)
            try:
                later = [*candidates[number + 1 :], *(c for c in walk.full if not c.endpoint.wakes)]
                answer = await self.once(walk, candidate, later, granted=granted)
            except Failure as failed:
                self._note(walk, candidate, failed)
                continue
            if candidate.model.place == "hosted":
                walk.log.trigger = walk.log.trigger or walk.trigger
            elif walk.log.trigger == "overflow":  # it was to overflow, and nobody else had an answer
                walk.log.trigger = ""
            return answer
        return None

    def _note(self, walk: Walk, candidate: Candidate, failed: Failure) -> None:
        """What a failure means for the rest of the walk. Raises where another model would say the same."""
        if failed.final:
            raise failed.error from failed
        walk.errors.append(failed.error)
        walk.inner_errors += failed.status == 500 or (candidate.model.place == "local" and failed.outcome in DIED)
        if _refused_for_room(candidate, failed):
            if (failed.pause_s or 0.0) < self._room.longest_s(walk.priority):
                walk.full.append(candidate)
            walk.trigger = "overflow"
        elif candidate.model.place == "local" and failed.outcome == TOO_LONG:
            walk.trigger = "context"
        elif candidate.model.place == "local" and failed.outcome in DOWN:
            walk.trigger = "overflow"
        elif failed.outcome == "outside":
            LOG.error("%s: its address now leads out of this site; nothing was sent there", candidate.endpoint.name)

    def _may_try(self, walk: Walk) -> bool:
        """Whether another try is allowed: by their number, by what failed, and by the retry budget."""
        if walk.tries == 0:
            return True
        if walk.tries >= MOST_ATTEMPTS or walk.inner_errors >= INNER_ERRORS:
            return False
        return walk.reserved or self._retries.left()

    def _asked_to_wait(self, candidate: Candidate) -> HeadgateError | None:
        """The refusal while a provider's Retry-After runs, which is obeyed although nobody else may be left."""
        left_s = self._health.pause(candidate.endpoint.name, time.monotonic())
        if left_s <= 0:
            return None
        text = f"{candidate.name} takes no more requests now."
        return LimitReached(text, code="rate_limit_exceeded", retry_after=max(1.0, left_s))

    def _elsewhere(self, walk: Walk, later: Sequence[Candidate]) -> Callable[[], bool]:
        """Whether one of `later` can be asked at once; looked at when a first token is late, not before.

        Where it says so, that try has its share of the retry budget: first tokens are late of many at the same moment,
        and their next tries begin later, one by one.
        """

        def reserve() -> bool:
            if not self._may_try(walk) or all(self._room.is_full(c.endpoint.name) for c in later):
                return False
            if not walk.reserved:
                self._retries.reserve()
                walk.reserved = True
            return True

        return reserve

    async def once(
        self, walk: Walk, candidate: Candidate, later: Sequence[Candidate] = (), *, granted: bool = False
    ) -> Answer:  # fmt: skip
        """One try at one endpoint, recorded however it ends: a provider bills one that nobody waits for too.

        Counted as in flight until the answer is closed. `later`: those that may be asked after it. Raises Failure.
        """
        log, started, place = walk.log, time.monotonic(), candidate.model.place
        name, endpoint, again = candidate.model.name, candidate.endpoint.name, walk.tries > 0
        outcome, status, detail, sent = "failed", None, "", True
        walk.tried.add(endpoint)
        walk.tries += 1
        tokens = walk.decision.traits.prompt_tokens
        reserved, walk.reserved = walk.reserved, False
        shown = measured(self._paces, candidate, walk.ask, walk.decision.traits, started)
        held = Try(
            candidate, tokens, self._room, self._retries, self._health, granted=granted, again=again, reserved=reserved,
            measured=shown, log=log,
        )  # fmt: skip
        try:
            self._bar(walk.decision, candidate)
            elsewhere = self._elsewhere(walk, later) if later and walk.ask.stream else None
            answer = await self._sending.send(
                walk.ask, walk.caller, walk.decision, candidate, log, held, elsewhere=elsewhere
            )
            outcome, status = "answered", answer.status
            log.model, log.status = candidate.model, answer.status
            held.answered()
            self._quarantine.answered(walk.ask, walk.caller.team)
            return answer
        except Failure as failed:
            outcome, status, detail = failed.outcome, failed.status, failed.detail
            sent = failed.sent
            held.failed(failed)
            self._quarantine.crashed(walk.ask, walk.caller.team, candidate, outcome)
            if _refused_for_room(candidate, failed):
                walk.tries -= 1
                self._room.told_full(endpoint)
            raise
        except (asyncio.CancelledError, GeneratorExit) as ended:
            outcome = "stopped" if ended.args else "client_left"  # see entries.py
            raise
        finally:
            if outcome != "answered":
                held.over()
            ms = (time.monotonic() - started) * 1000
            log.attempts.append(
                Attempt(name, endpoint, place, outcome, status, ms, detail, held.sent and sent, permit=held.permit)
            )

    def _bar(self, decision: Decision, candidate: Candidate) -> None:
        """The last look before anything is sent. Raises Failure."""
        if decision.traits.data_class > candidate.model.cleared_for(self._fleet.today()):
            # The rule in eligibility has already refused this; whoever comes here met a bug, and it ends here.
            raise Failure(Forbidden("This request may not be sent there.", code="data_class_not_cleared"), "barred")
        if candidate.model.place == "local":
            return
        if decision.traits.unsearched:
            raise Failure(Forbidden("This request was not searched, so it stays.", code="not_scannable"), "barred")
        if candidate.model.unmet(decision.traits.requires, self._fleet.today()):
            raise Failure(Forbidden("This request may not be sent there.", code="requirement_not_met"), "barred")


def _refused_for_room(candidate: Candidate, failed: Failure) -> bool:
    """Whether an engine's own admission limit refused it (vLLM answers 503); of a provider nothing is waited for.

    Nor of who says 529: that is none of an engine's words, and counts as a failure.
    """
    return candidate.model.place == "local" and failed.outcome == OVERLOADED and not failed.blamed
