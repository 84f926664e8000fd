"""Patterns of schemas: what each may cost is known before it is compiled, and all together stay within a budget."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decision.limits import check
from router.decision.patterns import BUDGET_US, MOST_CHARACTERS, Pattern, fault
from router.errors import BadRequest
from tests.fakes.asking import ask

USUAL = [
    r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$",
    "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    r"^[^@\s]+@[^@\s]+\.[^@\s]+$",
    r"^(?=.*[a-z])(?=.*\d).{8,64}$",
    r"^(?!x)\p{L}+$",
    r"^[\p{L} '-]{1,100}$",
    "^[a-zA-Z0-9_-]{1,255}$",
    r"^https?://[^\s/$.?#].[^\s]*$",
    r"^\+?[1-9]\d{1,14}$",
]
PIECES = [
    r"\w", r"\d", r"\s", r"\S", r"\p{L}", r"\P{N}", ".", "a", "[^a]", r"[\w-]", "(?=", "(?:", "(?i)", "(", ")", "{5}",
    "{0,300}", "{1,5000}", "|", "*", r"\1", "(?<=", "é", "[[:alpha:]]", "{3,}",
]  # fmt: skip


def seconds(one: Pattern) -> float:
    started = time.thread_time()
    fault([one], 0)
    return time.thread_time() - started


def test_what_schemas_usually_have_passes_many_times_over() -> None:
    usual = [Pattern(one) for one in USUAL]
    assert fault(usual, sum(one.cost_us for one in usual)) == ""
    many = {"properties": {f"p{n}": {"type": "string", "pattern": f"^[a-z]{{2}}-{n}$"} for n in range(150)}}
    check(ask("m", tools=[{"type": "function", "function": {"name": "f", "parameters": many}}]))


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.integers(1, 300))
def test_what_is_within_the_budget_compiles_in_a_short_time(pieces: list[str], times: int) -> None:
    text = "".join(pieces) * times
    more = text.count("(") - text.count(")")
    one = Pattern((text + ")" * more)[:MOST_CHARACTERS])
    if one.cost_us <= BUDGET_US:
        assert seconds(one) < 1  # seconds; without a budget it can be any number of them


def test_classes_in_a_row_cost_by_their_square() -> None:
    assert Pattern(r"\s" * 1000).cost_us > BUDGET_US  # a second of work in 2,000 characters
    assert Pattern(r"\s" * 10).cost_us < BUDGET_US / 50


def test_the_budget_is_one_for_all_fields_and_a_pattern_counts_once() -> None:
    half = {"items": {"pattern": r"\d" * 110}}
    other = {"items": {"pattern": r"\w" * 110}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": half}}

    def tools(schema: object) -> list[object]:
        return [{"type": "function", "function": {"name": "f", "parameters": schema}}]

    check(ask("m", response_format=form))
    check(ask("m", tools=tools({"anyOf": [half] * 20})))
    with pytest.raises(BadRequest, match="together") as refused:
        check(ask("m", response_format=form, tools=tools(other)))
    assert (refused.value.code, refused.value.param) == ("invalid_schema", "tools")


def test_what_an_answer_is_to_match_looks_nowhere_around() -> None:
    assert fault([Pattern("(?=a)a")], 0) == ""
    assert fault([Pattern("(?=a)a", linear=True)], 0)
