"""`python -m router`: the router alone. `headgate up` starts this beside serving and the door."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import uvloop

from router import app, keeper, traces, workers
from router.child import beating
from router.ledger.counters import Stuck
from router.ledger.store import LedgerError
from router.listen import Listen, Opened, check_free, check_public, opened
from router.workers import Share, Workers
from serving import catalogue, isolation
from serving.catalogue import Catalogue, ConfigError
from serving.home import Home, find_home

SWITCH_S = 0.0005
"""How long a thread goes on while another one wants to. Else the ledger's waits 5 ms for each of its turns while the
loop is busy, and falls ever further behind; and the loop as long for each thread that searches."""


def main() -> int:
    """Run until SIGTERM, SIGINT or, with --parent-pipe, the end of stdin. Returns 2 where it is set up wrongly."""
    options = _parser().parse_args()
    traces.install()
    home = find_home()
    try:
        home.make()
        found = catalogue.load(catalogue.find_site(options.config, [Path.cwd(), home.root]))
        listen = Listen(options.host, options.port, options.tls_cert, options.tls_key)
        if options.worker:
            share = Share(options.worker, options.of, options.writer, tuple(options.gone))
            return _answer(home, found, listen, options, share)
        check_public(listen, options.behind_proxy)
        check_free(listen)
        if found.site.router.admin_port:
            check_free(Listen(port=found.site.router.admin_port), "router.admin_port in headgate.yaml")
        if found.site.router.workers > 1:
            return _keep(home, found, sys.argv[1:], options)
        return _answer(home, found, listen, options, Share())
    except (ConfigError, LedgerError, Stuck) as wrong:
        print(f"router: {wrong}", file=sys.stderr)
        return 2
    except OSError as wrong:
        # It may pass (a full disk), so whoever keeps this running may try again.
        print(f"router: {wrong}", file=sys.stderr)
        return 1


def _keep(home: Home, found: Catalogue, given: list[str], options: argparse.Namespace) -> int:
    """Be the parent of the workers, which are given the same arguments and the same file of settings."""
    with workers.only_one(home):
        workers.prepare(home, time.time())
        args = [one for one in given if one != "--parent-pipe" and not one.startswith("--beat=")]
        args += ["--config", str(found.path)] if found.path else []
        kept = Workers(home, found.site.router.workers, args, keeper.environment(home, os.environ))
        return asyncio.run(keeper.keep(kept, options.parent_pipe, options.beat))


def _answer(home: Home, found: Catalogue, listen: Listen, options: argparse.Namespace, share: Share) -> int:
    """Be a router that answers callers; with `isolate`, from a network that leads nowhere."""
    made = None
    if found.site.isolate:
        # First, while the host's network is this process's own: callers come to these from there ever after.
        made = opened(listen, found.site.router.admin_port if share.number == 1 else 0, share.alone)
        trouble = isolation.enter()
        said = f"NOT ENFORCED by the kernel: {trouble}" if trouble else "the kernel knows no way out for this process"
        print(f"router: isolate: {said}", file=sys.stderr, flush=True)
    return uvloop.run(_run(home, found, listen, options, share, made))


async def _run(
    home: Home, found: Catalogue, listen: Listen, options: argparse.Namespace, share: Share, made: Opened | None
) -> int:  # fmt: skip
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.set_exception_handler(traces.unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.parent_pipe:
        # A thread, since stdin may be a pipe, a file or a terminal; a daemon, for a blocked read cannot be cancelled.
        threading.Thread(target=_until_stdin_ends, args=(loop, stop), daemon=True).start()
    built = app.build(home, found, share)
    tune()
    async with beating(options.beat):
        await app.serve(built, home, found, listen, stop, made)
    return 0


def tune() -> None:
    """How this process looks for garbage and lets its threads take turns, once everything is built."""
    # What is here now stays: nothing is gained by looking through it again and again for what has become garbage.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # a request makes hundreds of objects and next to no cycles
    sys.setswitchinterval(SWITCH_S)


def _until_stdin_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop.set)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m router", description=__doc__)
    parser.add_argument("--config", type=Path, help="the headgate.yaml to use")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    parser.add_argument("--behind-proxy", action="store_true", help="a proxy in front speaks TLS")
    parser.add_argument("--parent-pipe", action="store_true", help="end when stdin is closed")
    parser.add_argument("--beat", type=int, default=-1, help=argparse.SUPPRESS)  # the keeper's end of child.Beats
    # Between the parent of several workers and one of them.
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--writer", default="", help=argparse.SUPPRESS)
    parser.add_argument("--gone", action="append", default=[], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
