"""A supervisor over fake engines: what the tests say of each engine, and waiting for what it makes of them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from serving import processes
from serving.catalogue import Attached, Model, Swap, Variant
from serving.command import Command
from serving.endpoint import Timing, View
from serving.engines import Engine, EngineError
from serving.gpus import Readings
from serving.home import Home
from serving.local import Means, Say
from serving.placement import Misfit, Placed, Plan
from serving.supervisor import Supervisor
from serving.turns import Turns

FAKE = Path(__file__).parent / "engine.py"
QUICK = Timing(
    scrape_s=0.05, attached_s=0.1, look_s=0.02, quiet_s=0.15, out_s=0.4, work_s=1.5, frozen_s=0.3, stall_s=0.6,
    memory_s=0.5, first_pause_s=0.1, longest_pause_s=0.4, good_s=60, failed_pause_s=60, start_s=20, grace_s=1,
    drain_s=2, drain_least_s=0.05, gpus_s=0.05,
)  # fmt: skip


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def placed(name: str, gpus: tuple[str, ...] = (), *, sleeps: bool = False) -> Placed:
    model = Model(name=name, place="local", lanes=("private",), context=4096, output=64)
    variant = Variant(name="only", memory_gb=8, device="cpu") if sleeps else None
    return Placed(model, variant, "gpu" if gpus else "cpu", gpus, 4096, 8, sleeps=sleeps)


class Rig:
    """A supervisor over fake engines, and what the tests say of each engine."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.settings: dict[str, dict[str, str]] = {}
        self.said: list[str] = []
        self.engine_error = ""
        self.isolate = False
        self.gpus: dict[str, tuple[str, ...]] = {}
        """By model, the GPUs it was given."""
        self.noted: list[tuple[str, str, int]] = []
        """Model, engine and tokens of the caches that were reported."""
        self.missing = ""
        """What of its memory is not free,"""
        self.is_missing: Callable[[Placed], str] = lambda _: self.missing
        """and how that is asked, in a thread."""
        self.free_gb = 100.0
        """Main memory for the weights of those that sleep."""
        self.providers: frozenset[str] = frozenset()
        self.running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    def start(
        self, *names: str, attached: tuple[Attached, ...] = (), misfits: tuple[Misfit, ...] = (),
        timing: Timing = QUICK, read_gpus: Callable[[], Readings] = Readings, swap: Swap | None = None,
        sleeps: bool = False,
    ) -> Supervisor:  # fmt: skip
        means = Means(
            home=self.home,
            installation=self.home.installation(),
            inherited=os.environ.copy(),
            engine=self._engine,
            weights=self._weights,
            command=self._command,
            say=self.said.append,
            turns=Turns(),
            isolate=self.isolate,
            noted=lambda one, engine, tokens: self.noted.append((one.model.name, engine.version, tokens)),
            missing=lambda one: self.is_missing(one),
        )
        plan = Plan(tuple(placed(name, self.gpus.get(name, ()), sleeps=sleeps) for name in names), misfits)
        supervisor = Supervisor(
            plan=plan,
            attached=attached,
            means=means,
            timing=timing,
            read_gpus=read_gpus,
            readings=Readings(),
            providers=self.providers,
            swap=swap,
            memory_free_gb=lambda: self.free_gb,
        )
        stop = asyncio.Event()
        self.running.append((stop, asyncio.create_task(supervisor.run(stop, asyncio.Event()))))
        return supervisor

    async def stop(self) -> None:
        for stop, task in self.running:
            stop.set()
            await task
        self.running.clear()

    async def close(self) -> None:
        """Stop, and see that nothing of it is left."""
        await self.stop()
        assert processes.ours(self.home.installation()) == []

    async def _engine(self, say: Say) -> Engine:
        say("looks for Python")
        if self.engine_error:
            raise EngineError(self.engine_error)
        return Engine(Path(sys.executable), "fake", "1")

    async def _weights(self, engine: Engine, one: Placed, say: Say) -> str:
        return "/weights"

    def _command(self, one: Placed, *, python: Path, socket: Path, instance: str, **_: Any) -> Command:
        settings = {f"FAKE_{key.upper()}": value for key, value in self.settings.get(instance, {}).items()}
        args = (str(python), str(FAKE), "--uds", str(socket), "--served-model-name", one.model.name)
        return Command(args, {"PATH": os.environ["PATH"], **settings})


async def until(supervisor: Supervisor, name: str, right: Callable[[View], bool], limit_s: float = 20) -> View:
    end = time.monotonic() + limit_s
    while True:
        for view in supervisor.views():
            if view.name == name and right(view):
                return view
        assert time.monotonic() < end, f"still {supervisor.views()}"
        await asyncio.sleep(0.01)


async def ready(supervisor: Supervisor, name: str) -> View:
    return await until(supervisor, name, lambda view: view.state == "ready")
