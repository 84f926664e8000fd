"""Why a model does not fit here, and the flag or the machine that would change it: each was tried. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from serving.catalogue import Model, Variant
from serving.gpus import Readings
from serving.options import SIZES, Option, divides, flags
from serving.spare import WHOLE, Room, on_cpu

CONTEXTS = (524288, 262144, 131072, 65536, 32768, 16384, 8192, 4096)
"""Shorter contexts that are tried, in tokens."""
QUANTISED = ("fp8", "fp4", "int4", "int8", "w4", "w8", "awq", "gptq")


def explained(model: Model, ways: Sequence[Option], readings: Readings, left: Room) -> tuple[str, str]:
    """The reason for each variant, as the catalogue writes it, and what would change it."""
    refused: list[str] = []
    for variant in model.variants or (None,):
        first = next((way for way in ways if way.variant is variant), None)
        if first is None:
            continue
        if on_cpu(variant, readings):
            need = variant.memory_gb if variant is not None else 0.0
            refused.append(f"{_called(variant)} needs {need:g} GB of main memory, {max(left.main, 0):.1f} GB are free")
        elif left.gpus:
            refused.append(_too_small(first, left))
        else:
            refused.append("it needs a GPU" if readings.gpus else "it needs a GPU; there is none here")
    reasons = "; ".join([*dict.fromkeys(refused), *_others(readings)])
    return reasons, _remedy(model, ways, readings, left)


def unvetted(model: Model, variant: Variant | None) -> tuple[str, str] | None:
    """Code that comes with weights runs only at a fixed revision that someone has read: why not, and what to write."""
    if not (model.remote_code or flags(model, variant).get("trust-remote-code")):
        return None
    lines = []
    if not model.source(variant)[1]:
        where = f" in its variant {variant.name!r}" if variant is not None and variant.repo else ""
        lines.append(f"`revision: <commit>`{where}")
    if model.vetted is None:
        lines.append("`vetted: {by: <who read the code>, date: <YYYY-MM-DD>}`")
    if not lines:
        return None
    return (
        "its weights bring Python code that would run here, and nobody has vouched for it",
        f"in headgate.yaml, under `models:` `{model.name}:`, add {' and '.join(lines)}",
    )


def _too_small(way: Option, left: Room) -> str:
    variant = way.variant
    if variant is None:
        return "it names no variants and so takes a whole GPU, and none is left"
    groups = left.groups(variant.compute)
    if groups:
        way, _ = left.fitting(way, groups[-1])
    else:
        return f"{_called(variant)} needs GPUs of compute capability {variant.compute:g}"
    free = max(left.free[u] for group in groups for u in group)
    largest = max(len(group) for group in groups)
    parts = ""
    if way.need is not None:
        parts = (
            f" ({way.need.weights_gb:.4g} of weights, {way.need.overhead_gb:.2g} beside them, "
            f"{way.need.request_gb:.3g} for one request of {way.context} tokens)"
        )
    whole = way.need.least_gb * way.gpus if way.need is not None else variant.memory_gb
    each = f", {way.each_gb:.4g} GB on each" if way.gpus > 1 else ""
    count = f"; there {'is 1' if largest == 1 else f'are {largest} equal ones'}" if largest < way.gpus else ""
    return (
        f"{_called(variant)} needs {whole:.4g} GB over {way.gpus} GPU{'s' * (way.gpus > 1)}{each}{parts}; "
        f"at most {free:.1f} GB of one can be given out{count}"
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


def _remedy(model: Model, ways: Sequence[Option], readings: Readings, left: Room) -> str:
    tried = list(dict.fromkeys(_tried(ways, left)))
    if tried:
        return f"it would fit {', or '.join(tried)} (`models:` `{model.name}:` in headgate.yaml)"
    chances = [
        "run fewer or smaller models, or some of them in turn (`swap.groups:`)",
        f"add a variant that fits under `models:` `{model.name}:` in headgate.yaml",
    ]
    if not readings.gpus:
        chances.append("or attach a server that runs elsewhere with `attach:`")
    elif any(g.processes for g in readings.gpus):
        chances.append("or end what else holds GPU memory")
    else:
        chances.append("or attach a server that runs on larger GPUs with `attach:`")
    return ", ".join(chances)


def _tried(ways: Sequence[Option], left: Room) -> Iterator[str]:
    """What would make it fit, for each kind of change the one that changes least. Only where its shape is known."""
    known = [way for way in ways if way.need is not None and left.gpus]
    for change in (_shorter, _smaller_cache, _both, _fewer_bits, _more_gpus):
        found = next((said for way in known if (said := change(way, left))), "")
        if found:
            yield found


def _fits(way: Option, left: Room) -> bool:
    return any(len(left.fitting(way, group)[1]) >= way.gpus for group in left.groups(way.compute))


def _shorter(way: Option, left: Room) -> str:
    longest = next((c for c in CONTEXTS if c < way.context and _fits(way.changed(context=c), left)), 0)
    return f"with `context: {longest}` ({_on(way)})" if longest else ""


def _smaller_cache(way: Option, left: Room) -> str:
    if way.run is None or way.run.cache_type != "auto":
        return ""
    return f"with `kv-cache-dtype: fp8` ({_on(way)})" if _fits(way.changed(cache_type="fp8"), left) else ""


def _both(way: Option, left: Room) -> str:
    if way.run is None or way.run.cache_type != "auto" or _shorter(way, left) or _smaller_cache(way, left):
        return ""
    shorter = _shorter(way.changed(cache_type="fp8"), left)
    return f"{shorter} and `kv-cache-dtype: fp8`" if shorter else ""


def _fewer_bits(way: Option, left: Room) -> str:
    """Weights of 16 bits, where the entry has no others: those of 8 take half."""
    known, variant = way.known, way.variant
    if known is None or known.shape is None or variant is None or any(q in variant.name.lower() for q in QUANTISED):
        return ""
    weights = known.weights or known.shape.weights
    if weights < 1.8 * known.shape.parameters:
        return ""
    half = replace(way, known=replace(known, weights=weights / 2)).changed()
    return f"as FP8 weights ({weights / 2e9:.3g} GB, {_on(way)})" if _fits(half, left) else ""


def _more_gpus(way: Option, left: Room) -> str:
    """More GPUs of a kind that is here, each as free as it can be."""
    if way.known is None or way.known.shape is None:
        return ""
    for size in (s for s in SIZES if divides(way.known.shape, s)):
        more = way.changed(tensor=size)
        for group in left.groups(way.compute):
            gpu = left.gpus[group[0]]
            total = gpu.memory_total_gb or gpu.memory_free_gb or 0.0
            here = more.changed(board_gb=total)
            if size > len(group) and here.each_gb is not None and here.each_gb <= WHOLE * total:
                return f"over {size} GPUs of the kind {gpu.name} ({_called(way.variant)})"
    return ""


def _on(way: Option) -> str:
    return f"{_called(way.variant)}, {way.gpus} GPU{'s' * (way.gpus > 1)}"


def _called(variant: Variant | None) -> str:
    return f"variant {variant.name}" if variant is not None else "it"
