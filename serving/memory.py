"""Whether the memory an engine was planned to have is free now. Pure: readings in, a sentence out.

An engine that ended gives its memory back when the last of its processes is gone, and a driver takes its time; one that
is started before finds too little, and dies or takes less than it was planned to have.
"""

from __future__ import annotations

from serving.gpus import Gpu, Readings
from serving.placement import Placed
from serving.spare import BEFORE_GB, MARGIN_GB, WHOLE

REMEDY = "end what holds it, or run fewer or smaller models"


def missing(placed: Placed, readings: Readings, memory_free_gb: float) -> str:
    """What is not free that `placed` was planned to have, and who holds it; "" where all of it is.

    What cannot be read is not missing: the engine itself will say.
    """
    if placed.device == "cpu":
        need = placed.variant.memory_gb if placed.variant is not None else 0.0
        if memory_free_gb + MARGIN_GB >= need:
            return ""
        return f"{memory_free_gb:.1f} GB of main memory are free of the {need:g} GB it needs"
    gpus = {gpu.uuid: gpu for gpu in readings.gpus}
    for uuid in placed.gpus:
        gpu = gpus.get(uuid)
        if gpu is None or gpu.memory_total_gb is None or gpu.memory_free_gb is None:
            continue
        # The engine looks when it holds its part of the driver, and does not start where its share is not free then.
        # Whether a flag that asks for more than is usual leaves room for that part, it knows better.
        need = min(placed.taken, WHOLE) * gpu.memory_total_gb + BEFORE_GB
        if gpu.memory_free_gb < need:
            return f"GPU {gpu.index} has {gpu.memory_free_gb:.1f} GB free of the {need:.1f} GB it needs{_holders(gpu)}"
    return ""


def _holders(gpu: Gpu) -> str:
    """Who holds memory there, the largest first."""
    known = sorted(gpu.processes, key=lambda one: -(one[1] or 0.0))[:3]
    named = [f"process {pid}" + (f" {held:.1f} GB" if held is not None else "") for pid, held in known]
    return f"; {', '.join(named)} hold{'s' * (len(named) == 1)} it" if named else ""
