"""What of one source goes along with a statement: enough to work its sums out anew, and no gap in any chain."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(slots=True)
class Excerpt:
    """Lines of one source, written as they come."""

    file: BinaryIO
    lines: int = 0
    size: int = 0
    digest: str = hashlib.sha256().hexdigest()
    _begun: bool = False
    _hash: Any = field(default_factory=hashlib.sha256)
    _wanted: Any = field(default_factory=hashlib.sha256)
    """`_hash` as it was after the last line that is wanted."""
    _lines: int = 0

    def add(self, line: bytes, *, wanted: bool = True) -> None:
        """Add a line. One that is not wanted stays only between two that are: so a chain has no gaps."""
        if not wanted and not self._begun:
            return
        self._begun = True
        self._hash.update(line)
        self._lines += 1
        self.file.write(line)
        if wanted:
            self.lines, self.size, self._wanted = self._lines, self.file.tell(), self._hash.copy()

    def cut(self) -> None:
        """A chain has ended: drop what nobody wants at its end."""
        self._begun = False
        if self._lines > self.lines:
            self.file.seek(self.size)
            self.file.truncate()
            self._lines, self._hash = self.lines, self._wanted.copy()

    def close(self) -> None:
        """No more comes."""
        self.cut()
        self.digest = self._hash.hexdigest()
        self.file.close()
