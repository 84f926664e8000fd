"""Placement: which model gets which GPU, and what a person is told where one does not fit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.catalogue import Model
from serving.demo_model import demo_model
from serving.gpus import Gpu, Readings
from serving.need import TOGETHER_GB
from serving.options import SIZES, Known, divides
from serving.placement import Plan, place, suggest
from serving.shapes import shape
from serving.spare import BEFORE_GB, MARGIN_GB

NONE = Readings(note="no NVIDIA driver here")
SMALL = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "intermediate_size": 14336,
}  # fmt: skip


def gpu(index: int, free: float | None = 80, total: float = 80, name: str = "H100", **more: Any) -> Gpu:
    return Gpu(f"GPU-{index}", name, index, total, free, **{"compute": 9.0, **more})


def model(name: str, *variants: dict[str, Any], **more: Any) -> Model:
    given = [{"name": f"v{i}", **v} for i, v in enumerate(variants)]
    base = {"name": name, "place": "local", "lanes": ["cheap"], "context": 32768, "output": 512, "repo": f"site/{name}"}
    return Model.model_validate({**base, "variants": given, **more})


def where(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {p.model.name: p.gpus for p in plan.placed}


def test_the_first_variant_that_fits_is_taken() -> None:
    large = model("m", {"memory_gb": 200, "gpus": 2}, {"memory_gb": 70}, {"memory_gb": 10})
    placed = place([large], Readings((gpu(0), gpu(1))), 10).placed[0]
    assert placed.variant is not None and placed.variant.name == "v1"
    assert placed.gpus == ("GPU-0",) and placed.device == "gpu" and placed.limit == 256


def test_models_are_spread_and_share_only_where_they_must() -> None:
    readings = Readings((gpu(0), gpu(1)))
    small, other, big = model("a", {"memory_gb": 20}), model("b", {"memory_gb": 20}), model("c", {"memory_gb": 70})
    assert where(place([small, other], readings, 0)) == {"a": ("GPU-0",), "b": ("GPU-1",)}
    together = place([small, other, big], readings, 0)
    assert where(together) == {"a": ("GPU-0",), "b": ("GPU-0",), "c": ("GPU-1",)}
    first, second, third = together.placed
    assert first.share + second.share <= 0.92 and third.share == 0.92


def test_a_model_over_several_gpus_takes_equal_ones_only() -> None:
    mixed = Readings((gpu(0, name="A100"), gpu(1), gpu(2)))
    assert where(place([model("m", {"memory_gb": 120, "gpus": 2})], mixed, 0)) == {"m": ("GPU-1", "GPU-2")}
    plan = place([model("m", {"memory_gb": 120, "gpus": 3})], mixed, 0)
    assert "there are 2 equal ones" in plan.misfits[0].reason


def test_memory_that_others_hold_is_planned_around() -> None:
    readings = Readings((gpu(0, free=30, processes=((7, 50.0),)), gpu(1, free=60)))
    plan = place([model("m", {"memory_gb": 50})], readings, 0)
    assert where(plan) == {"m": ("GPU-1",)}
    # Asking for its default share, the engine would not start: 60 of 80 GB are free.
    assert 50 / 80 <= plan.placed[0].share < 60 / 80
    misfit = place([model("m", {"memory_gb": 70})], readings, 0).misfits[0]
    assert misfit.reason == "variant v0 needs 70 GB over 1 GPU; at most 58.9 GB of one can be given out"
    assert "end what else holds GPU memory" in misfit.remedy and "attach" not in misfit.reason


def test_beside_its_share_each_engine_is_left_what_it_holds_before_it_looks() -> None:
    """vLLM does not start where less than its share is free, and it looks when it holds the driver's context."""
    held = Readings((gpu(0, free=40, processes=((7, 40.0),)), gpu(1, free=40, processes=((7, 40.0),))))
    (one,) = place([model("a", {"memory_gb": 20})], held, 0).placed
    assert one.share * 80 <= 40 - BEFORE_GB - MARGIN_GB
    (wide,) = place([model("a", {"memory_gb": 40, "gpus": 2})], held, 0).placed
    assert wide.share * 80 <= 40 - BEFORE_GB - TOGETHER_GB - MARGIN_GB
    three = place([model(name, {"memory_gb": 12}) for name in "abc"], Readings(held.gpus[:1]), 0).placed
    assert sum(each.share for each in three) * 80 <= 40 - 3 * BEFORE_GB - MARGIN_GB
    full = place([model(name, {"memory_gb": 12.9}) for name in "abc"], Readings(held.gpus[:1]), 0)
    assert len(full.placed) == 2, "three times 12.9 GB fit into 40, and what three engines hold beside them does not"


