"""`python -m router`: the router alone. `headgate up` starts this beside serving and the door."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from router import app
from router.ledger.store import LedgerError
from router.listen import Listen, check_free, check_public
from serving import catalogue
from serving.catalogue import Catalogue, ConfigError
from serving.home import Home, find_home


def main() -> int:
    """Run until SIGTERM, SIGINT or, with --parent-pipe, the end of stdin."""
    options = _parser().parse_args()
    home = find_home()
    try:
        listen = Listen(options.host, options.port, options.tls_cert, options.tls_key)
        check_public(listen, options.behind_proxy)
        check_free(listen)
        home.make()
        site = catalogue.find_site(options.config, [Path.cwd(), home.root])
        found = catalogue.load(site)
        return uvloop.run(_run(home, found, listen, options.parent_pipe))
    except (ConfigError, LedgerError) as wrong:
        print(f"router: {wrong}", file=sys.stderr)
        return 2


async def _run(home: Home, found: Catalogue, listen: Listen, parent_pipe: bool) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent_pipe:
        loop.add_reader(sys.stdin.fileno(), stop.set)  # readable means closed: nothing is ever written to it
    await app.serve(app.build(home, found), home, found, listen, stop)
    return 0


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
