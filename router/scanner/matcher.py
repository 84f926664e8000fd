"""All patterns in one pass: a wrapper around Hyperscan that keeps its traps away from who uses it.

A database must not be scanned by two threads with the same scratch memory, so each thread has one of its own. Without a
handler Hyperscan looks for nothing and says nothing, so there is always one. Whatever goes wrong is a MatcherError.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import hyperscan

Hit = tuple[int, int]
"""Where a match ends, in bytes, and the number of its pattern."""
VERSION = f"hyperscan {metadata.version('hyperscan')}"


class MatcherError(Exception):
    """Patterns that do not compile, a database that cannot be read, or a pass that failed."""


class Pattern(NamedTuple):
    """One pattern, with Hyperscan's flags by name."""

    expression: str
    caseless: bool = False
    once: bool = False
    """Whether one match of it in a pass is enough."""


class Matcher:
    """A compiled set of patterns; their numbers are their places in the sequence. Any thread may use it."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self._own = threading.local()

    def scan(self, data: bytes, most: int) -> tuple[list[Hit], bool]:
        """Every match by where it ends, and whether there were no more than `most`. Raises MatcherError."""
        hits: list[Hit] = []
        add = hits.append

        def on(number: int, _start: int, end: int, _flags: int, _context: object) -> bool | None:
            add((end, number))
            return True if len(hits) > most else None

        handler: Callable[..., bool | None] = on
        try:
            scratch = getattr(self._own, "scratch", None)
            if scratch is None:
                scratch = self._own.scratch = hyperscan.Scratch(self._database)
            self._database.scan(data, match_event_handler=handler, scratch=scratch)
        except hyperscan.ScanTerminated:
            if len(hits) > most:
                return hits, False
            raise MatcherError("a pass ended before its time") from None
        except hyperscan.error as failed:
            raise MatcherError(f"a pass failed: {type(failed).__name__}") from None
        return hits, True

    def dump(self) -> bytes:
        """The database as bytes. Raises MatcherError."""
        try:
            return bytes(hyperscan.dumpb(self._database))
        except hyperscan.error as failed:
            raise MatcherError(f"the patterns cannot be kept: {failed}") from None


def compiled(patterns: Sequence[Pattern]) -> Matcher:
    """Compile them together; takes a second or more for many. Raises MatcherError."""
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    try:
        database.compile(
            expressions=[one.expression.encode() for one in patterns],
            ids=list(range(len(patterns))),
            elements=len(patterns),
            flags=[_flags(one) for one in patterns],
        )
    except (hyperscan.error, ValueError) as wrong:
        raise MatcherError(f"the patterns do not compile: {wrong}") from None
    return Matcher(database)


def loaded(data: bytes) -> Matcher:
    """What `dump` gave. Raises MatcherError, also for one that was made for another processor or version."""
    try:
        return Matcher(hyperscan.loadb(data, hyperscan.HS_MODE_BLOCK))
    except (hyperscan.error, TypeError, ValueError) as wrong:
        raise MatcherError(f"the patterns cannot be read: {type(wrong).__name__}") from None


def fault(pattern: Pattern) -> str:
    """Why a pattern does not compile; empty where it does."""
    try:
        compiled([pattern])
    except MatcherError as wrong:
        return str(wrong)
    return ""


def _flags(pattern: Pattern) -> int:
    flags = hyperscan.HS_FLAG_CASELESS if pattern.caseless else 0
    if pattern.once:
        flags |= hyperscan.HS_FLAG_SINGLEMATCH
    # By bytes, but where the pattern itself is more than ASCII.
    return int(flags if pattern.expression.isascii() else flags | hyperscan.HS_FLAG_UTF8 | hyperscan.HS_FLAG_UCP)
