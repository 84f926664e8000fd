"""The ways in which a model could be run on GPUs, and what each of them needs. Pure: no machine is known here.

First the catalogue's variants as they are written; then, where the model's shape is known, the same weights over other
numbers of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from serving import need as needs
from serving.catalogue import Model, Variant
from serving.need import Need, Setup
from serving.shapes import Shape, shape

SIZES = (1, 2, 4, 8, 16)
"""Numbers of GPUs that are tried beside the catalogue's own: what a machine has, and what divides heads and experts."""
OTHER_PARALLELISM = ("data-parallel-size", "pipeline-parallel-size", "decode-context-parallel-size")


@dataclass(frozen=True, slots=True)
class Known:
    """What was found out of one set of weights; all of it may be missing."""

    shape: Shape | None = None
    weights: float | None = None
    """Bytes of its tensors."""
    overhead_gb: float | None = None
    """What an engine was seen to need of each GPU beside weights and cache."""


Found = Mapping[tuple[str, str], Known]
"""By model and variant."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run a model on GPUs."""

    variant: Variant | None
    gpus: int
    context: int
    each_gb: float | None
    """GB of each GPU; None: unknown, so a whole one."""
    known: Known | None = None
    """What the need was worked out by; None: it is the catalogue's `memory_gb`."""
    run: Setup | None = None
    need: Need | None = None

    @property
    def compute(self) -> float:
        """The lowest CUDA compute capability it runs on."""
        return self.variant.compute if self.variant is not None else 0.0

    def tokens(self, cache_gb: float) -> int | None:
        """How many tokens a cache of so many GB on each GPU holds."""
        if self.known is None or self.known.shape is None or self.run is None:
            return None
        return needs.tokens(self.known.shape, self.run, (self.run.fixed_gb or cache_gb) * needs.GB)

    def changed(self, **how: Any) -> Option:
        """The same with another setup (`context`, `tensor`, `board_gb`, ...); itself where its shape is not known."""
        if self.known is None or self.known.shape is None or self.run is None:
            return self
        run = replace(self.run, **how)
        own = self.known.overhead_gb if run.tensor == self.run.tensor else None
        found = needs.need(self.known.shape, run, self.known.weights, own)
        return replace(self, gpus=run.tensor, context=run.context, run=run, need=found, each_gb=found.least_gb)


def flags(model: Model, variant: Variant | None) -> dict[str, Any]:
    """The flags of the entry with the variant's laid over, spelt with dashes."""
    both = {**model.args, **(variant.args if variant is not None else {})}
    return {key.replace("_", "-"): value for key, value in both.items()}


def share(given: Mapping[str, Any]) -> float | None:
    """The share of each GPU that the flags ask for; None: they do not say. Raises ValueError."""
    asked = given.get("gpu-memory-utilization")
    try:
        return None if asked is None else float(asked)
    except (TypeError, ValueError):
        raise ValueError(f"`gpu-memory-utilization: {asked}` is no number") from None


def options(model: Model, variant: Variant | None, found: Found | None = None) -> list[Option]:
    """The ways to run this variant, the catalogue's own first. Raises ValueError for a flag that is no number."""
    first = _as_written(model, variant, _known(model, variant, found))
    return [first, *(first.changed(tensor=number) for number in _other_sizes(model, variant, first))]


def _as_written(model: Model, variant: Variant | None, known: Known) -> Option:
    number = variant.gpus if variant is not None else 1
    context = min(model.context, variant.context) if variant is not None and variant.context else model.context
    given = flags(model, variant)
    plain = not any(needs.count(given, key) > 1 for key in OTHER_PARALLELISM)
    # What is no number is refused here, and not where it is used.
    share(given)
    needs.count(given, "max-num-seqs")
    if known.shape is not None and plain and variant is not None:
        run = needs.setup(given, number, context)
        what = needs.need(known.shape, run, known.weights, known.overhead_gb)
        return Option(variant, number, context, what.least_gb, known, run, what)
    return Option(variant, number, context, variant.memory_gb / number if variant is not None else None)


def _known(model: Model, variant: Variant | None, found: Found | None) -> Known:
    """What was found, with the catalogue's own words for what was not."""
    seen = (found or {}).get((model.name, variant.name if variant is not None else ""), Known())
    own = shape(model.shape) if model.shape and seen.shape is None else None
    stated = variant.weights_gb * needs.GB if variant is not None and variant.weights_gb else None
    return Known(seen.shape or own, seen.weights or stated, seen.overhead_gb)


def _other_sizes(model: Model, variant: Variant | None, first: Option) -> Iterator[int]:
    if first.known is None or first.known.shape is None or "tensor-parallel-size" in flags(model, variant):
        return
    yield from (size for size in SIZES if size != first.gpus and divides(first.known.shape, size))


def divides(of: Shape, size: int) -> bool:
    """Whether vLLM can spread it over so many GPUs: they share the heads evenly, or each KV head evenly."""
    shared = all(c.heads == 1 or c.heads % size == 0 or size % c.heads == 0 for c in of.caches)
    return of.heads % size == 0 and shared
