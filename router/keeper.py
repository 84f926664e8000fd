"""`python -m router.keeper`: keeps the processes of one machine running: serving, the door, the router.

`headgate up` starts it, in the background or not. It restarts what dies, ends and restarts a router or a door that
stands still, and stops all of it on SIGTERM; it does not look at requests. Each child holds the other end of a pipe, so
that none outlives the keeper, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

import router
from router import child, traces
from router.child import Child
from serving import catalogue, processes
from serving.catalogue import Catalogue, ConfigError
from serving.home import Home, find_home

STOP_S = {"router": 45.0, "door": 20.0, "serving": 80.0}
"""Seconds each part gets to finish what it is doing; in this order they are stopped: callers first, engines last."""
FIRST_PAUSE_S, LONGEST_PAUSE_S, GOOD_RUN_S = 1.0, 30.0, 60.0
"""Restart back-off: doubled each time, forgotten after a good run."""
CONFIG_ERROR = 2
"""Exit code of a part that cannot start as it is configured."""
SETTLED_S = 5.0
"""A part that ran this long was configured well. If it later cannot start (somebody is editing headgate.yaml), it is
tried again and the rest goes on; at the first start the whole is given up, for somebody waits for it."""
LAST_BYTES = 8192
"""As much of a log's end is read for its last line."""
_SAYS = re.compile(r"^(?:[\d-]+ [\d:]+ )?(?:headgate )?(?:keeper|serving|door|router): ")


class AlreadyRunning(Exception):
    """Another process of this installation holds the lock; one sentence."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep: its name, its command and its environment."""

    name: str
    args: tuple[str, ...]
    environment: dict[str, str]
    beats: bool = False
    """Whether it shows that it goes on; then it is ended where it does so no longer."""


def parts(found: Catalogue, inherited: Mapping[str, str], *, serving: list[str], listen: list[str]) -> list[Part]:
    """What runs on this machine. Only the door sees providers' keys; it runs only where a provider is enabled."""
    config = ["--config", str(found.path)] if found.path else []
    provider_keys = {p.key_env for p in found.providers.values() if p.key_env}
    inner = {name: value for name, value in inherited.items() if name not in provider_keys}

    def command(module: str, *args: str) -> tuple[str, ...]:
        # -P: no module is ever taken from the folder it happens to run in.
        return (sys.executable, "-P", "-m", module, "--parent-pipe", *config, *args)

    kept = [Part("serving", command("serving", *serving), inner)]
    if found.hosted():
        kept.append(Part("door", command("router.door"), dict(inherited), beats=True))
    kept.append(Part("router", command("router", *listen), inner, beats=True))
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


