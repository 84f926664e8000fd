"""How much GPU memory a model needs, and how many tokens its cache holds. Pure: shape and setup in, bytes out.

The cache is counted block by block as vLLM 0.32 does (`v1/core/kv_cache_utils.py`, `platforms/interface.py`). What a
GPU needs beside weights and cache is a rule of thumb; `overhead` says which, and what an engine reports corrects it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.shapes import Cache, Shape

GB = 10**9
BLOCK, LATENT_BLOCK, COMPRESSED_BLOCK = 16, 64, 256
"""Tokens a block: vLLM's default, and what its MLA and DeepSeek V4 kernels take."""
HYBRID_STEP, HYBRID_LATENT_STEP = 16, 128
"""The block of a model with linear layers is a multiple of this, and as large as the state of one of them."""
STATES = 2
"""Blocks of state a sequence and linear layer: vLLM keeps two while prefix caching is on, and it is by default."""
IN_FLIGHT = 2
"""Batches under way at once (asynchronous scheduling); a window layer keeps the tokens of all of them."""
BATCHED = ((160, 16384), (70, 8192), (0, 2048))
"""Tokens a step, vLLM's default for a server: by the GiB that a GPU has at least."""

# Rules of thumb, in GB. Measured by vLLM itself, as its log says: Llama 3.1 8B on an A100 (0.31): 0.28 beside torch,
# 1.55 of activations, 0.25 of graphs; Qwen 2.5 7B on an H100: 0.08, 2.1, 0.72; Qwen3.8 27B on an RTX PRO 6000, eager:
# 0.28, 2.5; a model of experts over four B200: 1.0, 6.8, 4.4. The formula lies within 40 % of each but the last.
CONTEXT_GB = 0.4
"""The driver's own part and what lies outside torch."""
TOGETHER_GB = 0.8
"""Buffers of the collectives where GPUs work together."""
WORK_GB = 1.0
"""Sampling and buffers, whatever the model."""
GRAPH_GB = 0.015
"""CUDA graphs, each layer."""

MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""What vLLM lets stand behind a number of its command line."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is run, as far as memory is concerned."""

    tensor: int = 1
    context: int = 4096
    cache_type: str = "auto"
    eager: bool = False
    batched: int = 0
    """Tokens a step; 0 leaves it to vLLM, which looks at the GPU."""
    board_gb: float = 80.0
    """The whole memory of each GPU."""
    block: int = 0
    """Tokens a block; 0 leaves it to vLLM."""
    states: int = STATES
    """Blocks of state a sequence and linear layer."""
    fixed_gb: float = 0.0
    """The cache's size on each GPU where a flag fixes it."""

    @property
    def step(self) -> int:
        """Tokens of one step at most."""
        return self.batched or next(step for least, step in BATCHED if self.board_gb * GB >= least * 2**30)


@dataclass(frozen=True, slots=True)
class Need:
    """What each GPU must hold, in GB."""

    weights_gb: float
    overhead_gb: float
    request_gb: float
    """The cache of one request of the whole context."""

    @property
    def beside_gb(self) -> float:
        """All but the cache."""
        return self.weights_gb + self.overhead_gb

    @property
    def least_gb(self) -> float:
        """Enough to start: vLLM refuses where not even one request of the whole context fits."""
        return self.beside_gb + self.request_gb


@dataclass(frozen=True, slots=True)
class Blocks:
    """The cache as vLLM deals it out: bytes of one block on one GPU, and blocks of one request of the whole context."""

    size: int
    request: int


def setup(flags: Mapping[str, Any], tensor: int, context: int) -> Setup:
    """How it is run by vLLM's flags (spelt with dashes). Raises ValueError for a number that is none."""
    return Setup(
        tensor=tensor,
        context=context,
        cache_type=str(flags.get("kv-cache-dtype", "auto")),
        eager=bool(flags.get("enforce-eager")),
        batched=count(flags, "max-num-batched-tokens"),
        block=count(flags, "block-size"),
        states=STATES if _cached(flags) else 1,
        fixed_gb=count(flags, "kv-cache-memory-bytes") / GB,
    )


def count(flags: Mapping[str, Any], name: str) -> int:
    """A flag's number as vLLM takes it: 8192, 8k (thousands) or 8K (1024); 0 if it is not given. Raises ValueError."""
    value = flags.get(name)
    if value is None:
        return 0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)", str(value).strip())
    if found is None:
        raise ValueError(f"`{name}: {value}` is no number")
    return int(float(found[1]) * MULTIPLES.get(found[2], 1))


def _cached(flags: Mapping[str, Any]) -> bool:
    """Whether prefixes are cached, as they are unless a flag says no."""
    return bool(flags.get("enable-prefix-caching", True)) and not flags.get("no-enable-prefix-caching")


