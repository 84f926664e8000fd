"""What a model needs of a GPU: held against published sizes, against vLLM's own logs, and against its own counting."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving import need as needs
from serving.boards import BOARDS, MIB
from serving.need import Setup
from serving.shapes import Cache, Shape, shape
from serving.spare import WHOLE

GIB = 2**30 / 10**9
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}

# The published architectures, as their config.json says; the vision parts of Qwen3.5 to 3.8 are those of the 27B.
SEES = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
QWEN: dict[str, Any] = {
    "vocab_size": 248320, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32", "attn_output_gate": True,
    "mtp_num_hidden_layers": 1,
}  # fmt: skip


def qwen(layers: int, hidden: int, heads: int, kv: int, values: int, **more: Any) -> dict[str, Any]:
    text = {
        **QWEN, "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads,
        "num_key_value_heads": kv, "linear_num_value_heads": values, **more,
    }  # fmt: skip
    return {"text_config": text, "vision_config": SEES}


def latent(layers: int, hidden: int, heads: int, words: int, experts: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "vocab_size": words,
        "moe_intermediate_size": 2048, "n_routed_experts": experts, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128, "v_head_dim": 128, **more,
    }  # fmt: skip


SPARSE = {"index_n_heads": 64, "index_head_dim": 128}
AHEAD = {"num_nextn_predict_layers": 1}
KIMI_INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"],
}
V4: dict[str, Any] = {
    "num_hidden_layers": 43, "hidden_size": 4096, "num_attention_heads": 64, "head_dim": 512, "vocab_size": 129280,
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 6, "n_shared_experts": 1,
    "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024, "index_n_heads": 64, "index_head_dim": 128,
    "sliding_window": 128, "compress_ratios": [128, 128, *[4, 128] * 20, 4], **AHEAD,
    "quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"},
}  # fmt: skip

Q27 = qwen(64, 5120, 24, 4, 48, intermediate_size=17408)
Q35 = qwen(
    40, 2048, 16, 2, 32,
    num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512, shared_expert_intermediate_size=512,
)  # fmt: skip
EXPERTS = {"num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 1024,
           "shared_expert_intermediate_size": 1024}  # fmt: skip
Q122 = qwen(48, 3072, 32, 2, 64, **EXPERTS)
Q397 = qwen(60, 4096, 32, 2, 64, **(EXPERTS | {"num_experts": 512, "num_experts_per_tok": 10}))
DEEPSEEK = latent(61, 7168, 128, 129280, 256, intermediate_size=18432, quantization_config=FP8, **SPARSE, **AHEAD)
GLM47 = {
    "num_hidden_layers": 92, "hidden_size": 5120, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 151552, "intermediate_size": 12288, "moe_intermediate_size": 1536, "n_routed_experts": 160,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3, "quantization_config": FP8, **AHEAD,
}  # fmt: skip
GLM52 = latent(
    78, 6144, 64, 154880, 256, intermediate_size=12288, q_lora_rank=2048, qk_nope_head_dim=192, v_head_dim=256,
    index_n_heads=32, index_head_dim=128, quantization_config=FP8, **AHEAD,
)  # fmt: skip
KIMI = latent(61, 7168, 64, 163840, 384, intermediate_size=18432, first_k_dense_replace=1,
              quantization_config=KIMI_INT4)  # fmt: skip
V4_PRO = V4 | {
    "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128, "moe_intermediate_size": 3072,
    "n_routed_experts": 384, "q_lora_rank": 1536, "o_groups": 16,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4],
}  # fmt: skip
LLAMA = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "intermediate_size": 14336, "dtype": "bfloat16",
}  # fmt: skip


def of(config: dict[str, Any]) -> Shape:
    found = shape(config)
    assert found is not None
    return found


# What vLLM's recipes state as the least GPU memory of a model is its safetensors and a fifth more. It is no measurement
# of an engine, so it is held against the same: weights counted from the shape, and a fifth. V4 Pro's shape was derived
# from its 1.6T parameters.
STATED: list[tuple[str, dict[str, Any], float, str, int]] = [
    ("Qwen3.5-4B", qwen(32, 2560, 16, 4, 32, intermediate_size=9216, tie_word_embeddings=True), 10, "RTX4090", 1),
    ("Qwen3.5-9B", qwen(32, 4096, 16, 4, 32, intermediate_size=12288), 22, "RTX4090", 1),
    ("Qwen3.6-27B", Q27, 65, "H100", 1),
    ("Qwen3.6-27B-FP8", Q27 | {"quantization_config": FP8}, 33, "L40S", 1),
    ("Qwen3.6-27B-NVFP4", Q27 | {"quantization_config": NVFP4}, 27, "RTX5090", 1),
    ("Qwen3.6-35B-A3B", Q35, 84, "H200", 1),
    ("Qwen3.6-35B-A3B-FP8", Q35 | {"quantization_config": FP8}, 42, "H100", 1),
    ("Qwen3.5-122B-A10B", Q122, 293, "H200", 4),
    ("Qwen3.5-122B-A10B-FP8", Q122 | {"quantization_config": FP8}, 147, "H200", 2),
    ("Qwen3.5-397B-A17B", Q397, 953, "H200", 8),
    ("DeepSeek-V3.2", DEEPSEEK, 805, "H200", 8),
    ("GLM-4.7-FP8", GLM47, 430, "H200", 4),
    ("GLM-5.2-FP8", GLM52, 893, "H200", 8),
    ("Kimi-K2.6", KIMI, 714, "H200", 8),
    ("DeepSeek-V4-Flash-0731", V4, 200, "H200", 4),
    ("DeepSeek-V4-Pro-0813", V4_PRO, 960, "H200", 8),
]


@pytest.mark.parametrize(("name", "config", "stated", "board", "gpus"), STATED, ids=[row[0] for row in STATED])
def test_published_models_within_15_percent_of_the_stated_memory(
    name: str, config: dict[str, Any], stated: float, board: str, gpus: int
) -> None:
    found = of(config)
    assert found.weights * 1.2 / needs.GB == pytest.approx(stated, rel=0.15)
    # And on the GPUs it is published for, one request of 32k tokens fits, with all that an engine needs besides.
    total = BOARDS[board][0] * MIB
    least = needs.need(found, Setup(gpus, 32768, board_gb=total)).least_gb
    assert least <= WHOLE * total


# Stated figures that are no size of a file: half a byte for each parameter, without scales and without the parts that
# stay in 16 bits. By count the weights are larger than stated, and the formula is right to miss them.
MISSED = [
    ("Qwen3.6-35B-A3B-NVFP4", Q35 | {"quantization_config": NVFP4}, 21),
    ("Qwen3.5-397B-A17B-NVFP4", Q397 | {"quantization_config": NVFP4}, 238),
]


@pytest.mark.parametrize(("name", "config", "stated"), MISSED)
def test_figures_that_leave_out_scales_are_missed_to_the_safe_side(
    name: str, config: dict[str, Any], stated: float
) -> None:
    found = of(config)
    assert found.weights * 1.2 / needs.GB > 1.15 * stated
    assert found.parameters / 2 * 1.2 / needs.GB == pytest.approx(stated, rel=0.05)


# What vLLM logged of itself when it started: GiB of weights, and of all else but the cache (outside torch, activations,
# CUDA graphs). The first by 0.31, the others by releases before.
QWEN7 = {
    "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
    "vocab_size": 152064, "intermediate_size": 18944,
}  # fmt: skip
LOGGED = [
    ("Llama-3.1-8B on A100 80 GB", LLAMA, Setup(1, 131072, batched=2048), 15.0, 0.26 + 1.44 + 0.23),
    ("Qwen2.5-7B on H100", QWEN7, Setup(1, 4096, batched=16384), 14.08, 1.97 + 0.07 + 0.67),
]


@pytest.mark.parametrize(("name", "config", "run", "weights", "beside"), LOGGED, ids=[row[0] for row in LOGGED])
def test_what_vllm_measured_of_itself(
    name: str, config: dict[str, Any], run: Setup, weights: float, beside: float
) -> None:
    found = needs.need(of(config), run)
    assert found.weights_gb == pytest.approx(weights * GIB, rel=0.02)
    assert found.overhead_gb == pytest.approx(beside * GIB, rel=0.4)  # a rule of thumb
    assert found.beside_gb == pytest.approx((weights + beside) * GIB, rel=0.15)


def test_the_cache_of_an_engine_that_ran_to_the_token() -> None:
    """56.21 GiB of cache were 460,496 tokens, 3.51 requests of 131,072 (vLLM 0.31, Llama 3.1 8B)."""
    run = Setup(1, 131072)
    assert needs.token_bytes(of(LLAMA), run) == 131072
    low, high = (needs.tokens(of(LLAMA), run, gib * 2**30) for gib in (56.205, 56.215))
    assert low <= 460_496 <= high


def test_the_block_of_a_model_with_linear_layers_as_vllm_set_it() -> None:
    """vLLM set a block of 1568 tokens for Qwen3.8 27B with an fp8 cache, and padded the states by 0.13 % (its log)."""
    found, run = of(Q27), Setup(1, 262144, "fp8")
    page, state = 4 * 2 * 256, 3 * 10240 * 2 + 48 * 128 * 128 * 4
    assert found.state == state
    blocks = needs.blocks(found, run)
    assert blocks.size == 16 * 1568 * page and 1568 * page / state == pytest.approx(1.0013, abs=1e-4)
    # 16 layers that attend and three times 16 that do not: of each a table of blocks, and two blocks of state.
    assert blocks.request == -(-262144 // 1568) + 3 * 2


def test_linear_layers_take_nothing_for_a_token_and_a_fixed_part_of_each_request() -> None:
    found = of(Q27)
    assert needs.token_bytes(found, Setup()) == 16 * 4 * 512 * 2
    short, long = (needs.need(found, Setup(1, context)).request_gb for context in (1024, 262144))
    assert short > 0.25 and long == pytest.approx(262144 * 65536 / needs.GB, rel=0.03)


def test_without_prefix_caching_one_state_is_kept() -> None:
    def request(**flags: Any) -> int:
        return needs.blocks(of(Q27), needs.setup(flags, 1, 1024)).request

    assert request() - request(**{"enable-prefix-caching": False}) == 3
    assert request() - request(**{"no-enable-prefix-caching": True}) == 3


def test_kv_heads_are_shared_by_gpus_and_copied_beyond_their_number() -> None:
    found = of(LLAMA)
    assert [needs.token_bytes(found, Setup(tensor)) for tensor in (1, 2, 8, 16)] == [131072, 65536, 16384, 16384]
    assert needs.token_bytes(found, Setup(1, cache_type="fp8")) == 65536


def test_one_latent_vector_is_kept_whole_by_each_gpu() -> None:
    plain = latent(61, 7168, 64, 163840, 384, intermediate_size=18432)
    assert {needs.token_bytes(of(plain), Setup(tensor)) for tensor in (1, 8)} == {61 * 576 * 2}
    assert needs.token_bytes(of(plain), Setup(8, cache_type="fp8")) == 61 * 576
    # DeepSeek's sparse attention: packed where the cache is fp8, and an index of 132 bytes beside it.
    assert needs.token_bytes(of(DEEPSEEK), Setup(8)) == 61 * (576 * 2 + 132)
    assert needs.token_bytes(of(DEEPSEEK), Setup(8, cache_type="fp8")) == 61 * (656 + 132)


def test_a_window_bounds_what_a_layer_keeps() -> None:
    kinds = ["sliding_attention", "full_attention"] * 12
    config = {
        "num_hidden_layers": 24, "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 201088, "intermediate_size": 2880, "sliding_window": 128, "layer_types": kinds,
    }  # fmt: skip
    run = Setup(1, 131072, batched=2048)
    whole, bounded = 131072 // 16, -(-(127 + 2 * 2048) // 16) + 1
    assert needs.blocks(of(config), run).request == whole + bounded
    assert needs.blocks(of(config), run).size == 12 * 16 * 8 * 128 * 2
    everything = of(config | {"layer_types": ["full_attention"] * 24})
    assert needs.need(everything, run).request_gb > 1.9 * needs.need(of(config), run).request_gb


def test_compressed_layers_keep_one_state_for_many_tokens() -> None:
    found = of(V4)
    each = 21 * 584 / 4 + 22 * 584 / 128 + 21 * 132 / 4
    assert needs.token_bytes(found, Setup(4)) == pytest.approx(each, rel=0.01)
    assert needs.need(found, Setup(4, 1048576)).request_gb < 8


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4 + 20 / 64),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}}}, 4 + 16 / 128),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}, 4.5),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "nobody-knows"}, 16),
        ({}, 16),
    ],
)  # fmt: skip
def test_weights_by_the_form_of_their_quantisation(how: dict[str, Any], bits: float) -> None:
    words = 2 * 128256 * 4096
    found = of(LLAMA | {"quantization_config": how})
    assert found.weights == pytest.approx((found.parameters - words) * bits / 8 + words * 2)


def test_what_a_quantisation_spares_keeps_its_16_bits() -> None:
    one = of(LLAMA | {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["self_attn"]}})
    some = of(LLAMA | {"quantization_config": {
        "quant_method": "fp8", "ignore": [f"model.layers.{at}.self_attn.q_proj" for at in range(8)]}})  # fmt: skip
    none, attention = of(LLAMA | {"quantization_config": FP8}), 32 * 4096 * 128 * (32 * 2 + 8 * 2)
    assert one.weights - none.weights == pytest.approx(attention)
    assert some.weights - none.weights == pytest.approx(attention / 4)


def test_tied_words_are_stored_once() -> None:
    tied, both = of(LLAMA | {"tie_word_embeddings": True}), of(LLAMA)
    assert both.parameters - tied.parameters == 128256 * 4096


@pytest.mark.parametrize(
    "config",
    [
        {}, {"num_hidden_layers": "many"}, LLAMA | {"num_attention_heads": 0}, LLAMA | {"hidden_size": None},
        LLAMA | {"quantization_config": {"config_groups": 5}}, LLAMA | {"num_hidden_layers": -3},
        LLAMA | {"layer_types": 7}, {"text_config": []},
    ],
)  # fmt: skip
def test_a_config_that_does_not_say_enough_gives_no_shape(config: dict[str, Any]) -> None:
    assert shape(config) is None


COUNTS = """
import json, sys
from types import SimpleNamespace as Of
import torch
from vllm.v1.core import kv_cache_utils as vllm
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.kv_cache_layout import KVCacheLayout

