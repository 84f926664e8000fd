"""The life of a request, from the parsed ask to the closed ledger. The file to read first.

Steps 1 and 2 (receive, authenticate) happen before, in api/; the numbers are those of the README.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from router.decision.decide import could_leave, decide
from router.decision.dialects import compiled
from router.decision.limits import check
from router.decision.reasons import refused
from router.errors import ClientLeft, HeadgateError
from router.gate import Gate, Seen
from router.ledger.entries import Ledger
from router.ledger.forms import Forms
from router.records import Ask, Caller, Decision, Route, Snapshot
from router.scanner import reading
from router.upstream.answer import Answer as Answer
from router.upstream.attempts import Attempts
from router.upstream.fleet import Fleet


class Reply(Protocol):
    """Where an answer goes: the HTTP edge is one."""

    async def send(self, answer: Answer, decision: Decision) -> None: ...


class Pipeline:
    """Everything a request passes, in order."""

    def __init__(
        self, fleet: Fleet, ledger: Ledger, attempts: Attempts, gate: Gate, forms: Forms, retry_after_s: int
    ) -> None:  # fmt: skip
        self._fleet, self._ledger, self._attempts, self._gate = fleet, ledger, attempts, gate
        self._forms, self._retry_after_s = forms, retry_after_s

    async def run(self, ask: Ask, caller: Caller, reply: Reply) -> None:
        """Answer `ask` into `reply`, or raise a HeadgateError before anything was sent."""
        try:
            decision, seen = await self._decided(ask, caller)  # 3 to 6
        except (Exception, asyncio.CancelledError) as error:  # ours or not: it is accounted for
            self.refuse(ask.id, caller, ask.route, _known(error))
            raise
        answer: Answer | None = None
        try:
            with self._ledger.entry(ask, caller, decision) as entry:  # 7 open, 10 close
                if not decision.order:
                    raise refused(decision, self._retry_after_s)
                self._forms.admit(caller, compiled(ask.route, ask.body), time.monotonic())
                answer = await self._attempts.first_answer(ask, caller, decision, entry)  # 8 attempt
                if self._gate.remembers:
                    answer.keep()
                try:
                    await reply.send(answer, decision)  # 9 relay
                finally:
                    answer.close()
        finally:
            if self._gate.remembers:  # what was private stays so, however this request ended
                self._gate.ended(ask, caller, seen, None if answer is None else answer.said())

    def refuse(self, request: str, caller: Caller, route: Route, error: HeadgateError) -> None:
        """Account for a request that ended before there was a decision."""
        self._ledger.refused(request, caller, route, error)

    def snapshot(self) -> Snapshot:
        """What is served now."""
        return self._fleet.snapshot()

    async def decide(self, ask: Ask, caller: Caller) -> Decision:
        """Steps 3 to 6 alone; `headgate explain` asks this and nothing is sent."""
        return (await self._decided(ask, caller))[0]

    async def _decided(self, ask: Ask, caller: Caller) -> tuple[Decision, Seen]:
        check(ask)  # 3 describe: what asks for too much is refused before it is read
        seen = Seen(reading.read(ask.body))
        spent = 0.0 if caller.budget_usd is None else self._ledger.spent(caller)
        snapshot = self._fleet.snapshot(spent)  # 4 snapshot
        if could_leave(ask, caller, seen.findings, snapshot):  # what can only stay is not searched before its answer
            seen = await self._gate.search(ask, caller, seen.findings)
            spent = 0.0 if caller.budget_usd is None else self._ledger.spent(caller)
            snapshot = self._fleet.snapshot(spent)  # searching took its time
        return decide(ask, caller, seen.findings, snapshot), seen  # 5 eligible, 6 order


def _known(error: BaseException) -> HeadgateError:
    """The error as it is accounted for."""
    if isinstance(error, HeadgateError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return ClientLeft("It ended before it was decided.")
    return HeadgateError("It could not be decided.")
