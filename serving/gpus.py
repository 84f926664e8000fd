"""Readings of this host's GPUs through NVML, and of its free main memory.

What cannot be read, or cannot be true, is None, never 0; no driver is a normal answer, and one that lies is survived.
It knows nothing of models or of who owns a process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pynvml

T = TypeVar("T")
GB = 10**9

# More than any board has; beyond these a reading is a driver's way of saying "I do not know".
MOST_MEMORY_GB, MOST_POWER_W, MOST_TEMPERATURE_C, MOST_GPUS = 10_000, 20_000, 200, 256
REASON_BITS = 16
"""NVML has nine reasons for clocks held down; a reading with bits far beyond is a bus that answers with ones."""

# A software power cap is how a card is meant to run, so it is named apart from the ones that mean trouble.
THROTTLES = (
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
    (pynvml.nvmlClocksEventReasonHwSlowdown, "hardware slow-down"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal"),
    (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hardware thermal"),
    (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "power brake"),
)
UNNAMED = "unknown-"
NO_GPU = "no NVIDIA GPU here"
FAULTS = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "GPU needs a reset",
    pynvml.NVML_ERROR_IRQ_ISSUE: "GPU has an interrupt problem",
}
LIES = (pynvml.NVMLLibraryMismatchError, ValueError, IndexError, OverflowError, MemoryError)
"""What pynvml raises where the library's answer cannot be: text that is none, a list longer than it said."""
NOTES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated but not loaded anew; restart the machine",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not use the NVIDIA driver",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML shows it now. Memory in GB of 10^9 bytes; None is unknown."""

    uuid: str
    """`unknown-INDEX` where the GPU does not say who it is and was not seen before."""
    name: str
    index: int
    memory_total_gb: float | None = None
    memory_free_gb: float | None = None
    utilisation: float | None = None
    """Share of time in which a kernel ran, 0 to 1."""
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] | None = None
    """Why its clocks are held down now; empty where they are not."""
    compute: float | None = None
    """CUDA compute capability, e.g. 9.0."""
    processes: tuple[tuple[int, float | None], ...] = ()
    """Process id (the host's, also inside a container) and GB it holds."""
    fault: str = ""
    """Why it must not be used; empty where nothing is wrong."""


@dataclass(frozen=True, slots=True)
class Readings:
    """All GPUs of this host, or why there are none."""

    gpus: tuple[Gpu, ...] = ()
    note: str = ""
    at: float | None = None
    """Monotonic seconds when they were read."""

    def after(self, before: Readings) -> Readings:
        """These readings, with the GPUs that `before` knew by name and that no longer say who they are, or are gone.

        A lost GPU gives no UUID, and the driver may count the rest anew; by its UUID an engine is known to be on it.
        A driver that does not answer at all says nothing of its GPUs, and engines may well go on.
        """
        if not self.gpus and self.note != NO_GPU:
            return self
        named = {gpu.uuid for gpu in self.gpus}
        missing = [gpu for gpu in before.gpus if gpu.uuid not in named and not gpu.uuid.startswith(UNNAMED)]
        found = []
        for gpu in self.gpus:
            known = next((m for m in missing if m.index == gpu.index and gpu.uuid.startswith(UNNAMED)), None)
            if known is not None:
                missing.remove(known)
            found.append(replace(gpu, uuid=known.uuid, name=known.name) if known else gpu)
        gone = [Gpu(m.uuid, m.name, m.index, fault="GPU is gone: the driver no longer lists it") for m in missing]
        return replace(self, gpus=(*found, *gone))


def read() -> Readings:
    """Read all GPUs now. Never raises; takes up to a second where the driver must first wake the GPUs."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as broken:
        return Readings(note=NOTES.get(broken.value, f"the NVIDIA driver does not answer: {broken}"))
    try:
        count = pynvml.nvmlDeviceGetCount()
        if count > MOST_GPUS:
            return Readings(note=f"the NVIDIA driver names {count} GPUs, which cannot be; restart the machine")
        return Readings(tuple(_gpu(index) for index in range(count)), "" if count else NO_GPU, time.monotonic())
    except pynvml.NVMLError as broken:
        return Readings(note=f"the NVIDIA driver does not answer: {broken}")
    finally:
        # It was read; a driver that cannot even stop is told by the next reading.
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class _Device:
    """One GPU's handle; each call stands alone, so that one missing reading takes no other with it."""

    def __init__(self) -> None:
        self.fault = ""

    def ask(self, call: Callable[..., T], *args: object) -> T | None:
        """The call's answer, or None. A fault of the GPU itself is remembered."""
        try:
            return call(*args)
        except pynvml.NVMLError as broken:
            self.fault = self.fault or FAULTS.get(broken.value, "")
        except LIES:
            pass
        return None


def _gpu(index: int) -> Gpu:
    device = _Device()
    handle = device.ask(pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return Gpu(f"{UNNAMED}{index}", "unknown", index, fault=device.fault or "GPU does not answer")
    memory = device.ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    total = _within(memory.total / GB, MOST_MEMORY_GB) if memory else None
    rates = device.ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = device.ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    mig = device.ask(pynvml.nvmlDeviceGetMigMode, handle)
    if mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        device.fault = device.fault or "GPU is split (MIG is on) and cannot be used whole"
    uuid = device.ask(pynvml.nvmlDeviceGetUUID, handle)
    return Gpu(
        uuid=uuid or f"{UNNAMED}{index}",
        name=device.ask(pynvml.nvmlDeviceGetName, handle) or "unknown",
        index=index,
        memory_total_gb=total or None,
        memory_free_gb=_within(memory.free / GB, total) if memory and total else None,
        utilisation=_within(rates.gpu / 100, 1) if rates else None,
        power_w=_within(power / 1000, MOST_POWER_W) if power is not None else None,
        temperature_c=_temperature(device, handle),
        throttle=_throttle(device, handle),
        compute=_compute(device, handle),
        processes=_processes(device, handle, total),
        fault=device.fault or ("" if uuid else "GPU does not say its UUID"),
    )


def _within(value: float, most: float) -> float | None:
    """The value, or None where no such reading can be true."""
    return value if 0 <= value <= most else None


def _temperature(device: _Device, handle: object) -> float | None:
    for call in (pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature):
        # The first is unknown to older drivers, the second will leave newer ones.
        found = device.ask(call, handle, pynvml.NVML_TEMPERATURE_GPU)
        if found is not None:
            return _within(float(found), MOST_TEMPERATURE_C)
    return None


def _throttle(device: _Device, handle: object) -> tuple[str, ...] | None:
    for call in (pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons):
        bits = device.ask(call, handle)
        if bits is not None:
            return None if bits >> REASON_BITS else tuple(name for bit, name in THROTTLES if bits & bit)
    return None


def _compute(device: _Device, handle: object) -> float | None:
    found = device.ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    if found is None or not (0 < found[0] < 100 and 0 <= found[1] < 10):
        return None
    return float(found[0]) + float(found[1]) / 10


def _processes(device: _Device, handle: object, total: float | None) -> tuple[tuple[int, float | None], ...]:
    found = device.ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    held = [(int(p.pid), None if p.usedGpuMemory is None else p.usedGpuMemory / GB) for p in found]
    return tuple((pid, None if gb is None else _within(gb, total or MOST_MEMORY_GB)) for pid, gb in held)


def main_memory_free_gb(meminfo: Path = Path("/proc/meminfo")) -> float:
    """Main memory that could be taken without swapping, in GB; 0 where the system does not say."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return 0.0
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(kib) * 1024 / GB
