"""What every rule is asked, and the form of its answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from router.decision.escalation import Wish
from router.records import Ask, Caller, Candidate, Placed, Refusal, Snapshot, Traits
from serving.catalogue import RouteSettings


class Favour(NamedTuple):
    """Which replica of a model affinity wants first. Set by `favoured` in `policies.py`."""

    endpoint: str
    """Its name; empty where it wants none."""
    by: Placed


NO_FAVOURS: Mapping[str, Favour] = {}


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
    favours: Mapping[str, Favour] = NO_FAVOURS
    """By the name of a model that has replicas, which one comes first."""


Rule = Callable[[Candidate, Question], Refusal | None]


def refuse(
    candidate: Candidate, rule: str, reason: str, *, remedy: str = "", param: str | None = None, passing: bool = False
) -> Refusal:
    return Refusal(candidate.model.name, candidate.endpoint.name, rule, reason, remedy, param, passing)
