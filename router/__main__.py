"""`python -m router`: the router alone. `headgate up` starts this beside serving and the door."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import uvloop

from router import app
from router.ledger.store import LedgerError
from router.listen import Listen, check_free, check_public
from serving import catalogue
from serving.catalogue import Catalogue, ConfigError
from serving.home import Home, find_home


def main() -> int:
    """Run until SIGTERM, SIGINT or, with --parent-pipe, the end of stdin. Returns 2 where it is set up wrongly."""
    options = _parser().parse_args()
    home = find_home()
    try:
        home.make()
        found = catalogue.load(catalogue.find_site(options.config, [Path.cwd(), home.root]))
        listen = Listen(options.host, options.port, options.tls_cert, options.tls_key)
        check_public(listen, options.behind_proxy)
        check_free(listen)
        if found.site.router.admin_port:
            check_free(Listen(port=found.site.router.admin_port), "router.admin_port in headgate.yaml")
        return uvloop.run(_run(home, found, listen, options.parent_pipe))
    except (ConfigError, LedgerError) as wrong:
        print(f"router: {wrong}", file=sys.stderr)
        return 2
    except OSError as wrong:
        # It may pass (a full disk), so whoever keeps this running may try again.
        print(f"router: {wrong}", file=sys.stderr)
        return 1


async def _run(home: Home, found: Catalogue, listen: Listen, parent_pipe: bool) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent_pipe:
        # A thread, since stdin may be a pipe, a file or a terminal; a daemon, for a blocked read cannot be cancelled.
        threading.Thread(target=_until_stdin_ends, args=(loop, stop), daemon=True).start()
    await app.serve(app.build(home, found), home, found, listen, stop)
    return 0


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
