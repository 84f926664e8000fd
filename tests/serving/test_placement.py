"""Placement: which model gets which GPU, and what a person is told where one does not fit."""

from __future__ import annotations

from typing import Any

from serving.catalogue import Model
from serving.demo_model import demo_model
from serving.gpus import Gpu, Readings
from serving.placement import Plan, place, suggest

NONE = Readings(note="no NVIDIA driver here")


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
    assert misfit.reason == "variant v0 needs 70 GB over 1 GPU; the largest free is 60.0 GB"
    assert "end what else holds GPU memory" in misfit.remedy and "attach" not in misfit.reason


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
