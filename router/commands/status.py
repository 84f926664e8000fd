"""`status`, `logs`: what runs now and how it fares, and the end of a log."""

from __future__ import annotations

import contextlib
import subprocess
import time
from typing import Annotated, Any

import typer
from rich.console import Console

from router import keeper
from router.commands.context import (
    JsonOption,
    NotRunning,
    Stop,
    ask_admin,
    ask_socket,
    console,
    plain,
    say_json,
    table,
)
from router.commands.progress import LASTING, near, sentence, standing
from router.upstream.instances import STALE_S
from serving.home import Home, find_home

UNKNOWN = "unknown"
READINGS = (
    "memory_total_gb", "memory_free_gb", "utilisation", "power_w", "temperature_c", "throttle", "warnings", "others_gb",
)  # fmt: skip
INTERRUPTED_S = 60.0
"""An interrupted request is shown so long."""


def status(as_json: JsonOption = False) -> None:
    """Show what runs: models and their load, GPUs, the door, and the last lines of a log where something is wrong.

    Example: headgate status --json
    """
    home, out = find_home(), console()
    found = keeper.running(home)
    try:
        state = _state(home)
    except NotRunning as nothing:
        if as_json:
            say_json({"running": False, "starting": found is not None})
            raise typer.Exit(1) from None
        if found is not None:
            raise Stop("Headgate is starting and does not answer yet; see: headgate logs keeper") from nothing
        raise
    if as_json:
        say_json({"running": True, "url": found.url if found else None, **state})
        return
    show(state, found.url if found else "", time.time(), out)


def _state(home: Home) -> dict[str, Any]:
    """What the router knows; where it does not answer, what serving does. Raises NotRunning where neither does."""
    try:
        found: dict[str, Any] = ask_admin(home, "/status")
        return found
    except Stop:
        return {"serving": ask_socket(home, "serving", "/instances"), "endpoints": [], "door": None}


def logs(
    name: Annotated[str, typer.Argument(help="keeper, serving, door, router, or a model's name.")] = "",
    lines: Annotated[int, typer.Option("-n", help="How many lines.", min=1)] = 50,
    follow: Annotated[bool, typer.Option("-f", help="Go on as lines come.")] = False,
) -> None:
    """Show the end of a log; without a name, which logs there are.

    Example: headgate logs demo -n 20
    """
    out, folder = console(), find_home().logs
    known = sorted(p.stem for p in folder.glob("*.log")) if folder.is_dir() else []
    if not name:
        rows = table("log", "bytes", "last written")
        for each in known:
            found = (folder / f"{each}.log").stat()
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.st_mtime))
            rows.add_row(each, str(found.st_size), when)
        out.print(rows if known else "There are no logs yet.")
        if known:
            out.print(f"They lie in {folder}", soft_wrap=True)
        return
    if name not in known:
        raise Stop(f"there is no log called {name!r}; there are: {', '.join(known) or 'none yet'}")
    # tail(1) is on every system this runs on, and follows rotated files as well.
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(folder / f"{name}.log")]
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how -f ends
        raise typer.Exit(subprocess.run(command, check=False).returncode)


def show(state: dict[str, Any], url: str, now: float, out: Console) -> None:
    """The state of everything, as tables. `now` in Unix seconds."""
    if url:
        out.print(f"endpoint  {url}/v1", soft_wrap=True)
    _show_models(state, out)
    if (waiting := state.get("waiting")) is not None:
        out.print(f"queue     {waiting} waiting for local room{_waiting(state.get('queue') or {})}")
    workers = state.get("workers") or {"count": 1}
    if workers["count"] > 1:
        missing = "".join(f"; worker {number} does not" for number in silent(workers))
        out.print(f"workers   {len(workers['answer'])} of {workers['count']} answer{missing}", soft_wrap=True)
    if (isolated := state.get("isolation") or {}).get("asked"):
        out.print(f"isolation {isolation_words(isolated['way_out'])}", soft_wrap=True)
    serving = state.get("serving") or {}
    silent_s = now - state["serving_heard"] if state.get("serving_heard") else 0.0
    _show_gpus(serving, silent_s + (serving.get("gpus_age_s") or 0.0), out)
    _show_trouble(state, silent_s, out)


