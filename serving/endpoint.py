"""What is published of one endpoint, how often it is looked at, and the reading of its load.

Shared by the models run here and the servers attached. Knows nothing of processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from serving import probe, scrape
from serving.instance import State
from serving.probe import ProbeError, Target
from serving.scrape import Load

Swapped = Literal["start", "stop", "sleep", "wake"]
"""How a model that runs by demand comes to its place, or gives it up."""

COUNTED_S = 0.5
"""What an engine did is in its counts so soon after it has answered."""
SCRAPE_SHARE = 0.05
"""The share of its time that an engine may spend on being read."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The waits of the supervisor, in seconds."""

    scrape_s: float = 1.0
    """Between two readings of the load of an engine that has something to do;"""
    busy_scrape_s: float = 0.25
    """while it is between half full and full, when the next request may be one too many;"""
    idle_scrape_s: float = 2.0
    """and once it has had nothing to do for `idle_after_s`."""
    idle_after_s: float = 30.0
    slow_scrape_s: float = 2.0
    """The longest pause after a reading that took long; beyond `quiet_s` it would look as if nothing moved."""
    scrape_timeout_s: float = 3.0
    attached_s: float = 5.0
    """Between two looks at an attached server's models."""
    look_s: float = 0.5
    """Between two looks at an engine's processes and at what has moved."""
    quiet_s: float = 2.5
    """Without progress this long while requests run, a one-token probe is sent."""
    out_s: float = 6.0
    """Without progress this long and without an answer to a probe it is stalled: with a reading before and what a
    router needs to hear of it, that is less than ten seconds."""
    stopped_s: float = 0.0
    """And one of which a process was stopped (SIGSTOP) is so at once."""
    idle_s: float = 30.0
    """An engine that has nothing to do is asked for one token so often: it may have frozen while nobody asked."""
    work_s: float = 120.0
    """A CPU engine that computes is left in peace so long: one step over a long prompt can take that."""
    frozen_s: float = 4.0
    """Stalled this long, an engine whose processes do nothing is started again,"""
    stall_s: float = 30.0
    """and this long one that is busy all the same: it may come to an end, as when a kernel is being compiled."""
    memory_s: float = 60.0
    """How long a start waits for memory that others still hold."""
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    good_s: float = 300.0
    """After this long without a crash the pauses begin small again."""
    tries: int = 3
    """Starts that may fail in a row before the model counts as failed."""
    failed_pause_s: float = 300.0
    """Between two tries of a failed model."""
    start_s: float = 3600.0
    grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    heard_s: float = 2.0
    """From the word that a model rests until every router has heard it: each asks every second."""
    sleep_s: float = 120.0
    """An engine has so long to fall asleep, and to wake up: its weights are copied over."""
    drain_s: float = 30.0
    drain_least_s: float = 1.0
    """A router needs this long to see that an instance drains."""
    gpus_s: float = 5.0

    def hanging(self, after_s: float) -> Timing:
        """These, where an engine may stand still for so long; where that is longer than usual, stopped as well."""
        patient = after_s > self.out_s
        return replace(
            self, out_s=after_s, quiet_s=min(self.quiet_s, after_s / 2), work_s=max(self.work_s, after_s),
            stopped_s=after_s if patient else 0.0, idle_scrape_s=min(self.idle_scrape_s, after_s / 3),
            slow_scrape_s=min(self.slow_scrape_s, after_s / 3),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """One endpoint as it is published. `since` in Unix seconds, `context` in tokens, 0 is unknown."""

    name: str
    model: str
    """The name callers use."""
    served: str
    """The name the server itself gives the model: what the body sent there must say."""
    state: State
    detail: str
    since: float
    address: str
    attached: bool
    context: int
    limit: int
    metrics: Literal["vllm", "none"]
    restarts: int = 0
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    abilities: tuple[str, ...] | None = None
    """What the model can do, by its entry; None is unknown."""
    key_env: str = ""
    key_file: str = ""
    ca_file: str = ""
    load: Load | None = None
    load_age_s: float | None = None
    preempted_s: float | None = None
    """Seconds since it was last seen to have interrupted a request for want of KV cache; None is never or unknown."""
    log: tuple[str, ...] = ()
    way_out: str = ""
    """Where it is to have none: the way out that the kernel knows for its process all the same."""
    start_s: float | None = None
    """How long its last start or wake took; None is unknown."""
    ready_in_s: float | None = None
    """Seconds until it is likely to answer a request that waits for it; None is unknown. Only of one that sleeps."""
    swaps: Mapping[Swapped, int] | None = None
    """How often it came and went so since serving was started; None where it does not run by demand."""


@dataclass(slots=True)
class Watch:
    """The load of one server, read again and again, and whether its work moves on."""

    target: Target
    timing: Timing
    load: Load | None = None
    read_at: float = 0.0
    """Monotonic seconds of the last reading that succeeded."""
    moved_at: float = field(default_factory=time.monotonic)
    """Monotonic seconds when something last moved, or there was nothing to move."""
    worked_at: float = field(default_factory=time.monotonic)
    """Monotonic seconds when it was last seen to work: something moved, or a probe was answered."""
    took_s: float = 0.0
    """How long the readings take it, the last ones counting most."""
    preempted_at: float | None = None
    """Monotonic seconds when it was last seen to have interrupted a request."""
    busy_at: float = field(default_factory=time.monotonic)
    """Monotonic seconds when it last had anything to do."""
    narrow: bool = True
    """Whether it gives the few metrics that are needed alone."""
    asked: bool = False
    """Whether a probe is under way, so that there is something to move whatever the readings say."""
    probed: bool = False
    """Whether what the last reading shows may come from a probe and from nobody who needs an answer."""

    refused: bool = False
    """Whether its last probe failed: one that has nothing to do is not well on the word of its pages alone."""

    _probed_at: float = -inf
    _began: float = -inf
    """When the last reading that succeeded was asked for: what was made since may be missing in it."""

    def age_s(self) -> float | None:
        """Seconds since the last reading; None before the first."""
        return None if self.load is None else time.monotonic() - self.read_at

    def still_s(self) -> float:
        """Seconds without progress. Metrics that cannot be read for as long are no progress either."""
        return time.monotonic() - self.moved_at

    def preempted_s(self) -> float | None:
        """Seconds since the last preemption that was seen."""
        return None if self.preempted_at is None else time.monotonic() - self.preempted_at

    def empty_since(self, moment: float) -> bool:
        """Whether a reading from after `moment` shows nothing there; an older one may not know of the last requests."""
        load = self.load
        return self.read_at >= moment and load is not None and load.running == 0 and not load.waiting

    def pause_s(self, limit: int) -> float:
        """Seconds to wait before the next reading. `limit`: requests it takes at once, 0 is unknown."""
        return pause_s(self.timing, self.load, limit, self.took_s, time.monotonic() - self.busy_at)

    async def read(self) -> None:
        """Read the load once. A server that does not answer leaves the old reading to grow older."""
        began = time.monotonic()
        try:
            load = await self._look()
        except ProbeError:
            return
        now = time.monotonic()
        self.took_s = now - began if self.load is None else (self.took_s + now - began) / 2
        if load.running != 0 or load.waiting:
            self.busy_at = now
        before = self.load.preemptions if self.load is not None else None
        if before is not None and load.preemptions is not None and load.preemptions > before:
            self.preempted_at = now
        if self.load is None or scrape.progress(load) != scrape.progress(self.load):
            self.moved_at = self.worked_at = now
        elif load.running in (None, 0) and not self.asked and not self._refuses():
            self.moved_at = now
        self.probed, self._began = self.asked or self._probed_at + COUNTED_S >= self._began, began
        if load.asleep:  # it answers nobody, and that is as it should be
            self.moved_at = self.worked_at = now
        self.load, self.read_at = load, now

    def _refuses(self) -> bool:
        """Whether it is asked while it is idle, and makes no token then; a server that is not is not judged by that."""
        return self.refused and self.timing.idle_s < inf

    async def _look(self) -> Load:
        """The load: off a page with nothing else where the server has one. Raises ProbeError."""
        if self.narrow:
            try:
                load = scrape.parse(await probe.metrics(self.target, self.timing.scrape_timeout_s, scrape.NARROW_PAGE))
            except ProbeError as failed:
                if failed.status is None:
                    raise
            else:
                if load != Load():
                    return load
        load = scrape.parse(await probe.metrics(self.target, self.timing.scrape_timeout_s))
        self.narrow = False
        return load

    async def answers(self, model: str, timeout_s: float) -> str:
        """Have it make one token; "" where it did, which is proof of life, else what went wrong."""
        self.asked = True
        try:
            failed = await probe.one_token(self.target, model, timeout_s)
        finally:
            self.asked, self._probed_at = False, time.monotonic()
        self.refused = bool(failed)
        if not failed:
            self.moved_at = self.worked_at = time.monotonic()
        return failed


def pause_s(timing: Timing, load: Load | None, limit: int, took_s: float, idle_s: float) -> float:
    """Seconds until the next reading of an engine that has had nothing to do for `idle_s`.

    Often only where it matters: a reading takes part of the engine's own loop, up to 60 ms where the page is long. So
    one that answers slowly is asked no more than a twentieth of the time.
    """
    pause = timing.idle_scrape_s if idle_s >= timing.idle_after_s else timing.scrape_s
    if load is not None and 0.5 <= fullness(load, limit) < 1:
        pause = min(timing.busy_scrape_s, timing.scrape_s)
    return max(pause, min(took_s / SCRAPE_SHARE, timing.slow_scrape_s))


def fullness(load: Load, limit: int) -> float:
    """How much of what it can take an engine has, by its own word; at 1 more would have to wait."""
    places = ((load.running or 0) + (load.waiting or 0)) / limit if limit else 0.0
    return max(places, load.kv_use or 0.0)
