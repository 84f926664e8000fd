"""One request's entry in the ledger: opened with the decision and the hold, closed exactly once however it ended."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
import sys
import time
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from typing import Any

from router.errors import BadRequest, HeadgateError, Overloaded, Unavailable
from router.ledger.bodies import closed, opened
from router.ledger.budgets import Budgets, Hold
from router.ledger.metrics import Metrics
from router.ledger.prices import Prices
from router.ledger.settled import NOTE, lost
from router.ledger.store import Event, LedgerError, Store, connect
from router.records import Ask, Attempt, Caller, Decision, Met, Outcome, Prediction, Usage
from serving.catalogue import Catalogue, Model, Site

CODE = re.compile(r"[a-z0-9_.-]{1,64}")
"""What an error code looks like. An upstream gives codes of its own, and they must not carry its prose."""
UNKNOWN = Usage()
COUNTED = "messages/count_tokens"
"""The route on which a prompt is counted and no model reads it."""


class Entry:
    """What is known so far of one request. Open inside `with`, and closed exactly once after it.

    Attempts and the relay write into it meanwhile.
    """

    __slots__ = (
        "_hold", "_ledger", "_prices", "ask", "attempts", "caller", "check", "decision", "error", "estimated_output",
        "finish", "first_byte_ms", "met", "model", "outcome", "queued_ms", "replaced", "started", "status", "trigger",
        "usage",
    )  # fmt: skip

    def __init__(self, ask: Ask, caller: Caller, decision: Decision, ledger: Ledger) -> None:
        self.ask, self.caller, self.decision = ask, caller, decision
        self.attempts: list[Attempt] = []
        self.usage = UNKNOWN
        self.model: Model | None = None
        """The model that answers, once one does."""
        self.status = 200
        self.outcome = ""
        self.error = ""
        """The code of the error it ended with."""
        self.estimated_output = 0
        """Deltas relayed: the output tokens counted where the upstream names none."""
        self.first_byte_ms: float | None = None
        self.queued_ms: float | None = None
        self.trigger, self.check = decision.trigger, ""
        self.met: Met | None = None
        """What it met at the endpoint that answered."""
        self.finish, self.replaced = "", False
        """Of a stream: why it ended, in the upstream's word, and whether bytes of it were no UTF-8."""
        self.started = ledger.clock()
        self._ledger, self._prices = ledger, ledger.prices
        self._hold: Hold | None = None

    def __enter__(self) -> Entry:
        ledger = self._ledger
        ledger.open(self)
        try:
            self._hold = ledger.budgets.hold(self.caller, self.decision.hold or 0.0, self.started)
        finally:
            if self._hold is None:  # closed like whatever fails inside
                self.__exit__(*sys.exc_info())
        return self

    def __exit__(self, kind: object, failed: BaseException | None, trace: object) -> None:
        if failed is not None:
            _say_how(self, failed)
        self._ledger.close(self, self._hold)

    def elapsed_ms(self) -> float:
        return (self._ledger.clock() - self.started) * 1000

    def first_byte(self) -> None:
        if self.first_byte_ms is None:
            self.first_byte_ms = self.elapsed_ms()

    async def durable(self) -> None:
        """Return once the record of this request is on disk. Raises Unavailable: without it nothing may leave."""
        try:
            await self._ledger.store.durable()
        except LedgerError as late:
            raise Unavailable(f"Nothing leaves while {late}", code="ledger_unavailable", retry_after=10) from late

    async def sending(self, claims: dict[str, Any]) -> None:
        """Write down what is about to be handed to the door, and return once that is on disk. Raises Unavailable.

        Written beforehand, it counts what left even where the router is killed before it can say how that ended.
        """
        ledger = self._ledger
        ledger.store.append(Event(ledger.clock(), "sending", self.ask.id, self.caller.key, claims))
        await self.durable()

    def result(self, error: str) -> Outcome:
        """How it ended: usage as the upstream says, else estimated and marked; the cost is that of all attempts."""
        usage, known = self._usage()
        answer = None if self.model is None else self._answer_cost(self.model, usage, known)
        attempts, charged, estimated = [], [], not known
        for attempt in self.attempts:
            cost = self._cost(attempt, answer)
            attempts.append(attempt if cost == attempt.cost else priced(attempt, cost))
            if (aside := attempt.usage) is not None:
                charged.append(cost)
                estimated = estimated or aside.prompt is None or aside.output is None
            elif attempt.outcome != "answered" and (_left_at_work(attempt) or _billed(attempt)):
                charged.append(cost)
                estimated = True
        if self.model is not None:
            charged.append(answer)
        known_costs = [cost for cost in charged if cost is not None]
        return Outcome(
            outcome=self.outcome or "answered", status=self.status, attempts=tuple(attempts), usage=usage,
            cost=sum(known_costs) if known_costs or not charged else None, estimated=estimated,
            first_byte_ms=self.first_byte_ms, queued_ms=self.queued_ms, trigger=self.trigger, check=self.check,
            total_ms=self.elapsed_ms(), error=error,
            finish=self.finish if not self.finish or CODE.fullmatch(self.finish) else "other", replaced=self.replaced,
            predicted=self._predicted(), met=self.met,
        )  # fmt: skip

    def _predicted(self) -> Prediction | None:
        """What the endpoint that answered was expected to do."""
        if not self.decision.predicted or not self.attempts:
            return None
        last = self.attempts[-1].endpoint
        for candidate, found in zip(self.decision.order, self.decision.predicted, strict=True):
            if candidate.endpoint.name == last:
                return found
        return None

    def _usage(self) -> tuple[Usage, bool]:
        """The answer's usage, and whether the upstream said all of it."""
        usage = self.usage
        if self.ask.route == "embeddings" and usage.prompt is not None and usage.output is None:
            usage = Usage(usage.prompt, 0, usage.cached)  # vectors are no tokens
        answering = self.model is not None or self._was_at_work()
        if answering and (usage.prompt is None or usage.output is None):
            return self._filled(usage, self.estimated_output), False
        return usage, True

    def _was_at_work(self) -> bool:
        """Whether a local model had been given the request when its caller left; it had read the prompt by then."""
        return bool(self.attempts) and _left_at_work(self.attempts[-1])

    def _filled(self, usage: Usage, output: int) -> Usage:
        """With estimates for what the upstream did not say."""
        read = 0 if self.ask.route == COUNTED else self.decision.traits.prompt_tokens
        prompt = read if usage.prompt is None else usage.prompt
        return Usage(prompt, output if usage.output is None else usage.output, usage.cached)

    def _cost(self, attempt: Attempt, answer: float | None) -> float | None:
        """US dollars of one attempt; one that a provider may have worked on in vain costs what it can cost at most.

        `answer`: those of the answer that was passed on.
        """
        if attempt.usage is not None and (model := self._model(attempt.endpoint)) is not None:
            said = None not in (attempt.usage.prompt, attempt.usage.output)
            return self._answer_cost(model, self._filled(attempt.usage, 0), said)
        if attempt.outcome == "answered" and self.model is not None:
            return answer
        if _left_at_work(attempt) and (model := self._model(attempt.endpoint)):
            return self._prices.cost(model, self._filled(Usage(), 0), self.started)
        return self._worst(attempt.endpoint) if _billed(attempt) else 0.0

    def _answer_cost(self, model: Model, usage: Usage, known: bool) -> float | None:
        # A provider bills what it generated, which is more than what was relayed where thinking is hidden.
        if model.place == "hosted" and not known:
            return self._worst(model.name)
        return self._prices.cost(model, usage, self.started)

    def _model(self, endpoint: str) -> Model | None:
        return next((c.model for c in self.decision.order if c.endpoint.name == endpoint), None)

    def _worst(self, endpoint: str) -> float | None:
        worst = zip(self.decision.order, self.decision.worst, strict=True)
        return next((cost for candidate, cost in worst if candidate.endpoint.name == endpoint), None)


