"""`python -m benchmarks.simulate`: a day of a fleet that does not stand here, through the router's own decisions.

8 to 512 GPUs, and the four routers of the overflow benchmark side by side: what each saves and how long people wait.
Deciding, queueing and learning are the router's own code (`cell.py`), engines are made up (`replica.py`) after what was
measured or given. `--check RESULT` runs the overflow benchmark's own load instead, and holds it against what was
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import charts, machine
from benchmarks.against import checked, show_check
from benchmarks.day import Day
from benchmarks.fleet import Fleet, days_of
from benchmarks.installation import Stop
from benchmarks.program import published, shown, told
from benchmarks.replica import Profile, profile_of
from benchmarks.scene import Far
from benchmarks.spill import ALLOWED_S, DEADLINE_S, TARGET_S
from router.commands.context import console, table

GIVEN = Profile(
    prefill_per_s=80_000, decode=((1, 140), (52, 3_800), (108, 7_000), (128, 8_000)), at_once=128, limit=256,
    chunk=8192, kv_tokens=400_000, overhead_s=0.02,
)  # fmt: skip
"""An 8B model in FP8 on one H100. Not measured: the order of two published points (1024/128 tokens at 108 users,
2048/2048 at 52), of which reading and writing were told apart by assuming how fast prompts are read."""
GPU_HOUR_USD = 2.69
HOSTED_USD = (0.10, 0.50)
"""A million tokens in and out: the list price of gpt-6-luna in November 2026."""


def run(fleet: Fleet, jobs: int) -> dict[str, Any]:
    """Everything, as it is written to JSON."""
    began = time.monotonic()
    days = days_of(fleet, jobs)
    return {
        "kind": f"simulate-{fleet.gpus}gpus", "machine": machine.describe(), "fleet": asdict(fleet),
        "target_s": TARGET_S, "days": days, "took_s": time.monotonic() - began,
    }  # fmt: skip


def show(fleet: Fleet, result: Mapping[str, Any]) -> None:
    """Print the routers side by side."""
    out, day = console(), fleet.day
    out.print(
        f"{fleet.gpus} GPUs, {fleet.engines} engines; {day.requests() / 1e6:.2f} million requests a day, at the peak "
        f"{day.peak:.0f} a second, {day.peak / fleet.capacity:.2f} times what the engines get done; "
        f"{day.private:.0%} private, {day.batch:.0%} with time"
    )
    out.print(
        f"of each hour {fleet.window_s:g} s after {fleet.warm_s:g} s to warm up, of the fleet one of {fleet.cells:g} "
        f"cells of {fleet.cell} engines; seed {fleet.seed}"
    )
    rows = table(
        "router", "answered", "hosted", "in time", "public p50", "p95", "p99", "private p50", "p95", "p99", "batch p95",
        "tokens of max", "hosted $", "GPUs $", "the same hosted $", "saved $ a day",
    )  # fmt: skip
    for found in result["days"]:
        rows.add_row(
            found["router"], f"{found['answered']:.1%}", f"{found['hosted_all']:.1%}", f"{found['in_time']:.1%}",
            *map(shown, found["public"]["first_s"].values()), *map(shown, found["private"]["first_s"].values()),
            shown(found["batch_first_p95_s"]), f"{found['of_maximum']:.0%}", f"{found['hosted_usd']:,.0f}",
            f"{found['gpu_usd']:,.0f}", f"{found['instead_usd']:,.0f}", f"{found['saved_usd']:,.0f}",
        )  # fmt: skip
    out.print(rows)
    out.print(
        "seconds to the first token of interactive requests, of all that were asked (-: so many were not answered); "
        f"in time: within {TARGET_S:g} s; saved: what all answers given would cost hosted, less what was hosted and "
        "the GPUs' hours"
    )
    out.print(f"simulated in {result['took_s']:.1f} s")


def fleet_of(options: argparse.Namespace) -> Fleet:
    """What the command line asks for. Raises Stop, OSError."""
    profile = GIVEN if options.engine is None else _engine(options.engine)
    engines = options.gpus // profile.gpus
    if engines < 1 or options.peak <= 0 or options.window <= 0:
        raise Stop("--gpus holds one engine at least; --peak and --window are above 0")
    day = Day(0.0, options.swing, options.private, options.batch, prompt=options.prompt, output=options.output)
    fleet = Fleet(
        profile, engines * profile.gpus, min(options.cell, engines), day,
        Far(input=options.price[0], output=options.price[1]), options.window, options.warm, options.seed,
        options.gpu_hour, options.allowed, options.deadline,
    )  # fmt: skip
    return replace(fleet, day=replace(day, peak=options.peak * fleet.capacity))


def _engine(file: Path) -> Profile:
    """What a file says of an engine. Raises Stop, OSError."""
    document = _json(file)
    try:
        return profile_of(document.get("engine", document))
    except (ValueError, AttributeError) as wrong:
        raise Stop(f"{file.name}: {wrong}") from wrong


def _json(file: Path) -> Any:
    """Raises Stop, OSError."""
    try:
        return json.loads(file.read_text())
    except ValueError as wrong:
        raise Stop(f"{file.name} is not JSON: {wrong}") from wrong


def check(file: Path) -> bool:
    """Simulate the load of a result, and print both. Raises Stop, OSError."""
    result = _json(file)
    if result.get("kind") != "overflow":
        raise Stop(f"{file.name} is no result of benchmarks.overflow with a scripted provider")
    show_check(result, checked(result))
    return True


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--check", type=Path, metavar="RESULT", help="hold it against a result of benchmarks.overflow")
    parser.add_argument("--engine", type=Path, help="such a result, or a file of the form of its `engine`")
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--cell", type=int, default=4, help="engines that are simulated together")
    parser.add_argument("--peak", type=float, default=1.6, help="the busiest hour, of what the engines get done")
    parser.add_argument("--swing", type=float, default=0.6, help="0: the same all day")
    parser.add_argument("--private", type=float, default=0.4, help="share of requests that stay")
    parser.add_argument("--batch", type=float, default=0.15, help="share of requests that have time")
    parser.add_argument("--prompt", type=float, default=1500, help="tokens on average")
    parser.add_argument("--output", type=float, default=300, help="tokens on average")
    parser.add_argument("--window", type=float, default=20, help="seconds of each hour that are simulated")
    parser.add_argument("--warm", type=float, default=60, help="seconds before them that are not counted")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gpu-hour", type=float, default=GPU_HOUR_USD, help="US dollars an hour of one GPU, all in")
    parser.add_argument("--price", type=float, nargs=2, default=HOSTED_USD, help="hosted, in and out a million tokens")
    parser.add_argument("--allowed", type=float, default=ALLOWED_S, help="router.allowed_wait_s")
    parser.add_argument("--deadline", type=int, default=DEADLINE_S, help="router.queue_wait_s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate what the command line says. Returns 1 where it cannot."""
    options = _options(arguments)
    if options.check:
        return 0 if told("simulate", lambda: check(options.check)) else 1
    fleet = told("simulate", lambda: fleet_of(options))
    if fleet is None:
        return 1
    day = published(
        "simulate", lambda: run(fleet, options.jobs), lambda result: show(fleet, result), charts.simulate, options.out
    )
    return 0 if day else 1


if __name__ == "__main__":
    sys.exit(main())
