"""Who may take memory, or give it back, now: an engine measures what is free while it starts, and would be misled.

Engines start one by one. Others fall asleep and wake meanwhile, but not where one of them starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

MAIN = ""
"""Main memory, which engines without a GPU run in, and which takes the weights of those that sleep."""


class Turns:
    """Of all engines of one host. A place is a GPU's UUID, or main memory."""

    def __init__(self) -> None:
        self._start = asyncio.Lock()
        self._places: dict[str, asyncio.Lock] = {}

    @property
    def starting(self) -> bool:
        """Whether one starts now."""
        return self._start.locked()

    def free(self, places: Sequence[str]) -> bool:
        """Whether nobody starts, falls asleep or wakes in these places now."""
        return not any(self._places[place].locked() for place in places if place in self._places)

    @contextlib.asynccontextmanager
    async def start(self, gpus: Sequence[str]) -> AsyncIterator[None]:
        """Inside, an engine starts on these GPUs; on none, in main memory."""
        async with self._start, self.alone(gpus or (MAIN,)):
            yield

    @contextlib.asynccontextmanager
    async def alone(self, places: Sequence[str]) -> AsyncIterator[None]:
        """Inside, nobody else starts, falls asleep or wakes in these places."""
        async with contextlib.AsyncExitStack() as held:
            for place in sorted(places):  # in one order, so that no two wait for each other
                await held.enter_async_context(self._places.setdefault(place, asyncio.Lock()))
            yield
