"""Whether one engine is alive: what moves there, what its processes do, and whether it makes a token when asked.

A stuck EngineCore still answers /health, /v1/models and /metrics, so a page that answers says nothing. What counts is
progress; where there is none a one-token probe is the proof of life, and what the kernel says of the processes tells
one that is frozen from one that computes a long step. `judge` decides; `Life` looks and asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from serving import processes
from serving.endpoint import Timing, Watch
from serving.processes import Process

MARK = "VLLM::"
"""What vLLM calls its own processes with: an engine core or a worker that is gone never comes back."""
AT_WORK = 0.2
"""The share of one core from which on its processes count as at work. Those of a real engine that hung used a fiftieth,
after a few seconds in which they looked for work; one at work gets this much of a machine that is far too busy."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What was seen of an engine at one look."""

    still_s: float
    """Since anything moved, or there was nothing to move."""
    idle_s: float
    """Since it was last seen to work."""
    failed: str
    """What its last probe said in vain since it stood still; "" where none did."""
    asking: bool
    """Whether a probe is under way."""
    stopped: str = ""
    """The process of it that somebody stopped."""
    busy: bool = False
    """Whether its processes, other than the API server, use the CPU, or what they started does."""
    serving: bool = False
    """Whether its API server does: no progress, but it may be reading a request that is very large."""
    computing: bool = False
    """Whether a GPU of it computes. vLLM sleeps until the GPU is done, so that one at work uses no CPU."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do: nothing, send a probe, or take it out for `why`."""

    do: Literal["nothing", "ask", "out"]
    why: str = ""


def judge(signs: Signs, timing: Timing, *, on_cpu: bool) -> Verdict:
    """What the signs mean. Pure.

    A probe that is late proves nothing while the CPU it would run on is at work: the step before it may be long.
    """
    if signs.stopped and signs.still_s >= timing.stopped_s:
        return Verdict("out", f"its process {signs.stopped} was stopped (SIGSTOP) and does nothing")
    limit_s = timing.work_s if on_cpu and signs.busy else timing.out_s
    if signs.still_s >= limit_s and (signs.failed or signs.asking):
        told = signs.failed or "no answer yet"
        return Verdict("out", f"no progress for {signs.still_s:.0f} s, and a one-token probe failed: {told}")
    quiet = signs.still_s >= timing.quiet_s or signs.idle_s >= timing.idle_s
    return Verdict("ask" if quiet and not signs.asking else "nothing")


def restart_due(stalled_s: float, signs: Signs, timing: Timing) -> bool:
    """Whether an engine that has been stalled so long is to be ended and started again. Pure."""
    busy = (signs.busy or signs.serving or signs.computing) and not signs.stopped
    return stalled_s >= (timing.stall_s if busy else timing.frozen_s)


class Life:
    """Looks at one engine again and again. `members`: its processes as they were when it was ready; `present`: all that
    it has now; `computing`: whether a GPU of it works."""

    def __init__(
        self, watch: Watch, model: str, leader: int | None, members: Sequence[Process], on_cpu: bool,
        present: Callable[[], Sequence[Process]] = tuple, computing: Callable[[], bool] = bool,
    ) -> None:  # fmt: skip
        self.watch = watch
        self.restart = ""
        """Why it must be started again; "" while it need not."""
        self.stall = ""
        """Why nobody may send there; "" while it is well."""
        self._model, self._members, self._on_cpu = model, tuple(members), on_cpu
        self._leader, self._present, self._computing = leader, present, computing
        self._helpers: dict[tuple[int, int], tuple[Process, float]] = {}
        """What its processes started since, as a compiler, and the CPU seconds each had used when last seen."""
        self._sought_at = 0.0
        self._probe: asyncio.Task[str] | None = None
        self._asked_at = 0.0
        self._failed = ""
        self._stalled_at: float | None = None
        self._stopped = ""
        self._worked: tuple[float, float, float] | None = None
        """When the present stillness was first looked at, and the CPU seconds until then: of the rest, and of the API
        server."""

    def look(self) -> None:
        """Look once, and ask for a token where that is due. Never waits."""
        self._take_answer()
        timing, now = self.watch.timing, time.monotonic()
        signs = self._signs(now)
        if self.restart:
            return
        verdict = judge(signs, timing, on_cpu=self._on_cpu)
        if verdict.do == "ask" or (verdict.do == "out" and not signs.asking):
            self._ask(now)
        if verdict.do != "out":
            self.stall, self._stalled_at = "", None
            return
        self.stall = verdict.why
        self._stalled_at = self._stalled_at or now
        if restart_due(now - self._stalled_at, signs, timing):
            self.restart = f"it hung: {verdict.why}"

    def end(self) -> None:
        """Ask no more."""
        if self._probe is not None:
            self._probe.cancel()

    def _ask(self, now: float) -> None:
        # A refusal comes at once, and the next one would as well.
        if now - self._asked_at >= self.watch.timing.quiet_s / 3:
            self._asked_at = now
            self._probe = asyncio.ensure_future(self.watch.answers(self._model, self.watch.timing.work_s))

    def _take_answer(self) -> None:
        if self._probe is not None and self._probe.done():
            self._failed, self._probe = self._probe.result(), None
        if self.watch.still_s() < self.watch.timing.quiet_s:
            self._failed = ""

    def _signs(self, now: float) -> Signs:
        cpu_s, server_s, stopped = 0.0, 0.0, ""
        for one in self._members:
            seen = processes.sign(one)
            if seen is None:
                if one.name.startswith(MARK):
                    self.restart = f"its process {one.name} ({one.pid}) ended"
                continue
            stopped = stopped or (f"{one.name} ({one.pid})" if seen.stopped else "")
            if one.pid == self._leader:
                server_s = seen.cpu_s
            else:
                cpu_s += seen.cpu_s
        # Seen twice in a row: a shell's job control stops and continues in a moment.
        lasting, self._stopped = stopped if stopped and stopped == self._stopped else "", stopped
        still_s = self.watch.still_s()
        return Signs(
            still_s, now - self.watch.worked_at, self._failed, self._probe is not None, lasting,
            *self._busy(still_s, now, cpu_s, server_s), still_s >= self.watch.timing.quiet_s and self._computing(),
        )  # fmt: skip

    def _busy(self, still_s: float, now: float, cpu_s: float, server_s: float) -> tuple[bool, bool]:
        """Whether they used the CPU since it stands still, all that time taken together: the rest, and the server."""
        if still_s < self.watch.timing.quiet_s / 2:
            self._worked = None
            self._helpers.clear()
            return False, False
        cpu_s += self._helped_s(now)
        if self._worked is None:
            self._worked = (now, cpu_s, server_s)
        since, *before = self._worked
        passed = max(now - since, 1e-9)
        rest, server = ((used - then) / passed >= AT_WORK for used, then in zip((cpu_s, server_s), before, strict=True))
        return rest, server

    def _helped_s(self, now: float) -> float:
        """CPU seconds of its helpers. They come and go, so none is missed when it ends."""
        if now - self._sought_at >= self.watch.timing.quiet_s:
            self._sought_at = now  # not at each look: the processes of the whole machine are looked through
            known = {(one.pid, one.start) for one in self._members}
            for one in self._present():
                if (one.pid, one.start) not in known:
                    self._helpers.setdefault((one.pid, one.start), (one, 0.0))
        for at, (one, _) in self._helpers.items():
            if (seen := processes.sign(one)) is not None:
                self._helpers[at] = one, seen.cpu_s
        return sum(used for _, used in self._helpers.values())
