"""GPU readings: what is unknown is unknown, a broken GPU is named, and no driver is a normal answer.

The driver here is simulated: a small libnvidia-ml.so.1 built with the C compiler and loaded by a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving import gpus
from tests.fakes import nvml

READ = """
import dataclasses, json, os, sys
from serving import gpus
found = gpus.Readings()
for wrong in sys.argv[1:]:
    os.environ["NVML"] = wrong
    found = gpus.read().after(found)
print(json.dumps(dataclasses.asdict(found)))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated driver."""
    return nvml.library(tmp_path_factory.mktemp("nvml"))


def read(folder: Path, *wrong: str) -> dict[str, Any]:
    """What one process reads, once for each word of what is wrong then."""
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", READ, *(wrong or [""])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_gpus_with_all_they_say(driver: Path) -> None:
    found = read(driver)
    assert found["note"] == "" and [g["uuid"] for g in found["gpus"]] == ["GPU-0", "GPU-1"] and found["at"] > 0
    assert found["gpus"][0] == {
        "uuid": "GPU-0", "name": "Test Card", "index": 0, "memory_total_gb": 80, "memory_free_gb": 60,
        "utilisation": 0.25, "power_w": 123, "temperature_c": 51, "throttle": ["power cap", "power brake"],
        "compute": 9.0, "processes": [[41, 20], [42, None]], "fault": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "unknown"),
    [
        ("absurd", {"memory_free_gb", "utilisation", "power_w", "temperature_c", "throttle", "compute"}),
        ("minus", {"memory_free_gb", "utilisation", "power_w", "temperature_c"}),
        ("endless", {"memory_total_gb", "memory_free_gb"}),
        ("empty", {"memory_total_gb", "memory_free_gb"}),
    ],
)
def test_what_cannot_be_true_is_unknown_and_never_zero(driver: Path, wrong: str, unknown: set[str]) -> None:
    """300 % busy, less than nothing free, more free than there is, -1 W, 255 degrees, a bus that answers with ones."""
    gpu = read(driver, wrong)["gpus"][0]
    assert {name for name, value in gpu.items() if value is None} == unknown
    assert gpu["uuid"] == "GPU-0" and gpu["fault"] == ""


def test_a_driver_that_lies_about_lengths_and_texts_is_survived(driver: Path) -> None:
    gpu = read(driver, "absurd")["gpus"][0]
    assert (gpu["name"], gpu["processes"]) == ("unknown", [])
    countless = read(driver, "countless")
    assert countless["gpus"] == [] and "4000000000 GPUs, which cannot be" in countless["note"]


@pytest.mark.parametrize(
    ("wrong", "throttle"),
    [
        ("hot", ["hardware slow-down", "software thermal", "hardware thermal"]), ("cool", []),
        ("", ["power cap", "power brake"]),
    ],
)  # fmt: skip
def test_why_clocks_are_held_down_is_named(driver: Path, wrong: str, throttle: list[str]) -> None:
    """An idle card and a display's setting are no reason to worry, and are not named."""
    assert read(driver, wrong)["gpus"][0]["throttle"] == throttle


def test_memory_that_is_used_up_is_a_reading_and_not_unknown(driver: Path) -> None:
    assert read(driver, "full")["gpus"][0]["memory_free_gb"] == 0.05


def test_a_reading_that_is_not_permitted_takes_no_other_with_it(driver: Path) -> None:
    gpu = read(driver, "denied")["gpus"][0]
    assert gpu["power_w"] is None and gpu["utilisation"] == 0.25 and gpu["fault"] == ""


def test_an_old_driver_without_the_newer_calls(tmp_path: Path) -> None:
    gpu = read(nvml.library(tmp_path, "-DOLD"))["gpus"][0]
    assert (gpu["temperature_c"], gpu["compute"], gpu["throttle"], gpu["processes"]) == (50, None, None, [])
    assert gpu["memory_free_gb"] == 60 and gpu["fault"] == ""


