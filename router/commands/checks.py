"""What `doctor` looks at. Each check reads and reports; nothing is mended without being asked."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from router import keeper
from router.clock import Forward
from router.commands import foreign
from router.commands.context import Context, NotRunning, Stop, ask_admin, ask_socket, see_log
from router.commands.keys import all_keys
from router.commands.progress import near, sentence, standing
from router.commands.status import isolation_words, silent
from router.commands.unusable import barred, sentences
from router.door.provider_keys import KeyMissing, provider_key
from router.ledger.keys import Key
from router.ledger.released import killed_at, lost_until
from router.ledger.store import latest
from router.records import BY_DEMAND
from serving import engines, isolation, probe, processes
from serving.catalogue import DataClass, Model, Provider
from serving.engines import EngineError
from serving.gpus import read as read_gpus

RECENT_S = 7 * 86_400.0
"""So long a router that was killed is told of."""
DOOR_S = 3.0
"""Seconds the door has to say how it stands."""
UNHEARD_OF = "the door does not know it"
KEY_TROUBLE = ("no key for the provider", "the key of the provider")
"""How the sentences of `provider_keys.py` begin."""
AGAIN = "headgate down; headgate up"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen: fine, worth knowing, or wrong; and what to do about it."""

    level: Literal["ok", "note", "wrong"]
    what: str
    remedy: str = ""


def examine(context: Context) -> list[Finding]:
    """Everything `doctor` knows to look at."""
    checks = (
        _configuration, _clock, _engine, _compiler, _gpus, _keys, _history, _hosted, _way_out, _cleartext, _isolation,
        _running, _others,
    )  # fmt: skip
    return [finding for check in checks for finding in check(context)]


def _configuration(context: Context) -> Iterator[Finding]:
    path = context.found.path
    yield Finding("ok", f"configuration: {path or 'none, the defaults are used'}",
                  "" if path else "to change something: headgate config init")  # fmt: skip
    for below in ("attach", "privacy"):  # others are looked at below
        yield from (Finding("wrong", line, "correct it there") for line in sentences(context.found, (below,)))
    yield Finding("ok", f"state lies in {context.home.root}")
    if (folder := context.home.socket("admin").parent) != context.home.run:
        yield Finding("ok", f"its sockets lie in {folder}, since the state folder's path is too long for them")


def _clock(context: Context) -> Iterator[Finding]:
    if context.home.ledger.exists() and (trouble := Forward(latest(context.home.ledger)).trouble()):
        yield Finding("wrong", trouble, "set the clock right; what ended by one that was ahead needs a later end")


def _engine(context: Context) -> Iterator[Finding]:
    try:
        engine = engines.find(context.found.site.engine, context.home.engines, gpu=bool(read_gpus().gpus))
    except EngineError as wrong:
        yield Finding("wrong", str(wrong))
        return
    if not engine.package:
        there = engine.python.is_file()
        yield Finding("ok" if there else "wrong", f"engine: {engine.python} {'is' if there else 'is not'} there",
                      "" if there else "correct `engine: {python: …}` in headgate.yaml")  # fmt: skip
        return
    name, needed = f"engine {engine.package} {engine.version}", engines.NEEDED_GB[engine.package]
    if engines.ready(engine):
        yield Finding("ok", f"{name} is there: {engine.python}")
    elif (free := engines.free_disk_gb(context.home.engines)) < needed:
        yield Finding("wrong", f"{name} is missing; {context.home.engines} has {free:.1f} GB free of {needed:g}",
                      "free some space, or set HEADGATE_ENGINES to a larger disk")  # fmt: skip
    else:
        yield Finding("note", f"{name} is not there yet", "headgate up makes it (a minute or two)")


def _compiler(_: Context) -> Iterator[Finding]:
    if shutil.which("cc") or shutil.which("gcc"):
        yield Finding("ok", "a C compiler is there")
    else:
        yield Finding("note", "no C compiler: engines on GPUs need one to build kernels", "Debian: apt-get install gcc")


def _gpus(_: Context) -> Iterator[Finding]:
    readings = read_gpus()
    if not readings.gpus:
        yield Finding("note", f"GPUs: {readings.note}", "models run on the CPU, slowly")
    for gpu in readings.gpus:
        free = "unknown" if gpu.memory_free_gb is None else f"{gpu.memory_free_gb:.0f} GB free"
        yield Finding("wrong" if gpu.fault else "ok", f"GPU {gpu.index} {gpu.name}: {gpu.fault or free}",
                      "see the system log; restart the driver or the machine" if gpu.fault else "")  # fmt: skip


def _keys(context: Context) -> Iterator[Finding]:
    keys = [k for k in all_keys(context) if k.works(time.time())]
    classes = ", ".join(f"{sum(k.data_class == c for k in keys)} {c.name}" for c in DataClass)
    yield Finding("ok", f"keys that work: {len(keys)} ({classes})")


