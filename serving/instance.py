"""One vLLM process group: started, watched until it answers, stopped so that nothing of it is left.

Knows its command, its socket and its log; it does not know why it is wanted or when to start it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from serving import probe, processes, reasons
from serving.command import Command
from serving.home import SOCKET_PATH_LIMIT, Home
from serving.probe import ProbeError, Target

State = Literal[
    "waiting", "environment", "weights", "starting", "ready", "stalled", "draining", "stopping", "stopped", "failed",
    "asleep", "waking", "unreachable", "wrong key",
]  # fmt: skip
"""What an instance is doing; requests go only to those that are `ready`, and wait for what is `asleep` or `waking`.

| state         | means                                                              | goes on to             |
|---------------|--------------------------------------------------------------------|------------------------|
| `waiting`     | its turn has not come, or it is started again after a pause        | environment, starting  |
| `environment` | the engine's environment is being made                             | weights, failed        |
| `weights`     | its weights are being fetched or built                             | starting, failed       |
| `starting`    | the process runs and has not answered yet                          | ready, waiting, failed |
| `ready`       | a one-token completion was answered                                | stalled, draining, waiting |
| `stalled`     | nothing moves and a one-token probe fails, or it was stopped       | ready, waiting         |
| `draining`    | it takes no new requests and finishes those it has                 | stopping               |
| `stopping`    | the group is being ended                                           | stopped                |
| `stopped`     | nothing of it is left                                              |                        |
| `failed`      | it cannot run; the detail says why and what to do                  | waiting                |
| `asleep`      | it runs by demand and gives its place up, or has none: no requests | waking                 |
| `waking`      | a request waits for it, and it starts or wakes up                  | ready, failed          |
| `unreachable` | an attached server does not answer                                 | ready                  |
| `wrong key`   | an attached server refuses the key                                 | ready                  |
"""

LOG_LIMIT = 20 * 1024 * 1024
TAIL_BYTES = 64 * 1024
FIRST_TOKEN_S = 120.0
"""The first completion compiles kernels."""
UUID_BYTES = 37
"""What vLLM adds to the folder it is given for its own sockets: a slash and a UUID."""
_NAME_LIMIT = 48


class InstanceError(Exception):
    """It does not run; the text says why. `lasting`: another start without a change would end the same."""

    def __init__(self, reason: str, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def file_name(name: str) -> str:
    """A model's name as the name of its log and socket: the same where it is plain and short."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    if plain == name and len(name) <= _NAME_LIMIT:
        return name
    return f"{plain[:_NAME_LIMIT]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def socket_path(home: Home, name: str) -> Path:
    """Where the instance called `name` listens. Its folder is open to the owner alone."""
    return home.socket(f"engine-{file_name(name)}")


def log_path(home: Home, name: str) -> Path:
    """Where the instance called `name` writes its log."""
    return home.logs / f"{file_name(name)}.log"


def log_tail(home: Home, name: str, count: int) -> list[str]:
    """The last `count` lines of its log, none where there is no log yet."""
    return _tail(log_path(home, name), 0).splitlines()[-count:]


