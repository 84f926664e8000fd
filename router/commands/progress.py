"""What a person sees while things start. Plain lines where the output is not a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from router import keeper
from router.commands.context import Stop, ask_socket, see_log
from serving.home import Home

POLL_S = 0.3
QUIET_S = 5.0
"""Without a terminal, news of the same step (bytes fetched) are shown this often at most."""
TRIES = 3
"""A part that ended so often before all was ready will not come up by itself."""
STEPS = {
    "waiting": "waiting its turn", "environment": "making the engine's environment", "weights": "getting the weights",
    "starting": "starting", "failed": "FAILED", "draining": "finishing its requests",
    "asleep": "asleep, a request wakes it", "waking": "waking up",
}  # fmt: skip
COMING = "coming up"
LASTING = frozenset({"failed", "unreachable", "wrong key"})


@dataclass(frozen=True, slots=True)
class Start:
    """A start that somebody waits for."""

    home: Home
    alive: Callable[[], bool]
    url: str
    since: int
    """Bytes of the keeper's log that are older than this start."""
    insisted: frozenset[str] = frozenset()
    """Addresses given with --attach: one that cannot be used is an error. Others only leave a line."""
    config: Path = Path("headgate.yaml")


@dataclass(frozen=True, slots=True)
class Step:
    """What one part is doing."""

    state: str
    detail: str = ""
    address: str = ""
    attached: bool = False

    def words(self) -> str:
        return sentence(self.state, self.detail)


def follow(start: Start, out: Console) -> None:
    """Show how the parts start until all are ready and the router answers. Raises Stop with the reason."""
    shown = _Shown(out)
    live = Live(console=out, transient=True, refresh_per_second=8) if out.is_terminal else contextlib.nullcontext()
    with live as bar:
        while True:
            if not start.alive():
                words = keeper.last_words(start.home.logs / "keeper.log", start.since)
                raise Stop(words or f"it ended at once; see {start.home.logs}")
            steps = _look(start)
            _stop_where_hopeless(start, steps)  # before it is shown: the reason is said once, at the end
            shown.update(steps, bar)
            if _settled(steps):
                for name in sorted(name for name, step in steps.items() if step.state in LASTING):
                    out.print(f"{name} is left out; it is tried again", soft_wrap=True)
                return
            time.sleep(POLL_S)


def starting(start: Start) -> bool:
    """Whether something is still coming up; one look, without waiting."""
    return not _settled(_look(start))


def _settled(steps: dict[str, Step]) -> bool:
    return all(step.state in ("ready", "asleep") or step.state in LASTING for step in steps.values())


def show_closed(home: Home, enabled: list[str], out: Console) -> None:
    """Why nothing leaves, or one line for each enabled provider that cannot be used; what runs goes on without it."""
    if not enabled:
        return
    try:
        state = ask_socket(home, "admin", "/status")
    except Stop:
        return
    door = state["door"] or {}
    shut = door["detail"] if door.get("at") and not door.get("open", True) else ""  # else it has said nothing yet
    if why := shut or (state.get("scanner") or {}).get("trouble"):
        out.print(f"note: nothing leaves to any provider: {why}", soft_wrap=True)
    said = door.get("providers") or {}
    for name in enabled:
        if why := said.get(name):
            reason = why.removeprefix(f"no key for the provider {name}: ")
            out.print(f"note: {name} is closed: {reason}", soft_wrap=True)


class _Shown:
    """Says what is new, and only that."""

    def __init__(self, out: Console) -> None:
        self._out, self._started = out, time.monotonic()
        self._last: dict[str, tuple[Step, float]] = {}

    def update(self, steps: dict[str, Step], bar: Live | None) -> None:
        now = time.monotonic()
        for name, step in steps.items():
            before, at = self._last.get(name, (None, 0.0))
            news = before is None or step.state != before.state
            if news or (bar is None and step != before and now - at > QUIET_S):
                self._out.print(f"[{now - self._started:5.1f} s] {name}: {step.words()}", soft_wrap=bar is None)
                self._last[name] = (step, now)
        if bar is not None:
            busy = "; ".join(f"{n}: {s.words()}" for n, s in steps.items() if s.state != "ready")
            # Text, since a spinner would read brackets in a log line as markup.
            bar.update(Spinner("dots", Text(f"{now - self._started:.0f} s  {busy}"[: self._out.width - 4])))


def _look(start: Start) -> dict[str, Step]:
    """Each part and what it is doing."""
    try:
        document = ask_socket(start.home, "serving", "/instances")
    except Stop:
        return {"serving": Step(COMING)}
    found = {
        i["name"]: Step(i["state"], i["detail"], i["address"] or "", bool(i["attached"])) for i in document["instances"]
    }
    return found | _rest(start, found)


def _rest(start: Start, instances: dict[str, Step]) -> dict[str, Step]:
    """The router and the door, as long as they are not ready, and what the router will not use.

    A ready instance counts once the router knows it.
    """
    try:
        state = ask_socket(start.home, "admin", "/status")
    except Stop:
        return {"router": Step(COMING)}
    known = near(state)
    coming = {n: s for n, s in instances.items() if s.state == "ready" and known.get(n, {}).get("state") != "ready"}
    refused = {
        n: Step("failed", known[n]["detail"], s.address, s.attached)
        for n, s in coming.items() if known.get(n, {}).get("state") == "failed"
    }  # fmt: skip
    if len(refused) < len(coming):
        return refused | {"router": Step(COMING, "it hears of the models")}
    if any(e["address"] == "door" for e in state["endpoints"]) and not (state["door"] or {}).get("at"):
        return refused | {"door": Step(COMING)}
    return refused


def near(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The router's own endpoints by name, without the door's: a server may call its model as a hosted one is called."""
    return {e["name"]: e for e in state.get("endpoints", []) if e["address"] != "door"}


def standing(instance: dict[str, Any], endpoint: dict[str, Any]) -> tuple[str, str]:
    """State and detail of an instance: serving's word, but where the router will not use it, the router's."""
    found = endpoint if endpoint.get("state") == "failed" else instance
    return found["state"], found["detail"]


def _stop_where_hopeless(start: Start, steps: dict[str, Step]) -> None:
    failed = {n: s for n, s in steps.items() if s.state in LASTING}
    fatal = {n: s for n, s in failed.items() if not s.attached or s.address in start.insisted}
    if not fatal and failed and len(failed) == len(steps):
        fatal = failed  # nothing is left that could answer
    if fatal:
        raise Stop("; ".join(_mend(start, name, step) for name, step in fatal.items()))
    with contextlib.suppress(OSError):
        lines = (start.home.logs / "keeper.log").read_bytes()[start.since :].decode(errors="replace").splitlines()
        again = [line for line in lines if "starting it again" in line]
        if len(again) >= TRIES:
            raise Stop(f"{again[-1].partition(' keeper: ')[2]}; see: headgate logs")


def _mend(start: Start, name: str, step: Step) -> str:
    """What is wrong with one endpoint, and what to do."""
    what = f"{name}: {step.state}: {step.detail}"
    if not step.attached:
        log = see_log(start.home, name)
        return f"{what}; see: {log}" if log else what
    if step.state == "wrong key":
        return f"{what} under `attach:` in {start.config}, then: headgate up"
    if step.state == "unreachable":
        return (f"{what}; start that server first, or use --detach without --wait: Headgate then goes on looking "
                "for it")  # fmt: skip
    return what


def sentence(state: str, detail: str) -> str:
    """A state in words."""
    words = STEPS.get(state, state)
    return f"{words}: {detail}" if detail and state != "ready" else words
