"""`python -m benchmarks.overhead`: what a request costs on its way through Headgate, against nginx in the same run.

The figure is CPU time of the gateway's own processes per request and per chunk of a stream: on a machine that is shared
and noisy it is the one that holds still. Rounds of both are interleaved, so that what disturbs one disturbs the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import closed, cpu, machine, nginx
from benchmarks.asking import Asking
from benchmarks.figures import Case, Figure, Reading, figures
from benchmarks.installation import ROOT, Installation, Stop, answers, free_port, own
from router.commands.context import console, table
from serving.probe import ProbeError

SETTLE_S = 0.3
"""After a load: what the ledger still has to write belongs to it."""
WARM_S = 1.0
IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Target:
    """What the load goes to, and the processes whose CPU is counted, by part."""

    name: str
    asking: Asking
    processes: Callable[[], Mapping[int, str]]


def measure(case: Case, target: Target, seconds: float, folder: Path) -> Reading:
    """One round. Raises Stop where nothing was answered."""
    asking = dataclasses.replace(target.asking, stream=bool(case.streams))
    before = cpu.seconds(target.processes())
    if case.streams:
        done = closed.done(asyncio.run(closed.ask_times(asking, case.connections, case.streams)))
    elif closed.has_wrk():
        done = closed.wrk(asking, case.connections, seconds, folder)
    else:
        done = closed.done(asyncio.run(closed.keep_asking(asking, case.connections, seconds)))
    time.sleep(SETTLE_S)
    parts = target.processes()
    used = cpu.between(before, cpu.seconds(parts))
    if not done.requests:
        raise Stop(f"{target.name} answered none of the requests of {case.name}")
    by_part: dict[str, float] = {}
    for pid, spent in used.items():
        by_part[parts[pid]] = by_part.get(parts[pid], 0.0) + spent
    return Reading(case.name, target.name, done.requests * (case.pieces or 1), by_part, done)


def rounds(
    cases: Sequence[Case], targets: Sequence[Target], count: int, seconds: float, folder: Path
) -> Iterator[Reading]:
    """Every case at every target, over and over; every other round in the opposite order."""
    for number in range(count):
        for case in cases:
            for target in targets if number % 2 == 0 else reversed(targets):
                yield measure(case, target, seconds, folder)


@contextlib.contextmanager
def upstream(chunks: int, chunk_size: int, pause_ms: float, size: int) -> Iterator[int]:
    """The fixed upstream as a process of its own; its port. Raises Stop."""
    port = free_port()
    args = [f"--port={port}", f"--chunks={chunks}", f"--chunk-size={chunk_size}", f"--pause-ms={pause_ms}",
            f"--size={size}"]  # fmt: skip
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.upstream", *args], cwd=ROOT)
    try:
        until = time.monotonic() + 10
        while not answers(port):
            if child.poll() is not None or time.monotonic() > until:
                raise Stop("the upstream of the benchmark does not start; see the lines above")
            time.sleep(0.02)
        yield port
    finally:
        child.terminate()
        child.wait(10)


def idle(headgate: Installation) -> dict[str, float]:
    """CPU milliseconds a second of each part while nothing is asked."""
    parts = headgate.processes()
    before = cpu.seconds(parts)
    time.sleep(IDLE_S)
    found: dict[str, float] = {}
    for pid, spent in cpu.between(before, cpu.seconds(parts)).items():
        found[parts[pid]] = found.get(parts[pid], 0.0) + spent / IDLE_S * 1000
    return found


def accounted(headgate: Installation) -> int | None:
    """Requests that the router has ended and written down, by its own metrics."""
    try:
        text = headgate.metrics()
    except ProbeError:
        return None
    return int(sum(float(n) for n in re.findall(r"^headgate_requests_total\{[^}]*\} (\S+)$", text, re.MULTILINE)))


def _since(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to JSON. Raises Stop."""
    count, seconds = (3, 2.0) if options.quick else (5, 6.0)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hg-bench-")))
        port = stack.enter_context(upstream(options.chunks, options.chunk_size, options.pause_ms, options.size))
        front = stack.enter_context(nginx.running(port, folder))
        headgate = stack.enter_context(own("--attach", f"http://127.0.0.1:{port}"))
        asking = Asking(url="", key=headgate.key(), model="bench", prompt_words=20, max_tokens=64)

        def to(url: str) -> Asking:
            return dataclasses.replace(asking, url=url)

        targets = [
            Target("direct", to(f"http://127.0.0.1:{port}"), dict),
            Target("nginx", to(front.url), lambda: dict.fromkeys(front.pids, "nginx")),
            Target("headgate", to(headgate.url), headgate.processes),
        ]
        pieces = options.chunks + 2
        cases = [Case("1 connection", 1), Case("32 connections", 32),
                 Case("32 streams", 32, 6 if options.quick else 12, pieces)]  # fmt: skip
        for target in targets:
            measure(cases[1], target, WARM_S, folder)
        resting, before = idle(headgate), accounted(headgate)
        readings = list(rounds(cases, targets, count, seconds, folder))
        resident = {part: cpu.resident_mb(pid) for pid, part in headgate.processes().items()}
        sent = sum(r.done.requests for r in readings if r.target == "headgate")
        return {
            "kind": "overhead", "machine": machine.describe(), "nginx": front.version, "quick": options.quick,
            "load": "wrk" if closed.has_wrk() else "own client", "rounds": count, "seconds": seconds,
            "upstream": {n: getattr(options, n) for n in ("size", "chunks", "chunk_size", "pause_ms")},
            "figures": [dataclasses.asdict(f) for f in figures(cases, readings)],
            "idle_cpu_ms_per_s": resting, "resident_mb": resident,
            "answered_through_headgate": sent, "accounted_for": _since(before, accounted(headgate)),
            "readings": [dataclasses.asdict(r) for r in readings],
        }  # fmt: skip


