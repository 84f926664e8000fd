"""A model's weights by parts, and the bytes they take as they are quantised. Pure: a config.json in, numbers out.

Norms and biases are too small to count. Where the size of the tensors is known, nobody asks here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LINEAR_KINDS = frozenset({"linear_attention", "mamba", "recurrent"})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the weights: numbers, and whether the quantisation spares it."""

    name: str
    example: str
    """The name of one of its tensors, to hold against the names that a quantisation spares."""
    numbers: float
    layers: int = 1


def number(text: Mapping[str, Any], *names: str, default: int = 0) -> int:
    """The first of these that is said."""
    found = next((text[name] for name in names if text.get(name) is not None), default)
    return int(found[0] if isinstance(found, list) else found)


def kv_heads(text: Mapping[str, Any]) -> int:
    """As vLLM reads them, by family."""
    names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
    return number(text, *names, default=number(text, "num_attention_heads"))


def head_size(text: Mapping[str, Any]) -> int:
    named = number(text, "head_dim", "hidden_size_per_head")
    return named or int(text["hidden_size"]) // int(text["num_attention_heads"])


def experts(text: Mapping[str, Any]) -> int:
    return number(text, "num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")


def parts(config: Mapping[str, Any], text: Mapping[str, Any], kinds: Sequence[str]) -> list[Part]:
    """The weights by parts; norms and biases are too small to count."""
    hidden, layers, words = int(text["hidden_size"]), len(kinds), int(text["vocab_size"])
    linear = sum(kind in LINEAR_KINDS for kind in kinds)
    choices, attention, mixing = experts(text), _attention(text), _mixing(text)
    dense = number(text, "first_k_dense_replace") if choices else layers
    gated = 3 * hidden
    each = gated * number(text, "moe_intermediate_size", "intermediate_size")
    shared = gated * (
        number(text, "shared_expert_intermediate_size")
        or number(text, "n_shared_experts") * number(text, "moe_intermediate_size")
    )
    sparse = layers - dense
    ahead = number(text, "num_nextn_predict_layers", "mtp_num_hidden_layers")
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    one = attention + (choices * each + shared if choices else gated * number(text, "intermediate_size"))
    found = [
        Part("words", "model.embed_tokens", words * hidden),
        Part("head", "lm_head", 0 if tied else words * hidden),
        Part("attention", "model.layers.0.self_attn.o_proj", attention * (layers - linear), layers - linear),
        Part("linear", "model.layers.0.linear_attn.out_proj", mixing * linear, linear),
        Part("dense", "model.layers.0.mlp.down_proj", gated * number(text, "intermediate_size") * dense, dense),
        Part("shared", "model.layers.0.mlp.shared_experts.down_proj", shared * sparse, sparse),
        Part("experts", "model.layers.0.mlp.experts.0.down_proj", choices * each * sparse, sparse),
        Part("gate", "model.layers.0.mlp.gate", choices * hidden * sparse, sparse),
        # Layers that guess several tokens ahead lie in the repository, and are loaded with `speculative-config` only.
        Part("ahead", "mtp.layers.0.mlp.experts.0.down_proj", (one + 2 * hidden * hidden) * ahead, ahead),
        Part("vision", "model.visual.blocks.0.attn.proj", _vision(config)),
    ]
    return [part for part in found if part.numbers > 0]


def _attention(text: Mapping[str, Any]) -> float:
    """Numbers of one layer that attends."""
    hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
    low, index = number(text, "q_lora_rank"), number(text, "index_n_heads") * number(text, "index_head_dim")
    indexer = (low or hidden) * index + hidden * (number(text, "index_head_dim") + number(text, "index_n_heads"))
    indexer = indexer if index else 0
    if text.get("compress_ratios"):
        size, out = head_size(text), number(text, "o_lora_rank")
        return hidden * low + low * heads * size + hidden * size + heads * size * out + (
            number(text, "o_groups") * out * hidden) + indexer  # fmt: skip
    if rank := number(text, "kv_lora_rank"):
        rope, plain = number(text, "qk_rope_head_dim"), number(text, "qk_nope_head_dim")
        value = number(text, "v_head_dim")
        query = hidden * low + low * heads * (rope + plain) if low else hidden * heads * (rope + plain)
        return query + hidden * (rank + rope) + rank * heads * (plain + value) + heads * value * hidden + indexer
    size, family = head_size(text), str(text.get("model_type", ""))
    gate = text.get("attn_output_gate", family.startswith(("qwen3_5", "qwen3_next")))
    return hidden * size * (heads * (3 if gate else 2) + 2 * kv_heads(text))


