"""Placement where several models share one place, one at a time: the largest is placed, the others with it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from serving.catalogue import Model, Swap
from serving.gpus import Gpu, Readings
from serving.placement import STEP, Misfit, Placed, Plan
from serving.spare import BEFORE_GB, MARGIN_GB, WHOLE

ASLEEP_GB = 3.0
"""What an engine that sleeps still holds of each GPU: the driver's part and its CUDA graphs. A rule of thumb that was
not measured here."""

Place = Callable[[Sequence[Model], Readings, float], Plan]
"""`placement.place`: models, readings, GB of free main memory."""


def place(models: Sequence[Model], swap: Swap, readings: Readings, main_gb: float, place_one: Place) -> Plan:
    """As `place_one`, with the members of each group counted as one: the largest of them."""
    wanted = {model.name: model for model in models}
    groups = [[wanted[name] for name in group if name in wanted] for group in swap.groups]
    largest, misfits = _largest([group for group in groups if group], readings, main_gb, place_one)
    grouped = {model.name for group in groups for model in group}
    plan = place_one([m for m in models if m.name not in grouped or m.name in largest], readings, main_gb)
    placed, misfits = {p.model.name: p for p in plan.placed}, misfits | {m.model: m for m in plan.misfits}
    for name, others in largest.items():
        together = _beside(name, others, placed.get(name), readings, main_gb, place_one)
        placed |= {p.model.name: p for p in together.placed}
        misfits |= {m.model: m for m in together.misfits if m.model not in misfits}
        _let_sleep(placed, [name, *(o.name for o in others)], swap, readings)
    for name in swap.sleep_after_s:
        if name not in grouped:
            _let_sleep(placed, [name], swap, readings)
    order = list(wanted)
    return Plan(
        tuple(placed[name] for name in order if name in placed),
        tuple(misfits[name] for name in order if name in misfits and name not in placed),
    )


def others(placed: Placed, plan: Plan, swap: Swap) -> list[str]:
    """Those that were placed where it was, and run when it does not."""
    here = {p.model.name for p in plan.placed}
    group = next((group for group in swap.groups if placed.model.name in group), ())
    return [name for name in group if name in here and name != placed.model.name]


def given_gb(plan: Plan, swap: Swap, uuid: str) -> float:
    """GB of one GPU that are given out: of each group what the largest of it may take."""
    places: dict[str, float] = {}
    for placed in plan.placed:
        if uuid in placed.gpus:
            key = min([placed.model.name, *others(placed, plan, swap)])
            places[key] = max(places.get(key, 0.0), placed.gpu_gb or 0.0)
    return sum(places.values())


def _largest(
    groups: Sequence[Sequence[Model]], readings: Readings, main_gb: float, place_one: Place
) -> tuple[dict[str, list[Model]], dict[str, Misfit]]:  # fmt: skip
    """Of each group the member that needs most, with the others that fit on this machine at all; and who does not."""
    largest: dict[str, list[Model]] = {}
    misfits: dict[str, Misfit] = {}
    for group in groups:
        sizes: dict[str, float] = {}
        for model in group:
            alone = place_one([model], readings, main_gb)
            misfits |= {misfit.model: misfit for misfit in alone.misfits}
            # What does not say takes a whole one.
            sizes |= {p.model.name: float("inf") if p.least_gb is None else p.least_gb for p in alone.placed}
        if sizes:
            first = max(sizes, key=lambda name: sizes[name])
            largest[first] = [m for m in group if m.name in sizes and m.name != first]
    return largest, misfits


def _beside(
    first: str, others: Sequence[Model], place: Placed | None, readings: Readings, main_gb: float, place_one: Place
) -> Plan:  # fmt: skip
    """Each of the others in the place of the first, as if it were alone there."""
    if place is None:
        why = f"it shares the place of {first}, for which there is none"
        return Plan((), tuple(Misfit(o.name, why, f"make room for {first}") for o in others))
    there = replace(readings, gpus=tuple(_part(g, place) for g in readings.gpus if g.uuid in place.gpus))
    if place.device == "gpu":
        main_gb = 0.0
    elif place.least_gb is not None:
        main_gb = place.least_gb
    placed: list[Placed] = []
    misfits: list[Misfit] = []
    for other in others:
        plan = place_one([other], there, main_gb)
        placed += plan.placed
        misfits += [replace(m, reason=f"in the place of {first}: {m.reason}") for m in plan.misfits]
    return Plan(tuple(placed), tuple(misfits))


def _part(gpu: Gpu, place: Placed) -> Gpu:
    """The GPU as it is for one that may take what `place` may."""
    if place.share >= WHOLE or gpu.memory_total_gb is None or gpu.memory_free_gb is None:
        return gpu
    beside = BEFORE_GB + MARGIN_GB  # as `budget` takes off again
    return replace(gpu, memory_free_gb=min(gpu.memory_free_gb, place.share * gpu.memory_total_gb + beside))


def _let_sleep(placed: dict[str, Placed], names: Sequence[str], swap: Swap, readings: Readings) -> None:
    """Let those on GPUs sleep; each then leaves what the others hold in their sleep. Where that is too much for one
    they are stopped and started instead."""
    here = [placed[name] for name in names if name in placed and placed[name].device == "gpu"]
    totals = {gpu.uuid: gpu.memory_total_gb for gpu in readings.gpus}
    smaller = [_smaller(p, ASLEEP_GB * (len(here) - 1), totals) for p in here]
    if not swap.sleep or any(p is None for p in smaller):
        return
    placed.update({p.model.name: p for p in smaller if p is not None})


def _smaller(place: Placed, less_gb: float, totals: Mapping[str, float | None]) -> Placed | None:
    """It with so much less of each GPU, able to sleep; None where that is too little, or cannot be said."""
    least, share = place.least_gb, place.share
    for uuid in place.gpus:
        total = totals.get(uuid)
        if total is None:
            return None
        share = min(share, place.share - less_gb / total)
        if least is not None and share * total < least / len(place.gpus):
            return None
    given, tokens = place.gpu_gb, place.tokens
    if given is not None and tokens and place.need is not None:
        # A smaller cache holds fewer in proportion.
        tokens = int(tokens * (given - less_gb - place.need.beside_gb) / (given - place.need.beside_gb))
    given = None if given is None else given - less_gb
    return replace(place, sleeps=True, share=math.floor(share * STEP) / STEP, gpu_gb=given, tokens=tokens)