def _history(context: Context) -> Iterator[Finding]:
    if until := lost_until(context.home.ledger):
        day = time.strftime("%Y-%m-%d", time.localtime(until))
        what = f"the history of what was private was lost, so everything counts as private until {day}"
        yield Finding("wrong", what, "see: headgate privacy why lost")
    if time.time() - (at := killed_at(context.home.ledger)) < RECENT_S:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
        yield Finding("note", f"a router was killed before {day}; what it was answering then may not be remembered as "
                      "private", "stop it with: headgate down")  # fmt: skip


def _hosted(context: Context) -> Iterator[Finding]:
    today = dt.datetime.now(dt.UTC).date()
    for model in context.found.models.values():
        if model.approved is not None and today > model.approved.until:
            yield Finding("wrong", f"the approval of {model.name} ended on {model.approved.until}; it counts as public",
                          f"renew models.{model.name}.approved in headgate.yaml")  # fmt: skip
    said = _door(context)
    for name, provider in context.found.providers.items():
        if not provider.enabled:
            continue
        count = len(may_use(context, name))
        what = f"provider {name} is enabled; {keys_may(count)} use it"
        here = "; ".join(barred(context.found, name)) or key_trouble(name, provider)
        if wrong := here if said is None else said.get(name, UNHEARD_OF):
            yield Finding("wrong", f"{what}; {wrong}", _mended(name, provider, wrong))
        else:
            keyed = "its key is there" if provider.key_file or provider.key_env else "it is asked without a key"
            yield Finding("ok", f"{what}; {keyed}")
        if provider.private_ranges:
            yield Finding("note", f"provider {name} may resolve into {', '.join(provider.private_ranges)}; it still "
                          "counts as hosted", "")  # fmt: skip


def _mended(name: str, provider: Provider, wrong: str) -> str:
    """What helps a provider that cannot be asked; a file of a key is read at each sending, a variable at the start."""
    if wrong == UNHEARD_OF:
        return AGAIN
    if not wrong.startswith(KEY_TROUBLE):
        return f"correct providers.{name} in headgate.yaml, then: {AGAIN}"
    return (
        "put the key there; it counts at once"
        if provider.key_file
        else f"set it where Headgate is started, then: {AGAIN}"
    )


def _door(context: Context) -> dict[str, str] | None:
    """What the running door says is wrong with each provider: its environment counts, not that of this command."""
    try:
        found = (ask_admin(context.home, "/status")["door"] or {}).get("providers")
    except Stop:
        return None
    return found or None


def _way_out(context: Context) -> Iterator[Finding]:
    """Whether the door lets anything out, by its own word."""
    if not context.found.hosted():
        return
    kept = keeper.running(context.home) is not None
    mend = "it is ended and started again by itself within half a minute; if it stays so: headgate logs door"
    try:
        said = ask_socket(context.home, "door", "/look", b"{}", patience_s=DOOR_S)
    except NotRunning:
        if kept:
            yield Finding("wrong", "the door does not run, so nothing leaves", mend)
    except Stop:
        by_hand = "restart it by what started it; see deploy/README.md"
        yield Finding("wrong", "the door stands still, so nothing leaves", mend if kept else by_hand)
    else:
        why = said["closed_because"]
        yield Finding("wrong" if why else "ok", f"the door is closed: {why}" if why else "the door answers and is open",
                      "headgate door status" if why else "")  # fmt: skip


def key_trouble(name: str, provider: Provider) -> str:
    """Why a provider's key cannot be used from here, "" where it can. Never the key."""
    try:
        provider_key(name, provider, os.environ)
    except KeyMissing as missing:
        return str(missing)
    return ""


def keys_may(count: int) -> str:
    return {0: "no key may", 1: "1 key may"}.get(count, f"{count} keys may")


def _cleartext(context: Context) -> Iterator[Finding]:
    for attached in context.found.site.attach:
        if attached.allow_cleartext:
            yield Finding(
                "note", f"{attached.url} is reached in clear (allow_cleartext)", "give it TLS and an https URL"
            )


