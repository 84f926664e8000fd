"""Which model runs on which GPUs of this host, or why it does not fit. Pure: readings in, plan out.

It plans around the memory others hold, so the readings must be taken while none of our own engines runs. It knows
nothing of processes or command lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.catalogue import Model, Variant
from serving.gpus import Readings
from serving.need import TOGETHER_GB, Need, count
from serving.options import Found, Option, flags, options
from serving.options import share as asked_share
from serving.remedies import explained, unvetted
from serving.spare import WHOLE, Room, budget, on_cpu, room

GPU_LIMIT, CPU_LIMIT = 256, 16
"""Requests in flight at most, where the catalogue does not say."""
REQUEST = 2048
"""Tokens a request is reckoned with where the limit follows from the cache: a rule of thumb for chat."""
STEP = 10_000
"""Shares are written with four digits."""
LOOKS = 10_000
"""Placements tried at most where not all models fit in order; beyond it a plan with more of them may be missed."""


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
    need: Need | None = None
    """What each GPU must hold; None: only the catalogue's `memory_gb` is known."""
    tokens: int | None = None
    """Tokens its cache will hold."""
    gpu_gb: float | None = None
    """What it may take of each GPU."""
    sleeps: bool = False
    """Whether its engine can sleep: its weights then wait in main memory, and its place is free."""

    @property
    def least_gb(self) -> float | None:
        """GB that it needs to start, on all its GPUs together or of main memory; None is unknown."""
        if self.need is not None:
            return self.need.least_gb * len(self.gpus)
        return self.variant.memory_gb if self.variant is not None else None

    @property
    def taken(self) -> float:
        """The share of each GPU's whole memory that its engine will take."""
        return _taken(self.share, flags(self.model, self.variant))


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


Pick = tuple[Option, tuple[str, ...]]
"""A way to run a model, and the GPUs it was given; none: the CPU."""


def place(
    models: Sequence[Model], readings: Readings, memory_free_gb: float, found: Found | None = None, *, vet: bool = True
) -> Plan:  # fmt: skip
    """Give each model, in order, the first of its variants that fits the memory that is free.

    Models are spread over the GPUs; only where one would not fit that way are small ones put together. Where some
    still do not fit, as many are placed as can be, the first named with their first variants. `found` is what is known
    of weights that are here and of engines that ran; `vet` bars weights whose code nobody has vouched for.
    """
    ways: dict[str, list[Option]] = {}
    barred: dict[str, tuple[str, str]] = {}
    for model in models:
        refusals = [(variant, unvetted(model, variant) if vet else None) for variant in model.variants or (None,)]
        try:
            listed = [options(model, variant, found) for variant, refused in refusals if refused is None]
        except ValueError as odd:
            barred[model.name] = f"a flag of it cannot be read: {odd}", f"mend its `args:` ({_entry(model)})"
            continue
        if model.place == "hosted":
            barred[model.name] = "it is hosted and runs nowhere here", "take it out of `run:`; enable its provider"
        elif not listed:
            barred[model.name] = next(refused for _, refused in reversed(refusals) if refused)
        else:
            ways[model.name] = [way[0] for way in listed] + [other for way in listed for other in way[1:]]
    picks, left = _best(ways, readings, memory_free_gb)
    placed = [_placed(model, *picks[model.name], left) for model in models if model.name in picks]
    reasons = {
        model.name: barred.get(model.name) or explained(model, ways[model.name], readings, left)
        for model in models
        if model.name not in picks
    }
    return Plan(tuple(placed), tuple(Misfit(name, *why) for name, why in reasons.items()))


def _entry(model: Model) -> str:
    return f"`models:` `{model.name}:` in headgate.yaml"


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


def _best(ways: Mapping[str, list[Option]], readings: Readings, main: float) -> tuple[dict[str, Pick], Room]:
    """Spread; else put together; else as many as can be."""
    best: tuple[dict[str, Pick], Room] | None = None
    for together in (False, True):
        left = room(readings, main)
        picks = _in_order(ways, readings, left, together)
        if best is None or len(picks) > len(best[0]):
            best = picks, left
        if len(picks) == len(ways):
            return best
    assert best is not None
    left = room(readings, main)
    more = _Search(ways, readings, left, len(best[0])).picks
    if more is None:
        return best
    for name, pick in more.items():
        _take(name, pick, left)
    return more, left


def _in_order(ways: Mapping[str, list[Option]], readings: Readings, left: Room, together: bool) -> dict[str, Pick]:
    picks: dict[str, Pick] = {}
    for name, way in ways.items():
        found = next((pick for option in way if (pick := _first(option, readings, left, together))), None)
        if found is not None:
            _take(name, found, left)
            picks[name] = found
    return picks


def _first(option: Option, readings: Readings, left: Room, together: bool) -> Pick | None:
    """The best place for it; None where there is no room."""
    if on_cpu(option.variant, readings):
        return (option, ()) if _main(option) <= left.main else None
    for group in left.groups(option.compute):
        here, fits = left.fitting(option, group)
        if len(fits) >= option.gpus:
            # Empty ones first, or filled ones first; then the tightest, so that large ones stay free for large models.
            fits.sort(key=lambda u: (bool(left.tenants.get(u)) != together, left.free[u], left.gpus[u].index))
            return here, tuple(sorted(fits[: option.gpus], key=lambda u: left.gpus[u].index))
    return None


def _main(option: Option) -> float:
    return option.variant.memory_gb if option.variant is not None else 0.0


