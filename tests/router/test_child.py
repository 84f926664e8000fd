"""One process that another keeps running: it is ended where it shows no longer that it goes on, and only then."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from router import child
from router.child import Child
from tests.conftest import until

ROOT = Path(child.__file__).parent.parent
LIVE = """
import asyncio, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from router import child
child.BEAT_S = 0.02

async def run():
    async with child.beating(int(sys.argv[-1].removeprefix("--beat="))):
        await asyncio.sleep(0.1)
        pathlib.Path({note!r}).touch()
        {then}
        await asyncio.sleep(600)

asyncio.run(run())
"""


async def started(folder: Path, then: str = "", *, beats: bool = True) -> Child:
    """A process whose loop runs, and which then does what is said."""
    note = folder / "on"
    code = LIVE.format(root=str(ROOT), note=str(note), then=then) if beats else f"open({str(note)!r}, 'w'); {then}"
    made = await child.start((sys.executable, "-c", code), os.environ, str, beats=beats)
    await until(note.exists)
    return made


def pid(one: Child) -> int:
    return one._process.pid


async def test_one_that_is_stopped_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STILL_GRACE_S", 0.05)
    one = await started(tmp_path)
    os.kill(pid(one), signal.SIGSTOP)
    async with asyncio.timeout(20):
        assert await one.ended(0.5) == -signal.SIGKILL  # it does not hear the first signal
    assert one.stood_still


async def test_one_whose_loop_is_stuck_is_ended_though_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "STILL_GRACE_S", 0.05)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    one = await started(tmp_path, deaf)
    async with asyncio.timeout(20):
        assert await one.ended(0.5) == -signal.SIGKILL
    assert one.stood_still


async def test_one_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    one = await started(tmp_path)
    waiting = asyncio.create_task(one.ended(2.0))
    end = time.monotonic() + 3.0  # longer than silence may last
    await until(lambda: waiting.done() or time.monotonic() > end)
    assert not waiting.done()
    os.kill(pid(one), signal.SIGTERM)
    assert await waiting == -signal.SIGTERM and not one.stood_still


async def test_one_that_has_not_begun_to_beat_may_take_its_time(tmp_path: Path) -> None:
    beats = child.Beats()
    waiting = asyncio.create_task(beats.missed(0.05))
    end = time.monotonic() + 0.3
    await until(lambda: waiting.done() or time.monotonic() > end)
    assert not waiting.done()
    os.write(beats.theirs, b".")
    async with asyncio.timeout(20):
        await waiting
    os.close(beats.theirs)
    beats.close()


async def test_a_pause_of_the_whole_machine_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    beats, turns = child.Beats(), 0

    async def paused(_: float) -> None:
        """Each turn of the keeper is one in which the other could beat; every third lasts an hour for both."""
        nonlocal turns
        turns += 1
        if turns % 3 == 0:
            os.write(beats.theirs, b".")
        if turns > 100:
            raise EOFError

    monkeypatch.setattr(child.asyncio, "sleep", paused)
    with pytest.raises(EOFError):
        await beats.missed(10)
    os.close(beats.theirs)
    beats.close()


async def test_a_pipe_that_nobody_reads_holds_up_no_beat() -> None:
    beats = child.Beats()
    while True:
        try:
            os.write(beats.theirs, b"." * 4096)
        except BlockingIOError:
            break
    async with asyncio.timeout(20), child.beating(beats.theirs):
        for _ in range(3):
            await asyncio.sleep(0)
    beats.close()
    async with child.beating(beats.theirs):  # nor does one whose reader has gone
        await asyncio.sleep(0)
    os.close(beats.theirs)


async def test_one_that_shows_nothing_is_only_waited_for(tmp_path: Path) -> None:
    one = await started(tmp_path, "raise SystemExit(3)", beats=False)
    assert await one.ended(0.01) == 3 and not one.stood_still
