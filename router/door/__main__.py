"""`python -m router.door [--config PATH] [--parent-pipe]`: the only process with a way out and with providers' keys."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from router import traces
from router.door.book import BookError
from router.door.server import serve
from serving import catalogue
from serving.home import Home, find_home
from serving.yamlfile import ConfigError


def main() -> int:
    """Run until a signal, or the end of stdin with --parent-pipe. Returns the exit code: 2 for a wrong set-up."""
    parser = argparse.ArgumentParser(prog="python -m router.door", description=__doc__)
    parser.add_argument("--config", type=Path, help="the headgate.yaml to use")
    parser.add_argument("--parent-pipe", action="store_true", help="stop when stdin ends")
    parser.add_argument("--beat", type=int, default=-1, help=argparse.SUPPRESS)  # the keeper's end of child.Beats
    given = parser.parse_args()
    traces.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    home = find_home()
    try:
        home.make()
        found = catalogue.load(catalogue.find_site(given.config, (Path.cwd(), home.root)))
        asyncio.run(_run(found, home, given.parent_pipe, given.beat))
    except (ConfigError, BookError, OSError) as wrong:
        print(f"headgate door: {wrong}", file=sys.stderr)
        return 2
    return 0


async def _run(found: catalogue.Catalogue, home: Home, parent_pipe: bool, beat: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(traces.unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent_pipe:
        # A daemon, since a blocked read cannot be cancelled; it holds no lock that the interpreter needs to end.
        threading.Thread(target=_until_parent_ends, args=(loop, stop), daemon=True).start()
    await serve(found, home, dict(os.environ), stop, beat)


def _until_parent_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    try:
        while os.read(0, 1024):
            pass
    except OSError:
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(stop.set)


if __name__ == "__main__":
    sys.exit(main())