def _waiting(queue: dict[str, int]) -> str:
    """Who they are, where that is more than a number."""
    said = [f"{queue['batch']} of them batch"] if queue.get("batch") else []
    said += [f"of {queue['teams']} teams"] if queue.get("teams", 0) > 1 else []
    return f" ({', '.join(said)})" if said else ""


def _show_models(state: dict[str, Any], out: Console) -> None:
    serving, endpoints = state.get("serving") or {}, near(state)
    behind = [e for e in state.get("endpoints", []) if e["address"] == "door"]
    indexes = {gpu["uuid"]: gpu["index"] for gpu in serving.get("gpus") or []}
    rows = table("model", "in flight", "running", "waiting", "KV", "on", "state", whole=6)
    for found in serving.get("instances", []):
        endpoint = endpoints.get(found["name"], {})
        # What the router believes of it, for it leaves out what is too old; without a router, serving's own word.
        load = endpoint or found.get("load") or {}
        limit = endpoint.get("limit") or found["limit"]  # the router's own, for several workers take one each at least
        in_flight = known(endpoint.get("in_flight")) + (f" of {limit}" if limit else "")
        on = f"GPU {numbers([indexes[u] for u in found['gpus'] if u in indexes])}" if found["gpus"] else "CPU"
        rows.add_row(
            found["name"], in_flight, known(load.get("running")), known(load.get("waiting")),
            share(load.get("kv_use")), "attached" if found["attached"] else on, standing(found, endpoint)[0],
        )  # fmt: skip
    for endpoint in behind:
        in_flight = known(endpoint["in_flight"]) + (f" of {endpoint['limit']}" if endpoint.get("limit") else "")
        rows.add_row(endpoint["name"], in_flight, "", "", "", "door", endpoint["state"])
    if rows.row_count:
        out.print(rows)
    loads = {f["name"]: endpoints.get(f["name"]) or f.get("load") or {} for f in serving.get("instances", [])}
    if cached := [f"{name} {had}" for name, load in loads.items() if (had := _cached(load))]:
        out.print(f"cached    of their prompts: {', '.join(cached)}", soft_wrap=True)
    for found in serving.get("instances", []):
        if found["attached"]:
            out.print(f"{found['name']}: attached at {found['address']}", soft_wrap=True)
    if behind:
        _show_saturated(state.get("saturations") or {}, out)


def _show_saturated(saturations: dict[str, Any], out: Console) -> None:
    """Why requests overflow, where there is somebody to overflow to."""
    for name, full in sorted(saturations.items()):
        if full["over"]:
            told = f"{name}: saturated ({full['value']:.2f}: {full['why']}), so what may leave goes elsewhere"
            out.print(told, soft_wrap=True)


def _cached(load: dict[str, Any]) -> str:
    """The share of all prompt tokens that its prefix cache had; empty where nobody counted or nothing was asked."""
    queries, hits = load.get("prefix_queries"), load.get("prefix_hits")
    return share(min(1.0, hits / queries)) if queries and hits is not None else ""


def _show_gpus(serving: dict[str, Any], age_s: float, out: Console) -> None:
    gpus = serving.get("gpus") or []
    if not gpus:
        out.print(f"GPUs      {serving.get('gpu_note') or UNKNOWN}", soft_wrap=True)
        return
    rows = table("GPU", "name", "busy", "GB used", "W", "°C", "trouble", whole=1)
    for gpu in gpus:
        if age_s > STALE_S:
            gpu = gpu | dict.fromkeys(READINGS)
        free, total = gpu["memory_free_gb"], gpu["memory_total_gb"]
        used = UNKNOWN if free is None or total is None else f"{known(total - free)} of {known(total)}"
        trouble = [gpu["fault"]] if gpu["fault"] else []
        trouble += [UNKNOWN] if gpu["throttle"] is None and not trouble else gpu["throttle"] or []
        trouble += gpu.get("warnings") or []
        if others := gpu.get("others_gb"):
            trouble.append(f"others hold {known(others)} GB")
        rows.add_row(
            str(gpu["index"]), gpu["name"], share(gpu["utilisation"]), used, known(gpu["power_w"], 0),
            known(gpu["temperature_c"], 0), ", ".join(trouble),
        )  # fmt: skip
    out.print(rows)


