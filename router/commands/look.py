"""`plan`, `doctor`, `explain`: what would happen, what is wrong, and why something was decided. Nothing is changed."""

from __future__ import annotations

import os
import sys
import urllib.parse
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from router.commands import checks
from router.commands.choosing import DEMO, local, suggestion
from router.commands.context import ConfigOption, Context, JsonOption, Stop, ask_admin, console, open_context, say_json
from router.commands.explained import show_decision, show_record
from router.commands.keys import key_id
from router.commands.recent import show_last
from serving import command, engines, placement, weights
from serving.catalogue import DataClass, Model
from serving.demo_model import REPO, demo_model
from serving.gpus import Readings, main_memory_free_gb
from serving.gpus import read as read_gpus
from serving.home import find_home
from serving.instance import socket_path

LAST = 10
"""As many requests are listed where nobody says how many."""
LEVELS = {"ok": "green", "note": "cyan", "wrong": "bold red"}


def plan(
    model: Annotated[list[str] | None, typer.Option(help="Model to plan for (repeatable).")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what would run where, with the exact vLLM command line. Starts nothing.

    Example: headgate plan --model qwen3.5-0.8b
    """
    context, readings = open_context(config), read_gpus()
    models, note = _planned(context, model or [])
    made = placement.place(models, readings, main_memory_free_gb())
    engine = engines.find(context.found.site.engine, context.home.engines, gpu=bool(readings.gpus))
    rows = [_row(context, placed, engine, readings) for placed in made.placed]
    misfits = [{"model": m.model, "reason": m.reason, "remedy": m.remedy} for m in made.misfits]
    attached = [a.url for a in context.found.site.attach]
    if as_json:
        say_json({"placed": rows, "misfits": misfits, "attached": attached, "note": note, "gpu_note": readings.note})
    else:
        _show_plan(
            rows, misfits, [*filter(None, (readings.note and f"GPUs: {readings.note}", note))], engine, console()
        )
        for url in attached:
            console().print(f"\nattached: {url}", soft_wrap=True)
    if misfits:
        raise typer.Exit(1)


def _planned(context: Context, names: list[str]) -> tuple[list[Model], str]:
    """The models that `up` would start, and a word on why these."""
    site = context.found.site
    if names or site.run or site.attach:
        return [_model(context, name) for name in names or site.run], ""
    if fitting := suggestion(context):
        return [
            fitting
        ], f"no model is configured: up asks before it fetches {fitting.name}; told no, it starts the demo"
    return [demo_model()], "no model is configured, and no model hub can be reached: the demo model"


def _model(context: Context, name: str) -> Model:
    return demo_model() if name == DEMO else local(context, name)


def _row(
    context: Context, placed: placement.Placed, engine: engines.Engine, readings: Readings
) -> dict[str, Any]:  # fmt: skip
    model, variant = placed.model, placed.variant
    repo = (variant.repo if variant else "") or model.repo
    repo = str(context.home.models / REPO) if repo == REPO else repo
    revision = (variant.revision if variant else "") or model.revision
    try:
        built = command.build(
            placed, python=engine.python, weights=repo, revision=revision,
            socket=socket_path(context.home, model.name), port=None, installation=context.home.installation(),
            instance=model.name, inherited=os.environ,
        )  # fmt: skip
    except ValueError as refused:
        raise Stop(f"{model.name} cannot be run as it is configured: {refused}") from refused
    size = model.size_gb if variant is None or not variant.repo else None
    indexes = {gpu.uuid: f"GPU {gpu.index}" for gpu in readings.gpus}
    return {
        "model": model.name, "variant": variant.name if variant else "", "device": placed.device,
        "gpus": [indexes.get(uuid, uuid) for uuid in placed.gpus], "context": placed.context, "limit": placed.limit,
        "memory_gb": variant.memory_gb if variant else None, "command": built.shell(),
        "to_fetch": "" if _here(repo) else f"{f'{size:g} GB' if size else 'its weights are'} to fetch first",
    }  # fmt: skip


def _here(repo: str) -> bool:
    """Whether a folder or the local cache of the model hub holds weights of `repo`, as far as names of files tell."""
    if weights.is_local(repo):
        return True
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    folder = cache / f"models--{repo.replace('/', '--')}"
    begun = any(folder.glob("blobs/*.incomplete"))
    return not begun and any(folder.glob("snapshots/*/*.safetensors"))


def _show_plan(
    rows: list[dict[str, Any]], misfits: list[dict[str, str]], notes: list[str], engine: engines.Engine, out: Console
) -> None:
    for note in notes:
        out.print(note)
    if rows:
        named = f"{engine.package} {engine.version}".strip() or "as configured"
        state = "is there" if engines.ready(engine) or not engine.package else "would be made first"
        out.print(f"engine: {named} {state} ({engine.python})", soft_wrap=True)
    for row in rows:
        memory = f", {row['memory_gb']:g} GB" if row["memory_gb"] else ""
        out.print(f"\n{' '.join(filter(None, (row['model'], row['variant'])))} on {', '.join(row['gpus']) or 'the CPU'}"
                  f"{memory}, context {row['context']}, at most {row['limit']} requests at once:")  # fmt: skip
        if row["to_fetch"]:
            out.print(f"{row['to_fetch']} (needs a model hub)")
        out.print(row["command"], soft_wrap=True)
    for misfit in misfits:
        out.print(f"\n{misfit['model']} cannot run here: {misfit['reason']}; {misfit['remedy']}".rstrip("; "))


def doctor(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say what is missing or wrong here, and the command that mends it.

    Example: headgate doctor
    """
    found = checks.examine(open_context(config))
    if as_json:
        say_json([{"level": f.level, "what": f.what, "remedy": f.remedy} for f in found])
    else:
        _show_findings(found, console())
    if any(f.level == "wrong" for f in found):
        raise typer.Exit(1)


def _show_findings(found: list[checks.Finding], out: Console) -> None:
    """One line a finding and its remedy below it, whole, so that it can be copied from a narrow terminal too."""
    for finding in found:
        out.print(f"{finding.level:<6}", end="", style=LEVELS[finding.level])
        out.print(finding.what, soft_wrap=True)
        if finding.remedy:
            out.print(f"      → {finding.remedy}", soft_wrap=True)


def explain(
    request: Annotated[str, typer.Option(help="The id of a request that was made (x-request-id).")] = "",
    key: Annotated[str, typer.Option(help="Decide as for this key (its id).")] = "",
    data_class: Annotated[str, typer.Option("--data-class", help="Decide as for a key of this class.")] = "",
    last: Annotated[int | None, typer.Option(help="List the requests that came last, at most so many.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a decision: of a request that was made, or of a body on stdin (a dry run, nothing is sent).

    On a terminal, and without an id, it lists the last requests. The ledger holds no text of them.

    Example: echo '{"model": "auto", "messages": []}' | headgate explain --data-class public
    """
    home = find_home()
    if data_class and data_class not in DataClass.__members__:
        raise Stop(f"--data-class: {data_class!r} is no data class; choose one of {', '.join(DataClass.__members__)}")
    dry = bool(key or data_class)
    if last is not None and (request or dry):
        raise Stop("--last lists requests; give it alone")
    if last is not None or not (request or dry or not sys.stdin.isatty()):
        show_last(home, last or LAST, as_json, console())
        return
    if request:
        found = ask_admin(home, f"/requests/{urllib.parse.quote(request, safe='')}")
        if as_json:
            say_json(found)
        else:
            show_record(found, console())
        return
    body = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if not body.strip():
        raise Stop("give a request body on stdin, e.g.: headgate explain < body.json; for requests that were made: "
                   "headgate explain --last 10")  # fmt: skip
    query = urllib.parse.urlencode({"key": key_id(key), "data_class": data_class})
    decision = ask_admin(home, f"/explain?{query}", body)
    if as_json:
        say_json(decision)
    else:
        show_decision(decision, console())
