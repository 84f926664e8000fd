"""`python -m serving`: builds all of serving/ in one place, and runs it until told to stop.

Exit code 0 after a clean stop, 2 where what a person wrote cannot be taken (one sentence on stderr).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import functools
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from serving import catalogue, command, demo_model, engines, gpus, groups, isolation, known, memory, placement, status
from serving.attached import provider_hosts
from serving.catalogue import Attached, Catalogue, Model
from serving.endpoint import Timing
from serving.engines import Engine, EngineError
from serving.gpus import Readings
from serving.home import Home, find_home, listen_privately
from serving.local import Means, Say
from serving.monitor import Monitor
from serving.placement import Placed, Plan
from serving.supervisor import Supervisor, engine_finder, find_weights, sweep
from serving.turns import Turns
from serving.yamlfile import ConfigError

FIRST_S = 30.0
"""A driver that must first wake its GPUs takes a few seconds; one that needs longer for its first reading hangs."""
THREADS = 64
"""Each waits on one server that may be slow; a small pool would let the slow ones delay the others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run serving; returns the exit code."""
    given = _arguments(argv)
    home = find_home()
    try:
        home.make()
        found = catalogue.load(catalogue.find_site(given.config, [Path.cwd(), home.root]))
        models, attached = wanted(found, given.model, given.attach)
        lock = _Lock(home)
    except (ConfigError, OSError) as broken:
        print(f"serving: {broken}", file=sys.stderr)
        return 2
    with lock:
        asyncio.run(_serve(found, home, models, attached, given.parent_pipe))
    return 0


def wanted(found: Catalogue, names: Sequence[str], urls: Sequence[str]) -> tuple[list[Model], list[Attached]]:
    """What is to be started and attached: what the command line names, else what the site does, else the demo model.

    Raises ConfigError.
    """
    demo = demo_model.demo_model()
    chosen = list(names) or ([] if urls else list(found.site.run))
    models = [demo if name == demo.name and name not in found.models else found.find(name) for name in chosen]
    for model in models:
        if model.place == "hosted":
            raise ConfigError(f"{model.name!r} is hosted and cannot be started; enable its provider instead")
    try:
        attached = [*found.site.attach, *(Attached.model_validate({"url": url}) for url in urls)]
    except ValidationError:
        raise ConfigError(f"--attach {' '.join(urls)}: give http://, https:// or unix:/ addresses") from None
    if found.site.isolate and (refused := isolation.refusal(one.url for one in attached)):
        raise ConfigError(refused)
    if not models and not attached:
        models = [demo]
    return list({model.name: model for model in models}.values()), attached


async def _serve(
    found: Catalogue, home: Home, models: Sequence[Model], attached: Sequence[Attached], parent_pipe: bool
) -> None:
    """Build everything, then run until a signal comes or the parent is gone."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS))
    stop, at_once = asyncio.Event(), asyncio.Event()
    _listen_for_the_end(loop, stop, at_once, parent_pipe)
    timing = Timing().hanging(found.site.engine.hang_after_s)
    # First, for what a killed run left still holds the memory that is to be read.
    await sweep(home, timing.grace_s, _say)
    monitor = Monitor(home.installation())
    readings = await _first(monitor, stop)
    supervisor = Supervisor(
        plan=_plan(found, home, models, readings),
        attached=attached,
        means=_means(found, home, readings, os.environ.copy()),
        timing=timing,
        read_gpus=monitor,
        readings=readings,
        providers=provider_hosts(found.providers.values()),
        inside=found.site.inside,
        swap=found.site.swap,
        memory_free_gb=gpus.main_memory_free_gb,
    )
    host = status.Host(socket.gethostname(), secrets.token_hex(8))
    server = status.server(status.application(supervisor, host))
    path = home.socket("serving")
    with listen_privately(path) as listener:
        serving = asyncio.ensure_future(_publish(supervisor, server, listener))
        try:
            await supervisor.run(stop, at_once)
        finally:
            server.should_exit = True
            await serving
            path.unlink(missing_ok=True)


async def _first(monitor: Monitor, stop: asyncio.Event) -> Readings:
    """The readings to plan by. A driver that holds the question for ever holds up neither the end nor what needs no
    GPU."""
    read, stopped = asyncio.ensure_future(gpus.aside(monitor)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({read, stopped}, timeout=FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        if read.done():
            return read.result()
        return Readings(note=f"the NVIDIA driver did not answer within {FIRST_S:g} s; restart the machine")
    finally:
        read.cancel()
        stopped.cancel()


async def _publish(supervisor: Supervisor, server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer whoever asks, once more is known than the routers still know of the serving before this one."""
    await supervisor.looked()
    await server.serve(sockets=[listener])


def _plan(found: Catalogue, home: Home, models: Sequence[Model], readings: Readings) -> Plan:
    """What runs where, with what is known of weights that are here and of engines that ran before."""
    try:
        engine = known.named(engines.find(found.site.engine, home.engines, bool(readings.gpus)))
    except EngineError:
        engine = ""  # said where it is wanted
    seen = known.known(models, home, readings, engine, os.environ)
    place = functools.partial(placement.place, found=seen)
    return groups.place(models, found.site.swap, readings, gpus.main_memory_free_gb(), place)


def _means(found: Catalogue, home: Home, readings: Readings, inherited: Mapping[str, str]) -> Means:
    async def weights(engine: Engine, placed: Placed, say: Say) -> str:
        return await find_weights(home, engine, placed, inherited, say)

    def engine() -> Engine:
        return engines.find(found.site.engine, home.engines, bool(readings.gpus))

    def noted(placed: Placed, engine: Engine, tokens: int) -> None:
        # A disk that is full must not keep a model from serving.
        with contextlib.suppress(OSError):
            known.reported(placed, home, readings, known.named(engine), tokens)  # for the names of the GPUs

    return Means(
        home=home,
        installation=home.installation(),
        inherited=inherited,
        engine=engine_finder(engine, home, inherited),
        weights=weights,
        command=command.build,
        say=_say,
        turns=Turns(),
        isolate=found.site.isolate,
        noted=noted,
        # A model without a GPU has nothing to ask a driver for.
        missing=lambda p: memory.missing(p, gpus.read() if p.gpus else Readings(), gpus.main_memory_free_gb()),
    )


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class _Lock:
    """Held by the one serving of an installation; the kernel lets go of it however the process ends."""

    def __init__(self, home: Home) -> None:
        self._fd = os.open(home.run / "serving.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise ConfigError(f"another serving already runs for {home.root}; stop it first (headgate down)") from None

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _listen_for_the_end(
    loop: asyncio.AbstractEventLoop, stop: asyncio.Event, at_once: asyncio.Event, parent_pipe: bool
) -> None:
    """The first signal, or the end of stdin, drains and stops; a second signal stops without draining."""

    def on_signal() -> None:
        (at_once if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if not parent_pipe:
        return

    def read_to_the_end() -> None:
        while os.read(0, 4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    # A thread, for a pipe may be a file or a terminal as well; it must not keep the process alive.
    threading.Thread(target=read_to_the_end, daemon=True).start()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Run and watch the local vLLM instances.")
    parser.add_argument("--config", type=Path, help="a headgate.yaml")
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="a model to start")
    parser.add_argument("--attach", action="append", default=[], metavar="URL", help="a server that already runs")
    parser.add_argument("--parent-pipe", action="store_true", help="stop when stdin ends")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
