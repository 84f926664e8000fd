"""The other workers of one router, as the first one asks them for what the operator wants to see of all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from router.upstream.connection import Address, Connections, Deadlines, UpstreamError

DEADLINES = Deadlines(connect_s=0.5, first_byte_s=1.0, idle_s=1.0, total_s=2.0)
"""A worker that stands still must not keep the operator waiting."""


class Peers:
    """The workers besides this one, by their Unix sockets; none where it is alone, or not the first."""

    def __init__(self, connections: Connections, sockets: Sequence[Path]) -> None:
        self._connections = connections
        self._addresses = [Address.parse(f"unix:{path}") for path in sockets]

    def __len__(self) -> int:
        return len(self._addresses)

    async def ask(self, path: str) -> list[bytes | None]:
        """What each answers to GET `path`; None for one that does not."""
        return await asyncio.gather(*(self._one(address, path) for address in self._addresses))

    async def _one(self, address: Address, path: str) -> bytes | None:
        try:
            response = await self._connections.get(address, path, deadlines=DEADLINES)
            try:
                body = await response.read()
            finally:
                response.close()
        except UpstreamError:
            return None
        return body if response.status == 200 else None
