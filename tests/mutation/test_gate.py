"""Every small wrong version of the gate is noticed by its quick tests, or nobody could notice it, and that is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutation.gate import EQUIVALENT, FILES
from tests.mutation.mutants import mutants


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_mutant_of_the_gate_is_noticed(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run = subprocess.run(
        [sys.executable, "-m", "tests.mutation.trial", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert report.exists(), run.stdout[-3000:] + run.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["code"] in (0, 5), run.stdout[-3000:]
    assert found["tried"] > 700
    unnoticed = set(found["unnoticed"])
    assert sorted(unnoticed - EQUIVALENT.keys()) == []
    assert sorted(EQUIVALENT.keys() - unnoticed) == [], "these are noticed after all: take them out of the list"


def test_each_kind_of_change_is_made() -> None:
    source = (
        "def f(a, b):\n    if not a or b < 1:\n        raise ValueError('no')\n    g(a)\n    return max(a, b) == 'x'\n"
    )
    changed = {one.name.partition(": ")[2] for one in mutants(source, "f.py")}
    for wanted in (
        "b < 1: Lt → LtE", "b < 1: Lt → GtE", "not a or b < 1: Or → And", "not a or b < 1: without not a",
        "not a: without not", "if not a or b < 1: always True", "if not a or b < 1: always False",
        "raise ValueError('no'): taken out", "g(a): taken out", "max(a, b): min", "1 → 2", "'x' → another word",
        "return max(a, b) == 'x': returns None", "return max(a, b) == 'x': returns True",
    ):  # fmt: skip
        assert wanted in changed, (wanted, changed)


def test_names_and_versions_are_each_their_own() -> None:
    for path, part in FILES.items():
        made = mutants((ROOT / path).read_text(), path, part.only, part.spoken)
        assert len({one.name for one in made}) == len(made)
        for one in made[::10]:
            compile(one.make(), path, "exec")


def test_every_excuse_has_its_reason() -> None:
    assert all(len(reason) > 20 for reason in EQUIVALENT.values())
