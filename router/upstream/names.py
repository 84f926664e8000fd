"""Host names to addresses: looked up in the background and remembered, so that requests do not wait for name servers.

A name that cannot be looked up any more keeps the last addresses it had. Opens no connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from itertools import zip_longest
from typing import Any

FRESH_S = 30.0
"""After this a name is looked up again, by whoever connects next and without waiting for it."""

Lookup = Callable[[str, int], Awaitable[list[Any]]]
"""As `getaddrinfo` answers. Raises OSError."""


class Names:
    """What is known of names. Built once."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._lookup = lookup or _ask_system
        self._known: dict[tuple[str, int], tuple[float, tuple[str, ...]]] = {}
        self._asking: dict[tuple[str, int], asyncio.Task[tuple[str, ...]]] = {}

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Where `host` is now, the one to be tried first in front. Raises OSError where that was never known."""
        if is_literal(host):
            return (host,)
        place, now = (host, port), asyncio.get_running_loop().time()
        known = self._known.get(place)
        if known is not None and now < known[0] + FRESH_S:
            return known[1]
        asking = self._asking.get(place)
        if asking is None:
            asking = self._asking[place] = asyncio.ensure_future(self._ask(place))
            asking.add_done_callback(lambda task: self._answered(place, task))
        if known is not None:
            return known[1]
        return await asyncio.shield(asking)  # others wait for it too

    def close(self) -> None:
        """Ask no longer."""
        for task in self._asking.values():
            task.cancel()

    async def _ask(self, place: tuple[str, int]) -> tuple[str, ...]:
        found = [entry[4][0] for entry in await self._lookup(*place)]
        if not found:
            raise OSError("no address")
        return _alternating(found)

    def _answered(self, place: tuple[str, int], task: asyncio.Task[tuple[str, ...]]) -> None:
        del self._asking[place]
        if task.cancelled():
            return
        now = asyncio.get_running_loop().time()
        if task.exception() is None:
            self._known[place] = now, task.result()
        elif (known := self._known.get(place)) is not None:
            self._known[place] = now, known[1]  # asked again later, and used meanwhile


def is_literal(host: str) -> bool:
    """Whether `host` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _alternating(found: list[str]) -> tuple[str, ...]:
    """Each once; the two families in turn, so that one without a route costs one head start (RFC 8305)."""
    once = list(dict.fromkeys(found))
    first = [a for a in once if (":" in a) == (":" in once[0])]
    second = [a for a in once if (":" in a) != (":" in once[0])]
    return tuple(a for pair in zip_longest(first, second) for a in pair if a is not None)


async def _ask_system(host: str, port: int) -> list[Any]:
    loop = asyncio.get_running_loop()
    try:
        return list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except UnicodeError as odd:  # a label of more than 63 characters
        raise OSError("no name that can be looked up") from odd
