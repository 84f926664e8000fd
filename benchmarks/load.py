"""`python -m benchmarks.load`: an open-loop load against an OpenAI-compatible address.

Arrivals are a Poisson process with a fixed seed: they do not wait for answers, as people do not, so a server that
stalls is seen to stall (a closed loop would politely stop asking). Sends only to this machine, unless told otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import machine
from benchmarks.asking import Asking, check_address
from benchmarks.installation import Stop, running
from benchmarks.samples import Quantiles, Sample, to_json
from benchmarks.samples import summary as summary
from router.commands.context import console, table


@dataclass(frozen=True, slots=True)
class Plan:
    """A run: what is asked, how often and for how long."""

    asking: Asking
    rate: float
    """Requests a second, on average."""
    seconds: float
    seed: int = 1
    drain_s: float = 60.0
    """After the last arrival, answers are awaited this long; what is left then ends as `unfinished`."""
    arrivals: tuple[float, ...] = field(default=(), repr=False)
    """Seconds after the start at which requests are sent; empty makes them from rate, seconds and seed."""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process with `rate` events a second in [0, seconds): its gaps are exponential."""
    source, at, found = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate)) < seconds:
        found.append(at)
    return found


async def run(plan: Plan) -> list[Sample]:
    """Send everything at its time and wait for the answers, in the order of the arrivals."""
    times = plan.arrivals or tuple(arrivals(plan.rate, plan.seconds, plan.seed))
    connector = aiohttp.TCPConnector(limit=0)  # a pool with a limit would close the loop
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        begin = time.monotonic()
        last = (times[-1] if times else 0.0) + plan.drain_s
        tasks = []
        for number, at in enumerate(times):
            await asyncio.sleep(max(0.0, begin + at - time.monotonic()))
            tasks.append(asyncio.create_task(plan.asking.send(session, number, begin, at, last)))
        return list(await asyncio.gather(*tasks))


def show(samples: Sequence[Sample]) -> None:
    """Print what a person wants to know of a run."""
    out, said = console(), summary(samples)
    out.print(f"{said.sent} sent in {said.span_s:.1f} s, {said.answered_count} answered")
    rows = table("answered by", "place", "trigger", "requests")
    for model, place, trigger, count in said.answered:
        rows.add_row(model or "(no name given)", place or "-", trigger or "-", str(count))
    if said.answered:
        out.print(rows)
    if said.refused:
        rows = table("not answered", "requests")
        for code, count in said.refused:
            rows.add_row(code, str(count))
        out.print(rows)
    rows = table("seconds", "p50", "p90", "p99")
    for name, found in (("first token", said.first_token), ("total", said.total), ("sent late", said.late)):
        rows.add_row(name, *_cells(found))
    out.print(rows)
    rate = "unknown" if said.output_tokens_per_s is None else f"{said.output_tokens_per_s:.1f}"
    out.print(f"{rate} output tokens a second ({said.output_tokens} in all; {said.prompt_tokens} prompt tokens)")
    if said.without_usage:
        out.print(f"{said.without_usage} answers gave no usage and are not in these sums")
    if said.behind:
        out.print("THE GENERATOR FELL BEHIND: sends were late, so the load was not the one asked for; lower --rate")


def _cells(found: Quantiles) -> list[str]:
    return ["-" if value is None else f"{value:.3f}" for value in (found.p50, found.p90, found.p99)]


def plan_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Plan:
    """The plan that the command line asks for. Raises Stop."""
    url, key = options.url, options.key or environ.get("HEADGATE_KEY", "")
    if not url:
        here = running()
        url, key = here.url, key or here.key()
    check_address(url, options.anywhere)
    if options.rate <= 0 or options.seconds <= 0:
        raise Stop("--rate and --seconds are above 0")
    headers = {}
    for each in options.header:
        name, colon, value = each.partition(":")
        if not colon:
            raise Stop(f"--header {each!r} is not of the form NAME:VALUE")
        headers[name.strip()] = value.strip()
    asking = Asking(
        url=url, key=key, model=options.model, prompt_words=options.prompt_words, max_tokens=options.max_tokens,
        stream=options.stream, seed=options.seed, same_prompt=options.same_prompt, headers=headers,
    )  # fmt: skip
    return Plan(asking, options.rate, options.seconds, options.seed, options.drain)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--url", default="", help="address with or without /v1; default: the Headgate that runs here")
    parser.add_argument("--key", default="", help="default: HEADGATE_KEY, else the first key of the one that runs here")
    parser.add_argument("--model", default="auto", help="a model, a lane or auto")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long requests are sent")
    parser.add_argument("--prompt-words", type=int, default=60, help="words of each prompt; tokens are what usage says")
    parser.add_argument("--max-tokens", type=int, default=64, help="output tokens of each answer at most")
    parser.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals and of the prompts")
    parser.add_argument("--same-prompt", action="store_true", help="one prompt for all: the engine's cache then helps")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="repeatable")
    parser.add_argument("--drain", type=float, default=60.0, help="seconds to wait for answers after the last arrival")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write plan, summary and every request there")
    parser.add_argument("--anywhere", action="store_true", help="allow another machine than this one")
    return parser.parse_args(arguments)


def described(plan: Plan) -> dict[str, Any]:
    """The plan for a file that others read: without the key and without what headers say."""
    asking = dataclasses.asdict(plan.asking) | {"key": "", "headers": sorted(plan.asking.headers)}
    return {"asking": asking, "rate": plan.rate, "seconds": plan.seconds, "seed": plan.seed, "drain_s": plan.drain_s}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says. Returns 1 where it cannot, or where nothing was answered."""
    options = _options(arguments)
    try:
        plan = plan_of(options, os.environ)
        samples = asyncio.run(run(plan))
        show(samples)
        if options.json:
            options.json.write_text(to_json(samples, plan=described(plan), machine=machine.describe()))
    except (Stop, OSError) as stopped:
        print(f"benchmarks.load: {stopped}", file=sys.stderr)
        return 1
    if not any(sample.answered for sample in samples):
        print("benchmarks.load: nothing was answered; see: headgate status, headgate logs router", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
