"""Models that share a place: who is asked for gets it and keeps it for a while; nothing under way is cut off."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serving import processes, sharing
from serving.catalogue import Swap
from serving.endpoint import Timing, View
from serving.engines import Engine
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.local import Say
from serving.placement import Placed
from serving.stay import Stay
from serving.supervisor import Supervisor
from tests.fakes.supervised import Rig

QUICK = Timing(
    scrape_s=0.05, busy_scrape_s=0.05, idle_scrape_s=0.05, look_s=0.02, quiet_s=0.5, first_pause_s=0.05,
    longest_pause_s=0.1, failed_pause_s=60, start_s=20, grace_s=1, drain_s=2, drain_least_s=0.05, heard_s=0.1,
    sleep_s=20, memory_s=0.5,
)  # fmt: skip
STAY_S = 0.5


class Sharing(Rig):
    """A rig whose engines share places, under one supervisor."""

    supervisor: Supervisor

    def share(
        self, swap: Swap, *names: str, sleeps: bool = False, timing: Timing = QUICK,
        read_gpus: Callable[[], Readings] = Readings,
    ) -> None:  # fmt: skip
        self.groups = swap.groups
        self.supervisor = self.start(*names, swap=swap, sleeps=sleeps, timing=timing, read_gpus=read_gpus)

    def view(self, name: str) -> View:
        return next(view for view in self.supervisor.views() if view.name == name)

    def engines(self) -> set[str]:
        """The models that have a process now."""
        return {process.instance for process in processes.ours(self.home.installation())}

    async def until(self, name: str, right: str | Callable[[View], bool], limit_s: float = 20) -> View:
        """Wait for a state; meanwhile no two engines of a group may be ready."""
        end = time.monotonic() + limit_s
        while True:
            view = self.view(name)
            ready = {one.name for one in self.supervisor.views() if one.state == "ready"}
            assert all(len(ready.intersection(group)) < 2 for group in self.groups)
            if view.state == right if isinstance(right, str) else right(view):
                return view
            assert not any(task.done() for _, task in self.running)
            assert time.monotonic() < end, f"{name} is {view.state}: {view.detail}; {self.said}"
            await asyncio.sleep(0.01)

    def starts(self) -> list[str]:
        """Who was started, in order."""
        return [line.split(":")[0] for line in self.said if line.endswith("starting: the engine starts")]


@pytest_asyncio.fixture
async def rig(home: Home) -> AsyncIterator[Sharing]:
    made = Sharing(home)
    yield made
    await made.close()


def pair(**changed: Any) -> Swap:
    return Swap(groups=(("a", "b"),), min_stay_s=STAY_S, drain_s=5, **changed)


async def gives_way(rig: Sharing, sleep: str) -> int:
    """Let `a`, with such a sleep mode, make room for `b`; the process id that it had."""
    rig.settings["a"] = {"sleep": sleep}
    rig.share(pair(), "a", "b", sleeps=True)
    pid = (await rig.until("a", "ready")).pid
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert pid is not None
    return pid


async def test_the_first_runs_and_the_second_takes_its_place_when_it_is_asked_for(rig: Sharing) -> None:
    rig.share(pair(), "a", "b")
    await rig.until("a", "ready")
    away = await rig.until("b", "asleep")
    assert (away.pid, away.ready_in_s) == (None, None), "how long it would take is not known before its first start"
    assert rig.supervisor.sharing.ask("b")
    await rig.until("a", "asleep")
    await rig.until("b", "waking")
    await rig.until("b", "ready")
    assert rig.engines() == {"b"}, "one at a time"
    assert rig.view("a").ready_in_s is not None and rig.view("b").start_s is not None
    assert rig.starts() == ["a", "b"]
    assert not rig.supervisor.sharing.ask("c"), "nobody waits for what does not run by demand"


async def test_who_was_asked_for_stays_however_often_the_other_is_asked_for(rig: Sharing) -> None:
    rig.share(pair(), "a", "b")
    await rig.until("a", "ready")
    rig.supervisor.sharing.ask("b")
    came = (await rig.until("b", "ready")).since
    while rig.view("b").state == "ready":
        rig.supervisor.sharing.ask("a")
        await asyncio.sleep(0.01)
    assert time.time() - came >= STAY_S * 0.95
    await rig.until("a", "ready")
    assert rig.starts() == ["a", "b", "a"]


async def test_what_a_model_has_begun_is_answered_before_it_gives_its_place_up(rig: Sharing) -> None:
    rig.settings["a"] = {"takes_s": "1.0"}
    rig.share(pair(), "a", "b")
    address = (await rig.until("a", "ready")).address.removeprefix("unix:")
    asked = asyncio.create_task(ask_for_an_answer(address))
    await rig.until("a", lambda view: view.load is not None and view.load.running == 1)
    rig.supervisor.sharing.ask("b")
    leaving = await rig.until("a", "asleep")
    assert "finishes its requests" in leaving.detail and leaving.pid, "routers know at once; it still works"
    assert rig.view("b").state == "asleep"
    assert b'"choices"' in await asked
    await rig.until("b", "ready")


async def test_a_request_that_hangs_does_not_keep_the_place_for_ever(rig: Sharing) -> None:
    rig.settings["a"] = {"takes_s": "60"}
    rig.share(Swap(groups=(("a", "b"),), min_stay_s=STAY_S, drain_s=0.6), "a", "b")
    address = (await rig.until("a", "ready")).address.removeprefix("unix:")
    asked = asyncio.create_task(ask_for_an_answer(address))
    await rig.until("a", lambda view: view.load is not None and view.load.running == 1)
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert b"choices" not in await asked


async def test_a_model_that_cannot_start_gives_the_place_back(rig: Sharing) -> None:
    rig.settings["b"] = {"die_at_start": "KeyError: 'weir'"}
    rig.share(pair(), "a", "b")
    await rig.until("a", "ready")
    rig.supervisor.sharing.ask("b")
    failed = await rig.until("b", "failed")
    assert "weir" in failed.detail
    assert rig.view("a").state == "asleep"
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")
    assert rig.view("b").state == "failed"


async def test_a_model_that_ends_comes_again_and_keeps_its_place(rig: Sharing) -> None:
    rig.share(pair(), "a", "b")
    first = await rig.until("a", "ready")
    assert first.pid
    os.kill(first.pid, 9)
    again = await rig.until("a", lambda view: view.state == "ready" and view.restarts == 1)
    assert again.pid != first.pid
    assert rig.view("b").state == "asleep"


async def test_a_model_nobody_asks_for_is_stopped_and_comes_with_the_next_request(rig: Sharing) -> None:
    rig.share(Swap(sleep_after_s={"a": 0.3}, min_stay_s=0.2), "a", "always")
    asleep = await rig.until("a", "asleep")
    assert "nobody has asked for it for 0.3 s" in asleep.detail
    await rig.until("a", lambda view: view.pid is None)
    await rig.until("always", "ready")
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")
    assert rig.starts().count("a") == 2


def test_a_request_counts_until_well_after_the_time_that_was_named_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was told to come back then finds the model; one of yesterday brings none."""
    stays = {"a": Stay(shares=True), "b": Stay(wanted=False, shares=True)}
    shared = sharing.Sharing([stays], 300, lambda _: None)
    monkeypatch.setattr(sharing, "KEPT_S", 0.0)
    shared.ask("b")
    assert stays["b"].asked is None, "no time was named"
    stays["b"].start_s = 60.0
    stays["a"].came()
    assert shared.ready_in_s("b") == 60
    shared.ask("b")
    assert stays["b"].asked is not None


