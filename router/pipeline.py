"""The life of a request, from the parsed ask to the closed ledger. The file to read first.

Steps 1 and 2 (receive, authenticate) happen before, in api/; the numbers are those of the README.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Protocol

from router.decision.decide import could_leave, decide
from router.decision.dialects import compiled
from router.decision.limits import check
from router.decision.prefix import chain
from router.decision.reasons import refused
from router.errors import ClientLeft, HeadgateError
from router.gate import Gate, Seen
from router.ledger.entries import Ledger
from router.ledger.forms import Forms
from router.records import Ask, Caller, Chain, Decision, Findings, Route, Snapshot
from router.scanner import reading
from router.upstream.answer import Answer as Answer
from router.upstream.attempts import Attempts
from router.upstream.fleet import Fleet

AT_ONCE = 64 * 1024
"""Bytes of a body that is looked through on the event loop: at most about 5 ms, in many small parts or tools. What is
larger is looked through in a thread, and the loop turns meanwhile."""


class Reply(Protocol):
    """Where an answer goes: the HTTP edge is one."""

    worked: bool
    """Told however it ends: whether a model was given the request, so that it may have worked on it."""

    def decided(self, decision: Decision) -> None: ...
    async def send(self, answer: Answer, decision: Decision) -> None: ...


class Pipeline:
    """Everything a request passes, in order."""

    def __init__(
        self, fleet: Fleet, ledger: Ledger, attempts: Attempts, gate: Gate, forms: Forms, retry_after_s: int,
        aside: Executor | None = None,
    ) -> None:  # fmt: skip
        """`aside`: the thread in which large bodies are looked through; None is one of the loop's own."""
        self._fleet, self._ledger, self._attempts, self._gate = fleet, ledger, attempts, gate
        self._forms, self._retry_after_s, self._aside = forms, retry_after_s, aside

    async def run(self, ask: Ask, caller: Caller, reply: Reply) -> None:
        """Answer `ask` into `reply`, or raise a HeadgateError before anything was sent."""
        try:
            decision, seen = await self._decided(ask, caller)  # 3 to 6
        except (Exception, asyncio.CancelledError) as error:  # ours or not: it is accounted for
            self.refuse(ask.id, caller, ask.route, _known(error))
            raise
        if decision.spilling:
            self._fleet.spill(decision.spilling)
        reply.decided(decision)  # a stream may have to begin before anybody has answered
        answer: Answer | None = None
        noting = self._gate.noting(ask, caller, seen)
        try:
            with self._ledger.entry(ask, caller, decision) as entry:  # 7 open, 10 close
                if not decision.order:
                    raise refused(decision, self._retry_after_s)
                self._forms.admit(caller, compiled(ask.route, ask.body), time.monotonic())
                try:
                    answer = await self._attempts.first_answer(ask, caller, decision, entry)  # 8 attempt
                finally:
                    reply.worked = any(attempt.sent for attempt in entry.attempts)
                near = answer.candidate.endpoint
                self._fleet.prefixes.sent(near.name, decision.chain)
                if noting is not None:
                    answer.keep(noting.expect)
                try:
                    await reply.send(answer, decision)  # 9 relay
                finally:
                    answer.close()
                    self._fleet.prefixes.ended(near.name, decision.chain, near.cached, answer.usage)
        finally:
            if noting is not None:  # what was private stays so, however this request ended
                noting.ended(None if answer is None else answer.said())

    def refuse(self, request: str, caller: Caller, route: Route, error: HeadgateError) -> None:
        """Account for a request that ended before there was a decision."""
        self._ledger.refused(request, caller, route, error)

    def repeat(self, request: str, caller: Caller, route: Route, first: str, status: int) -> None:
        """Account for a request that is given the answer to an earlier one, `first`, again. Raises HeadgateError."""
        self._ledger.repeated(request, caller, route, first, status)

    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self._fleet.snapshot()

    async def decide(self, ask: Ask, caller: Caller) -> Decision:
        """Steps 3 to 6 alone; `headgate explain` asks this and nothing is sent."""
        return (await self._decided(ask, caller, look=True))[0]

    async def _decided(self, ask: Ask, caller: Caller, *, look: bool = False) -> tuple[Decision, Seen]:
        fleet = self._fleet
        secret = fleet.prefixes.secret if fleet.compares(ask.model, caller.substitute) else ""
        if ask.size <= AT_ONCE:  # 3 describe
            findings, begins = _read(ask, caller.team, secret)
        else:
            loop = asyncio.get_running_loop()
            findings, begins = await loop.run_in_executor(self._aside, _read, ask, caller.team, secret)
        seen = Seen(findings)
        spent = 0.0 if caller.budget_usd is None else self._ledger.spent(caller)
        snapshot = fleet.snapshot(spent, begins, look=look)  # 4 snapshot
        if could_leave(ask, caller, seen.findings, snapshot):  # what can only stay is not searched before its answer
            seen = await self._gate.search(ask, caller, seen.findings)
            spent = 0.0 if caller.budget_usd is None else self._ledger.spent(caller)
            snapshot = fleet.snapshot(spent, begins, look=look)  # searching took its time
        return decide(ask, caller, seen.findings, snapshot, look=look), seen  # 5 eligible, 6 order


def _read(ask: Ask, team: str, secret: str) -> tuple[Findings, Chain | None]:
    """What nobody can read of it, and what it would fetch. What asks for too much is refused before it is read.

    With a `secret`, also how its prompt begins.
    """
    check(ask)
    return reading.read(ask.body), chain(ask, team, secret) if secret else None


def _known(error: BaseException) -> HeadgateError:
    """The error as it is accounted for."""
    if isinstance(error, HeadgateError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return ClientLeft("It ended before it was decided.")
    return HeadgateError("It could not be decided.")
