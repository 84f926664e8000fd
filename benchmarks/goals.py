"""The goals of the data plane and of overflow, held against results of the benchmarks. Pure: a result in, verdicts out.

`python -m benchmarks.goals FILE` prints them as the table of benchmarks/README.md, from a result's JSON; with `--write`
it puts them there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.routers import PREDICTED

ONE, MANY, STREAMS = "1 connection", "32 connections", "32 streams"
README = Path(__file__).with_name("README.md")
MARKS = {
    "overhead": ("<!-- goals -->", "<!-- end of goals -->"),
    "overflow": ("<!-- goals of overflow -->", "<!-- end of goals of overflow -->"),
}
"""By the kind of result, between which lines of README.md its goals stand."""
NOISY = 10.0
"""Percent: an interval as wide as this says nothing of a goal of 98."""
Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal and whether it is met. `met` is None where this run cannot say."""

    name: str
    wanted: str
    value: float | None
    said: str
    """The value in words, with its unit."""
    met: bool | None

    @property
    def verdict(self) -> str:
        """`met` in words: what was not measured is told from what was measured and says neither."""
        if self.met is None:
            return "not measured" if self.value is None else "no verdict"
        return "met" if self.met else "missed"


def goals(result: Result) -> list[Goal]:
    """Every goal, in the order in which they are printed."""
    router = {f["case"]: f for f in result["figures"] if f["target"] == "router"}
    whole = {f["case"]: f for f in result["figures"] if f["target"] == "headgate, all processes"}
    first = _of(result.get("first_token") or (), "headgate")
    memory = _of(result.get("memory") or (), "headgate")
    kept, overload = result.get("vllm") or {}, result.get("overload") or {}

    def all_of(case: str) -> str:
        """What all processes of the installation take together, for who wants to know."""
        value = whole.get(case, {}).get("cpu_us")
        return "" if value is None else f" (all processes {value:.0f})"

    def cpu(case: str) -> float | None:
        found: float | None = router.get(case, {}).get("cpu_us")
        return found

    return [
        _most("CPU per request, 32 connections", 150, cpu(MANY), "µs", 0, all_of(MANY)),
        _most("CPU per request, one connection", 200, cpu(ONE), "µs", 0, all_of(ONE)),
        _most("CPU per streamed chunk, 32 streams", 25, cpu(STREAMS), "µs", 1, all_of(STREAMS)),
        _most("CPU per request over smg, 32 connections", 0.65, router.get(MANY, {}).get("ratio_smg"), "×", 2),
        _most("CPU per request over smg, one connection", 0.65, router.get(ONE, {}).get("ratio_smg"), "×", 2),
        _most("CPU per request over nginx, 32 connections", 6, router.get(MANY, {}).get("ratio"), "×", 1),
        _most("CPU per request over nginx, one connection", 6, router.get(ONE, {}).get("ratio"), "×", 1),
        _most("added time to first token, p50", 1, first.get("added_p50_ms"), "ms", 2),
        _most("added time to first token, p99", 5, first.get("added_p99_ms"), "ms", 2),
        _most("idle router process", 120, memory.get("idle_mb"), "MB", 0),
        _most(f"memory per idle stream, {memory.get('streams', 1000):,} of them", 40, memory.get("kb_per_stream"),
              "KB", 1),
        _kept(kept),
        _goodput(overload),
        _slower(overload),
    ]  # fmt: skip


def missed(found: Sequence[Goal]) -> list[Goal]:
    return [goal for goal in found if goal.met is False]


def markdown(found: Sequence[Goal]) -> str:
    """The goals as a table for the README."""
    rows = [f"| {g.name} | {g.wanted} | {g.said} | {'**missed**' if g.met is False else g.verdict} |" for g in found]
    return "\n".join(["| goal | wanted | measured | |", "| --- | --- | --- | --- |", *rows])


def _of(entries: Sequence[Mapping[str, Any]], target: str) -> Mapping[str, Any]:
    return next((entry for entry in entries if entry["target"] == target), {})


def _most(name: str, bound: float, value: float | None, unit: str, digits: int, more: str = "") -> Goal:
    met = None if value is None else value <= bound
    return Goal(name, f"≤ {bound:g} {unit}", value, _said(value, unit, digits, more), met)


def _least(name: str, bound: float, value: float | None, unit: str, digits: int, more: str = "") -> Goal:
    met = None if value is None else value >= bound
    return Goal(name, f"≥ {bound:g} {unit}", value, _said(value, unit, digits, more), met)


