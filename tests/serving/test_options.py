"""The ways to run a model: what the catalogue writes first, and what its shape allows besides."""

from __future__ import annotations

from typing import Any

import pytest

from serving import catalogue
from serving.catalogue import Model
from serving.options import Known, options
from serving.shapes import shape

SHAPE = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 24, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "intermediate_size": 14336,
}  # fmt: skip


def model(variant: dict[str, Any] | None = None, **more: Any) -> Model:
    return Model.model_validate({
        "name": "m", "place": "local", "lanes": ["cheap"], "context": 32768, "output": 512, "repo": "site/m",
        "variants": [{"name": "v", "memory_gb": 40, **(variant or {})}], **more,
    })  # fmt: skip


def sizes(given: Model, found: dict[tuple[str, str], Known] | None = None) -> list[int]:
    return [option.gpus for option in options(given, given.variants[0], found)]


def test_without_a_shape_there_is_the_catalogue_alone() -> None:
    (only,) = options(model({"gpus": 2}), model({"gpus": 2}).variants[0])
    assert (only.gpus, only.each_gb, only.need, only.tokens(10)) == (2, 20, None, None)
    assert only.changed(context=5) is only


def test_with_one_come_the_numbers_of_gpus_that_divide_its_heads() -> None:
    assert sizes(model(shape=SHAPE)) == [1, 2, 4, 8]
    assert sizes(model({"gpus": 4}, shape=SHAPE)) == [4, 1, 2, 8]
    assert sizes(model({"args": {"tensor_parallel_size": 2}, "gpus": 2}, shape=SHAPE)) == [2]


@pytest.mark.parametrize("flag", ["data-parallel-size", "pipeline_parallel_size"])
def test_other_kinds_of_parallelism_are_left_to_the_catalogue(flag: str) -> None:
    (only,) = options(*(lambda m: (m, m.variants[0]))(model({"gpus": 4, "args": {flag: 4}}, shape=SHAPE)))
    assert only.need is None and only.each_gb == 10


def test_what_is_here_wins_over_what_the_catalogue_says() -> None:
    given = model({"weights_gb": 16}, shape=SHAPE)
    here = shape(SHAPE | {"num_hidden_layers": 64})
    (first, *_) = options(given, given.variants[0], {("m", "v"): Known(here, 99e9)})
    (other, *_) = options(given, given.variants[0], {("else", "v"): Known(here, 99e9)})
    assert first.need is not None and other.need is not None
    assert first.need.weights_gb == 99 and other.need.weights_gb == 16
    assert first.need.request_gb == 2 * other.need.request_gb


def test_flags_that_change_the_need_are_seen() -> None:
    def need(**args: Any) -> Any:
        given = model({"weights_gb": 16, "args": args}, shape=SHAPE)
        return options(given, given.variants[0])[0].need

    plain = need()
    assert need(kv_cache_dtype="fp8").request_gb == plain.request_gb / 2
    assert need(**{"enforce-eager": True}).overhead_gb < plain.overhead_gb
    assert need(**{"max-num-batched-tokens": 65536}).overhead_gb > plain.overhead_gb
    assert need(**{"kv-cache-memory-bytes": 2 * 10**9}).request_gb == 2


LOCAL = [m for m in catalogue.load().models.values() if m.place == "local" and m.shape]


@pytest.mark.parametrize("given", LOCAL, ids=[m.name for m in LOCAL])
def test_a_shape_of_the_catalogue_can_be_read_and_each_size_of_its_weights_is_said(given: Model) -> None:
    """Without `weights_gb` a quantised variant would be reckoned at 16 bits. It counts the vision part, too."""
    found = shape(given.shape)
    assert found is not None
    for variant in given.variants:
        if variant.device == "gpu":
            assert variant.weights_gb is not None
            assert 0.3 * found.parameters < variant.weights_gb * 1e9 < 2.4 * found.parameters
            assert variant.memory_gb > variant.weights_gb
