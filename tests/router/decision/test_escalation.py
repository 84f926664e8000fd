"""Which requests go to a stronger model first: by the caller, by rule, by length; and when local models are full."""

from __future__ import annotations

from typing import Any

import pytest

from router.decision.escalation import MOST_SEARCHED, matches, said, wished
from router.decision.question import Question
from router.errors import Forbidden
from router.records import Ask, Caller, Decision, Findings
from serving.catalogue import DataClass, EscalationRule
from serving.site import When
from tests.fakes.asking import ask, caller, decided, endpoint, hosted, local, question, snapshot

NEAR, FAR = local(), hosted()
CHEAP_FAR = hosted("cheap-far", lanes=("cheap",))
MAY = caller(scopes=frozenset({"escalate"}))
SCHEMA: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}


def rule(name: str = "hard", to: str = "frontier", **when: Any) -> EscalationRule:
    return EscalationRule(name=name, when=When(**when), to=to)


def prompt(text: str, model: str = "auto", **more: Any) -> Ask:
    return ask(model, messages=[{"role": "user", "content": text}], **more)


def names(decision: Decision) -> list[str]:
    return [c.name for c in decision.order]


# The caller asks.


def test_the_caller_gets_the_stronger_model_first_and_the_local_one_after_it() -> None:
    assert names(decided(ask(), MAY, NEAR, FAR)) == ["near", "far"]
    found = decided(ask(escalate="low-confidence"), MAY, NEAR, FAR)
    assert (names(found), found.trigger) == (["far", "near"], "caller:low-confidence")
    assert "the caller asked (low-confidence): frontier first" in found.reason


def test_from_the_lane_cheap_too() -> None:
    assert names(decided(ask("cheap"), MAY, NEAR, FAR)) == ["near"]
    assert names(decided(ask("cheap", escalate="wrong"), MAY, NEAR, FAR)) == ["far", "near"]


def test_a_key_without_the_scope_is_told_so() -> None:
    with pytest.raises(Forbidden, match="headgate keys set k1 --escalate") as refused:
        decided(ask(escalate="wrong"), caller(), NEAR, FAR)
    assert refused.value.code == "escalation_not_allowed"


@pytest.mark.parametrize("model", ["near", "private", "frontier"])
def test_a_named_model_and_the_lanes_private_and_frontier_stay_what_they_are(model: str) -> None:
    asked = decided(ask(model, escalate="wrong"), MAY, NEAR, FAR)
    assert (names(asked), asked.trigger) == (names(decided(ask(model), MAY, NEAR, FAR)), "")


@pytest.mark.parametrize(
    "who",
    [
        caller("private", scopes=frozenset({"escalate"})),  # the data may not leave
        caller(scopes=frozenset({"escalate"}), lanes=frozenset({"private", "cheap"})),  # the lane is not the key's
        caller(scopes=frozenset({"escalate"}), budget_usd=0.001),
    ],
)
def test_never_beyond_what_the_caller_may_have(who: Caller) -> None:
    for asked in (ask(escalate="wrong"), ask("cheap", escalate="wrong")):
        found = decided(asked, who, NEAR, FAR)
        assert (names(found), found.trigger) == (["near"], "")
        assert "was wanted, and none there may answer" in found.reason


# A rule.


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ({"words": ("prove", "step by step")}, prompt("Prove it."), prompt("Improve it, stepwise.")),
        ({"words": ("beweise",)}, prompt("BEWEISE das"), ask()),
        ({"words": ("c++",)}, prompt("Write C++, please"), prompt("Write c")),
        ({"tokens_over": 1000}, ask(size=4004), ask(size=4000)),
        ({"tools": True}, ask(tools=[{"type": "function"}]), ask()),
        ({"tools": False}, ask(), ask(tools=[{"type": "function"}])),
        ({"schema": True}, ask(**SCHEMA), ask()),
        ({"route": "completions"}, ask(route="completions"), ask()),
        ({"words": ("prove",), "tokens_over": 1000}, prompt("prove", size=8000), prompt("prove", size=100)),
    ],
)
def test_conditions(when: dict[str, Any], yes: Ask, no: Ask) -> None:
    for asked, expected in ((yes, True), (no, False)):
        traits = question(asked, caller(), snapshot(NEAR)).traits
        assert matches(rule(**when), asked, caller(), traits, said(asked.body)) is expected