def _said(value: float | None, unit: str, digits: int, more: str) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}{more}"


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else ratio * 100


def _kept(found: Mapping[str, Any]) -> Goal:
    """The share of a real engine's throughput; neither met nor missed where the runs differ too much to say."""
    name, value = "real vLLM behind it, of its direct throughput", _percent(found.get("ratio"))
    if value is None:
        return _least(name, 98, None, "%", 1)
    low, high = found["low"] * 100, found["high"] * 100
    between = f" (95 % interval {low:.1f} to {high:.1f})"
    if high - low > NOISY:
        return Goal(name, "≥ 98 %", value, f"{value:.1f} %{between}, too noisy to say", None)
    return _least(name, 98, value, "%", 1, between)


def _goodput(found: Mapping[str, Any]) -> Goal:
    """What is left of the peak; neither met nor missed where the generator could not ask as much as it was to."""
    name, value = "goodput at ten times the capacity, of its peak", _percent(found.get("ratio"))
    if value is not None and any(found[step]["behind"] for step in ("peak", "over")):
        return Goal(name, "≥ 90 %", value, f"{value:.1f} %, but the generator fell behind", None)
    return _least(name, 90, value, "%", 1)


def _slower(found: Mapping[str, Any]) -> Goal:
    """How long what is admitted takes; as `_goodput`. An earlier result has no such figure."""
    name, value = "p99 of what is admitted at ten times the capacity, over that at half of it", found.get("slower")
    if value is None:
        return _most(name, 2, None, "×", 1)
    times = f" ({found['over']['good_p99_s']:.2f} s, {found['below']['good_p99_s']:.2f} s)"
    if any(found[step]["behind"] for step in ("below", "over")):
        return Goal(name, "≤ 2 ×", value, f"{value:.1f} ×{times}, but the generator fell behind", None)
    return _most(name, 2, value, "×", 1, times)


AT = 2.0
"""The multiple of the engine's capacity at which the goals of overflow are held."""


def overflow_goals(result: Result) -> list[Goal]:
    """Those of the router that predicts a wait, out of a result of the overflow benchmark."""
    mine = [step for step in result["steps"] if step["router"] == PREDICTED]
    there = next((step for step in mine if step["load"] == AT), None)
    out = sum(step["private_bytes_out"] for step in result["steps"]) if result["steps"] else None
    public, target = there["public"] if there else None, result["target_s"]
    late = sum(step["overtaken"] + step["past_deadline"] for step in mine) if mine else None
    return [
        _first(public, target, bool(there and there["behind"])),
        _least("local tokens a second at twice the capacity, of their own maximum", 95,
               _percent(there["of_maximum"] if there else None), "%", 1),
        _most("bytes of private requests at the provider, all routers and loads", 0, out, "", 0),
        _most("private requests overtaken by a later one, or kept beyond their deadline", 0, late, "", 0),
    ]  # fmt: skip


def _first(public: Mapping[str, Any] | None, target: float, behind: bool) -> Goal:
    """The first token of public requests; neither met nor missed where they were sent late."""
    name = "first token of public requests at twice the capacity, p95"
    value = public["first_s"]["p95"] if public else None
    if public and value is None:
        return Goal(name, f"≤ {target:g} s", None, f"only {public['answered']} of {public['asked']} answered", False)
    if behind:
        return Goal(name, f"≤ {target:g} s", value, f"{value:.2f} s, but the generator fell behind", None)
    return _most(name, target, value, "s", 2)


def of(result: Result) -> list[Goal]:
    """The goals of a result, by its kind."""
    return overflow_goals(result) if result["kind"].startswith("overflow") else goals(result)


def placed(page: str, table: str, kind: str = "overhead") -> str:
    """The page with this table between the two marks of the goals. Raises ValueError where they are not there."""
    before, begin, rest = page.partition(MARKS[kind][0])
    _, end, after = rest.partition(MARKS[kind][1])
    if not end:
        raise ValueError("the page has no marks for the goals")
    return f"{before}{begin}\n{table}\n{end}{after}"


def main(arguments: Sequence[str]) -> int:
    """Print the goals of a result's file; with --write, put them into README.md as well."""
    files = [word for word in arguments if word != "--write"]
    if len(files) != 1:
        print("usage: python -m benchmarks.goals FILE [--write]", file=sys.stderr)
        return 2
    result = json.loads(Path(files[0]).read_text())
    table = markdown(of(result))
    print(table)
    if "--write" in arguments and result["kind"] in MARKS:
        README.write_text(placed(README.read_text(), table, result["kind"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
