"""CPU time, memory and cores of processes, from /proc. CPU time holds still where speed does not."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

_PROC = Path("/proc")


def ticks(stat: str) -> int:
    """User and system time of a process in clock ticks: fields 14 and 15 of /proc/PID/stat (proc(5)).

    The sum is over all its threads, living and ended. Raises ValueError where this is no such line.
    """
    # The name stands in brackets and may itself hold brackets and spaces: cut at the last one.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 13:
        raise ValueError("this is no line of /proc/PID/stat")
    return int(fields[11]) + int(fields[12])


def seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each process so far. One that has ended is left out."""
    per_second = os.sysconf("SC_CLK_TCK")
    found = {}
    for pid in pids:
        try:
            found[pid] = ticks((_PROC / str(pid) / "stat").read_text(errors="replace")) / per_second
        except (OSError, ValueError):
            continue
    return found


def between(before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, float]:
    """CPU seconds each process used in between; one that began in between counts whole.

    Raises ValueError where one of the first reading is missing in the second: what it used is unknown.
    """
    if gone := sorted(before.keys() - after.keys()):
        raise ValueError(f"processes ended while they were measured: {gone}")
    return {pid: value - before.get(pid, 0.0) for pid, value in after.items()}


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process in MB of 10^6 bytes; None where it has ended. Shared pages count in each."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", (_PROC / str(pid) / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 / 1e6 if found else None


def total_mb(pids: Iterable[int]) -> float:
    """Resident memory of them all together; those that have ended count nothing."""
    return sum(held for pid in pids if (held := resident_mb(pid)) is not None)


def count_files(pid: int) -> int:
    """Open descriptors of a process; 0 where it has ended."""
    return _entries(pid, "fd")


def count_threads(pid: int) -> int:
    """Threads of a process; 0 where it has ended."""
    return _entries(pid, "task")


def count_sockets(pid: int) -> int:
    """Descriptors that are sockets; 0 where it has ended."""
    found = 0
    with contextlib.suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found += str(entry.readlink()).startswith("socket:")
    return found


def _entries(pid: int, folder: str) -> int:
    try:
        return sum(1 for _ in (_PROC / str(pid) / folder).iterdir())
    except OSError:
        return 0


def cores() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def first_core() -> Iterator[Callable[[Iterable[int]], None]]:
    """Run on the first core, so that an engine that is started now sees one and makes as many threads.

    What is yielded then moves this process, and those it is given, to the other cores. Where there is but one all of
    them stay on it.
    """
    own, all_of_them = os.getpid(), cores()
    pin([own], all_of_them[:1])
    try:
        yield lambda pids: pin([own, *pids], all_of_them[1:] or all_of_them)
    finally:
        pin([own], all_of_them)


def pin(pids: Iterable[int], wanted: Iterable[int]) -> None:
    """Keep these processes, with all threads they have, on the cores `wanted`. What they start later stays there too.

    Nothing is lost by it that is not given back by calling it again; one that has ended is passed over.
    """
    chosen = set(wanted)
    for pid in pids:
        try:
            threads = [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]
        except OSError:
            continue
        for thread in threads:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, chosen)


@contextlib.contextmanager
def apart(gateways: Iterable[int], others: Iterable[int]) -> Iterator[bool]:
    """Gateways on the first core, `others` and this process on the rest. False, and nothing done, where there is one.

    Load, upstream and gateway then do not wait for each other's turn, and what is measured is the gateway's own delay.
    """
    all_cores, gateways, others = cores(), list(gateways), [os.getpid(), *others]
    if len(all_cores) < 2:
        yield False
        return
    pin(gateways, all_cores[:1])
    pin(others, all_cores[1:])
    try:
        yield True
    finally:
        pin([*gateways, *others], all_cores)
