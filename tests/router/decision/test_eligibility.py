"""Each rule, with what passes and what it refuses; and every refusal says what would change it."""

from __future__ import annotations

from typing import Any

import pytest

from router.decision import eligibility
from router.decision.clearance import PRIVACY
from router.decision.eligibility import RULES, against, judge, worst_cost
from router.decision.question import Rule
from router.decision.reasons import refused
from router.decision.traits import describe
from router.records import Ask, Caller, Candidate, Findings, Gpu, Refusal
from serving.catalogue import DataClass, Model, Price
from tests.fakes.asking import (
    approval,
    ask,
    caller,
    candidate,
    decided,
    endpoint,
    hosted,
    local,
    question,
    searched,
    snapshot,
)

NEAR, FAR = local(), hosted()


def verdict(
    rule: Rule, asked: Ask, who: Caller, model: Model, *others: Model, spent: float = 0.0, **state: Any
) -> Refusal | None:
    return rule(candidate(model, **state), question(asked, who, snapshot(model, *others, spent=spent)))


def refusal(*given: Any, **state: Any) -> Refusal:
    found = verdict(*given, **state)
    assert found is not None
    assert found.reason and found.remedy
    return found


def test_every_rule_is_in_the_list_once_and_privacy_comes_before_money() -> None:
    names = [rule.__name__ for rule in RULES]
    assert names == ["same_identity", "offered", "cleared", "promised", "allowed", "capable", "honours", "fits",
                     "affordable", "ready", "gpu_healthy", "searched"]  # fmt: skip
    assert {rule.__name__ for rule in PRIVACY} == {"cleared", "promised", "searched"}


def test_only_the_first_refusal_of_a_candidate_is_recorded() -> None:
    asked, who = ask("frontier", tools=[{}]), caller("private", lanes=frozenset())
    eligible, refusals = judge([candidate(FAR, state="closed")], question(asked, who, snapshot(FAR)))
    assert (eligible, [r.rule for r in refusals]) == ([], ["data_class_not_cleared"])


def test_where_nobody_may_answer_every_rule_that_stands_against_a_candidate_is_told() -> None:
    """A compliance officer who lifts one obstacle must not meet the next one only then."""
    who = caller("private", lanes=frozenset({"private"}), budget_usd=0.0001)
    asked = ask("frontier", tools=[{}], size=999_999)
    found = decided(asked, who, NEAR, hosted(abilities={"chat"}), findings=Findings(10, ()))
    rules = [r.rule for r in found.refusals if r.model == "far"]
    assert rules == ["data_class_not_cleared", "lane_not_allowed", "ability_missing", "context_length_exceeded",
                     "budget_exceeded"]  # fmt: skip
    on_messages = decided(ask("far", route="messages"), who, NEAR, FAR, findings=Findings(10, ()))
    assert [r.rule for r in on_messages.refusals if r.model == "far"] == [
        "route_not_offered", "data_class_not_cleared", "lane_not_allowed", "budget_exceeded",
    ]  # fmt: skip
    assert [r.rule for r in on_messages.refusals if r.model == "near"] == ["other_model"], "nobody asked for that one"
    told = refused(found, 10).message
    assert all(r.reason in told and r.remedy in told for r in found.refusals if r.model == "far")


@pytest.mark.parametrize("who", [caller("private"), caller("internal", requires=frozenset({"no-training"})), caller()])
@pytest.mark.parametrize("seen", [searched({}), searched({}, unread="error"), Findings(10, ())])
def test_what_a_caller_is_told_first_is_the_same_however_many_are_told(who: Caller, seen: Findings) -> None:
    models = (NEAR, FAR, hosted("inner", clearance="private", approved=approval(), lanes=("cheap",)))
    asked = question(ask("frontier"), who, snapshot(*models))._replace(ask=ask("frontier"))
    traits = describe(ask("frontier"), who, seen, snapshot().catalogue.site)
    asked = asked._replace(traits=traits)
    each = [candidate(model) for model in models]
    barred = [c for c in each if judge([c], asked)[1]]
    for one in barred:
        assert against([one], asked)[0] == judge([one], asked)[1][0]


def test_an_ask_that_is_answered_pays_for_no_more_than_the_first() -> None:
    found = decided(
        ask(), caller("private", lanes=frozenset({"private", "cheap"})), NEAR, FAR, findings=Findings(9, ())
    )
    assert [r.rule for r in found.refusals] == ["data_class_not_cleared"] and found.order


# allowed


