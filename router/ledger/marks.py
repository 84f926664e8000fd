"""The table of marks: keyed hashes of texts and sessions that were above public once, with their class, until they end.

One thread writes, in groups. What was added is found at once in this process, in others once its group is on disk. What
cannot be read raises LedgerError, and whoever asked takes that for private.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from router.ledger import ends
from router.ledger.store import LedgerError, connect
from serving.catalogue import DataClass

COLUMNS = "mark, kind, data_class, team, request, kinds, at, expires"
ADD = f"""
INSERT INTO marks ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (mark) DO UPDATE SET
    kind = CASE WHEN excluded.data_class > data_class THEN excluded.kind ELSE kind END,
    request = CASE WHEN excluded.data_class > data_class THEN excluded.request ELSE request END,
    kinds = CASE WHEN excluded.kinds = '' OR instr(',' || kinds || ',', ',' || excluded.kinds || ',') THEN kinds
        WHEN kinds = '' THEN excluded.kinds ELSE kinds || ',' || excluded.kinds END,
    at = CASE WHEN excluded.data_class > data_class THEN excluded.at ELSE at END,
    data_class = MAX(data_class, excluded.data_class), expires = MAX(expires, excluded.expires)
"""  # noqa: S608  names alone
"""A mark that is there keeps the higher class, the later end and all kinds, whoever writes first."""
SEEN = """
INSERT INTO history VALUES ('seen', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value
WHERE CAST(excluded.value AS REAL) > CAST(value AS REAL)
"""
ENDED = "DELETE FROM marks WHERE mark IN (SELECT mark FROM marks WHERE expires <= ? LIMIT 200)"
LOOK_S = 0.1
"""How often it is looked whether the file is still the same one, where it is not read."""
AT_ONCE = 500
"""Marks looked up in one statement."""
MOST_IN_MEMORY = 200_000
"""Marks that are kept in memory too, about 20 MB, so that nearly no request has to wait for the disk."""
MOST_WAITING = 50_000
"""Marks that wait for a disk that takes nothing, about 20 MB; with more, nothing is known for sure any more."""
GROUP_WAIT_S, RETRY_S, FLUSH_S = 0.01, 0.25, 6.0
SEEN_EVERY_S = 3600.0
"""How often the time is written down while nothing else is."""
DAY_S = 86_400.0
ID_DIGITS = 16
LOST = "lost"
"""The id by which the loss of all marks is shown and released."""
KILLED, LATEST = "killed", "seen"
"""By which the table of the history has when a process ended without writing all down, and the latest time known."""


class Mark(NamedTuple):
    """One text or session that was above public once. Neither can be read out of it."""

    mark: bytes
    kind: str
    """`message`, `answer`, `session`, or `label` for a session that a header or the body raised."""
    data_class: DataClass
    team: str
    request: str
    """The request in which it was noted."""
    kinds: str
    """Which kinds of things were found, by name, with commas between them; or `history`, `unreadable`, `unsearched`."""
    at: float
    expires: float

    @property
    def id(self) -> str:
        """By which it is shown and released."""
        return self.mark.hex()[:ID_DIGITS]


class Clock:
    """Unix seconds that go forward only, as fast as a clock that nobody sets.

    So a clock that is set back revives nothing that had ended and ends nothing early, and one that is set forward while
    this process runs ends nothing. From a stop to the next start no more than a day passes, whatever the clock says:
    nobody can tell a long stop from a wrong clock, and a mark that lives too long opens nothing.
    """

    def __init__(
        self, seen: float, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        """`seen`: the latest time that a process before this one knew."""
        self._steady, self._began = steady, steady()
        self._start = max(seen, min(wall(), seen + DAY_S)) if seen else wall()

    def now(self) -> float:
        return self._start + (self._steady() - self._began)

    def end_in(self, seconds: float) -> float:
        """When something ends that begins now."""
        return self.now() + seconds


class Marks:
    """The marks of one installation, as one process reads and writes them. For any thread."""

    def __init__(
        self, path: Path, check: str, begun: Path, days: float, wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic, *, alone: bool = False,
    ) -> None:  # fmt: skip
        """`check` tells the secret that marks are made with; `begun`: a file that says that there were marks once;
        `alone`: no other process adds marks while this one runs.

        Raises LedgerError, or OSError.
        """
        self.path, self.trouble = path, ""
        self._check, self.life_s = check, days * DAY_S
        self._change = threading.Condition()
        """Held to change what waits to be written."""
        self._reading = threading.Lock()
        self._waiting: dict[bytes, Mark] = {}
        self._stopping = False
        self.dropped = False
        """Whether more waited than may wait, so that nothing is known for sure any more."""
        self._until = 0.0
        """Until when a disk that takes nothing is tried at the end, by `time.monotonic`."""
        self._reader: sqlite3.Connection | None = None
        self._reads = -1
        """The number of the file that is read; another one at the same path is another ledger."""
        self.killed = 0
        """Processes before this one that ended without writing all down, and that nobody has told of yet."""
        self._all: set[bytes] | None = None
        """Every mark that can be known here, ended and released ones too; None where that is not known in memory."""
        self._db = connect(path)
        try:
            self.clock = self._begin(begun, wall, steady)
            self._steady, self._look_at, self._number = steady, 0.0, path.stat().st_ino
            if alone:
                self._all = self._load()
            self._running = ends.Running(begun)
        except OSError:
            self._db.close()
            raise
        except (sqlite3.Error, ValueError) as broken:
            self._db.close()
            raise LedgerError(f"the history in {path} cannot be read: {broken}") from broken
        self._thread = threading.Thread(target=self._write_all, name="history", daemon=True)
        self._thread.start()

    def _begin(self, begun: Path, wall: Callable[[], float], steady: Callable[[], float]) -> Clock:
        """See whether these are the marks that were kept here before, and all of them, and note where they are not."""
        put = "INSERT OR REPLACE INTO history VALUES (?, ?)"
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            known = dict(self._db.execute("SELECT name, value FROM history"))
            clock = Clock(float(known.get(LATEST, 0.0)), wall, steady)
            killed, lost, other = ends.killed(begun), ends.lost(begun), known.get("check") != self._check
            if lost or (other and (begun.exists() or "check" in known)):
                self._db.execute(put, (LOST, repr(clock.end_in(self.life_s))))
            if other:
                self._db.execute(put, ("check", self._check))
            if killed:
                self._db.execute(put, (KILLED, repr(wall())))
        begun.touch(mode=0o600)  # only now: another process that starts must not take a beginning for a loss
        ends.told((*killed, *lost))
        self.killed = len(killed)
        return clock

    def _load(self) -> set[bytes] | None:
        """All marks there are; None where they are too many, or were lost."""
        if LOST in dict(self._db.execute("SELECT name, value FROM history")):
            return None
        found = {mark for (mark,) in self._db.execute("SELECT mark FROM marks LIMIT ?", (MOST_IN_MEMORY + 1,))}
        return found if len(found) <= MOST_IN_MEMORY else None

    # ---- what is known

    @property
    def in_memory(self) -> bool:
        """Whether `none_of` can say anything: every mark is known without reading the disk."""
        return self._all is not None

    def none_of(self, marks: Collection[bytes]) -> bool:
        """Whether it is certain without reading the disk that none of these is known. False says nothing."""
        if self._all is not None and (now := self._steady()) >= self._look_at:
            self._look_at = now + LOOK_S
            if not self._same_file():
                self._all = None
        known = self._all
        return known is not None and not self.dropped and known.isdisjoint(marks)

    def _same_file(self) -> bool:
        """Another file at this path is another ledger, and from then on it is read."""
        try:
            return self.path.stat().st_ino == self._number
        except OSError:
            return False

    def find(self, marks: Collection[bytes]) -> list[Mark]:
        """Those that are known and have not ended. Raises LedgerError where that cannot be said for sure."""
        with self._change:  # before the file is read: what is written meanwhile is in one of them
            if self.dropped:
                raise LedgerError(f"more was private than could be written down: {self.trouble}")
            found = {mark: self._waiting[mark] for mark in marks if mark in self._waiting}
        with self._read() as db:
            for mark in _known(db, list(marks)):
                found[mark.mark] = joined(found[mark.mark], mark) if mark.mark in found else mark
        now = self.clock.now()
        return [mark for mark in found.values() if mark.expires > now]

    def lost(self) -> float:
        """Until when all counts as private since the marks were lost; 0 where they were not. Raises LedgerError."""
        with self._read() as db:
            until = float(self._state(db).get(LOST, 0.0))
        return until if until > self.clock.now() else 0.0

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._reading:
            try:
                number = self.path.stat().st_ino
                if self._reader is None or number != self._reads:
                    self._forget_reader()
                    self._reader, self._reads = connect(self.path, read_only=True), number
                    self._state(self._reader)
                yield self._reader
            except (sqlite3.Error, OSError, ValueError) as broken:
                self._forget_reader()
                raise LedgerError(f"the history in {self.path} cannot be read: {broken}") from broken

    def _state(self, db: sqlite3.Connection) -> dict[str, str]:
        state: dict[str, str] = dict(db.execute("SELECT name, value FROM history"))
        if state.get("check") != self._check:
            raise ValueError("it is not the one that was kept here; see: headgate privacy why lost")
        return state

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # ---- what is added

    def add(self, marks: Iterable[Mark]) -> None:
        """Know them from now on. On disk soon; `flush` waits for that."""
        known = self._all  # `none_of` may let go of it meanwhile
        with self._change:
            for mark in marks:
                there = self._waiting.get(mark.mark)
                if there is not None:
                    mark = joined(there, mark)
                elif len(self._waiting) >= MOST_WAITING:
                    self.dropped = True
                    continue
                self._waiting[mark.mark] = mark
                if known is not None:
                    known.add(mark.mark)
            if known is not None and len(known) > MOST_IN_MEMORY:
                self._all = None
            self._change.notify_all()

    def flush(self, timeout_s: float = FLUSH_S) -> None:
        """Block until all that was added is on disk. Raises LedgerError where that takes too long."""
        with self._change:
            if not self._change.wait_for(lambda: not self._waiting, timeout_s):
                raise LedgerError(f"the history is not being written: {self.trouble or 'the disk is slow'}")

    def close(self) -> None:
        """Write what waits, then stop. Raises LedgerError where a dead disk did not take all of it; the next start
        knows of that."""
        with self._change:
            if self._stopping:
                return
            self._stopping, self._until = True, time.monotonic() + FLUSH_S
            self._change.notify_all()
        self._thread.join(timeout=FLUSH_S + RETRY_S)
        with self._reading:
            self._forget_reader()
        if not self._thread.is_alive():
            self._db.close()
        lost = bool(self._waiting or self.dropped)
        self._running.end(lost=lost)
        if lost:
            raise LedgerError(f"not all that was private could be written down in {self.path}: {self.trouble}; at the "
                              "next start everything counts as private; see: headgate privacy why lost")  # fmt: skip

    def _write_all(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._stopping, SEEN_EVERY_S)
                self._change.wait_for(lambda: self._stopping, GROUP_WAIT_S)
                group, stopping = list(self._waiting.values()), self._stopping
            try:
                self._write(group)
            except sqlite3.Error as broken:
                self.trouble = str(broken)
                if stopping and (not group or time.monotonic() > self._until):
                    return
                with self._change:  # where it is told to stop meanwhile it tries once more at once
                    self._change.wait_for(lambda: self._stopping and not stopping, RETRY_S)  # noqa: B023
                continue
            with self._change:
                self.trouble = ""
                for mark in group:
                    if self._waiting.get(mark.mark) is mark:
                        del self._waiting[mark.mark]
                self._change.notify_all()
                if stopping and not self._waiting:
                    return

    def _write(self, group: list[Mark]) -> None:
        now = self.clock.now()
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(ADD, [(*m[:2], int(m.data_class), *m[3:]) for m in group])
            self._db.execute(SEEN, (repr(now),))
            self._db.execute(ENDED, (now,))


def _known(db: sqlite3.Connection, marks: list[bytes]) -> Iterator[Mark]:
    for start in range(0, len(marks), AT_ONCE):
        some = marks[start : start + AT_ONCE]
        places = ",".join("?" * len(some))
        yield from rows(db.execute(f"SELECT {COLUMNS} FROM marks WHERE mark IN ({places})", some))  # noqa: S608


def rows(cursor: Iterable[tuple[bytes, str, int, str, str, str, float, float]]) -> Iterator[Mark]:
    """Marks out of rows of COLUMNS."""
    for mark, kind, data_class, team, request, kinds, at, expires in cursor:
        yield Mark(mark, kind, DataClass(data_class), team, request, _once(kinds), at, expires)


def joined(there: Mark, new: Mark) -> Mark:
    """Two of one text or session as one: the higher class, the later end and all kinds."""
    higher = new if new.data_class > there.data_class else there
    kinds = _once(f"{there.kinds},{new.kinds}")
    return higher._replace(expires=max(new.expires, there.expires), kinds=kinds)


def _once(kinds: str) -> str:
    """The kinds, each once."""
    return ",".join(sorted({*kinds.split(",")} - {""})) if "," in kinds else kinds
