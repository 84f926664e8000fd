"""The rules of privacy: who may receive what, who promises what is required, and that what leaves was searched."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any

import pytest

from router.decision.clearance import cleared, promised
from router.decision.clearance import searched as rule_searched
from router.decision.decide import decide
from router.decision.question import Question, Rule
from router.decision.reasons import refused
from router.decision.traits import describe
from router.records import Ask, Caller, Findings, Found, Past, Refusal
from serving.catalogue import Approval, DataClass, Model
from tests.fakes.asking import (
    TODAY,
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

DAY = dt.timedelta(days=1)
NEAR, FAR = local(), hosted()


def verdict(rule: Rule, asked: Ask, who: Caller, model: Model) -> Refusal | None:
    return rule(candidate(model), question(asked, who, snapshot(model)))


def refusal(rule: Rule, asked: Ask, who: Caller, model: Model) -> Refusal:
    found = verdict(rule, asked, who, model)
    assert found is not None
    assert found.reason and found.remedy
    return found


# cleared

INTERNAL = {"clearance": "internal", "approved": approval()}
PRIVATE = {"clearance": "private", "approved": approval()}


@pytest.mark.parametrize(
    ("data_class", "model", "passes"),
    [
        ("secret", local(), True),
        ("public", hosted(), True),
        ("internal", hosted(), False),
        ("private", hosted(), False),
        ("secret", hosted(), False),
        ("internal", hosted(**INTERNAL), True),
        ("private", hosted(**INTERNAL), False),
        ("private", hosted(**PRIVATE), True),
        ("secret", hosted(**PRIVATE), False),
        ("internal", hosted(clearance="internal", approved=approval(TODAY - DAY)), False),
        ("public", hosted(clearance="internal", approved=approval(TODAY - DAY)), True),
    ],
)
def test_cleared(data_class: str, model: Model, passes: bool) -> None:
    assert (verdict(cleared, ask(), caller(data_class), model) is None) is passes
    # Raised by the caller, it is the same.
    assert (verdict(cleared, ask(raised=data_class), caller("public"), model) is None) is passes


@pytest.mark.parametrize(
    ("who", "raised", "model", "named", "unnamed"),
    [
        ("private", None, FAR, ["headgate keys set k1 --data-class public", "in headgate.yaml, models.far: {clearance: "
         "private, approved: {by, contract, regions, until}}"], []),
        ("internal", None, FAR, ["keys set k1 --data-class public", "models.far: {clearance: internal"], []),
        ("public", "private", FAR, ["leave x-headgate-data-class: private out", "models.far: {clearance: private"],
         ["keys set"]),
        ("secret", None, FAR, ["keys set k1 --data-class public", "secret data never leaves"], ["models.far"]),
        ("public", "secret", FAR, ["secret data never leaves"], ["models.far", "keys set"]),
        ("private", None, hosted(**INTERNAL), ["keys set k1 --data-class internal"], []),
        # Two who say the same: both lines must change.
        ("private", "private", FAR, ["keys set k1 --data-class public; and leave x-headgate-data-class"], []),
    ],
)  # fmt: skip
def test_cleared_names_the_lines_that_would_change_it(
    who: str, raised: str | None, model: Model, named: list[str], unnamed: list[str]
) -> None:
    found = refusal(cleared, ask(raised=raised), caller(who), model)
    assert (found.rule, found.passing) == ("data_class_not_cleared", False)
    assert all(words in found.remedy for words in named), found.remedy
    assert not any(words in found.remedy for words in unnamed), found.remedy


def test_cleared_says_who_may_receive_what_and_why() -> None:
    found = refusal(cleared, ask(), caller("private"), FAR)
    assert found.reason == "far (hosted) may receive public data; this is private, since key k1 is private"


SEEN = Findings(
    10, ("messages[0].content[1]",), searched=True, found=(Found("card", DataClass.private, 1, "messages[0].content"),),
    past=(Past(DataClass.private, "a text of it was private before", "h1"),),
)  # fmt: skip


def test_a_refusal_names_the_line_for_every_source_above_the_clearance() -> None:
    site: dict[str, Any] = {
        "teams": {"search": {"data_class": "private"}}, "routes": {"chat/completions": {"data_class": "private"}},
    }  # fmt: skip
    (found,) = decided(ask("far"), caller("public"), FAR, findings=SEEN, **site).refusals
    assert found.remedy == (
        "in headgate.yaml, teams.search.data_class: public; and in headgate.yaml, routes.chat/completions.data_class: "
        "public; and headgate privacy release h1; and take the card out of the request (for all requests, in "
        "headgate.yaml, privacy.effects: {card: public}); and headgate keys set k1 --media-class public; or in "
        "headgate.yaml, models.far: {clearance: private, approved: {by, contract, regions, until}}"
    )


def test_what_the_caller_has_lowered_is_no_reason_and_needs_no_line() -> None:
    """Else somebody makes a key public for a card that stays in the request."""
    who = caller("private", scopes=frozenset({"declassify"}))
    findings = SEEN._replace(past=(), opaque=())
    (found,) = decided(ask("far", raised="public", declassify="x"), who, FAR, findings=findings).refusals
    assert found.reason.endswith("since 1 finding of the kind card in messages[0].content counts as private")
    assert "take the card out" in found.remedy and "keys set" not in found.remedy
    (found,) = decided(ask("far"), who, FAR, findings=SEEN._replace(found=(), past=(), opaque=())).refusals
    assert found.remedy.startswith("send x-headgate-data-class: public with a word in x-headgate-reason; or")


def test_many_entries_of_the_history_are_released_by_the_request_that_they_held_back() -> None:
    many = " ".join(f"{number:016x}" for number in range(7))
    findings = SEEN._replace(past=(Past(DataClass.private, "a text of it was private before", many),))
    (found,) = decided(ask("far"), caller("public"), FAR, findings=findings).refusals
    assert f"headgate privacy release --from {ask().id};" in found.remedy
    few = many[:33]
    (found,) = decided(ask("far"), caller("public"), FAR, findings=findings._replace(
        past=(findings.past[0]._replace(id=few),))).refusals  # fmt: skip
    assert f"headgate privacy release {few};" in found.remedy


# promised


def far(**said: Any) -> Model:
    return hosted(**said)


EU = Approval(by="dpo", contract="c", regions=("EU",), until=TODAY)


@pytest.mark.parametrize(
    ("requires", "model", "unmet"),
    [
        (set(), far(), set()),
        ({"region:eu"}, far(), {"region:eu"}),  # nobody said: unknown is not promised
        ({"region:eu"}, far(regions=()), {"region:eu"}),
        ({"region:eu"}, far(regions=["eu"]), set()),
        ({"region:eu"}, far(regions=["us"]), {"region:eu"}),
        ({"region:eu"}, far(regions=["eu", "us"]), {"region:eu"}),  # it may go to the other one
        ({"region:eu"}, far(regions=["eu-west"]), {"region:eu"}),
        ({"region:eu", "region:us"}, far(regions=["eu", "us"]), {"region:eu", "region:us"}),
        ({"region:eu"}, far(approved=EU), set()),  # by contract
        ({"region:eu"}, far(approved=EU, regions=["us"]), {"region:eu"}),
        ({"region:eu"}, far(approved=EU.model_copy(update={"until": TODAY - DAY})), {"region:eu"}),
        ({"tag:gdpr"}, far(), {"tag:gdpr"}),
        ({"tag:gdpr"}, far(compliance=["soc2", "gdpr"]), set()),
        ({"tag:gdpr", "tag:hipaa"}, far(compliance=["gdpr"]), {"tag:hipaa"}),
        ({"no-training"}, far(), {"no-training"}),
        ({"no-training"}, far(trains_on_data=True), {"no-training"}),
        ({"no-training"}, far(trains_on_data=False), set()),
        ({"no-retention"}, far(), {"no-retention"}),
        ({"no-retention"}, far(retention_days=1), {"no-retention"}),
        ({"no-retention"}, far(retention_days=0), set()),
        ({"a word of a later release"}, far(compliance=["a"]), {"a word of a later release"}),
        ({"region:"}, far(), {"region:"}),
        ({"region:eu", "no-training"}, local(), set()),  # what stays is not promised to anybody
    ],
)
def test_promised(requires: set[str], model: Model, unmet: set[str]) -> None:
    asked = question(ask(), caller(requires=frozenset(requires)), snapshot(model))
    found = promised(candidate(model), asked)
    assert (found is None) is not unmet
    assert model.place == "local" or set(model.unmet(requires, TODAY)) == unmet
    assert found is None or (found.rule, found.passing) == ("requirement_not_met", False)


@pytest.mark.parametrize("who", ["key", "team", "route"])
def test_key_team_and_route_each_may_require_something(who: str) -> None:
    wants = {"requires": ["no-training"]}
    site: dict[str, Any] = {"team": {"teams": {"search": wants}}, "route": {"routes": {"chat/completions": wants}}}
    asking = caller(requires=frozenset(wants["requires"] if who == "key" else ()))
    found = decided(ask("far"), asking, far(), **site.get(who, {}))
    (refused,) = found.refusals
    named = {"key": "key k1", "team": "team search", "route": "the route chat/completions"}[who]
    assert refused.reason == f"far (hosted) does not promise not to train on what it is sent; required by {named}"
    assert "if its provider promises that, in headgate.yaml, models.far: {trains_on_data: false}" in refused.remedy
    assert ("headgate keys set k1 --requires none" in refused.remedy) is (who == "key")
    assert found.traits.requires == {"no-training"}
    assert decided(ask("far"), asking, far(trains_on_data=False), **site.get(who, {})).order


def test_a_region_that_is_not_kept_is_said_with_those_that_are() -> None:
    asking = caller(requires=frozenset({"region:eu", "tag:hipaa"}))
    found = refusal(promised, ask("far"), asking, far(regions=["eu", "us"]))
    assert "to keep data in eu alone and what hipaa asks for (its data may be in eu, us); required by" in found.reason
    assert "models.far: {regions: [eu], compliance: [hipaa]}" in found.remedy


# searched


@pytest.mark.parametrize(
    ("seen", "model", "passes"),
    [
        ({}, FAR, True),
        ({"searched": False}, FAR, False),
        ({"searched": False}, hosted(**PRIVATE), False),
        ({"unread": "budget"}, hosted(**PRIVATE), False),
        ({"unread": "a word nobody knows"}, hosted(**PRIVATE), False),
        ({"searched": False, "unread": "error"}, FAR, False),
        ({"searched": False}, NEAR, True),
        ({"unread": "timeout"}, NEAR, True),
    ],
)
def test_searched(seen: dict[str, Any], model: Model, passes: bool) -> None:
    asked, who = ask(), caller()
    findings = searched(asked.body, **seen)
    whole = snapshot(model)
    traits = describe(asked, who, findings, whole.catalogue.site)
    found = rule_searched(candidate(model), Question(asked, who, traits, whole))
    assert (found is None) is passes
    assert found is None or (found.rule, found.passing, bool(found.remedy)) == ("not_scannable", False, True)
    assert bool(decide(asked, who, findings, whole).order) is passes


def test_of_what_was_not_searched_the_reason_is_told_for_which_it_was_not() -> None:
    """Not that it was not searched: nobody can change that."""
    unasked = Findings(10, ())
    closed = endpoint(FAR, state="closed")
    assert [r.rule for r in decided(ask("far"), caller(), FAR, endpoints=[closed], findings=unasked).refusals] == [
        "door_closed"
    ]
    rules = [r.rule for r in decided(ask("far"), caller("private"), FAR, findings=unasked).refusals]
    assert rules == ["data_class_not_cleared"]
    assert [r.rule for r in decided(ask("far"), caller(), FAR, findings=unasked).refusals] == ["not_scannable"]


def test_every_reason_of_privacy_is_said_at_once() -> None:
    who = caller("internal", requires=frozenset({"no-training"}))
    decision = decided(ask("far"), who, FAR, findings=searched({}, unread="error"))
    assert [r.rule for r in decision.refusals] == ["not_scannable", "data_class_not_cleared", "requirement_not_met"]
    told = refused(decision, 7)
    assert (told.status, told.code) == (403, "not_scannable")
    for words in (
        "its search failed. To",
        "Besides, far (hosted) may receive public",
        "Besides, far (hosted) does not",
    ):
        assert words in told.message


def test_each_reason_ends_before_the_next_begins() -> None:
    """Also one whose remedy only tells where to look, and one without a remedy."""
    stands = (
        Refusal("far", "far", "not_ready", "it rests", "see: headgate status"),
        Refusal("far", "far", "not_ready", "it is far away"),
        Refusal("far", "far", "not_ready", "it sleeps", "see: headgate logs"),
    )
    for order in itertools.permutations(stands):
        told = refused(decided(ask("far"), caller(), FAR)._replace(order=(), refusals=order), 7).message
        assert len(re.findall(r"(?<!\.)\. Besides, ", told)) == 2, told


def test_a_scanner_that_does_not_work_is_no_fault_of_the_request() -> None:
    """It is told to come again, and of nothing that would have to be changed for ever."""
    decision = decided(ask("far"), caller(), FAR, findings=searched({}, unread="scanner"))
    assert [r.rule for r in decision.refusals] == ["door_closed"]
    told = refused(decision, 7)
    assert (told.status, told.code, told.retry_after) == (503, "door_closed", 7)
    assert "the scanner does not work" in told.message and "keys set" not in told.message
    lasting = decided(ask("far"), caller("internal"), FAR, findings=searched({}, unread="scanner"))
    assert [r.rule for r in lasting.refusals] == ["data_class_not_cleared"]
    assert refused(lasting, 7).status == 403, "it is internal whatever the scanner says"
