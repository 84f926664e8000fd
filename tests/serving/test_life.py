"""When an engine counts as hung: found within ten seconds, and never one that works however long its step takes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving import processes
from serving.endpoint import Timing, Watch
from serving.life import MARK, Life, Signs, judge, restart_due
from serving.probe import Target
from serving.processes import Process

TIMING = Timing()
WELL = Signs(still_s=0.1, idle_s=0.1, failed="", asking=False)


def verdict(*, on_cpu: bool = False, **changed: object) -> str:
    return judge(dataclasses.replace(WELL, **changed), TIMING, on_cpu=on_cpu).do


def test_what_moves_is_left_in_peace() -> None:
    assert verdict() == "nothing"
    assert verdict(still_s=TIMING.quiet_s - 0.1) == "nothing"


def test_what_stands_still_is_asked_first_and_is_out_only_without_an_answer() -> None:
    assert verdict(still_s=TIMING.quiet_s) == "ask"
    assert verdict(still_s=TIMING.quiet_s + 1, asking=True) == "nothing"
    assert verdict(still_s=TIMING.out_s, asking=True) == "out"
    assert verdict(still_s=TIMING.out_s, failed="HTTP 503") == "out"
    assert verdict(still_s=TIMING.out_s) == "ask", "nobody is out who was not asked"


def test_a_refusal_before_the_time_is_no_end() -> None:
    """A full engine refuses a probe at once, and may yet move."""
    assert verdict(still_s=TIMING.quiet_s, failed="HTTP 503: busy") == "ask"


def test_it_is_out_within_ten_seconds_with_the_reading_before_and_the_router_that_hears_of_it() -> None:
    router_polls_s = 1.0
    assert TIMING.idle_scrape_s + TIMING.out_s + TIMING.look_s + router_polls_s < 10
    assert TIMING.out_s + TIMING.frozen_s + TIMING.look_s < 20, "and started again soon after"


def test_a_cpu_engine_that_computes_a_long_step_is_not_out() -> None:
    """A chunk of a long prompt takes a slow machine many seconds, in which nothing is counted and no probe answered."""
    assert verdict(on_cpu=True, still_s=60, asking=True, busy=True) == "nothing"
    assert verdict(on_cpu=True, still_s=60, asking=True, busy=False) == "out"
    assert verdict(on_cpu=True, still_s=TIMING.work_s, asking=True, busy=True) == "out", "but not for ever"
    assert verdict(on_cpu=False, still_s=60, asking=True, busy=True) == "out", "a hung kernel keeps a CPU busy too"


def test_a_stopped_process_is_out_at_once_also_where_nothing_runs() -> None:
    found = judge(dataclasses.replace(WELL, stopped="VLLM::EngineCor (7)"), TIMING, on_cpu=True)
    assert found.do == "out"
    assert "EngineCor (7) was stopped" in found.why


def test_an_idle_engine_is_asked_now_and_then() -> None:
    assert verdict(idle_s=TIMING.idle_s) == "ask"


def test_what_does_nothing_is_started_again_sooner_than_what_is_busy() -> None:
    idle, busy = WELL, dataclasses.replace(WELL, busy=True)
    assert restart_due(TIMING.frozen_s, idle, TIMING)
    assert not restart_due(TIMING.frozen_s, busy, TIMING)
    assert restart_due(TIMING.stall_s, busy, TIMING)
    assert not restart_due(TIMING.frozen_s, dataclasses.replace(idle, serving=True), TIMING)
    assert restart_due(TIMING.frozen_s, dataclasses.replace(busy, stopped="x (1)"), TIMING)
    # vLLM waits for its GPU asleep: a long step uses no CPU at all.
    assert not restart_due(TIMING.frozen_s, dataclasses.replace(idle, computing=True), TIMING)


# ---- what is seen of real processes


@contextlib.contextmanager
def process(code: str) -> Iterator[Process]:
    started = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], stdout=subprocess.PIPE)
    try:
        assert started.stdout is not None
        started.stdout.readline()
        found = processes.find(started.pid)
        assert found is not None
        yield found
    finally:
        started.kill()
        started.wait()
        started.stdout.close()  # type: ignore[union-attr]


def life(*members: Process, **timing: float) -> Life:
    """Of an engine whose socket is not there, so that every probe fails; with a request that runs."""
    watch = Watch(Target("unix:/nowhere/engine.sock"), Timing(**{"work_s": 30, "frozen_s": 60, **timing}))
    return Life(watch, "m", None, members, on_cpu=True)


async def out(one: Life, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not one.stall and time.monotonic() < end:
        one.look()
        await asyncio.sleep(0.02)
    one.end()
    return bool(one.stall)


async def test_an_idle_process_is_told_from_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.life.AT_WORK", 0.02)  # what a busy machine leaves to one of many
    with process("import time; time.sleep(600)") as idle:
        assert await out(life(idle, quiet_s=0.4, out_s=1.2), 10)
    with process("while True: pass") as busy:
        assert not await out(life(busy, quiet_s=0.4, out_s=1.2), 3)


async def test_what_an_engine_started_since_works_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler: the engine that waits for it uses no CPU itself."""
    monkeypatch.setattr("serving.life.AT_WORK", 0.02)
    with process("import time; time.sleep(600)") as idle, process("while True: pass") as compiler:
        watch = Watch(Target("unix:/nowhere/engine.sock"), Timing(work_s=30, frozen_s=60, quiet_s=0.4, out_s=1.2))
        looked = Life(watch, "m", None, [idle], on_cpu=True, present=lambda: [idle, compiler])
        assert not await out(looked, 3)
        os.kill(compiler.pid, signal.SIGKILL)
        looked.look()
        assert not looked.restart, "its end is nobody's"