def last_words(log: Path, since: int) -> str:
    """The last line written to `log` after byte `since`, without the writer's own name; "" where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return _SAYS.sub("", line.strip())


class Keeper:
    """Runs parts until told to stop."""

    name = "keeper"

    def __init__(self, home: Home, kept: list[Part], silent_s: float = child.SILENT_S) -> None:
        """`silent_s`: a part that beats is ended where it does not do so for this long."""
        self._home, self._parts, self._silent_s = home, kept, silent_s
        self._stopping = asyncio.Event()
        self.given_up = ""
        """The part that cannot start as it is configured, if any."""

    async def run(self) -> int:
        """Keep everything until SIGTERM, SIGINT or `stop`; then end it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        tasks = {part.name: asyncio.create_task(self._keep(part)) for part in self._parts}
        await self._stopping.wait()
        await self._end_all(tasks)
        return CONFIG_ERROR if self.given_up else 0

    async def _end_all(self, tasks: Mapping[str, asyncio.Task[None]]) -> None:
        """End the parts in the order of STOP_S, then whatever else carries this installation's id."""
        for name in STOP_S:
            if task := tasks.get(name):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        left = [p for p in processes.ours(self._home.installation()) if p.pid != os.getpid()]
        await processes.end(left, grace_s=5)

    def stop(self) -> None:
        self._stopping.set()

    async def _keep(self, part: Part) -> None:
        pause, settled = self._first_pause_s(), False
        while True:
            started = time.monotonic()
            code, how, words = await self._once(part)
            lasted = time.monotonic() - started
            settled = settled or lasted > SETTLED_S
            if code == CONFIG_ERROR and not settled:
                self._say(f"{part.name} cannot start: {words}")
                self.given_up = part.name
                self.stop()
                return
            pause = self._first_pause_s() if lasted > GOOD_RUN_S else pause
            said = f"; its last words: {words}" if words else ""
            self._say(f"{part.name} {how}; starting it again in {pause:g} s{said}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _first_pause_s(self) -> float:
        return FIRST_PAUSE_S

    async def _once(self, part: Part) -> tuple[int, str, str]:
        """Run the part until it ends: its exit code, how it ended, the last line it wrote. When cancelled, end it."""
        starting = asyncio.ensure_future(self._start(part))
        try:
            started = await asyncio.shield(starting)  # cancelled in mid-start, it would be killed without a word
            code = await started.ended(self._silent_s)
            still = f"stood still for {self._silent_s:g} s and was ended"
            return code, still if started.stood_still else f"ended with code {code}", started.words() or "none"
        except OSError as broken:  # no space, no memory, too many processes: it may pass
            return 1, "ended with code 1", str(broken)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await (await starting).end(self._grace_s(part))
            raise

    def _grace_s(self, part: Part) -> float:
        """Seconds it gets to finish what it is doing."""
        return STOP_S[part.name]

    async def _start(self, part: Part) -> Child:
        """Start the part; it writes into its log. Raises OSError."""
        log = self._home.logs / f"{part.name}.log"
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            since = os.fstat(output).st_size
            return await child.start(
                part.args, part.environment, lambda: last_words(log, since), beats=part.beats,
                stdout=output, stderr=output, cwd=self._home.root,
            )  # fmt: skip
        finally:
            os.close(output)

    def _say(self, text: str) -> None:
        _say(text, self.name)


def _say(text: str, who: str = Keeper.name) -> None:
    # A disk that is full must not end the keeper: it is what stops the rest in order.
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {who}: {text}", flush=True)


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


def note(home: Home, pid: int, url: str, ca_file: str) -> Running:
    """Write down the keeper `pid`, for `down`, `status` and `chat`."""
    found = processes.find(pid)
    noted = Running(pid, found.start if found else 0, url, ca_file)
    (home.run / "keeper.json").write_bytes(orjson.dumps(noted))
    return noted


def running(home: Home) -> Running | None:
    """The keeper that runs now, if one does."""
    try:
        found = Running(**orjson.loads((home.run / "keeper.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.alive() else None


@contextlib.contextmanager
def only_one(home: Home, what: str) -> Iterator[None]:
    """Hold the lock `what`; the kernel lets go of it however the process ends. Raises AlreadyRunning."""
    lock = os.open(home.run / f"{what}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another {what} of {home.root} is at work; see: headgate status") from None
        yield
    finally:
        os.close(lock)


async def keep(keeper: Keeper, parent_pipe: bool, beat: int = -1) -> int:
    """Run `keeper`, with `parent_pipe` until stdin ends at the latest. Returns the exit code.

    `beat`: where it shows that it goes on itself, if anybody listens.
    """
    if parent_pipe:
        threading.Thread(target=_until_stdin_ends, args=(asyncio.get_running_loop(), keeper), daemon=True).start()
    async with child.beating(beat):
        return await keeper.run()


def _until_stdin_ends(loop: asyncio.AbstractEventLoop, keeper: Keeper) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(keeper.stop)


def main() -> int:
    """Keep all parts running. Returns 2 where one of them cannot start as it is configured."""
    parser = argparse.ArgumentParser(prog="python -m router.keeper", description=__doc__)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--serving", action="append", default=[], help="an argument for serving")
    parser.add_argument("--listen", action="append", default=[], help="an argument for the router")
    parser.add_argument("--parent-pipe", action="store_true", help="stop when stdin ends")
    options = parser.parse_args()
    traces.no_core()  # nor in any that is started from here, the engines among them
    home = find_home()
    try:
        home.make()
        with only_one(home, "keeper"):
            found = catalogue.load(catalogue.find_site(options.config, [home.root]))
            kept = parts(found, environment(home, os.environ), serving=options.serving, listen=options.listen)
            return asyncio.run(keep(Keeper(home, kept), options.parent_pipe))
    except (ConfigError, AlreadyRunning, OSError) as wrong:
        _say(str(wrong))
        return CONFIG_ERROR


if __name__ == "__main__":
    sys.exit(main())
