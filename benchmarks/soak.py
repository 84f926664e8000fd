"""`python -m benchmarks.soak`: ten minutes of callers of whom a third leave, and whether anything grows meanwhile.

A real Headgate in front of the fixed upstream is asked at an even rate, streamed and not; callers leave before the
first token, in the middle, and while they wait for a whole answer. Sampled are memory, descriptors, sockets, threads
and what the router says of itself. It ends with 1 where memory grows, where something stays open, or where the ledger
did not close every request it opened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import charts, cpu, machine, wire
from benchmarks.asking import Asking
from benchmarks.gateways import Gateway, of_headgate, upstream
from benchmarks.installation import Installation, own
from benchmarks.leaks import NOTHING, Callers, Sample, Written, leaks, memory_slope, unaccounted
from benchmarks.openloop import Kind, OpenLoop, Sent
from benchmarks.program import published
from benchmarks.samples import BEHIND_S
from benchmarks.upstream import LATE, LATE_S
from router.commands.context import console
from router.ledger.store import connect
from serving import probe
from serving.probe import ProbeError, Target

CHUNKS, PAUSE_MS = 20, 10.0
IDLE_S = 5.0
"""The upstream closes a connection that is idle for so long, as vLLM does; what is pooled is then gone at the end."""
SETTLE_S = IDLE_S * 3
"""After the load: what callers left behind must be gone by then."""
LEFT, FAILED, ANSWERED = "left", "failed", "answered"


def kinds(target: Gateway) -> list[tuple[str, Kind]]:
    """What is asked, with its share and its name: 30 % leave."""

    def of(stream: bool, share: float, leaves: tuple[float, float] | None = None, words: str = "") -> Kind:
        asking: Asking = target.asking(words, stream)
        return Kind(wire.place(asking), share, leaves)

    lasts = CHUNKS * PAUSE_MS / 1000
    return [
        ("streamed", of(True, 0.35)),
        ("whole", of(False, 0.35)),
        ("leaves before the first token", of(True, 0.1, (0.0, LATE_S * 0.8), LATE)),
        ("leaves within a stream", of(True, 0.1, (lasts * 0.1, lasts * 0.8))),
        ("leaves before a whole answer", of(False, 0.1, (0.0, LATE_S * 0.8), LATE)),
    ]


@dataclasses.dataclass(slots=True)
class Tally:
    """How the requests ended for their callers, by kind."""

    names: Sequence[str]
    ends: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    sent: int = 0
    late: int = 0
    """Sent more than BEHIND_S after their time."""

    def add(self, one: Sent) -> None:
        self.sent += 1
        self.late += one.heard is not None and one.heard.sent - one.due > BEHIND_S
        good = one.heard is not None and one.heard.good
        self.ends[self.names[one.kind], LEFT if one.left else ANSWERED if good else FAILED] += 1

    def of(self, end: str) -> int:
        return sum(count for (_, how), count in self.ends.items() if how == end)


async def sample(headgate: Installation, began: float) -> Sample:
    """All that can be seen of the router now; of several workers together."""
    pids = [pid for pid, part in headgate.processes().items() if part == "router"]
    try:
        said = await probe.metrics(Target(f"unix:{headgate.home.socket('admin')}"))
    except ProbeError:
        said = ""
    return Sample(
        at_s=time.monotonic() - began, resident_mb=cpu.total_mb(pids),
        descriptors=sum(map(cpu.count_files, pids)), sockets=sum(map(cpu.count_sockets, pids)),
        threads=sum(map(cpu.count_threads, pids)), open=total(said, "headgate_requests_open"),
        tasks=total(said, "headgate_tasks"),
    )  # fmt: skip


WRITTEN = """
SELECT sum(o > 0), sum(c > 0), sum(r > 0), sum(o > c), sum(c > 1 OR c > o) FROM (SELECT sum(kind = 'opened') o,
sum(kind = 'closed') c, sum(kind = 'refused') r FROM events GROUP BY request)
"""


def written(ledger: Path) -> Written:
    """What the ledger's file says of all requests."""
    with contextlib.closing(connect(ledger, read_only=True)) as db:
        return Written(*(count or 0 for count in db.execute(WRITTEN).fetchone()))


