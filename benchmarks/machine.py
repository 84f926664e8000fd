"""What a result was measured on, and what its files are called. Names no host, no user and no folder."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import gpus

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def describe(vllm: str | None = None) -> dict[str, Any]:
    """The machine, the programs' versions and the commit. `vllm` is the engine's version, where one took part."""
    readings = gpus.read()
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": gpu.memory_total_gb} for gpu in readings.gpus],
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "vllm": vllm,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit(),
    }


def cpu_model(cpuinfo: str) -> str | None:
    """The CPU's name in the text of /proc/cpuinfo."""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def word(machine: Mapping[str, Any]) -> str:
    """A short word for the machine in file names: `2cpu`, `1x-h200`."""
    cards: Sequence[Mapping[str, Any]] = machine["gpus"]
    if not cards:
        return f"{machine['cores']}cpu"
    plain = re.sub(r"[^a-z0-9]+", "-", str(cards[0]["name"]).lower().replace("nvidia", "")).strip("-")
    return f"{len(cards)}x-{plain}"[:24].strip("-")


def sentence(machine: Mapping[str, Any]) -> str:
    """The machine in one line for people."""
    cards = ", ".join(str(card["name"]) for card in machine["gpus"]) or "no GPU"
    return f"{machine['cores']} cores of {machine['cpu'] or 'an unnamed CPU'}, {machine['memory_gb']:g} GB, {cards}"


def commit() -> str | None:
    """The commit of this checkout, with `+` where files of it were changed since; None where there is no git."""
    try:
        found = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ("+" if changed else "")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def result_path(kind: str, machine: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Where the JSON of a result lies; its picture has the same name with .png."""
    return folder / f"{kind}-{machine['date']}-{word(machine)}.json"
