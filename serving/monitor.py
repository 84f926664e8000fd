"""The GPUs as they are published: read again and again, with their energy, their errors, and whose their memory is.

The one who joins what NVML says with what /proc says of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from serving import gpus, processes, xids
from serving.gpus import Gpu, Readings
from serving.xids import Xids

KERNEL = "kthreadd"
"""The name of process 2 of a machine; in a container's own /proc that is something else."""


class Monitor:
    """Called for the readings of now."""

    def __init__(
        self, installation: str, *, read: Callable[[], Readings] = gpus.read, events: Xids | None = None,
        proc: Path = Path("/proc"),
    ) -> None:  # fmt: skip
        self._installation, self._read, self._events, self._proc = installation, read, events or Xids(), proc
        self._before = Readings()

    def __call__(self) -> Readings:
        """Read everything. Never raises; takes up to a second, so not on the event loop."""
        read = self._read()
        if read.gpus:
            self._events.start()  # not where there is no driver to ask
        # Marked first: an error that was reported while the driver answered nothing counts as well.
        found = self._marked(read.after(self._marked(self._before)))
        if read.silent:
            return found
        self._before = found
        ours = whose(self._installation, self._proc) if found.gpus else {}
        return replace(found, gpus=tuple(shared(gpu, ours) for gpu in found.gpus))

    def _marked(self, found: Readings) -> Readings:
        fatal, contained = self._events.fatal(), self._events.contained()
        return replace(found, gpus=tuple(marked(g, fatal.get(g.uuid), contained.get(g.uuid)) for g in found.gpus))


def whose(installation: str, proc: Path = Path("/proc")) -> Mapping[int, str] | None:
    """Our processes by id, with the instance each belongs to; None where these are not the ids that a driver names.

    NVML gives the ids of the machine, also inside a container, where the same number is another process.
    """
    try:
        machine = (proc / "2" / "comm").read_text().strip() == KERNEL
    except OSError:
        return None
    return {one.pid: one.instance for one in processes.ours(installation) if one.instance} if machine else None


def shared(gpu: Gpu, ours: Mapping[int, str] | None) -> Gpu:
    """The GPU with what each instance of ours holds there, and what all others do. What is not known is None."""
    if not gpu.listed or ours is None:
        return gpu
    held: dict[str, float | None] = {}
    others: float | None = 0.0
    for pid, gb in gpu.processes:
        name = ours.get(pid)
        if name is None:
            others = None if others is None or gb is None else others + gb
        else:
            known = held.get(name, 0.0)
            held[name] = None if known is None or gb is None else known + gb
    return replace(gpu, held=tuple(sorted(held.items())), others_gb=others)


def marked(gpu: Gpu, fatal: int | None, contained: int | None) -> Gpu:
    """The GPU with the errors that the driver reported of it: a fatal one takes it out, a contained one is told."""
    if contained is not None:
        gpu = replace(gpu, warnings=(*gpu.warnings, xids.words(contained)))
    return gpu if fatal is None else replace(gpu, xid=fatal, fault=gpu.fault or xids.words(fatal))
