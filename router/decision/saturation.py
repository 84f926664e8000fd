"""How full an endpoint is, as far as that decides whether what may leave goes elsewhere. Pure.

It never says that somebody must not be served: what must stay is served by whatever room there is.
"""

from __future__ import annotations

from router.decision.prediction import wait_s
from router.records import Endpoint, Saturation

FULL = 1.0
"""From here on it overflows,"""
BACK = 0.8
"""and below this it no longer does: at the edge, requests must not change sides with each of them."""
KV_FULL = 0.9
"""Share of the KV cache that counts as all of it: an engine evicts and starts over before the last block is taken."""
LATELY_S = 5.0
IDLE = Saturation(0.0, "it is idle")
QUIET = Saturation(0.0, "nothing waits there")
STALE = Saturation(FULL, "its readings are too old to be believed")


def saturation(endpoint: Endpoint, allowed_wait_s: float) -> Saturation:
    """The largest of places taken, the wait before another request would start, and KV cache in use under pressure.

    A request's own prompt counts nowhere, so an endpoint where nothing is read and places are free is not saturated,
    however long that prompt is.
    """
    taken = endpoint.in_flight + endpoint.others
    if endpoint.wakes:
        return Saturation(FULL, f"it is {endpoint.state}")
    if endpoint.busy:
        return Saturation(FULL, "it takes no more now")
    if not taken and not endpoint.unstarted:
        return IDLE
    if endpoint.stale:
        return STALE
    best = QUIET
    if endpoint.limit > 0:
        best = _places(endpoint)
    wait = wait_s(endpoint)
    if wait and (share := wait / max(allowed_wait_s, 1e-3)) > best.value:
        best = Saturation(share, f"a wait of {wait:.2f} s where {allowed_wait_s:g} s are allowed")
    if endpoint.kv_use is not None and (why := _pressed(endpoint)) and (use := endpoint.kv_use / KV_FULL) > best.value:
        best = Saturation(use, f"{endpoint.kv_use:.0%} of its KV cache is in use and {why}")
    return best


def overflows(found: Saturation, *, spilling: bool, back: float = BACK) -> bool:
    """Whether what may leave goes elsewhere. `spilling`: it did so until now, and does until it is below `back`."""
    return found.value >= (back if spilling else FULL)


def _places(endpoint: Endpoint) -> Saturation:
    """Of this worker's share of the places by its own count, or of all of them by everybody's: what is fuller."""
    mine, limit, others = endpoint.in_flight, endpoint.limit, endpoint.others
    places = endpoint.places or limit
    if others and (mine + others) / places > mine / limit:
        return Saturation((mine + others) / places, f"{mine + others} of {places} places taken, {others} by others")
    return Saturation(mine / limit, f"{mine} of {limit} places taken")


def _pressed(endpoint: Endpoint) -> str:
    """Why the engine is short of KV cache now, or "": cache in use alone is no sign, for it is there to be used."""
    if endpoint.waiting:
        return f"{endpoint.waiting} wait"
    preempted = endpoint.preempted_s
    return "a request was put back lately" if preempted is not None and preempted <= LATELY_S else ""