async def test_the_first_makes_room_while_it_still_fetches_its_weights(
    rig: Sharing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asked for it, and its download can take hours."""
    fetched, real = asyncio.Event(), rig._weights

    async def weights(engine: Engine, one: Placed, say: Say) -> str:
        if one.model.name == "a":
            await fetched.wait()
        return await real(engine, one, say)

    monkeypatch.setattr(rig, "_weights", weights)
    rig.share(pair(), "a", "b")
    await rig.until("b", "asleep")
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert rig.view("a").state == "weights", "no request would wait for it"
    fetched.set()
    await rig.until("a", "asleep")
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")
    assert rig.starts() == ["b", "a"]


async def test_a_model_sleeps_and_wakes_while_another_starts_elsewhere(rig: Sharing, tmp_path: Path) -> None:
    (hang := tmp_path / "hang").touch()
    rig.gpus = {"a": ("GPU-a",), "slow": ("GPU-b",)}
    rig.settings = {"a": {"sleep": "works"}, "slow": {"hang": str(hang)}}
    rig.share(Swap(sleep_after_s={"a": 0.3}, min_stay_s=0.2), "a", "slow", sleeps=True)
    pid = (await rig.until("a", "ready")).pid
    await rig.until("slow", lambda view: view.state == "starting" and view.pid is not None)
    await rig.until("a", lambda view: view.swaps is not None and view.swaps["sleep"] == 1)
    rig.supervisor.sharing.ask("a")
    awake = await rig.until("a", "ready")
    assert awake.pid == pid and awake.swaps == {"start": 1, "stop": 0, "sleep": 1, "wake": 1}
    assert rig.view("slow").state == "starting" and rig.view("slow").swaps is None
    hang.unlink()
    await rig.until("slow", "ready")


async def test_one_that_cannot_fall_asleep_yet_answers_when_it_is_asked_for(rig: Sharing, tmp_path: Path) -> None:
    """Another starts in main memory, which its weights would go to: it is up, and idle, all that time."""
    (hang := tmp_path / "hang").touch()
    rig.gpus = {"a": ("GPU-a",)}
    rig.settings = {"a": {"sleep": "works"}, "slow": {"hang": str(hang)}}
    rig.share(Swap(sleep_after_s={"a": 0.2}, min_stay_s=0.2), "a", "slow", sleeps=True)
    pid = (await rig.until("a", "ready")).pid
    await rig.until("slow", lambda view: view.state == "starting" and view.pid is not None)
    await rig.until("a", "asleep")
    rig.supervisor.sharing.ask("a")
    back = await rig.until("a", "ready")
    assert back.pid == pid and back.swaps == {"start": 1, "stop": 0, "sleep": 0, "wake": 0}
    assert rig.view("slow").state == "starting"
    hang.unlink()
    await rig.until("a", lambda view: view.swaps is not None and view.swaps["sleep"] == 1)


async def test_a_gpu_lost_under_a_model_that_sleeps_fails_it(rig: Sharing) -> None:
    """Requests would be told to wait for it."""
    said, often = {"fault": ""}, dataclasses.replace(QUICK, gpus_s=0.05)
    rig.gpus = {"a": ("GPU-a",), "b": ("GPU-a",)}
    rig.settings["a"] = {"sleep": "works"}

    def read() -> Readings:
        return Readings((Gpu("GPU-a", "H", 0, fault=said["fault"]),))

    rig.share(pair(), "a", "b", sleeps=True, timing=often, read_gpus=read)
    await rig.until("a", "ready")
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert rig.view("a").swaps == {"start": 1, "stop": 0, "sleep": 1, "wake": 0}
    said["fault"] = "GPU is lost"
    failed = await rig.until("a", "failed")
    assert "GPU is lost" in failed.detail
    await rig.until("a", lambda view: view.pid is None)
    said["fault"] = ""
    await rig.until("a", "asleep")
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")


async def test_an_engine_whose_core_is_killed_in_its_sleep_is_ended_at_once(rig: Sharing, tmp_path: Path) -> None:
    """Where main memory runs out; else its next wake would be in vain for minutes."""
    core = tmp_path / "core"
    rig.settings["a"] = {"sleep": "works", "core": str(core)}
    rig.share(Swap(sleep_after_s={"a": 0.2}, min_stay_s=0.2), "a", sleeps=True)
    await rig.until("a", lambda view: view.swaps is not None and view.swaps["sleep"] == 1)
    os.kill(int(core.read_text()), 9)
    gone = await rig.until("a", lambda view: view.pid is None)
    assert gone.state == "asleep"
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")


# ---- vLLM's sleep mode, played by a fake engine; on a GPU it was not run


async def test_with_sleep_mode_the_engine_stays_and_wakes(rig: Sharing) -> None:
    rig.settings["a"] = rig.settings["b"] = {"sleep": "works"}
    rig.share(pair(), "a", "b", sleeps=True)
    pid = (await rig.until("a", "ready")).pid
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert rig.view("a").state == "asleep" and rig.view("a").pid == pid, "its process waits, with its weights"
    assert rig.engines() == {"a", "b"}
    rig.supervisor.sharing.ask("a")
    awake = await rig.until("a", "ready")
    assert awake.pid == pid and awake.restarts == 0, rig.said
    assert rig.starts() == ["a", "b"], "nobody was started twice"


@pytest.mark.parametrize(("how", "said"), [("refuses", "HTTP 500"), ("", "HTTP 404")])
async def test_an_engine_that_does_not_fall_asleep_is_stopped(rig: Sharing, how: str, said: str) -> None:
    await gives_way(rig, how)
    assert rig.engines() == {"b"}
    assert any("it is stopped, since it cannot sleep" in line and said in line for line in rig.said)


async def test_an_engine_that_does_not_wake_up_is_started_again(rig: Sharing) -> None:
    pid = await gives_way(rig, "stays")
    rig.supervisor.sharing.ask("a")
    again = await rig.until("a", "ready")
    assert again.pid != pid
    assert any("it did not wake up" in line for line in rig.said)


async def test_an_engine_that_ended_in_its_sleep_is_started(rig: Sharing) -> None:
    os.kill(await gives_way(rig, "works"), 9)
    await rig.until("a", lambda view: view.pid is None)
    assert rig.view("a").state == "asleep", "a request still wakes it"
    rig.supervisor.sharing.ask("a")
    await rig.until("a", "ready")


async def test_without_main_memory_for_its_weights_it_is_stopped(rig: Sharing) -> None:
    rig.free_gb = 7.5
    await gives_way(rig, "works")
    assert rig.engines() == {"b"}
    assert any("take up to 8 GB of main memory, and 7.5 GB are free" in line for line in rig.said)


async def test_one_that_hangs_is_ended_and_not_asked_to_sleep(rig: Sharing, tmp_path: Path) -> None:
    """A real one would take the question and never answer, and hold up whoever wants to start meanwhile."""
    hang, running = tmp_path / "hang", tmp_path / "running"
    running.write_text("0")
    rig.settings["a"] = {"sleep": "works", "hang": str(hang), "running": str(running)}
    timing = dataclasses.replace(QUICK, quiet_s=0.15, out_s=0.4, work_s=0.4, frozen_s=60, stall_s=60)
    rig.share(pair(), "a", "b", sleeps=True, timing=timing)
    await rig.until("a", "ready")
    hang.touch()
    running.write_text("1")
    await rig.until("a", "stalled")
    rig.supervisor.sharing.ask("b")
    await rig.until("b", "ready")
    assert rig.engines() == {"b"}


async def ask_for_an_answer(socket: str) -> bytes:
    """One chat request straight to an engine, as the router sends it; what came back."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
