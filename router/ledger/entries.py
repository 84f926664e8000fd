"""One request's entry in the ledger: opened with the decision and the hold, closed exactly once however it ended."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from router.errors import HeadgateError, Unavailable
from router.ledger.budgets import Budgets, Hold
from router.ledger.metrics import Metrics
from router.ledger.prices import Prices
from router.ledger.store import Event, LedgerError, Store, connect
from router.records import Ask, Attempt, Caller, Candidate, Decision, Outcome, Usage
from serving.catalogue import Catalogue, Model, Site

LOST = """
SELECT request, key, cost FROM events o WHERE kind='opened' AND NOT EXISTS
(SELECT 1 FROM events c INDEXED BY events_by_request WHERE c.request=o.request AND c.kind='closed')
"""
"""Requests that were opened and never closed. Left to itself SQLite looks through all that were closed for each one."""
CODE = re.compile(r"[a-z0-9_.-]{1,64}")
"""What an error code looks like. An upstream gives codes of its own, and they must not carry its prose."""


class Entry:
    """What is known so far of one request. Attempts and the relay write into it; `Ledger.entry` closes it."""

    def __init__(
        self, ask: Ask, caller: Caller, decision: Decision, store: Store, prices: Prices, clock: Callable[[], float]
    ) -> None:
        self.ask, self.caller, self.decision = ask, caller, decision
        self.attempts: list[Attempt] = []
        self.usage = Usage()
        self.model: Model | None = None
        """The model that answers, once one does."""
        self.status = 200
        self.outcome = ""
        self.estimated_output = 0
        """Deltas relayed: the output tokens counted where the upstream names none."""
        self.first_byte_ms: float | None = None
        self.queued_ms: float | None = None
        self.trigger, self.check = decision.trigger, ""
        self._store, self._prices, self._clock, self._start = store, prices, clock, clock()

    def elapsed_ms(self) -> float:
        return (self._clock() - self._start) * 1000

    def first_byte(self) -> None:
        if self.first_byte_ms is None:
            self.first_byte_ms = self.elapsed_ms()

    async def durable(self) -> None:
        """Return once the record of this request is on disk. Raises Unavailable: without it nothing may leave."""
        try:
            await self._store.durable()
        except LedgerError as late:
            raise Unavailable(f"Nothing leaves while {late}", code="ledger_unavailable", retry_after=10) from late

    def result(self, error: str) -> Outcome:
        """How it ended: usage as the upstream says, else estimated and marked; the cost is that of all attempts."""
        usage, known = self._usage()
        attempts = tuple(replace(a, cost=self._cost(a, usage, known)) for a in self.attempts)
        aside = [a for a in attempts if a.usage is not None]
        lost = [a for a in attempts if a.sent and a.outcome != "answered" and a.usage is None]
        estimated = bool(lost) or not known or any(None in (a.usage.prompt, a.usage.output) for a in aside if a.usage)
        charged = [a.cost for a in (*aside, *lost)]
        if self.model is not None:
            charged.append(self._answer_cost(self.model, usage, known))
        priced = [cost for cost in charged if cost is not None]
        return Outcome(
            outcome=self.outcome or "answered", status=self.status, attempts=attempts, usage=usage,
            cost=sum(priced) if priced or not charged else None, estimated=estimated,
            first_byte_ms=self.first_byte_ms, queued_ms=self.queued_ms, trigger=self.trigger, check=self.check,
            total_ms=self.elapsed_ms(), error=error,
        )  # fmt: skip

    def _usage(self) -> tuple[Usage, bool]:
        """The answer's usage, and whether the upstream said all of it."""
        usage = self.usage
        if self.ask.route == "embeddings" and usage.prompt is not None and usage.output is None:
            usage = Usage(usage.prompt, 0, usage.cached)  # vectors are no tokens
        if self.model is not None and (usage.prompt is None or usage.output is None):
            return self._filled(usage, self.estimated_output), False
        return usage, True

    def _filled(self, usage: Usage, output: int) -> Usage:
        """With estimates for what the upstream did not say."""
        prompt = self.decision.traits.prompt_tokens if usage.prompt is None else usage.prompt
        return Usage(prompt, output if usage.output is None else usage.output, usage.cached)

    def _cost(self, attempt: Attempt, usage: Usage, known: bool) -> float | None:
        """US dollars of one attempt; one that a provider may have worked on in vain costs what it can cost at most."""
        if attempt.usage is not None and (model := self._model(attempt.endpoint)) is not None:
            said = None not in (attempt.usage.prompt, attempt.usage.output)
            return self._answer_cost(model, self._filled(attempt.usage, 0), said)
        if attempt.outcome == "answered" and self.model is not None:
            return self._answer_cost(self.model, usage, known)
        return self._worst(attempt.endpoint) if attempt.sent else 0.0

    def _answer_cost(self, model: Model, usage: Usage, known: bool) -> float | None:
        # A provider bills what it generated, which is more than what was relayed where thinking is hidden.
        if model.place == "hosted" and not known:
            return self._worst(model.name)
        return self._prices.cost(model, usage, self._start)

    def _model(self, endpoint: str) -> Model | None:
        return next((c.model for c in self.decision.order if c.endpoint.name == endpoint), None)

    def _worst(self, endpoint: str) -> float | None:
        worst = zip(self.decision.order, self.decision.worst, strict=True)
        return next((cost for candidate, cost in worst if candidate.endpoint.name == endpoint), None)