@pytest.mark.parametrize("flag", ["max-num-batched-tokens", "gpu-memory-utilization", "pipeline-parallel-size"])
def test_a_flag_that_cannot_be_read_is_a_reason_and_keeps_no_other_model_from_running(flag: str) -> None:
    odd = model("odd", {"memory_gb": 10}, args={flag.replace("-", "_"): "lots"}, shape=SMALL)
    plan = place([odd, model("b", {"memory_gb": 10})], Readings((gpu(0),)), 0)
    assert where(plan) == {"b": ("GPU-0",)}
    assert f"`{flag}: lots` is no number" in plan.misfits[0].reason and "`args:`" in plan.misfits[0].remedy


def test_numbers_with_a_letter_behind_them_are_read_as_vllm_reads_them() -> None:
    sized = model(
        "m", {"memory_gb": 10}, args={"kv-cache-memory-bytes": "8G", "max_num_batched_tokens": "4k"}, shape=SMALL
    )
    (placed,) = place([sized], Readings((gpu(0),)), 0).placed
    assert placed.need is not None and placed.need.request_gb == 8 * 2**30 / 1e9


def test_a_gpu_with_a_fault_or_without_a_reading_is_not_used() -> None:
    readings = Readings((gpu(0, fault="GPU is lost"), gpu(1, free=None)))
    misfit = place([model("m", {"memory_gb": 10})], readings, 0).misfits[0]
    assert "GPU 0 is not used: GPU is lost" in misfit.reason and "GPU 1 does not say" in misfit.reason


def test_compute_capability() -> None:
    blackwell = model("m", {"memory_gb": 10, "compute": 10.0})
    assert "compute capability 10" in place([blackwell], Readings((gpu(0), gpu(1, compute=None))), 0).misfits[0].reason
    assert where(place([blackwell], Readings((gpu(0), gpu(1, compute=12.0))), 0)) == {"m": ("GPU-1",)}


def test_without_a_gpu_the_cpu_variant_runs_and_the_others_say_why_not() -> None:
    both = model("both", {"memory_gb": 50}, {"memory_gb": 6, "device": "cpu", "context": 8192})
    plan = place(
        [both, model("gpu-only", {"memory_gb": 5}), model("late", {"memory_gb": 6, "device": "cpu"})], NONE, 10
    )
    placed = plan.placed[0]
    assert (placed.device, placed.gpus, placed.context, placed.limit) == ("cpu", (), 8192, 16)
    assert [m.model for m in plan.misfits] == ["gpu-only", "late"]
    assert plan.misfits[0].reason == "it needs a GPU; there is none here; no NVIDIA driver here"
    assert "attach:" in plan.misfits[0].remedy
    assert "needs 6 GB of main memory, 4.0 GB are free" in plan.misfits[1].reason


def test_code_that_comes_with_weights_needs_a_revision_and_someone_who_read_it() -> None:
    readings = Readings((gpu(0),))
    for how in ({"remote_code": True}, {"args": {"trust_remote_code": True}}):
        misfit = place([model("m", {"memory_gb": 10}, **how)], readings, 0).misfits[0]
        assert "`revision: <commit>`" in misfit.remedy and "`vetted: {by:" in misfit.remedy
        assert "headgate.yaml" in misfit.remedy and "`m:`" in misfit.remedy
        vetted = {"vetted": {"by": "ops", "date": "2026-01-02"}, **how}
        assert "revision" in place([model("m", {"memory_gb": 10}, **vetted)], readings, 0).misfits[0].remedy
        assert place([model("m", {"memory_gb": 10}, revision="abc", **vetted)], readings, 0).placed
        # Another repository's code is another code: the model's own revision does not pin it.
        other = model("m", {"memory_gb": 10, "repo": "else/m"}, revision="abc", **vetted)
        assert "variant 'v0'" in place([other], readings, 0).misfits[0].remedy


def test_a_hosted_model_is_not_placed() -> None:
    hosted = model("h", place="hosted", lanes=["frontier"], provider="p", provider_model="x", repo="")
    assert "hosted" in place([hosted], Readings((gpu(0),)), 0).misfits[0].reason


def test_an_entry_without_variants_gets_a_gpu_for_itself() -> None:
    readings = Readings((gpu(0),))
    plan = place([model("m"), model("n")], readings, 0)
    assert where(plan) == {"m": ("GPU-0",)} and plan.placed[0].variant is None
    assert [m.model for m in plan.misfits] == ["n"]


