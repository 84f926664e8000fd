"""`python -m benchmarks.simulate`: a day of a fleet that does not stand here, through the router's own decisions.

8 to 512 GPUs, and the four routers of the overflow benchmark side by side: what each saves and how long people wait.
Deciding, queueing and learning are the router's own code (`cell.py`), engines are made up (`replica.py`) after what was
measured or given. `--check RESULT` runs the overflow benchmark's own load instead, and holds it against what was
measured.

So that a day takes minutes it is a sample: each hour is a window of some seconds out of its middle, after a minute in
which what an overloaded hour fills is filled, and a fleet is made of equal cells of a few engines, of which one is
simulated with its share of the requests (a Poisson process, thinned, is one). Each hour's window stands for the hour
and the cell for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.against import checked, setup_of, show_check
from benchmarks.cell import Far, simulate
from benchmarks.day import HOURS, Day, traffic
from benchmarks.installation import Stop
from benchmarks.overflow import ROUTERS
from benchmarks.replica import Profile, profile_of
from benchmarks.samples import quantile
from benchmarks.spill import ALLOWED_S, DEADLINE_S, Counted, Row, figures
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


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is simulated."""

    profile: Profile
    gpus: int
    cell: int
    """Engines of a cell."""
    day: Day
    provider: Far
    window_s: float
    warm_s: float
    seed: int
    gpu_hour_usd: float
    allowed_s: float
    deadline_s: int

    @property
    def replicas(self) -> int:
        return self.gpus // self.profile.gpus

    @property
    def cells(self) -> float:
        return self.replicas / self.cell

    @property
    def factor(self) -> float:
        """What a request of a window stands for."""
        return self.cells * 3600 / self.window_s


def hour_of(fleet: Fleet, router: str, hour: int) -> tuple[list[Row], Counted, list[bool], float]:
    """One hour's window: its rows and counts, which of them had time, and what its answers would cost hosted."""
    setup = setup_of(router, fleet.profile, fleet.cell, fleet.provider, fleet.allowed_s, fleet.deadline_s)
    whole = fleet.warm_s + fleet.window_s
    planned = list(traffic(fleet.day, hour, 1 / fleet.cells, whole, fleet.seed))
    rows, counted = simulate(replace(setup, teams=4), planned, whole, fleet.warm_s, seed=fleet.seed)
    mine = [one for one in planned if one.at >= fleet.warm_s]
    asked = sum(fleet.provider.cost(one.prompt, one.output) for one, row in zip(mine, rows, strict=True) if row.good)
    return rows, counted, [one.batch for one in mine], asked


def day_of(fleet: Fleet, router: str, hours: Sequence[tuple[list[Row], Counted, list[bool], float]]) -> dict[str, Any]:
    """What a day comes to with one router. Pure."""
    profile, day = fleet.profile, fleet.day
    maximum = profile.capacity(day.prompt, day.output) * day.output * fleet.cell
    rows = [row for hour in hours for row in hour[0]]
    late = [late for hour in hours for late in hour[2]]
    quick = [[row for row, slow in zip(hour[0], hour[2], strict=True) if not slow] for hour in hours]
    slow = [row for row, slow in zip(rows, late, strict=True) if slow]
    hosted = sum(row.cost for row in rows) * fleet.factor
    gpus = fleet.gpus * fleet.gpu_hour_usd * HOURS
    instead = sum(hour[3] for hour in hours) * fleet.factor
    found = figures(quick, [hour[1] for hour in hours], maximum)
    return {
        "router": router, **found, "answered": sum(row.good for row in rows) / max(1, len(rows)),
        "simulated": len(rows), "stands_for": len(rows) * fleet.factor,
        "hosted_all": sum(row.place == "hosted" for row in rows) / max(1, len(rows)),
        "batch_first_p95_s": quantile([row.first for row in slow if row.first is not None], 0.95),
        "hosted_usd": hosted, "gpu_usd": gpus, "instead_usd": instead, "saved_usd": instead - hosted - gpus,
    }  # fmt: skip


