"""Wanted against running: every planned model is kept running, every attached server is looked at, until told to stop.

Each endpoint's state has one writer, its own task; this starts and ends the tasks, and is the one who is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import demo_model, engines, processes, weights
from serving.attached import AttachedServer
from serving.catalogue import OWN_NETWORKS, Attached, Swap
from serving.endpoint import Timing, View
from serving.engines import Engine, EngineError
from serving.gpus import Readings, aside
from serving.home import Home
from serving.local import Local, Means, Say
from serving.placement import Placed, Plan
from serving.sharing import Sharing
from serving.stay import Stay
from serving.weights import WeightsError

LOOKS_S = 4.0
"""What is published waits so long at most for the first look at each attached server."""
RESET = " (reset the GPU or restart the machine, then start Headgate again)"
"""After an error that counts until serving is started again."""


class Supervisor:
    """All endpoints of this host.

    `providers` are the hosts that may not be attached (`attached.provider_hosts`), `inside` the networks that may.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        attached: Sequence[Attached],
        means: Means,
        timing: Timing,
        read_gpus: Callable[[], Readings],
        readings: Readings,
        providers: frozenset[str],
        inside: Sequence[str] = OWN_NETWORKS,
        swap: Swap | None = None,
        memory_free_gb: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`swap`: which models run by demand. `memory_free_gb`: main memory that is free now."""
        self.readings = readings
        self.engine: Engine | None = None
        """The engine in use, once it is there."""
        self._means = dataclasses.replace(
            means, engine=self._noting(means.engine), fault=self._fault, computing=self._computing
        )
        self._timing = timing
        self._read_gpus = read_gpus
        swap = swap or Swap()
        groups = _groups(plan.placed, swap, timing.heard_s, memory_free_gb)
        stays = {name: stay for group in groups for name, stay in group.items()}
        self.sharing = Sharing(groups, swap.min_stay_s, means.say)
        """Who has a place now of those that run by demand."""
        self._locals = [Local(p, self._means, timing, stays.get(p.model.name)) for p in plan.placed]
        self._attached = [AttachedServer(one, timing, means.inherited, providers, inside) for one in attached]
        self._misfits = [_failed_view(m.model, "; ".join(filter(None, (m.reason, m.remedy)))) for m in plan.misfits]

    async def run(self, stop: asyncio.Event, at_once: asyncio.Event) -> None:
        """Keep all that is wanted running until `stop`, then drain (cut short by `at_once`) and leave nothing."""
        await sweep(self._means.home, self._timing.grace_s, self._means.say)
        for view in self._misfits:
            self._means.say(f"{view.name}: failed: {view.detail}")
        work: list[Coroutine[Any, Any, None]] = [self._follow_gpus(), self.sharing.run()]
        work += [self._kept(one) for one in self._attached]
        own = [asyncio.create_task(self._kept(one)) for one in self._locals]
        tasks, ending = [*map(asyncio.create_task, work), *own], set[asyncio.Task[None]]()
        try:
            await _until(stop, tasks)
            await _either(at_once, [_leave(*pair, ending) for pair in zip(self._locals, own, strict=True)])
        finally:
            for task in tasks:
                if task not in ending:  # what ends already must not be cut short in that
                    task.cancel()
            for one in self._attached:
                one.looked.set()
            await asyncio.gather(*tasks, return_exceptions=True)
            await sweep(self._means.home, self._timing.grace_s, self._means.say)

    async def _kept(self, one: Local | AttachedServer) -> None:
        """Have its task run, for ever: what it raises is a bug, which is said, and ends no other endpoint."""
        while True:
            try:
                return await one.run()
            except Exception as broken:
                where, pause = _place(broken), self._timing.longest_pause_s
                self._means.say(f"{one.called}: {where}; it is begun anew in {pause:g} s")
                one.broke(where)
            await asyncio.sleep(pause)

    async def looked(self) -> None:
        """Until each attached server was looked at once, though not for long: before that little is known of them, and
        whoever asks knows more from the serving before this one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOKS_S):
                await asyncio.gather(*(one.looked.wait() for one in self._attached))

    def views(self) -> list[View]:
        """All endpoints, each under a name of its own."""
        found = [view for one in self._locals for view in self._seen(one)] + self._misfits
        found += [view for one in self._attached for view in self._seen(one)]
        given, taken = {view.name for view in found}, set[str]()
        named = []
        for view in found:
            others = (f"{view.name}-{count}" for count in itertools.count(2))
            name = view.name if view.name not in taken else next(n for n in others if n not in given | taken)
            taken.add(name)
            named.append(view if name == view.name else dataclasses.replace(view, name=name))
        return named

    def _seen(self, one: Local | AttachedServer) -> list[View]:
        """What is published of it; a mistake there costs its own entry and no other."""
        try:
            return [self._by_demand(view) for view in one.views()]
        except Exception as broken:
            return [_failed_view(one.called, _place(broken))]

    def _by_demand(self, view: View) -> View:
        """The view, with how long a request for it would have to wait where it sleeps."""
        if view.state not in ("asleep", "waking"):
            return view
        return dataclasses.replace(view, ready_in_s=self.sharing.ready_in_s(view.name))

    async def _follow_gpus(self) -> None:
        while True:
            await asyncio.sleep(self._timing.gpus_s)
            # In a thread: a driver in trouble can hold the call for seconds, or for ever.
            self.readings = await aside(self._read_gpus)

    def _fault(self, placed: Placed) -> str:
        """What is wrong with a GPU that it was given, by the last readings."""
        wrong = (g for g in self.readings.gpus if g.fault and g.uuid in placed.gpus)
        return "; ".join(f"GPU {g.index}: {g.fault}{RESET if g.xid is not None else ''}" for g in wrong)

    def _computing(self, placed: Placed) -> bool:
        """Whether a GPU that it was given computes, by the last readings; what is not known says nothing."""
        at, fresh_s = self.readings.at, 2 * self._timing.gpus_s + 1
        if at is None or time.monotonic() - at > fresh_s:
            return False
        return any((g.utilisation or 0.0) > 0 for g in self.readings.gpus if g.uuid in placed.gpus)

    def _noting(self, ensure: Callable[[Say], Awaitable[Engine]]) -> Callable[[Say], Awaitable[Engine]]:
        """The engine, made once for all who ask; a failure is tried again by the next who asks."""
        one_at_a_time = asyncio.Lock()

        async def engine(say: Say) -> Engine:
            async with one_at_a_time:
                if self.engine is None:
                    self.engine = await ensure(say)
                return self.engine

        return engine


