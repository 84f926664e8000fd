"""What a person sees while things start, and of what runs. Plain lines where the output is not a terminal."""

from __future__ import annotations

import subprocess
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from router.commands.context import Stop, ask_socket
from serving.home import Home

POLL_S = 0.4
STEPS = {
    "waiting": "waiting its turn", "environment": "making the engine's environment", "weights": "getting the weights",
    "starting": "starting the engine", "ready": "ready", "failed": "FAILED", "draining": "finishing its requests",
    "stopping": "stopping", "stopped": "stopped", "unreachable": "unreachable",
}  # fmt: skip
LASTING = frozenset({"failed", "unreachable", "wrong key"})


def follow(home: Home, child: subprocess.Popen[bytes], out: Console) -> None:
    """Show how the instances start until all are ready and the router answers. Raises Stop with the reason."""
    started, shown = time.monotonic(), dict[str, str]()
    with Live(console=out, transient=True, refresh_per_second=4) if out.is_terminal else _Quiet() as live:
        while True:
            if child.poll() is not None:
                raise Stop(f"it could not start: {_last_words(home)}")
            state = _look(home)
            for name, text in state.items():
                if shown.get(name) != text and not (out.is_terminal and text.startswith(shown.get(name, "-")[:12])):
                    out.print(f"[{time.monotonic() - started:5.1f} s] {name}: {text}", markup=False)
                shown[name] = text
            if isinstance(live, Live):
                busy = "; ".join(f"{n}: {t}" for n, t in state.items() if t != "ready")
                live.update(Spinner("dots", text=f"{time.monotonic() - started:.0f} s  {busy}"[: out.width - 4]))
            if failed := [f"{n}: {t}" for n, t in state.items() if t.startswith(tuple(_words(s) for s in LASTING))]:
                raise Stop("; ".join(failed))
            if state and all(t == "ready" for t in state.values()):
                return
            time.sleep(POLL_S)


class _Quiet:
    """Stands in for the live line where there is no terminal."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        return


def _look(home: Home) -> dict[str, str]:
    """Each part and what it is doing, in words."""
    try:
        document = ask_socket(home, "serving", "/instances")
    except Stop:
        return {"serving": "starting"}
    found = {i["name"]: _sentence(i["state"], i["detail"]) for i in document["instances"]}
    try:
        state = ask_socket(home, "admin", "/status")
        known = {e["name"] for e in state["endpoints"] if e["state"] == "ready"}
        for name, text in found.items():
            if text == "ready" and name not in known:
                found[name] = "ready; the router is being told"
    except Stop:
        found["router"] = "starting"
    return found


def _words(state: str) -> str:
    return STEPS.get(state, state)


def _sentence(state: str, detail: str) -> str:
    if state == "ready":
        return "ready"
    return f"{_words(state)}: {detail}" if detail else _words(state)


def _last_words(home: Home) -> str:
    """Why a part could not start: the last line that one of them wrote for a person."""
    for name in ("serving", "door", "router", "keeper"):
        path = home.logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        if lines and lines[-1].startswith(f"{name}: "):
            return lines[-1].partition(": ")[2]
    return f"see the logs in {home.logs}"


def show_status(state: dict[str, Any], url: str, out: Console) -> None:
    """The state of everything, as tables."""
    serving = state.get("serving") or {}
    if url:
        out.print(f"endpoint {url}/v1", markup=False)
    loads = {e["name"]: e for e in state.get("endpoints", [])}
    table = Table("model", "state", "in flight", "running", "waiting", "limit", "restarts", "address", box=None)
    for found in serving.get("instances", []):
        load = found.get("load") or {}
        here = loads.get(found["name"], {})
        table.add_row(
            found["name"], _sentence(found["state"], found["detail"]), _count(here.get("in_flight")),
            _count(load.get("running")), _count(load.get("waiting")), _count(found["limit"] or None),
            _count(found["restarts"]), found["address"] + (" (attached)" if found["attached"] else ""),
        )  # fmt: skip
    for endpoint in loads.values():
        if endpoint["address"] == "door":
            text = _sentence(endpoint["state"], endpoint["detail"])
            table.add_row(endpoint["name"], text, _count(endpoint["in_flight"]), "", "", "", "", "hosted, by the door")
    out.print(table)
    _show_gpus(serving, out)
    for found in serving.get("instances", []):
        if found["state"] != "ready" and found["log"]:
            out.print(f"\nlast lines of {found['name']} (all of it: headgate logs {found['name']})", markup=False)
            for line in found["log"]:
                out.print(f"  {line}", markup=False)


def _show_gpus(serving: dict[str, Any], out: Console) -> None:
    gpus = serving.get("gpus") or []
    if not gpus:
        out.print(f"GPUs: {serving.get('gpu_note') or 'unknown'}", markup=False)
        return
    table = Table("GPU", "free / total GB", "busy", "W", "°C", "trouble", box=None)
    for gpu in gpus:
        busy = "unknown" if gpu["utilisation"] is None else f"{gpu['utilisation']:.0%}"
        trouble = ", ".join([*gpu["throttle"], *([gpu["fault"]] if gpu["fault"] else [])])
        memory = f"{_count(gpu['memory_free_gb'])} / {_count(gpu['memory_total_gb'])}"
        table.add_row(gpu["name"], memory, busy, _count(gpu["power_w"]), _count(gpu["temperature_c"]), trouble)
    out.print(table)


def _count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"
