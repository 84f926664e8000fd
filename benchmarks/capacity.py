"""What a real engine can do alone: a closed loop on its own socket, by its own counters."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from benchmarks import wire
from benchmarks.asking import Asking
from benchmarks.bare import Vllm
from benchmarks.engine import spell
from benchmarks.installation import Stop
from benchmarks.mix import MEAN_OUTPUT, OUTPUTS, WORDS
from benchmarks.samples import quantile

RAMP_S = 1.0
"""Let pass before counting: the engine must first fill its batch."""
PROMPTS = 1000
LONG_WORDS = 400


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """So many requests at once, and what the engine made of them."""

    at_once: int
    output_per_s: float
    prompt_per_s: float
    requests_per_s: float
    first_p50_s: float | None
    first_p95_s: float | None
    engine_cpu: float
    """CPU seconds a second."""


def point(engine: Vllm, at_once: int, seconds: float, seed: int, *, reading: bool = False) -> Point:
    """One closed loop of the mix, or, `reading`, of long prompts with one token of answer. Raises Stop."""
    return uvloop.run(_point(engine, at_once, seconds, seed, reading))


async def _point(engine: Vllm, at_once: int, seconds: float, seed: int, reading: bool) -> Point:
    words, outputs = (LONG_WORDS, (1,)) if reading else (WORDS, OUTPUTS)
    source = random.Random(seed)
    asking = Asking(url=engine.address, model=engine.name, prompt_words=words, seed=seed, extra={"ignore_eos": True})
    askings = {n: dataclasses.replace(asking, max_tokens=n) for n in outputs}
    places = [wire.place(askings[source.choice(outputs)], number) for number in range(PROMPTS)]
    task = asyncio.create_task(wire.keep_asking(places, at_once, seconds + RAMP_S))
    try:
        await asyncio.sleep(RAMP_S)
        found = await spell(engine.engine, seconds, engine.pids)
        heard = await task
    finally:
        task.cancel()
    if sum(h.good for h in heard) < 0.99 * len(heard):
        raise Stop("the engine refuses or breaks off requests of a closed loop")
    flow, firsts = found.flow, [h.first - h.sent for h in heard if h.first]
    each = 1 if reading else MEAN_OUTPUT
    return Point(
        at_once, flow.output, flow.prompt, flow.output / each, quantile(firsts, 0.5), quantile(firsts, 0.95),
        found.cores,
    )  # fmt: skip


def curve(engine: Vllm, seconds: float, say: Callable[[str], None]) -> list[Point]:
    """From one request at once to more than the engine works on at the same time. Raises Stop."""
    say(f"the engine alone, {seconds:g} s each: one request at once, then more")
    point(engine, 2, seconds / 2, 1)  # warm
    wanted = sorted({1, 2, 4, engine.at_once // 2, engine.at_once, 2 * engine.at_once} - {0})
    return [point(engine, n, seconds, 10 + n) for n in wanted if n <= engine.limit]


def described(points: Sequence[Point], reading: Point, engine: Vllm) -> dict[str, Any]:
    """What the simulation needs to know of an engine, with what it was taken from. Pure.

    Tokens a second by requests at once are the mix's, its prompts included. What is read alone says how fast a prompt
    is read; of the mix the time for its prompts is taken off, so that what is left is the writing alone.
    """
    prompt = statistics.median(p.prompt_per_s / p.output_per_s for p in points) * MEAN_OUTPUT
    prefill = reading.prompt_per_s
    decode = []
    for one in points:
        if one.at_once <= engine.at_once:
            left = max(0.05, 1 - one.prompt_per_s / prefill)
            decode.append((one.at_once, one.output_per_s / left))
    most = points[-1]  # as many more wait as it works on: it is never short of work
    return {
        "at_once": engine.at_once, "limit": engine.limit, "prompt_tokens": round(prompt), "prefill_per_s": prefill,
        "decode": decode, "output_per_s": most.output_per_s, "requests_per_s": most.requests_per_s,
        "first_s": points[0].first_p50_s, "points": [dataclasses.asdict(p) for p in [*points, reading]],
    }  # fmt: skip