@pytest.mark.parametrize("wrong", ["lost", "gone"])
def test_a_lost_gpu_is_named_and_the_other_still_read(driver: Path, wrong: str) -> None:
    healthy, lost = read(driver, wrong)["gpus"]
    assert healthy["fault"] == "" and healthy["memory_free_gb"] == 60
    assert lost["fault"] == "GPU is lost" and lost["memory_free_gb"] is None and lost["index"] == 1


@pytest.mark.parametrize(
    ("wrong", "fault"), [("gone", "GPU is lost"), ("fewer", "GPU is gone"), ("none", "GPU is gone")]
)
def test_a_gpu_lost_in_mid_run_keeps_the_name_that_engines_know_it_by(driver: Path, wrong: str, fault: str) -> None:
    """Lost, it gives no UUID; gone from the list, the driver counts the others anew. Both go on being known."""
    for looks in (("", wrong), ("", wrong, wrong)):
        found = {gpu["uuid"]: gpu["fault"] for gpu in read(driver, *looks)["gpus"]}
        assert set(found) == {"GPU-0", "GPU-1"}
        assert any(why.startswith(fault) for why in found.values())
        assert (found["GPU-1"] == "") is (wrong == "fewer")
    again = read(driver, "", wrong, "")["gpus"]
    assert [(g["uuid"], g["fault"]) for g in again] == [("GPU-0", ""), ("GPU-1", "")]


def test_two_gpus_lost_one_after_the_other_are_both_known() -> None:
    one, two = gpus.Gpu("GPU-a", "H", 0), gpus.Gpu("GPU-b", "H", 1)
    first = gpus.Readings((gpus.Gpu("GPU-b", "H", 0),)).after(gpus.Readings((one, two)))
    then = gpus.Readings((gpus.Gpu("unknown-0", "unknown", 0, fault="GPU is lost"),)).after(first)
    assert {g.uuid: g.fault[:11] for g in then.gpus} == {"GPU-a": "GPU is gone", "GPU-b": "GPU is lost"}


@pytest.mark.parametrize("wrong", ["refused", "broken", "unloaded"])
def test_a_driver_that_fails_in_mid_run_accuses_no_gpu(driver: Path, wrong: str) -> None:
    """Engines go on while the driver's library was exchanged under them; nothing is known then, nothing is wrong."""
    found = read(driver, "", wrong)
    assert found["gpus"] == [] and found["note"]


def test_a_gpu_that_names_nothing_is_not_used(driver: Path) -> None:
    gpu = read(driver, "nameless")["gpus"][0]
    assert (gpu["uuid"], gpu["fault"]) == ("unknown-0", "GPU does not say its UUID")


def test_a_split_gpu_is_not_offered_whole(driver: Path) -> None:
    assert "MIG" in read(driver, "mig")["gpus"][0]["fault"]


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ("none", "no NVIDIA GPU"), ("broken", "restart the machine"), ("unloaded", "not loaded"),
        ("refused", "does not answer"),
    ],
)  # fmt: skip
def test_a_driver_without_gpus_or_out_of_order_is_said(driver: Path, wrong: str, note: str) -> None:
    found = read(driver, wrong)
    assert found["gpus"] == [] and note in found["note"]


def test_a_library_that_is_none_is_no_driver(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    found = read(tmp_path)
    if found["gpus"]:
        pytest.skip("this machine has NVIDIA GPUs, and its own library is found instead")
    assert found["note"] == "no NVIDIA driver here"


def test_no_driver_is_a_normal_answer(tmp_path: Path) -> None:
    if gpus.read().gpus:
        pytest.skip("this machine has NVIDIA GPUs")
    assert gpus.read().note != ""


@pytest.mark.gpu
def test_a_real_gpu_says_who_it_is() -> None:
    found = gpus.read()
    if not found.gpus:
        pytest.skip(found.note)
    gpu = found.gpus[0]
    assert gpu.uuid.startswith("GPU-") and gpu.memory_total_gb and gpu.compute and gpu.fault == ""


def test_free_main_memory_is_what_could_be_taken_without_swapping(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 10 kB\nMemAvailable:  1000000 kB\n")
    assert gpus.main_memory_free_gb(tmp_path / "meminfo") == pytest.approx(1.024)
    assert gpus.main_memory_free_gb(tmp_path / "none") == 0
    assert gpus.main_memory_free_gb() > 0