def _show_trouble(state: dict[str, Any], silent_s: float, out: Console) -> None:
    """What is not as it should be, one line each, with the log's end where there is one."""
    if "ledger" not in state:
        out.print("router: it does not answer; see: headgate logs router")
    elif not state["ledger"]["healthy"]:
        out.print(f"ledger: {state['ledger']['trouble']}", soft_wrap=True)
    if forgets := (state.get("history") or {}).get("trouble"):
        out.print(f"history: {forgets}", soft_wrap=True)
    if broken := (state.get("scanner") or {}).get("trouble"):
        out.print(f"scanner: {broken}; nothing leaves until it works", soft_wrap=True)
    if silent_s > STALE_S:
        out.print(f"serving: it has not answered for {silent_s:.0f} s; see: headgate logs serving")
    closed: dict[str, list[str]] = {}
    for endpoint in state.get("endpoints", []):
        if endpoint["address"] == "door" and endpoint["state"] != "ready":
            closed.setdefault(sentence(endpoint["state"], endpoint["detail"]), []).append(endpoint["name"])
    for why, names in closed.items():
        out.print(f"{', '.join(names)}: {why}", soft_wrap=True)
    heard = near(state)
    for found in (state.get("serving") or {}).get("instances", []):
        again = f" (started again {found['restarts']} times)" if found["restarts"] else ""
        stands, why = standing(found, heard.get(found["name"], {}))
        if again or (why and stands != "ready"):
            soon = found.get("ready_in_s")
            again += "" if soon is None else f" (asked for, it would be here in about {soon:.0f} s)"
            out.print(f"{found['name']}: {sentence(stands, why)}{again}", soft_wrap=True)
        if (passed := (found.get("load") or {}).get("preempted_s")) is not None and passed <= INTERRUPTED_S:
            out.print(f"{found['name']}: its KV cache is full; {passed:.0f} s ago it began a request again")
        if found.get("way_out"):
            out.print(f"{found['name']}: isolation {isolation_words(found['way_out'])}", soft_wrap=True)
        if found["state"] in LASTING and found["log"]:
            out.print(f"\nlast lines of {found['name']} (all of it: headgate logs {found['name']})")
            for line in found["log"]:
                out.print(f"  {plain(line)}", soft_wrap=True)


def isolation_words(way_out: str) -> str:
    """What `isolate: true` is worth for one process, by what the kernel knows."""
    return f"NOT ENFORCED by the kernel: {way_out}" if way_out else "the kernel knows no way out"


def silent(workers: dict[str, Any]) -> list[int]:
    """The numbers of the workers that should answer and do not."""
    return sorted(set(range(1, workers["count"] + 1)) - set(workers["answer"]))


def known(value: float | None, digits: int = 1) -> str:
    """A number for a person."""
    return UNKNOWN if value is None else f"{value:.{digits}f}".removesuffix(".0")


def numbers(indexes: list[int]) -> str:
    """Some numbers in short: `0-3` for a row of them, else `0,2`."""
    found = sorted(indexes)
    row = len(found) > 2 and found == list(range(found[0], found[0] + len(found)))
    return f"{found[0]}-{found[-1]}" if row else ",".join(map(str, found)) or UNKNOWN


def share(value: float | None) -> str:
    """A share of 1 as a percentage."""
    return UNKNOWN if value is None else f"{value:.0%}"
