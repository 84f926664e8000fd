"""Models that share a place count as one: the largest of them, and each may take what it may."""

from __future__ import annotations

from serving.catalogue import Model, Swap
from serving.gpus import Gpu, Readings
from serving.groups import ASLEEP_GB, given_gb, others, place
from serving.placement import Plan
from serving.placement import place as place_one
from serving.spare import WHOLE

ONE = Readings((Gpu("GPU-0", "card", 0, memory_total_gb=80.0, memory_free_gb=80.0),))


def model(name: str, needs_gb: float, device: str = "gpu") -> Model:
    variant = {"name": "only", "memory_gb": needs_gb, "device": device}
    return Model.model_validate(
        {"name": name, "place": "local", "lanes": ["private"], "context": 4096, "output": 64, "variants": [variant]}
    )


def planned(swap: Swap, *models: Model, readings: Readings = ONE, main_gb: float = 16.0) -> Plan:
    return place(models, swap, readings, main_gb, place_one)


def names(plan: Plan) -> list[str]:
    return [p.model.name for p in plan.placed]


def test_two_that_do_not_fit_at_once_each_get_the_whole_gpu() -> None:
    both = model("a", 60), model("b", 70)
    assert names(planned(Swap(), *both)) != ["a", "b"]
    plan = planned(Swap(groups=(("a", "b"),), sleep=False), *both)
    assert names(plan) == ["a", "b"] and not plan.misfits
    assert [(p.gpus, p.share, p.sleeps) for p in plan.placed] == [(("GPU-0",), WHOLE, False)] * 2


def test_what_sleeps_still_holds_a_little_which_the_other_leaves_it() -> None:
    plan = planned(Swap(groups=(("a", "b"),)), model("a", 50), model("b", 60))
    assert all(p.sleeps for p in plan.placed)
    assert all(80 * p.share <= 80 * WHOLE - ASLEEP_GB for p in plan.placed)


def test_where_that_is_too_much_they_are_stopped_and_started_instead() -> None:
    plan = planned(Swap(groups=(("a", "b"),)), model("a", 50), model("b", 72))
    assert names(plan) == ["a", "b"]
    assert [(p.share, p.sleeps) for p in plan.placed] == [(WHOLE, False)] * 2


def test_a_third_model_beside_them_leaves_them_the_room_of_the_largest() -> None:
    plan = planned(Swap(groups=(("a", "b"),), sleep=False), model("a", 20), model("b", 40), model("c", 20))
    share = {p.model.name: p.share for p in plan.placed}
    assert set(share) == {"a", "b", "c"}
    assert 80 * share["b"] >= 40 and 80 * share["c"] >= 20
    assert share["a"] <= share["b"] and share["b"] + share["c"] <= WHOLE + 1e-6


def test_what_is_given_out_counts_a_place_once() -> None:
    swap = Swap(groups=(("a", "b"),), sleep=False)
    plan = planned(swap, model("a", 20), model("b", 40), model("c", 20))
    by_name = {p.model.name: p for p in plan.placed}
    assert [others(by_name[name], plan, swap) for name in "abc"] == [["b"], ["a"], []]
    each = {name: p.gpu_gb or 0.0 for name, p in by_name.items()}
    assert given_gb(plan, swap, "GPU-0") == max(each["a"], each["b"]) + each["c"] <= 80


def test_one_that_is_too_large_for_the_machine_is_named_and_the_others_share() -> None:
    plan = planned(Swap(groups=(("a", "b", "huge"),)), model("a", 20), model("b", 40), model("huge", 200))
    assert names(plan) == ["a", "b"]
    assert [m.model for m in plan.misfits] == ["huge"]
    assert "200 GB" in plan.misfits[0].reason


def test_on_a_cpu_they_share_main_memory_and_never_sleep() -> None:
    swap = Swap(groups=(("a", "b"),))
    plan = planned(swap, model("a", 10, "cpu"), model("b", 12, "cpu"), readings=Readings())
    assert [(p.model.name, p.device, p.sleeps) for p in plan.placed] == [("a", "cpu", False), ("b", "cpu", False)]
    assert [m.model for m in planned(Swap(), model("a", 10, "cpu"), model("b", 12, "cpu"), readings=Readings()).misfits]


def test_without_room_for_the_largest_the_others_say_whose_place_it_is() -> None:
    plan = planned(Swap(groups=(("a", "b"),)), model("c", 70), model("a", 20), model("b", 40))
    assert names(plan) == ["c"]
    reasons = {m.model: m.reason for m in plan.misfits}
    assert set(reasons) == {"a", "b"} and "the place of b" in reasons["a"]


def test_a_model_that_sleeps_while_nobody_asks_keeps_its_whole_share() -> None:
    plan = planned(Swap(sleep_after_s={"a": 600}), model("a", 50))
    assert [(p.sleeps, p.share) for p in plan.placed] == [(True, WHOLE)]
    assert not planned(Swap(sleep_after_s={"a": 600}, sleep=False), model("a", 50)).placed[0].sleeps


def test_main_memory_is_no_part_of_a_place_on_a_gpu() -> None:
    """What was planned there would run beside the others of its group, in memory that nobody set aside."""
    first = Model.model_validate(
        {"name": "a", "place": "local", "lanes": ["private"], "context": 4096, "output": 64, "variants": []}
    )
    plan = planned(Swap(groups=(("a", "b"),)), first, model("b", 8, "cpu"))
    assert names(plan) == ["a"] and "in the place of a" in plan.misfits[0].reason
