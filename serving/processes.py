"""The processes of this installation, found by the id they carry in their environment, and how they are ended.

The one place of serving/ that signals a process. It signals nothing without that id, however a process is called and
whatever port or GPU it holds. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

INSTALLATION = "HEADGATE_INSTALLATION"
INSTANCE = "HEADGATE_INSTANCE"

KILL_WAIT_S = 20.0
"""After SIGKILL: a process can hang in the kernel for a while as a driver gives back its memory."""

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process that is ours. `start` (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    start: int
    name: str
    instance: str
    """The instance it belongs to; empty for those that are no engine."""


@dataclass(frozen=True, slots=True)
class _Stat:
    name: str
    state: str
    parent: int
    group: int
    start: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Sign:
    """What the kernel says of a living process now."""

    stopped: bool
    """Somebody stopped it (SIGSTOP), so it does nothing. A debugger that looks is something else."""
    cpu_s: float
    """Seconds of CPU that it has used, over all its threads."""


def ours(installation: str, *, instance: str | None = None) -> list[Process]:
    """All living processes of this installation, or those of one instance; never this process or its ancestors."""
    spared = _self_and_ancestors()
    found = []
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if not entry.name.isdigit() or (pid := int(entry.name)) in spared:
            continue
        # The start time is read on both sides of the environment, so that both belong to one process.
        before, environment, after = _stat(pid), _environment(pid), _stat(pid)
        if before is None or after is None or before.start != after.start or _gone(after):
            continue
        if not installation or environment.get(INSTALLATION) != installation:
            continue
        belongs = environment.get(INSTANCE, "")
        if instance is None or belongs == instance:
            found.append(Process(pid, after.start, after.name, belongs))
    return found


def find(pid: int) -> Process | None:
    """The living process `pid`, with the start time that tells it from a later one of that number."""
    found = _stat(pid)
    if found is None or _gone(found):
        return None
    return Process(pid, found.start, found.name, _environment(pid).get(INSTANCE, ""))


def alive(process: Process) -> bool:
    """Whether it still runs. A zombie does not: it holds nothing but its exit code."""
    found = _stat(process.pid)
    return found is not None and found.start == process.start and not _gone(found)


def sign(process: Process) -> Sign | None:
    """How a process is; None where it has ended. Costs one small read."""
    found = _stat(process.pid)
    if found is None or found.start != process.start or _gone(found):
        return None
    return Sign(found.state == "T", found.cpu_s)


async def end(processes: Iterable[Process], grace_s: float) -> list[Process]:
    """SIGTERM, then after `grace_s` seconds SIGKILL, and wait until all are gone.

    Returns those that would not go (stuck in the kernel), normally none.
    """
    left = [process for process in processes if alive(process)]
    _signal(left, signal.SIGTERM)
    left = await _wait(left, grace_s)
    _signal(left, signal.SIGKILL)
    return await _wait(left, KILL_WAIT_S)


async def _wait(processes: list[Process], limit_s: float) -> list[Process]:
    until = time.monotonic() + limit_s
    pause = 0.01
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < until:
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    return left


def _signal(processes: list[Process], number: signal.Signals) -> None:
    """Signal whole groups where the leader is among `processes`, and the rest one by one."""
    leaders = set()
    for process in processes:
        found = _stat(process.pid)
        if found is not None and found.start == process.start and found.group == process.pid:
            leaders.add(process.pid)
            _quietly(os.killpg, process.pid, number)
    for process in processes:
        found = _stat(process.pid)
        if found is not None and found.start == process.start and found.group not in leaders:
            _quietly(os.kill, process.pid, number)


def _quietly(call: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        call(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        # It took another user's rights since; it is no longer ours to end.
        pass


def _gone(stat: _Stat) -> bool:
    return stat.state in "ZX"


def _self_and_ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        stat = _stat(pid)
        pid = stat.parent if stat else 0
    return found


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in brackets and may itself hold brackets and spaces: cut at the last one.
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    if len(fields) < 20:
        return None
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
    return _Stat(head.partition("(")[2], fields[0], int(fields[1]), int(fields[2]), int(fields[19]), cpu_s)


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
