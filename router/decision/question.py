"""What every rule is asked, and the form of its answer. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from router.decision.escalation import Wish
from router.records import Ask, Caller, Candidate, Refusal, Snapshot, Traits
from serving.catalogue import RouteSettings


class Question(NamedTuple):
    """What every rule is asked about, besides the candidate."""

    ask: Ask
    caller: Caller
    traits: Traits
    snapshot: Snapshot
    route: RouteSettings = RouteSettings()
    """What headgate.yaml says of the ask's route."""
    wish: Wish | None = None
    """What is wanted first, outside the lane asked for too."""


Rule = Callable[[Candidate, Question], Refusal | None]


def refuse(
    candidate: Candidate, rule: str, reason: str, *, remedy: str = "", param: str | None = None, passing: bool = False
) -> Refusal:
    return Refusal(candidate.model.name, candidate.endpoint.name, rule, reason, remedy, param, passing)
