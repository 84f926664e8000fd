"""Policies: each orders the eligible candidates. Pure, one signature for all; POLICIES is the table of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from router.decision.eligibility import worst_cost
from router.records import Candidate, Endpoint, Traits

Policy = Callable[[Sequence[Candidate], Traits, Sequence[str], float], list[Candidate]]
"""Candidates, traits, the names of the site's models, the preferred one first, and a number drawn in [0, 1)."""
UNKNOWN_LIMIT = 16
"""Places that an endpoint is taken to have which names no limit: few, so that it is not preferred for that."""
UNKNOWN = 1.0
"""What is not known of a share counts as full: an engine that nobody can see must not draw all requests."""


def cheapest(
    candidates: Sequence[Candidate], traits: Traits, preferred: Sequence[str], draw: float = 0.0
) -> list[Candidate]:  # fmt: skip
    """Lowest cost first, unpriced hosted models last; then as the site prefers; among replicas see `_by_work`.

    A local model costs next to nothing more while its GPU runs anyway, so it counts as 0 here (the marginal cost).
    """
    place = {name: number for number, name in enumerate(preferred)}

    def rank(candidate: Candidate) -> tuple[bool, float, bool, int, str]:
        hosted = candidate.model.place == "hosted"
        cost = worst_cost(candidate, traits) if hosted else 0.0
        # Whoever names a model means that one first, then its twins.
        other = traits.named not in (None, candidate.model.name)
        wanted = place.get(candidate.model.name, len(place))
        return (other, math.inf if cost is None else cost, hosted, wanted, candidate.model.name)

    if len(candidates) < 2:
        return list(candidates)
    ranked = [(rank(candidate), candidate) for candidate in candidates]
    ranked.sort(key=lambda pair: pair[0])
    order: list[Candidate] = []
    for _, group in groupby(ranked, key=lambda pair: pair[0]):
        order += _by_work([candidate for _, candidate in group], traits.prompt_tokens, draw)
    return order


def _by_work(replicas: list[Candidate], tokens: int, draw: float) -> list[Candidate]:
    """Of two drawn by chance the one with fewer prompt tokens to work on comes first, then the rest by load.

    Two choices spread the load nearly as well as the least busy of all would, and many routers that look at the same
    moment do not all run to the same endpoint. What has just failed is fast at nothing, so it comes behind.
    """
    if len(replicas) < 2:
        return replicas
    replicas.sort(key=lambda c: (c.endpoint.failing, load(c.endpoint), c.name))
    well = [c for c in replicas if not c.endpoint.failing] or replicas
    if len(well) > 1:
        first, second = _two_of(len(well), draw)
        # As they are sorted: where the work is the same, load decides, and where that is the same too, the draw.
        a, b = well[first], well[second]
        best = min(a, b, key=lambda c: (work(c.endpoint, tokens), load(c.endpoint)))
        replicas.remove(best)
        replicas.insert(0, best)
    return replicas


def work(endpoint: Endpoint, tokens: int) -> float:
    """Prompt tokens it would have to work on with this request, those of one that comes back counted as more.

    So replicas come to have work by their shares, whether or not anybody knows how many requests each takes at once.
    """
    return (endpoint.outstanding + max(1, tokens)) / endpoint.share


def _two_of(count: int, draw: float) -> tuple[int, int]:
    """Two different numbers below `count`; (0, 1) for 0."""
    which = int(draw * count * (count - 1))
    first, second = divmod(which, count - 1)
    return first, second + (second >= first)


def load(endpoint: Endpoint) -> tuple[float, float, float]:
    """How busy an endpoint is: places taken ÷ places, then KV cache in use, then its busiest GPU; each 0 to 1 or more.

    This router's own count is known at once; what the engine says includes the requests of others.
    """
    taken = max(endpoint.in_flight, (endpoint.running or 0) + (endpoint.waiting or 0))
    kv_use = UNKNOWN if endpoint.kv_use is None else endpoint.kv_use
    shares = [UNKNOWN if gpu.utilisation is None else gpu.utilisation for gpu in endpoint.gpus]
    return taken / (endpoint.limit or UNKNOWN_LIMIT), kv_use, max(shares, default=UNKNOWN)


POLICIES: dict[str, Policy] = {"cheapest": cheapest}
