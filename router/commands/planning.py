"""`plan`: what would run where, on this machine or a described one, and what would change it. Nothing is started."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from router.commands.choosing import DEMO, local, suggestion
from router.commands.context import ConfigOption, Context, JsonOption, Stop, console, open_context, say_json
from router.commands.status import numbers
from serving import boards, command, engines, groups, known, placement, weights
from serving.catalogue import Model, Swap
from serving.demo_model import REPO, demo_model
from serving.engines import Engine
from serving.gpus import Readings, main_memory_free_gb
from serving.gpus import read as read_gpus
from serving.home import Home
from serving.instance import socket_path
from serving.placement import Placed, Plan
from serving.remedies import unvetted


@dataclass(frozen=True, slots=True)
class _Machine:
    """What is planned for: this machine, or a described one with as much main memory as any model wants."""

    readings: Readings
    memory_free_gb: float
    described: bool


def plan(
    model: Annotated[list[str] | None, typer.Option(help="Model to plan for (repeatable); else those of run:.")] = None,
    gpus: Annotated[
        str, typer.Option(help="Plan for a machine with these GPUs: 8xH200, or 2xL40S,1xH100, or 8x141GB.")
    ] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what would run where, with memory, cache and the exact vLLM command line. Starts nothing.

    With --gpus no command line is shown; and with no model named or configured, each local one is tried alone.

    Example: headgate plan --gpus 8xH200 --model glm-5.2 --model qwen3.8-27b
    """
    context, machine = open_context(config), _machine(gpus)
    wanted, note = _planned(context, model or [], machine)
    engine = engines.find(context.found.site.engine, context.home.engines, gpu=bool(machine.readings.gpus))
    plans = [_made(context, each, machine, engine) for each in wanted]
    swap = context.found.site.swap
    rows = [
        _row(context, placed, engine, machine) | {"in_turn_with": groups.others(placed, made, swap)}
        for made in plans
        for placed in made.placed
    ]
    misfits = [{"model": m.model, "reason": m.reason, "remedy": m.remedy} for made in plans for m in made.misfits]
    attached = [] if machine.described else [a.url for a in context.found.site.attach]
    spare = _spare(plans[0], machine, swap) if len(plans) == 1 else []
    if as_json:
        say_json({"placed": rows, "misfits": misfits, "attached": attached, "gpus": spare, "note": note,
                  "gpu_note": machine.readings.note})  # fmt: skip
    else:
        notes = [*filter(None, (machine.readings.note and f"GPUs: {machine.readings.note}", note))]
        _show(rows, misfits, notes, None if machine.described else engine, spare, console())
        for url in attached:
            console().print(f"\nattached: {url}", soft_wrap=True)
    if misfits and len(plans) == 1:
        raise typer.Exit(1)


def _machine(text: str) -> _Machine:
    if not text:
        return _Machine(read_gpus(), main_memory_free_gb(), described=False)
    try:
        return _Machine(boards.described(text), math.inf, described=True)
    except boards.BoardError as refused:
        raise Stop(str(refused)) from refused


def _planned(context: Context, names: list[str], machine: _Machine) -> tuple[list[list[Model]], str]:
    """The models that `up` would start, together; or where a described machine was given alone, each by itself."""
    site = context.found.site
    if names or site.run or (site.attach and not machine.described):
        return [[demo_model() if name == DEMO else local(context, name) for name in names or site.run]], ""
    if machine.described:
        every = [m for m in context.found.models.values() if m.place == "local"]
        return [[m] for m in every], "no model is named or configured: each local model of the catalogue, alone there"
    if fitting := suggestion(context):
        return [[fitting]], (
            f"no model is configured: up asks before it fetches {fitting.name}; told no, it starts the demo"
        )
    return [[demo_model()]], "no model is configured, and no model hub can be reached: the demo model"


def _made(context: Context, models: list[Model], machine: _Machine, engine: Engine) -> Plan:
    found = known.known(models, context.home, machine.readings, known.named(engine), os.environ)
    place = functools.partial(placement.place, found=found, vet=not machine.described)
    return groups.place(models, context.found.site.swap, machine.readings, machine.memory_free_gb, place)


def _row(context: Context, placed: Placed, engine: Engine, machine: _Machine) -> dict[str, Any]:
    model, variant = placed.model, placed.variant
    repo, revision = model.source(variant)
    repo = str(context.home.models / REPO) if repo == REPO else repo
    try:
        built = command.build(
            placed, python=engine.python, weights=repo, revision=revision,
            socket=socket_path(context.home, model.name), port=None, installation=context.home.installation(),
            instance=model.name, inherited=os.environ,
        )  # fmt: skip
    except ValueError as refused:
        raise Stop(f"{model.name} cannot be run as it is configured: {refused}") from refused
    size = model.size_gb if variant is None or not variant.repo else None
    gpus = {gpu.uuid: gpu for gpu in machine.readings.gpus}
    return {
        "model": model.name, "variant": variant.name if variant else "", "device": placed.device,
        "gpus": [f"GPU {gpus[uuid].index}" if uuid in gpus else uuid for uuid in placed.gpus],
        "kind": next((gpus[uuid].name for uuid in placed.gpus if uuid in gpus), ""),
        "context": placed.context, "limit": placed.limit, "share": placed.share if placed.gpus else None,
        "memory_gb": _rounded(placed.least_gb), "each_gpu": _each(context.home, placed, engine, machine),
        "command": built.shell(),
        "unvetted": "; ".join(unvetted(model, variant) or ()),
        "to_fetch": "" if _here(repo) else f"{f'{size:g} GB' if size else 'its weights are'} to fetch first",
    }  # fmt: skip


