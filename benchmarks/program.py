"""What the programs have in common: they measure, print, write and draw, and what stops them is said in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from benchmarks import machine, picture
from benchmarks.goals import Goal
from benchmarks.installation import Stop
from router.commands.context import table
from serving.catalogue import ConfigError
from serving.probe import ProbeError

T = TypeVar("T")
Result = dict[str, Any]


def say(text: str) -> None:
    """Tell whoever waits how far it is, also where that goes to a file."""
    print(text, flush=True)


def shown(value: float | None, digits: int = 2) -> str:
    """A number of a table; a dash where it is not known."""
    return "-" if value is None else f"{value:.{digits}f}"


def goal_table(goals: Iterable[Mapping[str, Any]]) -> Table:
    """The goals of a result, as they stand in its JSON."""
    rows = table("goal", "wanted", "measured", "")
    for goal in (Goal(**entry) for entry in goals):
        rows.add_row(goal.name, goal.wanted, goal.said, "MISSED" if goal.met is False else goal.verdict)
    return rows


def told(name: str, work: Callable[[], T]) -> T | None:
    """What `work` returns; None where it cannot be done, which is said."""
    try:
        return work()
    except (Stop, ConfigError, ProbeError, OSError) as stopped:
        print(f"benchmarks.{name}: {stopped}", file=sys.stderr)
        return None


def published(
    name: str, measure: Callable[[], Result], show: Callable[[Result], None], draw: Callable[[Result, Path], None],
    folder: Path,
) -> Result | None:  # fmt: skip
    """Measure, print, write and draw. The result; None where it cannot be had, which is said."""

    def work() -> Result:
        picture.check()
        result = measure()
        show(result)
        publish(result, folder, draw)
        return result

    return told(name, work)


def publish(result: Result, folder: Path, draw: Callable[[Result, Path], None]) -> None:
    """Write a result's JSON into `folder`, and beside it the picture that `draw` makes. Raises OSError."""
    path = machine.result_path(result["kind"], result["machine"], folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, path.with_suffix(".png"))
    print(f"written: {path.name} and {path.with_suffix('.png').name} in {path.parent.name}/")
