"""One request on its way along the order: what was tried, what it waits for, and which of the order may be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from router.errors import HeadgateError
from router.records import MOST_ATTEMPTS, Ask, Caller, Candidate, Decision
from router.upstream.answer import Log
from router.upstream.queue import BATCH, INTERACTIVE


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
    tries: int = 0
    """Those that count: who has no room has done nothing."""
    inner_errors: int = 0
    trigger: str = ""
    """Why a hosted model answers where only a local one's turn showed it: `overflow` or `context`."""
    since: float | None = None
    """When it first had to wait; None until then."""
    pause_s: float = 0.0
    reserved: bool = False
    """Whether its next try has its share of the retry budget already."""

    @property
    def priority(self) -> int:
        """How it waits."""
        return BATCH if self.decision.traits.latency == "batch" else INTERACTIVE


def within_hold(order: Sequence[Candidate]) -> list[Candidate]:
    """What may be tried: the first MOST_ATTEMPTS, which the hold covers, and local ones that are waited for."""
    if len(order) <= MOST_ATTEMPTS:
        return list(order)
    return [
        candidate
        for number, candidate in enumerate(order)
        if number < MOST_ATTEMPTS or (candidate.endpoint.full and candidate.model.place == "local")
    ]


def by_state(order: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate], list[Candidate]]:
    """What can be asked now, what is full, and what is better left alone."""
    ready: list[Candidate] = []
    full: list[Candidate] = []
    resting: list[Candidate] = []
    for candidate in order:
        endpoint = candidate.endpoint
        # What sleeps is waited for, whatever it did before: it is asked by nobody until it is awake.
        rests = endpoint.resting and not endpoint.wakes
        (resting if rests else full if endpoint.full else ready).append(candidate)
    return ready, full, resting
