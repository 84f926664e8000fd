"""Reads a file of chained lines (the door's book, the kernel's samples) from its beginning, and checks each.

The check is a second one of its own beside that of `door/book.py`, which writes them: over the bytes as they lie there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from router.door.book import FORMAT, NOTE, Noted, noted

HASH = re.compile(rb'"hash":"([0-9a-f]{64})",')


@dataclass(slots=True)
class Line:
    """One line: its number, its bytes, and what stands in it."""

    number: int
    raw: bytes
    entry: dict[str, Any]
    earlier: bool
    """Whether a door of an earlier release wrote it, whose entries have fewer fields."""
    after: bool
    """Whether one of this release had written before."""


@dataclass(slots=True)
class Chained:
    """A file that is read once, with `lines`; the rest is known after that."""

    path: Path
    name: str
    """What it is called in sentences."""
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """What may be as it should, and cannot be told from what is not."""
    count: int = 0
    head: str = ""
    """The last hash."""
    boot: str = ""
    """The last boot that wrote to it."""

    def lines(self) -> Iterator[Line]:
        """Every line that can be read; what is wrong is added to `problems`. Nothing where there is no such file."""
        note = noted(self.path)  # first: whoever writes goes on meanwhile
        if not self.path.exists():
            if note.length:
                self.problems.append(f"{self.name}: it is gone, and {note.length:,} bytes of it are noted")
            return
        at, seq, met, earlier, after = 0, 0, False, True, False
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    break  # being written, or torn by a crash: the next start moves it aside and says so
                before, boot = self.head, self.boot
                entry = self._checked(number, raw, before)
                at += len(raw)
                if at >= note.length and not met:
                    met = True
                    if note.length and (at, self.head) != (note.length, note.digest):
                        self._bad(number, "is not the line that is noted as the last one")
                if entry is None:
                    continue
                seq = seq + 1 if entry.get("boot") == boot else 0
                if entry.get("seq") != seq or (entry.get("kind") == "opened") is not (seq == 0):
                    self._bad(number, f"its number is {entry.get('seq')} where {seq} is due")
                seq = entry["seq"] if isinstance(entry.get("seq"), int) else seq
                self.boot = str(entry.get("boot"))
                if entry.get("kind") == "opened":
                    earlier = entry.get("format") != FORMAT
                    if earlier and after:
                        self._bad(number, "is of an earlier release, and one of this release stands before it")
                yield Line(number, raw, entry, earlier, after)
                after = after or not earlier
        self._ended(at, note, after)

    def _ended(self, at: int, note: Noted, after: bool) -> None:
        """Whether its end is the one that is noted."""
        missing = note.length - at
        if not note.digest and self.count:
            # Earlier releases made no note; what this release writes it notes, and it makes the note first.
            text = f"{self.name}: the note of its end ({self.path.name}{NOTE}) is missing; what was cut off cannot show"
            (self.problems if after else self.doubts).append(text)
        elif at < note.synced:
            self.problems.append(f"{self.name}: {missing:,} bytes at its end are missing")
        elif missing > 0:
            lost = "they were not on the disk for sure: a power cut takes such, and so does whoever cuts them off"
            self.doubts.append(f"{self.name}: {missing:,} bytes at its end are missing; {lost}")

    def _checked(self, number: int, raw: bytes, before: str) -> dict[str, Any] | None:
        """The line's entry, where it is one."""
        self.count = number
        try:
            entry = orjson.loads(raw)
        except orjson.JSONDecodeError:
            entry = None
        found = HASH.findall(raw)
        if not isinstance(entry, dict) or len(found) != 1:
            self._bad(number, "is no whole entry")
            return None
        if hashlib.sha256(HASH.sub(b"", raw, count=1)[:-1]).hexdigest().encode() != found[0]:
            self._bad(number, "was changed; its hash is not that of its fields")
        if entry.get("prev") != before:
            self._bad(number, "does not follow the line before; one was removed, added or changed")
        self.head = found[0].decode()
        return entry

    def _bad(self, number: int, text: str) -> None:
        self.problems.append(f"{self.name}, line {number}: {text}")