def test_key_and_team() -> None:
    traits = question(ask(), caller(), snapshot(NEAR)).traits
    for when, who, expected in (
        ({"team": "search"}, caller(), True),
        ({"team": "search"}, caller(team="sales"), False),
        ({"key": "k1"}, caller(), True),
        ({"key": "k1", "team": "sales"}, caller(), False),
    ):
        assert matches(rule(**when), ask(), who, traits, "") is expected


def test_words_are_looked_for_in_what_the_user_says() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "system"},
            {"role": "user", "content": [{"type": "text", "text": "part"}, {"type": "image_url"}]},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": "last"},
            "no message",
        ]
    }
    assert said(body) == "last\npart"
    assert said({"prompt": ["One", "TWO", [1, 2]]}) == "one\ntwo"


def test_a_rule_costs_milliseconds_however_much_is_said() -> None:
    body = {"messages": [{"role": "user", "content": "old " * 10_000_000}, {"role": "user", "content": "newest"}]}
    assert said(body).startswith("newest\nold")
    assert len(said(body)) <= MOST_SEARCHED + 1


def test_the_first_rule_that_matches_counts_and_is_named() -> None:
    rules = (rule("long", tokens_over=10_000), rule("maths", words=("prove",)), rule("all", team="search"))
    found = decided(prompt("prove it"), caller(), NEAR, FAR, escalate=rules)
    assert (names(found)[0], found.trigger) == ("far", "rule:maths")
    assert "rule maths: frontier first" in found.reason


def test_the_callers_own_wish_comes_before_the_rules() -> None:
    traits = question(ask(), MAY, snapshot(NEAR)).traits
    found = wished(ask(escalate="wrong"), MAY, traits, [rule(team="search", to="coder")])
    assert found is not None
    assert (found.trigger, found.to) == ("caller:wrong", "frontier")


def test_a_rule_may_lead_to_one_model_local_ones_too() -> None:
    coder = local("coder")
    found = decided(
        prompt("def f(): class"),
        caller("private"),
        NEAR,
        coder,
        FAR,
        escalate=(rule("code", "coder", words=("class",)),),
    )
    assert (names(found), found.trigger) == (["coder", "near"], "rule:code")


def test_the_scanner_and_the_class_still_decide_under_a_rule() -> None:
    found = decided(
        prompt("prove it"), caller(), NEAR, FAR, findings=Findings(1, ("messages[0].content",), searched=True),
        escalate=(rule("maths", words=("prove",)),),
    )  # fmt: skip
    assert (names(found), found.trigger) == (["near"], "")
    assert found.traits.data_class is DataClass.private


# The prompt is too long.


@pytest.mark.parametrize("model", ["auto", "cheap"])
def test_a_prompt_that_is_too_long_goes_to_the_frontier(model: str) -> None:
    fits = decided(ask(model, size=16_000), caller(), NEAR, FAR)
    assert (names(fits)[0], fits.trigger) == ("near", "")
    likely_not = decided(ask(model, size=17_000), caller(), NEAR, FAR)
    assert (names(likely_not), likely_not.trigger) == (["far", "near"], "context")
    never = decided(ask(model, size=80_000), caller(), NEAR, FAR)
    assert (names(never), never.trigger) == (["far"], "context")
    assert "may be too long for the local models" in never.reason


def test_a_longer_local_model_comes_before_the_frontier() -> None:
    found = decided(ask("cheap", size=17_000), caller(), NEAR, local("long", context=50_000), FAR)
    assert ("far" in names(found), found.trigger) == (False, "")


def test_the_cheapest_that_holds_the_prompt_is_taken() -> None:
    near_enough = hosted("cheap-far", lanes=("cheap",), price={"input": 1, "output": 5})
    found = decided(ask("cheap", size=17_000), caller(), NEAR, FAR, near_enough)
    assert (names(found), found.trigger) == (["cheap-far", "far", "near"], "context")


def test_a_rule_for_a_model_that_does_not_hold_the_prompt_takes_nothing_away() -> None:
    coder = local("coder", context=8192)
    rules = (rule("all", "coder", team="search"),)
    assert decided(ask("cheap"), caller(), NEAR, coder, FAR, escalate=rules).trigger == "rule:all"
    found = decided(ask("cheap", size=60_000), caller(), NEAR, coder, FAR, escalate=rules)
    assert (names(found)[0], found.trigger) == ("far", "context")


def test_what_is_wanted_and_full_is_said_to_be_full() -> None:
    served = [endpoint(NEAR), endpoint(FAR, limit=1, in_flight=1)]
    found = decided(ask(escalate="wrong"), MAY, NEAR, FAR, endpoints=served)
    assert (names(found), found.trigger) == (["near", "far"], "")
    assert "frontier was wanted and is full" in found.reason


