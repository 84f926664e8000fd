"""Runs the door on its Unix socket: opens the book, listens for the owner alone, and stops in order.

Knows neither permits nor providers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping

import uvicorn

from router.door.app import Door
from router.door.book import open_book
from serving.catalogue import Catalogue
from serving.home import Home, listen_privately

DRAIN_S = 10
"""Seconds that answers under way get on stopping."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own business; whoever runs the server stops it."""
        yield


async def serve(catalogue: Catalogue, home: Home, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then drain. Raises BookError, OSError."""
    book = open_book(home.book, catalogue.version)
    path = home.socket("door")
    try:
        door = Door(catalogue, home, book, environ)
        try:
            # The book's lock says that no other door runs, so a socket that lies there is a dead one's.
            listener = listen_privately(path)
            await _run(door, listener, stop)
        finally:
            await door.close()
    finally:
        book.close()
        path.unlink(missing_ok=True)


async def _run(door: Door, listener: socket.socket, stop: asyncio.Event) -> None:
    config = uvicorn.Config(
        door,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(config)
    stopping = asyncio.create_task(_stop(server, stop))
    try:
        await server.serve(sockets=[listener])
    finally:
        stopping.cancel()


async def _stop(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
