"""Readings of this host's GPUs through NVML, and of its free main memory.

What cannot be read, or cannot be true, is None, never 0; no driver is a normal answer, and one that lies is survived.
It knows nothing of models or of who owns a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pynvml

from serving import energy
from serving.device import GB, MOST_GPUS, SURE, Device
from serving.energy import Meter

T = TypeVar("T")
UNNAMED = "unknown-"
UNREAD = Meter(0.0)
NO_GPU = "no NVIDIA GPU here"
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
    sure: bool = True
    """Whether that is beyond doubt; a fault that could be one odd answer counts from the second reading on."""
    listed: bool = True
    """Whether the driver says which processes use it."""
    memory_used_gb: float | None = None
    memory_temperature_c: float | None = None
    meter: Meter = UNREAD
    """The energy it used since it was first read."""
    ecc: int | None = None
    """Errors in its memory that could not be corrected, since the driver was loaded."""
    recovery: str | None = None
    """What the driver says must be done before it is whole again; `none` where it is."""
    warnings: tuple[str, ...] = ()
    """What should be seen to, though it may be used."""
    xid: int | None = None
    """The last fatal error that the driver reported of it."""
    held: tuple[tuple[str, float | None], ...] = ()
    """The instances of ours that hold memory there, and how many GB."""
    others_gb: float | None = None
    """GB that processes hold which are not ours."""

    @property
    def energy_j(self) -> float | None:
        """Joules since it was first read."""
        return self.meter.joules

    def unread(self, fault: str, sure: bool) -> Gpu:
        """It where nothing can be read of it but that it has this fault."""
        return Gpu(self.uuid, self.name, self.index, meter=self.meter, fault=fault, sure=sure)

    def following(self, before: Gpu | None) -> Gpu:
        """It after the reading `before`: with the energy since then, and a fault that is sure or was there twice."""
        if before is None:
            return self
        gpu = replace(self, meter=before.meter.after(self.meter))
        if gpu.sure or before.fault or not before.sure:
            return gpu
        return replace(gpu, fault="", warnings=(*gpu.warnings, f"{gpu.fault}; the next reading tells"))


@dataclass(frozen=True, slots=True)
class Readings:
    """All GPUs of this host, or why there are none."""

    gpus: tuple[Gpu, ...] = ()
    note: str = ""
    at: float | None = None
    """Monotonic seconds when they were read."""

    @property
    def silent(self) -> bool:
        """Whether the driver does not answer, or there is none: it says nothing of any GPU."""
        return not self.gpus and self.note != NO_GPU

    def after(self, before: Readings) -> Readings:
        """These readings, with the GPUs that `before` knew by name and that no longer say who they are, or are gone.

        A lost GPU gives no UUID, and the driver may count the rest anew; by its UUID an engine is known to be on it.
        While a driver is silent engines may well go on, but on no GPU that had a fault. A fault that could be one odd
        answer is a warning at first where the GPU was well before.
        """
        if self.silent:
            return replace(
                self, gpus=tuple(known.unread(known.fault, known.sure) for known in before.gpus if known.fault)
            )
        last, named = {gpu.uuid: gpu for gpu in before.gpus}, {gpu.uuid for gpu in self.gpus}
        missing = [gpu for uuid, gpu in last.items() if uuid not in named and not uuid.startswith(UNNAMED)]
        found = []
        for gpu in self.gpus:
            known = next((m for m in missing if m.index == gpu.index and gpu.uuid.startswith(UNNAMED)), None)
            if known is not None:
                missing.remove(known)
            found.append(replace(gpu, uuid=known.uuid, name=known.name) if known else gpu)
        found += [gpu.unread("GPU is gone: the driver no longer lists it", sure=False) for gpu in missing]
        return replace(self, gpus=tuple(gpu.following(last.get(gpu.uuid)) for gpu in found))


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


def _gpu(index: int) -> Gpu:
    device = Device(index)
    if device.handle is None:
        fault = device.fault or "GPU does not answer"
        return Gpu(f"{UNNAMED}{index}", "unknown", index, fault=fault, sure=fault in SURE)
    memory, health, uuid = device.memory(), device.health(), device.text(pynvml.nvmlDeviceGetUUID)
    processes, power_w = device.processes(memory.total), device.power_w()
    found = Gpu(
        uuid=uuid or f"{UNNAMED}{index}",
        name=device.text(pynvml.nvmlDeviceGetName) or "unknown",
        index=index,
        memory_total_gb=memory.total,
        memory_free_gb=memory.free,
        utilisation=device.utilisation(),
        power_w=power_w,
        temperature_c=device.temperature_c(),
        throttle=device.throttle(),
        compute=device.compute(),
        processes=processes or (),
        listed=processes is not None,
        memory_used_gb=memory.used,
        memory_temperature_c=device.memory_temperature_c(),
        meter=energy.first(time.monotonic(), device.energy_mj(), power_w),
        ecc=health.ecc,
        recovery=health.recovery,
        warnings=health.warnings,
    )
    split = "GPU is split (MIG is on) and cannot be used whole" if device.split() else ""
    fault = device.fault or split or health.fault or ("" if uuid else "GPU does not say its UUID")
    return replace(found, fault=fault, sure=not fault or fault in SURE)


async def aside(call: Callable[[], T]) -> T:
    """What `call` says, asked in a thread of its own: a driver in trouble may hold it for ever, and the end of serving
    waits for no such thread."""
    loop, told, said = asyncio.get_running_loop(), asyncio.Event(), list[T]()

    def ask() -> None:
        try:
            said.append(call())
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(told.set)

    threading.Thread(target=ask, name="driver", daemon=True).start()
    await told.wait()
    if not said:
        raise RuntimeError("a question to the driver failed; the error stands above")
    return said[0]


def main_memory_free_gb(
    meminfo: Path = Path("/proc/meminfo"), own: Path = Path("/proc/self/cgroup"), tree: Path = Path("/sys/fs/cgroup")
) -> float:
    """Main memory that could be taken without swapping, in GB, of the machine and of the container or unit that this
    process is in; 0 where the system does not say."""
    free = re.search(r"^MemAvailable:\s+(\d+)", _text(meminfo), re.MULTILINE)
    return min([int(free[1]) * 1024 if free else 0, *_allowed(own, tree)]) / GB


def _allowed(own: Path, tree: Path) -> Iterator[int]:
    """Bytes that each control group this process is in may still take (cgroup v2, or v1)."""
    for line in _text(own).splitlines():
        _, kinds, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in kinds.split(","):
            top, names = tree / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not kinds:
            top, names = tree, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        here = top / path.lstrip("/")
        # In a container the path is often the machine's, and what is mounted at the top is its own group.
        for folder in (here, *here.parents):
            yield from _left(folder, *names)
            if folder == top:
                break


def _left(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    """Bytes that may still be taken there; files that are only cached make room. Nothing where there is no limit."""
    most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
    if most.isdecimal() and used.isdecimal():
        files = re.search(rf"^{cached} (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
        yield max(0, int(most) - int(used) + (int(files[1]) if files else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
