"""Runs the door on its Unix socket: opens the book, listens for the owner alone, and stops in order.

Knows neither permits nor providers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator, Mapping

import uvicorn

from router import proxies
from router.child import beating
from router.door.app import Door
from router.door.book import open_book
from router.door.searching import Search
from router.door.witness import counting
from serving.catalogue import Catalogue
from serving.home import Home, listen_privately

LOG = logging.getLogger("headgate.door")
DRAIN_S = 10
"""Seconds that answers under way get on stopping."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own business; whoever runs the server stops it."""
        yield


async def serve(
    catalogue: Catalogue, home: Home, environ: Mapping[str, str], stop: asyncio.Event, beat: int = -1
) -> None:  # fmt: skip
    """Serve until `stop` is set, then drain. Raises BookError, OSError.

    `beat`: where it shows that it goes on, once it answers: compiling the rules before that takes its time.
    """
    if told := proxies.ignored(environ):
        LOG.warning("%s", told)
    book = open_book(home.book, catalogue.version)
    if behind := book.time.trouble():
        LOG.warning("%s", behind)
    path = home.socket("door")
    search = Search(catalogue.site.privacy, home.book.with_name("rules"))
    try:
        door = Door(catalogue, home, book, search, environ)
        try:
            await door.look()
            await door.test()
            # The book's lock says that no other door runs, so a socket that lies there is a dead one's.
            listener = listen_privately(path)
            async with counting(home.book, catalogue.version), beating(beat):
                await _run(door, listener, stop)
        finally:
            await door.close()
    finally:
        search.close()
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
    stopping, watching = asyncio.create_task(_stop(server, stop)), asyncio.create_task(door.watch())
    # It ends by itself only where it fails, and a door that nobody watches must not stay.
    watching.add_done_callback(lambda _: stop.set())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopping.cancel()
        watching.cancel()
        await asyncio.wait({watching})
    if not watching.cancelled():
        watching.result()


async def _stop(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