@pytest.mark.parametrize(
    ("model_name", "lanes", "model", "rule"),
    [
        ("auto", {"private"}, NEAR, None),
        ("near", {"cheap"}, NEAR, None),
        ("private", {"private"}, NEAR, None),
        ("cheap", {"cheap"}, NEAR, None),
        ("frontier", {"frontier"}, FAR, None),
        ("frontier", {"frontier"}, NEAR, "other_lane"),
        ("private", {"private", "frontier"}, FAR, "other_lane"),
        ("auto", {"private", "cheap"}, FAR, "lane_not_allowed"),
        ("far", {"private"}, FAR, "lane_not_allowed"),
        ("auto", set(), NEAR, "lane_not_allowed"),
        # In a lane it asked for, having another lane of the model does not help.
        ("cheap", {"private"}, NEAR, "lane_not_allowed"),
    ],
)
def test_allowed(model_name: str, lanes: set[str], model: Model, rule: str | None) -> None:
    found = verdict(eligibility.allowed, ask(model_name), caller(lanes=frozenset(lanes)), model)
    assert (found and found.rule) == rule


def test_allowed_names_the_lanes_to_set() -> None:
    found = refusal(eligibility.allowed, ask("frontier"), caller(lanes=frozenset({"cheap", "private"})), FAR)
    assert found.remedy == "headgate keys set k1 --lanes cheap,frontier,private"


# capable


@pytest.mark.parametrize(
    ("body", "abilities", "missing"),
    [
        ({}, {"chat"}, ""),
        ({"tools": [{}]}, {"chat", "tools"}, ""),
        ({"tools": [{}]}, {"chat"}, "tools"),
        ({"logprobs": True, "tools": [{}]}, {"chat"}, "logprobs, tools"),
        ({}, {"completions"}, "chat"),
    ],
)
def test_capable(body: dict[str, Any], abilities: set[str], missing: str) -> None:
    found = verdict(eligibility.capable, ask(**body), caller(), local(abilities=abilities))
    if not missing:
        assert found is None
        return
    assert found is not None
    assert (found.rule, found.reason) == ("ability_missing", f"near has not: {missing}")
    assert "headgate.yaml, models.near.abilities" in found.remedy


# honours


@pytest.mark.parametrize(
    ("body", "model", "param"),
    [
        ({"temperature": 1}, FAR, None),
        ({"top_k": 1}, NEAR, None),
        ({"top_k": 1}, FAR, "top_k"),
        ({"top_k": None}, FAR, None),
        ({"stream": True, "max_completion_tokens": 5}, FAR, None),
        ({"metadata": {"a": 1}, "user": "x"}, FAR, None),
        ({"api_base": "x"}, NEAR, "api_base"),
        ({"priority": 1}, NEAR, "priority"),
        ({"chat_template": "x"}, hosted(parameters={"chat_template"}), "chat_template"),
        ({"thinking": {"type": "enabled"}}, hosted(parameters={"thinking"}), None),
        ({"a_made_up_field": 1}, NEAR, "a_made_up_field"),
    ],
)
def test_honours(body: dict[str, Any], model: Model, param: str | None) -> None:
    found = verdict(eligibility.honours, ask(**body), caller(), model)
    assert (found and found.param) == param
    assert found is None or found.rule == "unsupported_parameter"


def test_honours_names_fields_of_the_api_and_of_entries_but_quotes_no_other() -> None:
    known = refusal(eligibility.honours, ask(top_k=1), caller(), FAR)
    assert ("'top_k'" in known.reason, known.remedy) == (True, "leave 'top_k' out")
    entry = refusal(eligibility.honours, ask(thinking=1), caller(), FAR, hosted("deep", parameters={"thinking"}))
    assert "'thinking'" in entry.reason
    reserved = refusal(eligibility.honours, ask(priority=1), caller(), NEAR)
    assert "overtake other callers" in reserved.reason
    made_up = refusal(eligibility.honours, ask(**{"Anna is ill": 1}), caller(), NEAR)
    assert "Anna" not in made_up.reason + made_up.remedy
    assert made_up.param == "Anna is ill"  # for the caller; records leave it out


# fits


@pytest.mark.parametrize(
    ("size", "body", "served", "passes"),
    [
        (80, {}, 0, True),
        (8 * 4000, {}, 0, True),
        (8 * 4095, {"max_tokens": 1}, 0, True),
        (8 * 4096, {}, 0, False),
        (80, {"max_tokens": 4086}, 0, True),
        (80, {"max_tokens": 4087}, 0, False),
        (80, {"max_tokens": 1000, "n": 8}, 0, True),  # each choice has a context of its own
        (80, {"max_tokens": 1000}, 512, False),  # the running engine knows better than the entry
        (80, {"max_tokens": 8000}, 16_000, True),
    ],
)
def test_fits(size: int, body: dict[str, Any], served: int, passes: bool) -> None:
    found = verdict(eligibility.fits, ask(size=size, **body), caller(), NEAR, context=served)
    assert (found is None) is passes
    assert found is None or (found.rule, found.passing) == ("context_length_exceeded", False)


