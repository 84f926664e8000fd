"""A made-up engine: one batch of requests that share its time, as vLLM's continuous batching lets them. No I/O.

A step of the engine makes one token for each request that writes, and reads a piece of the first prompt in line. So
with n that write it takes n ÷ (tokens a second at n), and where a prompt is read as long again as its piece takes; all
that write get the same speed. Prompts are read first come, first served. What does not fit the batch or the KV cache
waits in the engine, and beyond its limit it refuses. Requests never lose their cache to others.
"""

from __future__ import annotations

import asyncio
import bisect
import heapq
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXACT = 1e-6
"""Of a token: sums of floats are off by less."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What an engine can do, as measured or as given. Tokens a second unless a name says otherwise."""

    prefill_per_s: float
    decode: tuple[tuple[int, float], ...]
    """Output tokens a second of all together, by how many write at once."""
    at_once: int
    limit: int
    """Requests it admits."""
    chunk: int = 2048
    """Prompt tokens that one step reads at most (vLLM's max_num_batched_tokens)."""
    kv_tokens: int = 0
    """Tokens its KV cache holds; 0 is no bound."""
    overhead_s: float = 0.0
    """What a first token takes beside reading its prompt."""
    gpus: int = 1

    def step_s(self, writing: int) -> float:
        """Seconds of one step without any reading."""
        if writing <= 0:
            return 0.0
        counts = [count for count, _ in self.decode]
        at = min(bisect.bisect_left(counts, writing), len(counts) - 1)
        (high, fast), (low, slow) = self.decode[at], self.decode[max(0, at - 1)]
        if high == low or writing >= high:
            return max(high, writing) / fast
        share = (writing - low) / (high - low)
        return (1 - share) * low / slow + share * high / fast

    def capacity(self, prompt: float, output: float) -> float:
        """Requests a second of these means that it gets done with its batch full."""
        return 1 / (prompt / self.prefill_per_s + output * self.step_s(self.at_once) / self.at_once)


def profile_of(found: Mapping[str, Any]) -> Profile:
    """From a result's `engine`, or from a file of the same form. Raises ValueError where it is none."""
    try:
        prompt, prefill = float(found.get("prompt_tokens") or 0.0), float(found["prefill_per_s"])
        decode = tuple(sorted((int(n), float(rate)) for n, rate in found["decode"]))
        if not decode or min(prefill, *(min(point) for point in decode)) <= 0:
            raise ValueError("a speed is not above 0")
        return Profile(
            prefill, decode, int(found["at_once"]),
            int(found["limit"]), int(found.get("chunk") or 2048), int(found.get("kv_tokens") or 0),
            max(0.0, float(found.get("first_s") or 0.0) - prompt / prefill), int(found.get("gpus") or 1),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as odd:
        raise ValueError(f"this describes no engine: {odd!r}") from odd


@dataclass(slots=True, eq=False)
class Job:
    """One request in an engine."""

    prompt: int
    output: int
    first: asyncio.Future[float]
    """The time of its first token."""
    ended: asyncio.Future[float]


@dataclass(slots=True)
class Replica:
    """One engine. All of it happens in one loop, whose time it goes by."""

    profile: Profile
    tokens: float = 0.0
    """Made since the start."""
    _reading: deque[Job] = field(default_factory=deque)
    _writing: list[tuple[float, int, Job]] = field(default_factory=list)
    """By how far the writing of all has come when it ends."""
    _waiting: deque[Job] = field(default_factory=deque)
    _held: int = 0
    """Tokens of the KV cache that are set aside."""
    _read: float = 0.0
    """Of the first prompt in line."""
    _written: float = 0.0
    """Tokens that each request which writes all the time has made."""
    _at: float = 0.0
    _read_rate: float = 0.0
    _write_rate: float = 0.0
    _timer: asyncio.TimerHandle | None = None
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def running(self) -> int:
        return len(self._reading) + len(self._writing)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_use(self) -> float | None:
        return self._held / self.profile.kv_tokens if self.profile.kv_tokens else None

    def submit(self, prompt: int, output: int) -> Job | None:
        """Take a request; None where it is refused."""
        loop = asyncio.get_running_loop()
        if self.running + self.waiting >= self.profile.limit:
            return None
        job = Job(max(1, prompt), max(1, output), loop.create_future(), loop.create_future())
        self._advance(loop.time())
        self._waiting.append(job)
        self._settle(loop)
        return job

    def count(self, now: float) -> float:
        """Tokens made by then."""
        self._advance(now)
        return self.tokens

    def _advance(self, now: float) -> None:
        took, self._at = now - self._at, now
        if took > 0:
            self._read += took * self._read_rate
            self._written += took * self._write_rate
            self.tokens += took * self._write_rate * len(self._writing)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        self._advance(loop.time())
        self._settle(loop)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """What is done leaves, what waits comes in, and the speeds are those of what is left."""
        while self._reading and self._read >= self._reading[0].prompt - EXACT:
            self._begin(self._reading.popleft())
        while self._writing and self._writing[0][0] <= self._written + EXACT:
            self._end(heapq.heappop(self._writing)[2])
        while self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            self._held += job.prompt + job.output
            self._reading.append(job)
        self._pace()
        nexts = []
        if self._reading:
            nexts.append((self._reading[0].prompt - self._read) / self._read_rate)
        if self._writing:
            nexts.append((self._writing[0][0] - self._written) / self._write_rate)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._at + max(0.0, min(nexts)), self._tick) if nexts else None

    def _fits(self, job: Job) -> bool:
        if self.running >= self.profile.at_once:
            return False
        return not self.profile.kv_tokens or not self._held or (
            self._held + job.prompt + job.output <= self.profile.kv_tokens
        )  # fmt: skip

    def _pace(self) -> None:
        """How fast is read and written from now on."""
        profile = self.profile
        step = profile.step_s(len(self._writing))
        if self._reading:
            left = sum(itertools.islice((job.prompt for job in self._reading), 8)) - self._read
            piece = min(float(profile.chunk), max(1.0, left))
            whole = step + piece / profile.prefill_per_s
            self._read_rate, self._write_rate = piece / whole, 1 / whole
        else:
            self._read_rate, self._write_rate = 0.0, 1 / step if step else 0.0

    def _begin(self, job: Job) -> None:
        """Its prompt is read: with that comes its first token."""
        self._read = 0.0
        self.tokens += 1
        job.first.set_result(self._at)
        heapq.heappush(self._writing, (self._written + job.output - 1, next(self._numbers), job))

    def _end(self, job: Job) -> None:
        self._held -= job.prompt + job.output
        job.ended.set_result(self._at)
