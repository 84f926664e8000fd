"""Which model runs on which GPUs of this host, or why it does not fit. Pure: readings in, plan out.

It plans around the memory others hold, so the readings must be taken while none of our own engines runs. It knows
nothing of processes or command lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from serving.catalogue import Model, Variant
from serving.gpus import Gpu, Readings

GPU_LIMIT, CPU_LIMIT = 256, 16
"""Requests in flight at most, where the catalogue does not say."""
WHOLE = 0.92
"""The share of a GPU's memory that vLLM takes by its own default."""
MARGIN_GB = 0.5
"""Left free beside what others hold: it grows a little between this reading and the engine's own."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A model, the variant chosen and where it runs."""

    model: Model
    variant: Variant | None
    """None: the entry lists none, and its needs are unknown."""
    device: Literal["gpu", "cpu"]
    gpus: tuple[str, ...]
    """UUIDs; empty on a CPU."""
    context: int
    """Tokens, prompt and answer together."""
    limit: int
    """Requests in flight at most."""
    share: float = WHOLE
    """The share of each GPU's whole memory it may take, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """A model that cannot run here, and what would change it."""

    model: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Plan:
    placed: tuple[Placed, ...]
    misfits: tuple[Misfit, ...]


@dataclass(slots=True)
class _Room:
    """What is left while a plan is made."""

    gpus: dict[str, Gpu]
    free: dict[str, float]
    main: float
    tenants: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """By GPU: model and the GB of that GPU it needs."""


def place(models: Sequence[Model], readings: Readings, memory_free_gb: float) -> Plan:
    """Give each model, in order, the first of its variants that fits the memory that is free.

    Models are spread over the GPUs; only where one would not fit that way are small ones put together.
    """
    spread = _fill(models, readings, memory_free_gb, together=False)
    if not spread.misfits:
        return spread
    packed = _fill(models, readings, memory_free_gb, together=True)
    return packed if len(packed.misfits) < len(spread.misfits) else spread


def suggest(models: Iterable[Model], readings: Readings, memory_free_gb: float) -> Model | None:
    """The model to offer where none was chosen; None where nothing fits.

    With GPUs the one whose fitting variant is the largest, without the smallest that a CPU serves.
    """
    fitting: list[tuple[float, Model]] = []
    for model in models:
        for placed in place([model], readings, memory_free_gb).placed:
            if placed.variant is not None:
                fitting.append(
                    (placed.variant.memory_gb if placed.device == "gpu" else -placed.variant.memory_gb, model)
                )
    return max(fitting, key=lambda found: found[0], default=(0.0, None))[1]


def _fill(models: Sequence[Model], readings: Readings, memory_free_gb: float, *, together: bool) -> Plan:
    usable = {g.uuid: g for g in readings.gpus if not g.fault and g.memory_free_gb is not None}
    room = _Room(usable, {u: g.memory_free_gb or 0.0 for u, g in usable.items()}, memory_free_gb)
    placed: list[Placed] = []
    misfits: list[Misfit] = []
    for model in models:
        found = _one(model, readings, room, together)
        if isinstance(found, Placed):
            placed.append(found)
        else:
            misfits.append(found)
    return Plan(tuple(replace(p, share=_share(p, room)) for p in placed), tuple(misfits))


def _one(model: Model, readings: Readings, room: _Room, together: bool) -> Placed | Misfit:
    if model.place == "hosted":
        return Misfit(model.name, "it is hosted and runs nowhere here", "take it out of `run:`; enable its provider")
    refused: list[str] = []
    barred: Misfit | None = None
    for variant in model.variants or (None,):
        if barred := _unvetted(model, variant):
            continue
        if _is_cpu(variant, readings):
            found = _on_cpu(model, variant, room)
        elif room.gpus:
            found = _on_gpus(model, variant, room, together)
        else:
            found = "it needs a GPU" if readings.gpus else "it needs a GPU; there is none here"
        if isinstance(found, Placed):
            return found
        refused.append(found)
    if not refused and barred is not None:
        return barred
    return Misfit(model.name, "; ".join([*dict.fromkeys(refused), *_others(readings)]), _remedy(model, readings))


def _is_cpu(variant: Variant | None, readings: Readings) -> bool:
    return variant.device == "cpu" if variant is not None else not readings.gpus


def _unvetted(model: Model, variant: Variant | None) -> Misfit | None:
    """Code that comes with weights runs only at a fixed revision that someone has read."""
    args: Mapping[str, object] = {**model.args, **(variant.args if variant else {})}
    if not (model.remote_code or any(key.replace("_", "-") == "trust-remote-code" and on for key, on in args.items())):
        return None
    own = variant is not None and bool(variant.repo)
    revision = (variant.revision if variant else "") or ("" if own else model.revision)
    lines = []
    if not revision:
        where = f" in its variant {variant.name!r}" if variant is not None and own else ""
        lines.append(f"`revision: <commit>`{where}")
    if model.vetted is None:
        lines.append("`vetted: {by: <who read the code>, date: <YYYY-MM-DD>}`")
    if not lines:
        return None
    return Misfit(
        model.name,
        "its weights bring Python code that would run here, and nobody has vouched for it",
        f"in headgate.yaml, under `models:` `{model.name}:`, add {' and '.join(lines)}",
    )


def _placed(model: Model, variant: Variant | None, gpus: tuple[str, ...]) -> Placed:
    context = min(model.context, variant.context) if variant is not None and variant.context else model.context
    limit = model.limit or (GPU_LIMIT if gpus else CPU_LIMIT)
    return Placed(model, variant, "gpu" if gpus else "cpu", gpus, context, limit)


def _on_cpu(model: Model, variant: Variant | None, room: _Room) -> Placed | str:
    need = variant.memory_gb if variant is not None else 0.0
    if need > room.main:
        return f"{_called(variant)} needs {need:g} GB of main memory, {max(room.main, 0):.1f} GB are free"
    room.main -= need
    return _placed(model, variant, ())


def _on_gpus(model: Model, variant: Variant | None, room: _Room, together: bool) -> Placed | str:
    number = variant.gpus if variant is not None else 1
    best: list[str] = []
    for group in _equal(variant, room):
        # An entry without variants does not say what it needs, so it gets a GPU for itself.
        need = variant.memory_gb / number if variant is not None else max(room.free[u] for u in group)
        fits = [u for u in group if room.free[u] >= need and (variant is not None or not room.tenants.get(u))]
        if len(fits) < number:
            continue
        # Empty ones first, or filled ones first; then the tightest, so that large ones stay free for large models.
        fits.sort(key=lambda u: (bool(room.tenants.get(u)) != together, room.free[u], room.gpus[u].index))
        best = fits[:number]
        for uuid in best:
            room.free[uuid] -= need
            room.tenants.setdefault(uuid, []).append((model.name, need))
        return _placed(model, variant, tuple(sorted(best, key=lambda u: room.gpus[u].index)))
    return _too_small(variant, room)


def _equal(variant: Variant | None, room: _Room) -> list[list[str]]:
    """The usable GPUs in groups of one kind, the kind with the least memory first."""
    groups: dict[str, list[str]] = {}
    for uuid, gpu in room.gpus.items():
        if variant is None or not variant.compute or (gpu.compute or 0) >= variant.compute:
            groups.setdefault(gpu.name, []).append(uuid)
    return sorted(groups.values(), key=lambda group: max(room.gpus[u].memory_total_gb or 0 for u in group))


def _too_small(variant: Variant | None, room: _Room) -> str:
    if variant is None:
        return "it names no variants and so takes a whole GPU, and none is left"
    groups = _equal(variant, room)
    if not groups:
        return f"{_called(variant)} needs GPUs of compute capability {variant.compute:g}"
    free = max(room.free[u] for group in groups for u in group)
    largest = max(len(group) for group in groups)
    each = f", {variant.memory_gb / variant.gpus:.4g} GB on each" if variant.gpus > 1 else ""
    count = f"; there are {largest} equal ones" if largest < variant.gpus else ""
    return (
        f"{_called(variant)} needs {variant.memory_gb:g} GB over {variant.gpus} GPU{'s' * (variant.gpus > 1)}{each}; "
        f"the largest free is {free:.1f} GB{count}"
    )


def _others(readings: Readings) -> list[str]:
    """GPUs that were not counted, and why."""
    faults = [f"GPU {g.index} is not used: {g.fault}" for g in readings.gpus if g.fault]
    unknown = [
        f"GPU {g.index} does not say how much memory is free"
        for g in readings.gpus
        if not g.fault and g.memory_free_gb is None
    ]
    return [*faults, *unknown, *([readings.note] if readings.note else [])]


def _remedy(model: Model, readings: Readings) -> str:
    ways = ["run fewer or smaller models", f"add a variant that fits under `models:` `{model.name}:` in headgate.yaml"]
    if not readings.gpus:
        ways.append("or attach a server that runs elsewhere with `attach:`")
    elif any(g.processes for g in readings.gpus):
        ways.append("or end what else holds GPU memory")
    else:
        ways.append("or attach a server that runs on larger GPUs with `attach:`")
    return ", ".join(ways)


def _called(variant: Variant | None) -> str:
    return f"variant {variant.name}" if variant is not None else "it"


def _share(placed: Placed, room: _Room) -> float:
    """What it needs, and of what is left over a part in proportion; on the GPU where that is least."""
    shares = [WHOLE]
    for uuid in placed.gpus:
        gpu, tenants = room.gpus[uuid], room.tenants[uuid]
        needs = sum(need for _, need in tenants)
        mine = next(need for name, need in tenants if name == placed.model.name)
        total = gpu.memory_total_gb or gpu.memory_free_gb or 1.0
        free = min(gpu.memory_free_gb or 0.0, WHOLE * total)
        if (gpu.memory_free_gb or 0.0) < WHOLE * total:
            free -= MARGIN_GB
        shares.append(free * mine / needs / total)
    # Rounded down: two shares of one GPU must never add up to more than is free.
    return int(min(shares) * 1000) / 1000
