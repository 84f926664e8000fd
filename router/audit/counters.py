"""What the kernel counts of the door's network namespace, read from /proc; and whether nobody else is in it.

The counters are those of a namespace. Where the door shares it with other programs, as it does without a container,
they count those as well and say nothing of the door: then a sample says so, and the kernel is no witness.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from router.audit.overhead import Counted

PROC = Path("/proc/self")
TABLES = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
DOCKER_DNS = "0B00007F"
"""127.0.0.11 as the tables write it: Docker's name server listens in each container's namespace."""
LOOPBACK = "lo"
AGAIN_S = 0.05
"""From one look at the sockets to the next: one of ours that is just being closed is gone by then."""


class CountersError(Exception):
    """The kernel's counters cannot be read here; the text says why."""


class Interval(NamedTuple):
    """What was counted from one sample to the next of the same namespace, with nobody else in it at either."""

    start: float
    end: float
    counted: Counted


def interfaces(dev: str) -> dict[str, list[int]]:
    """Of each interface but loopback, bytes and packets sent, then received: out of /proc/PID/net/dev."""
    found = {}
    for line in dev.splitlines():
        name, colon, rest = line.partition(":")
        numbers = rest.split()
        if colon and name.strip() != LOOPBACK and len(numbers) >= 10:
            found[name.strip()] = [int(numbers[i]) for i in (8, 9, 0, 1)]
    return found


def protocols(snmp: str, snmp6: str) -> dict[str, int]:
    """Connections begun, datagrams sent and segments sent again: out of /proc/PID/net/snmp and snmp6.

    Those begun are written down for whoever looks into a difference; nothing is allowed for them.
    """
    rows: dict[str, list[str]] = {}
    values = dict[str, str]()
    for line in snmp.splitlines():
        name, _, rest = line.partition(": ")
        if name in rows:
            values.update(zip((f"{name}{n}" for n in rows[name]), rest.split(), strict=False))
        else:
            rows[name] = rest.split()
    values.update((pair[0], pair[1]) for line in snmp6.splitlines() if len(pair := line.split()) == 2)
    datagrams = int(values.get("UdpOutDatagrams", 0)) + int(values.get("Udp6OutDatagrams", 0))
    return {
        "connections": int(values.get("TcpActiveOpens", 0)), "datagrams": datagrams,
        "again": int(values.get("TcpRetransSegs", 0)),
    }  # fmt: skip


def sockets(table: str) -> set[str]:
    """The inodes of a table of sockets that belong to a program, without those of Docker's name server."""
    found = set()
    for line in table.splitlines()[1:]:
        cells = line.split()
        if len(cells) > 9 and cells[9] != "0" and not cells[1].startswith(DOCKER_DNS):
            found.add(cells[9])
    return found


def read(proc: Path = PROC) -> dict[str, Any]:
    """One sample, as it is written down. Blocks for a moment. Raises CountersError."""
    try:
        first = _foreign(proc)
        if first:
            time.sleep(AGAIN_S)
            first &= _foreign(proc)
        counted = interfaces((proc / "net/dev").read_text())
        found = protocols((proc / "net/snmp").read_text(), _text(proc / "net/snmp6"))
        where = str((proc / "ns/net").readlink())
        return {"read_at": time.time(), "namespace": where, "alone": not first, "interfaces": counted, **found}
    except (OSError, ValueError) as broken:
        raise CountersError(f"the kernel's counters cannot be read: {broken}") from broken


def _foreign(proc: Path) -> set[str]:
    """Sockets of this namespace that are none of this process's."""
    found = set[str]()
    for name in TABLES:
        found |= sockets(_text(proc / "net" / name))
    own = set()
    for file in (proc / "fd").iterdir():
        try:
            own.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found - own


def _text(path: Path) -> str:
    """Nothing where there is no such table: a kernel without IPv6 has none of its."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def intervals(samples: Iterator[Mapping[str, Any]]) -> Iterator[Interval]:
    """What was counted from each sample to the next; nothing where counters began anew, or the door is not alone."""
    before: Mapping[str, Any] | None = None
    for sample in samples:
        if before is not None and before["alone"] and sample["alone"] and sample["read_at"] > before["read_at"]:
            counted = _between(before, sample)
            if counted is not None:
                yield Interval(before["read_at"], sample["read_at"], counted)
        before = sample


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Counted | None:
    same = all(before[name] == after[name] for name in ("boot", "namespace"))
    if not same or before["interfaces"].keys() != after["interfaces"].keys():
        return None
    pairs = [(numbers, after["interfaces"][name]) for name, numbers in before["interfaces"].items()]
    sent, packets = ([new[i] - old[i] for old, new in pairs] for i in (0, 1))
    datagrams, again = (after[name] - before[name] for name in ("datagrams", "again"))
    if min([*sent, *packets, datagrams, again]) < 0:
        return None
    return Counted(sum(sent), sum(packets), datagrams, again, after["read_at"] - before["read_at"])
