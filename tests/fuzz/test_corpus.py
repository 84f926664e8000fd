"""What the fuzzer was given and what it ever found, replayed without it; and, where that is wanted, the fuzzer."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz.driver import CORPUS, TARGETS, corpus

SECONDS = os.environ.get("HEADGATE_FUZZ_S", "8")
"""How long each target is fuzzed by the long tests, all of them in under two minutes; 0 leaves it out. What a short run
finds is a matter of chance: who changes a parser gives it an hour."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_of_the_corpus_passes(name: str) -> None:
    check = importlib.import_module(f"tests.fuzz.{name}").check
    assert corpus(name), "a target without a corpus"
    for path in corpus(name):
        try:
            check(path.read_bytes())
        except Exception as wrong:
            raise AssertionError(f"{path.relative_to(ROOT)}: {wrong!r}") from wrong


def test_every_corpus_belongs_to_a_target_and_is_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        assert sum(path.stat().st_size for path in corpus(name)) < 64 * 1024


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_the_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    if not float(SECONDS or 0):
        pytest.skip("HEADGATE_FUZZ_S says to leave it out")
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (it has packages for Linux on x86-64 only)")
    run = subprocess.run(
        [sys.executable, "-m", f"tests.fuzz.{name}", f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert not list(tmp_path.iterdir())
