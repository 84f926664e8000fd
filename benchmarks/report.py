"""Prints a result of the overhead benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from benchmarks import machine, profiling
from benchmarks.figures import Figure, FirstToken
from benchmarks.program import goal_table, shown
from router.commands.context import console, table

Result = Mapping[str, Any]


def show(result: Result) -> None:
    """All of it, the goals last."""
    out = console()
    versions = ", ".join(version for version in result["gateways"].values())
    out.print(f"{machine.sentence(result['machine'])}; {versions}; medians of {result['rounds']} rounds")
    _cpu(out, result)
    _first_token(out, result)
    _memory(out, result)
    _kept(out, result)
    _overload(out, result)
    for name, found in result.get("profile", {}).items():
        out.print(f"where the router's time goes, {name}:")
        for line in profiling.lines(found):
            out.print(f"  {line}")
    out.print(goal_table(result["goals"]))
    out.print(f"took {result['took_s'] / 60:.1f} minutes")


def _cpu(out: Console, result: Result) -> None:
    rows = table(
        "load", "through", "CPU us", "a", "range", "x nginx", "x smg", "a second", "p50 ms", "p99 ms", "added p50",
        "added p99", whole=2,
    )  # fmt: skip
    last = ""
    for f in (Figure(**entry) for entry in result["figures"]):
        span = "-" if f.lowest is None else f"{f.lowest:.0f}-{f.highest:.0f}"
        rows.add_row(
            "" if f.case == last else f.case, f.target, shown(f.cpu_us, 1), f.unit, span, shown(f.ratio, 1),
            shown(f.ratio_smg, 2), shown(f.per_s, 0), shown(f.p50_ms, 2), shown(f.p99_ms, 2), shown(f.added_p50_ms, 2),
            shown(f.added_p99_ms, 2),
        )  # fmt: skip
        last = f.case
    out.print(rows)
    out.print("times of streams are those of the first token, where all start at one moment")
    spent = ", ".join(f"{part} {value:.1f}" for part, value in sorted(result["idle_cpu_ms_per_s"].items()))
    held = ", ".join(f"{part} {value:.0f}" for part, value in sorted(result["resident_mb"].items()))
    out.print(f"Headgate at rest, CPU ms a second: {spent}; resident MB after the load: {held}")
    out.print(
        f"{result['answered_through_headgate']} answered through Headgate and {result['held_open']} streams left "
        f"early; {result['accounted_for']} accounted for"
    )


def _first_token(out: Console, result: Result) -> None:
    rows = table("first token", "streams", "p50 ms", "p99 ms", "added p50", "added p99", "there", "back", "failed")
    for f in (FirstToken(**entry) for entry in result["first_token"]):
        rows.add_row(
            f.target, str(f.streams), shown(f.p50_ms, 2), shown(f.p99_ms, 2), shown(f.added_p50_ms, 2),
            shown(f.added_p99_ms, 2), shown(f.reached_p50_ms, 2), shown(f.back_p50_ms, 2), str(f.errors),
        )  # fmt: skip
    out.print(rows)
    out.print("there: p50 until the upstream has the request; back: p50 from then on to the first token")
    if not result["apart"]:
        out.print("there is one core: load, upstream and gateway waited for each other")


def _memory(out: Console, result: Result) -> None:
    rows = table("memory", "idle MB", "idle streams", "MB with them", "KB a stream", "MB after")
    for m in result["memory"]:
        rows.add_row(
            m["target"], shown(m["idle_mb"], 1), str(m["streams"]), shown(m["held_mb"], 1),
            shown(m["kb_per_stream"], 1), shown(m["after_mb"], 1),
        )  # fmt: skip
    out.print(rows)


def _kept(out: Console, result: Result) -> None:
    found = result.get("vllm") or {}
    if "runs" not in found:
        return
    runs = ", ".join(f"{run['headgate']:.0f}/{run['direct']:.0f}" for run in found["runs"])
    out.print(
        f"{found['engine']}: {found['ratio']:.1%} of its direct throughput through the router "
        f"({found['low']:.1%} to {found['high']:.1%}); output tokens a second, through/direct: {runs}"
    )
    by_cpu = found["per_engine_cpu"]
    out.print(
        f"  tokens a second of the engine's own CPU time: {by_cpu['value']:.1%} of those direct "
        f"({by_cpu['low']:.1%} to {by_cpu['high']:.1%})"
    )


def _overload(out: Console, result: Result) -> None:
    found = result.get("overload") or {}
    if "over" not in found:
        return
    peak, over = found["peak"], found["over"]
    out.print(
        f"overload: {peak['good_per_s']:.0f} good a second at capacity, {over['good_per_s']:.0f} at ten times; "
        f"{over['refused']} of {over['asked']} refused, p99 {shown(over['refusal_p99_s'], 3)} s; "
        f"{over['other']} neither; router {found['router_mb_before']:.0f} to {found['router_mb_after']:.0f} MB"
    )
    rows = table("overload", "asked", "good a second", "refused", "admitted p50 ms", "p99 ms")
    for name, step in (("half the capacity", found["below"]), ("capacity", peak), ("ten times", over)):
        times = [None if step[q] is None else step[q] * 1000 for q in ("good_p50_s", "good_p99_s")]
        rows.add_row(
            name, str(step["asked"]), shown(step["good_per_s"], 0), str(step["refused"]), *(shown(t, 0) for t in times)
        )
    out.print(rows)
    if any(step["behind"] for step in (found["below"], peak, over)):
        out.print("THE GENERATOR FELL BEHIND in the overload: less was asked than is said")
