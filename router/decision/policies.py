"""Policies: each orders the eligible candidates. Pure, one signature for all; POLICIES is the table of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from router.decision.eligibility import worst_cost
from router.records import Candidate, Traits

Policy = Callable[[Sequence[Candidate], Traits], list[Candidate]]


def cheapest(candidates: Sequence[Candidate], traits: Traits) -> list[Candidate]:
    """Lowest cost first; unpriced hosted models last; among equals the least busy endpoint.

    A local model costs next to nothing more while its GPU runs anyway, so it counts as 0 here (the marginal cost).
    """

    def rank(candidate: Candidate) -> tuple[bool, float, bool, int, str]:
        hosted = candidate.model.place == "hosted"
        cost = worst_cost(candidate, traits) if hosted else 0.0
        # Whoever names a model means that one first, then its twins.
        other = traits.named not in (None, candidate.model.name)
        return (other, math.inf if cost is None else cost, hosted, candidate.endpoint.in_flight, candidate.name)

    return sorted(candidates, key=rank)


POLICIES: dict[str, Policy] = {"cheapest": cheapest}