layout = next(one for one in KVCacheLayout if not one.is_block_outermost)
for whole, windows, states, heads, size, block, state, window, context, batched in json.loads(sys.argv[1]):
    config = Of(
        scheduler_config=Of(disable_hybrid_kv_cache_manager=False), speculative_config=None,
        cache_config=Of(
            get_resolved_kv_cache_layout=lambda: layout, mamba_cache_mode="align", num_gpu_blocks_override=None
        ),
        model_config=Of(max_model_len=context), parallel_config=Of(decode_context_parallel_size=1),
        attention_config=Of(hisparse_config=None), max_in_flight_tokens=2 * batched,
    )
    plain = dict(block_size=block, num_kv_heads=heads, head_size=size, dtype=torch.bfloat16)
    page = FullAttentionSpec(**plain).page_size_bytes
    specs = {f"w.{i}": FullAttentionSpec(**plain) for i in range(whole)}
    specs |= {f"s.{i}": SlidingWindowSpec(**plain, sliding_window=window, dcp_sharded=False) for i in range(windows)}
    linear = dict(block_size=block, shapes=((state,),), dtypes=(torch.uint8,), mamba_cache_mode="align")
    specs |= {f"l.{i}": MambaSpec(**linear, page_size_padded=page) for i in range(states)}
    groups = vllm.get_kv_cache_groups(config, specs)
    each = vllm._pool_bytes_per_block(config, groups)
    print("found", json.dumps([each, vllm._max_memory_usage_bytes_from_groups(config, groups) // each]))
"""
"""Layers of each kind, as vLLM's own functions group and count them."""


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_blocks_are_counted_as_vllm_counts_them(engine_python: Path) -> None:
    """Whole, windowed and linear layers in several numbers; heads, head size, block, state, window, context, step."""
    cases = [
        (32, 0, 0, 8, 128, 16, 0, 0, 131072, 2048), (16, 0, 48, 4, 256, 784, 3207168, 0, 262144, 8192),
        (12, 12, 0, 8, 64, 16, 0, 128, 131072, 2048), (10, 20, 0, 8, 64, 16, 0, 128, 4096, 2048),
        (13, 12, 0, 8, 64, 16, 0, 128, 131072, 2048), (10, 52, 0, 8, 128, 16, 0, 1024, 131072, 8192),
    ]  # fmt: skip
    environ = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [engine_python, "-P", "-c", COUNTS, json.dumps(cases)], env=environ, capture_output=True, text=True, check=True
    )
    counted = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
    for case, theirs in zip(cases, counted, strict=True):
        whole, windows, states, heads, size, block, state, window, context, batched = case
        caches = [Cache(whole, heads, 2 * size)] + [Cache(windows, heads, 2 * size, window=window)] * bool(windows)
        made = Shape(whole + windows + states, 1, 1, 1, tuple(caches), 0, 0, states, state)
        ours = needs.blocks(made, Setup(1, context, batched=batched, block=16 if states else block))
        assert [ours.size, ours.request] == theirs, case