def need(shape: Shape, run: Setup, weights: float | None = None, overhead_gb: float | None = None) -> Need:
    """What each GPU must hold. `weights` are the bytes of all tensors where they are known, else they are counted;
    `overhead_gb` is what an engine was seen to need beside weights and cache.
    """
    found = blocks(shape, run)
    return Need(
        (shape.weights if weights is None else weights) / run.tensor / GB,
        overhead(shape, run) if overhead_gb is None else overhead_gb,
        run.fixed_gb or found.size * found.request / GB,
    )


def overhead(shape: Shape, run: Setup) -> float:
    """GB beside weights and cache: a rule of thumb, held against what vLLM measured (see above).

    Activations are those of the widest step: twice the stream of hidden numbers and three times the widest layer.
    """
    numbers = 2 * shape.hidden + 3 * shape.widest / run.tensor
    activations = run.step * numbers * shape.width / GB
    graphs = 0.0 if run.eager else GRAPH_GB * shape.layers
    return CONTEXT_GB + WORK_GB + activations + graphs + (TOGETHER_GB if run.tensor > 1 else 0.0)


def tokens(shape: Shape, run: Setup, cache_bytes: float) -> int:
    """How many tokens a cache of so many bytes a GPU holds, as vLLM counts them: in requests of the whole context."""
    found = blocks(shape, run)
    if found.size < 1 or found.request < 1 or cache_bytes <= 0:
        return 0
    return int(cache_bytes // found.size / found.request * run.context)


def token_bytes(shape: Shape, run: Setup) -> float:
    """Bytes that one more token takes on each GPU once windows are full; linear layers take none."""
    return sum(c.layers * _bytes(c, shape, run) / c.ratio for c in shape.caches if not c.window)


def blocks(shape: Shape, run: Setup) -> Blocks:
    """The blocks of the cache. Layers of one kind share a block; several kinds share the size of the smallest."""
    size = _block(shape, run)
    whole = [c for c in shape.caches if not c.window]
    windows = [c for c in shape.caches if c.window]
    if not windows and not shape.state_layers:
        each = sum(c.layers * math.ceil(_bytes(c, shape, run) * size / c.ratio) for c in whole)
        return Blocks(each, math.ceil(run.context / size))
    pages = {(_bytes(c, shape, run), c.ratio) for c in shape.caches}
    if len(pages) != 1:
        # Kinds whose pages differ are packed by vLLM in ways that change; their bytes are added up.
        return Blocks(1, math.ceil(_added(shape, run, size)))
    counts = [(sum(c.layers for c in whole), math.ceil(run.context / size))]
    counts += [(c.layers, _window_blocks(c, run, size)) for c in windows]
    counts += [(shape.state_layers, run.states)]
    counts = [(layers, request) for layers, request in counts if layers]
    least, most = min(layers for layers, _ in counts), max(layers for layers, _ in counts)
    group = most if most < 1.5 * least else least
    page = pages.pop()[0] * size
    return Blocks(int(group * page), sum(math.ceil(layers / group) * request for layers, request in counts))


def _added(shape: Shape, run: Setup, size: int) -> float:
    total = 0.0
    for cache in shape.caches:
        page = _bytes(cache, shape, run) * size / cache.ratio
        of_them = _window_blocks(cache, run, size) if cache.window else math.ceil(run.context / size)
        total += cache.layers * page * of_them
    return total + shape.state_layers * run.states * shape.state / run.tensor


def _window_blocks(cache: Cache, run: Setup, size: int) -> int:
    held = min(cache.window - 1 + IN_FLIGHT * run.step, run.context)
    return math.ceil(held / size) + 1


def _block(shape: Shape, run: Setup) -> int:
    """Tokens a block. With linear layers it grows until a page of attention holds the state of one of them."""
    latent = any(c.heads == 1 and c.numbers and not c.window for c in shape.caches) and not run.block
    size = run.block or (LATENT_BLOCK if latent else BLOCK)
    if any(c.ratio > 1 for c in shape.caches):
        return max(size, COMPRESSED_BLOCK)
    page = max((_bytes(c, shape, run) for c in shape.caches), default=0)
    if not shape.state_layers or not page:
        return size
    step = max(HYBRID_LATENT_STEP if latent else HYBRID_STEP, size)
    return max(size, step * math.ceil(shape.state / run.tensor / (step * page)))


def _bytes(cache: Cache, shape: Shape, run: Setup) -> float:
    """Bytes of one token in one layer on each GPU. KV heads are copied where there are more GPUs than heads."""
    fp8 = run.cache_type.startswith(("fp8", "int8")) or (run.cache_type == "auto" and shape.cache_type == "fp8")
    if cache.packed or (fp8 and cache.packed_fp8):
        return cache.packed or cache.packed_fp8
    return max(1, cache.heads // run.tensor) * cache.numbers * (1 if fp8 else shape.width)