def test_fits_does_not_count_the_bytes_of_pictures_as_words() -> None:
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    assert verdict(eligibility.fits, ask(size=10**7, messages=[picture]), caller(), NEAR) is None


def test_fits_takes_many_inputs_one_by_one() -> None:
    asked = ask("near", "embeddings", size=800_000, input=["text"] * 100)
    assert verdict(eligibility.fits, asked, caller(), NEAR) is None
    assert verdict(eligibility.fits, asked._replace(size=8_000_000), caller(), NEAR) is not None


# same identity

TWIN = hosted("twin", same_as="near")
OTHER_TWIN = hosted("other-twin", same_as="near")


@pytest.mark.parametrize(
    ("named", "model", "substitute", "passes"),
    [
        ("auto", FAR, False, True),
        ("private", NEAR, False, True),
        ("near", NEAR, False, True),
        ("near", TWIN, False, True),
        ("twin", NEAR, False, True),
        ("twin", OTHER_TWIN, False, True),
        ("near", FAR, False, False),
        ("far", TWIN, False, False),
        ("near", FAR, True, True),
    ],
)
def test_same_identity(named: str, model: Model, substitute: bool, passes: bool) -> None:
    who = caller(substitute=substitute)
    found = verdict(eligibility.same_identity, ask(named), who, model, NEAR, FAR, TWIN, OTHER_TWIN)
    assert (found is None) is passes
    assert found is None or (found.rule, found.remedy) == ("other_model", "headgate keys set k1 --substitute")


def test_models_without_a_twin_are_not_each_others_twins() -> None:
    assert verdict(eligibility.same_identity, ask("near"), caller(), local("third"), NEAR) is not None


def test_embeddings_are_never_substituted() -> None:
    asked, who = ask("near", "embeddings"), caller(substitute=True)
    assert verdict(eligibility.same_identity, asked, who, local("third"), NEAR) is not None
    assert verdict(eligibility.same_identity, asked, who, NEAR) is None


# affordable: an ask of 80 bytes for 20 tokens costs at most $0.00012 at near and $0.0018 at far


@pytest.mark.parametrize(
    ("model", "budget", "spent", "rule"),
    [
        (FAR, None, 1e9, None),
        (FAR, 1.0, 0.5, None),
        (FAR, 0.0018, 0.0, None),
        (FAR, 1.0, 0.9982, None),
        *((FAR, 0.0018 * (k + 1), 0.0018 * k, None) for k in range(1, 20)),  # floats round; the budget is whole
        (FAR, 0.0017, 0.0, "budget_exceeded"),
        (FAR, 1.0, 0.9983, "budget_exceeded"),
        (FAR, 1.0, 5.0, "budget_exceeded"),
        (NEAR, 0.0017, 0.0, None),
        (NEAR, 1.0, 1.0, "budget_exceeded"),
        (hosted(price=None), 1e9, 0.0, "unpriced"),
        (hosted(price=None), None, 0.0, None),
        (local(price=None), 0.0, 5.0, None),
        (hosted(price=Price(input=0, output=0)), 0.0, 5.0, None),
    ],
)
def test_affordable(model: Model, budget: float | None, spent: float, rule: str | None) -> None:
    asked, who = ask(max_tokens=20), caller(budget_usd=budget)
    found = verdict(eligibility.affordable, asked, who, model, spent=spent)
    assert (found and found.rule) == rule


def test_affordable_names_the_line_that_would_change_it() -> None:
    poor = refusal(eligibility.affordable, ask(), caller(budget_usd=0.0), FAR)
    assert poor.remedy == "headgate keys set k1 --budget USD" and "and $0 of the key's budget is left" in poor.reason
    tiny = refusal(eligibility.affordable, ask(), caller(budget_usd=1e-6), FAR)
    assert "and $0.0000010 of the key's budget is left" in tiny.reason
    unpriced = refusal(eligibility.affordable, ask(), caller(budget_usd=1.0), hosted(price=None))
    assert unpriced.remedy == "in headgate.yaml, models.far.price: {input, output}"


