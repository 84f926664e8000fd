"""One GPU asked through NVML, each reading by a call of its own, so that one that is missing takes no other with it.

What cannot be read, or cannot be true, is None, never 0. Knows neither models nor who owns a process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")
GB = 10**9
MOST_GPUS = 256
"""A machine has no more; a driver that counts more is wrong."""

# More than any board has; beyond these a reading is a driver's way of saying "I do not know".
MOST_MEMORY_GB, MOST_POWER_W, MOST_TEMPERATURE_C, MOST_ERRORS, MOST_MJ = 10_000, 20_000, 200, 10**12, 10**18
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
FAULTS = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "GPU needs a reset",
    pynvml.NVML_ERROR_IRQ_ISSUE: "GPU has an interrupt problem",
}
SURE = frozenset({FAULTS[pynvml.NVML_ERROR_GPU_IS_LOST], FAULTS[pynvml.NVML_ERROR_RESET_REQUIRED]})
"""Of these, what is so for good once it was said. Everything else could be one odd answer."""
RECOVERY = {
    pynvml.NVML_GPU_RECOVERY_ACTION_NONE: "none",
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: "reset",
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: "restart the machine",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: "drain its links",
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "drain and reset",
    pynvml.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: "recover its IMEX domain",
    pynvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: "reset its bus",
    pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "restart the machine",
}
"""What the driver says must be done before the GPU is whole again."""
OUT = frozenset({"reset", "restart the machine", "reset its bus"})
"""Of these, what means that it must not be used until then. The others may wait until nothing runs there."""
LIES = (pynvml.NVMLLibraryMismatchError, ValueError, IndexError, OverflowError, MemoryError)
"""What pynvml raises where the library's answer cannot be: text that is none, a list longer than it said."""

Held = tuple[tuple[int, float | None], ...]
"""Process ids, and the GB each holds."""


