"""Whether every process that noted marks here has ended in order: one that has not leaves a file behind.

Each holds a lock on an empty file of its own while it runs, and removes the file once all is written. A lock ends with
its process, however that ends. Renaming and removing an empty file work on a full disk too.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

RUNNING, LOST = "running", "lost"


class Running:
    """This process's file."""

    def __init__(self, begun: Path) -> None:
        """`begun`: beside this file, and named after it. Raises OSError."""
        name = secrets.token_hex(4)
        self._path, self._lost = (begun.with_name(f"{begun.name}-{what}-{name}") for what in (RUNNING, LOST))
        draft = begun.with_name(f".{self._path.name}")
        self._file = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        draft.rename(self._path)  # only now, so that nobody finds it without its lock

    def end(self, *, lost: bool) -> None:
        """This process ends. `lost`: something could not be written, which the next one must know. Raises OSError."""
        try:
            if lost:
                self._path.rename(self._lost)
            else:
                self._path.unlink()
        finally:
            os.close(self._file)


def killed(begun: Path) -> list[Path]:
    """The files of processes that did not come to an end of their own. Raises OSError."""
    return [path for path in begun.parent.glob(f"{begun.name}-{RUNNING}-*") if not _held(path)]


def lost(begun: Path) -> list[Path]:
    """The files of those that could not write everything. Raises OSError."""
    return [*begun.parent.glob(f"{begun.name}-{LOST}-*")]


def told(files: Iterable[Path]) -> None:
    """What these say is written down elsewhere now. Raises OSError."""
    for path in files:
        path.unlink(missing_ok=True)


def _held(path: Path) -> bool:
    """Whether the process of that file runs."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True  # it has just ended in order, or another start has told of it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
