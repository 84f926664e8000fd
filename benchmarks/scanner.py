"""`python -m benchmarks.scanner`: what it costs to search a request for what must not leave.

The shipped rules search texts of 4 KB and 400 KB, ordinary ones and the worst that we could think of. The figures are
CPU time of the searching thread, Hyperscan's included; on a shared machine they hold still where the clock does not.
How long the event loop stands still meanwhile is measured by the clock, and so is a fair share of the machine's own.
Presidio searches the English texts and the source code beside it, where its environment was made: without a model.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import beside, machine, peers, texts
from benchmarks.goals import Goal
from benchmarks.installation import Stop
from benchmarks.picture import FAINT, INK, OTHER, OWN, foot, pyplot
from benchmarks.program import goal_table, published, say
from router.__main__ import tune
from router.commands.context import console, table
from router.scanner import reading, rules
from router.scanner.reading import Text, most_texts
from router.scanner.scanner import Scanner
from router.scanner.search import Searched
from serving.catalogue import Privacy

SMALL, LARGE = 4096, 400_000
ROUNDS = {SMALL: 2000, LARGE: 60}
SEED = 5
TICK_S = 0.001
PRESIDIO = "presidio-analyzer"
BESIDE = {"English, 4 KB": 50, "source code, 4 KB": 50, "English, 400 KB": 3, "source code, 400 KB": 3}
"""What Presidio is given, and the rounds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What it costs to search one text. Times are CPU milliseconds."""

    name: str
    bytes: int
    rounds: int
    p50_ms: float
    p99_ms: float
    unread: str
    """Why it was not searched whole, if so."""


def measured(scanner: Scanner, name: str, text: str, rounds: int) -> Cost:
    """Search one text again and again."""
    given = [Text("messages[0].content", text, "user", True)]
    return _measured(lambda: scanner.search(given), name, len(text.encode()), rounds)


def in_parts(scanner: Scanner, name: str, body: Mapping[str, Any], rounds: int) -> Cost:
    """Search a request again and again, with the reading of its texts, as the gate does."""
    size = len(json.dumps(body, ensure_ascii=False).encode())
    most = most_texts(size)

    def search() -> Searched:
        given = reading.texts(body, most)
        return scanner.search(given) if len(given) <= most else Searched((), 0, "budget", ())

    return _measured(search, name, size, rounds)


def _measured(search: Callable[[], Searched], name: str, size: int, rounds: int) -> Cost:
    took = []
    searched = search()  # the first one is slower: scratch memory, and characters never seen before
    for _ in range(rounds):
        begun = time.thread_time()
        searched = search()
        took.append((time.thread_time() - begun) * 1000)
    took.sort()
    return Cost(name, size, rounds, took[len(took) // 2], took[int(len(took) * 0.99)], searched.unread)


def ordinary(scanner: Scanner, share: float) -> list[Cost]:
    """Texts as people send them. `share`: of the rounds of a full run."""
    return [
        measured(scanner, name, text, max(5, int(ROUNDS[size] * share)))
        for size in ROUNDS for name, text in _everyday(size).items()
    ]  # fmt: skip


def _everyday(size: int) -> dict[str, str]:
    languages = {"English": texts.ENGLISH, "French": texts.FRENCH, "Chinese": texts.CHINESE, "Arabic": texts.ARABIC}
    found = {name: texts.ordinary(words, size, SEED) for name, words in languages.items()} | {
        "source code": _source(size)
    }
    return {f"{name}, {size // 1000} KB": text for name, text in found.items()}


def presidio(folder: Path, share: float) -> dict[str, Any] | None:
    """The same of Presidio, in its own environment below `folder`; None where that was not made. Raises Stop."""
    python = folder / "presidio" / "bin" / "python"
    version = peers.version(folder, "presidio", PRESIDIO)
    if not python.exists() or version == PRESIDIO:
        return None
    everyday = _everyday(SMALL) | _everyday(LARGE)
    given = [
        {"name": name, "text": everyday[name], "rounds": max(2, int(rounds * share))} for name, rounds in BESIDE.items()
    ]
    done = subprocess.run(
        [python, beside.__file__], input=json.dumps(given), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Stop(f"Presidio did not search: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return {"version": version, "costs": json.loads(done.stdout)}


def worst(scanner: Scanner, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """What is hard, in ASCII and beyond."""

    def of(table: Mapping[str, Any]) -> list[Cost]:
        return [measured(scanner, name, make(random.Random(SEED), LARGE), rounds) for name, make in table.items()]

    def parts(of_ascii: bool) -> list[Cost]:
        table = texts.in_parts(LARGE)
        return [
            in_parts(scanner, name, body, rounds)
            for name, body in table.items() if json.dumps(body, ensure_ascii=False).isascii() is of_ascii
        ]  # fmt: skip

    return of(texts.ASCII) + parts(True), of(texts.OTHER) + parts(False)


async def stall(scanner: Scanner | None, given: Sequence[str], seconds: float) -> float:
    """Milliseconds that the event loop stood still at most, while a thread searches these texts in turn.

    Without a scanner the thread does nothing: then it is what this machine does to any loop.
    """
    end = time.monotonic() + seconds

    def search() -> None:
        while time.monotonic() < end:
            for text in given:
                if scanner is None:
                    time.sleep(0.01)
                else:
                    scanner.search([Text("messages[0].content", text, "user", True)])
                if time.monotonic() > end:
                    return

    late = 0.0
    with ThreadPoolExecutor(1) as thread:
        searching = asyncio.get_running_loop().run_in_executor(thread, search)
        while not searching.done():
            begun = time.monotonic()
            await asyncio.sleep(TICK_S)
            late = max(late, time.monotonic() - begun - TICK_S)
        await searching
    return late * 1000


def goals(result: Mapping[str, Any]) -> list[Goal]:
    """The goals of the scanner, held against a result."""
    costs = {cost["name"]: cost for cost in result["ordinary"]}
    others = ("French", "Chinese", "Arabic")
    ascii_small = max(costs[name]["p99_ms"] for name in ("English, 4 KB", "source code, 4 KB"))
    ascii_large = max(costs[name]["p99_ms"] for name in ("English, 400 KB", "source code, 400 KB"))
    large = [costs[f"{name}, 400 KB"] for name in others]
    return [
        _most("4 KB of ASCII, p99", 0.5, ascii_small, 2),
        _most("4 KB of other text, p99", 2, max(costs[f"{name}, 4 KB"]["p99_ms"] for name in others), 2),
        _most("400 KB of ASCII, p99", 20, ascii_large, 1),
        _most("400 KB of French, Chinese, Arabic, searched whole", 150, max(c["p99_ms"] for c in large), 1,
              whole=not any(c["unread"] for c in large)),
        _most("the worst 400 KB of ASCII", 50, max(c["p50_ms"] for c in result["worst_ascii"]), 1),
        _most("the worst 400 KB of other text", 100, max(c["p50_ms"] for c in result["worst_other"]), 1),
        _most("stall of the event loop", 5, result["stall_ms"], 1, more=f" (without a search {result['idle_ms']:.1f})"),
    ]  # fmt: skip


def _most(name: str, bound: float, value: float, digits: int, more: str = "", whole: bool = True) -> Goal:
    said = f"{value:.{digits}f} ms{more}" + ("" if whole else ", and it gave up")
    return Goal(name, f"≤ {bound:g} ms", value, said, value <= bound and whole)


def _source(size: int) -> str:
    """The standard library's own source, which every Python has."""
    folder = Path(random.__file__).parent
    return "".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.py"))[:60]).encode(
        "ascii", "ignore"
    ).decode()[:size]  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as it is written to JSON. Raises Stop."""
    quick, folder = options.quick, options.peers_folder
    if options.install_presidio and peers.version(folder, "presidio", PRESIDIO) == PRESIDIO:
        peers.environment(folder, "presidio", PRESIDIO, say)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as kept:
        looked_for = rules.of(Privacy())
        scanner = Scanner(looked_for, Path(kept))
        compiled_s = time.monotonic() - begun
        again = time.monotonic()
        scanner = Scanner(looked_for, Path(kept))
        loaded_s = time.monotonic() - again
    tune()  # as the router is
    found = ordinary(scanner, 0.1 if quick else 1.0)
    in_ascii, others = worst(scanner, 3 if quick else 9)
    given = [texts.ordinary(words, LARGE, SEED) for words in (texts.ENGLISH, texts.FRENCH, texts.CHINESE)]
    given += [make(random.Random(SEED), LARGE) for make in (*texts.ASCII.values(), *texts.OTHER.values())]
    seconds = 3.0 if quick else 10.0
    result: dict[str, Any] = {
        "kind": "scanner", "machine": machine.describe(), "kinds": len({kind.name for kind in looked_for.kinds}),
        "patterns": sum(len(kind.patterns) for kind in looked_for.kinds), "compiled_s": compiled_s,
        "loaded_s": loaded_s, "ordinary": [dataclasses.asdict(c) for c in found],
        "worst_ascii": [dataclasses.asdict(c) for c in in_ascii],
        "worst_other": [dataclasses.asdict(c) for c in others],
        "idle_ms": asyncio.run(stall(None, [""], seconds)), "stall_ms": asyncio.run(stall(scanner, given, seconds)),
        "presidio": presidio(folder, 0.1 if quick else 1.0),
    }  # fmt: skip
    result["goals"] = [dataclasses.asdict(goal) for goal in goals(result)]
    return result


def show(result: Mapping[str, Any]) -> None:
    """Print it all, the goals last."""
    out = console()
    out.print(
        f"{machine.sentence(result['machine'])}; {result['kinds']} kinds, {result['patterns']} patterns; compiled in "
        f"{result['compiled_s']:.1f} s, read again in {result['loaded_s'] * 1000:.0f} ms; CPU time"
    )
    rows = table("text", "KB", "p50 ms", "p99 ms", "searched", whole=1)
    for cost in (*result["ordinary"], *result["worst_ascii"], *result["worst_other"]):
        rows.add_row(
            cost["name"], f"{cost['bytes'] / 1000:.0f}", f"{cost['p50_ms']:.2f}", f"{cost['p99_ms']:.2f}",
            "whole" if not cost["unread"] else f"gave up ({cost['unread']})",
        )  # fmt: skip
    out.print(rows)
    _show_presidio(result, out)
    out.print(goal_table(result["goals"]))


def _show_presidio(result: Mapping[str, Any], out: Console) -> None:
    beside_it = result["presidio"]
    if beside_it is None:
        out.print("Presidio is not installed and is left out; python -m benchmarks.scanner --install-presidio")
        return
    ours = {cost["name"]: cost for cost in result["ordinary"]}
    rows = table("text", f"{beside_it['version']}, no model: p50 ms", "here: p50 ms", "times", whole=1)
    for cost in beside_it["costs"]:
        here = ours[cost["name"]]["p50_ms"]
        rows.add_row(cost["name"], f"{cost['p50_ms']:.1f}", f"{here:.2f}", f"{cost['p50_ms'] / here:.0f}")
    out.print(rows)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Bars by text, on a logarithmic axis: ordinary ones, and the worst with what gave up in another colour."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 7.4), width_ratios=[1, 1.2])
    beside_it = [
        cost | {"name": f"Presidio: {cost['name']}"} for cost in (result["presidio"] or {"costs": ()})["costs"]
    ]
    hard = sorted((*result["worst_ascii"], *result["worst_other"]), key=lambda cost: -cost["p50_ms"])
    for axis, costs, key, title in (
        (left, [*result["ordinary"], *beside_it], "p99_ms", "everyday texts, p99 (grey: Presidio without a model)"),
        (right, hard, "p50_ms", "400 KB of what is hard, p50"),
    ):
        colours = [FAINT if "unread" not in cost else OTHER if cost["unread"] else OWN for cost in costs]
        axis.barh([c["name"] for c in costs][::-1], [c[key] for c in costs][::-1], color=colours[::-1])
        axis.set_xscale("log")
        axis.set_title(title, loc="left", color=INK, fontsize=11)
        axis.set_xlabel("milliseconds of CPU", color=INK)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    right.axvline(50, color=FAINT, linewidth=1)
    missed = [goal["name"] for goal in result["goals"] if not goal["met"]]
    said = "all goals met" if not missed else f"missed: {', '.join(missed)}"
    figure.suptitle(
        "What it costs to search a request for what must not leave", fontsize=14, color=INK, x=0.01, ha="left"
    )
    figure.text(
        0.01, 0.925, f"{said} · orange: gave up within its budget, so the request stays", fontsize=9, color=FAINT
    )
    foot(figure, f"{machine.sentence(result['machine'])} · {result['machine']['date']} · {result['patterns']} patterns")
    figure.tight_layout(rect=(0, 0.03, 1, 0.92))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scanner", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="where JSON and picture go")
    parser.add_argument("--install-presidio", action="store_true", help="make Presidio's environment")
    parser.add_argument("--peers-folder", type=Path, default=peers.default_folder(), help="where it is (%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and draw. Returns 1 where a goal is missed, 2 where it cannot."""
    options = _options(arguments)
    result = published("scanner", lambda: run(options), show, draw, options.out)
    if result is None:
        return 2
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