def test_the_site_may_lower_the_limit() -> None:
    assert place([model("m", {"memory_gb": 1}, limit=7)], Readings((gpu(0),)), 0).placed[0].limit == 7


def test_what_is_offered_where_nothing_was_chosen() -> None:
    large, small = (
        model("large", {"memory_gb": 70}),
        model("small", {"memory_gb": 8}, {"memory_gb": 6, "device": "cpu"}),
    )
    slow, huge = model("slow", {"memory_gb": 20, "device": "cpu"}), model("huge", {"memory_gb": 700, "gpus": 8})
    every = [small, huge, slow, large]
    assert suggest(every, Readings((gpu(0),)), 100) is large
    assert suggest(every, NONE, 100) is small
    assert suggest(every, NONE, 1) is None


def test_the_demo_model_runs_on_a_gpu_and_on_a_small_machine_without() -> None:
    assert place([demo_model()], Readings((gpu(0),)), 0).placed[0].device == "gpu"
    assert place([demo_model()], NONE, 4).placed[0].device == "cpu"


# With a known shape.

SHAPE = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "intermediate_size": 14336,
}  # fmt: skip
"""Llama 3.1 8B: 16 GB of weights, 131,072 bytes a token."""


def test_with_a_shape_the_need_is_worked_out_and_the_cache_known() -> None:
    known = model("m", {"memory_gb": 1, "weights_gb": 16}, shape=SHAPE)
    placed = place([known], Readings((gpu(0),)), 0).placed[0]
    assert placed.need is not None and placed.need.weights_gb == 16 and 1 < placed.need.overhead_gb < 5
    assert placed.need.request_gb == pytest.approx(32768 * 131072 / 1e9)
    cache = 0.92 * 80 - placed.need.beside_gb
    assert placed.tokens == pytest.approx(cache * 1e9 / 131072, rel=0.001)
    assert placed.limit == (placed.tokens or 0) // 2048


def test_what_an_engine_was_seen_to_need_counts_in_the_next_plan() -> None:
    known = model("m", {"memory_gb": 1, "weights_gb": 16}, shape=SHAPE)
    first = place([known], Readings((gpu(0),)), 0).placed[0]
    seen = {("m", "v0"): Known(overhead_gb=9.0)}
    second = place([known], Readings((gpu(0),)), 0, seen).placed[0]
    assert second.need is not None and second.need.overhead_gb == 9.0
    assert first.tokens is not None and second.tokens is not None and second.tokens < first.tokens


def test_weights_that_are_here_win_over_the_catalogue() -> None:
    known = model("m", {"memory_gb": 1, "weights_gb": 16}, shape=SHAPE)
    placed = place([known], Readings((gpu(0),)), 0, {("m", "v0"): Known(weights=40e9)}).placed[0]
    assert placed.need is not None and placed.need.weights_gb == 40


def test_too_large_for_one_gpu_it_is_spread_over_as_many_as_divide_its_heads() -> None:
    large = model("m", {"memory_gb": 1, "weights_gb": 130}, shape=SHAPE)
    plan = place([large], Readings(tuple(gpu(i) for i in range(3))), 0)
    assert plan.placed[0].gpus == ("GPU-0", "GPU-1")
    assert divides_into(SHAPE | {"num_attention_heads": 24, "num_key_value_heads": 4}) == [1, 2, 4, 8]
    assert divides_into(SHAPE | {"num_attention_heads": 28, "num_key_value_heads": 4}) == [1, 2, 4]
    # A flag of the catalogue's own is not overruled.
    fixed = model("m", {"memory_gb": 1, "weights_gb": 130, "args": {"tensor-parallel-size": 1}}, shape=SHAPE)
    assert place([fixed], Readings(tuple(gpu(i) for i in range(3))), 0).misfits


def divides_into(config: dict[str, Any]) -> list[int]:
    found = shape(config)
    assert found is not None
    return [size for size in SIZES if divides(found, size)]


