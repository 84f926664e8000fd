"""What is known of a model from what lies here: weights that were fetched, and engines that ran before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving import known
from serving.catalogue import Model
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.options import Known
from serving.placement import Placed, place

CONFIG = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "intermediate_size": 14336,
}  # fmt: skip
HERE = Readings((Gpu("GPU-0", "H100", 0, 80, 80, compute=9.0),))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home", tmp_path / "engines")
    made.make()
    return made


def model(**more: Any) -> Model:
    return Model.model_validate({
        "name": "m", "place": "local", "lanes": ["cheap"], "context": 8192, "output": 512, "repo": "site/m",
        "variants": [{"name": "bf16", "memory_gb": 20}], **more,
    })  # fmt: skip


def fetched(hub: Path, index: dict[str, Any] | None = None, config: object = CONFIG) -> Path:
    """A snapshot as the hub's cache holds it."""
    folder = hub / "models--site--m" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (hub / "models--site--m" / "refs").mkdir()
    (hub / "models--site--m" / "refs" / "main").write_text("abc\n")
    (folder / "config.json").write_text(json.dumps(config))
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def look(home: Home, hub: Path, engine: str = "vllm 1", readings: Readings = HERE, **more: Any) -> Known:
    return known.known([model(**more)], home, readings, engine, {"HF_HUB_CACHE": str(hub)})["m", "bf16"]


def test_fetched_weights_say_their_shape_and_their_size(home: Home, tmp_path: Path) -> None:
    folder = fetched(tmp_path / "hub", {"metadata": {"total_size": 16_060_522_496}})
    found = look(home, tmp_path / "hub")
    assert found.shape is not None and found.shape.layers == 32 and found.weights == 16_060_522_496
    # A single file has no index: its own size counts.
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    assert look(home, tmp_path / "hub").weights == 1000


def test_a_folder_of_the_sites_own_and_another_revision(home: Home, tmp_path: Path) -> None:
    folder = fetched(tmp_path / "hub")
    assert look(home, tmp_path / "none", repo=str(folder)).shape is not None
    assert look(home, tmp_path / "hub", revision="abc").shape is not None
    assert look(home, tmp_path / "hub", revision="other").shape is None
    assert look(home, tmp_path / "hub", revision="../snapshots/abc").shape is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"num_hidden_layers": []}', "[" * 100_000, "\x00"])
def test_a_broken_config_is_as_if_none_were_here(home: Home, tmp_path: Path, text: str) -> None:
    (fetched(tmp_path / "hub") / "config.json").write_text(text)
    assert look(home, tmp_path / "hub").shape is None


@pytest.mark.parametrize("index", [{"metadata": 5}, {"metadata": {"total_size": "much"}}, {"metadata": None}, {}])
def test_an_index_without_a_size_says_none(home: Home, tmp_path: Path, index: dict[str, Any]) -> None:
    fetched(tmp_path / "hub", index)
    assert look(home, tmp_path / "hub").weights is None


def ran(home: Home, hub: Path, tokens: float, engine: str = "vllm 1", **more: Any) -> Placed:
    """Plan, and have an engine report `tokens` of what was predicted."""
    found = {("m", "bf16"): look(home, hub, engine, **more)}
    (placed,) = place([model(**more)], HERE, 0, found).placed
    assert placed.tokens is not None
    known.reported(placed, home, HERE, engine, int(placed.tokens * tokens))
    return placed


def test_what_an_engine_reported_corrects_the_next_plan(home: Home, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    fetched(hub)
    first = ran(home, hub, 0.9)
    found = look(home, hub)
    assert found.overhead_gb is not None and first.need is not None and found.overhead_gb > first.need.overhead_gb
    (second,) = place([model()], HERE, 0, {("m", "bf16"): found}).placed
    assert first.tokens is not None and second.tokens == pytest.approx(first.tokens * 0.9, rel=0.001)
    seen = known.seen(home, second, HERE, "vllm 1")
    assert (seen["predicted_tokens"], seen["reported_tokens"]) == (first.tokens, int(first.tokens * 0.9))


def test_it_holds_for_the_same_weights_flags_gpu_and_engine_alone(home: Home, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    fetched(hub)
    ran(home, hub, 0.9)
    assert look(home, hub).overhead_gb is not None
    other = Readings((Gpu("GPU-0", "A100", 0, 80, 80, compute=8.0),))
    assert look(home, hub, engine="vllm 2").overhead_gb is None
    assert look(home, hub, readings=other).overhead_gb is None
    assert look(home, hub, args={"enforce-eager": True}).overhead_gb is None


def test_a_report_that_cannot_be_is_not_believed(home: Home, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    fetched(hub)
    ran(home, hub, 50)  # more tokens than the GPU has memory for
    assert look(home, hub).overhead_gb is None
    (home.root / "measured.json").write_text("{broken")
    assert look(home, hub).overhead_gb is None
    ran(home, hub, 0.9)
    assert look(home, hub).overhead_gb is not None


def test_a_cache_that_a_flag_fixed_says_nothing_of_the_rest(home: Home, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    fetched(hub)
    fixed: dict[str, Any] = {"args": {"kv-cache-memory-bytes": 10 * 2**30}}
    placed = ran(home, hub, 0.5, **fixed)
    assert placed.tokens == 10 * 2**30 // 131072
    assert look(home, hub, **fixed).overhead_gb is None
