"""How much of a real engine's throughput is left through the router: alternating runs, direct and through it.

The engine has a core of its own; router and load share another. Direct goes to the engine's own socket, which is what
the router does. Tokens are the engine's own count.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop

from benchmarks import cpu, wire
from benchmarks.asking import Asking
from benchmarks.engine import Engine, find, spell
from benchmarks.installation import Installation, Stop, own
from benchmarks.intervals import mean_ratio

MODEL, TOKENS, PROMPTS = "demo", 64, 400
RAMP_S = 1.0
"""Let pass before counting: the engine must first fill its batch."""


@dataclasses.dataclass(frozen=True, slots=True)
class Leg:
    """A few seconds at full load, one way."""

    tokens_per_s: float
    engine_cpu_s: float
    """That the engine's processes took meanwhile."""
    tokens: float


def measured(runs: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Start a Headgate with the demo model and measure. Raises Stop."""
    say("starting a real vLLM on a core of its own (about a minute)")
    with _engine_alone() as headgate:
        engine = find(headgate.instances(), MODEL)
        asking = Asking(
            url=headgate.url, key=headgate.key(), model=MODEL, prompt_words=20, max_tokens=TOKENS,
            extra={"ignore_eos": True},
        )  # fmt: skip
        ways = {"headgate": asking, "direct": dataclasses.replace(asking, url=engine.addresses[0], key="")}
        pids = [pid for pid, part in headgate.processes().items() if part == "engine"]
        seeds = itertools.count(1)

        def leg(way: str) -> Leg:
            # Prompts that the engine has seen would come from its cache.
            return uvloop.run(_leg(dataclasses.replace(ways[way], seed=next(seeds)), engine, pids, seconds))

        for way in ways:
            leg(way)
        found = []
        for number in range(runs):
            say(f"vLLM: run {number + 1} of {runs}, direct and through the router")
            # There and back, so that an engine or a machine that grows slower meanwhile slows both alike.
            order = ("direct", "headgate", "headgate", "direct")
            legs = [(way, leg(way)) for way in (order if number % 2 == 0 else order[::-1])]
            found.append({way: [one for name, one in legs if name == way] for way in ways})
        version = headgate.engine()
    return {
        "engine": version, "model": MODEL, "own_core": len(cpu.cores()) > 1, "connections": engine.connections,
        "seconds": seconds, **compared(found),
    }  # fmt: skip


def compared(runs: Sequence[Mapping[str, Sequence[Leg]]]) -> dict[str, Any]:
    """The ratio of the runs with its interval, and of tokens a second of the engine's own CPU time. Pure.

    The second holds still where others use the machine: the engine is as fast as the CPU time it is given.
    """

    def rate(legs: Sequence[Leg]) -> float:
        return statistics.fmean(leg.tokens_per_s for leg in legs)

    def per_cpu(legs: Sequence[Leg]) -> float:
        return sum(leg.tokens for leg in legs) / max(1e-9, sum(leg.engine_cpu_s for leg in legs))

    ratio = mean_ratio([(rate(run["headgate"]), rate(run["direct"])) for run in runs])
    by_cpu = mean_ratio([(per_cpu(run["headgate"]), per_cpu(run["direct"])) for run in runs])
    return {
        "runs": [{way: rate(legs) for way, legs in run.items()} for run in runs],
        "ratio": ratio.value, "low": ratio.low, "high": ratio.high, "per_engine_cpu": dataclasses.asdict(by_cpu),
    }  # fmt: skip


@contextmanager
def _engine_alone() -> Iterator[Installation]:
    """A Headgate whose engine has the first core, and all the rest the others."""
    with cpu.first_core() as leave, own("--model", MODEL) as headgate:
        leave(pid for pid, part in headgate.processes().items() if part != "engine")
        yield headgate


async def _leg(asking: Asking, engine: Engine, pids: Sequence[int], seconds: float) -> Leg:
    """Output tokens a second by the engine's count, at as many streams at once as it takes. Raises Stop."""
    where = [wire.place(asking, number) for number in range(PROMPTS)]
    task = asyncio.create_task(wire.keep_asking(where, engine.connections, seconds))
    try:
        await asyncio.sleep(RAMP_S)
        found = await spell(engine, seconds - RAMP_S, pids)
        heard = await task
    finally:
        task.cancel()
    good = sum(h.good for h in heard)
    if good < 0.99 * len(heard) or not good:
        raise Stop(f"only {good} of {len(heard)} requests to the real engine were answered; see: headgate logs")
    return Leg(found.flow.output, found.cpu_s, found.tokens)
