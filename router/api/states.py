"""What a connection of a caller is at, and how long that may last."""

from __future__ import annotations

import math
from enum import Enum, auto

from serving.catalogue import RouterSettings

BODY_STEP = 64 * 1024
"""For so many bytes of a body there is a second more."""
LINGER_S = 2.0
"""A body that nobody reads is thrown away for so long: closing at once could take the answer from the client."""


class State(Enum):
    """What a connection is at."""

    idle = auto()
    head = auto()
    """Something of a request has come."""
    body = auto()
    answering = auto()
    lingering = auto()
    """It was answered; what still comes is thrown away."""
    closing = auto()
    """What was written is still being taken."""
    lost = auto()


def longest(state: State, settings: RouterSettings, received: int) -> float:
    """Seconds that `state` may last, with so many bytes of a body `received`."""
    if state is State.idle:
        return settings.idle_connection_s
    if state is State.head:
        return settings.header_timeout_s
    if state is State.body:
        return settings.body_timeout_s + received / BODY_STEP
    return LINGER_S if state is State.lingering else math.inf
