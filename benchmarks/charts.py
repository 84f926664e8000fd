"""The pictures of overhead, overflow, simulate and soak, made so that they are understood at a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.goals import Goal
from benchmarks.leaks import NOTHING
from benchmarks.picture import FAINT, INK, OTHER, OWN, foot, pyplot
from benchmarks.routers import ERROR, FIXED, LOCAL, PREDICTED

SHOWN = {"nginx": "nginx", "router": "Headgate", "smg": "smg", "litellm": "LiteLLM"}
"""Rows that are drawn, with their names."""
COLOURS = {"nginx": FAINT, "router": OWN, "headgate": OWN, "smg": OTHER, "litellm": "#d9a679"}
MET, MISSED = "#2e7d4f", "#b3352b"
Result = Mapping[str, Any]


def overhead(result: Result, path: Path) -> None:
    """Bars of CPU time, first token and memory by gateway, and the goals below."""
    plt = pyplot()
    figure = plt.figure(figsize=(12.5, 8.6))
    grid = figure.add_gridspec(2, 5, height_ratios=[1, 1.15], left=0.03, right=0.985, top=0.86, bottom=0.07,
                               wspace=0.16, hspace=0.25)  # fmt: skip
    cases = list(dict.fromkeys(f["case"] for f in result["figures"]))
    for column, case in enumerate(cases):
        rows = [f for f in result["figures"] if f["case"] == case and f["target"] in SHOWN]
        title = f"{case}\nµs of CPU a {rows[0]['unit']}"
        _bars(figure.add_subplot(grid[0, column]), title, [(f["target"], f["cpu_us"], _ratio(f)) for f in rows])
    firsts = [(f["target"], f["added_p50_ms"], "") for f in result["first_token"] if f["target"] in COLOURS]
    _bars(figure.add_subplot(grid[0, 3]), "32 streams\nms added to first token, p50", firsts, digits=2)
    held = [(m["target"], m["kb_per_stream"], "") for m in result["memory"] if m["target"] in COLOURS]
    _bars(figure.add_subplot(grid[0, 4]), "idle streams\nKB of memory for each", held)
    _goals(figure.add_subplot(grid[1, :]), result["goals"])
    figure.suptitle("What a request costs on its way through Headgate, beside other gateways in the same run",
                    fontsize=14, color=INK, x=0.02, ha="left")  # fmt: skip
    names = ", ".join(result["gateways"].values())
    slow = "; LiteLLM: bars are cut off, and it was given fewer streams" if "litellm" in result["gateways"] else ""
    figure.text(0.02, 0.925, f"CPU time of the gateway's own processes · {names}{slow}", fontsize=9, color=FAINT)
    foot(figure, f"{machine.sentence(result['machine'])} · {result['machine']['date']} · medians of {result['rounds']} "
                 "rounds · in brackets: multiple of nginx")  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _ratio(entry: Mapping[str, Any]) -> str:
    return f"\n({entry['ratio']:.1f} ×)" if entry["ratio"] is not None and entry["target"] != "nginx" else ""


def _bars(axis: Any, title: str, rows: Sequence[tuple[str, float | None, str]], digits: int = 0) -> None:
    """One value for each gateway. One that is far beyond the others is cut off, so that the others can be read."""
    known = [(target, value, more) for target, value, more in rows if value is not None]
    others = [value for target, value, _ in known if target != "litellm"]
    top = max(others, default=1.0) * (1.6 if len(others) < len(known) else 1.0)
    bars = axis.bar(range(len(known)), [min(value, top) for _, value, _ in known],
                    color=[COLOURS[target] for target, _, _ in known])  # fmt: skip
    labels = [f"{value:,.{digits if value < 100 else 0}f}{more}" for _, value, more in known]
    axis.bar_label(bars, labels, padding=3, fontsize=9, color=INK)
    for bar, (_, value, _) in zip(bars, known, strict=True):
        if value > top:
            middle = bar.get_x() + bar.get_width() / 2
            axis.plot([middle - 0.5, middle + 0.5], [top * 0.86, top * 0.92], color="white", linewidth=4)
    axis.set_title(title, fontsize=10, color=INK)
    names = {**SHOWN, "headgate": "Headgate"}
    axis.set_xticks(range(len(known)), [names[target] for target, _, _ in known], fontsize=8)
    axis.set_ylim(0, top * 1.22)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)


def _goals(axis: Any, goals: Sequence[Mapping[str, Any]]) -> None:
    """The goals, one a line."""
    axis.axis("off")
    colours = {True: MET, False: MISSED, None: FAINT}
    step = 1 / (len(goals) + 1)
    for column, text in ((0.0, "goal"), (0.46, "wanted"), (0.57, "measured"), (0.9, "")):
        axis.text(column, 1 - step / 2, text, fontsize=9, color=FAINT, va="center")
    for number, goal in enumerate(Goal(**entry) for entry in goals):
        level = 1 - step * (number + 1.5)
        axis.text(0.0, level, goal.name, fontsize=10, color=INK, va="center")
        axis.text(0.46, level, goal.wanted, fontsize=10, color=INK, va="center")
        axis.text(0.57, level, goal.said, fontsize=10, color=INK, va="center")
        axis.text(0.9, level, goal.verdict, fontsize=10, color=colours[goal.met], va="center", weight="bold")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)


LINES = {LOCAL: FAINT, ERROR: "#d9a679", FIXED: OTHER, PREDICTED: OWN}
"""The four routers, with the colours of their lines."""


def overflow(result: Result, path: Path) -> None:
    """Share, first token, goodput, tokens and cost against load for the four routers, and the goals below."""
    plt = pyplot()
    figure = plt.figure(figsize=(13.5, 10.2))
    grid = figure.add_gridspec(3, 4, height_ratios=[1, 1, 0.5], left=0.045, right=0.985, top=0.88, bottom=0.04,
                               wspace=0.22, hspace=0.38)  # fmt: skip
    lines = (
        ("hosted, % of all", lambda s: _times(s["hosted"], 100)),
        ("answered in time, requests a second", lambda s: s["goodput_per_s"]),
        ("local tokens a second, % of maximum", lambda s: _times(s["of_maximum"], 100)),
        ("US dollars a thousand requests", lambda s: s["cost_usd_per_1000"]),
        ("public: first token p50, s", lambda s: s["public"]["first_s"]["p50"]),
        ("public: first token p95, s", lambda s: s["public"]["first_s"]["p95"]),
        ("public: first token p99, s", lambda s: s["public"]["first_s"]["p99"]),
        ("private: first token p95, s", lambda s: s["private"]["first_s"]["p95"]),
    )
    for number, (title, value) in enumerate(lines):
        axis = figure.add_subplot(grid[number // 4, number % 4])
        _against_load(axis, plt, title, result["steps"], value)
        if title.startswith("public"):
            axis.axhline(result["target_s"], color=MISSED, linewidth=1, linestyle=":")
    _goals(figure.add_subplot(grid[2, :]), result["goals"])
    engine = result["engine"]
    figure.suptitle("More asked than one engine can do: what leaves, and who waits", fontsize=14,
                    color=INK, x=0.02, ha="left")  # fmt: skip
    _legend(figure, plt, "o")
    said = f"{result['private']:.0%} are private · capacity {engine['requests_per_s']:.1f} a second"
    said += f" · provider {result['provider']} · dotted: the target · a line ends where too few were answered"
    figure.text(0.02, 0.925, said, fontsize=9, color=FAINT)
    foot(figure, f"{machine.sentence(result['machine'])} · {result['machine']['date']} · {result['rounds']} rounds of "
                 f"{result['seconds']:g} s at each load")  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _against_load(axis: Any, plt: Any, title: str, steps: Sequence[Result], value: Callable[[Result], Any]) -> None:
    """One line for each router over the loads, which are powers of two."""
    for router, colour in LINES.items():
        mine = [step for step in steps if step["router"] == router]
        axis.plot([step["load"] for step in mine], _gaps(map(value, mine)), color=colour, marker="o", markersize=4,
                  linewidth=1.8)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda at, _: f"{at:g}×"))
    _plain(axis, title)


def _plain(axis: Any, title: str) -> None:
    """From 0 on, with its title and as few lines as will do."""
    axis.set_ylim(bottom=0)
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#eeeeee")


def _gaps(values: Iterable[float | None]) -> list[float]:
    """What is not known is left out of a line."""
    return [float("nan") if value is None else value for value in values]


def _legend(figure: Any, plt: Any, marker: str = "") -> None:
    drawn = [plt.Line2D([], [], color=colour, marker=marker, label=name) for name, colour in LINES.items()]
    figure.legend(handles=drawn, loc="upper right", ncols=4, frameon=False, fontsize=10)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def simulate(result: Result, path: Path) -> None:
    """What is asked, what leaves, how long people wait and what it costs, hour by hour; and the day's dollars."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 8.0))
    days, fleet = result["days"], result["fleet"]
    lines = (
        ("hosted, % of all", lambda hour: 100 * hour["hosted"]),
        ("hosted, US dollars an hour", lambda hour: hour["hosted_usd"]),
        ("public: first token p95, s", lambda hour: hour["first_s"]["public"]["p95"]),
        ("private: first token p95, s", lambda hour: hour["first_s"]["private"]["p95"]),
    )
    middles = [hour + 0.5 for hour in range(len(days[0]["hours"]))]
    asked = [hour["asked"] for hour in days[0]["hours"]]
    axes.flat[0].fill_between(middles, asked, color="#e8e8e8")
    axes.flat[0].axhline(1, color=MISSED, linewidth=1, linestyle=":")
    _plain(axes.flat[0], "asked, of what the engines get done")
    for axis, (title, value) in zip(axes.flat[1:], lines, strict=False):
        for width, day in zip((4.2, 3.4, 2.6, 1.8), days, strict=True):  # what lies on top hides nothing
            axis.plot(middles, _gaps(map(value, day["hours"])), color=LINES[day["router"]], linewidth=width)
        _plain(axis, title)
    for axis in axes.flat[:5]:
        axis.set_xlim(0, len(asked))
        axis.set_xticks(range(0, len(asked) + 1, 6), [f"{hour}:00" for hour in range(0, len(asked) + 1, 6)])
    for axis in axes.flat[3:5]:
        axis.axhline(result["target_s"], color=MISSED, linewidth=1, linestyle=":")
    _dollars(axes.flat[5], days)
    title = f"A simulated day of {fleet['gpus']} GPUs: what leaves, the waits, and the cost"
    figure.suptitle(title, fontsize=14, color=INK, x=0.02, ha="left")
    _legend(figure, plt)
    day = fleet["day"]
    said = f"{days[0]['stands_for'] / 1e6:.1f} million requests · {day['private']:.0%} are private · "
    said += f"{day['batch']:.0%} have time, and are not in the first tokens · dotted: what the engines get done, the "
    said += "target · a line ends where too few were answered\nin dollars the black line is what the answers would "
    figure.text(0.02, 0.915, f"{said}have cost hosted, above it the share that was answered", fontsize=9, color=FAINT)
    foot(figure, f"simulated, not measured · {result['machine']['date']} · of each hour {fleet['window_s']:g} s, "
                 f"one of {fleet['gpus'] / fleet['profile']['gpus'] / fleet['cell']:g} cells of {fleet['cell']} engines"
                 f" · ${fleet['gpu_hour_usd']:g} an hour of a GPU · provider ${fleet['provider']['input']:g} and "
                 f"${fleet['provider']['output']:g} a million tokens in and out")  # fmt: skip
    figure.tight_layout(rect=(0, 0.03, 1, 0.95))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _dollars(axis: Any, days: Sequence[Result]) -> None:
    """What each router's day cost, below what its answers would have cost hosted, with how many it answered."""
    for at, day in enumerate(days):
        axis.bar(at, day["gpu_usd"], color="#d0d0d0")
        axis.bar(at, day["hosted_usd"], bottom=day["gpu_usd"], color=LINES[day["router"]])
        axis.plot([at - 0.4, at + 0.4], [day["instead_usd"]] * 2, color=INK, linewidth=1.6)
        axis.annotate(f"{day['answered']:.0%}", (at, day["instead_usd"]), (0, 4), ha="center",
                      textcoords="offset points", color=INK, fontsize=9)  # fmt: skip
    _plain(axis, "US dollars a day, GPUs in grey")
    axis.set_xticks(range(len(days)), [day["router"] for day in days], fontsize=8)
    axis.set_ylim(0, 1.15 * max(day["instead_usd"] for day in days))