def _groups(
    placed: Sequence[Placed], swap: Swap, heard_s: float, memory_free_gb: Callable[[], float]
) -> list[dict[str, Stay]]:  # fmt: skip
    """The groups of those that run here by demand; one that only sleeps while nobody asks is a group of its own."""
    here = {p.model.name: p for p in placed}
    grouped = {name for group in swap.groups for name in group}
    alone = [(name,) for name in swap.sleep_after_s if name not in grouped]
    groups = [[name for name in group if name in here] for group in (*swap.groups, *alone)]
    return [
        {
            name: Stay(
                wanted=name == group[0], shares=True, sleep_after_s=swap.sleep_after_s.get(name), drain_s=swap.drain_s,
                heard_s=heard_s, sleeps=_sleeps(here[name], memory_free_gb),
            )
            for name in group
        }
        for group in groups
        if group
    ]  # fmt: skip


def _sleeps(placed: Placed, memory_free_gb: Callable[[], float]) -> Callable[[], str] | None:
    """Why its engine cannot sleep now, "" where it can: its weights go to main memory. None: it never can."""

    def why_not() -> str:
        need, free = _weights_gb(placed), memory_free_gb()
        if need is None:
            return "its entry does not say how much memory its weights take"
        return "" if need <= free else f"its weights take up to {need:g} GB of main memory, and {free:.1f} GB are free"

    return why_not if placed.sleeps else None


def _weights_gb(placed: Placed) -> float | None:
    """GB that its weights take at most; None is unknown."""
    return placed.least_gb if placed.need is None else placed.need.weights_gb * len(placed.gpus)