async def test_the_api_servers_own_work_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.life.AT_WORK", 0.02)
    with process("while True: pass") as leader:
        watch = Watch(Target("unix:/nowhere/engine.sock"), Timing(quiet_s=0.2, out_s=0.6, frozen_s=60))
        assert await out(Life(watch, "m", leader.pid, [leader], on_cpu=True), 10)


async def test_a_stopped_process_is_seen_and_one_that_goes_on_is_well_again() -> None:
    with process("import time; time.sleep(600)") as one:
        looked = life(one)
        os.kill(one.pid, signal.SIGSTOP)
        assert await out(looked, 10)
        assert "SIGSTOP" in looked.stall
        os.kill(one.pid, signal.SIGCONT)
        end = time.monotonic() + 10
        while looked.stall and time.monotonic() < end:
            looked.look()
            await asyncio.sleep(0.02)
        assert looked.stall == ""


async def test_an_engine_core_that_is_gone_is_the_end_though_the_api_server_is_there() -> None:
    with process("import time; time.sleep(600)") as core:
        looked = life(dataclasses.replace(core, name=f"{MARK}EngineCore"))
        looked.look()
        assert looked.restart == ""
        os.kill(core.pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while not looked.restart and time.monotonic() < end:
            looked.look()
            await asyncio.sleep(0.02)
        assert "EngineCore" in looked.restart and "ended" in looked.restart


@pytest.mark.parametrize("helper", ["python", "ptxas"])
async def test_a_helper_that_ends_is_no_end(helper: str) -> None:
    """A compiler that an engine started comes and goes."""
    with process("import time; time.sleep(600)") as one:
        gone = dataclasses.replace(one, name=helper)
    looked = life(gone)
    looked.look()
    assert looked.restart == ""


def test_where_engines_may_stand_still_for_long_they_are_left_in_peace_as_long() -> None:
    still = Signs(still_s=100.0, idle_s=100.0, failed="no answer", asking=False, stopped="VLLM::EngineCore (7)")
    assert judge(still, TIMING, on_cpu=True).do == "out"
    assert judge(still, TIMING.hanging(3600), on_cpu=True).do == "ask"
    assert judge(dataclasses.replace(still, still_s=3600.0, stopped=""), TIMING.hanging(3600), on_cpu=True).do == "out"
    assert judge(dataclasses.replace(still, still_s=4.0, stopped=""), TIMING.hanging(3), on_cpu=False).do == "out"