def _take(name: str, pick: Pick, left: Room) -> None:
    option, uuids = pick
    if not uuids:
        left.main -= _main(option)
        return
    # What does not say how much it needs gets a GPU for itself.
    left.take(name, uuids, max(left.free[u] for u in uuids) if option.each_gb is None else option.each_gb)


class _Search:
    """The placement of most models: every choice of variants and GPUs, those that are alike once.

    Greedy choices alone could place fewer models on a larger machine, where the first of them takes a larger variant.
    """

    def __init__(self, ways: Mapping[str, list[Option]], readings: Readings, left: Room, beaten: int) -> None:
        self.picks: dict[str, Pick] | None = None
        """The first placement found of most models; None where none has more than `beaten`."""
        self._readings, self._left, self._most, self._looks = readings, left, beaten, 0
        # What fits nowhere on the empty machine fits nowhere.
        places = {name: [option for option in way if any(self._places(option))] for name, way in ways.items()}
        self._ways = [(name, way) for name, way in places.items() if way]
        self._least = [min(map(self._whole, way)) for _, way in self._ways]
        self._look(0, {})

    def _look(self, at: int, picks: dict[str, Pick]) -> None:
        self._looks += 1
        if len(picks) > self._most:
            self._most, self.picks = len(picks), dict(picks)
        if self._looks > LOOKS or len(picks) + self._hope(at) <= self._most:
            return
        name, way = self._ways[at]
        for pick in itertools.chain.from_iterable(map(self._places, way)):
            main, before = self._left.main, {uuid: self._left.free[uuid] for uuid in pick[1]}
            _take(name, pick, self._left)
            self._look(at + 1, {**picks, name: pick})
            self._left.give_back(before)
            self._left.main = main
        self._look(at + 1, picks)

    def _hope(self, at: int) -> int:
        """How many of the rest could be placed at most, if all memory were one."""
        free = sum(self._left.free.values())
        needs = itertools.accumulate(sorted(self._least[at:]))
        return sum(need <= free for need in needs)

    def _whole(self, option: Option) -> float:
        """The least of GPU memory that it takes, over all its GPUs."""
        if on_cpu(option.variant, self._readings):
            return 0.0
        here = (self._left.fitting(option, group)[0].each_gb for group in self._left.groups(option.compute))
        return option.gpus * min((each or 0.0 for each in here), default=0.0)

    def _places(self, option: Option) -> Iterator[Pick]:
        left = self._left
        if on_cpu(option.variant, self._readings):
            if _main(option) <= left.main:
                yield option, ()
            return
        for group in left.groups(option.compute):
            here, fits = left.fitting(option, group)
            alike: dict[tuple[float, bool], list[str]] = {}
            for uuid in sorted(fits, key=lambda u: left.gpus[u].index):
                alike.setdefault((left.free[uuid], bool(left.tenants.get(uuid))), []).append(uuid)
            for uuids in _chosen(list(alike.values()), option.gpus):
                yield here, tuple(sorted(uuids, key=lambda u: left.gpus[u].index))


def _chosen(alike: Sequence[Sequence[str]], number: int) -> Iterator[tuple[str, ...]]:
    """So many of all, each choice among those that are alike once."""
    if number == 0:
        yield ()
    elif alike:
        for count in range(min(len(alike[0]), number), -1, -1):
            for others in _chosen(alike[1:], number - count):
                yield (*alike[0][:count], *others)


def _placed(model: Model, option: Option, uuids: tuple[str, ...], left: Room) -> Placed:
    given_flags = flags(model, option.variant)
    # What gets more than it runs at once lets them wait where the router can neither order nor divert them.
    most = count(given_flags, "max-num-seqs") * max(1, count(given_flags, "data-parallel-size")) or GPU_LIMIT
    if not uuids:
        return Placed(model, option.variant, "cpu", (), option.context, model.limit or min(CPU_LIMIT, most))
    share = _share(model.name, uuids, left)
    given = _taken(share, given_flags) * min(
        left.gpus[u].memory_total_gb or left.gpus[u].memory_free_gb or 0.0 for u in uuids
    )
    tokens = option.tokens(given - option.need.beside_gb) if option.need is not None else None
    limit = model.limit or min(_limit(tokens, option.context), most)
    return Placed(model, option.variant, "gpu", uuids, option.context, limit, share, option.need, tokens, given)


def _taken(share: float, given: Mapping[str, Any]) -> float:
    """What the flags ask for, but no more than its share where others hold memory there, too."""
    asked = asked_share(given)
    wanted = WHOLE if asked is None else asked
    return wanted if share >= WHOLE else min(wanted, share)


def _limit(tokens: int | None, context: int) -> int:
    """Requests at once that the cache holds, each of a usual length."""
    return GPU_LIMIT if tokens is None else max(1, min(GPU_LIMIT, tokens // min(context, REQUEST)))


def _share(model: str, uuids: Sequence[str], left: Room) -> float:
    """What it needs, and of what is left over a part in proportion; on the GPU where that is least."""
    shares, least = [WHOLE], 0.0
    for uuid in uuids:
        gpu, tenants = left.gpus[uuid], left.tenants[uuid]
        mine = next(each for name, each in tenants if name == model)
        total = gpu.memory_total_gb or gpu.memory_free_gb or 1.0
        free = budget(gpu, len(tenants), TOGETHER_GB if len(uuids) > 1 else 0.0)
        shares.append(free * mine / sum(each for _, each in tenants) / total)
        least = max(least, mine / total)
    # Rounded down, or up to what it needs: the margin is more than all that rounding up can add.
    return max(math.floor(min(shares) * STEP), math.ceil(least * STEP)) / STEP
