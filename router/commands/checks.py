"""What `doctor` looks at. Each check reads and reports; nothing is mended without being asked."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from router.commands.context import Context, Stop, ask_socket
from router.commands.keys import all_keys
from router.ledger.keys import Key
from serving import engines, probe, processes
from serving.catalogue import DataClass, Model
from serving.gpus import read as read_gpus
from serving.probe import ProbeError, Target

ENGINE_GB = 4.0
"""Disk space an engine's environment takes while it is made (measured: 3.1 GB when done)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing seen: fine, worth knowing, or wrong; and what to do about it."""

    level: Literal["ok", "note", "wrong"]
    what: str
    remedy: str = ""


def examine(context: Context) -> list[Finding]:
    """Everything `doctor` knows to look at."""
    checks = (_configuration, _engine, _compiler, _gpus, _keys, _hosted, _cleartext, _running, _others)
    return [finding for check in checks for finding in check(context)]


def _configuration(context: Context) -> Iterator[Finding]:
    path = context.found.path
    yield Finding("ok", f"configuration: {path or 'none, the defaults are used'}",
                  "" if path else "to change something: headgate config init")  # fmt: skip
    yield Finding("ok", f"state lies in {context.home.root}")


def _engine(context: Context) -> Iterator[Finding]:
    engine = engines.find(context.found.site.engine, context.home.engines, gpu=bool(read_gpus().gpus))
    name = f"engine {engine.package} {engine.version}"
    if engines.ready(engine):
        yield Finding("ok", f"{name} is there: {engine.python}")
        return
    folder = next(p for p in (context.home.engines, *context.home.engines.parents) if p.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < ENGINE_GB:
        yield Finding("wrong", f"{name} is missing and {folder} has {free:.1f} GB free; {ENGINE_GB:g} GB are needed",
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


def _hosted(context: Context) -> Iterator[Finding]:
    today = dt.datetime.now(dt.UTC).date()
    for model in context.found.models.values():
        if model.approved is not None and today > model.approved.until:
            yield Finding("wrong", f"the approval of {model.name} ended on {model.approved.until}; it counts as public",
                          f"renew models.{model.name}.approved in headgate.yaml")  # fmt: skip
    for name, provider in context.found.providers.items():
        if not provider.enabled:
            continue
        there = Path(provider.key_file).expanduser().is_file() if provider.key_file else provider.key_env in os.environ
        where = provider.key_file or f"${provider.key_env}"
        count = len(may_use(context, name))
        yield Finding("ok" if there else "wrong", f"provider {name} is enabled; {count} keys may use it; its key in "
                      f"{where} is {'there' if there else 'missing'}", "" if there else f"set {where}")  # fmt: skip
        if provider.private_ranges:
            yield Finding("note", f"provider {name} may resolve into {', '.join(provider.private_ranges)}; it still "
                          "counts as hosted", "")  # fmt: skip


def _cleartext(context: Context) -> Iterator[Finding]:
    for attached in context.found.site.attach:
        if attached.allow_cleartext:
            yield Finding(
                "note", f"{attached.url} is reached in clear (allow_cleartext)", "give it TLS and an https URL"
            )


def _running(context: Context) -> Iterator[Finding]:
    try:
        found = ask_socket(context.home, "serving", "/instances")
    except Stop:
        left = processes.ours(context.home.installation())
        if left:
            yield Finding("wrong", f"{len(left)} processes of an earlier start are left", "headgate down")
        else:
            yield Finding("note", "Headgate is not running", "headgate up")
        return
    for instance in found["instances"]:
        fine = instance["state"] == "ready"
        what = f"{instance['name']} is {instance['state']} {instance['detail']}".strip()
        yield Finding("ok" if fine else "wrong", what,
                      "" if fine else f"headgate logs {instance['name']}")  # fmt: skip


def _others(context: Context) -> Iterator[Finding]:
    """vLLM servers that run here and are not ours: they can be attached, and are never touched."""
    mine = {p.pid for p in processes.ours(context.home.installation())}
    for pid, port in _vllm_servers():
        if pid in mine:
            continue
        url = f"http://127.0.0.1:{port}"
        try:
            served = ", ".join(m.name for m in asyncio.run(probe.models(Target(url, "", ""))))
        except ProbeError as failed:
            yield Finding("note", f"a vLLM server (pid {pid}) does not answer at {url}: {failed}", "is it starting?")
            continue
        yield Finding("note", f"a vLLM server (pid {pid}) serves {served}", f"headgate up --attach {url}")


def _vllm_servers() -> Iterator[tuple[int, int]]:
    """Pid and port of processes whose command line is a vLLM API server on TCP."""
    for entry in Path("/proc").iterdir():
        try:
            args = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        serves = "vllm.entrypoints.openai.api_server" in args or (
            "serve" in args and any(a.endswith("/vllm") for a in args)
        )
        if not serves or "--uds" in args:
            continue
        pairs = dict(itertools.pairwise(args))
        joined = next((a.partition("=")[2] for a in args if a.startswith("--port=")), "")
        port = pairs.get("--port", joined or "8000")
        if port.isdigit():
            yield int(entry.name), int(port)


def may_use(context: Context, provider: str) -> list[Key]:
    """The keys that could reach one of a provider's models with the data class they have."""
    today = dt.datetime.now(dt.UTC).date()
    models: list[Model] = [m for m in context.found.models.values() if m.provider == provider]
    return [
        key for key in all_keys(context)
        if key.works(time.time())
        and any(key.data_class <= m.cleared_for(today) and key.lanes & set(m.lanes) for m in models)
    ]  # fmt: skip
