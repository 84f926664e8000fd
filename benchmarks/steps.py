"""The steps of the cost benchmark: one load each, and what the engine's own counters say meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks import closed, load
from benchmarks.asking import Asking
from benchmarks.breakeven import Flow
from benchmarks.engine import Engine, spell
from benchmarks.installation import Stop
from benchmarks.samples import Quantiles, Sample, summary

SHARES = {"low": 0.25, "medium": 0.6, "high": 1.25}
"""Rates as shares of what a closed loop gets answered: at the last one requests pile up, as they would."""
RAMP = 0.25
"""Share of a step that is let pass before counting: the engine must first fill its batch."""
LONGEST_PROMPT, BYTES_PER_WORD = 1500, 8
"""Words of the longest prompt, and bytes of a word and its space: at most so many tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """One load and what came of it. Tokens a second by vLLM's counters, in the loaded part alone."""

    name: str
    rate: float | None
    """Requests a second that were sent; None for a closed loop."""
    flow: Flow
    mixed: bool
    """Whether its requests are the mix whose cost is asked for, and not one to tell prompts from answers."""
    sent: int
    answered: int
    failed: int
    codes: tuple[tuple[str, int], ...]
    """What the failed ones ended with, and how many."""
    behind: bool
    """Whether the generator fell behind its arrivals."""
    first_token: Quantiles
    total: Quantiles


async def measure_all(engine: Engine, asking: Asking, seconds: float, say: Callable[[str], None]) -> list[Step]:
    """All steps, each so many seconds long; requests that are left then are waited for. Raises Stop."""
    warm = await closed.ask_times(_fresh(asking, 0), 4, 2)
    if not any(sample.answered for sample in warm):
        raise Stop(f"{engine.model} answers nothing: {warm[0].error}; see: headgate status")
    at_once = engine.connections
    say(f"full load: {at_once} requests at once for {seconds:.0f} s")
    found = [await _closed("full", engine, _fresh(asking, 1), at_once, seconds, mixed=True)]
    # Every answer has exactly max_tokens, so the engine's own count gives the requests it got done.
    capacity = found[0].flow.output / asking.max_tokens
    for number, (name, share) in enumerate(SHARES.items(), 2):
        rate = capacity * share
        say(f"{name}: {rate:.2f} requests a second for {seconds:.0f} s")
        plan = load.Plan(_fresh(asking, number), rate, seconds)
        found.append(await _step(name, rate, engine, load.run(plan), seconds, mixed=True))
    say("prompts alone, then answers alone, at full load")
    words = min(LONGEST_PROMPT, engine.context // 2 // BYTES_PER_WORD)
    prompts = _fresh(asking, 5, prompt_words=words, max_tokens=1)
    found.append(await _closed("prompts", engine, prompts, at_once, seconds * 0.75))
    answers = _fresh(asking, 6, prompt_words=10, max_tokens=min(256, engine.context // 4))
    found.append(await _closed("answers", engine, answers, at_once, seconds * 0.75))
    return found


def _fresh(asking: Asking, step: int, **changed: Any) -> Asking:
    """The same with prompts that no other step had: those would be in the engine's cache."""
    return dataclasses.replace(asking, seed=asking.seed * 10 + step, **changed)


async def _closed(
    name: str, engine: Engine, asking: Asking, connections: int, seconds: float, mixed: bool = False
) -> Step:
    work = closed.keep_asking(asking, connections, seconds)
    return await _step(name, None, engine, work, seconds, mixed)


async def _step(
    name: str, rate: float | None, engine: Engine, work: Coroutine[Any, Any, list[Sample]], seconds: float, mixed: bool
) -> Step:
    """Run `work` and count tokens from RAMP of its time to its end. Raises Stop."""
    task = asyncio.create_task(work)
    try:
        await asyncio.sleep(seconds * RAMP)
        measured = (await spell(engine, seconds * (1 - RAMP))).flow
        samples = await task
    finally:
        task.cancel()
    said = summary(samples)
    if not said.answered_count or measured.total <= 0:
        raise Stop(f"nothing was answered in the step {name}: {dict(said.refused)}; see: headgate status")
    return Step(
        name=name, rate=rate, flow=measured, mixed=mixed, sent=said.sent, answered=said.answered_count,
        failed=said.sent - said.answered_count, codes=said.refused, behind=said.behind and rate is not None,
        first_token=said.first_token, total=said.total,
    )  # fmt: skip
