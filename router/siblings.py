"""The siblings of one worker: the other workers of its router, asked for what the operator wants to see of all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from router.upstream.connection import Address, Connections, Deadlines, UpstreamError

DEADLINES = Deadlines(connect_s=0.5, first_byte_s=1.0, idle_s=1.0, total_s=2.0)
"""A worker that stands still must not keep the operator waiting."""


class Siblings:
    """The other workers by their numbers, each at its Unix socket for the operator; none where a worker is alone."""

    def __init__(self, connections: Connections, own: int, sockets: Mapping[int, Path]) -> None:
        self._connections, self.own = connections, own
        self._addresses = {number: Address.parse(f"unix:{path}") for number, path in sockets.items()}

    def __len__(self) -> int:
        return len(self._addresses)

    async def ask(self, path: str) -> dict[int, bytes | None]:
        """What each answers to GET `path`; None for one that does not."""
        said = await asyncio.gather(*(self._one(address, path) for address in self._addresses.values()))
        return dict(zip(self._addresses, said, strict=True))

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
