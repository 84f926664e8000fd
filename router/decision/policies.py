"""Policies: each orders the eligible candidates. Pure, one signature for all; POLICIES is the table of names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from router.decision.eligibility import worst_cost
from router.decision.prefix import LEAST, by_session
from router.decision.question import NO_FAVOURS, Favour
from router.records import LIKELY_BYTES_PER_TOKEN, Ask, Caller, Candidate, Chain, Endpoint, Placed, Traits

BY_WORK, BY_GUARD = Favour("", "work"), Favour("", "guard")
Policy = Callable[[Sequence[Candidate], Traits, Sequence[str], float, Mapping[str, Favour]], list[Candidate]]
"""Candidates, traits, the names of the site's models, the preferred one first, a number drawn in [0, 1), and what
affinity wants of each model that has replicas."""
UNKNOWN_LIMIT = 16
"""Places that an endpoint is taken to have which names no limit: few, so that it is not preferred for that."""
UNKNOWN = 1.0
"""What is not known of a share counts as full: an engine that nobody can see must not draw all requests."""
KNOWN = 0.3
"""The share of a prompt that an endpoint must have read to be preferred for it."""
NEARLY = 0.9
"""Of what another has read, and it counts as much: less is within what the estimate is off by."""
MUCH = 8192
"""Or so many bytes of it, however long it is."""
BYTES_A_PLACE = 2048
"""Bytes of a prompt that need not be read again are worth one request more than the least busy endpoint has: it slows
all that are there by about a hundredth, some 20 ms of a usual answer, and so long 500 tokens take to be read."""
MOST_AHEAD = 0.25
"""Of an endpoint's places, and so far ahead it may be at most, whatever it has read."""
FACTOR = 1.5
"""And only where it has so many times as much: of 100 and 110 requests neither is idle."""
UNREAD = 2048
"""Tokens of prompts that have to be read first and are never too many: an engine reads them in one step."""
SLOW = 2.0
"""Another that writes so many times as fast takes its conversations over."""


