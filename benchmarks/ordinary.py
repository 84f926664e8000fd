"""Texts of everyday work in which nothing private stands: what a scanner must leave alone."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sysconfig
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL, LARGE = 4 * 1024, 200 * 1024
"""Characters of a request."""
PLANTED = ("tests", "router/scanner", "benchmarks/examples.py", "benchmarks/texts.py", "benchmarks/results")
"""What of this repository plants what is to be found, or names it next to numbers: nobody else's work looks so."""


def texts(seed: int = 1) -> dict[str, str]:
    """By the name of the sort: all of it, one text."""
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = Path(sysconfig.get_paths()["purelib"])
    return {
        "standard library": _joined(p for p in sorted(library.rglob("*.py")) if "site-packages" not in p.parts),
        "git log": git_log(),
        "lock files": _joined(sorted((ROOT / "deploy").glob("requirements*.txt"))),
        "licences": _joined(p for p in sorted(packages.rglob("*")) if _is_licence(p)),
        "agent transcripts": "\n".join(transcripts(seed)),
    }


def requests(text: str, size: int, most: int, seed: int) -> list[str]:
    """So many pieces of a text, spread over it, each beginning with a line.

    Where there is not enough of it they overlap, by three quarters at most.
    """
    step = size if len(text) > size * most else max(size // 4, 1)
    places = [text.find("\n", place) + 1 for place in range(0, max(1, len(text) - size), step)]
    pieces = [text[place : place + size] for place in sorted(set(places))]
    return pieces if len(pieces) <= most else random.Random(seed).sample(pieces, most)


def git_log() -> str:
    """The history of this repository with its changes; empty outside of one."""
    command = ["git", "log", "-p", "--no-color", "--no-ext-diff", "--", ".", *(f":!{path}" for path in PLANTED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    return done.stdout[:40_000_000].decode(errors="replace")


def transcripts(seed: int, turns: int = 3000) -> Iterator[str]:
    """What a coding agent sends: its tool calls, and what came of them."""
    chance = random.Random(seed)
    sources = sorted(path for path in ROOT.glob("r*/**/*.py") if "scanner" not in path.parts)
    for turn in range(turns):
        path = chance.choice(sources)
        shown = str(path.relative_to(ROOT))
        call = {"id": f"call_{chance.randbytes(12).hex()}", "type": "function", "function": _call(chance, shown)}
        yield json.dumps(
            {"role": "assistant", "content": f"Step {turn}: let me look at {shown}.", "tool_calls": [call]}
        )
        yield json.dumps({"role": "tool", "tool_call_id": call["id"], "content": _result(chance, path, shown)})


def _call(chance: random.Random, shown: str) -> dict[str, str]:
    name = chance.choice(("read_file", "run", "search", "edit"))
    given = {
        "path": shown,
        "offset": chance.randint(0, 300),
        "limit": 200,
        "session": str(uuid.UUID(int=chance.getrandbits(128))),
    }
    return {"name": name, "arguments": json.dumps(given)}


def _result(chance: random.Random, path: Path, shown: str) -> str:
    day = f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
    stamp = f"{day}T{chance.randint(0, 23):02}:14:{chance.randint(10, 59)}.{chance.randint(0, 999999):06}Z"
    match chance.randint(0, 4):
        case 0:
            return _page(chance, path)
        case 1:
            names = ("README.md", "setup.cfg", shown.rsplit("/", 1)[-1], "uv.lock")
            sizes = (f"{chance.randint(200, 90000):>6} Nov {chance.randint(1, 28):>2} 14:03 {name}" for name in names)
            return "\n".join(["total 148", *(f"-rw-r--r-- 1 dev dev {size}" for size in sizes)])
        case 2:
            digest = hashlib.sha256(chance.randbytes(8)).hexdigest()
            took = f"took {chance.randint(1000, 99999)} ms, pid {chance.randint(1000, 99999)}"
            return f"{stamp} INFO build {digest[:12]} image sha256:{digest} {took}"
        case 3:
            return _failures(chance)
        case _:
            return json.dumps(_row(chance, stamp))


def _page(chance: random.Random, path: Path) -> str:
    lines = path.read_text().splitlines()
    first = chance.randint(0, max(0, len(lines) - 40))
    return "\n".join(f"{n:6}\t{line}" for n, line in enumerate(lines[first : first + 40], first + 1))


def _failures(chance: random.Random) -> str:
    tests = (f"tests/test_{n}.py::test_{chance.randint(1, 99)} FAILED [ {chance.randint(1, 99)}%]" for n in "abc")
    unequal = f"E   assert {chance.randint(10**5, 10**9)} == {chance.randint(10**5, 10**9)}"
    return "\n".join([*tests, unequal, f"3 failed, {chance.randint(10, 900)} passed in {chance.random() * 90:.2f}s"])


def _row(chance: random.Random, stamp: str) -> dict[str, object]:
    """A record as services answer with them."""
    return {
        "id": str(uuid.UUID(int=chance.getrandbits(128))),
        "created": chance.randint(1_600_000_000, 1_790_000_000),
        "updated_ms": chance.randint(1_600_000_000_000, 1_790_000_000_000),
        "version": f"{chance.randint(0, 9)}.{chance.randint(0, 40)}.{chance.randint(0, 20)}",
        "etag": chance.randbytes(20).hex(),
        "at": stamp,
        "host": f"10.0.{chance.randint(0, 255)}.{chance.randint(1, 254)}",
    }


def _joined(paths: Iterable[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def _is_licence(path: Path) -> bool:
    name = path.name.lower()
    return (
        path.is_file()
        and name.startswith(("licen", "copying", "notice"))
        and path.suffix in ("", ".txt", ".md", ".rst")
    )
