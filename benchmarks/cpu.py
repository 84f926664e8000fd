"""CPU time and memory of processes, from /proc. CPU time holds still where speed does not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
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