def cheapest(
    candidates: Sequence[Candidate], traits: Traits, preferred: Sequence[str], draw: float = 0.0,
    favours: Mapping[str, Favour] = NO_FAVOURS,
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
        order += _by_work([candidate for _, candidate in group], traits.prompt_tokens, draw, favours)
    return order


def _by_work(
    replicas: list[Candidate], tokens: int, draw: float, favours: Mapping[str, Favour] = NO_FAVOURS
) -> list[Candidate]:
    """The one that affinity wants comes first, else of two drawn by chance the one with less to do; the rest by load.

    Two choices spread the load nearly as well as the least busy of all would, and many routers that look at the same
    moment do not all run to the same endpoint. What has just failed is fast at nothing, so it comes behind.
    """
    if len(replicas) < 2:
        return replicas
    replicas.sort(key=lambda c: (c.endpoint.failing, load(c.endpoint), c.name))
    wanted = favours.get(replicas[0].model.name, BY_WORK).endpoint
    best = next((c for c in replicas if c.endpoint.name == wanted), None)
    if best is None:
        # As they are sorted: where the work is the same, load decides, and where that is the same too, the draw.
        best = _lighter([c for c in replicas if not c.endpoint.failing] or replicas, tokens, draw)
    replicas.remove(best)
    replicas.insert(0, best)
    return replicas


def _lighter(replicas: Sequence[Candidate], tokens: int, draw: float) -> Candidate:
    """Of two drawn by chance the one with less to do, then with less load."""
    if len(replicas) < 2:
        return replicas[0]
    first, second = _two_of(len(replicas), draw)
    return min(replicas[first], replicas[second], key=lambda c: (work(c.endpoint, tokens), load(c.endpoint)))


def favoured(
    candidates: Sequence[Candidate], ask: Ask, caller: Caller, chain: Chain | None, draw: float
) -> Mapping[str, Favour]:  # fmt: skip
    """Of each local model with replicas the one that affinity wants first, by the first rule that finds one:

    1. Only those with room take part: nobody who is full, failing, resting, asleep or not ready.
    2. Prefix: who has read the longest beginning of this prompt, where that is KNOWN of it or MUCH, and LEAST bytes in
       any case; of several with NEARLY the same, the one with less to do of two drawn. Who is too far ahead of the
       least busy one (`_ahead`) is passed over for the next longest.
    3. Session: by rendezvous, so that all workers agree without a word. The name a caller gave it wants one endpoint;
       an opening, which many may share, one of two, the one with less to do. Nobody who is too far ahead.
    4. None, and two are drawn by chance: `work` where nothing pointed anywhere, `guard` where it did to one too far
       ahead.

    `chain`: how the prompt begins; None where nobody looked.
    """
    models: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.model.place == "local":
            models.setdefault(candidate.model.name, []).append(candidate)
    many = {name: replicas for name, replicas in models.items() if len(replicas) > 1}
    return {name: _favour(_with_room(replicas), ask, caller, chain, draw) for name, replicas in many.items()}


def placed(order: Sequence[Candidate], favours: Mapping[str, Favour]) -> Placed:
    """By what the first of the order was chosen among its replicas; empty where it has none."""
    if not order or order[0].model.place != "local" or (favour := favours.get(order[0].model.name)) is None:
        return ""
    moved = favour.endpoint and favour.endpoint != order[0].endpoint.name
    return "work" if moved else favour.by


def _favour(
    replicas: Sequence[Candidate], ask: Ask, caller: Caller, chain: Chain | None, draw: float
) -> Favour:  # fmt: skip
    if len(replicas) < 2:
        return BY_WORK
    tokens = ask.size
    least = max(LEAST, min(KNOWN * tokens, MUCH))
    known = sorted({c.endpoint.cached for c in replicas if c.endpoint.cached >= least})
    for much in reversed(known):
        near = [c for c in replicas if c.endpoint.cached >= NEARLY * much and not _ahead(c, replicas, much)]
        if near:
            return Favour(_lighter(near, tokens, draw).endpoint.name, "prefix")
    if chain is None and ask.session is None:
        return BY_WORK
    ranked, worth = by_session(ask, caller, replicas), 0
    if ask.session is None:
        best = min(ranked[:2], key=lambda c: (work(c.endpoint, tokens), load(c.endpoint)))
    else:
        best, worth = ranked[0], tokens
    return BY_GUARD if _ahead(best, replicas, worth) else Favour(best.endpoint.name, "session")


def _with_room(replicas: Sequence[Candidate]) -> list[Candidate]:
    """Those that a request can go to now, in an order that does not depend on how they are given."""
    found = [
        c
        for c in replicas
        if not (c.endpoint.full or c.endpoint.failing or c.endpoint.resting or c.endpoint.asleep)
        and c.endpoint.state == "ready"
    ]
    found.sort(key=lambda c: c.endpoint.name)
    return found


def _ahead(candidate: Candidate, replicas: Sequence[Candidate], worth: int) -> bool:
    """The imbalance guard: whether it has so much more to do than the least busy one that affinity costs more than
    the bytes it saves are worth. Counted in places, each by its own number of them, and in prompts not read yet.

    One that writes at less than half the speed of another is ahead too: its conversations must not stay for ever.
    """
    endpoint, places = candidate.endpoint, _places(candidate.endpoint)
    taken, least = _taken(endpoint), places * min([_taken(c.endpoint) / _places(c.endpoint) for c in replicas])
    lead = max(1.0, min(places * MOST_AHEAD, worth / BYTES_A_PLACE))
    if taken - least > lead and taken > FACTOR * least:
        return True
    unread, fewest = endpoint.unstarted, min([c.endpoint.unstarted for c in replicas])
    if unread - fewest > max(UNREAD, worth // LIKELY_BYTES_PER_TOKEN) and unread > FACTOR * fewest:
        return True
    speed = _speed(endpoint)
    return speed is not None and max([_speed(c.endpoint) or 0.0 for c in replicas]) > SLOW * speed


def _speed(endpoint: Endpoint) -> float | None:
    """Tokens a second that one more request would get there; None is not known yet."""
    return None if endpoint.pace is None else endpoint.pace.decode


def _taken(endpoint: Endpoint) -> int:
    """Requests there: this router's own count is known at once; the engine's includes those of others."""
    return max(endpoint.in_flight, (endpoint.running or 0) + (endpoint.waiting or 0))


def _places(endpoint: Endpoint) -> float:
    """How many it takes at once, less while it comes back."""
    return (endpoint.limit or UNKNOWN_LIMIT) * endpoint.share


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
    """How busy it is: places taken ÷ places, then KV cache in use, then its busiest GPU; each 0 to 1 or more."""
    kv_use = UNKNOWN if endpoint.kv_use is None else endpoint.kv_use
    shares = [UNKNOWN if gpu.utilisation is None else gpu.utilisation for gpu in endpoint.gpus]
    return _taken(endpoint) / (endpoint.limit or UNKNOWN_LIMIT), kv_use, max(shares, default=UNKNOWN)


POLICIES: dict[str, Policy] = {"cheapest": cheapest}
