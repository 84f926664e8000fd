"""What writes the ledger: append-only events, in one hash chain per writer and boot.

One thread writes, in groups, so that a request never waits for the disk unless it asks to (`durable`). A full disk or a
locked file stops nothing local: events wait in a bounded spool and `healthy` turns false.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import secrets
import sqlite3
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from router.ledger.chain import Event as Event
from router.ledger.chain import chain_hash, read_events, text
from router.ledger.chain import verify as verify
from router.ledger.schema import BUSY_S
from router.ledger.schema import LedgerError as LedgerError
from router.ledger.schema import connect as connect
from router.ledger.settled import NOTE, Unsettled

COLUMNS = 10
"""Of the table of events."""
SPOOL_LIMIT = 20_000
"""Events that may wait for a disk that does not take them: about 40 MB."""
GROUP = 128
"""Events written in one transaction at most: one statement, so that the thread gives up Python's lock once for all."""
EXACT = 16
"""Groups up to this size, most of them, have a statement of their own: empty rows cost time as well."""
SIZES = (*range(1, EXACT + 1), 32, 64, GROUP)
"""The sizes that have a statement; a group between two of them takes the larger one's and leaves rows empty. A prepared
statement keeps 2 kB for each of its rows as long as the ledger is open: one for every size came to 17 MB."""
NOTE_EVERY = 2000
"""Events from one note of what is settled to the next: so many more a start after a crash may have to look at."""
GROUP_WAIT_S = 0.01
"""How long the first event of a group waits for others, where nobody waits for it: a transaction costs as much as ten
events, so each one of its own would cost a request more than all else that is done for it."""
LOOK_S = (0.0002, 0.002)
"""Seconds between two looks at a lock that another process holds."""
LATEST = (
    "SELECT MAX(at) FROM events WHERE kind = 'opened'",
    "SELECT MAX(at) FROM events WHERE kind = 'refused'",
    "SELECT MAX(CAST(value AS REAL)) FROM history WHERE name = 'seen'",
)
RETRY_S = 0.25
"""Seconds between two tries at a disk that takes nothing."""


