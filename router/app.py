"""Builds the router and joins its parts; the one place where they meet. Nothing is built by importing it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from router import proxies
from router.api import admin, pages, shedding
from router.api.bridge import Bridge
from router.api.edge import Edge
from router.api.inference import Inference
from router.api.protocol import protocol_of
from router.clock import Forward
from router.decision.checking import checked
from router.decision.outgoing import body_for
from router.gate import Gate
from router.ledger.budgets import Budgets
from router.ledger.counters import Shared
from router.ledger.entries import Ledger, settle_lost
from router.ledger.forms import Forms
from router.ledger.history import open_history
from router.ledger.keys import Keyring
from router.ledger.metrics import Metrics
from router.ledger.prices import Prices
from router.ledger.rates import Rates
from router.ledger.store import Store, connect, latest
from router.ledger.totals import Totals
from router.listen import Listen, Opened, bound, shared
from router.overview import Overview
from router.pipeline import Pipeline
from router.siblings import Siblings
from router.upstream.attempts import Attempts
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Fleet
from router.upstream.health import Health
from router.upstream.inside import Inside
from router.upstream.room import Room
from router.upstream.sending import Sending
from router.watchdog import Watchdog
from router.workers import BUDGETS, DRAIN_S, RATES, Share, one_of_several, only_one
from serving.catalogue import Catalogue, DataClass, Privacy
from serving.home import Home, listen_privately

if TYPE_CHECKING:
    from router.scanner.scanner import Scanner

LOG = logging.getLogger("headgate.router")
KEYS_S = 1.0
"""How often the keyring looks for changes: a revoked key stops working within this time."""
CUT_OFF_S = 1.0
"""What was not finished in DRAIN_S seconds gets so long to end once it is cancelled."""


@dataclass(slots=True)
class Built:
    """A router, joined and not yet running."""

    edge: Edge
    pages: FastAPI
    """What callers find beside the inference routes."""
    admin: FastAPI
    fleet: Fleet
    keyring: Keyring
    store: Store
    connections: Connections
    gate: Gate
    share: Share
    held: contextlib.ExitStack
    """The lock and the files that are closed last."""
    watchdog: Watchdog


def build(home: Home, catalogue: Catalogue, share: Share | None = None) -> Built:
    """Join everything, as one worker of several where `share` says so. Raises LedgerError, or OSError."""
    share = share or Share()
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_one(home) if share.alone else one_of_several(home))
        return _joined(home, catalogue, share, stack)


def _joined(home: Home, catalogue: Catalogue, share: Share, stack: contextlib.ExitStack) -> Built:
    settings, now = catalogue.site.router, time.time()
    store, metrics = Store(home.ledger, share.writer), Metrics()
    forward = Forward(latest(home.ledger))
    if behind := forward.trouble():
        LOG.warning("%s", behind)
    budgets, rates = _money(home, store, share, now, stack)
    keyring = Keyring(home.ledger, home.secret("pepper"))
    deadlines = Deadlines(
        first_byte_s=settings.first_byte_timeout_s, first_token_s=settings.first_token_timeout_s,
        idle_s=settings.idle_timeout_s, total_s=settings.total_timeout_s,
    )  # fmt: skip
    connections, health = Connections(deadlines, Bounds(), outside=Inside(catalogue).outside), Health()
    # The door is asked whenever a provider is enabled; where it does not run, hosted models are refused as closed.
    door = Address.parse(f"unix:{home.socket('door')}") if catalogue.hosted() else None
    prices, length = Prices.of(catalogue, now), share.part(settings.queue_length)
    room = Room(
        length, settings.queue_wait_s, wait_batch_s=settings.queue_wait_batch_s,
        rests=lambda endpoint: bool(health.resting(endpoint, time.monotonic())),
    )  # fmt: skip
    serving = Address.parse(f"unix:{home.socket('serving')}")
    fleet = Fleet(prices.catalogue, connections, serving, door, room, prices.rate, share.part, health, forward.now)
    ledger = Ledger(store, budgets, metrics, prices, secret=home.secret("session"))
    sending = Sending(connections, fleet, door, home.secret("permit"), catalogue.version, body_for)
    attempts = Attempts(sending, fleet, room, checked, health, fleet.paces)
    gate, forms = _gate(home, catalogue, share.alone, stack), Forms(settings.schemas_per_minute)
    watchdog, aside = Watchdog(), _aside(stack)
    overview = Overview(fleet, room, store, gate, watchdog, catalogue.site, share.of)
    metrics.watch(overview.live)
    pipeline = Pipeline(fleet, ledger, attempts, gate, forms, max(1, settings.queue_wait_s), aside)
    rest = pages.build(pipeline, keyring, overview.unready, metrics.refused, forward.now)
    memory = shedding.own_share(settings.memory_limit_mb, settings.workers, shedding.read_text)
    max_body = int(settings.max_body_mb * 2**20)
    load = shedding.Load(settings.max_requests, memory, max_body=max_body)
    inference = Inference(pipeline, keyring, rates, load, max_body, aside, today=forward.now)
    edge = Edge(settings, inference, Bridge(rest), rates, load, metrics.refused)
    others = {n: home.socket(share.socket(n)) for n in range(1, share.of + 1) if n != share.number}
    siblings = Siblings(connections, share.number, others)
    totals = Totals(successor=bool(share.gone))
    operator = admin.build(pipeline, ledger, keyring, overview.state, catalogue.site.keys, siblings, totals)
    return Built(edge, rest, operator, fleet, keyring, store, connections, gate, share, stack.pop_all(), watchdog)


def _money(
    home: Home, store: Store, share: Share, now: float, stack: contextlib.ExitStack
) -> tuple[Budgets, Rates]:  # fmt: skip
    """What is counted against the limits of keys; what was left open is closed first. Workers share the counters."""
    if share.alone:
        budgets = Budgets()
        settle_lost(store, now)
        with contextlib.closing(connect(home.ledger, read_only=True)) as db:
            budgets.load(db, now)
        return budgets, Rates()
    settle_lost(store, now, share.gone)  # the shared counters have it already, at its hold
    spent, rates = (stack.enter_context(contextlib.closing(Shared(home.run / name))) for name in (BUDGETS, RATES))
    return Budgets(spent), Rates(rates)


def _gate(home: Home, catalogue: Catalogue, alone: bool, stack: contextlib.ExitStack) -> Gate:
    """Scanner and history, where a provider is enabled; else nothing could leave, and there is nothing to look for.
    `alone`: this process is the only worker.

    Raises LedgerError, or OSError.
    """
    if not catalogue.hosted():
        return Gate(None)
    privacy, secret, begun = catalogue.site.privacy, home.secret("history"), home.root / "history-begun"
    scanner, effects = _scanner(home, privacy), _effects(privacy)
    history = open_history(home.ledger, secret, begun, privacy.history_days, effects, alone=alone)
    stack.callback(history.close)
    if history.killed:
        LOG.warning("a router before this one was killed: what it was answering then may not be remembered as private")
    gate = Gate(scanner, history, make=functools.partial(_scanner, home, privacy))
    stack.callback(gate.close)  # before the history
    return gate


def _scanner(home: Home, privacy: Privacy) -> Scanner | str:
    """The scanner, or why it cannot be used, which closes the way out alone."""
    try:
        # Here, since it needs packages and memory that a router without providers does not.
        from router.scanner import rules
        from router.scanner.scanner import Scanner, ScannerError
    except ImportError as missing:
        LOG.error("nothing leaves: the scanner needs %s", missing.name)
        return f"it needs {missing.name}"
    try:
        return Scanner(rules.of(privacy), home.root / "rules")
    except (ScannerError, rules.UnknownKind) as wrong:
        LOG.error("nothing leaves: %s", wrong)
        return str(wrong)


def _effects(privacy: Privacy) -> dict[str, DataClass]:
    """What each kind of finding means now; where nobody can say, what was noted keeps the class it had."""
    with contextlib.suppress(ImportError):
        from router.scanner import rules

        with contextlib.suppress(rules.UnknownKind):
            return rules.effects(privacy)
    return {}


def _aside(stack: contextlib.ExitStack) -> Executor:
    """A thread in which large bodies are parsed and looked through, one after the other: more would only share one
    interpreter."""
    made = ThreadPoolExecutor(1, "bodies")
    stack.callback(made.shutdown, wait=False, cancel_futures=True)
    made.submit(bool)  # starts it now, and not with the first large body
    return made


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


async def serve(
    built: Built, home: Home, catalogue: Catalogue, listen: Listen, stop: asyncio.Event, made: Opened | None = None
) -> None:  # fmt: skip
    """Run until `stop` is set; then finish what is being answered, at most DRAIN_S seconds.

    `made`: the sockets to listen on, where they had to be there first.
    """
    if told := proxies.ignored(os.environ):
        LOG.warning("%s", told)
    callers = _config(
        built.pages, host=listen.host, port=listen.port, cert=listen.tls_cert, key=listen.tls_key,
        http=protocol_of(built.edge),
    )  # fmt: skip
    servers = [Server(callers), Server(_config(built.admin, socket_path=home.socket(built.share.socket())))]
    if (port := catalogue.site.router.admin_port) and built.share.number == 1:
        tokens = {home.secret("admin-token"): "admin", home.secret("auditor-token"): "auditor"}
        servers.append(Server(_config(admin.with_token(built.admin, tokens), port=port)))
    async with _background(built):
        # Callers' address first: whoever hears the admin socket answer may count on it.
        sockets = made.callers if made else bound(listen) if built.share.alone else shared(listen)
        running = [asyncio.create_task(servers[0].serve(sockets))]
        up = asyncio.create_task(servers[0].up.wait())
        await asyncio.wait({running[0], up}, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        for server in servers[1:]:
            operator = made.operator if made else None
            theirs = [listen_privately(Path(server.config.uds))] if server.config.uds else operator
            running.append(asyncio.create_task(server.serve(sockets=theirs)))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)
        if left := {*servers[0].server_state.tasks}:  # cut off: each still writes down how it ended
            await asyncio.wait(left, timeout=CUT_OFF_S)
        stopping.cancel()
    await built.connections.close()
    built.keyring.close()
    try:
        built.store.close()
    finally:  # what the history still has to write is told of whatever becomes of the ledger
        built.held.close()


@contextlib.asynccontextmanager
async def _background(built: Built) -> AsyncIterator[None]:
    async def watch_keys() -> None:
        while True:
            await asyncio.sleep(KEYS_S)
            built.keyring.refresh()

    tasks = [asyncio.create_task(built.fleet.run()), asyncio.create_task(watch_keys())]
    tasks.append(asyncio.create_task(built.gate.run()))
    try:
        with built.watchdog.watching():
            yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _config(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, socket_path: Path | None = None,
    cert: str | None = None, key: str | None = None, http: Any = "httptools",
) -> uvicorn.Config:  # fmt: skip
    """`http` is uvicorn's own way to speak it, or what makes a connection of ours."""
    return uvicorn.Config(
        app, host=host, port=port, uds=str(socket_path) if socket_path else None, loop="uvloop", http=http,
        lifespan="off", log_level="warning", access_log=False, server_header=False, date_header=False,
        proxy_headers=False, ssl_certfile=cert, ssl_keyfile=key, timeout_graceful_shutdown=DRAIN_S, ws="none",
    )  # fmt: skip
