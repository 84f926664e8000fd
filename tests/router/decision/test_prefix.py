"""How a prompt begins: what two prompts have in common is found, and nothing of it tells anything to another team."""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision.prefix import LEAST, MOST, by_session, chain
from router.records import Ask, Chain, Route
from tests.fakes.asking import ask, caller, candidate, local

TEXT = "How deep is the river where the old bridge was? "
TOOLS = [{"type": "function", "function": {"name": "depth", "parameters": {"type": "object"}}}]


def asked(route: Route = "chat/completions", **body: Any) -> Ask:
    return ask(route=route, size=len(orjson.dumps(body)) + 40, **body)


def begun(given: Ask, team: str = "search", secret: str = "s1") -> Chain:
    found = chain(given, team, secret)
    assert found is not None
    return found


def common(one: Ask, two: Ask, team: str = "search") -> float:
    """The share of the second prompt that is known of the first."""
    known, wanted = {*begun(one).hashes}, begun(two, team)
    sizes = [size for mark, size in zip(wanted.hashes, wanted.sizes, strict=True) if mark in known]
    return max(sizes, default=0) / wanted.sizes[-1]


def chat(*texts: str, **more: Any) -> Ask:
    roles = ["system", *["user", "assistant"] * len(texts)]
    return asked(messages=[{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)], **more)


def test_the_next_turn_of_a_conversation_begins_with_all_of_the_last_one() -> None:
    turns = [f"{number}: {TEXT * 3}" for number in range(6)]
    assert common(chat(*turns[:4]), chat(*turns)) == pytest.approx(4 / 6)
    assert common(chat(*turns), chat(*turns)) == 1
    assert common(chat(*turns), chat(turns[0], "Something else. " * 30)) == pytest.approx(0.24, abs=0.03)
    assert common(chat(*turns), chat("Be short.", *turns[1:])) == 0, "what follows another beginning is another prompt"


def test_who_speaks_and_which_tools_there_are_belong_to_the_beginning() -> None:
    turns = [TEXT * 3, TEXT * 3]
    swapped = asked(messages=[{"role": r, "content": TEXT * 3} for r in ("user", "system")])
    assert common(chat(*turns), swapped) == 0
    assert common(chat(*turns), chat(*turns, tools=TOOLS)) == 0
    assert common(chat(*turns, tools=TOOLS), chat(*turns, tools=TOOLS)) == 1


@pytest.mark.parametrize("form", [
    lambda text: asked(messages=[{"role": "user", "content": text}]),
    lambda text: asked(messages=[{"role": "user", "content": [{"type": "text", "text": text}]}]),
    lambda text: asked("completions", prompt=text),
    lambda text: asked("responses", input=text),
    lambda text: asked("responses", instructions=text, input="And now?"),
    lambda text: asked("responses", input=[{"role": "user", "content": [{"type": "input_text", "text": text}]}]),
    lambda text: asked("messages", system=text, messages=[{"role": "user", "content": "And now?"}]),
    lambda text: asked("messages", messages=[{"role": "user", "content": [{"type": "text", "text": text}]}]),
])  # fmt: skip
def test_long_texts_that_begin_alike_are_known_to(form: Any) -> None:
    """A template around a question, a document and then a question: on every route that engines keep prompts of."""
    document = " ".join(str(number) for number in range(20_000))
    assert common(form(document), form(document[:90_000] + "another end" * 500)) > 0.6
    assert common(form(document), form("another beginning" + document)) < 0.02
    assert common(form(document), form(document)) == 1


def test_pictures_count_as_what_they_are_sent_as() -> None:
    def shown(data: str) -> Ask:
        parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data * 500}"}},
                 {"type": "text", "text": "What is this?"}]  # fmt: skip
        return asked(messages=[{"role": "user", "content": parts}])

    assert common(shown("QUJD"), shown("QUJD")) == 1
    assert common(shown("QUJD"), shown("REVG")) == 0


def test_a_chain_is_bounded_and_keeps_both_ends() -> None:
    turns = [f"{number}: {TEXT}" for number in range(300)]
    long, next_turn = chat(*turns), chat(*turns, TEXT, TEXT)
    assert len(begun(long).hashes) == MOST
    assert begun(long).sizes[-1] == sum(map(len, turns))
    assert common(long, next_turn) > 0.99
    other = chat(*turns[:20], *[TEXT] * 200)
    assert 0.05 < common(long, other) < 0.15, "and another that began alike"
    assert common(long, chat(*turns[:100], *[TEXT] * 200)) < 0.4
    assert len(begun(asked("completions", prompt="x" * 16_000_000)).hashes) <= MOST