def test_a_misfit_names_the_flag_that_would_make_it_fit_and_it_does() -> None:
    wide = {"memory_gb": 1, "weights_gb": 16}
    long = model("m", wide, shape=SHAPE, context=131072)
    small = Readings((gpu(0, 24, 24, "RTX4090", compute=8.9),))
    misfit = place([long], small, 0).misfits[0]
    assert "16 of weights" in misfit.reason and "for one request of 131072 tokens" in misfit.reason
    assert "with `context: 16384`" in misfit.remedy and "over 2 GPUs of the kind RTX4090" in misfit.remedy
    assert "as FP8 weights (8 GB" not in misfit.remedy  # half the weights would not be enough for that context
    assert place([model("m", wide, shape=SHAPE, context=16384)], small, 0).placed
    assert place([model("m", wide, shape=SHAPE, context=32768)], small, 0).misfits
    pair = Readings((gpu(0, 24, 24, "RTX4090", compute=8.9), gpu(1, 24, 24, "RTX4090", compute=8.9)))
    assert place([long], pair, 0).placed
    both = place([model("m", wide, shape=SHAPE, context=32500)], small, 0).misfits[0]
    assert "with `kv-cache-dtype: fp8`" in both.remedy
    assert place([model("m", wide, shape=SHAPE, context=32500, args={"kv-cache-dtype": "fp8"})], small, 0).placed
    assert "as FP8 weights (8 GB" in both.remedy
    assert place([model("m", {"memory_gb": 1, "weights_gb": 8}, shape=SHAPE, context=32500)], small, 0).placed


def test_where_no_flag_helps_none_is_named() -> None:
    huge = model("m", {"memory_gb": 1, "weights_gb": 2000}, shape=SHAPE)
    remedy = place([huge], Readings((gpu(0),)), 0).misfits[0].remedy
    assert "it would fit" not in remedy and "run fewer or smaller models" in remedy


def test_a_larger_machine_does_not_lose_a_model_to_a_larger_variant() -> None:
    """Taken greedily, the first one's larger variant would leave no room for the second."""
    first, second = model("a", {"memory_gb": 70}, {"memory_gb": 20}), model("b", {"memory_gb": 30})
    for total in (60, 80):
        assert set(where(place([first, second], Readings((gpu(0, total, total),)), 0))) == {"a", "b"}


sizes = st.sampled_from([3.0, 8.0, 17.0, 30.0, 44.0, 71.0, 130.0])
variants = st.fixed_dictionaries({"memory_gb": sizes}, optional={"gpus": st.sampled_from([1, 2, 4])})
wanted = st.lists(st.tuples(st.lists(variants, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=4)
machines = st.lists(
    st.tuples(st.sampled_from([24.0, 48.0, 80.0, 141.0]), st.floats(0, 1), st.sampled_from("AB")), max_size=4
)  # fmt: skip


def built(given: list[tuple[list[dict[str, Any]], bool]]) -> list[Model]:
    return [
        model(f"m{i}", *(v | {"weights_gb": v["memory_gb"] * 0.7} for v in some), **({"shape": SHAPE} if known else {}))
        for i, (some, known) in enumerate(given)
    ]


def machine(given: list[tuple[float, float, str]], more_gb: float = 0.0) -> Readings:
    found = []
    for index, (total, part, name) in enumerate(given):
        found.append(gpu(index, min(total, total * part + more_gb), total, f"{name}{total}"))
    return Readings(tuple(found))


@settings(max_examples=150, deadline=None)
@given(wanted, machines)
def test_a_plan_gives_out_no_more_than_is_free_and_each_share_is_enough(
    given_models: list[tuple[list[dict[str, Any]], bool]], given_gpus: list[tuple[float, float, str]]
) -> None:
    readings = machine(given_gpus)
    plan = place(built(given_models), readings, 0)
    assert len(plan.placed) + len(plan.misfits) == len(given_models)
    taken: dict[str, float] = {}
    for placed in plan.placed:
        assert placed.variant is not None and placed.gpus
        for uuid in placed.gpus:
            total = next(g.memory_total_gb for g in readings.gpus if g.uuid == uuid) or 0
            each = placed.need.least_gb if placed.need else placed.variant.memory_gb / placed.variant.gpus
            assert placed.share * total >= each - 1e-6
            taken[uuid] = taken.get(uuid, 0.0) + placed.share * total
        if placed.tokens is not None:
            assert placed.tokens >= placed.context  # vLLM would refuse to start with less
    for one in readings.gpus:
        assert taken.get(one.uuid, 0.0) <= (one.memory_free_gb or 0.0) + 1e-6


@settings(max_examples=150, deadline=None)
@given(wanted, machines, st.floats(0, 100))
def test_more_memory_never_places_fewer_models(
    given_models: list[tuple[list[dict[str, Any]], bool]], given_gpus: list[tuple[float, float, str]], more: float
) -> None:
    models = built(given_models)
    less, grown = (len(place(models, machine(given_gpus, gb), 0).placed) for gb in (0.0, more))
    assert grown >= less
