"""A request that takes a place at an endpoint for as long as a test wants it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from router.upstream.room import Room


@contextmanager
def busy(room: Room, endpoint: str, *, granted: bool = False) -> Iterator[None]:
    """Count one request at `endpoint` while inside. `granted`: by `turn`, which has counted it already."""
    room.enter(endpoint, granted=granted)
    try:
        yield
    finally:
        room.leave(endpoint)
