"""An event loop whose time is made up: it jumps to the next timer as soon as nothing is left to do.

So a router's own parts that wait, the queue for one, run in a simulation as they are, and a day takes as long as its
events. Nothing in it may wait for a socket or a thread.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.BaseSelector):
    """Waits for nothing: whoever wants to wait is told that the time is over."""

    def __init__(self) -> None:
        self.jumped = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("a simulation waits for what never comes")
        self.jumped += max(0.0, timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, -1, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class Loop(asyncio.SelectorEventLoop):
    """The loop. Its time begins at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.jumped


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end, in made-up time."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(main)
