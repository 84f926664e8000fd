"""`python -m router.keeper`: keeps the processes of one machine running: serving, the door, the router.

`headgate up` starts it, in the background or not. It restarts what dies and stops all of it on SIGTERM; it does not
look at requests. Each child holds the other end of a pipe, so that none outlives the keeper, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

import router
from serving import catalogue, processes
from serving.catalogue import Catalogue, ConfigError
from serving.home import Home, find_home

STOP_S = {"router": 35.0, "door": 15.0, "serving": 60.0}
"""Seconds each part gets to finish what it is doing."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, GOOD_RUN_S = 1.0, 30.0, 60.0
"""Restart back-off: doubled each time, forgotten after a good run."""
CONFIG_ERROR = 2
"""Exit code of a part that cannot start as it is configured; trying again would not help."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep: its name, its command and its environment."""

    name: str
    args: tuple[str, ...]
    environment: dict[str, str]


def parts(
    home: Home, found: Catalogue, inherited: Mapping[str, str], *, serving: list[str], listen: list[str]
) -> list[Part]:
    """What runs on this machine. Only the door sees providers' keys; it runs only where a provider is enabled."""
    config = ["--config", str(found.path)] if found.path else []
    provider_keys = {p.key_env for p in found.providers.values() if p.key_env}
    inner = {name: value for name, value in inherited.items() if name not in provider_keys}

    def command(module: str, *args: str) -> tuple[str, ...]:
        return (sys.executable, "-m", module, "--parent-pipe", *config, *args)

    kept = [Part("serving", command("serving", *serving), inner)]
    if found.hosted():
        kept.append(Part("door", command("router.door"), dict(inherited)))
    kept.append(Part("router", command("router", *listen), inner))
    return kept


def environment(home: Home, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process of this installation: its id, its folders, and where these packages lie."""
    root = str(Path(router.__file__).parent.parent)  # a checkout as well as an installed package
    rest = [p for p in inherited.get("PYTHONPATH", "").split(os.pathsep) if p and p != root]
    return dict(inherited) | {
        "HEADGATE_INSTALLATION": home.installation(),
        "HEADGATE_HOME": str(home.root),
        "HEADGATE_ENGINES": str(home.engines),
        "PYTHONPATH": os.pathsep.join([root, *rest]),
        "PYTHONUNBUFFERED": "1",
    }


class Keeper:
    """Runs parts until told to stop."""

    def __init__(self, home: Home, kept: list[Part]) -> None:
        self._home, self._parts = home, kept
        self._stopping = asyncio.Event()
        self.given_up = ""
        """The part that cannot start as it is configured, if any."""

    async def run(self) -> int:
        """Keep everything until SIGTERM, SIGINT or `stop`; then end it in the order router, door, serving."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        tasks = {part.name: asyncio.create_task(self._keep(part)) for part in self._parts}
        await self._stopping.wait()
        for name in ("router", "door", "serving"):  # callers first, engines last
            if task := tasks.get(name):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        left = [p for p in processes.ours(self._home.installation()) if p.pid != os.getpid()]
        await processes.end(left, grace_s=5)
        return CONFIG_ERROR if self.given_up else 0

    def stop(self) -> None:
        self._stopping.set()

    async def _keep(self, part: Part) -> None:
        pause = FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            code = await self._once(part)
            if code == CONFIG_ERROR:
                self.given_up = part.name
                self.stop()
                return
            if time.monotonic() - started > GOOD_RUN_S:
                pause = FIRST_PAUSE_S
            _say(f"{part.name} ended with code {code}; starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _once(self, part: Part) -> int:
        """Run the part until it ends; when cancelled, end it first."""
        log = os.open(self._home.logs / f"{part.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = await asyncio.create_subprocess_exec(
                *part.args, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, env=part.environment,
                cwd=self._home.root, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)
        try:
            return await child.wait()
        except asyncio.CancelledError:
            await _end(child, STOP_S[part.name])
            raise


async def _end(child: asyncio.subprocess.Process, grace_s: float) -> None:
    try:
        child.terminate()
        await asyncio.wait_for(child.wait(), grace_s)
    except ProcessLookupError:
        return
    except TimeoutError:
        child.kill()
        await child.wait()


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper: {text}", flush=True)


@dataclass(frozen=True, slots=True)
class Running:
    """What `headgate up` wrote down of the keeper it started."""

    pid: int
    start: int
    url: str
    ca_file: str = ""
    """The router's own certificate, where it speaks TLS: what `chat` trusts."""

    def alive(self) -> bool:
        return processes.alive(processes.Process(self.pid, self.start, "", ""))


def note(home: Home, pid: int, url: str, ca_file: str) -> None:
    """Write down the keeper `pid`, for `down`, `status` and `chat`."""
    found = processes.find(pid)
    start = found.start if found else 0
    (home.run / "keeper.json").write_bytes(orjson.dumps({"pid": pid, "start": start, "url": url, "ca_file": ca_file}))


def running(home: Home) -> Running | None:
    """The keeper that runs now, if one does."""
    try:
        found = Running(**orjson.loads((home.run / "keeper.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.alive() else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m router.keeper", description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--serving", action="append", default=[], help="an argument for serving")
    parser.add_argument("--listen", action="append", default=[], help="an argument for the router")
    options = parser.parse_args()
    home = find_home()
    try:
        found = catalogue.load(catalogue.find_site(options.config, [home.root]))
    except ConfigError as wrong:
        print(f"keeper: {wrong}", file=sys.stderr)
        return CONFIG_ERROR
    home.make()
    kept = parts(home, found, os.environ, serving=options.serving, listen=options.listen)
    return asyncio.run(Keeper(home, kept).run())


if __name__ == "__main__":
    sys.exit(main())