@pytest.mark.parametrize(
    ("body", "usd"),
    [
        ({}, 80 * 10 + 1000 * 50),
        ({"n": 4}, 80 * 10 + 4 * 1000 * 50),
        ({"max_tokens": 20}, 80 * 10 + 20 * 50),
        ({"max_tokens": 20, "n": 4}, 80 * 10 + 80 * 50),
        ({"max_tokens": 0}, 80 * 10),
    ],
)
def test_the_worst_cost_counts_every_choice(body: dict[str, Any], usd: float) -> None:
    asked = question(ask(**body), caller(), snapshot(FAR))
    assert worst_cost(candidate(FAR), asked.traits, body.get("n", 1)) == pytest.approx(usd / 1e6)


def test_the_budget_is_held_against_all_choices() -> None:
    who = caller(budget_usd=0.1)  # one answer of the default length, not two
    assert verdict(eligibility.affordable, ask(n=1), who, FAR) is None
    assert verdict(eligibility.affordable, ask(n=2), who, FAR) is not None


# ready


@pytest.mark.parametrize(
    ("model", "state", "rule", "says"),
    [
        (NEAR, {"state": "ready"}, None, ""),
        (NEAR, {"state": "ready", "asleep": False}, None, ""),
        (NEAR, {"state": "starting", "detail": "loading weights"}, "not_ready", "near is starting: loading weights"),
        (NEAR, {"state": "failed"}, "not_ready", "near is failed"),
        (NEAR, {"state": "ready", "asleep": True}, "not_ready", "near is asleep"),
        (NEAR, {"state": ""}, "not_ready", ""),
        (NEAR, {"state": "Ready"}, "not_ready", ""),
        (FAR, {"state": "ready"}, None, ""),
        (FAR, {"state": "closed", "detail": "the door does not answer"}, "door_closed", "the door does not answer"),
    ],
)
def test_ready(model: Model, state: dict[str, Any], rule: str | None, says: str) -> None:
    found = verdict(eligibility.ready, ask(), caller(), model, **state)
    assert (found and found.rule) == rule
    assert found is None or (found.passing and says in found.reason)


# gpu_healthy


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (Gpu("u", 3), ""),  # nothing is known of it
        (Gpu("u", 3, memory_free_gb=6.4, utilisation=1.0, temperature_c=70, throttle=("power cap",)), ""),
        (Gpu("u", 3, fault="GPU is lost"), "GPU 3, which must not be used: GPU is lost"),
        (Gpu("u", 3, throttle=("hardware thermal", "hardware slow-down", "power brake")), ""),  # it has fewer places
        (Gpu("u", 3, memory_free_gb=0.02), "GPU 3, which is out of memory (0.02 GB free)"),
    ],
)
def test_gpu_healthy(gpu: Gpu, says: str) -> None:
    found = verdict(eligibility.gpu_healthy, ask(), caller(), NEAR, gpus=(Gpu("other", 0), gpu))
    assert (found is None) is (says == "")
    assert found is None or (found.rule == "gpu_trouble" and found.passing and says in found.reason)


def test_a_refusal_names_model_and_endpoint() -> None:
    second = Candidate(NEAR, endpoint(NEAR, name="near-2", state="starting"))
    found = eligibility.ready(second, question(ask(), caller(), snapshot(NEAR)))
    assert found is not None
    assert (found.model, found.endpoint) == ("near", "near-2")


def test_the_classes_are_in_order() -> None:
    assert DataClass.public < DataClass.internal < DataClass.private < DataClass.secret


def test_a_route_may_drop_what_a_model_does_not_take() -> None:
    far = hosted(parameters=set())
    routes = {"chat/completions": {"droppable": ["temperature"]}}
    assert decided(ask("far", temperature=1), caller(), far).order == ()
    found = decided(ask("far", temperature=1), caller(), far, routes=routes)
    assert [c.name for c in found.order] == ["far"]
    assert found.dropped == ("temperature",)


def test_a_route_may_let_another_model_answer() -> None:
    routes = {"chat/completions": {"substitute": True}}
    both = (local("near"), local("other"))
    assert [c.name for c in decided(ask("near"), caller(), *both).order] == ["near"]
    assert [c.name for c in decided(ask("near"), caller(), *both, routes=routes).order] == ["near", "other"]


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages"])
def test_template_arguments_cannot_replace_what_was_checked(name: str) -> None:
    asked = ask("near", chat_template_kwargs={name: "x", "enable_thinking": False})
    (refusal,) = decided(asked, caller(), local("near")).refusals
    assert (refusal.rule, refusal.param) == ("unsupported_parameter", f"chat_template_kwargs.{name}")
    assert decided(ask("near", chat_template_kwargs={"enable_thinking": False}), caller(), local("near")).order
