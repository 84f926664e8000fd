"""What all connections of one process share: their settings, who answers which path, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from router.api.exchange import Exchange
from router.api.inference import BY_PATH
from router.api.shedding import Load
from router.errors import HeadgateError
from router.ledger.rates import Rates
from serving.catalogue import RouterSettings


class Handler(Protocol):
    """What answers a kind of path."""

    def accept(self, exchange: Exchange) -> int: ...
    def refuse(self, exchange: Exchange, error: HeadgateError) -> None: ...
    async def answer(self, exchange: Exchange, body: bytes) -> None: ...


class Closable(Protocol):
    """A connection, as far as it is closed for want of room."""

    def close(self) -> None: ...


class Edge:
    """Shared by all connections."""

    def __init__(
        self, settings: RouterSettings, inference: Handler, pages: Handler, rates: Rates, load: Load,
        count: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`count` is told the code of each refusal of somebody who is not known: nobody else hears of those."""
        self.settings, self.rates, self.load, self.count = settings, rates, load, count
        self._inference, self._pages = inference, pages
        self._open = 0
        self._idle: dict[Closable, None] = {}
        """Those without a request, the oldest first."""

    def handler(self, path: bytes) -> Handler:
        """Who answers this path, spelled exactly so."""
        return self._inference if path in BY_PATH else self._pages

    def enter(self, connection: Closable) -> bool:
        """Count a new connection, which is idle; the oldest idle one goes if there are too many. False: it may not."""
        if self._open >= self.settings.max_connections:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return False
            oldest.close()
        self._open += 1
        self._idle[connection] = None
        return True

    def leave(self, connection: Closable) -> None:
        """One that was counted is closed."""
        self._open -= 1
        self._idle.pop(connection, None)

    def idle(self, connection: Closable) -> None:
        """It waits for its next request."""
        self._idle[connection] = None

    def busy(self, connection: Closable) -> None:
        """A request has begun on it."""
        self._idle.pop(connection, None)
