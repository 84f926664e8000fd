"""Faults of the machine: a GPU that is slowed down, and places for small files that are full."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving import reasons
from tests.conftest import ROOT
from tests.fakes.serving import GPU
from tests.faults.conftest import FaultHouse

ONE_ANSWER = """
import asyncio, os, sys, tempfile
from pathlib import Path
from serving.home import Home
from tests.conftest import House
from tests.fakes.faults import Upstream
from tests.fakes.supervised import Rig, ready
from tests.faults.test_upstream import ask

async def main(root):
    try:
        with tempfile.TemporaryFile(dir=os.environ["TMPDIR"], buffering=0) as file:
            print("written:", file.write(b"x" * 8192) if file.write(b"x" * 4096) else 0)
    except OSError as full:
        print("full:", full.strerror)
    home = Home(root / "serving", root / "engines")
    home.make()
    rig = Rig(home)
    print("engine:", (await ready(rig.start("one"), "one")).state)
    await rig.stop()
    home = Home(root / "router", root / "engines")
    home.make()
    async with Upstream() as local, Upstream() as provider:
        house = House(home, local, provider)
        await house.start()
        print("answer:", (await house.post(ask(), house.key())).status)
        await house.close()

asyncio.run(main(Path(sys.argv[1])))
"""


async def _published(house: FaultHouse, *throttle: str) -> None:
    """Let serving publish that the first replica's GPU is slowed down, and wait until the router has heard it."""
    document = house.document() | {"gpus": [{**GPU, "throttle": list(throttle)}], "gpus_age_s": 0.1}
    document["instances"][0]["gpus"] = ["GPU-a"]
    house.serving.script = {"body": json.dumps(document)}
    assert house.built is not None
    fleet, end = house.built.fleet, time.monotonic() + 20
    while not fleet.gpus or time.time() - fleet.heard > 0.5:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("why", ["hardware slow-down", "hardware thermal", "power brake"])
async def test_px_025_a_gpu_that_the_hardware_slows_down_gets_less(house: FaultHouse, why: str) -> None:
    house.serve(house.replicas[0].address, house.replicas[1].address, limit=8)
    await house.start()
    before = house.endpoint("small")["limit"]
    await _published(house, why)
    assert house.endpoint("small")["limit"] < before == house.endpoint("small-2")["limit"]


async def test_px_025_a_power_cap_is_how_a_gpu_is_run(house: FaultHouse) -> None:
    house.serve(house.replicas[0].address, limit=8)
    await house.start()
    await _published(house, "power cap")
    assert house.endpoint("small")["limit"] == 8


@pytest.mark.parametrize("option", ["size=4k", "nr_inodes=1"], ids=["bytes", "inodes"])
def test_px_026_full_places_for_small_files_stop_neither_engines_nor_answers(tmp_path: Path, option: str) -> None:
    """/dev/shm and what TMPDIR names, in a namespace of mounts of its own."""
    full = tmp_path / "full"
    full.mkdir()
    fill = "dd if=/dev/zero of=$where/x bs=8k count=1 2>/dev/null || true"
    mounts = f'for where in "$TMPDIR" /dev/shm; do mount -t tmpfs -o {option} tmpfs "$where" || exit 9; {fill}; done'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mounts}; exec "$@"', "-"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not here")
    environment = {**os.environ, "TMPDIR": str(full), "SQLITE_TMPDIR": str(full), "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-B", "-c", ONE_ANSWER, str(tmp_path)]
    done = subprocess.run([*command, *run], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    if (done.returncode in (1, 9) and "mount" in done.stderr + done.stdout) or "unshare:" in done.stderr:
        pytest.skip(f"namespaces are not to be had here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said == ["full: No space left on device", "engine: ready", "answer: 200"]


def test_px_026_an_engine_that_dies_of_it_says_what_to_do() -> None:
    death = reasons.death(-7, "OSError: [Errno 28] No space left on device: '/dev/shm/psm_1'\n")
    assert "/dev/shm" in death.reason