class Store:
    """One writer of a ledger file. `append` never blocks; `durable` waits until all before it is on disk.

    Several processes may write to one file, each with a writer's id of its own, drawn anew at each start.
    """

    def __init__(self, path: Path, writer: str = "") -> None:
        """`writer`: the id of this process and start where another one has drawn it; never one that was used before."""
        self.path = path
        self.writer = writer or secrets.token_hex(8)
        self.healthy = True
        self.trouble = ""
        self._db = connect(path)
        self._db.execute("PRAGMA busy_timeout=0")  # see `_execute`
        self._waiting: deque[Event] = deque()
        self._appended = self._written = 0
        self._asked: list[tuple[int, Callable[[], None]]] = []
        """Who is told once so many events are on disk."""
        self._asking = threading.Lock()
        """Held to change `_asked` and `_written`."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        """Whether the thread waits for the first event of a group, which then has to ring."""
        self._stopping = False
        self._seq, self._head = 0, ""
        self._unsettled, self._noted = Unsettled(), 0
        self._thread = threading.Thread(target=self._write_all, name="ledger", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the spool takes no more: then even local answers must stop."""
        return len(self._waiting) >= SPOOL_LIMIT

    def append(self, event: Event) -> None:
        """Have it written soon. It takes no lock and wakes a sleeping writer only; for one thread, the event loop's."""
        self._waiting.append(event)
        self._appended += 1
        if self._asleep:
            self._asleep = False
            self._bell.put(None)

    async def durable(self, timeout_s: float = 2.0) -> None:
        """Return when everything appended so far is on disk. Raises LedgerError where that takes too long."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        asked = self._ask(lambda: _resolve_in(loop, future))
        if asked is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as late:
            raise LedgerError(f"the ledger is not being written: {self.trouble or 'the disk is slow'}") from late
        finally:
            self._withdraw(asked)

    def flush(self, timeout_s: float = BUSY_S + 1) -> None:
        """Block until everything appended so far is on disk. Raises LedgerError where that takes too long."""
        written = threading.Event()
        asked = self._ask(written.set)
        if asked is not None and not written.wait(timeout_s):
            self._withdraw(asked)
            raise LedgerError(f"the ledger is not being written: {self.trouble or 'the disk is slow'}")

    def _ask(self, tell: Callable[[], None]) -> tuple[int, Callable[[], None]] | None:
        """Have `tell` called, in the writer's thread, once all that was appended is on disk; None where it is."""
        with self._asking:
            if self._written >= self._appended:
                return None
            asked = (self._appended, tell)
            self._asked.append(asked)
        self._bell.put(None)  # now, and not once the group has waited
        return asked

    def _withdraw(self, asked: tuple[int, Callable[[], None]]) -> None:
        with self._asking, contextlib.suppress(ValueError):  # gone already where it was told
            self._asked.remove(asked)

    def events(self, request: str) -> list[dict[str, Any]]:
        """All events of one request that are on disk, oldest first. Raises LedgerError where it cannot be read."""
        try:
            with contextlib.closing(connect(self.path, read_only=True)) as db:
                return list(read_events(db, request))
        except sqlite3.Error as broken:
            raise LedgerError(f"the ledger {self.path} cannot be read: {broken}") from broken

    def close(self) -> None:
        """Write what waits, then stop. Raises LedgerError naming how much a dead disk did not take."""
        self._stopping = True
        self._bell.put(None)
        self._thread.join(timeout=BUSY_S + 1)
        if not self._thread.is_alive():  # a connection must not be closed under a thread that uses it
            self._db.close()
        if lost := len(self._waiting):
            raise LedgerError(f"{lost} events of the ledger {self.path} could not be written: {self.trouble}")

    def _write_all(self) -> None:
        try:
            while group := self._next_group():
                try:
                    self._write(group)
                except Exception as broken:
                    # Also what nobody foresaw: without this thread nothing is ever answered again.
                    self.healthy, self.trouble = False, str(broken) or type(broken).__name__
                    if self._stopping:
                        return
                    # The disk may come back. Nothing that waits is thrown away, and nobody who asks hurries it.
                    self._pause(RETRY_S, lambda: self._stopping)
                    continue
                self.healthy, self.trouble = True, ""
                self._acknowledge(len(group))
                self._unsettled.written(group)
                if self._seq >= self._noted + NOTE_EVERY:
                    self._note()
            if self._seq > self._noted:
                self._note()
        finally:
            if self._waiting or not self._stopping:  # whatever ended it: nobody may believe that records are being kept
                self.healthy, self.trouble = False, self.trouble or "its writer has stopped"

    def _next_group(self) -> list[Event]:
        """The events to write next: once there are some, and others have had the time to join them; none at the end."""
        while not self._waiting and not self._stopping:
            self._asleep = True
            if not self._waiting and not self._stopping:  # looked at again: `append` may not have seen it asleep
                self._bell.get()
            self._asleep = False
        if len(self._waiting) < GROUP:
            self._pause(GROUP_WAIT_S, lambda: self._stopping or bool(self._asked))
        # By number: an iterator breaks where the event loop appends meanwhile.
        return [self._waiting[number] for number in range(min(len(self._waiting), GROUP))]

    def _pause(self, seconds: float, over: Callable[[], bool]) -> None:
        """Wait so long, or until a bell after which it is `over`."""
        end = time.monotonic() + seconds
        while not over() and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=left)

    def _write(self, group: list[Event]) -> None:
        """Write a group as one statement, which is a transaction of its own."""
        writer, seq, head = self.writer, self._seq, self._head
        values: list[Any] = []
        for event in group:
            seq += 1
            body = text(event.body)
            digest = chain_hash(head, writer, seq, event, body)
            values += (writer, seq, event.at, event.kind, event.request, event.key, event.cost, body, head, digest)
            head = digest
        size = SIZES[bisect_left(SIZES, len(group))]
        values += ("",) * (COLUMNS * size - len(values))  # not None, which takes sqlite3 ten times as long to bind
        self._execute(_insert(size), values)
        self._seq, self._head = seq, head

    def _execute(self, statement: str, values: Sequence[Any]) -> None:
        """Write, as soon as no other process does.

        SQLite would wait by itself, but longer from look to look, up to 100 ms: among workers that write all the time
        it would seldom look in the moment in which the lock is free.
        """
        end = time.monotonic() + BUSY_S
        while True:
            try:
                self._db.execute(statement, values)
            except sqlite3.OperationalError as held:
                if held.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= end:
                    raise
            else:
                return
            time.sleep(random.uniform(*LOOK_S))  # noqa: S311, it only keeps two from looking in step

    def _note(self) -> None:
        """Say on disk up to where everything is closed. Where that fails a start takes longer, and no more."""
        with contextlib.suppress(sqlite3.Error):
            self._execute(NOTE, (self.writer, self._unsettled.settled))
        self._noted = self._seq

    def _acknowledge(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()
        with self._asking:
            self._written += count
            ready = [tell for wanted, tell in self._asked if wanted <= self._written]
            self._asked = [asked for asked in self._asked if asked[0] > self._written]
        for tell in ready:
            tell()


def latest(path: Path) -> float:
    """The latest moment that the ledger tells of, in Unix seconds; 0 where of none. Raises LedgerError.

    By the indices of what was asked; the history says each hour what time it is.
    """
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            return max(float(db.execute(question).fetchone()[0] or 0.0) for question in LATEST)
    except (sqlite3.Error, ValueError) as broken:
        raise LedgerError(f"the ledger {path} cannot be read: {broken}") from broken


@functools.cache
def _insert(size: int) -> str:
    """The statement for so many rows; SQLite keeps each prepared. Where not every size has one, it skips empty rows."""
    row = f"({','.join('?' * COLUMNS)})"
    rows = f"VALUES {','.join([row] * size)}"
    if size > EXACT:
        rows = f"SELECT * FROM ({rows}) WHERE column1 <> ''"  # noqa: S608  marks alone
    return f"INSERT INTO events {rows}"


def _resolve_in(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
