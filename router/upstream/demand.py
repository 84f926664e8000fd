"""Tells serving that requests wait for a model that sleeps: `POST /demand`, in the background.

Serving brings the model when its turn has come; the queue hands its places out like any others. Nobody waits for the
answer to this, and one that is lost is said again while anybody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import orjson

from router.records import Candidate
from router.upstream.connection import Address, Connections, Deadlines, UpstreamError

AGAIN_S = 1.0
"""For each model serving hears no more often."""
DEADLINES = Deadlines(connect_s=1.0, first_byte_s=2.0, idle_s=2.0, total_s=4.0)


class Demand:
    """What is waited for now. Built once."""

    def __init__(self, connections: Connections, serving: Address) -> None:
        self._connections, self._serving = connections, serving
        self._waiting: dict[object, Callable[[], str | None]] = {}
        self._again: asyncio.Task[None] | None = None
        self._said: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.contextmanager
    def waiting(self, wanted: Callable[[], str | None]) -> Iterator[None]:
        """A request waits while inside. `wanted`: for which model that sleeps now, None for none: it may fall asleep
        only while it is waited for."""
        mine = object()
        self._waiting[mine] = wanted
        if (model := wanted()) is not None:
            self.say(model)
        if self._again is None:
            self._again = asyncio.create_task(self._say_again())
        try:
            yield
        finally:
            del self._waiting[mine]
            if not self._waiting:
                self._again.cancel()
                self._again = None

    def say(self, model: str) -> None:
        """A request would have gone to `model` and went elsewhere, since it sleeps."""
        now = time.monotonic()
        if now - self._said.get(model, -AGAIN_S) < AGAIN_S:
            return
        self._said[model] = now
        task = asyncio.create_task(self._post(model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say_again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            for model in {model for wanted in self._waiting.values() if (model := wanted()) is not None}:
                self.say(model)

    async def _post(self, model: str) -> None:
        body, headers = orjson.dumps({"model": model}), [("content-type", "application/json")]
        with contextlib.suppress(UpstreamError):  # serving is away, which `fleet.py` says; this is said again
            response = await self._connections.post(self._serving, "/demand", headers, body, deadlines=DEADLINES)
            try:
                await response.read()
            finally:
                response.close()


def sleeper(order: Sequence[Candidate]) -> str | None:
    """The model that a request wakes: None where one that is awake may answer here, were it only to be waited for.

    One that is coming already is preferred, then the first of the order.
    """
    local = [candidate for candidate in order if candidate.model.place == "local"]
    if not local or not all(candidate.endpoint.wakes for candidate in local):
        return None
    return min(local, key=lambda candidate: candidate.endpoint.state != "waking").model.name
