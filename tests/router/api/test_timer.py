"""A timer that is moved: it never comes too late, and is not set again for a moment that moved away."""

from __future__ import annotations

import asyncio

from router.api.timer import NEVER, Timer
from tests.conftest import until


class Watch:
    """Something with a moment that moves."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.due = NEVER
        self.looks, self.rang = 0, 0
        self.timer = Timer(self.loop, self.look)

    def look(self, now: float) -> float:
        self.looks += 1
        if now < self.due:
            return self.due
        self.rang += 1
        self.due = NEVER
        return NEVER

    def set(self, after: float) -> None:
        self.due = self.loop.time() + after
        self.timer.by(self.due)


async def test_it_calls_at_the_moment_it_was_moved_to() -> None:
    watch = Watch()
    watch.set(0.01)
    for _ in range(1000):
        watch.set(0.05)
    await until(lambda: watch.rang)
    assert watch.looks == 2  # once for the first moment, once for the last


async def test_a_nearer_moment_comes_first_and_a_cancelled_one_never() -> None:
    watch = Watch()
    watch.set(3600)
    watch.set(0.01)
    await until(lambda: watch.rang)
    other = Watch()
    other.set(0.01)
    other.timer.cancel()
    other.set(0.01)
    watch.set(0.02)
    await until(lambda: watch.rang == 2)
    assert other.looks == 0
