"""Several workers on one port: the parent process that keeps them, and what is one worker's share.

The parent answers nobody. It looks whether the port is free, settles what an earlier router left open, makes the shared
counters from the ledger, then starts the workers and again those that end. Each binds the port with SO_REUSEPORT, so
the kernel spreads connections over them; one that dies takes its own connections along and no others. One that stands
still is ended, as if it had died.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from router import child
from router.child import Child
from router.keeper import GOOD_RUN_S, Keeper, Part
from router.ledger import counters
from router.ledger.budgets import Budgets
from router.ledger.counters import Shared
from router.ledger.entries import settle_lost
from router.ledger.store import LedgerError, Store, connect
from serving.home import Home

DRAIN_S = 30
"""Seconds a router that stops gets to finish what it is answering."""
STOP_S = DRAIN_S + 8.0
"""Less than the keeper gives the router, so that the parent is there to see its workers end."""
FIRST_PAUSE_S = 0.1
"""Others answer meanwhile, but each with its own connections only."""
BUDGETS, RATES = "budgets.table", "rates.table"
"""Files of shared counters, in the folder of what is only true while something runs."""


@dataclass(frozen=True, slots=True)
class Share:
    """Which worker this is, and of how many."""

    number: int = 1
    """From 1. The first one adds up the metrics of all, and has `router.admin_port`."""
    of: int = 1
    writer: str = ""
    """Its id as a writer of the ledger; drawn by the parent, so that it knows which writer ended with which process."""
    gone: tuple[str, ...] = ()
    """The ids of those in whose place it was started: what they left open is closed by this one."""

    @property
    def alone(self) -> bool:
        return self.of == 1

    def part(self, limit: int) -> int:
        """This worker's part of a limit that holds for all, at least 1; 0 is no limit and stays so."""
        if limit <= 0:
            return limit
        return max(1, limit // self.of + (self.number <= limit % self.of))

    def socket(self, number: int | None = None) -> str:
        """The name of a worker's own Unix socket for the operator."""
        which = self.number if number is None else number
        return "admin" if which == 1 else f"admin-{which}"


class Workers(Keeper):
    """Keeps the workers of one router; they write where the parent writes."""

    name = "router"

    def __init__(
        self, home: Home, count: int, args: list[str], environment: Mapping[str, str],
        silent_s: float = child.SILENT_S,
    ) -> None:  # fmt: skip
        """`args`: those of `python -m router` which each worker is to have as well."""
        command = (sys.executable, "-P", "-m", "router", "--parent-pipe", f"--of={count}", *args)
        parts = [Part(f"worker-{n}", command, dict(environment), beats=True) for n in range(1, count + 1)]
        super().__init__(home, parts, silent_s)
        self._writers: dict[str, tuple[str, ...]] = {}
        """By worker, the ids it has had since it last ran well; the last one is the present one's."""
        self._begun: dict[str, float] = {}

    async def _end_all(self, tasks: Mapping[str, asyncio.Task[None]]) -> None:
        for task in tasks.values():  # all at once: none takes the connections of another
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _first_pause_s(self) -> float:
        return FIRST_PAUSE_S

    def _grace_s(self, part: Part) -> float:
        return STOP_S

    async def _start(self, part: Part) -> Child:
        gone, writer, now = self._writers.get(part.name, ()), secrets.token_hex(8), time.monotonic()
        # One that died before it could close what others left open leaves that to the next.
        gone = gone[-1:] if now - self._begun.get(part.name, now) > GOOD_RUN_S else gone
        self._writers[part.name], self._begun[part.name] = (*gone, writer), now
        args = ["--worker", part.name.removeprefix("worker-"), "--writer", writer]
        args += [f"--gone={one}" for one in gone]
        return await child.start((*part.args, *args), part.environment, str, beats=part.beats)


def prepare(home: Home, now: float) -> None:
    """Before any worker runs: close what an earlier router left open, and count what was spent.

    Raises LedgerError where the ledger cannot be used, OSError where the shared counters cannot be made.
    """
    with contextlib.closing(Store(home.ledger)) as store:
        settle_lost(store, now)
    with contextlib.closing(connect(home.ledger, read_only=True)) as db:
        keys = db.execute("SELECT COUNT(*) FROM keys").fetchone()[0]
        for name in (BUDGETS, RATES):
            counters.make(home.run / name, keys)
        with contextlib.closing(Shared(home.run / BUDGETS)) as shared:
            Budgets(shared).load(db, now)


@contextlib.contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Held by whoever is the router of an installation: the parent, or the one process there is. Raises LedgerError.

    A second router would close the requests of the first as lost. Where workers of a parent that was killed still
    finish their answers, they are waited for: what they do counts as well.
    """
    mine = os.open(home.run / "router.lock", os.O_RDWR | os.O_CREAT, 0o600)
    workers = os.open(home.run / "workers.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locked(mine, fcntl.LOCK_EX):
            raise LedgerError(f"another router of {home.root} runs already; see: headgate status")
        end = time.monotonic() + STOP_S
        while not _locked(workers, fcntl.LOCK_EX):
            if time.monotonic() > end:
                raise LedgerError(f"workers of an earlier router of {home.root} do not end; see: headgate status")
            time.sleep(0.05)
        os.close(workers)
        workers = -1
        yield
    finally:
        os.close(mine)
        if workers >= 0:
            os.close(workers)


@contextlib.contextmanager
def one_of_several(home: Home) -> Iterator[None]:
    """Held by each worker: no other router begins before all have ended. Raises LedgerError."""
    file = os.open(home.run / "workers.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locked(file, fcntl.LOCK_SH):
            raise LedgerError(f"another router of {home.root} is starting; see: headgate status")
        yield
    finally:
        os.close(file)


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
