"""`python -m benchmarks.overflow`: more is asked of a real engine than it can do: four ways to decide what leaves.

An engine alone on a core, everything else on the other; a hosted provider of fixed speed behind the door. First what
the engine can do, then half, one, two and four times as much as an open loop of public and private requests, through
four routers in turn: local only, overflow on the engine's own error, a fixed limit of requests in flight, and the wait
that is predicted. All four are Headgate with different settings.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bare, capacity, charts, cpu, hosted, machine, mix, spill
from benchmarks.bare import Vllm
from benchmarks.gateways import key_file
from benchmarks.goals import overflow_goals
from benchmarks.hosted import Hosted
from benchmarks.installation import own
from benchmarks.offering import Keys, Stand, offered
from benchmarks.program import goal_table, published, say, shown
from benchmarks.routers import LOCAL, ROUTERS, settings_of
from benchmarks.spill import ALLOWED_S, DEADLINE_S, TARGET_S, Counted, Row
from router.commands.context import console, table
from serving.catalogue import DataClass

AT_ONCE, LIMIT = 8, 32
"""Requests the engine works on at the same time, and admits."""
WARM_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each load."""
    loads: tuple[float, ...] = mix.LOADS
    curve_s: float = 4.0
    """Of each closed loop."""


FULL, QUICK = Plan(2, 12.0), Plan(1, 5.0, curve_s=2.0)


