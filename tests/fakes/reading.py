"""A small model of an engine, for what a router can learn of it: first come, first served, prompts read in chunks.

Steps as vLLM makes them: each of the running writes one token, and what is left of the step's tokens reads prompts in
the order they came. Simulated time; nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from router.records import Endpoint, Met, Usage
from router.upstream.pace import Sent, There

READ_S = 0.25
"""Between two readings of an engine."""


@dataclass
class Job:
    """One request."""

    at: float
    prompt: int
    output: int
    streams: bool = True
    others: bool = False
    """Whether another router has sent it."""
    left: int = 0
    written: int = 0
    began: float = -1.0
    first: float = -1.0
    ended: float = -1.0
    sent: Sent | None = None
    met: Met | None = None
    seen: Endpoint = field(default_factory=lambda: Endpoint("near", "near", "", "ready"))
    """The endpoint as the router knew it when it was sent."""


@dataclass
class Engine:
    """Reads `prefill` tokens a second, at most `step` of them at a time, in steps of at least `least_s`."""

    prefill: float = 10_000.0
    step: int = 2048
    least_s: float = 0.02
    each_s: float = 0.0005
    """What each of the running adds to a step."""
    seqs: int = 256
    """Requests it has under way at once; the others wait."""
    jobs: list[Job] = field(default_factory=list)
    read_at: float = -READ_S

    def run(self, there: There, jobs: Iterable[Job], *, start: float = 0.0, ratio: float = 4.0) -> list[Job]:
        """Let the engine work on them all, and `there` see what a router sees."""
        coming = sorted(jobs, key=lambda job: job.at)
        now, waiting, running, done = start, list[Job](), list[Job](), list[Job]()
        while coming or waiting or running:
            if not waiting and not running:
                now = max(now, coming[0].at)
                _send(there, coming, [], waiting, now, ratio)
            now = self._step(now, waiting, running)
            # What came during the step is sent before its tokens come.
            _send(there, coming, [*waiting, *running], waiting, now, ratio)
            self._tell(there, now, waiting, running, done)
            if now - self.read_at >= READ_S:
                self.read_at, begun = now, sum(job.began >= 0 for job in waiting)
                there.read(len(running) + begun, len(waiting) - begun, now)
        return done

    def _step(self, now: float, waiting: list[Job], running: list[Job]) -> float:
        room, read = self.step - len(running), 0
        for job in waiting[: max(0, self.seqs - len(running))]:
            if room <= 0:
                break
            if job.began < 0:
                job.began = now
            part = min(room, job.left)
            job.left -= part
            room -= part
            read += part
        for job in running:
            job.written += 1
        return now + self.least_s + self.each_s * len(running) + read / self.prefill

    @staticmethod
    def _tell(there: There, now: float, waiting: list[Job], running: list[Job], done: list[Job]) -> None:
        for job in [job for job in running if job.written >= job.output]:
            running.remove(job)
            _end(job, now)
            done.append(job)
        while waiting and not waiting[0].left:
            job = waiting.pop(0)
            job.first, job.written = now, 1
            if job.sent is not None and job.streams:
                job.sent.first(now)
            if job.output > 1:
                running.append(job)
            else:
                _end(job, now)
                done.append(job)


def _send(
    there: There, coming: list[Job], before: list[Job], waiting: list[Job], now: float, ratio: float
) -> None:  # fmt: skip
    mine = sum(not job.others for job in before)
    while coming and coming[0].at <= now:
        job = coming.pop(0)
        job.left = job.prompt
        if not job.others:
            job.seen = job.seen._replace(
                pace=there.pace(job.at), unstarted=there.unstarted(job.at), in_flight=mine, others=there.others
            )  # fmt: skip
            mine += 1
            size, blind = int(job.prompt * ratio), not job.streams
            job.sent = there.sent(size, 0, job.at, streams=job.streams, blind=blind)
        waiting.append(job)


def _end(job: Job, now: float) -> None:
    job.ended = now
    if job.sent is not None:
        job.met = job.sent.ended(Usage(job.prompt, job.output), 0, now)
