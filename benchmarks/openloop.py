"""An open loop on light connections: requests go out at their times, whether answers come or not.

It is what overload and the soak are made of: load.py measures more of each request, and is too heavy for thousands a
second.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.wire import Heard, Place, Wire, undisturbed

TICK_S = 0.002


@dataclass(slots=True)
class Sent:
    """One request of an open loop."""

    kind: int
    due: float
    heard: Heard | None = None
    """None where no connection could be made."""
    left: bool = False
    """Whether its caller went away before the end."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: what is sent, how often it is drawn, and after how long its caller leaves."""

    where: Place
    share: float = 1.0
    leaves_after_s: tuple[float, float] | None = None
    """Drawn evenly between these; None stays to the end."""


@dataclass(slots=True)
class OpenLoop:
    """Requests at an even rate, of kinds drawn by their shares with a fixed seed; or each kind once, at its time."""

    kinds: Sequence[Kind]
    rate: float
    seed: int = 1
    drain_s: float = 30.0
    arrivals: Sequence[float] = ()
    """Seconds after the start at which the kinds are sent, one of each in their order; `rate` then counts nothing."""
    sent: list[Sent] = field(default_factory=list)
    _idle: list[Wire] = field(default_factory=list)
    _open: int = 0

    @property
    def open(self) -> int:
        """Requests under way."""
        return self._open

    async def run(self, seconds: float, forget: Callable[[Sent], None] | None = None) -> list[Sent]:
        """Send for so many seconds, then wait for what is under way. With `forget`, each goes there and is not kept."""
        source, number = random.Random(self.seed), 0
        weights = [kind.share for kind in self.kinds]
        tasks: set[asyncio.Task[None]] = set()
        # What is kept for hours must be collected; what is looked at in milliseconds must not be disturbed.
        with undisturbed() if forget is None else contextlib.nullcontext():
            begin = time.monotonic()
            now = 0.0
            while now < seconds:  # however late it wakes up the last time, all that were due in time are sent
                now = time.monotonic() - begin
                while (due := self._due(number)) <= now and due < seconds:
                    which = number if self.arrivals else source.choices(range(len(self.kinds)), weights)[0]
                    self._send(which, begin + due, source, tasks, forget)
                    number += 1
                await asyncio.sleep(TICK_S)
            until = time.monotonic() + self.drain_s
            while self._open and time.monotonic() < until:
                await asyncio.sleep(0.02)
        for wire in self._idle:
            wire.leave()
        await asyncio.gather(*tasks)
        return self.sent

    def _due(self, number: int) -> float:
        """Seconds after the start at which request `number` is sent; infinite after the last."""
        if not self.arrivals:
            return number / self.rate
        return self.arrivals[number] if number < len(self.arrivals) else math.inf

    def _send(
        self, which: int, due: float, source: random.Random, tasks: set[asyncio.Task[None]],
        forget: Callable[[Sent], None] | None,
    ) -> None:  # fmt: skip
        made, kind = Sent(which, due), self.kinds[which]
        leaves = None if kind.leaves_after_s is None else source.uniform(*kind.leaves_after_s)
        if forget is None:
            self.sent.append(made)
        self._open += 1
        while self._idle:
            if (wire := self._idle.pop()).open:
                self._ask(wire, made, kind, leaves, forget)
                return
        task = asyncio.create_task(self._connect(made, kind, leaves, forget))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _connect(
        self, made: Sent, kind: Kind, leaves: float | None, forget: Callable[[Sent], None] | None
    ) -> None:
        try:
            wire = await kind.where.connect()
        except OSError:
            self._open -= 1
            if forget is not None:
                forget(made)
            return
        self._ask(wire, made, kind, leaves, forget)

    def _ask(
        self, wire: Wire, made: Sent, kind: Kind, leaves: float | None, forget: Callable[[Sent], None] | None
    ) -> None:
        timer: asyncio.TimerHandle | None = None

        def done(heard: Heard) -> None:
            self._open -= 1
            if timer is not None:
                timer.cancel()
            if wire.open:
                self._idle.append(wire)
            if forget is not None:
                forget(made)

        def leave() -> None:
            made.left = True
            wire.leave()

        if leaves is not None:
            timer = asyncio.get_running_loop().call_later(leaves, leave)
        made.heard = wire.ask(kind.where.request, done)