def _isolation(context: Context) -> Iterator[Finding]:
    """What `isolate: true` is worth here: tried with a process of its own, and read off those that run."""
    if not context.found.site.isolate:
        return
    tried = subprocess.run(isolation.wrapped(["true"]), capture_output=True, text=True, check=False).stderr.strip()
    if tried:
        yield Finding("wrong", f"isolate: {tried.removeprefix('isolation: ')}", "run it where network namespaces are "
                      "allowed (as root, or where a user may make namespaces)")  # fmt: skip
    else:
        yield Finding("ok", "isolate: the kernel gives processes here a network of their own")
    open_ones = {}
    with contextlib.suppress(Stop):
        open_ones["the router"] = (ask_admin(context.home, "/status").get("isolation") or {}).get("way_out", "")
    with contextlib.suppress(Stop):
        for instance in ask_socket(context.home, "serving", "/instances")["instances"]:
            if instance["pid"]:  # looked at from here: what serving says of itself would be no second opinion
                open_ones[instance["name"]] = isolation.way_out(instance["pid"])
    for name, way_out in open_ones.items():
        yield Finding("wrong" if way_out else "ok", f"isolate: {name}: {isolation_words(way_out)}",
                      "headgate down; headgate up" if way_out and not tried else "")  # fmt: skip


def _running(context: Context) -> Iterator[Finding]:
    """What of this installation runs, or was left behind."""
    kept = keeper.running(context.home) is not None
    try:
        found = ask_socket(context.home, "serving", "/instances")
    except Stop:
        left = processes.ours(context.home.installation())
        if kept:
            yield Finding("wrong", "Headgate was started and serving does not answer", "headgate logs serving")
        elif left:
            yield Finding("wrong", f"{len(left)} processes of an earlier start are left", "headgate down")
        else:
            yield Finding("note", "Headgate is not running", "headgate up")
        return
    if not kept:
        yield Finding("wrong", "processes of an earlier start are left", "headgate down")
    heard: dict[str, dict[str, Any]] = {}
    try:
        state = ask_admin(context.home, "/status")
        heard = near(state)
        if not state["ledger"]["healthy"]:
            yield Finding("wrong", f"the ledger: {state['ledger']['trouble']}", "free some space, or mend the disk")
        if forgets := (state.get("history") or {}).get("trouble"):
            yield Finding("wrong", f"the history: {forgets}", "free some space, or mend the disk; headgate logs router")
        if broken := (state.get("scanner") or {}).get("trouble"):
            mend = "it is tried again each minute; if it stays so: headgate logs router"
            yield Finding("wrong", f"the router's scanner does not work, so nothing leaves: {broken}", mend)
        yield from _workers(state.get("workers") or {"count": 1, "answer": [1]}, context.found.site.router.workers)
    except Stop:
        yield Finding("wrong", "the router does not answer", "headgate logs router")
    for instance in found["instances"]:
        stands, why = standing(instance, heard.get(instance["name"], {}))
        fine = stands in ("ready", *BY_DEMAND)
        what = f"{instance['name']} is {sentence(stands, why)}"
        log = "" if instance["attached"] else see_log(context.home, instance["name"])
        mend = log or "headgate status"
        yield Finding("ok" if fine else "wrong", what, "" if fine else mend)


def _workers(running: dict[str, Any], wanted: int) -> Iterator[Finding]:
    """The router's worker processes, where there are or should be several."""
    count, missing = running["count"], silent(running)
    if missing:
        mend = "it is started again by itself within half a minute; if it stays so: headgate logs router"
        yield from (Finding("wrong", f"worker {n} of the router's {count} does not answer", mend) for n in missing)
    elif count != wanted:
        yield Finding(
            "note", f"the router runs {count} workers; router.workers is {wanted}", "headgate down; headgate up"
        )
    elif count > 1:
        yield Finding("ok", f"the router's {count} workers answer")
    if wanted > (cores := len(os.sched_getaffinity(0))):
        yield Finding("note", f"router.workers is {wanted}, and {cores} cores may be used", "lower it; one is enough "
                      "for most")  # fmt: skip


def _others(context: Context) -> Iterator[Finding]:
    """vLLM servers that run here and are not ours: they can be attached, and are never touched."""
    mine = {p.pid for p in processes.ours(context.home.installation())}
    attached = {probe.address(a.url) for a in context.found.site.attach}
    with contextlib.suppress(Stop):
        attached |= {i["address"] for i in ask_socket(context.home, "serving", "/instances")["instances"]}
    for pid, url in foreign.servers():
        if pid in mine:
            continue
        if url in attached:
            yield Finding("ok", f"a vLLM server (pid {pid}) at {url} is attached")
            continue
        what, mend = foreign.look(url, keeper.running(context.home) is not None)
        yield Finding("note", f"a vLLM server (pid {pid}) {what}", mend)


def may_use(context: Context, provider: str) -> list[Key]:
    """The keys that could reach one of a provider's models with the data class they have."""
    today = dt.datetime.now(dt.UTC).date()
    models: list[Model] = [m for m in context.found.models.values() if m.provider == provider]
    return [
        key for key in all_keys(context)
        if key.works(time.time())
        and any(
            key.data_class <= m.cleared_for(today) and key.lanes & set(m.lanes) and not m.unmet(key.requires, today)
            for m in models
        )
    ]  # fmt: skip