def _mixing(text: Mapping[str, Any]) -> float:
    """Numbers of one linear layer."""
    hidden = int(text["hidden_size"])
    if values := number(text, "linear_num_value_heads"):
        keys = number(text, "linear_num_key_heads") * number(text, "linear_key_head_dim")
        inner = values * number(text, "linear_value_head_dim")
        return hidden * (2 * keys + 3 * inner + 2 * values)
    linear = text.get("linear_attn_config") or {}
    size = number(linear, "head_dim")
    inner = number(linear, "num_heads") * size
    return hidden * inner * 4 + 2 * (hidden * size + size * inner) + hidden * number(linear, "num_heads")


def _vision(config: Mapping[str, Any]) -> float:
    seen = config.get("vision_config")
    if not isinstance(seen, Mapping):
        return 0
    hidden, depth = number(seen, "hidden_size", "vt_hidden_size"), number(seen, "depth", "num_hidden_layers",
                                                                            "vt_num_hidden_layers")  # fmt: skip
    inner = number(seen, "intermediate_size", "vt_intermediate_size", default=4 * hidden)
    return depth * (4 * hidden * hidden + 2 * hidden * inner)


# Quantisation.


def quantisation(config: Mapping[str, Any], text: Mapping[str, Any]) -> Mapping[str, Any]:
    found = text.get("quantization_config") or config.get("quantization_config") or config.get("compression_config")
    return found if isinstance(found, Mapping) else {}


def stored(parts: Sequence[Part], how: Mapping[str, Any], width: int) -> float:
    """All parts together. Words, gates and pictures stay as they are, and so does what the quantisation spares."""
    spared = how.get("ignore") or how.get("modules_to_not_convert") or how.get("exclude_modules") or ()
    bits, total = _bits(how), 0.0
    for part in parts:
        whole = part.name in ("words", "head", "gate", "vision") or bits is None
        kept = 1.0 if whole else _spared(part, [str(name) for name in spared])
        small = bits or 8.0 * width
        if part.name in ("experts", "ahead") and how.get("expert_dtype") == "fp4":
            small = 4.25
        total += part.numbers * (kept * width + (1 - kept) * small / 8)
    return total


def _bits(how: Mapping[str, Any]) -> float | None:
    """Bits a weight with its scales; None where nothing is quantised, or in a way that is not known here."""
    method = str(how.get("quant_method", "")).lower().replace("_", "-")
    algorithm = str((how.get("quantization") or how).get("quant_algo", "")).upper()
    groups = how.get("config_groups") or {}
    weights: Mapping[str, Any] = next(
        (g["weights"] for g in groups.values() if isinstance(g, Mapping) and g.get("weights")), {}
    )
    if method in ("gptq", "awq", "gptq-marlin", "awq-marlin", "auto-round"):
        bits, size = number(how, "bits", "w_bit", default=4), number(how, "group_size", "q_group_size", default=128)
        return bits + ((16 + bits) / size if size > 0 else 0)
    if weights:
        bits, size = int(weights.get("num_bits", 8)), int(weights.get("group_size") or 0)
        scale = 8 if bits == 4 and weights.get("type") == "float" else 16
        return bits + (scale / size if size > 0 else 0)
    if "NVFP4" in algorithm or method in ("modelopt-fp4", "nvfp4"):
        return 4.5  # a scale of 8 bits for each 16
    if method == "mxfp4" or "MXFP4" in algorithm:
        return 4.25  # a scale of 8 bits for each 32
    if "FP8" in algorithm or method in ("fp8", "fbgemm-fp8", "modelopt", "ptpc-fp8"):
        return 8.0
    return None


def _spared(part: Part, names: Sequence[str]) -> float:
    """The share of a part that a quantisation leaves as it was, by the names it spares."""
    layers: set[str] = set()
    for name in names:
        if name.startswith("re:"):
            if re.match(name[3:], part.example):
                return 1.0
            continue
        at = re.search(r"\blayers\.(\d+)\b", name)
        # `model.layers.*.self_attn*` and `model.layers.7.self_attn` alike; `shared_expert` is in `shared_experts`.
        own = re.sub(r"\.(\d+|\*)(?=\.)", ".0", name).rstrip(".*")
        if own in part.example or own.rpartition(".")[0] == part.example.rpartition(".")[0]:
            if at is None:
                return 1.0
            layers.add(at[1])
    return min(len(layers) / max(part.layers, 1), 1.0)