def show(result: Mapping[str, Any]) -> None:
    """Print the figures."""
    out = console()
    out.print(f"{machine.sentence(result['machine'])}; {result['nginx']}; medians of {result['rounds']} rounds")
    rows = table(
        "load", "through", "CPU us", "a", "range", "x nginx", "a second", "p50 ms", "p99 ms", "added p50", whole=2
    )
    last = ""
    for f in (Figure(**entry) for entry in result["figures"]):
        span = "-" if f.lowest is None else f"{f.lowest:.0f}-{f.highest:.0f}"
        rows.add_row(
            "" if f.case == last else f.case, f.target, _cell(f.cpu_us, 0), f.unit, span, _cell(f.ratio, 1),
            _cell(f.per_s, 0), _cell(f.p50_ms, 2), _cell(f.p99_ms, 2), _cell(f.added_p50_ms, 2),
        )  # fmt: skip
        last = f.case
    out.print(rows)
    out.print("times of streams are those of the first token; CPU of the upstream and of the load is not counted")
    spent = ", ".join(f"{part} {value:.1f}" for part, value in sorted(result["idle_cpu_ms_per_s"].items()))
    held = ", ".join(f"{part} {value:.0f}" for part, value in sorted(result["resident_mb"].items()))
    out.print(f"at rest, CPU ms a second: {spent}; resident MB: {held}")
    out.print(
        f"{result['answered_through_headgate']} answered through Headgate, {result['accounted_for']} accounted for"
    )


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: under two minutes")
    parser.add_argument("--size", type=int, default=330, help="bytes of an answer that is no stream")
    parser.add_argument("--chunks", type=int, default=100, help="chunks of a stream")
    parser.add_argument("--chunk-size", type=int, default=190, help="bytes of a chunk")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between two chunks")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and draw. Returns 1 where it cannot."""
    from benchmarks import picture

    options = _options(arguments)
    try:
        picture.check()
        result = run(options)
        show(result)
        picture.publish(result, options.out)
    except (Stop, OSError) as stopped:
        print(f"benchmarks.overhead: {stopped}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
