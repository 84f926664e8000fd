"""How the eligible are ordered."""

from __future__ import annotations

from itertools import permutations

import pytest

from router.decision.policies import POLICIES
from router.records import Candidate, Gpu
from serving.catalogue import Price
from tests.fakes.asking import ask, caller, candidate, hosted, local, question, snapshot

CHEAP = hosted("cheap-far", price=Price(input=1, output=1))
DEAR = hosted("dear-far", price=Price(input=9, output=9))
UNPRICED = hosted("a-unpriced", price=None)
FREE = hosted("a-free", price=Price(input=0, output=0))


def order(
    *candidates: Candidate, named: str = "auto", body: dict[str, int] | None = None, preferred: tuple[str, ...] = ()
) -> list[str]:
    models = [c.model for c in candidates]
    traits = question(ask(named, **(body or {})), caller(), snapshot(*models, local())).traits
    orders = {
        tuple(c.name for c in POLICIES["cheapest"](given, traits, preferred, 0.0)) for given in permutations(candidates)
    }
    assert len(orders) == 1  # it does not depend on the order it is given
    return list(orders.pop())


def test_local_first_then_by_cost_and_the_unpriced_last() -> None:
    near = local(price=Price(input=99, output=99))  # a rate is what is charged, not what its next answer costs
    found = order(*map(candidate, (UNPRICED, DEAR, CHEAP, FREE, near)))
    assert found == ["near", "a-free", "cheap-far", "dear-far", "a-unpriced"]


def test_the_cost_is_that_of_this_request() -> None:
    talker = hosted("talker", price=Price(input=9, output=1))
    listener = hosted("listener", price=Price(input=1, output=9))
    assert order(candidate(talker), candidate(listener), body={"max_tokens": 1})[0] == "listener"
    assert order(candidate(talker), candidate(listener), body={"max_tokens": 1000})[0] == "talker"


def test_among_equals_the_least_busy_and_then_by_name() -> None:
    near = local()
    busy, idle = candidate(near, name="a", in_flight=3), candidate(near, name="b", in_flight=1)
    also = candidate(near, name="c", in_flight=1)
    assert order(busy, also, idle) == ["near@b", "near@c", "near@a"]


def test_the_sites_own_order_comes_before_load_and_load_decides_among_replicas() -> None:
    default, code = local("qwen"), local("coder")
    busy, idle = candidate(default, name="qwen-1", in_flight=7, limit=8), candidate(default, name="qwen-2", limit=8)
    found = order(busy, candidate(code), idle, preferred=("qwen", "coder"))
    assert found == ["qwen@qwen-2", "qwen@qwen-1", "coder"]


def test_load_is_what_this_router_counts_and_what_the_engine_says() -> None:
    near = local()
    asked_by_others = candidate(near, name="a", in_flight=1, running=6, waiting=2, limit=16)
    ours = candidate(near, name="b", in_flight=4, running=3, waiting=0, limit=16)
    small = candidate(near, name="c", in_flight=4, running=4, limit=4)
    assert order(asked_by_others, ours, small) == ["near@b", "near@a", "near@c"]


def test_with_as_many_requests_the_emptier_cache_and_the_quieter_gpu_win_and_unknown_is_never_idle() -> None:
    near = local()
    caches = [candidate(near, name=name, kv_use=use) for name, use in (("a", None), ("b", 0.7), ("c", 0.1))]
    assert order(*caches) == ["near@c", "near@b", "near@a"]
    gpus = [
        candidate(near, name=name, kv_use=0.5, gpus=(Gpu(name, 0, utilisation=use),))
        for name, use in (("a", None), ("b", 0.99), ("c", 0.02))
    ]
    assert order(*gpus) == ["near@c", "near@b", "near@a"]


@pytest.mark.parametrize(("named", "first"), [("near", "near"), ("twin", "twin")])
def test_a_named_model_comes_before_its_twin(named: str, first: str) -> None:
    twin = hosted("twin", same_as="near", price=Price(input=0, output=0))
    assert order(candidate(twin), candidate(local(), in_flight=100), named=named)[0] == first


def first_of(draw: float, *candidates: Candidate) -> list[str]:
    traits = question(ask("auto"), caller(), snapshot(local())).traits
    return [c.name for c in POLICIES["cheapest"](candidates, traits, (), draw)]


def test_of_two_replicas_the_one_with_less_to_read_comes_first() -> None:
    near = local()
    busy, idle = candidate(near, name="a", outstanding=9000), candidate(near, name="b", in_flight=3, outstanding=10)
    for draw in (0.0, 0.3, 0.6, 0.999):
        assert first_of(draw, busy, idle) == ["near@b", "near@a"]


def test_of_many_replicas_two_are_drawn_so_that_not_all_run_to_the_same() -> None:
    near = local()
    four = [candidate(near, name=name, outstanding=number) for number, name in enumerate("abcd")]
    firsts = [first_of(draw / 1200, *four)[0] for draw in range(1200)]
    # The better of every pair: the best one of half of them, the worst one of none.
    shares = {name: firsts.count(f"near@{name}") for name in "abcd"}
    assert shares == {"a": 600, "b": 400, "c": 200, "d": 0}
    assert {tuple(sorted(first_of(draw / 12, *four))) for draw in range(12)} == {
        ("near@a", "near@b", "near@c", "near@d")
    }


def test_what_failed_just_now_comes_behind_its_replicas_and_before_other_models() -> None:
    near, other = local("near"), local("other")
    fast = candidate(near, name="a", failing=True)
    slow = candidate(near, name="b", in_flight=9, outstanding=90_000)
    for draw in (0.0, 0.5, 0.9):
        assert first_of(draw, fast, slow, candidate(other)) == ["near@b", "near@a", "other"]


def test_what_comes_back_after_a_rest_gets_work_by_its_share() -> None:
    """Nobody knows how many requests either takes at once; without a share half of a burst would go to the one back."""
    near, taken = local("near"), {"a": 0, "b": 0}
    for number in range(1000):
        shares = {"a": 1.0, "b": 0.1}
        both = [candidate(near, name=n, outstanding=taken[n] * 100, share=share) for n, share in shares.items()]
        taken[first_of(number / 1000, *both)[0].removeprefix("near@")] += 1
    assert 80 < taken["b"] < 100
    alone = candidate(near, name="b", share=0.1)
    assert first_of(0.5, alone) == ["near@b"]
    well, back = candidate(near, name="a", failing=True), candidate(near, name="b", share=0.1)
    assert first_of(0.5, well, back)[0] == "near@b", "what fails now is worse"
