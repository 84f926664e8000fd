"""Errors that the driver reports as they happen (XIDs), and which of them take a GPU out.

A thread of its own waits for them, since NVML only waits. What it saw is kept until serving is started again: a GPU is
made whole by a reset, which needs everything off it. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pynvml

from serving.device import LIES, MOST_GPUS, Device

FATAL: Mapping[int, str] = MappingProxyType({
    46: "it stopped processing",
    48: "an error in its memory could not be corrected",
    62: "its own controller stopped",
    64: "broken memory could not be recorded for replacement",
    74: "its NVLink failed",
    79: "it has fallen off the bus",
    95: "an error in its memory could not be contained",
    119: "its system processor does not answer",
    120: "its system processor failed",
    140: "an error in its memory was not recovered",
    143: "it could not be initialised",
    158: "it did not answer in time, for good",
})  # fmt: skip
"""By NVIDIA's catalogue of XIDs, those after which a GPU computes nothing right until it is reset or replaced."""

CONTAINED: Mapping[int, str] = MappingProxyType({
    63: "broken memory is replaced at the next reset",
    92: "its memory corrects many errors",
    94: "an error in its memory was met by one program alone",
})  # fmt: skip
"""What should be seen to, and takes no GPU out: an engine that it ends is started again as after every crash."""

# In neither, on purpose: 13, 31, 43, 45, 69 and 109 end one program and come from its own mistakes as a rule; 154 says
# that the recovery action changed, which is read by itself, and which speaks for all XIDs that are not listed.

WAIT_MS = 1000
AGAIN_S = 10.0
"""Between two tries to register where there is no driver, or it is in trouble."""
EVENTS = pynvml.nvmlEventTypeXidCriticalError


class Xids:
    """The last fatal XID of each GPU, and the last one that was contained, by UUID."""

    def __init__(self, again_s: float = AGAIN_S, wait_ms: int = WAIT_MS) -> None:
        self._again_s, self._wait_ms = again_s, wait_ms
        self._fatal: dict[str, int] = {}
        self._contained: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to wait for them, once."""
        if self._thread is None:
            # A daemon: a driver in trouble can hold a call for ever, and must not hold the end of serving.
            self._thread = threading.Thread(target=self._run, name="xids", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, which can take as long as one wait."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(self._wait_ms / 1000 + 1)

    def fatal(self) -> Mapping[str, int]:
        """By UUID, the last fatal XID of each GPU that had one."""
        return dict(self._fatal)

    def contained(self) -> Mapping[str, int]:
        """By UUID, the last XID that only wants to be seen to."""
        return dict(self._contained)

    def _run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(pynvml.NVMLError, *LIES):
                self._listen()
            self._ended.wait(self._again_s)

    def _listen(self) -> None:
        """Until the driver fails. Raises NVMLError."""
        pynvml.nvmlInit()
        try:
            events = pynvml.nvmlEventSetCreate()
            try:
                if names := _register(events):
                    self._wait(events, names)
            finally:
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlEventSetFree(events)
        finally:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _wait(self, events: Any, names: Mapping[int, str]) -> None:
        while not self._ended.is_set():
            try:
                event = pynvml.nvmlEventSetWait(events, self._wait_ms)
            except pynvml.NVMLError as nothing:
                if nothing.value != pynvml.NVML_ERROR_TIMEOUT:
                    raise
                continue
            uuid = names.get(_address(event.device))
            if uuid is not None and event.eventType & EVENTS:
                self._note(uuid, int(event.eventData))

    def _note(self, uuid: str, xid: int) -> None:
        if xid in FATAL:
            self._fatal[uuid] = xid
        elif xid in CONTAINED:
            self._contained[uuid] = xid


def words(xid: int) -> str:
    """An XID and what it means."""
    return f"XID {xid}: {FATAL.get(xid) or CONTAINED.get(xid, 'unknown')}"


def _register(events: Any) -> dict[int, str]:
    """Ask for the XIDs of all GPUs that report them: UUID by the handle's address. Raises NVMLError."""
    names: dict[int, str] = {}
    for index in range(min(pynvml.nvmlDeviceGetCount(), MOST_GPUS)):
        device = Device(index)
        if device.handle is None or not (uuid := device.text(pynvml.nvmlDeviceGetUUID)):
            continue
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceRegisterEvents(device.handle, EVENTS, events)
            names[_address(device.handle)] = uuid
    return names


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
