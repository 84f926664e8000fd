"""How the eligible are ordered."""

from __future__ import annotations

from itertools import permutations

import pytest

from router.decision.policies import POLICIES
from router.records import Candidate
from serving.catalogue import Price
from tests.fakes.asking import ask, caller, candidate, hosted, local, question, snapshot

CHEAP = hosted("cheap-far", price=Price(input=1, output=1))
DEAR = hosted("dear-far", price=Price(input=9, output=9))
UNPRICED = hosted("a-unpriced", price=None)
FREE = hosted("a-free", price=Price(input=0, output=0))


def order(*candidates: Candidate, named: str = "auto", body: dict[str, int] | None = None) -> list[str]:
    models = [c.model for c in candidates]
    traits = question(ask(named, **(body or {})), caller(), snapshot(*models, local())).traits
    orders = {tuple(c.name for c in POLICIES["cheapest"](given, traits)) for given in permutations(candidates)}
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


@pytest.mark.parametrize(("named", "first"), [("near", "near"), ("twin", "twin")])
def test_a_named_model_comes_before_its_twin(named: str, first: str) -> None:
    twin = hosted("twin", same_as="near", price=Price(input=0, output=0))
    assert order(candidate(twin), candidate(local(), in_flight=100), named=named)[0] == first