class Instance:
    """One process group that serves one model on a Unix socket."""

    def __init__(self, name: str, command: Command, home: Home, installation: str) -> None:
        self.name = name
        self.state: State = "waiting"
        self.detail = ""
        self.socket = socket_path(home, name)
        self.log = log_path(home, name)
        self._scratch = self.socket.with_suffix(".d")
        """vLLM's sockets between its own processes; it leaves them where it made them."""
        self.target = Target(f"unix:{self.socket}")
        self.served = ""
        """The model's name as the engine itself lists it."""
        self.context = 0
        """Tokens, as the engine itself says; 0 is unknown."""
        self._command = command
        self._home = home
        self._installation = installation
        self._process: asyncio.subprocess.Process | None = None
        self._logged_before = 0

    @property
    def pid(self) -> int | None:
        """Of the group's leader, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def log_tail(self, count: int) -> list[str]:
        """The last `count` lines of its log."""
        return _tail(self.log, 0).splitlines()[-count:]

    async def clear(self) -> None:
        """End what an earlier start of this name left: a killed API server leaves its EngineCore behind, and that one
        holds the GPU's memory. Raises InstanceError where it cannot be ended."""
        if left := await self._end_all(0.0):
            raise self._failed(_stuck(left))

    async def start(self) -> None:
        """Start the group. What an earlier start of this name left is ended first. Raises InstanceError."""
        await self.clear()
        self._set("starting", "the engine starts")
        environment = self._command.environment | {
            processes.INSTALLATION: self._installation,
            processes.INSTANCE: self.name,
        }
        if len(os.fsencode(self._scratch)) + UUID_BYTES <= SOCKET_PATH_LIMIT:
            self._scratch.mkdir(mode=0o700, exist_ok=True)
            environment["VLLM_RPC_BASE_PATH"] = str(self._scratch)
        try:
            with self._open_log() as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command.args,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    # `python -m` takes modules from the folder it runs in, so that must be one without any.
                    cwd=self._home.run,
                    start_new_session=True,
                )
        except OSError as broken:
            raise self._failed(f"it cannot be started: {broken}", lasting=True) from broken

    async def ensure_ready(self, timeout_s: float, trouble: Callable[[], str] = str) -> None:
        """Wait until it has answered a one-token completion: an open port alone says little. Raises InstanceError.

        `trouble`: what came up meanwhile that makes waiting useless, or "".
        """
        until = time.monotonic() + timeout_s
        pause, answering = 0.05, False
        ended = asyncio.ensure_future(self.wait())
        try:
            while not await self._answers():
                if ended.done():
                    death = self.death()
                    raise self._failed(death.reason, death.lasting)
                if self.served and not answering:
                    # The server is up; only its first token is missing.
                    answering, until = True, min(until, time.monotonic() + FIRST_TOKEN_S)
                if found := trouble():
                    raise self._failed(found)
                if time.monotonic() > until:
                    told = self.detail if self.served else self._last_line()
                    raise self._failed(f"it was not ready within {timeout_s:g} s; it now says: {told}")
                await asyncio.wait({ended}, timeout=pause)
                pause = min(pause * 1.5, 0.5)
        finally:
            ended.cancel()
        self._set("ready", "")

    async def wait(self) -> None:
        """Until the group's leader ends."""
        if self._process is not None:
            await self._process.wait()

    def death(self) -> reasons.Death:
        """Why it ended, by what it logged since its start."""
        code = None if self._process is None else self._process.returncode
        return reasons.death(code, _tail(self.log, self._logged_before))

    async def stop(self, grace_s: float) -> None:
        """End the whole group and everything that carries this instance's name; remove its socket."""
        if self.state != "failed":
            self._set("stopping", "")
        left = await self._end_all(grace_s)
        if not left:
            await self._reap(grace_s)
        self.socket.unlink(missing_ok=True)
        if left:
            self._set("failed", _stuck(left))
        elif self.state == "stopping":
            self._set("stopped", "")

    async def _end_all(self, grace_s: float) -> list[processes.Process]:
        left: list[processes.Process] = []
        # Looked at again after each round: a child may have been forked between looking and ending.
        for _ in range(5):
            found = processes.ours(self._installation, instance=self.name)
            if not found:
                break
            left = await processes.end(found, grace_s)
            if left:
                return left
        self.socket.unlink(missing_ok=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return left

    async def _reap(self, grace_s: float) -> None:
        """Take the leader's exit status; end its group by our own handle where /proc did not show it as ours."""
        if self._process is None:
            return
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None and self._process.returncode is None:
                # Not reaped yet, so that the group's id cannot have gone to another.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0 if number is None else max(grace_s, 1.0)):
                    await self._process.wait()
                return

    async def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            served = await probe.models(self.target)
        except ProbeError:
            return False
        if not served:
            return False
        self.served, self.context = served[0].name, served[0].context
        self.detail = await probe.one_token(self.target, self.served, FIRST_TOKEN_S)
        return not self.detail

    def _open_log(self) -> _Log:
        self._home.make()
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        return _Log(self.log)

    def _last_line(self) -> str:
        return next((line.strip() for line in reversed(self.log_tail(20)) if line.strip()), "nothing")

    def _failed(self, reason: str, lasting: bool = False) -> InstanceError:
        self._set("failed", reason)
        return InstanceError(reason, lasting)

    def _set(self, state: State, detail: str) -> None:
        self.state, self.detail = state, detail


class _Log:
    """The log as a file descriptor to hand to a process, readable by the owner alone."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _stuck(left: Sequence[processes.Process]) -> str:
    pids = ", ".join(str(process.pid) for process in left)
    return f"processes {pids} hang in the kernel and cannot be ended; restart the machine"


def _tail(path: Path, start: int) -> str:
    """The end of a file, from byte `start` on at the earliest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A file shorter than before was replaced; all of it is new.
            begin = start if start <= size else 0
            file.seek(max(begin, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