class Ledger:
    """Opens and closes entries. Budgets, store and metrics are told together, so that they agree."""

    def __init__(
        self, store: Store, budgets: Budgets, metrics: Metrics, prices: Prices | None = None,
        clock: Callable[[], float] = time.time, secret: str = "",
    ) -> None:  # fmt: skip
        """Without `prices` an answer costs what its model's own entry says. `secret`: what names of sessions are hashed
        with; without one, one of this start alone."""
        self.store, self.budgets, self.metrics = store, budgets, metrics
        self.prices = prices or Prices(Catalogue(models={}, providers={}, site=Site()), {}, 0.0)
        self.clock = clock
        self._secret = secret or secrets.token_hex(32)

    def refused(self, request: str, caller: Caller, route: str, error: HeadgateError) -> None:
        """Write down a request that was refused before anything could be decided. Never any text of it."""
        self.metrics.refused(error.code)
        if self.store.full:  # a disk that takes nothing: whoever is refused must not fill the memory as well
            return
        body = {"route": route, "team": caller.team, "outcome": "refused", "status": error.status, "error": error.code}
        self.store.append(Event(self.clock(), "refused", request, caller.key, body))

    def repeated(self, request: str, caller: Caller, route: str, first: str, status: int) -> None:
        """Write down a request that is given the answer to an earlier one again: it costs nothing.

        Raises Unavailable where no record can be kept.
        """
        self._room()
        body = {"route": route, "team": caller.team, "outcome": "repeated", "status": status, "first": first}
        self.store.append(Event(self.clock(), "repeated", request, caller.key, body, 0.0))

    def spent(self, caller: Caller) -> float:
        """US dollars settled and held this month by the caller's key."""
        return self.budgets.used(caller.account, self.clock())

    def entry(self, ask: Ask, caller: Caller, decision: Decision) -> Entry:
        """For `with`: the entry is opened and the worst cost held; it is closed and settled whatever happens inside.

        Raises LimitReached where the budget does not cover the hold, Unavailable where no record can be kept.
        """
        return Entry(ask, caller, decision, self)

    def open(self, entry: Entry) -> None:
        """Write down that the request is open. For `Entry`."""
        self._room()
        decision = entry.decision
        body = opened(entry.ask, entry.caller, decision, self._secret)
        self.store.append(Event(entry.started, "opened", entry.ask.id, entry.caller.key, body, decision.hold))
        self.metrics.opened(decision)

    def _room(self) -> None:
        if self.store.full:
            raise Unavailable("The ledger's disk takes no more records.", code="ledger_unavailable", retry_after=30)

    def close(self, entry: Entry, hold: Hold | None) -> None:
        """Write down how it ended, and settle. For `Entry`."""
        outcome = entry.result(entry.error)
        if hold is not None:
            self.budgets.settle(hold, outcome.cost or 0.0)  # what has no price is in no sum, here and after a restart
        body = closed(
            entry.model, outcome, lane=entry.decision.lane,
            price_source=self.prices.source(entry.model.name) if entry.model else "",
        )  # fmt: skip
        self.store.append(Event(self.clock(), "closed", entry.ask.id, entry.caller.key, body, outcome.cost))
        self.metrics.closed(entry.decision, entry.model, outcome)