def whole_day(fleet: Fleet, routers: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """All hours with all routers, several at a time."""
    wanted = [(fleet, router, hour) for router in routers for hour in range(HOURS)]
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            found = list(pool.map(hour_of, *zip(*wanted, strict=True), chunksize=4))
    else:
        found = [hour_of(*one) for one in wanted]
    return [day_of(fleet, r, found[n * HOURS : (n + 1) * HOURS]) for n, r in enumerate(routers)]


def show_day(fleet: Fleet, days: Sequence[Mapping[str, Any]]) -> None:
    """Print the routers side by side."""
    out, day, profile = console(), fleet.day, fleet.profile
    top = profile.capacity(day.prompt, day.output) * fleet.replicas
    out.print(
        f"{fleet.gpus} GPUs, {fleet.replicas} engines; {day.requests() / 1e6:.2f} million requests a day, in the "
        f"busiest hour {day.rate(15):.0f} a second, {day.rate(15) / top:.2f} times what the engines get done; "
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
    for found in days:
        public, private = found["public"], found["private"]
        counts = [found["public"]["asked"], found["private"]["asked"]]
        in_time = sum((kind["within"] or 0.0) * n for kind, n in zip((public, private), counts, strict=True))
        rows.add_row(
            found["router"], f"{found['answered']:.1%}", f"{found['hosted_all']:.1%}",
            f"{in_time / max(1, sum(counts)):.1%}", *map(_cell, public["first_s"].values()),
            *map(_cell, private["first_s"].values()), _cell(found["batch_first_p95_s"]), f"{found['of_maximum']:.0%}",
            f"{found['hosted_usd']:,.0f}", f"{found['gpu_usd']:,.0f}", f"{found['instead_usd']:,.0f}",
            f"{found['saved_usd']:,.0f}",
        )  # fmt: skip
    out.print(rows)
    out.print(
        "seconds to the first token of interactive requests, of all that were asked (-: so many were not answered); "
        "saved: what all answers given would cost hosted, less what was hosted and the GPUs' hours"
    )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def fleet_of(options: argparse.Namespace) -> Fleet:
    """What the command line asks for. Raises Stop, OSError."""
    profile = GIVEN
    if options.engine:
        document = json.loads(options.engine.read_text())
        try:
            profile = profile_of(document.get("engine", document))
        except (ValueError, AttributeError) as wrong:
            raise Stop(f"{options.engine.name}: {wrong}") from wrong
    engines = options.gpus // profile.gpus
    if engines < 1 or options.peak <= 0 or options.window <= 0:
        raise Stop("--gpus holds one engine at least; --peak and --window are above 0")
    cell = min(options.cell, engines)
    shape = Day(
        1.0, options.swing, options.private, options.batch, prompt=options.prompt, output=options.output,
    )  # fmt: skip
    top = profile.capacity(shape.prompt, shape.output) * engines
    provider = Far(input=options.price[0], output=options.price[1])
    return Fleet(
        profile, engines * profile.gpus, cell, replace(shape, peak=options.peak * top), provider, options.window,
        options.warm, options.seed, options.gpu_hour, options.allowed, options.deadline,
    )  # fmt: skip


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
    parser.add_argument("--json", type=Path, help="write everything there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate what the command line says. Returns 1 where it cannot."""
    options, began = _options(arguments), time.monotonic()
    try:
        if options.check:
            result = json.loads(options.check.read_text())
            if result.get("kind") != "overflow":
                raise Stop(f"{options.check.name} is no result of benchmarks.overflow with a scripted provider")
            steps = checked(result)
            show_check(result, steps)
            written: dict[str, Any] = {"kind": "simulate-check", "of": options.check.name, "steps": steps}
        else:
            fleet = fleet_of(options)
            days = whole_day(fleet, ROUTERS, options.jobs)
            show_day(fleet, days)
            written = {"kind": "simulate", "fleet": asdict(fleet), "days": days}
        print(f"simulated in {time.monotonic() - began:.1f} s")
        if options.json:
            options.json.write_text(json.dumps(written, indent=1) + "\n")
    except (Stop, OSError, ValueError) as stopped:
        print(f"benchmarks.simulate: {stopped}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
