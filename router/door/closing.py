"""Whether the operator has closed the door: a file beside the book, looked at before each sending.

A file, so that closing works while nothing runs, and lasts over restarts. Whatever is odd about it means closed. Where
the door has a folder of its own (a container), whoever can reach its socket may close it; opening takes this file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple

import orjson

LONGEST = 200
"""Characters of a reason that are kept."""


class Shut(NamedTuple):
    """That the operator has closed the door. Times are Unix seconds; `by` is the user's name on this machine."""

    at: float
    by: str
    reason: str

    def __str__(self) -> str:
        """Callers read this too, so the reason is left to the operator's own eyes."""
        return "the operator closed it; headgate door open opens it"


ODD = Shut(0.0, "", "the file that says so cannot be read")


def told(raw: bytes, at: float) -> Shut:
    """The operator's word as it came to the door's socket. Never raises: what is odd is left out, and it closes."""
    try:
        said = orjson.loads(raw)
        return Shut(at, _line(str(said["by"])), str(said["reason"]))
    except (ValueError, LookupError, TypeError):
        return Shut(at, "", "")


def marker(book: Path) -> Path:
    """Where the file lies."""
    return book.with_name("closed.json")


def look(path: Path) -> Shut | None:
    """Why it is closed, or None where it is open. Never raises: what cannot be told is closed."""
    try:
        found = orjson.loads(path.read_bytes())
        return Shut(float(found["at"]), str(found["by"]), str(found["reason"]))
    except FileNotFoundError:
        # Without its folder nobody can tell whether the file was there.
        return None if path.parent.is_dir() else ODD
    except (OSError, ValueError, LookupError, TypeError):
        return ODD


def close(path: Path, shut: Shut) -> None:
    """Write the file, whole and on the disk once this returns. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(orjson.dumps({"at": shut.at, "by": shut.by, "reason": _line(shut.reason)}))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _sync(path.parent)


def reopen(path: Path) -> None:
    """Take the file away, on the disk too once this returns. Raises OSError."""
    path.unlink(missing_ok=True)
    _sync(path.parent)


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
