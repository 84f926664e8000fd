"""`python -m benchmarks.cost`: what a million tokens cost here, and hosted.

A local model is loaded at three rates; tokens are counted by vLLM itself, not by who asks. With the price of an hour
this gives dollars a million tokens, beside the list price of the same tokens hosted, and the utilisation from which on
local is the cheaper one. The formulas, with what they assume, stand in breakeven.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import breakeven, machine, picture
from benchmarks.asking import Asking
from benchmarks.engine import Engine, find
from benchmarks.installation import Installation, Stop, own, running
from benchmarks.program import published, say, shown
from benchmarks.steps import Step, measure_all
from router.commands.context import console, table
from router.ledger.prices import Prices
from router.records import Usage
from serving import catalogue
from serving.catalogue import Catalogue, Model, Price
from serving.home import find_home

DEMO = "demo"
STEADY = 1.25
"""The full load measured and the one reckoned from its parts may differ by this factor before that is said."""
NOTES = (
    "the same tokens are compared, not answers of the same worth",
    "demo is a tiny model whose words are noise: its figures show the method and say nothing of a real model",
)


def hour_price(given: float | None, found: Catalogue) -> tuple[float, str]:
    """US dollars an hour of one GPU (of the machine, on a CPU), and who said so. Raises Stop where nobody did."""
    if given is not None:
        if given <= 0:
            raise Stop("--gpu-hour is above 0: US dollars that one hour costs, all in")
        return given, "--gpu-hour"
    if (usd := found.site.costs.gpu_hour_usd) is not None:
        return usd, "headgate.yaml"
    raise Stop(
        "what an hour of the GPU (without one: of the machine) costs is not known; give it with --gpu-hour USD, "
        "or in headgate.yaml: costs: {gpu_hour_usd: USD}"
    )


@contextlib.contextmanager
def installation(model: str) -> Iterator[Installation]:
    """The Headgate that runs here, else one of its own that is stopped afterwards. Raises Stop."""
    try:
        here = running()
    except Stop:
        print(f"no Headgate runs here: starting one with {model or DEMO} (about a minute)", flush=True)
        with own("--model", model or DEMO) as made:
            yield made
        return
    yield here


def priced(found: Catalogue, prompt: int, output: int, at: float) -> Catalogue:
    """The catalogue with the price of every hosted model as it is for a request of so many tokens at that time.

    List prices have tiers, peak hours and end dates; `at` in Unix seconds. A model without a known price has none.
    """
    prices = Prices.of(found, at, all_hosted=True)

    def effective(model: Model) -> Price | None:
        reading = prices.cost(model, Usage(prompt, 0), at)
        whole = prices.cost(model, Usage(prompt, output), at)
        if reading is None or whole is None:
            return None
        return Price(input=reading / prompt * 1e6, output=(whole - reading) / output * 1e6)

    hosted = {n: m.model_copy(update={"price": effective(m)}) for n, m in found.models.items() if m.place == "hosted"}
    return found.model_copy(update={"models": {**found.models, **hosted}})


def result_of(
    steps: Sequence[Step], engine: Engine, found: Catalogue, hour: tuple[float, str], wanted: Sequence[str]
) -> dict[str, Any]:
    """Everything that is written down, without the machine. Raises Stop, ConfigError."""
    by_name = {step.name: step for step in steps}
    rates = [by_name[name] for name in ("low", "medium", "high")]
    full = max((by_name["full"], *rates), key=lambda step: step.flow.total).flow
    hour_usd = hour[0] * engine.gpus
    alone = breakeven.separate(by_name["prompts"].flow, by_name["answers"].flow)
    hosted = []
    for model in breakeven.compared(found, found.models.get(engine.model), full, wanted):
        if model.price is None:
            raise Stop(f"the price of {model.name} is not known; name another with --hosted")
        hosted.append({
            "model": model.name, "price": {"input": model.price.input, "output": model.price.output},
            "usd_per_million": breakeven.hosted_per_million(model.price, full),
            "break_even": breakeven.break_even(hour_usd, full, model.price),
        })  # fmt: skip
    return {
        "kind": "cost", "model": engine.model, "gpus": engine.gpus if engine.on_gpu else 0,
        "hour_usd": hour_usd, "hour_usd_from": hour[1],
        "steps": [dataclasses.asdict(step) | {"share": step.flow.total / full.total,
                  "usd_per_million": breakeven.local_per_million(hour_usd, step.flow)} for step in steps],
        "full": dataclasses.asdict(full), "usd_per_million": breakeven.local_per_million(hour_usd, full),
        "alone": alone and dataclasses.asdict(alone),
        "busy_by_alone": alone and {step.name: breakeven.busy(step.flow, alone) for step in steps},
        "hosted": hosted, "notes": list(NOTES if engine.model == DEMO else NOTES[:1]),
    }  # fmt: skip


def verdict(usd_per_million: float, hosted: Mapping[str, Any]) -> str:
    """The break-even with one hosted model, in words."""
    share = hosted["break_even"]
    if share is None:
        return "hosted costs nothing: local is never cheaper"
    if share > 1:
        return f"never: local at full load costs {usd_per_million / hosted['usd_per_million']:.3g} times as much"
    return f"local is cheaper when busy more than {100 * share:.2g}% of the time"


def show(result: Mapping[str, Any]) -> None:
    """Print what was found."""
    out = console()
    what = f"{result['gpus']} GPU(s)" if result["gpus"] else "the machine, without a GPU"
    out.print(f"{result['model']} on {machine.sentence(result['machine'])}, {result['machine']['vllm']}")
    out.print(f"${result['hour_usd']:g} an hour for {what} (from {result['hour_usd_from']})")
    rows = table(
        "load", "asked/s", "prompt tok/s", "output tok/s", "of full", "$/M tokens", "first token p50", "p99 s", "failed"
    )
    for step in result["steps"]:
        rate = "-" if step["rate"] is None else f"{step['rate']:.2f}"
        first = [shown(step["first_token"][q]) for q in ("p50", "p99")]
        prompt, output = f"{step['flow']['prompt']:.0f}", f"{step['flow']['output']:.0f}"
        dollars = f"{step['usd_per_million']:.3g}" if step["mixed"] else "-"
        share = f"{step['share']:.0%}" if step["mixed"] else "-"
        rows.add_row(step["name"], rate, prompt, output, share, dollars, *first, str(step["failed"]))
    out.print(rows)
    for step in result["steps"]:
        if step["codes"]:
            out.print(f"{step['name']}: failed with " + ", ".join(f"{code} ({n})" for code, n in step["codes"]))
        if step["behind"]:
            out.print(f"{step['name']}: the generator fell behind; its first tokens were later than they need be")
    out.print("$/M tokens: the whole hour is paid for, however little of it is used; tokens by vLLM's own counters")
    rows = table("the same tokens hosted", "$ in/out a million", "$/M tokens", "break-even")
    rows.add_row("(local at full load)", "", f"{result['usd_per_million']:.3g}", "")
    for hosted in result["hosted"]:
        price = hosted["price"]
        words = verdict(result["usd_per_million"], hosted)
        rows.add_row(
            hosted["model"], f"{price['input']:.4g} / {price['output']:.4g}", f"{hosted['usd_per_million']:.3g}", words
        )
    out.print(rows)
    if doubt := unsteady(result):
        out.print(doubt)
    for note in result["notes"]:
        out.print(f"note: {note}")
    out.print(throughput_line(result))


def unsteady(result: Mapping[str, Any]) -> str:
    """A warning where the throughputs do not explain the mixed full load, or ""."""
    found = result["busy_by_alone"]
    if found is None or 1 / STEADY < found["full"] < STEADY:
        return ""
    return (
        f"UNSTEADY: by the steps prompts and answers the full load would keep the machine busy {found['full']:.0%} of "
        "the time, not 100%: something else ran meanwhile, or the steps were too short; run it again"
    )


def throughput_line(result: Mapping[str, Any]) -> str:
    """The lines for headgate.yaml."""
    alone = result["alone"]
    if alone is None:
        return "prompts and answers could not be told apart here; run again without --quick for costs.throughput"
    gpus = max(1, result["gpus"])
    said = f"{{input: {alone['prompt']:.0f}, output: {alone['output']:.0f}, gpus: {gpus}}}"
    return f"for headgate.yaml:\ncosts:\n  throughput:\n    {result['model']}: {said}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything. Raises Stop, ConfigError."""
    found = catalogue.load(catalogue.find_site(None, [Path.cwd(), find_home().root]))
    hour = hour_price(options.gpu_hour, found)
    for name in options.hosted:
        found.find(name)
    with installation(options.model) as headgate:
        engine = find(headgate.instances(), options.model)
        asking = Asking(
            url=headgate.url, key=headgate.key(), model=engine.model, prompt_words=options.prompt_words,
            max_tokens=options.max_tokens, seed=options.seed, extra={"ignore_eos": True},
        )  # fmt: skip
        steps = asyncio.run(measure_all(engine, asking, 18.0 if options.quick else 60.0, say=say))
        described = machine.describe(headgate.engine())
    mix = steps[0].flow
    prompt = max(1, round(options.max_tokens * mix.prompt / mix.output))
    result = result_of(steps, engine, priced(found, prompt, options.max_tokens, time.time()), hour, options.hosted)
    asked = {"prompt_tokens": prompt, "output_tokens": options.max_tokens, "seed": options.seed}
    return {"machine": described, "quick": options.quick, "asked": asked, **result}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter steps: under five minutes with the start")
    parser.add_argument("--model", default="", help="a local model that runs; default: the one there is, else demo")
    parser.add_argument("--gpu-hour", type=float, metavar="USD", help="an hour of one GPU, or of the machine without")
    parser.add_argument("--hosted", action="append", default=[], metavar="MODEL", help="compare with it (repeatable)")
    parser.add_argument("--prompt-words", type=int, default=80)
    parser.add_argument("--max-tokens", type=int, default=64, help="of every answer: its end is not left to the model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=machine.RESULTS, help="folder for the JSON and the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and draw. Returns 1 where it cannot."""
    options = _options(arguments)
    return 0 if published("cost", lambda: run(options), show, picture.cost, options.out) else 1


if __name__ == "__main__":
    sys.exit(main())