async def sweep(home: Home, grace_s: float, say: Say) -> None:
    """End all engines of this installation: what a killed supervisor left behind. Nothing else is signalled."""
    left = [process for process in processes.ours(home.installation()) if process.instance]
    if left:
        names = ", ".join(sorted({process.instance for process in left}))
        say(f"ends what an earlier run left: {names} ({len(left)} processes)")
        await processes.end(left, grace_s)
    for socket in home.socket("engine-any").parent.glob("engine-*.sock"):
        socket.unlink(missing_ok=True)


async def _until(stop: asyncio.Event, tasks: Sequence[asyncio.Future[None]]) -> None:
    """Wait for `stop`. A task that broke ends the wait with its error: that is a bug, and must not go unseen."""
    stopped = asyncio.ensure_future(stop.wait())
    try:
        pending: set[asyncio.Future[Any]] = {stopped, *tasks}
        while not stopped.done():
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        stopped.cancel()


def _place(broken: Exception) -> str:
    """A mistake of ours, as it may be published: never its text, which can hold anything."""
    last = traceback.extract_tb(broken.__traceback__)[-1]
    return f"a mistake in Headgate: {type(broken).__name__} in {Path(last.filename).name}, line {last.lineno}"


async def _leave(one: Local, task: asyncio.Task[None], ending: set[asyncio.Task[None]]) -> None:
    """It ends as soon as it has drained, whatever the others still do; one that is not ready ends at once."""
    await one.drain()
    ending.add(task)
    task.cancel()


async def _either(cut: asyncio.Event, work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all of `work`, or as much as is done when `cut` is set."""
    all_of_it = asyncio.gather(*work)
    sooner = asyncio.ensure_future(cut.wait())
    both: list[asyncio.Future[Any]] = [all_of_it, sooner]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    sooner.cancel()
    all_of_it.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await all_of_it


async def find_weights(home: Home, engine: Engine, placed: Placed, inherited: Mapping[str, str], say: Say) -> str:
    """The weights as they stand on the command line: a local folder, built or fetched. Raises WeightsError."""
    repo, revision = placed.model.source(placed.variant)
    if repo == demo_model.REPO:
        return await _build_demo(home, engine, inherited, say)
    if weights.is_local(repo):
        return repo
    marked = _marked(home, inherited, f"weights of {placed.model.name}")
    return await weights.fetch(engine.python, repo, revision, say, marked)


async def _build_demo(home: Home, engine: Engine, inherited: Mapping[str, str], say: Say) -> str:
    """Have the engine's own Python build the demo model, which needs its torch."""
    folder = home.models / "demo"
    if (folder / "config.json").is_file():
        return str(folder)
    say("building the demo model")
    script = str(Path(demo_model.__file__))
    try:
        made = await asyncio.create_subprocess_exec(
            str(engine.python), script, str(folder),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=_marked(home, inherited, "demo"),
        )  # fmt: skip
    except OSError as broken:
        raise WeightsError(f"the demo model cannot be built: {broken}") from broken
    try:
        _, told = await made.communicate()
    finally:
        if made.returncode is None:
            made.kill()
            await made.wait()
    if made.returncode != 0:
        last = next((line for line in reversed(told.decode(errors="replace").splitlines()) if line.strip()), "nothing")
        raise WeightsError(f"the demo model cannot be built; the engine's Python said: {last.strip()[:300]}")
    return str(folder)


def engine_finder(
    find: Callable[[], Engine], home: Home, inherited: Mapping[str, str]
) -> Callable[[Say], Awaitable[Engine]]:
    """How the engine is had: found, then made where it is missing. Raises EngineError."""

    async def ensure(say: Say) -> Engine:
        try:
            return await engines.ensure(find(), say, environ=_marked(home, inherited, "engine being made"))
        except OSError as broken:
            raise EngineError(f"the engine's environment cannot be used: {broken}") from broken

    return ensure


def _marked(home: Home, inherited: Mapping[str, str], instance: str) -> dict[str, str]:
    """The environment of a process that prepares something, so that it is found and ended if we are killed.

    The name of such an instance holds a space where it could be a model's, which never does.
    """
    return {**inherited, processes.INSTALLATION: home.installation(), processes.INSTANCE: instance}


def _failed_view(name: str, detail: str) -> View:
    return View(
        name=name,
        model=name,
        served=name,
        state="failed",
        detail=detail,
        since=time.time(),
        address="",
        attached=False,
        context=0,
        limit=0,
        metrics="none",
    )
