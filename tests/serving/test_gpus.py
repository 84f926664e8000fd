"""GPU readings: what is unknown is unknown, a broken GPU is named, and no driver is a normal answer.

The driver here is simulated: a small libnvidia-ml.so.1 built with the C compiler and loaded by a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving import gpus

STUB = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
/* $NVML says what is wrong: "absurd", "lost", "mute", "mig", "none", "broken", several at once. */
static int is(const char *word) { const char *all = getenv("NVML"); return all && strstr(all, word) != NULL; }
static long of(void *device) { return (long)device - 1; }
int nvmlInitWithFlags(unsigned flags) { return is("broken") ? 18 : is("unloaded") ? 9 : 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = is("none") ? 0 : 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) {
  *d = (void *)(long)(i + 1); return i == 1 && is("gone") ? 15 : 0;
}
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) { snprintf(s, n, "GPU-%ld", of(d)); return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) { snprintf(s, n, "Test Card"); return 0; }
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(void *d, Memory *m) {
  if (of(d) == 1 && is("lost")) return 15;
  m->total = 80000000000ULL; m->free = is("absurd") ? 90000000000ULL : 60000000000ULL; m->used = 20000000000ULL;
  return 0;
}
typedef struct { unsigned gpu, memory; } Rates;
int nvmlDeviceGetUtilizationRates(void *d, Rates *r) {
  r->gpu = is("absurd") ? 4000000000U : 25; r->memory = 0; return 0;
}
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) {
  *mw = is("absurd") ? 4294967295U : 123000; return is("denied") ? 4 : 0;
}
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *later) {
  *now = *later = is("mig"); return is("mig") ? 0 : 3;
}
#ifndef OLD
int nvmlDeviceGetTemperatureV(void *d, int *t) { t[2] = is("absurd") ? -40 : 51; return 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *r) { *r = 0x4 | 0x80; return 0; }
typedef struct { unsigned pid; unsigned long long used; unsigned a, b; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, Process *p) {
  if (!p) { *n = 2; return 7; }
  *n = 2; p[0].pid = 41; p[0].used = 20000000000ULL; p[1].pid = 42; p[1].used = ~0ULL;
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
  *major = is("absurd") ? -1 : 9; *minor = 0; return 0;
}
#else
int nvmlDeviceGetTemperature(void *d, unsigned sensor, unsigned *t) { *t = 50; return 0; }
#endif
"""
READ = "import json, dataclasses; from serving import gpus; print(json.dumps(dataclasses.asdict(gpus.read())))"


def library(tmp_path: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the simulated driver with")
    (tmp_path / "nvml.c").write_text(STUB)
    built = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, "-o", built, tmp_path / "nvml.c"], check=True)
    return tmp_path


def read(folder: Path, wrong: str = "") -> dict[str, Any]:
    environ = {**os.environ, "LD_LIBRARY_PATH": str(folder), "NVML": wrong}
    done = subprocess.run([sys.executable, "-c", READ], env=environ, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_gpus_with_all_they_say(tmp_path: Path) -> None:
    found = read(library(tmp_path))
    assert found["note"] == "" and [g["uuid"] for g in found["gpus"]] == ["GPU-0", "GPU-1"]
    assert found["gpus"][0] == {
        "uuid": "GPU-0", "name": "Test Card", "index": 0, "memory_total_gb": 80, "memory_free_gb": 60,
        "utilisation": 0.25, "power_w": 123, "temperature_c": 51, "throttle": ["power cap", "power brake"],
        "compute": 9.0, "processes": [[41, 20], [42, None]], "fault": "",
    }  # fmt: skip


def test_absurd_readings_are_unknown_and_never_zero(tmp_path: Path) -> None:
    gpu = read(library(tmp_path), "absurd")["gpus"][0]
    for name in ("memory_free_gb", "utilisation", "power_w", "temperature_c", "compute"):
        assert gpu[name] is None, name
    assert gpu["memory_total_gb"] == 80 and gpu["fault"] == ""


def test_a_reading_that_is_not_permitted_takes_no_other_with_it(tmp_path: Path) -> None:
    gpu = read(library(tmp_path), "denied")["gpus"][0]
    assert gpu["power_w"] is None and gpu["utilisation"] == 0.25 and gpu["fault"] == ""


def test_an_old_driver_without_the_newer_calls(tmp_path: Path) -> None:
    gpu = read(library(tmp_path, "-DOLD"))["gpus"][0]
    assert (gpu["temperature_c"], gpu["compute"], gpu["throttle"], gpu["processes"]) == (50, None, [], [])
    assert gpu["memory_free_gb"] == 60 and gpu["fault"] == ""


@pytest.mark.parametrize("wrong", ["lost", "gone"])
def test_a_lost_gpu_is_named_and_the_other_still_read(tmp_path: Path, wrong: str) -> None:
    healthy, lost = read(library(tmp_path), wrong)["gpus"]
    assert healthy["fault"] == "" and healthy["memory_free_gb"] == 60
    assert lost["fault"] == "GPU is lost" and lost["memory_free_gb"] is None and lost["index"] == 1


def test_a_split_gpu_is_not_offered_whole(tmp_path: Path) -> None:
    assert "MIG" in read(library(tmp_path), "mig")["gpus"][0]["fault"]


@pytest.mark.parametrize(
    ("wrong", "note"), [("none", "no NVIDIA GPU"), ("broken", "restart the machine"), ("unloaded", "not loaded")]
)
def test_a_driver_without_gpus_or_out_of_order_is_said(tmp_path: Path, wrong: str, note: str) -> None:
    found = read(library(tmp_path), wrong)
    assert found["gpus"] == [] and note in found["note"]


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