def total(metrics: str, name: str) -> int | None:
    """The sum of all series of a metric in a text for Prometheus; None where it has none. Pure."""
    values = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", metrics, re.MULTILINE)
    return int(sum(map(float, values))) if values else None


async def soaked(headgate: Installation, rate: float, seconds: float, every_s: float) -> tuple[list[Sample], Tally]:
    """Load it, sampling meanwhile, and once more when all is quiet again."""
    drawn = kinds(of_headgate(headgate))
    tally, began, samples = Tally([name for name, _ in drawn]), time.monotonic(), list[Sample]()

    async def look() -> None:
        while True:
            samples.append(await sample(headgate, began))
            await asyncio.sleep(every_s)

    watching = asyncio.create_task(look())
    try:
        await OpenLoop([kind for _, kind in drawn], rate).run(seconds, tally.add)
    finally:
        watching.cancel()
    await asyncio.sleep(SETTLE_S)
    samples.append(await sample(headgate, began))
    # What is left at the end of the sends drains away: that is no load, and no rest either.
    return [s for s in samples[:-1] if s.at_s <= seconds] + samples[-1:], tally


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to JSON. Raises Stop."""
    seconds = options.minutes * 60
    warm_s = min(120.0, seconds / 4)
    with (
        upstream(f"--chunks={CHUNKS}", f"--pause-ms={PAUSE_MS}", f"--idle-s={IDLE_S}") as behind,
        own("--attach", behind.url) as headgate,
    ):
        print(f"{options.rate:g} requests a second for {options.minutes:g} minutes", flush=True)
        rest = uvloop.run(sample(headgate, time.monotonic()))
        samples, tally = uvloop.run(soaked(headgate, options.rate, seconds, options.every))
        ledger = written(headgate.home.ledger)
    callers = Callers(tally.sent, tally.of(ANSWERED), tally.of(LEFT), tally.of(FAILED))
    slope = memory_slope(samples[:-1], warm_s)
    return {
        "kind": "soak", "machine": machine.describe(), "rate": options.rate, "minutes": options.minutes,
        "leave_share": callers.left / max(1, callers.sent), "warm_s": warm_s,
        "late_share": tally.late / max(1, tally.sent), "callers": dataclasses.asdict(callers),
        "ledger": dataclasses.asdict(ledger),
        "ends": [{"kind": kind, "end": end, "count": n} for (kind, end), n in sorted(tally.ends.items())],
        "slope_mb_per_h": dataclasses.asdict(slope),
        "leaks": leaks(rest, samples[:-1], samples[-1], slope, warm_s) + unaccounted(callers, ledger),
        "at_rest": dataclasses.asdict(rest), "samples": [dataclasses.asdict(s) for s in samples],
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print what was found."""
    out, slope = console(), result["slope_mb_per_h"]
    callers, ledger = result["callers"], result["ledger"]
    out.print(f"{callers['sent']} sent, {result['leave_share']:.0%} of the callers left; in the ledger "
              f"{ledger['opened']} opened, {ledger['closed']} closed, {ledger['refused']} refused")  # fmt: skip
    for entry in result["ends"]:
        out.print(f"  {entry['kind']}: {entry['count']} {entry['end']}")
    first, last = result["at_rest"], result["samples"][-1]
    for name in ("resident_mb", "descriptors", "sockets", "threads", "open", "tasks"):
        out.print(f"  {name}: {_said(first[name])} before, {_said(last[name])} after")
    if result["late_share"] > 0.1:
        out.print(f"THE GENERATOR FELL BEHIND: {result['late_share']:.0%} of the requests were sent late")
    out.print(f"memory: {slope['value']:+.1f} MB an hour ({slope['low']:+.1f} to {slope['high']:+.1f})")
    out.print("\n".join(result["leaks"]) or NOTHING)


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print, write and draw. Returns 1 where it cannot, and where something leaks."""
    options = _options(arguments)
    result = published("soak", lambda: run(options), show, charts.soak, options.out)
    return 1 if result is None or result["leaks"] else 0


if __name__ == "__main__":
    sys.exit(main())