def _say_how(entry: Entry, failed: BaseException) -> None:
    """Note in the entry how a request ended that was not answered."""
    if isinstance(failed, HeadgateError):
        # What a model's server says of the request itself is no failure of it.
        ended = "refused" if not entry.attempts else "bad_request" if isinstance(failed, BadRequest) else "failed"
        entry.outcome = entry.outcome or ended
        entry.status, entry.error = failed.status, failed.code if CODE.fullmatch(failed.code) else "other"
    elif isinstance(failed, asyncio.CancelledError) and failed.args:
        # With a reason: uvicorn's, when the time to stop is over. A client that leaves gives none.
        entry.outcome = "stopped"
        entry.status, entry.error = Overloaded.status, Overloaded.code
    elif isinstance(failed, asyncio.CancelledError | GeneratorExit):
        if entry.outcome != "left_queue":
            entry.outcome = "client_left"
        entry.status = 499
    else:
        entry.outcome, entry.status, entry.error = "failed", 500, "internal_error"


def _left_at_work(attempt: Attempt) -> bool:
    """Whether a local model was at work on it when the caller left or the router was stopped: it was handed over."""
    return attempt.sent and attempt.place == "local" and attempt.outcome in ("client_left", "stopped")


def _billed(attempt: Attempt) -> bool:
    """Whether a provider may bill it. A local model's failures are nobody's bill."""
    return attempt.sent and attempt.place == "hosted"


def priced(attempt: Attempt, cost: float | None) -> Attempt:
    """The attempt with what it cost. Field by field, since `_replace` takes three times as long."""
    a = attempt
    return Attempt(a.model, a.endpoint, a.place, a.outcome, a.status, a.ms, a.detail, a.sent, cost, a.usage, a.permit)


def settle_lost(store: Store, now: float, gone: Collection[str] | None = None) -> int:
    """Close what an earlier router opened and never closed (it was killed), at its hold. Returns how many.

    `gone`: the ids of the writers that have ended, where others live and write; None: nobody else does.
    On disk when it returns, so that budgets loaded next count it. Raises LedgerError where that cannot be.
    """
    try:
        with closing(connect(store.path, read_only=True)) as db:
            found, ends = lost(db, gone)
    except sqlite3.Error as broken:
        raise LedgerError(f"the ledger {store.path} cannot be read: {broken}") from broken
    error = "the router ended before the request did"
    for request, key, held in found:
        outcome = Outcome("lost", 0, cost=held, estimated=True, error=error)
        store.append(Event(now, "closed", request, key, closed(None, outcome), held))
    store.flush()
    ends.pop(store.writer, None)
    if ends:  # where this cannot be said, the next start looks again
        with suppress(sqlite3.Error, LedgerError), closing(connect(store.path)) as db, db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(NOTE, ends.items())
    return len(found)
