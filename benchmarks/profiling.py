"""Where the router spends its time under load, as short tables: by Python function (py-spy) and below (perf).

Both only look on. py-spy's line `Runner.run` is the loop itself, in C; perf tells its kernel, uvloop and Python apart.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.installation import ROOT

TOP = 25
PER_SECOND = 400
PERF_PER_SECOND = 2000
"""Of CPU time, and a router that passes streams on takes a fifth of a core."""


def profile(pid: int, work: Callable[[], object], seconds: float, peers_folder: Path) -> dict[str, Any]:
    """What the process does while `work` loads it, for longer than `seconds`. Empty where there is no tool for it."""
    with tempfile.TemporaryDirectory(prefix="hg-profile-") as name, ThreadPoolExecutor() as pool:
        loading = pool.submit(work)
        # Both at once: neither does more than look, and one after the other would see another load.
        looking = {
            tool: pool.submit(look, pid, seconds, Path(name), peers_folder)
            for tool, look in (("py-spy", _py_spy), ("perf", _perf))
        }
        loading.result()
        return {tool: said for tool, future in looking.items() if (said := future.result())}


def _py_spy(pid: int, seconds: float, folder: Path, peers_folder: Path) -> dict[str, Any]:
    there = peers.program(peers_folder, "py-spy") or shutil.which("py-spy")
    if there is None:
        return {}
    out = folder / "stacks"
    # Python alone: with what is below it (--native) py-spy has to stop the process, and takes sleep for work. What the
    # loop does below, as `Runner.run`, is for perf to say.
    _quiet([str(there), "record", "--format", "raw", "--rate", str(PER_SECOND), "--duration", str(round(seconds)),
            "--pid", str(pid), "--output", str(out), "--nonblocking"])  # fmt: skip
    return of_stacks(out.read_text()) if out.is_file() else {}


def _perf(pid: int, seconds: float, folder: Path, peers_folder: Path) -> dict[str, Any]:
    if shutil.which("perf") is None:
        return {}
    data = folder / "perf.data"
    _quiet([
        "perf", "record", "-g", "-F", str(PERF_PER_SECOND), "-o", str(data), "-p", str(pid), "--", "sleep",
        str(round(seconds)),
    ])  # fmt: skip
    if not data.is_file():
        return {}
    return of_script(_quiet(["perf", "script", "-i", str(data), "-F", "ip,sym,dso"]))


def _quiet(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout


FRAME = re.compile(r"(?P<name>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")


def of_stacks(text: str) -> dict[str, Any]:
    """Folded stacks (`outer;…;inner count`, a frame being `name (file:line)`) as shares of all samples. Pure.

    `by_function`: where time was spent, and time spent in it and in what it called. `by_module`: the innermost file of
    ours, or the file itself where none of ours is on the stack.
    """
    own, under, modules = Counter[str](), Counter[str](), Counter[str]()
    total = 0
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdigit():
            continue
        frames = [_frame(part) for part in stack.split(";")]
        total += int(count)
        own[frames[-1][0]] += int(count)
        for name in {name for name, _ in frames}:
            under[name] += int(count)
        ours = [file for _, file in frames if file.startswith(("router/", "serving/"))]
        modules[ours[-1] if ours else frames[-1][1]] += int(count)
    return {
        "samples": total,
        "by_function": [{"function": name, "own": _share(count, total), "with_calls": _share(under[name], total)}
                        for name, count in own.most_common(TOP)],
        "by_module": {name: _share(count, total) for name, count in modules.most_common(TOP)},
    }  # fmt: skip


def _frame(text: str) -> tuple[str, str]:
    """A frame's name with its file, and its file, both without line numbers and without where this checkout lies."""
    found = FRAME.match(text)
    if found is None:
        return text, text
    file = found["file"].removeprefix(f"{ROOT}/")
    return f"{found['name']} ({file})", file


SEEN = re.compile(r"^\s*[0-9a-f]+ (?P<symbol>.+) \((?P<library>[^()]*)\)$")
CALL = re.compile(r"(?:__(?:x64|arm64)_sys|ksys)_(\w+)$")


def of_script(text: str) -> dict[str, Any]:
    """perf's samples, a stack each with its innermost frame first, as shares of all, in percent. Pure.

    `by_system_call`: what the kernel was asked to do in its part of the time.
    """
    libraries, symbols, calls = Counter[str](), Counter[str](), Counter[str]()
    total = 0
    for stack in text.split("\n\n"):
        frames = [found for line in stack.splitlines() if (found := SEEN.match(line))]
        if not frames:
            continue
        total += 1
        library = Path(frames[0]["library"]).name
        libraries[library] += 1
        symbols[f"{frames[0]['symbol']} ({library})"] += 1
        if call := next((found[1] for frame in frames if (found := CALL.match(frame["symbol"]))), None):
            calls[call] += 1
    named = {"by_library": libraries, "by_system_call": calls, "by_symbol": symbols}
    return {"samples": total} | {
        name: {key: _share(count, total) for key, count in counts.most_common(TOP)} for name, counts in named.items()
    }


def _share(count: int, total: int) -> float:
    return round(100 * count / total, 1)


def lines(found: Mapping[str, Any], most: int = 12) -> list[str]:
    """A profile in a few lines for people."""
    spied, seen = found.get("py-spy") or {}, found.get("perf") or {}
    said = [f"{row['own']:5.1f} %  {row['function']}" for row in spied.get("by_function", ())[:most]]
    for name in ("by_library", "by_system_call"):
        if shares := ", ".join(f"{key} {share:.0f} %" for key, share in list((seen.get(name) or {}).items())[:8]):
            said.append(f"{name.replace('_', ' ')}: {shares}")
    return said
