"""What the door works out for itself: the class a request has at least, what was promised, what findings mean."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace
from typing import Any

import pytest

from router.door import policy
from router.door.policy import RANKS, Key
from router.errors import Forbidden
from router.permit import Permit
from router.records import Findings
from serving.catalogue import DataClass, Model, Privacy, Provider, Site, Words

KEY = Key("k1", "red", "public", frozenset({"frontier"}), None, None)
PERMIT = Permit(
    id="p", door="d", request="r", key="k1", team="red", route="chat/completions", provider="far", model="big",
    path="chat/completions", data_class="public", body="", policy="v", expires=0.0,
)  # fmt: skip
TODAY = dt.date(2030, 1, 31)
APPROVED = {"by": "security", "contract": "c1", "until": TODAY}


def site(team: str = "public", route: str = "public") -> Site:
    return Site.model_validate({
        "teams": {"red": {"data_class": team}}, "routes": {"chat/completions": {"data_class": route}},
    })  # fmt: skip


def model(**fields: Any) -> Model:
    given = {"name": "big", "place": "hosted", "lanes": ("frontier",), "context": 10, "output": 5}
    return Model.model_validate(given | {"provider": "far", "provider_model": "b"} | fields)


def code(check: Any, *given: Any) -> str:
    """The code of what is refused, "" where nothing is."""
    try:
        check(*given)
    except Forbidden as refused:
        return refused.code
    return ""


def test_a_permit_claims_no_less_than_the_highest_of_key_team_and_route() -> None:
    for key, team, route, claimed in itertools.product(RANKS, repeat=4):
        good = RANKS[claimed] >= max(RANKS[key], RANKS[team], RANKS[route])
        permit, row = replace(PERMIT, data_class=claimed), replace(KEY, data_class=key)
        refused = code(policy.claimed_class, permit, row, site(team, route))
        assert refused == ("" if good else "data_class_lowered"), (key, team, route, claimed)


def test_only_a_key_that_may_declassifies_and_never_what_is_secret() -> None:
    may = replace(KEY, data_class="private", scopes=frozenset({"declassify"}))
    lowered = replace(PERMIT, declassified="published-report")
    assert policy.claimed_class(lowered, may, site("internal", "private")) == "public"
    assert code(policy.claimed_class, PERMIT, may, site()) == "data_class_lowered"
    assert code(policy.claimed_class, lowered, replace(may, scopes=frozenset({"escalate"})), site()) == (
        "declassify_not_allowed"
    )
    for key, team, route in (
        ("secret", "public", "public"),
        ("public", "secret", "public"),
        ("public",) * 2 + ("secret",),
    ):
        row = replace(may, data_class=key)
        assert code(policy.claimed_class, lowered, row, site(team, route)) == "data_class_lowered"
    for reason in ("what Ms Jones said", "x" * 41, "\n", "Ä"):
        assert code(policy.claimed_class, replace(PERMIT, declassified=reason), may, site()) == "permit_invalid"


@pytest.mark.parametrize("field", ["data_class", "media_class"])
def test_a_class_nobody_knows_is_refused(field: str) -> None:
    row: Any = replace(KEY, **{field: "harmless"})
    assert code(policy.claimed_class, PERMIT, row, site()) == "data_class_unknown"


SAYS: dict[str, Any] = {"regions": ["eu"], "retention_days": 0, "trains_on_data": False, "compliance": ["gdpr", "own"]}
WANTED = ("region:eu", "no-retention", "no-training", "tag:gdpr", "tag:own")


@pytest.mark.parametrize("said_by", ["model", "provider"])
def test_what_is_promised_is_enough_and_each_thing_that_is_not_is_refused(said_by: str) -> None:
    for left_out in (None, *SAYS):
        says = {name: value for name, value in SAYS.items() if name != left_out}
        of_model, of_provider = (says, {}) if said_by == "model" else ({}, says)
        given = (model(**of_model), Provider.model_validate(of_provider), TODAY)
        assert (code(policy.promised, WANTED, *given) == "") is (left_out is None), left_out
        assert code(policy.promised, (), *given) == ""


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("region:eu", {"regions": ["eu", "us"]}),
        ("region:eu", {"regions": ["us"]}),
        ("region:eu", {"regions": []}),
        ("region:eu", {"regions": ["eu"], "approved": APPROVED | {"regions": ["us"]}, "clearance": "private"}),
        ("no-retention", {"retention_days": 30}),
        ("no-training", {"trains_on_data": True}),
        ("tag:hipaa", {"compliance": ["gdpr"]}),
        ("no-logs", SAYS),
        ("", SAYS),
    ],
)
def test_what_is_not_promised_is_refused(wanted: str, says: dict[str, Any]) -> None:
    assert code(policy.promised, (wanted,), model(**says), Provider(), TODAY) == "requirement_not_met"


def test_the_models_own_word_goes_before_its_providers() -> None:
    provider = Provider.model_validate({"trains_on_data": False})
    assert code(policy.promised, ("no-training",), model(), provider, TODAY) == ""
    assert code(policy.promised, ("no-training",), model(trains_on_data=True), provider, TODAY) == "requirement_not_met"


def test_key_team_and_route_require_together() -> None:
    found = Site.model_validate({
        "teams": {"red": {"requires": ["region:eu"]}}, "routes": {"chat/completions": {"requires": ["no-training"]}},
    })  # fmt: skip
    row = replace(KEY, requires=frozenset({"tag:gdpr"}))
    assert policy.required(row, "chat/completions", found) == ("no-training", "region:eu", "tag:gdpr")
    assert policy.required(replace(row, team="blue"), "completions", found) == ("tag:gdpr",)


def test_the_doors_own_table_of_effects_is_the_sites_over_the_shipped_one() -> None:
    own = (Words(name="project", data_class=DataClass.secret, words=("Bluebird",)),)
    privacy = Privacy(effects={"email": DataClass.private, "credential": DataClass.internal,
                               "credential_github": DataClass.secret}, own=own)  # fmt: skip
    shipped = [("email", "internal"), ("card", "private"), ("card", "internal"), ("credential_github", "private"),
               ("credential_aws", "secret"), ("credentials", "private")]  # fmt: skip
    assert policy.effects(privacy, shipped) == {
        "email": "private", "card": "private", "credential_github": "secret", "credential_aws": "internal",
        "credentials": "private", "own:project": "secret",
    }  # fmt: skip


def test_findings_have_the_highest_class_of_their_kinds_and_an_unknown_kind_is_secret() -> None:
    table = {"email": "internal", "card": "private", "odd": "harmless"}
    assert policy.found_class({}, table) == ("public", "")
    assert policy.found_class({"email": 2, "card": 1}, table) == ("private", "card")
    assert policy.found_class({"email": 2, "card": 0}, table) == ("internal", "email")
    assert policy.found_class({"email": 1, "new": 1}, table) == ("secret", "new")
    assert policy.found_class({"odd": 1}, table) == ("secret", "odd")


READ, OPAQUE = Findings(10, ()), Findings(10, ("messages[0].content[0]",))


@pytest.mark.parametrize(
    ("claimed", "findings", "unread", "found", "media", "highest", "said"),
    [
        ("public", READ, "", ("public", ""), "private", "public", "public"),
        ("public", READ, "", ("internal", "email"), "private", "public", "data_class_not_cleared"),
        ("public", READ, "", ("internal", "email"), "private", "internal", "internal"),
        ("private", READ, "", ("internal", "email"), "private", "private", "private"),
        ("internal", READ, "", ("private", "card"), "private", "internal", "data_class_not_cleared"),
        ("public", READ, "", ("secret", "jwt"), "private", "private", "data_class_not_cleared"),
        ("secret", READ, "", ("public", ""), "private", "private", "data_class_not_cleared"),
        ("public", READ, "budget", ("public", ""), "public", "internal", "not_scannable"),
        ("public", READ, "budget", ("public", ""), "public", "private", "not_scannable"),
        ("public", OPAQUE, "", ("public", ""), "private", "internal", "not_scannable"),
        ("public", OPAQUE, "", ("public", ""), "internal", "internal", "internal"),
        ("public", OPAQUE, "", ("public", ""), "public", "public", "public"),
        ("public", OPAQUE, "", ("public", ""), "secret", "private", "not_scannable"),
        ("public", OPAQUE, "timeout", ("public", ""), "public", "public", "not_scannable"),
    ],
)
def test_the_final_class_is_the_highest_of_all_and_held_against_the_clearance(
    claimed: str, findings: Findings, unread: str, found: tuple[str, str], media: str, highest: str, said: str
) -> None:
    given = (claimed, findings, unread, found, media, model(), highest)
    if said in RANKS:
        assert policy.cleared(*given) == said
    else:
        assert code(policy.cleared, *given) == said


def test_the_rule_in_the_book_is_the_contract_where_there_has_to_be_one() -> None:
    approved = model(clearance="private", approved=APPROVED)
    assert [policy.rule(approved, name) for name in ("public", "private")] == ["public", "approved:c1"]
