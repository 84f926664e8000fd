"""The shipped rules, compiled once for all tests of this machine: that takes seconds, and a folder is made per test."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import tempfile
from pathlib import Path

from router.scanner import rules
from router.scanner.scanner import Scanner, ScannerError
from serving.catalogue import Privacy
from serving.home import Home

KEPT = Path(tempfile.gettempdir()) / f"headgate-tests-{os.getuid()}"
"""Over runs too, with a folder for each set of rules."""


def lay_out(home: Home) -> None:
    """Put the compiled rules where router and door of this home look for them."""
    put(home.root / "rules")
    put(home.book.with_name("rules"))


def put(folder: Path) -> None:
    """Put the compiled rules where a scanner looks for them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in _compiled().items():
        (folder / name).write_bytes(data)


@functools.cache
def _compiled() -> dict[str, bytes]:
    found = rules.of(Privacy())
    kept = KEPT / found.hash[:16]
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several workers compiles
        with contextlib.suppress(ScannerError):  # what is wrong with it is for the tests of the scanner to say
            Scanner(found, kept)
    return {file.name: file.read_bytes() for file in kept.glob("patterns-*.hs")}