class Ledger:
    """Opens and closes entries. Budgets, store and metrics are told together, so that they agree."""

    def __init__(
        self, store: Store, budgets: Budgets, metrics: Metrics, prices: Prices | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Without `prices` an answer costs what its model's own entry says."""
        self.store, self.budgets, self.metrics = store, budgets, metrics
        self._prices = prices or Prices(Catalogue(models={}, providers={}, site=Site()), {}, 0.0)
        self._clock = clock

    def refused(self, request: str, caller: Caller, route: str, error: HeadgateError) -> None:
        """Write down a request that was refused before anything could be decided. Never any text of it."""
        body = {"route": route, "team": caller.team, "outcome": "refused", "status": error.status, "error": error.code}
        self.store.append(Event(self._clock(), "refused", request, caller.key, body))
        self.metrics.refused(error.code)

    def spent(self, caller: Caller) -> float:
        """US dollars settled and held this month by the caller's key."""
        return self.budgets.used(caller.key, self._clock())

    @contextmanager
    def entry(self, ask: Ask, caller: Caller, decision: Decision) -> Iterator[Entry]:
        """Open the entry and hold the worst cost; close it and settle whatever happens inside.

        Raises LimitReached where the budget does not cover the hold, Unavailable where no record can be kept.
        """
        if self.store.full:
            raise Unavailable("The ledger's disk takes no more records.", code="ledger_unavailable", retry_after=30)
        now = self._clock()
        entry = Entry(ask, caller, decision, self.store, self._prices, self._clock)
        self.store.append(Event(now, "opened", ask.id, caller.key, opened(ask, caller, decision), decision.hold))
        self.metrics.opened(decision)
        hold, error = None, ""
        try:
            hold = self.budgets.hold(caller, decision.hold or 0.0, now)
            yield entry
        except HeadgateError as failed:
            entry.outcome = entry.outcome or ("failed" if entry.attempts else "refused")
            entry.status, error = failed.status, failed.code if CODE.fullmatch(failed.code) else "other"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if entry.outcome != "left_queue":
                entry.outcome = "client_left"
            entry.status = 499
            raise
        except BaseException:
            entry.outcome, entry.status, error = "failed", 500, "internal_error"
            raise
        finally:
            self._close(entry, hold, error)

    def _close(self, entry: Entry, hold: Hold | None, error: str) -> None:
        outcome = entry.result(error)
        if hold is not None:
            self.budgets.settle(hold, outcome.cost or 0.0)  # what has no price is in no sum, here and after a restart
        body = closed(
            entry.model, outcome, lane=entry.decision.lane,
            price_source=self._prices.source(entry.model.name) if entry.model else "",
        )  # fmt: skip
        self.store.append(Event(self._clock(), "closed", entry.ask.id, entry.caller.key, body, outcome.cost))
        self.metrics.closed(entry.decision, entry.model, outcome)


def settle_lost(store: Store, now: float) -> int:
    """Close what an earlier router opened and never closed (it was killed), at its hold. Returns how many.

    On disk when it returns, so that budgets loaded next count it. Raises LedgerError where that cannot be.
    """
    try:
        with closing(connect(store.path, read_only=True)) as db:
            lost = db.execute(LOST).fetchall()
    except sqlite3.Error as broken:
        raise LedgerError(f"the ledger {store.path} cannot be read: {broken}") from broken
    error = "the router ended before the request did"
    for request, key, held in lost:
        outcome = Outcome("lost", 0, cost=held, estimated=True, error=error)
        store.append(Event(now, "closed", request, key, closed(None, outcome), held))
    store.flush()
    return len(lost)


def opened(ask: Ask, caller: Caller, decision: Decision) -> dict[str, Any]:
    """The body of an `opened` event: who asked for what, and the decision. Never any text of the request."""
    return {
        "route": ask.route, "asked": ask.model, "stream": ask.stream, "bytes": ask.size, "team": caller.team,
        "session": _session(ask, caller), "escalate": ask.escalate, **decision_json(decision),
    }  # fmt: skip


def _session(ask: Ask, caller: Caller) -> str | None:
    """A name for the session that groups requests of one key; the caller's own is text and may name a person."""
    if ask.session is None:
        return None
    return hashlib.sha256(f"{caller.key}\0{ask.session}".encode()).hexdigest()[:16]


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as data: for the ledger, `headgate explain` and the admin API."""
    traits = decision.traits
    return {
        "data_class": traits.data_class.name,
        "why_class": traits.why_class,
        "needs": sorted(traits.needs),
        "parameters": sorted(traits.parameters),
        "prompt_tokens_at_most": traits.prompt_tokens,
        "policy": decision.policy,
        "reason": decision.reason,
        "trigger": decision.trigger,
        "check": decision.check,
        "order": [_candidate(c) for c in decision.order],
        "refusals": [
            {"model": r.model, "endpoint": r.endpoint, "rule": r.rule, "reason": r.reason, "remedy": r.remedy}
            for r in decision.refusals
        ],
        "hold_usd": decision.hold,
        "dropped": list(decision.dropped),
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """One of the order with what was known of its load; what is not known is null."""
    endpoint = candidate.endpoint
    return {
        "model": candidate.model.name, "endpoint": endpoint.name, "place": candidate.model.place,
        "full": endpoint.full, "in_flight": endpoint.in_flight, "limit": endpoint.limit or None,
        "running": endpoint.running, "waiting": endpoint.waiting, "kv_use": endpoint.kv_use,
        "gpus": [
            {"index": gpu.index, "utilisation": gpu.utilisation, "memory_free_gb": gpu.memory_free_gb,
             "throttle": list(gpu.throttle), "fault": gpu.fault}
            for gpu in endpoint.gpus
        ],
    }  # fmt: skip


def closed(model: Model | None, outcome: Outcome, *, lane: str | None = None, price_source: str = "") -> dict[str, Any]:
    """The body of a `closed` event. Never any text of the request or the answer."""
    return {
        "outcome": outcome.outcome,
        "status": outcome.status,
        "model": model.name if model else None,
        "place": model.place if model else None,
        "lane": lane,
        "trigger": outcome.trigger,
        "check": outcome.check,
        "attempts": [_attempt(attempt) for attempt in outcome.attempts],
        "prompt_tokens": outcome.usage.prompt,
        "output_tokens": outcome.usage.output,
        "cached_tokens": outcome.usage.cached,
        "cost_usd": outcome.cost,
        "price_source": price_source,
        "unpriced": outcome.cost is None or any(a.cost is None for a in outcome.attempts),
        "estimated": outcome.estimated,
        "queued_ms": outcome.queued_ms and round(outcome.queued_ms, 2),
        "first_byte_ms": outcome.first_byte_ms and round(outcome.first_byte_ms, 2),
        "total_ms": round(outcome.total_ms, 2),
        "error": outcome.error,
    }


def _attempt(attempt: Attempt) -> dict[str, Any]:
    # With an error's status the words are the upstream's, and engines quote what they refuse.
    ours = attempt.status is None or attempt.outcome in ("answered", "check_failed")
    found = {
        "model": attempt.model, "endpoint": attempt.endpoint, "place": attempt.place, "outcome": attempt.outcome,
        "status": attempt.status, "ms": round(attempt.ms, 2), "detail": attempt.detail if ours else "",
        "cost_usd": attempt.cost,
    }  # fmt: skip
    if (usage := attempt.usage) is not None:
        found |= {"prompt_tokens": usage.prompt, "output_tokens": usage.output, "cached_tokens": usage.cached}
    return found
