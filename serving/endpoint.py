"""What is published of one endpoint, how often it is looked at, and the reading of its load.

Shared by the models run here and the servers attached. Knows nothing of processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from serving import probe, scrape
from serving.instance import State
from serving.probe import ProbeError, Target
from serving.scrape import Load


@dataclass(frozen=True, slots=True)
class Timing:
    """The waits of the supervisor, in seconds."""

    scrape_s: float = 1.0
    scrape_timeout_s: float = 3.0
    attached_s: float = 5.0
    """Between two looks at an attached server's models."""
    probe_s: float = 10.0
    """Without progress this long while requests run, a one-token probe is sent; it has as long to answer."""
    stall_s: float = 120.0
    """Stalled this long, an engine is started again."""
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
    drain_s: float = 30.0
    drain_least_s: float = 1.0
    """A router needs this long to see that an instance drains."""
    gpus_s: float = 5.0


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
    log: tuple[str, ...] = ()
    way_out: str = ""
    """Where it is to have none: the way out that the kernel knows for its process all the same."""


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

    def age_s(self) -> float | None:
        """Seconds since the last reading; None before the first."""
        return None if self.load is None else time.monotonic() - self.read_at

    async def read(self) -> None:
        """Read the load once. A server that does not answer leaves the old reading to grow older."""
        try:
            load = scrape.parse(await probe.metrics(self.target, self.timing.scrape_timeout_s))
        except ProbeError:
            return
        now = time.monotonic()
        if load != self.load or load.running in (None, 0):
            self.moved_at = now
        self.load, self.read_at = load, now

    async def stall(self, model: str) -> str:
        """ "" while it moves or still answers a one-token probe, else how long it has stood still.

        A frozen EngineCore still answers /health, /v1/models and /metrics, so only progress counts. Metrics that cannot
        be read for as long are no progress either.
        """
        if time.monotonic() - self.moved_at < self.timing.probe_s:
            return ""
        if not (failed := await probe.one_token(self.target, model, self.timing.probe_s)):
            self.moved_at = time.monotonic()
            return ""
        return f"no progress for {time.monotonic() - self.moved_at:.0f} s, and a one-token probe failed: {failed}"
