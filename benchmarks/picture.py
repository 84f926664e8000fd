"""What all pictures are drawn with, and the picture of cost; charts.py draws the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.installation import Stop

INK, FAINT, OWN, OTHER = "#222222", "#9a9a9a", "#1f6f8b", "#c46a2b"


def check() -> None:
    """Raises Stop where pictures cannot be drawn: better before a measurement than after it."""
    if find_spec("matplotlib") is None:
        raise Stop(
            "matplotlib draws the picture and is not installed; get it with: "
            ".venv/bin/python -m uv pip install --require-hashes -r deploy/requirements-dev.txt"
        )


def cost(result: Mapping[str, Any], path: Path) -> None:
    """Dollars a million tokens against utilisation: local falls, hosted stays; they cross at the break-even.

    Both axes are logarithmic, for break-evens lie anywhere from a thousandth of the hour to the whole of it.
    """
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(9.6, 5.6))
    at_full, hosted = result["usd_per_million"], result["hosted"]
    crossings = [h["break_even"] for h in hosted if h["break_even"]]
    left = min(0.01, *crossings) / 2
    axis.loglog([left, 1], [at_full / left, at_full], color=OWN, linewidth=2.8, clip_on=False)
    levels = [at_full, at_full / left, *(h["usd_per_million"] for h in hosted)]
    axis.set_ylim(min(levels) / 2.5, max(levels) * 1.5)
    axis.set_xlim(left, 1)
    for each in hosted:
        _level(axis, each, left)
    _measured(axis, result)
    _dress(axis, plt)
    what = f"{result['gpus']} x {result['machine']['gpus'][0]['name']}" if result["gpus"] else "this machine's CPU"
    figure.suptitle(f"What a million tokens cost: {result['model']} on {what}, and hosted", fontsize=14, color=INK,
                    x=0.01, ha="left")  # fmt: skip
    figure.text(0.01, 0.91, "\n".join(result["notes"]), fontsize=9, color=FAINT, va="center")
    full, where = result["full"], result["machine"]
    said = f"{machine.sentence(where)} · ${result['hour_usd']:g} an hour · {where['date']} · full load: "
    foot(figure, said + f"{full['prompt']:.0f} prompt and {full['output']:.0f} output tokens a second")
    figure.tight_layout(rect=(0, 0.035, 1, 0.92))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _level(axis: Any, hosted: Mapping[str, Any], left: float) -> None:
    """One hosted price: a line across, and where local crosses it."""
    level, share = hosted["usd_per_million"], hosted["break_even"]
    crosses = share is not None and share <= 1
    axis.axhline(level, color=OTHER, linewidth=1.3, zorder=1)
    words = f"{hosted['model']} hosted, ${level:.3g}" + ("" if crosses else ": always cheaper than local")
    far = crosses and math.log(share / left) > 0.5 * math.log(1 / left)
    where, side = (left, "left") if far else (1.0, "right")
    axis.annotate(
        words,
        (where, level),
        (4 if far else 0, -13 if crosses else 5),
        textcoords="offset points",
        ha=side,
        color=OTHER,
    )
    if crosses:
        axis.plot([share], [level], "o", color=INK, markersize=8, zorder=6)
        # Near the right edge there is room only below the line.
        side, offset = ("right", (-10, -16)) if share > 0.25 else ("left", (10, 7))
        axis.annotate(f"local is cheaper above {100 * share:.2g} %", (share, level), offset, color=INK, fontsize=11,
                      textcoords="offset points", ha=side, weight="bold")  # fmt: skip


def _measured(axis: Any, result: Mapping[str, Any]) -> None:
    """The rates that were measured, as dots on the local line."""
    for step in result["steps"]:
        if step["name"] in ("low", "medium"):
            axis.plot([step["share"]], [step["usd_per_million"]], "o", color="white", markeredgecolor=OWN, zorder=5)
            axis.annotate(f"{step['name']} load", (step["share"], step["usd_per_million"]), (-6, -13), ha="right",
                          textcoords="offset points", color=OWN, fontsize=9)  # fmt: skip
    level = result["usd_per_million"]
    axis.plot([1], [level], "o", color=OWN, markersize=8, clip_on=False, zorder=6)
    axis.annotate(f"{result['model']} local, ${level:.3g} at full load", (1, level), (-4, -18), ha="right",
                  textcoords="offset points", color=OWN, fontsize=11, weight="bold")  # fmt: skip


def _dress(axis: Any, plt: Any) -> None:
    axis.set_xlabel("utilisation: share of the hour that the machine is busy at full load", color=INK)
    axis.set_ylabel("US dollars a million tokens", color=INK)
    axis.xaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_major_formatter(plt.FuncFormatter(lambda value, _: f"${value:g}"))
    for each in (axis.xaxis, axis.yaxis):
        each.set_minor_formatter(plt.NullFormatter())
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#eeeeee")


def foot(figure: Any, text: str) -> None:
    figure.text(0.01, 0.01, text, fontsize=8, color=FAINT)


def pyplot() -> Any:
    """Matplotlib's drawing functions, without a screen. Raises Stop."""
    check()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
