"""Holds the simulation against a real run: the same arrivals, router by router and load by load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import virtual
from benchmarks.cell import Cell
from benchmarks.mix import plan
from benchmarks.overflow import WARM_S, seed_of
from benchmarks.program import shown
from benchmarks.replica import profile_of
from benchmarks.samples import quantile
from benchmarks.scene import Far, Setup, setup_of
from benchmarks.spill import Counted, Row, figures
from router.commands.context import console, table


async def _rounds(setup: Setup, result: Mapping[str, Any], number: int) -> dict[float, tuple[list[Row], Counted]]:
    """One round of the overflow benchmark with one router: warm-up, then each load after the other."""
    cell, engine, seconds = Cell(setup, number), result["engine"], float(result["seconds"])
    prompt, capacity = int(engine["prompt_tokens"]), float(engine["requests_per_s"])

    async def load(rate: float, length: float, seed: int) -> tuple[list[Row], Counted]:
        planned = [
            replace(one, prompt=prompt) for one in plan(rate, length, seed, result["private"], result["outputs"])
        ]
        counted = await cell.run(planned, length)
        return cell.rows, counted

    await load(capacity / 2, WARM_S, 99)
    return {times: await load(capacity * times, seconds, seed_of(number, times)) for times in result["loads"]}


def checked(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each router at each load of a result of the overflow benchmark, as simulated. Raises ValueError."""
    engine, price = result["engine"], result["price"]
    profile = profile_of(engine)
    provider = Far(result["first_ms"] / 1000, result["pause_ms"] / 1000, price["input"], price["output"])
    found = []
    for router in dict.fromkeys(step["router"] for step in result["steps"]):
        setup = setup_of(router, profile, 1, provider, result["allowed_s"], result["deadline_s"])
        rounds = [virtual.run(_rounds(setup, result, number)) for number in range(result["rounds"])]
        for load in result["loads"]:
            rows, counted = [one[load][0] for one in rounds], [one[load][1] for one in rounds]
            found.append({"router": router, "load": load, **figures(rows, counted, result["maximum"])})
    return found


COMPARED: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None], float, str], ...] = (
    ("hosted", lambda s: s["hosted"], 100.0, "%"),
    ("public p50", lambda s: s["public"]["first_s"]["p50"], 1.0, "s"),
    ("public p95", lambda s: s["public"]["first_s"]["p95"], 1.0, "s"),
    ("private p95", lambda s: s["private"]["first_s"]["p95"], 1.0, "s"),
    ("good/s", lambda s: s["goodput_per_s"], 1.0, ""),
    ("local tok/s", lambda s: s["tokens_per_s"], 1.0, ""),
    ("$/1000", lambda s: s["cost_usd_per_1000"], 1.0, ""),
)


def show_check(result: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    """Print what was simulated beside what was measured, with the difference."""
    out = console()
    rows = table("router", "load", *(f"{name}: simulated / measured (off)" for name, *_ in COMPARED))
    off: dict[str, list[float]] = {name: [] for name, *_ in COMPARED}
    for made, real in zip(found, result["steps"], strict=True):
        cells = []
        for name, value, factor, _ in COMPARED:
            a, b = value(made), value(real)
            if a is None or b is None:
                cells.append(f"{shown(a)} / {shown(b)}")
                continue
            a, b = a * factor, b * factor
            difference = a - b
            off[name].append(abs(difference))
            cells.append(f"{a:.3g} / {b:.3g} ({difference:+.2g})")
        rows.add_row(str(real["router"]), f"{real['load']:g}x", *cells)
    out.print(rows)
    middles = {name: quantile(values, 0.5) for name, values in off.items()}
    units = {name: unit for name, _, _, unit in COMPARED}
    out.print("median difference: " + ", ".join(f"{n} {shown(v)} {units[n]}".strip() for n, v in middles.items()))
