"""What is left of a machine's memory while a plan is made. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from serving.catalogue import Variant
from serving.gpus import Gpu, Readings
from serving.options import Option

WHOLE = 0.92
"""The share of a GPU's memory that vLLM takes by its own default."""
MARGIN_GB = 0.5
"""Left free on each GPU: what others hold grows a little between this reading and the engine's own."""
BEFORE_GB = 0.6
"""What an engine holds of a GPU before it looks how much of it is free: the driver's context, a rule of thumb. vLLM
takes its share beside that, and does not start where less is free. (NCCL's buffers come before, too.)"""


@dataclass(slots=True)
class Room:
    """What is left while a plan is made."""

    gpus: dict[str, Gpu]
    free: dict[str, float]
    main: float
    tenants: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """By GPU: model and the GB of that GPU it needs."""
    _there: dict[tuple[int, float], tuple[Option, Option]] = field(default_factory=dict)
    """Options as they are on a kind of GPU, worked out once; each is kept beside the one it was made of."""

    def groups(self, compute: float) -> list[list[str]]:
        """The GPUs of at least this compute capability in groups of one kind, that with the least memory first."""
        found: dict[str, list[str]] = {}
        for uuid, gpu in self.gpus.items():
            if not compute or (gpu.compute or 0) >= compute:
                found.setdefault(gpu.name, []).append(uuid)
        return sorted(found.values(), key=lambda group: max(self.gpus[u].memory_total_gb or 0 for u in group))

    def fitting(self, option: Option, group: Sequence[str]) -> tuple[Option, list[str]]:
        """The option as it is on GPUs of this kind, and those of them with room for it."""
        board = max(self.gpus[u].memory_total_gb or self.gpus[u].memory_free_gb or 0.0 for u in group)
        if (known := self._there.get((id(option), board))) is None:
            known = self._there[id(option), board] = (option, option.changed(board_gb=board))
        option = known[1]
        if option.each_gb is None:
            return option, [u for u in group if self.free[u] > 0 and not self.tenants.get(u)]
        return option, [u for u in group if self.free[u] >= option.each_gb]

    def take(self, model: str, uuids: Iterable[str], each: float) -> None:
        """Give so much of each of these GPUs to a model."""
        for uuid in uuids:
            tenants, gpu = self.tenants.setdefault(uuid, []), self.gpus[uuid]
            tenants.append((model, each))
            # The next engine there holds something beside its share, too.
            self.free[uuid] -= each + budget(gpu, len(tenants)) - budget(gpu, len(tenants) + 1)

    def give_back(self, before: Mapping[str, float]) -> None:
        """Undo the last `take` of these GPUs, which had so much free before it."""
        for uuid, free in before.items():
            self.tenants[uuid].pop()
            self.free[uuid] = free


def room(readings: Readings, memory_free_gb: float) -> Room:
    """What can be given out of each GPU without a fault."""
    usable = {g.uuid: g for g in readings.gpus if not g.fault and g.memory_free_gb is not None}
    return Room(usable, {uuid: budget(gpu) for uuid, gpu in usable.items()}, memory_free_gb)


def budget(gpu: Gpu, engines: int = 1, more_gb: float = 0.0) -> float:
    """GB that so many engines together can be given: vLLM's usual share, or where others hold memory what is free, less
    what the engines hold beside their shares (`more_gb`: on top of the usual) and a margin."""
    free = gpu.memory_free_gb or 0.0
    whole, free = WHOLE * (gpu.memory_total_gb or free), free - BEFORE_GB * engines - more_gb
    return whole if free >= whole else max(free - MARGIN_GB, 0.0)


def on_cpu(variant: Variant | None, readings: Readings) -> bool:
    """Whether it runs without a GPU: by its own word, or where nothing is said and there is none."""
    return variant.device == "cpu" if variant is not None else not readings.gpus