def soak(result: Result, path: Path) -> None:
    """Memory, descriptors, threads and tasks of the router over the time of the soak."""
    plt = pyplot()
    samples = result["samples"]
    shown = [("resident_mb", "resident MB"), ("descriptors", "descriptors"), ("threads", "threads"),
             ("open", "requests open, by the router"), ("tasks", "asyncio tasks")]  # fmt: skip
    shown = [(name, title) for name, title in shown if any(s[name] is not None for s in samples)]
    figure, axes = plt.subplots(len(shown), 1, figsize=(9.6, 1.6 * len(shown) + 1.2), sharex=True)
    minutes = [s["at_s"] / 60 for s in samples]
    for axis, (name, title) in zip(axes, shown, strict=True):
        values = [s[name] for s in samples]
        axis.plot(minutes, _gaps(values), color=OWN, linewidth=1.6)
        axis.set_title(title, fontsize=10, color=INK, loc="left")
        axis.set_ylim(0, max([v for v in values if v is not None] or [1]) * 1.25 + 1)
        axis.axvspan(0, result["warm_s"] / 60, color="#f0f0f0")
        axis.spines[["top", "right"]].set_visible(False)
    slope = result["slope_mb_per_h"]
    axes[0].annotate(f"{slope['value']:+.1f} MB an hour ({slope['low']:+.1f} to {slope['high']:+.1f})",
                     (0.99, 0.08), xycoords="axes fraction", ha="right", color=INK, fontsize=10)  # fmt: skip
    axes[-1].set_xlabel("minutes (grey: not counted)", color=INK)
    verdict = result["leaks"] or [NOTHING]
    asked = f"{result['rate']:g} requests a second for {result['minutes']:g} minutes"
    figure.suptitle(f"{asked}, {result['leave_share']:.0%} of their callers leave", fontsize=13, color=INK,
                    x=0.02, ha="left")  # fmt: skip
    figure.text(0.02, 0.945, "\n".join(verdict), fontsize=10, va="top", color=MISSED if result["leaks"] else MET)
    foot(figure, f"{machine.sentence(result['machine'])} · {result['machine']['date']}")
    figure.tight_layout(rect=(0, 0.03, 1, 0.95 - 0.022 * len(verdict)))
    figure.savefig(path, dpi=150)
    plt.close(figure)