@pytest.mark.parametrize("turns", [
    [{}] * 20_000, [1] * 30_000, [{"content": [{}] * 60}] * 300, [{"role": "user", "content": [{}] * 20_000}],
])  # fmt: skip
def test_what_is_looked_at_one_by_one_is_bounded(turns: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(orjson, "dumps", lambda found, dumps=orjson.dumps: calls.append(found) or dumps(found))
    assert begun(ask(size=60_000)._replace(body={"messages": turns})).sizes[-1] > 40_000
    assert len(calls) < 600


def test_another_team_has_nothing_in_common_and_neither_has_another_process() -> None:
    """PG-033: engines keep prompts apart by team."""
    one = chat(TEXT * 10, TEXT * 10)
    assert not {*begun(one, "red").hashes} & {*begun(one, "blue").hashes}
    assert not {*begun(one, secret="s1").hashes} & {*begun(one, secret="s2").hashes}


def test_nothing_is_worked_out_where_an_engine_keeps_nothing() -> None:
    assert chain(asked("embeddings", input=TEXT * 50), "search", "s1") is None
    assert chain(asked("messages/count_tokens", messages=[{"role": "user", "content": TEXT * 50}]), "t", "s") is None
    assert chain(ask(size=LEAST - 1), "search", "s1") is None
    assert chain(asked(messages=[{"role": "user", "content": ""}], user="x" * LEAST), "search", "s1") is None
    assert chain(asked(messages=[], user="x" * LEAST), "search", "s1") is None
    assert chain(asked("completions", prompt="", user="x" * LEAST), "search", "s1") is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["role", "content", "text", "type", "tool_calls", "name"]), inner, max_size=4
    ),
    max_leaves=20,
)  # fmt: skip


@given(ANYTHING, ANYTHING, st.sampled_from(["chat/completions", "completions", "responses", "messages"]))
def test_whatever_stands_in_the_fields_it_never_raises_and_says_the_same_again(
    turns: Any, other: Any, route: Any
) -> None:  # fmt: skip
    body = {"messages": turns, "prompt": turns, "input": turns, "system": other, "instructions": other, "tools": other}
    given = ask(route=route, size=1000)._replace(body=body)
    found = chain(given, "search", "s1")
    assert found == chain(given, "search", "s1")
    if found is not None:
        assert len(found.hashes) == len(found.sizes) <= MOST
        assert list(found.sizes) == sorted(found.sizes) and found.sizes[-1] > 0
    replicas = [candidate(local(), name=name) for name in "ab"]
    assert sorted(c.name for c in by_session(given, caller(), replicas)) == ["near@a", "near@b"]


def test_a_replica_that_goes_away_moves_its_own_sessions_alone() -> None:
    replicas = [candidate(local(), name=f"r{number}") for number in range(5)]
    sessions = [ask(session=f"s{number}") for number in range(500)]
    before = [by_session(one, caller(), replicas)[0].name for one in sessions]
    random.Random(1).shuffle(replicas)
    assert before == [by_session(one, caller(), replicas)[0].name for one in sessions], (
        "in whatever order they are given"
    )
    left = [c for c in replicas if c.name != "near@r2"]
    after = [by_session(one, caller(), left)[0].name for one in sessions]
    assert all(a == b for a, b in zip(after, before, strict=True) if b != "near@r2")
    shares = [before.count(c.name) for c in replicas]
    assert min(shares) > 60 and max(shares) < 140


def test_a_session_is_its_callers_or_else_its_opening() -> None:
    replicas = [candidate(local(), name=f"r{number}") for number in range(8)]

    def first(given: Ask, key: str = "k1") -> str:
        return by_session(given, caller(key=key), replicas)[0].name

    assert len({first(ask(session="s1"), f"k{number}") for number in range(20)}) > 3, "a name is its caller's own"
    turns = [f"{number}: {TEXT}" for number in range(9)]
    assert len({first(chat(*turns[:n])) for n in range(2, 9)}) == 1
    assert len({first(chat("Be short.", f"{number}?")) for number in range(20)}) > 3