def site_of(router: str, engine: Vllm, provider: Mapping[str, Any]) -> dict[str, Any]:
    """The headgate.yaml of one of the four. Pure."""
    known, settings = settings_of(router, engine.at_once, engine.limit)
    attached = {"url": engine.address, "name": engine.name, "limit": known}
    return {"attach": [attached], "router": settings, **({} if router == LOCAL else provider)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to JSON. Raises Stop."""
    began, plan, mark = time.monotonic(), QUICK if options.quick else FULL, hosted.new_mark()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hg-bench-")))
        say("starting a real vLLM on a core of its own")
        leave = stack.enter_context(cpu.first_core())
        engine = stack.enter_context(bare.vllm("here", AT_ONCE, LIMIT))
        leave([])
        points = capacity.curve(engine, plan.curve_s, say)
        reading = capacity.point(engine, engine.at_once, plan.curve_s, 5, reading=True)
        model = capacity.described(points, reading, engine)
        provider = stack.enter_context(_hosted(options.second_engine, mark, model["prompt_tokens"]))
        site = provider.site(key_file(folder))
        headgate = stack.enter_context(own(site=site_of(LOCAL, engine, site)))
        keys = Keys(headgate.new_key("open", DataClass.public), headgate.new_key("kept", DataClass.private), mark)
        stand = Stand(headgate, engine, provider, keys)
        rows, counted, alone_per_s = rounds(plan, stand, model["requests_per_s"], site)
    result = {
        "kind": "overflow-second-engine" if options.second_engine else "overflow",
        "machine": machine.describe(engine.package), "quick": options.quick, **dataclasses.asdict(plan),
        "target_s": TARGET_S, "allowed_s": ALLOWED_S, "deadline_s": DEADLINE_S, "private": mix.PRIVATE,
        "outputs": mix.OUTPUTS, "words": mix.WORDS, "own_core": len(cpu.cores()) > 1, "provider": provider.kind,
        "price": hosted.PRICE, "engine": model, "alone_per_s": alone_per_s, "maximum": statistics.mean(alone_per_s),
        "first_ms": hosted.FIRST_MS, "pause_ms": hosted.PAUSE_MS,
        "steps": [
            {"router": router, "load": load,
             **spill.figures(rows[router, load], counted[router, load], spill.maximum(counted[router, load])),
             "rounds": [dataclasses.asdict(c) for c in counted[router, load]]}
            for router in ROUTERS for load in plan.loads
        ],
    }  # fmt: skip
    return {
        **result, "goals": [dataclasses.asdict(g) for g in overflow_goals(result)], "took_s": time.monotonic() - began
    }  # fmt: skip


def _hosted(second: bool, mark: str, prompt_tokens: int) -> contextlib.AbstractContextManager[Hosted]:
    if not second:
        return hosted.scripted(mark, max(mix.OUTPUTS), prompt_tokens)
    say("starting a second vLLM as the provider, on the other core")
    return hosted.second(mark, 64, 256)


Rows = dict[tuple[str, float], list[list[Row]]]
Counts = dict[tuple[str, float], list[Counted]]


def rounds(
    plan: Plan, stand: Stand, capacity_per_s: float, site: Mapping[str, Any]
) -> tuple[Rows, Counts, list[float]]:  # fmt: skip
    """Every router at every load, every other round in the opposite order; and what the engine alone made before the
    first router, between two of them and after the last one, in tokens a second. Raises Stop."""
    rows: Rows = {(router, load): [] for router in ROUTERS for load in plan.loads}
    counted: Counts = {place: [] for place in rows}
    alone_per_s = [most(stand.engine, plan.curve_s, 0)]
    for number in range(plan.rounds):
        for router in ROUTERS if number % 2 == 0 else reversed(ROUTERS):
            stand.headgate.again(site_of(router, stand.engine, site))
            warm, seed = mix.plan(capacity_per_s / 2, WARM_S, 99), f"{number} {router}"
            # Arrivals are alike for all routers in a round; texts are such as no engine has seen.
            offered(stand, warm, f"{seed} warm", WARM_S)
            counts: list[tuple[float, Counted]] = []
            say(f"round {number + 1} of {plan.rounds}: {router}")
            for load in plan.loads:
                planned = mix.plan(capacity_per_s * load, plan.seconds, seed_of(number, load))
                found, count = offered(stand, planned, f"{seed} {load}", plan.seconds)
                rows[router, load].append(found)
                counts.append((load, count))
            alone_per_s.append(most(stand.engine, plan.curve_s, len(alone_per_s)))
            maximum = statistics.mean(alone_per_s[-2:])
            for load, count in counts:
                counted[router, load].append(dataclasses.replace(count, maximum=maximum))
    return rows, counted, alone_per_s


def most(engine: Vllm, seconds: float, number: int) -> float:
    """Tokens a second that the engine makes alone, with as many more requests waiting as it works on. Raises Stop."""
    return capacity.point(engine, 2 * engine.at_once, seconds, 100 + number).output_per_s


def seed_of(number: int, load: float) -> int:
    """The seed of a round's arrivals at a load, the same for all routers."""
    return 1000 * number + round(10 * load)


def show(result: Mapping[str, Any]) -> None:
    """Print what was found."""
    out, engine, alone_per_s = console(), result["engine"], result["alone_per_s"]
    out.print(f"{machine.sentence(result['machine'])}, {result['machine']['vllm']}; {result['provider']}")
    out.print(
        f"the engine alone: {engine['requests_per_s']:.1f} requests and {engine['output_per_s']:.0f} output tokens a "
        f"second, {engine['at_once']} at the same time; {min(alone_per_s):.0f} to {max(alone_per_s):.0f} before, "
        "between and after the routers"
    )
    rows = table(
        "router", "load", "asked/s", "local", "hosted", "503", "public p50", "p95", "p99", "private p50", "p95", "p99",
        "good/s", "local tok/s", "of max", "$/1000", "overtaken", "bytes out", "expected",
    )  # fmt: skip
    for step in result["steps"]:
        public, private = step["public"]["first_s"], step["private"]["first_s"]
        rows.add_row(
            step["router"], f"{step['load']:g}x", f"{step['asked_per_s']:.1f}", _percent(step["local"]),
            _percent(step["hosted"]), str(step["refused"]), *map(shown, public.values()), *map(shown, private.values()),
            f"{step['goodput_per_s']:.1f}", f"{step['tokens_per_s']:.0f}", _percent(step["of_maximum"]),
            f"{step['cost_usd_per_1000']:.2f}", str(step["overtaken"]), str(step["private_bytes_out"]),
            shown(step["expected_off_p50_s"]),
        )  # fmt: skip
    out.print(rows)
    out.print("seconds to the first token of all that were asked; -: so many were not answered")
    out.print("expected: how far off the router's own expectation of a first token here was, median seconds")
    for step in result["steps"]:
        if step["failed"]:
            out.print(f"{step['router']} at {step['load']:g}x: {step['failed']} failed otherwise")
        if step["behind"]:
            out.print(f"{step['router']} at {step['load']:g}x: the generator fell behind; see late_p90_s")
    out.print(goal_table(result["goals"]))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overflow", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, no good figures")
    parser.add_argument("--second-engine", action="store_true", help="the provider is a second real vLLM")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and draw. Returns 1 where it cannot; a goal that is missed is a result and no failure."""
    options = _options(arguments)
    return 0 if published("overflow", lambda: run(options), show, charts.overflow, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
