"""Policies: each orders the eligible candidates. Pure, one signature for all; POLICIES is the table of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from router.decision.eligibility import worst_cost
from router.records import Candidate, Endpoint, Traits

Policy = Callable[[Sequence[Candidate], Traits, Sequence[str]], list[Candidate]]
"""Candidates, traits, and the names of the site's models, the preferred one first."""
UNKNOWN_LIMIT = 16
"""Places that an endpoint is taken to have which names no limit: few, so that it is not preferred for that."""
UNKNOWN = 1.0
"""What is not known of a share counts as full: an engine that nobody can see must not draw all requests."""


def cheapest(candidates: Sequence[Candidate], traits: Traits, preferred: Sequence[str]) -> list[Candidate]:
    """Lowest cost first, unpriced hosted models last; then as the site prefers; among replicas the least loaded.

    A local model costs next to nothing more while its GPU runs anyway, so it counts as 0 here (the marginal cost).
    """
    place = {name: number for number, name in enumerate(preferred)}

    def rank(candidate: Candidate) -> tuple[bool, float, bool, int, tuple[float, ...], str]:
        hosted = candidate.model.place == "hosted"
        cost = worst_cost(candidate, traits) if hosted else 0.0
        # Whoever names a model means that one first, then its twins.
        other = traits.named not in (None, candidate.model.name)
        wanted = place.get(candidate.model.name, len(place))
        return (other, math.inf if cost is None else cost, hosted, wanted, load(candidate.endpoint), candidate.name)

    return sorted(candidates, key=rank)


def load(endpoint: Endpoint) -> tuple[float, float, float]:
    """How busy an endpoint is: places taken ÷ places, then KV cache in use, then its busiest GPU; each 0 to 1 or more.

    This router's own count is known at once; what the engine says includes the requests of others.
    """
    taken = max(endpoint.in_flight, (endpoint.running or 0) + (endpoint.waiting or 0))
    kv_use = UNKNOWN if endpoint.kv_use is None else endpoint.kv_use
    shares = [UNKNOWN if gpu.utilisation is None else gpu.utilisation for gpu in endpoint.gpus]
    return taken / (endpoint.limit or UNKNOWN_LIMIT), kv_use, max(shares, default=UNKNOWN)


POLICIES: dict[str, Policy] = {"cheapest": cheapest}
