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
    """What one process reads at last, of a driver with which this is wrong, one after the other."""
    return reads(folder, *wrong)[-1]


def reads(folder: Path, *wrong: str) -> list[dict[str, Any]]:
    """What one process reads, once for each of what is wrong then."""
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", READ, *(wrong or [""])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_gpus_with_all_they_say(driver: Path) -> None:
    found = read(driver)
    assert found["note"] == "" and [g["uuid"] for g in found["gpus"]] == ["GPU-0", "GPU-1"] and found["at"] > 0
    assert found["gpus"][0] == {
        "uuid": "GPU-0", "name": "Test Card", "index": 0, "memory_total_gb": 80, "memory_free_gb": 60,
        "utilisation": 0.25, "power_w": 123, "temperature_c": 51, "throttle": ["power cap", "power brake"],
        "compute": 9.0, "processes": [[41, 20], [42, None]], "fault": "", "listed": True, "memory_used_gb": 19.5,
        "memory_temperature_c": 63, "meter": [found["gpus"][0]["meter"][0], 7_000_000, 123, 0], "ecc": 0,
        "recovery": "none", "warnings": [], "xid": None, "held": [], "others_gb": None,
        "sure": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "unknown"),
    [
        (
            "absurd",
            {"memory_free_gb", "memory_used_gb", "utilisation", "power_w", "temperature_c", "throttle", "compute",
             "memory_temperature_c", "ecc", "recovery"},
        ),
        ("minus", {"memory_free_gb", "utilisation", "power_w", "temperature_c"}),
        ("endless", {"memory_total_gb", "memory_free_gb", "memory_used_gb"}),
        ("empty", {"memory_total_gb", "memory_free_gb", "memory_used_gb"}),
    ],
)  # fmt: skip
def test_what_cannot_be_true_is_unknown_and_never_zero(driver: Path, wrong: str, unknown: set[str]) -> None:
    """300 % busy, less than nothing free, more free than there is, -1 W, 255 degrees, a bus that answers with ones."""
    gpu = read(driver, wrong)["gpus"][0]
    assert {name for name, value in gpu.items() if value is None} - {"xid", "others_gb"} == unknown
    assert (gpu["uuid"], gpu["fault"], gpu["warnings"]) == ("GPU-0", "", [])


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
    assert (gpu["memory_free_gb"], gpu["memory_used_gb"], gpu["fault"]) == (60, 20, "")
    assert (gpu["listed"], gpu["ecc"], gpu["recovery"], gpu["memory_temperature_c"]) == (False, None, None, None)


CALLS = (
    "MemoryInfo_v2", "UtilizationRates", "PowerUsage", "TemperatureV", "CurrentClocksEventReasons", "Name",
    "ComputeRunningProcesses_v3", "GraphicsRunningProcesses_v3", "CudaComputeCapability", "TotalEnergyConsumption",
    "TotalEccErrors", "RemappedRows", "RetiredPagesPendingStatus", "FieldValues", "CurrPcieLinkWidth",
)  # fmt: skip


def test_each_call_may_fail_alone_and_says_nothing_of_the_gpu(driver: Path) -> None:
    """Not supported, not permitted, not in this driver, unknown: all are normal, and take nothing else along."""
    failing = [f"nvmlDeviceGet{call}={code}" for call in CALLS for code in (3, 4, 13, 999)]
    whole, *looks = (found["gpus"][0] for found in reads(driver, "", *failing))
    for call, gpu in zip(failing, looks, strict=True):
        changed = {name for name in whole if gpu[name] != whole[name]} - {"meter"}
        assert gpu["fault"] == "" and len(changed) <= 2, (call, changed)
        assert all(gpu[name] in (None, [], False, "unknown", 20) for name in changed), (call, changed)


@pytest.mark.parametrize(
    ("said", "fault", "warning"),
    [
        ("recovery=1", "the driver asks: reset", ""), ("recovery=2", "the driver asks: restart the machine", ""),
        ("recovery=6", "reset its bus", ""), ("recovery=3", "", "drain its links"),
        ("recovery=4", "", "drain and reset"), ("unmended=1", "could not be replaced", ""),
        ("pending=1", "", "replaced at the next reset"), ("retired=1", "", "left out after the next reset"),
        ("lanes=4", "", "PCIe runs on 4 of 16 lanes"), ("ecc=3", "", ""), ("recovery=0", "", ""),
    ],
)  # fmt: skip
def test_what_takes_a_gpu_out_and_what_only_wants_to_be_seen_to(
    driver: Path, said: str, fault: str, warning: str
) -> None:  # fmt: skip
    gpu = read(driver, said)["gpus"][0]
    assert (fault in gpu["fault"]) if fault else gpu["fault"] == ""
    assert any(warning in one for one in gpu["warnings"]) if warning else gpu["warnings"] == []
    assert gpu["ecc"] == (3 if said == "ecc=3" else 0)


