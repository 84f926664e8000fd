"""The whole decision: who may answer, who is told what, and that private data finds no way out."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decision.decide import could_leave, decide
from router.decision.eligibility import RULES
from router.decision.reasons import PRECEDENCE, main_refusal, refused
from router.errors import BadRequest, HeadgateError, NotFound
from router.ledger.bodies import decision_json
from router.records import (
    Ask,
    Caller,
    Decision,
    Endpoint,
    Findings,
    Found,
    Gpu,
    Past,
    Refusal,
    Route,
    Snapshot,
)
from router.scanner.reading import read
from serving.catalogue import LANES, DataClass, EscalationRule, Model, Price
from serving.site import When
from tests.fakes.asking import TODAY, approval, ask, caller, decided, endpoint, hosted, local, snapshot

DAY = dt.timedelta(days=1)
NEAR, FAR = local(), hosted()
CHEAP_FAR = hosted("cheap-far", lanes=("cheap", "frontier"))
STARTING, CLOSED = {"state": "starting"}, {"state": "closed"}


def error(decision: Decision) -> HeadgateError:
    assert decision.order == ()
    return refused(decision, 7)


def names(decision: Decision) -> list[str]:
    return [c.name for c in decision.order]


# Private data finds no way out: over random catalogues, callers, classes, approvals and days.

DAYS = st.integers(-3, 3).map(lambda n: TODAY + dt.timedelta(days=n))
CLASSES = st.sampled_from([c.name for c in DataClass])
LANE_SETS = st.sets(st.sampled_from(LANES))
NAMES = ("m0", "m1", "m2", "m3", "m4")


@st.composite
def models(draw: st.DrawFn) -> list[Model]:
    made = []
    for name in NAMES[: draw(st.integers(1, 5))]:
        twin = draw(st.none() | st.sampled_from(NAMES).filter(lambda n, own=name: n != own))
        price = draw(st.none() | st.just(Price(input=1, output=1)))
        if draw(st.booleans()):
            lanes = tuple(draw(LANE_SETS.filter(bool)))
            made.append(local(name, lanes=lanes, same_as=twin, price=price))
            continue
        lanes = tuple(draw(LANE_SETS.map(lambda s: s - {"private"}).filter(bool)))
        clearance = draw(st.none() | st.sampled_from(["public", "internal", "private"]))
        approved = approval(draw(DAYS)) if clearance in ("internal", "private") else draw(st.none())
        trains = draw(st.sampled_from([None, False, True]))
        made.append(hosted(name, lanes=lanes, clearance=clearance, approved=approved, same_as=twin, price=price,
                           trains_on_data=trains))  # fmt: skip
    return made


@st.composite
def situations(draw: st.DrawFn) -> tuple[Ask, Caller, Findings, Snapshot]:
    listed = draw(models())
    known = [m.name for m in listed]
    endpoints = [
        endpoint(
            m,
            name=f"{m.name}{suffix}",
            state=draw(st.sampled_from(["ready", "ready", "starting", "closed"])),
            in_flight=draw(st.integers(0, 2)),
            limit=draw(st.integers(0, 2)),
            gpus=draw(st.sampled_from([(), (Gpu("g", 0),), (Gpu("g", 0, fault="GPU is lost"),)])),
        )
        for m in listed
        for suffix in draw(st.sampled_from([[], [""], ["", "-b"]]))
    ]
    who = caller(
        draw(CLASSES), lanes=frozenset(draw(LANE_SETS)), substitute=draw(st.booleans()),
        budget_usd=draw(st.none() | st.just(0.0) | st.just(10.0)), scopes=frozenset({"escalate"}),
        requires=draw(st.sampled_from([frozenset(), frozenset(), frozenset({"no-training"})])),
    )  # fmt: skip
    asked = ask(
        draw(st.sampled_from([*known, *LANES, "auto"])), raised=draw(st.none() | CLASSES),
        escalate=draw(st.sampled_from([None, None, "hard"])), size=draw(st.sampled_from([80, 80, 30_000])),
    )  # fmt: skip
    rules = [EscalationRule(name="all", when=When(team="search"), to=draw(st.sampled_from(["frontier", *known])))]
    kinds = [(), (), (Found("email", DataClass.internal),), (Found("card", DataClass.private),)]
    findings = Findings(
        10, draw(st.sampled_from([(), ("messages[0].content[1]",)])),
        searched=draw(st.sampled_from([True, True, False])), unread=draw(st.sampled_from(["", "", "", "budget"])),
        found=draw(st.sampled_from(kinds)),
        past=draw(st.sampled_from([(), (), (Past(DataClass.private, "it was private before", "h1"),)])),
    )  # fmt: skip
    return (
        asked,
        who,
        findings,
        snapshot(*listed, endpoints=endpoints, escalate=tuple(rules[: draw(st.integers(0, 1))])),
    )


@given(situations())
@settings(max_examples=150)
def test_whoever_is_in_the_order_may_have_the_data(given_: tuple[Ask, Caller, Findings, Snapshot]) -> None:
    asked, who, findings, seen = given_
    decision = decide(asked, who, findings, seen)
    data_class = decision.traits.data_class
    assert data_class >= who.data_class  # raising never lowers
    assert data_class >= (asked.data_class or DataClass.public)
    assert not findings.opaque or data_class >= DataClass.private
    assert data_class >= max([one.effect for one in findings.found], default=DataClass.public)
    assert all(data_class >= past.data_class for past in findings.past)
    for chosen in decision.order:
        model = chosen.model
        assert data_class <= model.cleared_for(TODAY)
        if model.place == "hosted":
            assert findings.searched and not findings.unread
            assert not model.unmet(who.requires, TODAY)
            assert data_class is not DataClass.secret
            assert data_class is DataClass.public or (model.approved and model.approved.until >= TODAY)
        assert chosen.endpoint.state == "ready"
        assert not any(gpu.fault for gpu in chosen.endpoint.gpus)
        lane = asked.model if asked.model in LANES else None
        assert who.lanes & set(model.lanes)
        # Out of the lane that was asked for only by an escalation, and never out of `private` or `frontier`.
        assert lane in (None, "cheap") or lane in model.lanes
        assert lane is None or lane in model.lanes or decision.trigger or "was wanted" in decision.reason
        if lane == "private":
            assert model.place == "local"
        if decision.traits.named and not who.substitute:
            assert not decision.trigger
            named = seen.models[asked.model]
            same = {model.name, model.same_as} - {None}
            assert same & {named.name, named.same_as}
    # What has room comes before what is full.
    assert [c.endpoint.full for c in decision.order] == sorted(c.endpoint.full for c in decision.order)
    # Everybody else has a refusal, or several, and nobody has both.
    ruled_out = {r.endpoint for r in decision.refusals if r.endpoint}
    in_order = {c.endpoint.name for c in decision.order}
    assert ruled_out | in_order == {e.name for e in seen.endpoints}
    assert not ruled_out & in_order


@given(situations())
@settings(max_examples=80)
def test_a_decision_without_candidates_is_one_clear_error(given_: tuple[Ask, Caller, Findings, Snapshot]) -> None:
    decision = decide(*given_)
    if decision.order:
        return
    told = refused(decision, 7)
    assert told.status in (400, 403, 404, 429, 503)
    assert (told.retry_after == 7) is (told.status == 503)  # 503 only where waiting can help
    assert told.message and "None" not in told.message
    assert decision.hold == 0.0


@given(situations())
@settings(max_examples=60)
def test_a_decision_can_be_replayed(given_: tuple[Ask, Caller, Findings, Snapshot]) -> None:
    assert decide(*given_) == decide(*given_)
    assert decision_json(decide(*given_))


@given(situations(), CLASSES)
@settings(max_examples=80)
def test_raising_the_class_never_adds_a_candidate(given_: tuple[Ask, Caller, Findings, Snapshot], raised: str) -> None:
    asked, who, findings, seen = given_
    if asked.data_class is not None and DataClass[raised] < asked.data_class:
        return
    higher = asked._replace(data_class=DataClass[raised])
    assert set(names(decide(higher, who, findings, seen))) <= set(names(decide(asked, who, findings, seen)))


# Whether there is reason to search.


@given(situations())
@settings(max_examples=150)
def test_nothing_leaves_of_which_it_was_said_that_it_could_not(
    given_: tuple[Ask, Caller, Findings, Snapshot],
) -> None:
    asked, who, findings, seen = given_
    unasked = Findings(findings.scanned, findings.opaque)
    could = could_leave(asked, who, unasked, seen)
    assert all(c.model.place == "local" for c in decide(asked, who, unasked, seen).order)
    clean = decide(asked, who, unasked._replace(searched=True), seen)
    leaves = any(c.model.place == "hosted" for c in clean.order)
    # Only a budget that is used up by those before it takes a hosted model out after that.
    assert could or not leaves
    assert leaves or not could or who.budget_usd is not None
    if not could:  # then what a search finds changes nothing, and searching would have been in vain
        found = decide(asked, who, findings._replace(searched=True), seen)
        assert all(c.model.place == "local" for c in found.order)


@pytest.mark.parametrize(
    ("asked", "who", "models", "could"),
    [
        (ask(), caller("public"), (NEAR, FAR), True),
        (ask("far"), caller("public"), (NEAR, FAR), True),
        (ask(), caller("private"), (NEAR, FAR), False),
        (ask(raised="internal"), caller("public"), (NEAR, FAR), False),
        (ask("private"), caller("public"), (NEAR, FAR), False),
        (ask("cheap"), caller("public"), (NEAR, FAR), False),
        (ask("cheap", size=30_000), caller("public"), (NEAR, FAR), True),  # too long for what is here
        (ask("cheap"), caller("public"), (NEAR, CHEAP_FAR), True),
        (ask("near"), caller("public"), (NEAR, FAR), False),
        (ask("near"), caller("public"), (NEAR, hosted("twin", same_as="near")), True),
        (ask(), caller("public", lanes=frozenset({"private", "cheap"})), (NEAR, FAR), False),
        (ask(), caller("public"), (NEAR,), False),
        (ask("auto", "messages"), caller("public"), (NEAR, FAR), False),
        (ask(top_k=3), caller("public"), (NEAR, FAR), False),
        (ask(), caller("public", requires=frozenset({"no-training"})), (NEAR, FAR), False),
        (ask(), caller("private"), (NEAR, hosted(clearance="private", approved=approval())), True),
        (ask(), caller("private"), (NEAR, hosted(clearance="private", approved=approval(TODAY - DAY))), False),
        (ask(raised="public", declassify="x"), caller("private", scopes=frozenset({"declassify"})), (NEAR, FAR), True),
    ],
)
def test_only_what_could_leave_has_to_be_searched(
    asked: Ask, who: Caller, models: tuple[Model, ...], could: bool
) -> None:
    assert could_leave(asked, who, read(asked.body), snapshot(*models)) is could


def test_what_a_closed_door_would_keep_is_not_searched() -> None:
    seen = snapshot(NEAR, FAR, endpoints=[endpoint(NEAR), endpoint(FAR, state="closed")])
    assert could_leave(ask(), caller("public"), read({}), seen) is False


def test_the_highest_clearance_is_found_again_on_another_day_and_for_other_models() -> None:
    ends = hosted(clearance="internal", approved=approval(TODAY))
    catalogue = snapshot(NEAR, ends).catalogue
    assert catalogue.reach(TODAY) == {"frontier": DataClass.internal}
    assert catalogue.reach(TODAY) is catalogue.reach(TODAY)
    assert catalogue.reach(TODAY + DAY) == {"frontier": DataClass.public}
    assert catalogue.reach(TODAY) == {"frontier": DataClass.internal}
    other = catalogue.model_copy(update={"models": {"near": NEAR}})
    assert other.reach(TODAY) == {}


# What a caller is told.

PUBLIC, PRIVATE = caller("public"), caller("private")


@pytest.mark.parametrize(
    ("asked", "who", "models", "state", "status", "code"),
    [
        # A private request whose local models are not ready waits, whatever stands beside them.
        (ask(), PRIVATE, (NEAR, FAR), {"near": STARTING}, 503, "no_local_capacity"),
        (ask("private"), PRIVATE, (NEAR, FAR), {"near": STARTING}, 503, "no_local_capacity"),
        (ask("cheap"), PRIVATE, (NEAR, CHEAP_FAR), {"near": STARTING}, 503, "no_local_capacity"),
        (ask("near"), PRIVATE, (NEAR, hosted("twin", same_as="near")), {"near": STARTING}, 503, "no_local_capacity"),
        (ask(), PRIVATE, (NEAR,), {"near": {"asleep": True}}, 503, "no_local_capacity"),
        # No local endpoint at all.
        (ask(), PRIVATE, (FAR,), {}, 503, "no_local_capacity"),
        (ask("private"), PRIVATE, (FAR,), {}, 503, "no_local_capacity"),
        (ask("cheap"), PRIVATE, (CHEAP_FAR,), {}, 503, "no_local_capacity"),
        (ask(), PRIVATE, (), {}, 503, "no_local_capacity"),
        (ask(), PUBLIC, (), {}, 503, "no_local_capacity"),
        (ask("private"), PUBLIC, (FAR,), {}, 503, "no_local_capacity"),
        (ask(), caller(lanes=frozenset({"private"})), (FAR,), {}, 503, "no_local_capacity"),
        (ask(raised="private"), PUBLIC, (FAR,), {}, 503, "no_local_capacity"),
        # Asked to leave, it is refused for good.
        (ask("frontier"), PRIVATE, (FAR,), {}, 403, "data_class_not_cleared"),
        (ask("frontier"), PRIVATE, (NEAR, FAR), {"near": STARTING}, 403, "data_class_not_cleared"),
        (ask("frontier"), PRIVATE, (NEAR, FAR), {"far": CLOSED}, 403, "data_class_not_cleared"),
        (ask("far"), PRIVATE, (NEAR, FAR), {}, 403, "data_class_not_cleared"),
        (ask("far"), PRIVATE, (FAR,), {}, 403, "data_class_not_cleared"),
        (ask("far", raised="secret"), PUBLIC, (NEAR, FAR), {}, 403, "data_class_not_cleared"),
        (ask("far"), PUBLIC, (FAR,), {"far": CLOSED}, 503, "door_closed"),
        (ask("frontier"), PUBLIC, (NEAR, FAR), {"far": CLOSED}, 503, "door_closed"),
        # Lanes.
        (ask("frontier"), caller(lanes=frozenset({"private"})), (NEAR, FAR), {}, 403, "lane_not_allowed"),
        (ask("frontier"), caller(lanes=frozenset({"private"})), (NEAR,), {}, 403, "lane_not_allowed"),
        (ask(), caller(lanes=frozenset()), (NEAR, FAR), {}, 403, "lane_not_allowed"),
        (ask("frontier"), PUBLIC, (NEAR,), {}, 404, "model_not_found"),
        (ask("cheap"), PUBLIC, (local(lanes=("private",)), FAR), {}, 404, "model_not_found"),
        # The local model may have the data, so its reason counts and not that of models which may not.
        (ask(size=10**6), PRIVATE, (NEAR, FAR), {}, 400, "context_length_exceeded"),
        (ask(top_k=1, api_base="x"), PRIVATE, (NEAR, FAR), {}, 400, "unsupported_parameter"),
        (ask(tools=[{}]), PRIVATE, (local(abilities={"chat"}), FAR), {}, 400, "ability_missing"),
        (ask("near"), caller("private", budget_usd=0.0), (NEAR, FAR), {}, 429, "budget_exceeded"),
        (ask("far"), caller(budget_usd=1.0), (hosted(price=None),), {}, 403, "unpriced"),
        (ask(size=10**7), PUBLIC, (FAR,), {}, 400, "context_length_exceeded"),
        # In a dialect that only local models are asked in.
        (ask("far", "responses"), PUBLIC, (NEAR, FAR), {}, 404, "route_not_offered"),
        (ask("frontier", "messages"), PUBLIC, (NEAR, FAR), {}, 404, "route_not_offered"),
        (ask("far", "messages"), PRIVATE, (NEAR, FAR), {}, 404, "route_not_offered"),
        (ask("auto", "messages"), PUBLIC, (FAR,), {}, 404, "route_not_offered"),
        (ask("auto", "responses"), PUBLIC, (NEAR, FAR), {"near": STARTING}, 503, "no_local_capacity"),
        (
            ask("near", "responses", previous_response_id="resp_1"),
            PUBLIC,
            (NEAR, FAR),
            {},
            400,
            "unsupported_parameter",
        ),
        (ask("near", "responses", prompt={"id": "p"}), PUBLIC, (NEAR, FAR), {}, 400, "unsupported_parameter"),
        # Prompt too long here, full there: waiting helps.
        (ask(size=10**6), PRIVATE, (NEAR, local("big", context=10**6)), {"big": STARTING}, 503, "no_local_capacity"),
    ],
)
def test_what_a_caller_is_told(
    asked: Ask, who: Caller, models: tuple[Model, ...], state: dict[str, Any], status: int, code: str
) -> None:
    endpoints = [endpoint(m, **state.get(m.name, {})) for m in models]
    told = error(decided(asked, who, *models, endpoints=endpoints))
    assert (told.status, told.code) == (status, code), told.message
    assert told.retry_after == (7 if status == 503 else None)


def test_a_403_names_the_lines_that_would_change_it() -> None:
    told = error(decided(ask("frontier"), PRIVATE, NEAR, FAR)).message
    assert "far (hosted) may receive public data; this is private, since key k1 is private." in told
    assert "headgate keys set k1 --data-class public" in told
    assert "in headgate.yaml, models.far: {clearance: private, approved: {by, contract, regions, until}}" in told


def test_an_unknown_field_is_named_to_the_caller_but_not_recorded() -> None:
    decision = decided(ask("near", **{"Anna is ill": 1}), PRIVATE, NEAR)
    told = error(decision)
    assert (told.code, told.param) == ("unsupported_parameter", "Anna is ill")
    assert "('Anna is ill')" in told.message
    assert "Anna" not in str(decision_json(decision))
    known = error(decided(ask("near", priority=1), PRIVATE, NEAR))
    assert known.message.count("'priority'") == 2  # once in the reason, once in the remedy


# Names.


def test_an_unknown_model_is_told_the_names() -> None:
    with pytest.raises(NotFound) as told:
        decided(ask("nobody" + "x" * 500), PUBLIC, NEAR, FAR)
    assert (told.value.code, told.value.param) == ("model_not_found", "model")
    assert "far, near, auto, private, cheap, frontier" in told.value.message
    assert len(told.value.message) < 300


@pytest.mark.parametrize("model", ["auto", *LANES])
def test_embeddings_name_their_model(model: str) -> None:
    with pytest.raises(BadRequest) as told:
        decided(ask(model, "embeddings"), PUBLIC, NEAR)
    assert told.value.code == "model_required"
    assert names(decided(ask("near", "embeddings"), PUBLIC, NEAR)) == ["near"]


@pytest.mark.parametrize(
    ("model", "site", "status", "says"),
    [
        (local("idle"), {}, 404, "headgate models add idle"),
        (local("idle"), {"run": ("idle",)}, 503, "idle is to run here and is not served yet. See: headgate status"),
        (hosted("off"), {}, 404, "provider cloud is not enabled. To change it: headgate providers add cloud"),
    ],
)
def test_a_model_of_the_catalogue_that_is_not_served(
    model: Model, site: dict[str, Any], status: int, says: str
) -> None:
    told = error(decided(ask(model.name), PRIVATE, NEAR, model, endpoints=[endpoint(NEAR)], **site))
    assert told.status == status
    assert says in told.message


def test_a_named_model_is_that_model_and_its_twins_only() -> None:
    twin, other = hosted("twin", same_as="near"), hosted("other")
    assert names(decided(ask("near"), PUBLIC, other, twin, NEAR)) == ["near", "twin"]
    assert names(decided(ask("twin"), PUBLIC, other, twin, NEAR)) == ["twin", "near"]
    assert names(decided(ask("other"), PUBLIC, other, twin, NEAR)) == ["other"]
    assert names(decided(ask("twin"), PRIVATE, other, twin, NEAR)) == ["near"]  # the weights here may have it
    assert set(names(decided(ask("near"), caller(substitute=True), other, twin, NEAR))) == {"near", "twin", "other"}


def test_an_endpoint_of_a_model_nobody_lists_is_left_out() -> None:
    stray = Endpoint(name="stray", model="stray", address="unix:/x", state="ready")
    assert names(decided(ask(), PRIVATE, NEAR, endpoints=[stray, endpoint(NEAR)])) == ["near"]


# The rest of a decision.


def test_private_data_goes_to_the_local_model_and_the_record_says_why() -> None:
    decision = decided(ask(metadata={"a": 1}), PRIVATE, NEAR, CHEAP_FAR)
    assert names(decision) == ["near"]
    assert decision.reason == "cheapest of 1 eligible in auto; private data may go to near (local)"
    assert decision.policy == "cheapest"
    assert decision.dropped == ("metadata",)
    assert [(r.model, r.rule) for r in decision.refusals] == [("cheap-far", "data_class_not_cleared")]
    assert decided(ask("private"), PRIVATE, NEAR).reason.startswith("cheapest of 1 eligible in lane private; ")
    assert decided(ask("near"), PRIVATE, NEAR).reason.startswith("near was named; ")
    assert decided(ask("frontier"), PRIVATE, FAR).reason == "refused: data_class_not_cleared"


def test_the_hold_is_the_worst_cost_a_fallback_could_reach() -> None:
    both = decided(ask("cheap", max_tokens=20), PUBLIC, NEAR, CHEAP_FAR)
    assert names(both) == ["near", "cheap-far"]
    assert both.hold == pytest.approx((80 * 10 + 20 * 50) / 1e6)
    choices = decided(ask("frontier", n=3), PUBLIC, hosted(parameters={"n"}))
    assert choices.hold == pytest.approx((80 * 10 + 3 * 1000 * 50) / 1e6)
    unpriced = local(price=None)
    assert decided(ask(), PRIVATE, unpriced).hold is None  # unpriced is never 0
    mixed = decided(ask("cheap", max_tokens=20), PUBLIC, unpriced, CHEAP_FAR)
    assert mixed.hold == both.hold


PRICES = {"a": (10, 50), "b": (20, 50), "c": (30, 50), "d": (40, 50)}


def far(name: str) -> Model:
    return hosted(name, price=Price(input=PRICES[name][0], output=PRICES[name][1]))


def cost(name: str) -> float:
    return (80 * PRICES[name][0] + 1000 * PRICES[name][1]) / 1e6


def test_the_hold_adds_up_what_failed_hosted_attempts_may_cost() -> None:
    both = decided(ask("frontier"), PUBLIC, far("a"), far("b"))
    assert both.worst == (pytest.approx(cost("a")), pytest.approx(cost("b")))
    assert both.hold == pytest.approx(cost("a") + cost("b"))
    # Not more than are tried.
    four = decided(ask("frontier"), PUBLIC, *map(far, "abcd"))
    assert len(four.order) == len(four.worst) == 4
    assert four.hold == pytest.approx(cost("a") + cost("b") + cost("c"))
    # A local attempt that failed costs nothing; it is paid only where it answers.
    twin = decided(ask("a"), PUBLIC, local(same_as="a"), far("a"))
    assert names(twin) == ["a", "near"]
    assert twin.hold == pytest.approx(cost("a") + (80 * 1 + 64 * 2) / 1e6)


def test_fallbacks_that_the_budget_does_not_cover_are_left_out_and_the_request_goes_on() -> None:
    poor = caller(budget_usd=cost("a") + cost("b") + 0.001)
    decision = decided(ask("frontier"), poor, *map(far, "abcd"))
    assert names(decision) == ["a", "b"]
    assert decision.hold == pytest.approx(cost("a") + cost("b"))
    assert [(r.model, r.rule) for r in decision.refusals] == [("c", "budget_exceeded"), ("d", "budget_exceeded")]
    assert "with those before it c may cost" in decision.refusals[0].reason
    exact = caller(budget_usd=cost("a") + cost("b"))
    assert names(decided(ask("frontier"), exact, far("a"), far("b"))) == ["a", "b"]
    spent = decided(ask("frontier"), poor, far("a"), far("b"), spent=cost("b"))
    assert names(spent) == ["a"]


@given(situations())
@settings(max_examples=60)
def test_the_hold_never_asks_for_more_than_the_budget(given_: tuple[Ask, Caller, Findings, Snapshot]) -> None:
    asked, who, findings, seen = given_
    decision = decide(asked, who, findings, seen)
    if who.budget_usd is not None:
        assert (decision.hold or 0.0) <= who.budget_usd + 1e-9
    assert len(decision.worst) == len(decision.order)


def test_bad_counts_are_refused_before_anything_is_decided() -> None:
    with pytest.raises(BadRequest):
        decided(ask(max_tokens=-5), PUBLIC, NEAR)


def test_every_rule_that_can_refuse_has_its_place() -> None:
    assert len(set(PRECEDENCE)) == len(PRECEDENCE)
    order = [  # the rules from the end, each with what it says
        "gpu_trouble", "not_ready", "door_closed", "budget_exceeded", "unpriced", "context_length_exceeded",
        "unsupported_parameter", "ability_missing", "lane_not_allowed", "requirement_not_met", "data_class_not_cleared",
        "not_scannable",
    ]  # fmt: skip
    assert list(PRECEDENCE[: len(order)]) == order
    assert set(PRECEDENCE[len(order) :]) == {
        "not_served", "route_not_offered", "other_lane", "batch_waits", "other_model",
    }  # fmt: skip
    assert [rule.__name__ for rule in RULES[-3:]] == ["ready", "gpu_healthy", "searched"]


def test_of_several_refusals_the_one_closest_to_an_answer_is_told() -> None:
    refusals = [Refusal("m", rule, rule, rule) for rule in PRECEDENCE]
    for first in range(len(refusals)):
        assert main_refusal(refusals[first:][::-1]).rule == PRECEDENCE[first]


def test_a_candidate_that_several_rules_refuse_is_as_far_from_an_answer_as_the_first_says() -> None:
    two = [Refusal("a", "a", "data_class_not_cleared", "x"), Refusal("a", "a", "requirement_not_met", "x")]
    assert main_refusal(two).rule == "data_class_not_cleared"
    assert main_refusal([*two, Refusal("b", "b", "requirement_not_met", "x")]).model == "b"


def test_a_refused_dialect_says_where_to_ask_instead() -> None:
    told = error(decided(ask("far", "messages"), PUBLIC, NEAR, FAR)).message
    assert "far is hosted, and only local models answer on /v1/messages for now." in told
    assert "name a local model, or ask on /v1/chat/completions" in told


def test_nothing_of_an_earlier_answer_is_asked_for_with_the_reason() -> None:
    told = error(decided(ask("near", "responses", previous_response_id="resp_1"), PUBLIC, NEAR, FAR)).message
    assert "are not kept here" in told


@pytest.mark.parametrize("route", ["responses", "messages"])
def test_auto_finds_the_local_model_in_every_dialect(route: Route) -> None:
    found = decided(ask("auto", route), PUBLIC, NEAR, FAR)
    assert [c.name for c in found.order] == ["near"]
    assert [(r.model, r.rule) for r in found.refusals] == [("far", "route_not_offered")]
