"""The four routers that the overflow benchmark and its simulation compare: Headgate with other settings. Pure."""

from __future__ import annotations

from typing import Any

from benchmarks.spill import ALLOWED_S, DEADLINE_S

NEVER_S = 1e6
"""A wait that is always allowed: what is predicted then decides nothing."""
LOCAL, ERROR, FIXED, PREDICTED = "local only", "on error", "fixed limit", "predicted wait"
ROUTERS = (LOCAL, ERROR, FIXED, PREDICTED)


def settings_of(
    router: str, at_once: int, limit: int, allowed_s: float = ALLOWED_S, deadline_s: int = DEADLINE_S, queue: int = 200
) -> tuple[int, dict[str, Any]]:
    """What makes one of the four: an engine's limit as the router knows it, 0 is unknown, and `router:`. Pure.

    `limit`: requests that the engine itself admits, the same for all. What differs is what the router knows of it, and
    whether a wait counts.
    """
    known = {LOCAL: limit, ERROR: 0, FIXED: at_once, PREDICTED: limit}[router]
    allowed, back = (allowed_s, 0.8) if router == PREDICTED else (NEVER_S, 1.0)
    waits = dict.fromkeys(("auto", "cheap", "frontier"), allowed)
    return known, {"queue_wait_s": deadline_s, "queue_length": queue, "allowed_wait_s": waits, "back_at": back}