def test_energy_goes_on_over_a_driver_that_was_loaded_anew_and_a_gpu_that_was_lost(driver: Path) -> None:
    def joules(*looks: str) -> float:
        found: float = read(driver, *looks)["gpus"][1]["meter"][3]
        return found

    assert joules("energy=5000000", "energy=5100000") == pytest.approx(100)
    assert joules("energy=5000000", "energy=5100000", "energy=2000") == pytest.approx(102)
    assert joules("energy=5000000", "gone energy=5000000", "energy=5100000") == pytest.approx(100)
    assert joules("energy=5000000", "fewer energy=5000000", "energy=5100000") == pytest.approx(100)
    field = "nvmlDeviceGetTotalEnergyConsumption=3 energy_field energy="
    assert joules(f"{field}5000000", f"{field}5100000") == pytest.approx(100)


def test_who_draws_on_a_screen_holds_memory_too(driver: Path) -> None:
    assert read(driver, "desktop")["gpus"][0]["processes"] == [[41, 20], [42, None], [43, 1]]


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
    lost = (("", wrong), ("", wrong, wrong)) if wrong == "gone" else (("", wrong, wrong), ("", wrong, wrong, wrong))
    for looks in lost:
        found = {gpu["uuid"]: gpu["fault"] for gpu in read(driver, *looks)["gpus"]}
        assert set(found) == {"GPU-0", "GPU-1"}
        assert any(why.startswith(fault) for why in found.values())
        assert (found["GPU-1"] == "") is (wrong == "fewer")
    again = read(driver, "", wrong, "")["gpus"]
    assert [(g["uuid"], g["fault"]) for g in again] == [("GPU-0", ""), ("GPU-1", "")]


@pytest.mark.parametrize(
    "odd", ["fewer", "none", "nameless", "mig", "recovery=1", "unmended=1", "nvmlDeviceGetHandleByIndex_v2=999",
            "nvmlDeviceGetUUID=18"]
)  # fmt: skip
def test_one_odd_answer_takes_no_gpu_out_and_a_second_one_does(driver: Path, odd: str) -> None:
    """It would end every engine there at once, and without draining."""
    _, once, twice, third, well = reads(driver, "", odd, odd, odd, "")
    assert {gpu["uuid"] for look in (once, twice, third) for gpu in look["gpus"]} == {"GPU-0", "GPU-1"}
    assert [gpu["fault"] for gpu in once["gpus"]] == ["", ""]
    assert any("the next reading tells" in said for gpu in once["gpus"] for said in gpu["warnings"])
    assert any(gpu["fault"] for gpu in twice["gpus"]) and any(gpu["fault"] for gpu in third["gpus"])
    assert [(gpu["fault"], gpu["warnings"], gpu["sure"]) for gpu in well["gpus"]] == [("", [], True)] * 2
    again = reads(driver, "", odd, "", odd)[-1]
    assert [gpu["fault"] for gpu in again["gpus"]] == ["", ""], "two odd answers, and not one after the other"
    if odd not in ("fewer", "none"):
        assert any(gpu["fault"] for gpu in read(driver, odd)["gpus"]), "what was never seen well is not used"


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


def test_free_main_memory_is_what_could_be_taken_without_swapping(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 10 kB\nMemAvailable:  1000000 kB\n")
    assert gpus.main_memory_free_gb(tmp_path / "meminfo") == pytest.approx(1.024)
    assert gpus.main_memory_free_gb(tmp_path / "none") == 0
    assert gpus.main_memory_free_gb() > 0


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage", "cached"),
    [
        ("0::/unit/own", "unit", "memory.max", "memory.current", "inactive_file"),
        ("0::/the/machines/path", "", "memory.max", "memory.current", "inactive_file"),
        (
            "5:cpuset,memory:/docker/x",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_a_container_has_no_more_main_memory_than_it_may_take(
    tmp_path: Path, line: str, folder: str, limit: str, usage: str, cached: str
) -> None:
    """Else models are planned, and put to sleep, in memory of the machine for which the kernel would kill them."""
    (meminfo := tmp_path / "meminfo").write_text("MemAvailable: 900000000 kB\n")
    (own := tmp_path / "cgroup").write_text(f"3:cpu:/x\n{line}\n")
    (group := tmp_path / "tree" / folder).mkdir(parents=True)
    assert gpus.main_memory_free_gb(meminfo, own, tmp_path / "tree") == pytest.approx(921.6)
    (group / usage).write_text("9000000000\n")
    (group / limit).write_text("max\n")
    assert gpus.main_memory_free_gb(meminfo, own, tmp_path / "tree") == pytest.approx(921.6)
    (group / limit).write_text("16000000000\n")
    assert gpus.main_memory_free_gb(meminfo, own, tmp_path / "tree") == pytest.approx(7)
    (group / "memory.stat").write_text(f"anon 1\n{cached} 2000000000\n")
    assert gpus.main_memory_free_gb(meminfo, own, tmp_path / "tree") == pytest.approx(9)
