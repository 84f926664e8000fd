"""Builds the router and joins its parts; the one place where they meet. Nothing is built by importing it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from router.api import admin, pages
from router.api.inference import Inference
from router.decision.checking import checked
from router.decision.outgoing import body_for
from router.ledger.budgets import Budgets
from router.ledger.entries import Ledger, settle_lost
from router.ledger.keys import Keyring
from router.ledger.metrics import Live, Metrics
from router.ledger.prices import Prices
from router.ledger.store import LedgerError, Store, connect
from router.listen import Listen
from router.pipeline import Pipeline
from router.upstream.attempts import Attempts
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Fleet
from router.upstream.room import Room
from router.upstream.sending import Sending
from serving.catalogue import Catalogue
from serving.home import Home, listen_privately

KEYS_S = 1.0
"""How often the keyring looks for changes: a revoked key stops working within this time."""
DRAIN_S = 30


@dataclass(slots=True)
class Built:
    """A router, joined and not yet running."""

    public: ASGIApp
    admin: FastAPI
    fleet: Fleet
    keyring: Keyring
    store: Store
    connections: Connections
    lock: BinaryIO


def build(home: Home, catalogue: Catalogue) -> Built:
    """Join everything. Raises LedgerError where the ledger cannot be opened."""
    settings, now = catalogue.site.router, time.time()
    lock = _lock(home)
    store, budgets, metrics = Store(home.ledger), Budgets(), Metrics()
    settle_lost(store, now)
    with contextlib.closing(connect(home.ledger, read_only=True)) as db:
        budgets.load(db, now)
    keyring = Keyring(home.ledger, home.secret("pepper"))
    deadlines = Deadlines(
        first_byte_s=settings.first_byte_timeout_s, idle_s=settings.idle_timeout_s, total_s=settings.total_timeout_s
    )
    connections = Connections(deadlines, Bounds())
    # The door is asked whenever a provider is enabled; where it does not run, hosted models are refused as closed.
    door = Address.parse(f"unix:{home.socket('door')}") if catalogue.hosted() else None
    prices, room = Prices.of(catalogue, now), Room(settings.queue_length, settings.queue_wait_s)
    serving = Address.parse(f"unix:{home.socket('serving')}")
    fleet = Fleet(prices.catalogue, connections, serving, door, room, prices.rate)
    ledger = Ledger(store, budgets, metrics, prices)
    metrics.watch(lambda: _live(fleet, room, store))
    sending = Sending(connections, fleet, door, home.secret("permit"), catalogue.version, body_for)
    attempts = Attempts(sending, fleet, room, checked)
    pipeline = Pipeline(fleet, ledger, attempts, max(1, settings.queue_wait_s))
    rest = pages.build(pipeline, keyring, lambda: _unready(fleet, store))
    public = Inference(pipeline, keyring, int(settings.max_body_mb * 2**20), rest)
    operator = admin.build(pipeline, ledger, keyring, fleet.state, catalogue.site.keys)
    return Built(public, operator, fleet, keyring, store, connections, lock)


def _lock(home: Home) -> BinaryIO:
    """Held as long as the router runs: a second one would close the requests of the first as lost."""
    file = (home.run / "router.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        file.close()
        raise LedgerError(f"another router of {home.root} runs already; see: headgate status") from held
    return file


def _live(fleet: Fleet, room: Room, store: Store) -> Live:
    """What the metrics show of now."""
    return Live(fleet.snapshot().endpoints, fleet.gpus, room.waiting(), store.healthy, fleet.door_open)


def _unready(fleet: Fleet, store: Store) -> str:
    if store.full:
        return "the ledger takes no more records"
    if not any(e.state == "ready" for e in fleet.snapshot().endpoints):
        return "no model is ready"
    return ""


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: two servers share one process, and `serve` stops both."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(built: Built, home: Home, catalogue: Catalogue, listen: Listen, stop: asyncio.Event) -> None:
    """Run until `stop` is set; then finish what is being answered, at most DRAIN_S seconds."""
    servers = [
        Server(_config(built.public, host=listen.host, port=listen.port, cert=listen.tls_cert, key=listen.tls_key)),
        Server(_config(built.admin, socket_path=home.socket("admin"))),
    ]
    if port := catalogue.site.router.admin_port:
        servers.append(Server(_config(admin.with_token(built.admin, home.secret("admin-token")), port=port)))
    async with _background(built):
        # Callers' address first: whoever hears the admin socket answer may count on it.
        running = [asyncio.create_task(servers[0].serve())]
        up = asyncio.create_task(servers[0].up.wait())
        await asyncio.wait({running[0], up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        for server in servers[1:]:
            sockets = [listen_privately(Path(server.config.uds))] if server.config.uds else None
            running.append(asyncio.create_task(server.serve(sockets=sockets)))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)
        stopping.cancel()
    await built.connections.close()
    built.keyring.close()
    built.store.close()
    built.lock.close()


@contextlib.asynccontextmanager
async def _background(built: Built) -> AsyncIterator[None]:
    async def watch_keys() -> None:
        while True:
            await asyncio.sleep(KEYS_S)
            built.keyring.refresh()

    tasks = [asyncio.create_task(built.fleet.run()), asyncio.create_task(watch_keys())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _config(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, socket_path: Path | None = None,
    cert: str | None = None, key: str | None = None,
) -> uvicorn.Config:  # fmt: skip
    return uvicorn.Config(
        app, host=host, port=port, uds=str(socket_path) if socket_path else None, loop="uvloop", http="httptools",
        lifespan="off", log_level="warning", access_log=False, server_header=False, date_header=False,
        proxy_headers=False, ssl_certfile=cert, ssl_keyfile=key, timeout_graceful_shutdown=DRAIN_S, ws="none",
    )  # fmt: skip