def _each(home: Home, placed: Placed, engine: Engine, machine: _Machine) -> dict[str, Any] | None:
    """What each of its GPUs holds, and what an engine that ran with it reported."""
    need = placed.need
    if need is None or placed.gpu_gb is None:
        return None
    seen = known.seen(home, placed, machine.readings, known.named(engine))
    return {
        "given_gb": round(placed.gpu_gb, 2), "weights_gb": round(need.weights_gb, 2),
        "overhead_gb": round(need.overhead_gb, 2), "request_gb": round(need.request_gb, 2),
        "cache_gb": round(placed.gpu_gb - need.beside_gb, 2), "tokens": placed.tokens,
        "whole_contexts": round((placed.tokens or 0) / placed.context, 2),
        "reported_tokens": seen.get("reported_tokens"), "predicted_tokens": seen.get("predicted_tokens"),
    }  # fmt: skip


def _here(repo: str) -> bool:
    """Whether a folder or the local cache of the model hub holds weights of `repo`, as far as names of files tell."""
    if weights.is_local(repo):
        return True
    folder = known.cache(os.environ) / f"models--{repo.replace('/', '--')}"
    begun = any(folder.glob("blobs/*.incomplete"))
    return not begun and any(folder.glob("snapshots/*/*.safetensors"))


def _spare(made: Plan, machine: _Machine, swap: Swap) -> list[dict[str, Any]]:
    """What is left of each GPU."""
    rows = []
    for gpu in machine.readings.gpus:
        given = groups.given_gb(made, swap, gpu.uuid)
        free = gpu.memory_free_gb
        rows.append({
            "gpu": f"GPU {gpu.index}", "kind": gpu.name, "total_gb": _rounded(gpu.memory_total_gb),
            "free_gb": _rounded(free), "given_gb": _rounded(given),
            "spare_gb": _rounded(None if free is None else free - given),
        })  # fmt: skip
    return rows


def _rounded(gb: float | None) -> float | None:
    return None if gb is None else round(gb, 1)


def _show(
    rows: list[dict[str, Any]], misfits: list[dict[str, str]], notes: list[str], engine: Engine | None,
    spare: list[dict[str, Any]], out: Console,
) -> None:  # fmt: skip
    for note in notes:
        out.print(note, soft_wrap=True)
    if rows and engine is not None:
        named = f"{engine.package} {engine.version}".strip() or "as configured"
        state = "is there" if engines.ready(engine) or not engine.package else "would be made first"
        out.print(f"engine: {named} {state} ({engine.python})", soft_wrap=True)
    for row in rows:
        memory = f", {row['memory_gb']:g} GB" if row["memory_gb"] else ""
        where = f"{_named(row['gpus'])} ({row['kind']})" if row["gpus"] else "the CPU"
        where += f", in turn with {' and '.join(row['in_turn_with'])}" if row["in_turn_with"] else ""
        out.print(f"\n{' '.join(filter(None, (row['model'], row['variant'])))} on {where}"
                  f"{memory}, context {row['context']}, at most {row['limit']} requests at once:",
                  soft_wrap=True)  # fmt: skip
        if row["each_gpu"]:
            _show_each(row["each_gpu"], row["share"], out)
        if row["unvetted"]:
            out.print(f"up would not start it yet: {row['unvetted']}", soft_wrap=True)
        if row["to_fetch"] and engine is not None:
            out.print(f"{row['to_fetch']} (needs a model hub)")
        if engine is not None:
            out.print(row["command"], soft_wrap=True)
    for misfit in misfits:
        out.print(f"\n{misfit['model']} cannot run here: {misfit['reason']}; {misfit['remedy']}".rstrip("; "),
                  soft_wrap=True)  # fmt: skip
    if spare:
        out.print()
    for gpu in spare:
        left = "unknown" if gpu["spare_gb"] is None else f"{gpu['spare_gb']:g} GB"
        total = "?" if gpu["total_gb"] is None else f"{gpu['total_gb']:g}"
        out.print(f"{gpu['gpu']} {gpu['kind']}: {gpu['given_gb']:g} of {total} GB given out, {left} spare")


def _named(gpus: list[str]) -> str:
    """`GPU 0-7`; one that has no number as it is called."""
    found = [name.removeprefix("GPU ") for name in gpus]
    return f"GPU {numbers([int(n) for n in found])}" if all(n.isdecimal() for n in found) else ", ".join(gpus)


def _show_each(each: dict[str, Any], share: float, out: Console) -> None:
    out.print(
        f"each GPU: {each['weights_gb']:.1f} GB of weights, {each['overhead_gb']:.1f} of work space, "
        f"{each['cache_gb']:.1f} of cache, together {share:.0%} of it: {each['tokens']:,} tokens, "
        f"{each['whole_contexts']:g} requests of the whole context",
        soft_wrap=True,
    )
    if each["reported_tokens"]:
        out.print(f"when it ran here: {each['predicted_tokens']:,} tokens predicted, "
                  f"{each['reported_tokens']:,} reported by the engine", soft_wrap=True)  # fmt: skip