def test_private_data_and_the_lane_private_stay_however_long_the_prompt() -> None:
    for asked, who in ((ask(size=17_000), caller("private")), (ask("private", size=17_000), caller())):
        found = decided(asked, who, NEAR, FAR)
        assert (names(found), found.trigger) == (["near"], "")
    assert names(decided(ask("private", size=80_000), caller(), NEAR, FAR)) == []


# Local models are full.


def full(asked: Ask, who: Caller, *models: Any, **state: Any) -> Decision:
    state = {"in_flight": 8, "limit": 8} | state
    served = [endpoint(m, **(state if m.place == "local" else {})) for m in models]
    return decided(asked, who, *models, endpoints=served)


def test_what_may_leave_overflows_and_the_full_model_stays_as_the_last_resort() -> None:
    found = full(ask(), caller(), NEAR, FAR)
    assert (names(found), found.trigger) == (["far", "near"], "overflow")
    assert "overflow, since near is saturated (1.00: 8 of 8 places taken)" in found.reason
    told = full(ask(), caller(), NEAR, FAR, in_flight=2, busy=True)
    assert (told.trigger, "near is saturated (1.00: it takes no more now)" in told.reason) == ("overflow", True)
    assert full(ask(), caller(), NEAR, FAR, in_flight=7).trigger == ""
    assert full(ask(), caller(), NEAR, FAR, limit=0).trigger == ""  # no limit is known


def test_the_cheapest_hosted_one_is_taken() -> None:
    dear = hosted("dear", lanes=("cheap",), price={"input": 90, "output": 90})
    assert names(full(ask("cheap"), caller(), NEAR, dear, CHEAP_FAR))[0] == "cheap-far"


def test_what_may_not_leave_waits_for_room() -> None:
    for asked, who in (
        (ask(), caller("private")),
        (ask("private"), caller()),
        (ask("near"), caller()),  # a named model is that model
        (ask("cheap"), caller()),  # no hosted model is in the lane
    ):
        found = full(asked, who, NEAR, FAR)
        assert (names(found), found.trigger) == (["near"], "")
        assert found.order[0].endpoint.full
        assert "waits, since near is full" in found.reason


def test_another_local_model_with_room_comes_first() -> None:
    other = local("other")
    served = [endpoint(NEAR, in_flight=8, limit=8), endpoint(other, in_flight=1, limit=8), endpoint(FAR)]
    found = decided(ask(), caller(), NEAR, other, FAR, endpoints=served)
    assert (names(found), found.trigger) == (["other", "far", "near"], "")


def test_a_question_without_a_wish_is_the_same_question() -> None:
    assert Question(ask(), caller(), question(ask(), caller(), snapshot(NEAR)).traits, snapshot(NEAR)).wish is None


# The answer is held against the caller's schema.


def test_only_whole_answers_to_a_schema_are_checked_and_then_both_tries_are_held_for() -> None:
    routes: Any = {"chat/completions": {"check": "json_schema"}}
    plain = decided(ask(**SCHEMA), caller(), NEAR, FAR)
    found = decided(ask(**SCHEMA), caller(), NEAR, FAR, routes=routes)
    assert (plain.check, found.check) == ("", "json_schema")
    assert found.hold is not None and plain.hold is not None
    assert found.hold == pytest.approx(sum(w or 0 for w in found.worst)) and found.hold > plain.hold
    assert decided(ask(**SCHEMA, stream=True), caller(), NEAR, FAR, routes=routes).check == ""
    assert decided(ask(), caller(), NEAR, FAR, routes=routes).check == ""


def test_what_the_user_says_is_found_in_every_dialect() -> None:
    assert said({"input": "Hello"}, "responses") == "hello"
    items = [
        {"role": "developer", "content": "Never"}, {"type": "message", "role": "user", "content": "First"},
        {"role": "user", "content": [{"type": "input_text", "text": "Last"}]},
        {"type": "function_call_output", "output": "not said"},
    ]  # fmt: skip
    assert said({"input": items, "instructions": "Never"}, "responses") == "last\nfirst"
    turn = {
        "role": "user",
        "content": [{"type": "tool_result", "content": "not said"}, {"type": "text", "text": "Said"}],
    }
    assert said({"messages": [turn], "system": "Never"}, "messages") == "said"
