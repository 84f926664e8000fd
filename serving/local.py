"""One model that is wanted here: environment, weights, start, ready, watched, and again after a crash.

The only writer of that model's state. Knows neither the other models nor how its state is published.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from serving import instance as instances
from serving import isolation, memory, probe, processes
from serving.command import Command
from serving.endpoint import Timing, View, Watch
from serving.engines import Engine, EngineError
from serving.gpus import aside
from serving.home import Home
from serving.instance import Instance, InstanceError, State
from serving.life import MARK, Life
from serving.placement import Placed
from serving.probe import ProbeError, Target
from serving.stay import Stay
from serving.turns import MAIN, Turns
from serving.weights import WeightsError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Means:
    """How a placed model becomes a process."""

    home: Home
    installation: str
    inherited: Mapping[str, str]
    engine: Callable[[Say], Awaitable[Engine]]
    """The engine, made where it is missing; the same one for all who ask. Raises EngineError."""
    weights: Callable[[Engine, Placed, Say], Awaitable[str]]
    """What stands on the command line for the weights, once they are here. Raises WeightsError."""
    command: Callable[..., Command]
    """`command.build`. Raises ValueError where the catalogue asks for what it may not."""
    say: Say
    """A line for a person who watches."""
    turns: Turns
    """Held from start to ready, and while one falls asleep or wakes."""
    isolate: bool = False
    """Whether each engine runs in a network of its own."""
    noted: Callable[[Placed, Engine, int], None] = lambda *_: None
    """Hears how many tokens the cache of one that is ready holds. Writes a file."""
    missing: Callable[[Placed], str] = lambda _: ""
    """What of the memory that it was planned to have is not free now, "" where all is. May take a second: a thread."""
    fault: Callable[[Placed], str] = lambda _: ""
    """What is wrong with a GPU it was given, by the last readings; "" where nothing is."""
    computing: Callable[[Placed], bool] = lambda _: False
    """Whether a GPU it was given computes, by the last readings."""


class GpuFault(InstanceError):
    """A GPU that it runs on cannot be used. It starts again when that is over, and not before."""


class Local:
    """One wanted model and its state."""

    def __init__(self, placed: Placed, means: Means, timing: Timing, stay: Stay | None = None) -> None:
        self.name = self.called = placed.model.name
        self.stay = stay or Stay()
        self._placed = placed
        self._means = means
        self._timing = timing
        self._instance: Instance | None = None
        self._watch: Watch | None = None
        self._state: State = "waiting"
        self._detail = ""
        self._since = time.time()
        self._draining = False
        self._restarts = 0
        self._unready = 0
        """Starts in a row that never became ready."""
        self._crashes = 0
        """Ends in a row without a long good run between them."""

    async def run(self) -> None:
        """Have it run, for ever. Cancelled, it leaves no process behind."""
        while not self._draining:
            await self._sound()
            try:
                ready_at = await self._bring_up()
                reason = await self._watch_over()
                while not reason and await self._sleep():
                    reason = await self._watch_over()
                # At once: ending the rest of a crashed group can take seconds in which nobody must send to it.
                self._set("stopping", reason)
                self._crashes = 0 if time.monotonic() - ready_at >= self._timing.good_s else self._crashes
                self._unready, lasting = 0, False
            except (EngineError, WeightsError) as failed:
                reason, lasting = str(failed), True
            except GpuFault as failed:
                self._set("stopping", str(failed))
                reason, lasting = str(failed), False
            except InstanceError as failed:
                self._unready += 1
                reason, lasting = str(failed), failed.lasting
            finally:
                await self._end()
                self.stay.went("stop")
            if reason and not self._draining:
                await self._sound()
                await self._pause(reason, lasting)

    async def drain(self) -> None:
        """Take no new requests; return when it has none left, or when the time for that has passed.

        One that hangs is not waited for: nothing there would come to its end.
        """
        was_ready, watch = self._state == "ready", self._watch
        self._draining = True
        if not was_ready or watch is None:
            return
        self._set("draining", "finishes its requests")
        began = time.monotonic()
        while time.monotonic() - began < self._timing.drain_s and self._state == "draining":
            if watch.empty_since(began + self._timing.drain_least_s):
                return
            await asyncio.sleep(0.05)

    def broke(self, where: str) -> None:
        """Its task ended by a mistake of ours; until it runs again its place is free for others."""
        self._set("failed", where)
        self.stay.failed()

    def views(self) -> list[View]:
        """As it is published."""
        placed, live = self._placed, self._instance
        state, detail = self.stay.shown(self._state, self._detail)
        if state in ("asleep", "waking") and (fault := self._means.fault(placed)):
            state, detail = "failed", fault  # nobody is to wait for it
        view = View(
            name=self.name,
            model=self.name,
            served=(live.served if live else "") or self.name,
            state=state,
            detail=detail,
            since=self._since,
            address=f"unix:{instances.socket_path(self._means.home, self.name)}",
            attached=False,
            context=(live.context if live else 0) or placed.context,
            limit=placed.limit,
            metrics="vllm",
            restarts=self._restarts,
            pid=live.pid if live else None,
            gpus=placed.gpus,
            abilities=tuple(sorted(placed.model.abilities)),
            load=self._watch.load if self._watch else None,
            load_age_s=self._watch.age_s() if self._watch else None,
            preempted_s=self._watch.preempted_s() if self._watch else None,
            log=tuple(instances.log_tail(self._means.home, self.name, 5)),
            way_out=self._way_out(),
            start_s=self.stay.start_s,
            swaps=dict(self.stay.swaps) if self.stay.shares else None,
        )
        return [view]

    def _way_out(self) -> str:
        """What the kernel says of its engine, asked anew each time: what was so at the start may have changed."""
        pid = self._instance.pid if self._instance is not None else None
        asked = self._means.isolate and pid is not None and self._state in ("ready", "stalled", "draining")
        return isolation.way_out(pid) if asked else ""

    async def _bring_up(self) -> float:
        """Until it answers; returns when that was, in monotonic seconds. Raises what its steps raise."""
        means, timing = self._means, self._timing
        self._set("environment", "")
        engine = await means.engine(lambda text: self._set("environment", text))
        self._set("weights", "")
        weights = await means.weights(engine, self._placed, lambda text: self._set("weights", text))
        if not self.stay.wanted:
            self._set("asleep", self.stay.why)
            await self.stay.until_wanted()
        self._usable()
        self.stay.begins()
        if means.turns.starting:
            self._set("waiting", "another model starts first")
        async with means.turns.start(self._placed.gpus):
            self._instance = Instance(self.name, self._command(engine, weights), means.home, means.installation)
            await self._instance.clear()
            await self._memory()
            self._set("starting", "the engine starts")
            await self._instance.start()
            await self._instance.ensure_ready(timing.start_s, lambda: means.fault(self._placed))
        self._watch = Watch(Target(f"unix:{self._instance.socket}"), timing)
        await self._watch.read()
        if (load := self._watch.load) is not None and load.kv_tokens:
            await asyncio.to_thread(means.noted, self._placed, engine, load.kv_tokens)
        self.stay.came("start")
        self._set("ready", "")
        return time.monotonic()

    def _command(self, engine: Engine, weights: str) -> Command:
        try:
            built = self._means.command(
                self._placed,
                python=engine.python,
                weights=weights,
                revision=self._placed.model.source(self._placed.variant)[1],
                socket=instances.socket_path(self._means.home, self.name),
                port=None,
                installation=self._means.installation,
                instance=self.name,
                inherited=self._means.inherited,
            )
        except ValueError as refused:
            raise InstanceError(str(refused), lasting=True) from refused
        if not self._means.isolate:
            return built
        environment = built.environment | isolation.LOCAL_ONLY
        return replace(built, args=isolation.wrapped(built.args), environment=environment)

    def _usable(self) -> None:
        """Raises GpuFault where a GPU of it cannot be used: it may have slept, or fetched weights, for hours."""
        if fault := self._means.fault(self._placed):
            raise GpuFault(fault)

    async def _sound(self) -> None:
        """Return when nothing is wrong with its GPUs; until then it counts as failed."""
        while not self._draining and (fault := self._means.fault(self._placed)):
            self._set("failed", f"{fault}; it starts again when that is over")
            self.stay.failed()
            await asyncio.sleep(min(self._timing.gpus_s, 1.0))
        self.stay.forgiven()

    async def _memory(self) -> None:
        """Wait until the memory it was planned to have is free. Raises InstanceError where that takes too long."""
        until = time.monotonic() + self._timing.memory_s
        while missing := await self._missing():
            if time.monotonic() >= until or self._draining:
                raise InstanceError(f"{missing}; {memory.REMEDY}")
            self._set("waiting", f"for memory: {missing}")
            await asyncio.sleep(min(1.0, self._timing.memory_s / 10))

    async def _missing(self) -> str:
        """What is not free. A driver that holds the question for ever must not hold up every other start as well."""
        try:
            async with asyncio.timeout(self._timing.memory_s):
                return await aside(functools.partial(self._means.missing, self._placed))
        except TimeoutError:
            return "nobody knows what is free, since the NVIDIA driver does not answer"

    async def _watch_over(self) -> str:
        """Look at it until it ends or hangs for good; returns why it must be started again. Raises GpuFault."""
        instance, watch = self._instance, self._watch
        assert instance is not None and watch is not None
        present = functools.partial(processes.ours, self._means.installation, instance=self.name)
        life = Life(
            watch, instance.served, instance.pid, present(), on_cpu=self._placed.device == "cpu", present=present,
            computing=lambda: self._means.computing(self._placed),
        )  # fmt: skip
        ended, reading = asyncio.ensure_future(instance.wait()), asyncio.ensure_future(self._read(watch))
        try:
            while True:
                # Beside the readings: a page that does not come must not hold up the look at the rest.
                await asyncio.wait({ended, reading}, timeout=self._timing.look_s, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    return instance.death().reason if self.stay.wanted else ""
                if reading.done():
                    reading.result()
                self._usable()
                life.look()
                self.stay.seen(watch)
                # It is looked after until it can fall asleep: somebody else's start can take long.
                turn = self.stay.sleeps is None or self._means.turns.free((*self._placed.gpus, MAIN))
                if not self.stay.wanted and not life.stall and turn and self.stay.finished(watch):
                    return ""
                # One that hangs does not fall asleep; it is ended, and gives its place up so.
                if life.restart or (life.stall and (self._draining or not self.stay.wanted)):
                    return life.restart or life.stall
                if not self._draining:
                    self._set("stalled" if life.stall else "ready", life.stall)
        finally:
            life.end()
            for task in (ended, reading):
                task.cancel()

    async def _sleep(self) -> bool:
        """Sleep until it is wanted again, not at all where that is so before its turn came; False where it cannot, or
        is no longer whole, and is to be ended instead. Raises InstanceError."""
        instance, watch, turns = self._instance, self._watch, self._means.turns
        if instance is None or watch is None or instance.pid is None or self.stay.sleeps is None:
            return False
        try:
            async with turns.alone((*self._placed.gpus, MAIN)):
                why = await asyncio.to_thread(self.stay.sleeps)
                if self.stay.wanted:
                    return True
                if not why:
                    self.stay.goes()
                    await probe.put_to_sleep(instance.target, self._timing.sleep_s)
        except ProbeError as failed:
            why = str(failed)
        if why:
            self._means.say(f"{self.name}: it is stopped, since it cannot sleep: {why}")
            return False
        self.stay.went("sleep")
        self._set("asleep", self.stay.why)
        if not await self._slept(instance):
            return False
        self.stay.begins()
        async with turns.alone(self._placed.gpus or (MAIN,)):
            self._set("starting", "it wakes up")
            if why := await probe.wake(instance.target, instance.served, self._timing.sleep_s):
                raise InstanceError(f"it did not wake up: {why}")
        await watch.read()
        self.stay.came("wake")
        self._set("ready", "")
        return True

    async def _slept(self, instance: Instance) -> bool:
        """Until it is wanted again; False where it is no longer whole. Raises GpuFault."""
        ended, woken = asyncio.ensure_future(instance.wait()), asyncio.ensure_future(self.stay.until_wanted())
        there = processes.ours(self._means.installation, instance=self.name)
        cores = [one for one in there if one.name.startswith(MARK)]
        try:
            while not ended.done() and not woken.done():
                await asyncio.wait({ended, woken}, timeout=self._timing.look_s, return_when=asyncio.FIRST_COMPLETED)
                self._usable()
                # Where main memory runs out the kernel ends what has most of it; without its core it never wakes.
                if not all(map(processes.alive, cores)):
                    return False
        finally:
            ended.cancel()
            woken.cancel()
        return instance.pid is not None

    async def _read(self, watch: Watch) -> None:
        """Read its load again and again, for ever."""
        while True:
            await watch.read()
            pause_s = watch.pause_s(self._placed.limit)
            leaving = self._draining or not self.stay.wanted
            await asyncio.sleep(min(pause_s, self._timing.scrape_s) if leaving else pause_s)

    async def _end(self) -> None:
        """Leave nothing of the instance, however it came to its end."""
        self.stay.goes()
        if self._instance is not None:
            if self._state != "stopping":
                self._set("stopping", "")
            # The rest of a crashed group has nothing to finish, and the orphaned EngineCore takes its time.
            grace_s = self._timing.grace_s if self._draining else min(self._timing.grace_s, 2.0)
            await self._instance.stop(grace_s)
        if self._draining:
            left = self._instance is not None and self._instance.state == "failed"
            self._set("failed" if left else "stopped", self._instance.detail if self._instance and left else "")
        self._instance, self._watch = None, None

    async def _pause(self, reason: str, lasting: bool) -> None:
        """Wait before the next start: longer each time, and long where starting again seems of no use."""
        timing = self._timing
        self._crashes += 1
        if lasting or self._unready >= timing.tries:
            pause = timing.failed_pause_s
            self._set("failed", reason)
            self.stay.failed()
            self._means.say(f"{self.name}: failed: {reason}")
        else:
            pause = min(timing.first_pause_s * 2.0 ** (self._crashes - 1), timing.longest_pause_s)
            self._set("waiting", f"starts again in {pause:g} s, since {reason}")
            self._means.say(f"{self.name}: ended: {reason}; starts again in {pause:g} s")
        await asyncio.sleep(pause)
        self.stay.forgiven()
        self._restarts += 1

    def _set(self, state: State, detail: str) -> None:
        if state != self._state:
            self._since = time.time()
            if state not in ("failed", "waiting"):
                self._means.say(f"{self.name}: {state}" + (f": {detail}" if detail else ""))
        self._state, self._detail = state, detail