@dataclass(frozen=True, slots=True)
class Memory:
    """GB of 10^9 bytes; None is unknown."""

    total: float | None = None
    free: float | None = None
    used: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a GPU says of its own memory, link and recovery."""

    ecc: int | None = None
    """Errors in its memory that could not be corrected, since the driver was loaded."""
    recovery: str | None = None
    """What must be done before it is whole again: a word of RECOVERY."""
    warnings: tuple[str, ...] = ()
    """What should be seen to, though it may be used."""
    fault: str = ""


class Device:
    """One GPU. A fault of the GPU itself, met by any call, is remembered."""

    def __init__(self, index: int) -> None:
        self.fault = ""
        self.handle = self.ask(pynvml.nvmlDeviceGetHandleByIndex, index)

    def ask(self, call: Callable[..., T], *args: Any) -> T | None:
        """The call's answer, or None."""
        try:
            return call(*args)
        except pynvml.NVMLError as broken:
            self.fault = self.fault or FAULTS.get(broken.value, "")
        except LIES:
            pass
        return None

    def first(self, *calls: Callable[..., T]) -> T | None:
        """The answer of the first call that this driver knows."""
        return next((found for call in calls if (found := self.ask(call, self.handle)) is not None), None)

    def text(self, call: Callable[..., str]) -> str:
        return self.ask(call, self.handle) or ""

    def memory(self) -> Memory:
        """Newer drivers tell what they keep for themselves apart from what is used."""
        found = self.ask(pynvml.nvmlDeviceGetMemoryInfo, self.handle, pynvml.nvmlMemory_v2)
        found = found or self.ask(pynvml.nvmlDeviceGetMemoryInfo, self.handle)
        total = within(found.total / GB, MOST_MEMORY_GB) if found else None
        if found is None or not total:
            return Memory()
        return Memory(total, within(found.free / GB, total), within(found.used / GB, total))

    def utilisation(self) -> float | None:
        """Share of time in which a kernel ran."""
        rates = self.ask(pynvml.nvmlDeviceGetUtilizationRates, self.handle)
        return within(rates.gpu / 100, 1) if rates else None

    def power_w(self) -> float | None:
        found = self.ask(pynvml.nvmlDeviceGetPowerUsage, self.handle)
        return None if found is None else within(found / 1000, MOST_POWER_W)

    def energy_mj(self) -> int | None:
        """Its own count, since the driver was loaded."""
        found = self.ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, self.handle)
        if found is None:
            found = self.field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION)
        return None if found is None or not 0 < found < MOST_MJ else int(found)

    def temperature_c(self) -> float | None:
        """That of its core."""
        for call in (pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature):
            # The first is unknown to older drivers, the second will leave newer ones.
            found = self.ask(call, self.handle, pynvml.NVML_TEMPERATURE_GPU)
            if found is not None:
                return within(float(found), MOST_TEMPERATURE_C)
        return None

    def memory_temperature_c(self) -> float | None:
        """Where it has a sensor there; one that has none may answer 0."""
        found = self.field(pynvml.NVML_FI_DEV_MEMORY_TEMP)
        return None if not found else within(float(found), MOST_TEMPERATURE_C)

    def throttle(self) -> tuple[str, ...] | None:
        """Why its clocks are held down now; empty where they are not."""
        bits = self.first(
            pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
        )  # fmt: skip
        if bits is None or bits >> REASON_BITS:
            return None
        return tuple(name for bit, name in THROTTLES if bits & bit)

    def compute(self) -> float | None:
        found = self.ask(pynvml.nvmlDeviceGetCudaComputeCapability, self.handle)
        if found is None or not (0 < found[0] < 100 and 0 <= found[1] < 10):
            return None
        return float(found[0]) + float(found[1]) / 10

    def split(self) -> bool:
        """Whether it is cut into parts (MIG)."""
        mig = self.ask(pynvml.nvmlDeviceGetMigMode, self.handle)
        return mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE

    def processes(self, total: float | None) -> Held | None:
        """Who holds memory there, in the driver's own process ids: those that compute and those that draw."""
        computing = self.ask(pynvml.nvmlDeviceGetComputeRunningProcesses, self.handle)
        drawing = self.ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, self.handle)
        if computing is None and drawing is None:
            return None
        held: dict[int, float | None] = {}
        for one in [*(computing or []), *(drawing or [])]:
            used = None if one.usedGpuMemory is None else within(one.usedGpuMemory / GB, total or MOST_MEMORY_GB)
            held.setdefault(int(one.pid), used)
        return tuple(held.items())

    def health(self) -> Health:
        """Errors of its memory, and what the driver wants done."""
        warnings, fault = [], ""
        errors = self.ask(
            pynvml.nvmlDeviceGetTotalEccErrors, self.handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        )  # fmt: skip
        rows = self.ask(pynvml.nvmlDeviceGetRemappedRows, self.handle)
        if rows is not None and rows[3] == 1:
            fault = "its memory is broken beyond repair: a row could not be replaced"
        elif rows is not None and rows[2] == 1:
            warnings.append("a row of its memory is replaced at the next reset")
        if self.ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, self.handle) == 1:
            warnings.append("a page of its memory is left out after the next reset")
        recovery = RECOVERY.get(found) if isinstance(found := self.field(RECOVERY_FIELD), int) else None
        if recovery in OUT:
            fault = fault or f"the driver asks: {recovery}"
        elif recovery not in (None, "none"):
            warnings.append(f"the driver asks: {recovery}")
        if narrow := self.link():
            warnings.append(narrow)
        return Health(None if errors is None or errors > MOST_ERRORS else errors, recovery, tuple(warnings), fault)

    def link(self) -> str:
        """That it is joined to the machine by fewer lanes than it has, or ""; its weights load as much slower."""
        now = self.ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth, self.handle)
        most = self.ask(pynvml.nvmlDeviceGetMaxPcieLinkWidth, self.handle)
        return f"PCIe runs on {now} of {most} lanes" if now and most and now < most <= 32 else ""

    def field(self, number: int) -> int | float | None:
        """One of NVML's numbered fields; each has an error code and a type of its own."""
        found = self.ask(pynvml.nvmlDeviceGetFieldValues, self.handle, [number])
        if not found or found[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None
        name = _TYPES.get(found[0].valueType)
        return None if name is None else getattr(found[0].value, name)


RECOVERY_FIELD = pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_TYPES = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal", pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal", pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal", pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}  # fmt: skip


def within(value: float, most: float) -> float | None:
    """The value, or None where no such reading can be true."""
    return value if 0 <= value <= most else None
