"""What real GPUs say, where there are any: whoever they are, their readings lie within what a board can be.

Marked `gpu`, and skipped where there is none: the driver of the other tests is simulated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving import gpus, monitor
from serving.gpus import Gpu
from serving.monitor import Monitor
from serving.xids import Xids

pytestmark = pytest.mark.gpu

HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, held = ctypes.c_void_p(), ctypes.c_void_p()
device = ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
assert cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(held), ctypes.c_size_t(1 << 30)) == 0
print("holds", flush=True)
sys.stdin.read()
"""
"""Takes 1 GiB of the first GPU by the driver's own library, and keeps it until its stdin ends."""
INSTALLATION = "tests of real GPUs"


@pytest.fixture(scope="module")
def cards() -> tuple[Gpu, ...]:
    found = gpus.read()
    if not found.gpus:
        pytest.skip(found.note)
    return found.gpus


@pytest.fixture
def holder(cards: tuple[Gpu, ...]) -> Iterator[subprocess.Popen[str]]:
    """A process that holds memory and carries the marks of an instance called `real`."""
    marks = {"HEADGATE_INSTALLATION": INSTALLATION, "HEADGATE_INSTANCE": "real", "CUDA_VISIBLE_DEVICES": cards[0].uuid}
    started = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=os.environ | marks, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdin is not None
    try:
        assert started.stdout.readline() == "holds\n"
        yield started
    finally:
        started.stdin.close()
        started.wait(30)


def test_a_real_gpu_says_who_it_is(cards: tuple[Gpu, ...]) -> None:
    for gpu in cards:
        assert gpu.uuid.startswith("GPU-") and gpu.name != "unknown" and gpu.fault == ""
        assert gpu.compute is not None and 5 <= gpu.compute < 20


def test_its_readings_lie_within_what_a_board_can_be(cards: tuple[Gpu, ...]) -> None:
    for gpu in cards:
        assert gpu.memory_total_gb is not None and 4 < gpu.memory_total_gb < 1000
        assert gpu.memory_free_gb is not None and 0 <= gpu.memory_free_gb <= gpu.memory_total_gb
        assert gpu.memory_used_gb is not None and gpu.memory_used_gb + gpu.memory_free_gb <= gpu.memory_total_gb + 0.01
        assert gpu.utilisation is None or 0 <= gpu.utilisation <= 1
        assert gpu.power_w is None or 1 < gpu.power_w < 3000
        assert gpu.temperature_c is None or 10 < gpu.temperature_c < 110
        assert gpu.memory_temperature_c is None or 10 < gpu.memory_temperature_c < 120
        assert gpu.ecc is None or gpu.ecc < 1000
        assert gpu.recovery in (None, "none")


def test_its_energy_rises_as_much_as_its_power_says(cards: tuple[Gpu, ...]) -> None:
    first = gpus.read()
    began = time.monotonic()
    while time.monotonic() - began < 3:
        time.sleep(0.2)
    then = gpus.read().after(first)
    for before, gpu in zip(first.gpus, then.gpus, strict=True):
        if gpu.energy_j is None or gpu.power_w is None or before.power_w is None:
            continue
        mean = gpu.energy_j / (then.at - first.at) if then.at and first.at else 0
        assert 0.3 * min(gpu.power_w, before.power_w) < mean < 3 * max(gpu.power_w, before.power_w) + 30


def test_a_process_of_ours_is_found_there_with_what_it_holds(holder: subprocess.Popen[str]) -> None:
    if monitor.whose(INSTALLATION) is None:
        pytest.skip("the process ids seen here are not the machine's, and the driver names those")
    found = Monitor(INSTALLATION, events=Xids())()
    gpu = next(g for g in found.gpus if g.held)
    assert holder.pid in dict(gpu.processes)
    ((name, gb),) = gpu.held
    assert name == "real" and (gb is None or 1 < gb < 3)


def test_it_can_be_listened_to(cards: tuple[Gpu, ...]) -> None:
    events = Xids(again_s=0.1, wait_ms=50)
    events.start()
    time.sleep(0.3)
    assert events.fatal() == {}
    events.stop()
