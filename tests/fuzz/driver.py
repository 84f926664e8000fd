"""Drives one fuzz target: with atheris as a program of its own, without it over the files of its corpus.

    python -m tests.fuzz.sse -max_total_time=60

A target is a module with `check(data)`, which raises where a promise of the parser does not hold. What breaks one is
written into its corpus, which the quick tests replay for ever after; what is only new to the fuzzer is kept in a
temporary folder. Options of libFuzzer go on to it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("answer", "body", "edge", "fragments", "headers", "media", "request", "sse", "wording")


def corpus(name: str) -> list[Path]:
    """The files of one target's corpus, in a fixed order."""
    return sorted(path for path in (CORPUS / name).iterdir() if path.is_file())


def drive(name: str) -> None:
    """Fuzz one target until libFuzzer's options say enough. Ends the process."""
    import atheris  # only here: the quick tests do without it

    # What a target has imported already is imported again, so that atheris can see which lines run.
    for module in [m for m in sys.modules if m.partition(".")[0] in ("router", "serving")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["router", "serving"]):
        target = importlib.import_module(f"tests.fuzz.{name}")
    known = CORPUS / name
    with tempfile.TemporaryDirectory(prefix="fuzz-") as found:
        options = [f"-artifact_prefix={known}/", "-max_len=4096", *sys.argv[1:]]
        atheris.Setup([sys.argv[0], *options, found, str(known)], target.check)
        atheris.Fuzz()
