"""A model's config.json → its shape: how many bytes its weights take, and what it keeps of each token. Pure.

Names and heads follow vLLM's `model_arch_config_convertor.py`, what a layer keeps follows its `kv_cache_interface.py`
(0.32). It knows no GPU, no file and no catalogue; what fits where is `need.py` and `placement.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.tensors import LINEAR_KINDS, experts, head_size, kv_heads, number, parts, quantisation, stored

INNER = ("text_config", "llm_config", "language_config")
"""Where a model that sees pictures keeps the configuration of its text part."""
WIDTHS = {"float32": 4, "float": 4}
"""Bytes a number, where it is not 2."""
WINDOW_KINDS = frozenset({"sliding_attention", "sliding_window", "local_attention", "chunked_attention"})
DEEPSEEK_V4_TOKEN = 584
"""Bytes of one compressed state of DeepSeek V4: 448 of fp8, 128 of bf16, 8 of scales."""
SPARSE_FP8_TOKEN = 656
"""Bytes a token of DeepSeek's sparse attention with an fp8 cache: 512 of fp8, 16 of scales, 128 of bf16."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What a group of like layers keeps of each token."""

    layers: int
    heads: int
    """KV heads, spread over the GPUs; 1 where there is one vector for all (MLA), which each GPU keeps whole."""
    numbers: int
    """Numbers a token and head: keys and values."""
    window: int = 0
    """Tokens it looks back; 0 is all of them."""
    ratio: int = 1
    """Tokens that share one state."""
    packed: int = 0
    """Bytes a token and head of a fixed layout, whatever the cache's type."""
    packed_fp8: int = 0
    """The same, of an fp8 cache only."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides how much memory it needs."""

    layers: int
    hidden: int
    heads: int
    widest: int
    """Numbers a token in the widest layer that is spread over the GPUs."""
    caches: tuple[Cache, ...]
    weights: float
    """Bytes that its tensors take, counted."""
    parameters: float
    state_layers: int = 0
    state: int = 0
    """Bytes that one linear layer keeps of a sequence, however long that is."""
    width: int = 2
    """Bytes of a number that is not quantised."""
    cache_type: str = "auto"
    """The type of the cache that the weights ask for."""


def shape(config: Mapping[str, Any]) -> Shape | None:
    """The shape by a config.json; None where it does not say enough to be sure of."""
    try:
        text = _text(config)
        layers, hidden, heads = (int(text[k]) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
        if min(layers, hidden, heads, int(text["vocab_size"])) < 1:
            return None
        kinds = _kinds(text, layers)
        found = parts(config, text, kinds)
        how = quantisation(config, text)
        width = WIDTHS.get(str(text.get("dtype") or text.get("torch_dtype")), 2)
        return Shape(
            layers=layers,
            hidden=hidden,
            heads=heads,
            widest=_widest(text),
            caches=_caches(text, kinds),
            weights=stored(found, how, width),
            parameters=sum(part.numbers for part in found),
            state_layers=sum(kind in LINEAR_KINDS for kind in kinds),
            state=_state(text),
            width=width,
            cache_type="fp8" if how.get("kv_cache_scheme") else "auto",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError, re.error):
        return None


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    inner: Mapping[str, Any] = next((config[key] for key in INNER if isinstance(config.get(key), Mapping)), {})
    return {**config, **inner}


def _kinds(text: Mapping[str, Any], layers: int) -> list[str]:
    """What each layer attends to."""
    given = text.get("layer_types") or text.get("layers_block_type")
    if given:
        return [str(kind) for kind in given[:layers]]
    if (linear := text.get("linear_attn_config")) and linear.get("kda_layers"):
        recurrent = {int(at) - 1 for at in linear["kda_layers"]}  # counted from 1
        return ["linear_attention" if at in recurrent else "full_attention" for at in range(layers)]
    if number(text, "linear_num_value_heads"):
        every = number(text, "full_attention_interval", default=4)
        return ["linear_attention" if (at + 1) % every else "full_attention" for at in range(layers)]
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        every = number(text, "sliding_window_pattern", "_sliding_window_pattern")
        return [
            "sliding_attention" if not every or (at + 1) % every else "full_attention" for at in range(layers)
        ]  # fmt: skip
    return ["full_attention"] * layers


def _caches(text: Mapping[str, Any], kinds: Sequence[str]) -> tuple[Cache, ...]:
    if ratios := text.get("compress_ratios"):
        return _compressed(text, [int(ratio) for ratio in ratios[: len(kinds)]])
    attending = [kind for kind in kinds if kind not in LINEAR_KINDS]
    if rank := number(text, "kv_lora_rank"):
        indexer = number(text, "index_head_dim") if number(text, "index_n_heads") else 0
        packed = SPARSE_FP8_TOKEN if indexer else 0
        latent = Cache(len(attending), 1, rank + number(text, "qk_rope_head_dim"), packed_fp8=packed)
        # A byte a number and four of scale for each 128 of them; `shared` layers reuse the one before them.
        own = [kind != "shared" for kind in (text.get("indexer_types") or attending)[: len(attending)]]
        return (latent, Cache(sum(own), 1, 0, packed=indexer + indexer // 128 * 4)) if indexer else (latent,)
    heads, size = kv_heads(text), head_size(text)
    windows = sum(kind in WINDOW_KINDS for kind in attending)
    groups = []
    if whole := len(attending) - windows:
        groups.append(Cache(whole, heads, 2 * size))
    if windows:
        groups.append(Cache(windows, heads, 2 * size, window=number(text, "sliding_window", "attention_chunk_size")))
    return tuple(groups)


def _compressed(text: Mapping[str, Any], ratios: Sequence[int]) -> tuple[Cache, ...]:
    """DeepSeek V4: each layer keeps a short window whole, and of the rest one state for `ratio` tokens."""
    window, token = number(text, "sliding_window", default=128), DEEPSEEK_V4_TOKEN
    groups = [Cache(len(ratios), 1, 0, window=window, packed=token)]
    for ratio in sorted({ratio for ratio in ratios if ratio > 1}):
        groups.append(Cache(ratios.count(ratio), 1, 0, ratio=ratio, packed=token))
    if (size := number(text, "index_head_dim")) and (fine := min((r for r in ratios if r > 1), default=0)):
        groups.append(Cache(ratios.count(fine), 1, 0, ratio=fine, packed=size + size // 128 * 4))
    return tuple(groups)


def _state(text: Mapping[str, Any]) -> int:
    """Bytes of one linear layer: the tail of its convolution and its matrix (gated delta net, Kimi delta)."""
    tail = number(text, "linear_conv_kernel_dim", default=4) - 1
    if values := number(text, "linear_num_value_heads"):
        key, value = number(text, "linear_key_head_dim"), number(text, "linear_value_head_dim")
        mixed = 2 * number(text, "linear_num_key_heads") * key + values * value
        return mixed * tail * 2 + values * key * value * WIDTHS.get(str(text.get("mamba_ssm_dtype")), 2)
    linear = text.get("linear_attn_config") or {}
    heads, size = number(linear, "num_heads"), number(linear, "head_dim")
    return 3 * heads * size * (number(linear, "short_conv_kernel_size", default=4) - 1) * 2 + heads * size * size * 4


def _widest(text: Mapping[str, Any]) -> int:
    dense = number(text, "intermediate_size")
    if not experts(text):
        return dense
    each = number(text, "moe_intermediate_size", default=dense)
    return max(each * number(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk", default=1), dense)
