"""The engines behind a model, as serving publishes them, and what vLLM itself counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import cpu
from benchmarks.breakeven import Flow
from benchmarks.installation import Stop
from serving import probe, scrape
from serving.probe import ProbeError, Target

MOST_AT_ONCE = 64
"""Connections of a closed loop where nothing says how many the engine takes."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A model and all ready instances of it."""

    model: str
    addresses: tuple[str, ...]
    gpus: int
    """GPUs they hold together; 1 for the machine where they hold none."""
    on_gpu: bool
    context: int
    limit: int
    """Requests they take at once; 0 is unknown."""

    @property
    def connections(self) -> int:
        return min(self.limit or MOST_AT_ONCE, 256)


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens since the engines started, at a time of the monotonic clock."""

    at: float
    prompt: int
    output: int


def find(instances: Sequence[Mapping[str, Any]], model: str) -> Engine:
    """The engine for `model`; without a name, that of the first one that is ready. Raises Stop."""
    counted = [i for i in instances if i["state"] == "ready" and i["metrics"] == "vllm"]
    name = model or next((str(i["model"]) for i in counted), "")
    mine = [i for i in counted if i["model"] == name]
    if not mine:
        there = ", ".join(dict.fromkeys(str(i["model"]) for i in counted)) or "none"
        raise Stop(f"no engine with vLLM's counters is ready for {name or 'any model'}; ready are: {there}")
    gpus = sum(len(i["gpus"]) for i in mine)
    return Engine(
        model=name, addresses=tuple(str(i["address"]) for i in mine), gpus=gpus or 1, on_gpu=gpus > 0,
        context=min(int(i["context"]) for i in mine), limit=sum(int(i["limit"]) for i in mine),
    )  # fmt: skip


async def count(engine: Engine) -> Count:
    """Read the counters of all its instances now. Raises Stop where one cannot be read."""
    before = time.monotonic()
    prompt = output = 0
    for address in engine.addresses:
        try:
            load = scrape.parse(await probe.metrics(Target(address), timeout_s=10))
        except ProbeError as failed:
            raise Stop(f"the engine of {engine.model} does not give its counters: {failed}") from failed
        if load.prompt_tokens is None or load.output_tokens is None:
            raise Stop(f"the engine of {engine.model} does not count its tokens; a vLLM with /metrics is needed")
        prompt, output = prompt + load.prompt_tokens, output + load.output_tokens
    # The reading is somewhere between asking and hearing.
    return Count((before + time.monotonic()) / 2, prompt, output)


@dataclass(frozen=True, slots=True)
class Spell:
    """What an engine did for a while."""

    flow: Flow
    tokens: int
    """Of its answers."""
    cpu_s: float
    """CPU seconds that its processes took."""
    seconds: float

    @property
    def cores(self) -> float:
        """That it kept busy."""
        return self.cpu_s / self.seconds


async def spell(engine: Engine, seconds: float, pids: Iterable[int] = ()) -> Spell:
    """Let so many seconds pass; what it did meanwhile, by its own counters. Raises Stop."""
    end, pids = time.monotonic() + seconds, list(pids)
    first, before = await count(engine), cpu.seconds(pids)
    await asyncio.sleep(max(0.0, end - time.monotonic()))
    last, after = await count(engine), cpu.seconds(pids)
    used = sum(cpu.between(before, after).values())
    return Spell(flow(first, last), last.output - first.output, used, last.at - first.at)


def flow(first: Count, last: Count) -> Flow:
    """Tokens a second between two counts. Raises Stop where the engine was restarted in between."""
    if last.prompt < first.prompt or last.output < first.output:
        raise Stop("the engine was restarted while it was measured; see: headgate logs")
    took = last.at - first.at
    return Flow((last.prompt - first.prompt) / took, (last.output - first.output) / took)
