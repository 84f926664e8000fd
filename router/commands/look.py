"""`plan`, `doctor`, `explain`: what would happen, what is wrong, and why something was decided. Nothing is changed."""

from __future__ import annotations

import os
import sys
import urllib.parse
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from router.commands import checks
from router.commands.context import ConfigOption, Context, JsonOption, Stop, ask_socket, console, open_context, say_json
from serving import command, engines, placement
from serving.catalogue import Model
from serving.demo_model import demo_model
from serving.gpus import main_memory_free_gb
from serving.gpus import read as read_gpus
from serving.instance import socket_path


def plan(
    model: Annotated[list[str] | None, typer.Option(help="Model to plan for (repeatable).")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what would run where, with the exact vLLM command line. Starts nothing.

    Example: headgate plan --model qwen3.5-0.8b
    """
    context = open_context(config)
    names = model or list(context.found.site.run)
    models = [_model(context, name) for name in names] or [demo_model()]
    readings = read_gpus()
    made = placement.place(models, readings, main_memory_free_gb())
    engine = engines.find(context.found.site.engine, context.home.engines, gpu=bool(readings.gpus))
    rows = [_row(context, placed, engine) for placed in made.placed]
    misfits = [{"model": m.model, "reason": m.reason, "remedy": m.remedy} for m in made.misfits]
    if as_json:
        say_json({"placed": rows, "misfits": misfits, "gpu_note": readings.note})
    else:
        _show_plan(rows, misfits, readings.note, engine, console())
    if misfits:
        raise typer.Exit(1)


def _model(context: Context, name: str) -> Model:
    return demo_model() if name == "demo" else context.found.find(name)


def _row(context: Context, placed: placement.Placed, engine: engines.Engine) -> dict[str, Any]:
    model, variant = placed.model, placed.variant
    repo = (variant.repo if variant else "") or model.repo or str(context.home.models / model.name)
    revision = (variant.revision if variant else "") or model.revision
    built = command.build(
        placed, python=engine.python, weights=repo, revision=revision, socket=socket_path(context.home, model.name),
        port=None, installation=context.home.installation(), instance=model.name, inherited=os.environ,
    )  # fmt: skip
    return {
        "model": model.name, "variant": variant.name if variant else "", "device": placed.device,
        "gpus": list(placed.gpus), "context": placed.context, "limit": placed.limit,
        "memory_gb": variant.memory_gb if variant else None, "command": built.shell(),
    }  # fmt: skip


def _show_plan(
    rows: list[dict[str, Any]], misfits: list[dict[str, str]], note: str, engine: engines.Engine, out: Console
) -> None:
    if note:
        out.print(f"GPUs: {note}", markup=False)
    state = "is there" if engines.ready(engine) else "would be made first"
    out.print(f"engine: {engine.package} {engine.version} {state} ({engine.python})", markup=False, soft_wrap=True)
    for row in rows:
        where = ", ".join(row["gpus"]) or "the CPU"
        out.print(f"\n{row['model']} {row['variant']} on {where}, {row['memory_gb']} GB, context {row['context']}, "
                  f"at most {row['limit']} requests at once:", markup=False)  # fmt: skip
        out.print(row["command"], markup=False, soft_wrap=True)
    for misfit in misfits:
        out.print(f"\n{misfit['model']} does not fit: {misfit['reason']}. {misfit['remedy']}", markup=False)


def doctor(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say what is missing or wrong here, and the command that mends it.

    Example: headgate doctor
    """
    found = checks.examine(open_context(config))
    if as_json:
        say_json([{"level": f.level, "what": f.what, "remedy": f.remedy} for f in found])
    else:
        table = Table("", "what", "what to do", box=None)
        for finding in found:
            table.add_row(finding.level, finding.what, finding.remedy)
        console().print(table)
    if any(f.level == "wrong" for f in found):
        raise typer.Exit(1)


def explain(
    request: Annotated[str, typer.Option(help="The id of a request that was made (x-request-id).")] = "",
    key: Annotated[str, typer.Option(help="Decide as for this key (its id).")] = "",
    data_class: Annotated[str, typer.Option("--data-class", help="Decide as for a key of this class.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Explain a decision: of a request body on stdin (a dry run, nothing is sent), or of a request that was made.

    Example: echo '{"model": "auto", "messages": []}' | headgate explain --data-class public
    """
    from serving.home import find_home

    home = find_home()
    if request:
        found = ask_socket(home, "admin", f"/requests/{urllib.parse.quote(request, safe='')}")
        if as_json:
            say_json(found)
        else:
            _show_record(found, console())
        return
    if sys.stdin.isatty():
        raise Stop("give a request body on stdin, e.g.: headgate explain < body.json")
    query = urllib.parse.urlencode({"key": key, "data_class": data_class})
    decision = ask_socket(home, "admin", f"/explain?{query}", sys.stdin.buffer.read())
    if as_json:
        say_json(decision)
    else:
        _show_decision(decision, console())


def _show_decision(found: dict[str, Any], out: Console) -> None:
    out.print(f"asked      {found.get('asked')}", markup=False)
    out.print(f"class      {found['data_class']}: {found['why_class']}", markup=False)
    order = ", then ".join(f"{c['model']} ({c['place']})" for c in found["order"]) or "nobody"
    out.print(f"goes to    {order}", markup=False)
    out.print(f"reason     {found['reason']}", markup=False)
    hold = "unpriced" if found["hold_usd"] is None else f"${found['hold_usd']:.6f}"
    out.print(f"held       {hold} at most, {found['prompt_tokens_at_most']} prompt tokens at most", markup=False)
    for refusal in found["refusals"]:
        name = refusal["model"] or "any"
        out.print(f"not        {name} [{refusal['rule']}]: {refusal['reason']}", markup=False)
        if refusal["remedy"] and refusal["rule"] not in ("other_lane", "other_model"):
            out.print(f"           to change it: {refusal['remedy']}", markup=False)


def _show_record(found: dict[str, Any], out: Console) -> None:
    out.print(f"request    {found['request']}", markup=False)
    for event in found["events"]:
        if event["kind"] == "opened":
            out.print(f"key        {event['key']} (team {event['team']}), {event['route']}", markup=False)
            _show_decision(event, out)
        else:
            cost = "unpriced" if event.get("cost") is None else f"${event['cost']:.6f}"
            guess = " (estimated)" if event.get("estimated") else ""
            for attempt in event.get("attempts", []):
                detail = f": {attempt['detail']}" if attempt["detail"] else ""
                out.print(
                    f"tried      {attempt['endpoint']}: {attempt['outcome']} in {attempt['ms']} ms{detail}",
                    markup=False,
                )
            out.print(
                f"ended      {event['outcome']}, status {event['status']}, {event.get('total_ms')} ms", markup=False
            )
            out.print(
                f"tokens     {event.get('prompt_tokens')} in, {event.get('output_tokens')} out{guess}", markup=False
            )
            out.print(f"cost       {cost}", markup=False)
