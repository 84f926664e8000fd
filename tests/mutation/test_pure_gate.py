"""The gate's pure parts, over all that can be said at once, beside a second reckoning of few lines.

Quick, so that every mutant of the gate can be held against them; what a person would ask of each part stands in the
tests of its own folder.
"""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import orjson
import pytest

from router import permit as permits
from router.decision.clearance import PRIVACY, cleared, idle, promised, refusals_of, searched
from router.decision.eligibility import RULES, against, judge
from router.decision.question import Question
from router.decision.sensitivity import SAID, data_class_of, lowers, unsearched
from router.decision.traits import describe
from router.door import policy
from router.errors import BadRequest, Forbidden, HeadgateError
from router.permit import LIFETIME_S, Permit, PermitError, body_hash
from router.records import Caller, Findings, Found, Past, Source
from serving.catalogue import Approval, Catalogue, DataClass, Model, Privacy, Provider, Site
from tests.fakes.asking import TODAY, ask, candidate, hosted, local, snapshot

CLASSES = tuple(DataClass)
NAMES = tuple(one.name for one in DataClass)
MAYBE = (None, *CLASSES)
PUBLIC, INTERNAL, PRIVATE, SECRET = CLASSES
SCOPED = frozenset({"declassify"})


@lru_cache
def site_of(team: DataClass | None, route: DataClass | None) -> Site:
    """A site that says this of the team `red` and of chat completions."""
    fields: dict[str, Any] = {}
    if team is not None:
        fields["teams"] = {"red": {"data_class": team.name}}
    if route is not None:
        fields["routes"] = {"chat/completions": {"data_class": route.name}}
    return Site(**fields)


def caller(data_class: DataClass = PUBLIC, **changed: Any) -> Caller:
    fields: dict[str, Any] = {"key": "k1", "team": "red", "data_class": data_class, "lanes": frozenset({"frontier"})}
    return Caller(**fields | changed)


def code_of(work: Callable[[], object]) -> str:
    """The code of the refusal, or "" where there is none."""
    try:
        work()
    except HeadgateError as refused:
        return str(refused.code or type(refused).__name__)
    return ""


# ---- sensitivity: which class


def drawn(count: int) -> list[dict[str, Any]]:
    """Ways in which a request can be spoken of; always the same ones."""
    dice = random.Random(5)
    return [
        {"key": dice.choice(CLASSES), "team": dice.choice(MAYBE), "route": dice.choice(MAYBE),
         "label": dice.choice(MAYBE), "past": dice.choice(MAYBE), "found": dice.choice(MAYBE),
         "media": dice.choice(CLASSES), "opaque": dice.random() < 0.3, "searched": dice.random() < 0.8,
         "unread": dice.choice(("", "", "", "budget", "a new word")), "lowers": dice.random() < 0.3}
        for _ in range(count)
    ]  # fmt: skip


def test_the_class_is_the_highest_of_all_and_only_people_s_words_can_be_lowered() -> None:
    for one in drawn(3000):
        past = (Past(one["past"], "it was", "e1"),) if one["past"] is not None else ()
        found = (Found("card", one["found"], 2, "messages[0].content"),) if one["found"] is not None else ()
        opaque = ("messages[0].content[1]",) if one["opaque"] else ()
        findings = Findings(9, opaque, searched=one["searched"], found=found, past=past, unread=one["unread"])
        asked = ask(raised=one["label"].name if one["label"] is not None else None)
        asked = asked._replace(declassify="published" if one["lowers"] else None)
        who = caller(one["key"], media_class=one["media"], scopes=SCOPED)
        site = site_of(one["team"], one["route"])
        spoken = [said for said in (one["key"], one["team"], one["route"]) if said is not None]
        seen = [said for said in (one["past"], one["found"]) if said is not None]
        seen += [one["media"]] if opaque else []
        seen += [PRIVATE] if one["searched"] and one["unread"] else []
        if one["lowers"] and one["label"] is None:
            with pytest.raises(BadRequest) as refused:
                data_class_of(asked, who, findings, site)
            assert refused.value.param == "x-headgate-reason"
            continue
        if one["lowers"]:
            spoken = [said for said in spoken if said is SECRET]
        wanted = max([PUBLIC, *spoken, *seen, *([one["label"]] if one["label"] is not None else [])])
        everything = [
            *spoken,
            *seen,
            one["key"],
            *(x for x in (one["team"], one["route"], one["label"]) if x is not None),
        ]
        given = data_class_of(asked, who, findings, site)
        assert given.data_class is wanted, one
        assert [source.data_class for source in given.sources] == sorted(
            (source.data_class for source in given.sources), reverse=True
        )
        assert {s.data_class for s in given.sources} == {c for c in everything if c > PUBLIC}, one
        assert bool(given.declassified) == (one["lowers"] and wanted < max(everything)), one
        told = [source.why for source in given.sources if source.data_class is wanted]
        assert given.why in told or given.why == f"key k1 lowered it to {wanted.name}: published" or wanted is PUBLIC
        assert wanted.name in given.why


def test_each_source_is_called_by_its_name() -> None:
    findings = Findings(
        9, ("prompt",), searched=True, found=(Found("card", PRIVATE, 1, "messages[0].content"),),
        past=(Past(PRIVATE, "it was", "e1"),), unread="timeout",
    )  # fmt: skip
    given = data_class_of(ask(raised="private"), caller(PRIVATE), findings, site_of(PRIVATE, PRIVATE))
    kinds = [source.kind for source in given.sources]
    assert kinds == ["key", "team", "route", "request", "past", "found", "media", "unread"]
    assert SAID == ("key", "team", "route")
    assert given.why == "key k1 is private" and given.declassified == ""
    names = {source.kind: source.name for source in given.sources}
    assert names["past"] == "e1" and names["found"] == "card"
    nameless = data_class_of(
        ask(), caller(), Findings(9, (), past=(Past(PRIVATE, "it cannot be looked up", ""),)), Site()
    )
    assert nameless.why == "it cannot be looked up, so it is private"
    assert "e1" in next(s.why for s in given.sources if s.kind == "past")
    for ids, entries in {
        "e1": "entry e1", "e1 e2 e3 e4": "entries e1, e2, e3, e4",
        "e1 e2 e3 e4 e5": "entries e1, e2, e3, e4 and 1 more",
    }.items():  # fmt: skip
        (source,) = data_class_of(
            ask(), caller(), Findings(9, (), past=(Past(PRIVATE, "it was", ids),)), Site()
        ).sources
        assert (source.why, source.name) == (f"it was ({entries} of the history), so it is private", ids)
    several = (Found("card", PRIVATE, 1, "messages[0].anna"),)
    (told,) = data_class_of(ask(), caller(), Findings(9, (), searched=True, found=several), Site()).sources
    assert "in messages[0] counts" in told.why
    clean = data_class_of(ask(), caller(), Findings(9, ()), Site())
    assert (clean.data_class, clean.why, clean.sources, clean.declassified) == (PUBLIC, "key k1 is public", (), "")


def test_who_may_lower() -> None:
    asked = ask(raised="public")._replace(declassify="published")
    with pytest.raises(Forbidden) as refused:
        data_class_of(asked, caller(PRIVATE), Findings(9, ()), Site())
    assert refused.value.code == "declassify_not_allowed"
    given = data_class_of(asked, caller(PRIVATE, scopes=SCOPED), Findings(9, ()), Site())
    assert (given.data_class, given.declassified) == (PUBLIC, "published")
    assert given.why == "key k1 lowered it to public: published"
    nothing = data_class_of(asked, caller(scopes=SCOPED), Findings(9, ()), Site())
    assert (nothing.data_class, nothing.sources, nothing.declassified) == (PUBLIC, (), "")


@pytest.mark.parametrize(
    ("findings", "stays"),
    [
        (Findings(9, ()), "it was not searched"), (Findings(9, (), searched=True), ""),
        (Findings(9, (), searched=True, unread="budget"), "too much"),
        (Findings(9, (), searched=True, unread="timeout"), "in time"),
        (Findings(9, (), searched=True, unread="error"), "failed"),
        (Findings(9, (), searched=True, unread="scanner"), "scanner"),
        (Findings(9, (), searched=True, unread="a new word"), "not every byte"),
        (Findings(9, (), searched=False, unread="budget"), "it was not searched"),
    ],
)  # fmt: skip
def test_what_was_not_searched_whole_says_so(findings: Findings, stays: str) -> None:
    said = unsearched(findings)
    assert (stays in said) if stays else said == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ((Found("card", PRIVATE, 1, "messages[2].content"),),
         "1 finding of the kind card in messages[2].content counts as private"),
        ((Found("card", PRIVATE, 2, "prompt"),), "2 findings of the kind card, the first in prompt count as private"),
        ((Found("card", PRIVATE, 1, "tools[0].function.Anna.x"), Found("card", PRIVATE, 1, "user")),
         "2 findings of the kind card, the first in tools[0].function count as private"),
        ((Found("card", PRIVATE, 1, "Anna"),), "1 finding of the kind card in a part of the body counts as private"),
        ((Found("card", PRIVATE, 1, "tools[0].enum[1]"),), "in tools[0].enum[1] counts"),
    ],
)  # fmt: skip
def test_a_finding_is_told_by_kind_count_and_place(found: tuple[Found, ...], words: str) -> None:
    given = data_class_of(ask(), caller(), Findings(9, (), searched=True, found=found), Site())
    assert words in given.why
    assert "Anna" not in given.why


def test_findings_of_one_kind_with_two_classes_and_of_none() -> None:
    found = (Found("card", PRIVATE), Found("card", SECRET), Found("word", PUBLIC))
    given = data_class_of(ask(), caller(), Findings(9, (), searched=True, found=found), Site())
    assert [(s.kind, s.name, s.data_class) for s in given.sources] == [
        ("found", "card", SECRET),
        ("found", "card", PRIVATE),
    ]


@pytest.mark.parametrize(("path", "where"), [("prompt[0]", "prompt[0]"), ("Anna.b", "a part of the body")])
def test_media_are_told_by_their_place(path: str, where: str) -> None:
    given = data_class_of(ask(), caller(media_class=SECRET), Findings(9, (path, "x")), Site())
    assert given.why == f"{where} cannot be read and so counts as secret"


# ---- the rules of privacy


def question(findings: Findings, who: Caller, *models: Model, **site: Any) -> Question:
    seen, asked = snapshot(*models, **site), ask()
    catalogue = seen.catalogue.site
    route = catalogue.routes.get(asked.route)
    return Question(asked, who, describe(asked, who, findings, catalogue), seen, *([route] if route else []))


def approved(name: str, **changed: Any) -> Model:
    """A hosted model that may receive this class until today."""
    terms = {} if name == "public" else {"clearance": DataClass[name], "approved": APPROVED}
    return hosted(**terms | changed)


APPROVED = Approval(by="dpo", contract="c", until=TODAY)
SEARCHED = Findings(9, (), searched=True)


@pytest.mark.parametrize(("data_class", "clearance"), [*itertools.product(NAMES, NAMES[:3])])
def test_cleared(data_class: str, clearance: str) -> None:
    model = approved(clearance)
    refusal = cleared(candidate(model), question(SEARCHED, caller(DataClass[data_class]), model))
    assert (refusal is None) == (DataClass[data_class] <= DataClass[clearance])
    if refusal is not None:
        assert refusal.rule == "data_class_not_cleared"
        assert f"may receive {clearance} data; this is {data_class}, since key k1 is {data_class}" in refusal.reason
    assert cleared(candidate(local()), question(SEARCHED, caller(DataClass[data_class]), local())) is None


PROMISES: dict[str, dict[str, Any]] = {
    "region:eu": {"regions": ("eu",)}, "tag:gdpr": {"compliance": ("gdpr",)}, "no-training": {"trains_on_data": False},
    "no-retention": {"retention_days": 0},
}  # fmt: skip


@pytest.mark.parametrize("wanted", PROMISES)
def test_promised(wanted: str) -> None:
    who = caller(requires=frozenset({wanted}))
    silent, good = hosted(), hosted(**PROMISES[wanted])
    refusal = promised(candidate(silent), question(SEARCHED, who, silent))
    assert refusal is not None and refusal.rule == "requirement_not_met" and "key k1" in refusal.reason
    assert promised(candidate(good), question(SEARCHED, who, good)) is None
    assert promised(candidate(local()), question(SEARCHED, who, local())) is None
    assert promised(candidate(silent), question(SEARCHED, caller(), silent)) is None


def test_searched() -> None:
    far = hosted()
    for findings in (Findings(9, ()), SEARCHED._replace(unread="budget")):
        refusal = searched(candidate(far), question(findings, caller(), far))
        assert refusal is not None and refusal.rule == "not_scannable"
        assert searched(candidate(local()), question(findings, caller(), far)) is None
    assert searched(candidate(far), question(SEARCHED, caller(), far)) is None


def test_what_a_broken_scanner_did_not_search_is_refused_for_now_and_for_nothing_else() -> None:
    broken, far, strict = SEARCHED._replace(unread="scanner"), hosted(), frozenset({"no-training"})
    refusal = searched(candidate(far), question(broken, caller(), far))
    assert refusal is not None and (refusal.rule, refusal.passing) == ("door_closed", True)
    other = searched(candidate(far), question(SEARCHED._replace(unread="budget"), caller(), far))
    assert other is not None and not other.passing

    def rules(findings: Findings, who: Caller, model: Model) -> tuple[list[str], list[str]]:
        asked = question(findings, who, model)
        eligible, refusals = judge([candidate(model)], asked)
        assert not eligible
        return [one.rule for one in refusals], [one.rule for one in against([candidate(model)], asked)]

    for model in (far, approved("internal"), approved("private")):
        assert rules(broken, caller(), model) == (["door_closed"],) * 2
    trusted = approved("internal")
    assert rules(broken, caller(INTERNAL), trusted) == (["door_closed"],) * 2
    assert rules(broken, caller(INTERNAL), far) == (["data_class_not_cleared"],) * 2  # whatever it would find
    assert rules(broken, caller(requires=strict), far) == (["door_closed", "requirement_not_met"],) * 2
    near = candidate(local())
    assert not any(idle(rule, near, question(broken, caller(), far)) for rule in RULES)
    assert not any(idle(rule, candidate(far), question(SEARCHED, caller(), far)) for rule in RULES)


def test_each_privacy_rule_counts_alone_and_all_of_them_are_told() -> None:
    far, good = hosted(), caller()
    assert set(PRIVACY) == {searched, cleared, promised} and set(PRIVACY) <= set(RULES)

    def rules(findings: Findings, who: Caller) -> list[str]:
        eligible, refusals = judge([candidate(far)], question(findings, who, far))
        assert bool(eligible) == (not refusals)
        return [refusal.rule for refusal in refusals]

    strict = frozenset({"no-training"})
    assert rules(SEARCHED, good) == []
    kept = hosted(trains_on_data=False)
    asked = question(SEARCHED, caller(requires=strict), kept)
    _, other = judge([candidate(kept)], asked._replace(traits=asked.traits._replace(needs=frozenset({"vision"}))))
    assert [refusal.rule for refusal in other] == ["ability_missing"]
    assert rules(Findings(9, ()), good) == ["not_scannable"]
    assert rules(SEARCHED, caller(PRIVATE)) == ["data_class_not_cleared"]
    assert rules(SEARCHED, caller(requires=strict)) == ["requirement_not_met"]
    assert rules(SEARCHED, caller(PRIVATE, requires=strict)) == ["data_class_not_cleared", "requirement_not_met"]
    assert rules(Findings(9, ()), caller(PRIVATE)) == ["data_class_not_cleared"]  # for that it was not searched
    assert rules(SEARCHED._replace(unread="budget"), good)[:2] == ["not_scannable", "data_class_not_cleared"]


def test_against_tells_every_rule_and_the_first_as_judge_does() -> None:
    far, near, bound = hosted(), local(), frozenset({"no-training"})
    rules = [
        ("data_class_not_cleared", {"data_class": PRIVATE}), ("requirement_not_met", {"requires": bound}),
        ("lane_not_allowed", {"lanes": frozenset({"private"})}), ("budget_exceeded", {"budget_usd": 0.0}),
    ]  # fmt: skip
    for count in range(len(rules) + 1):
        for some in itertools.combinations(rules, count):
            who = caller(**{name: value for _, fields in some for name, value in fields.items()})
            for findings, more in ((SEARCHED, []), (SEARCHED._replace(unread="budget"), ["not_scannable"])):
                asked = question(findings, who, far)
                said = [refusal.rule for refusal in against([candidate(far), candidate(far)], asked)]
                assert said[: len(said) // 2] == said[len(said) // 2 :], "each candidate has its own"
                wanted = {rule for rule, _ in some} | set(more)
                if more:
                    wanted |= {"data_class_not_cleared"}  # what was not read whole counts as private
                assert set(said) == wanted and len(said) == 2 * len(wanted)
                first = judge([candidate(far)], asked)[1]
                assert [r.rule for r in first[:1]] == said[:1]
    unasked = question(Findings(9, ()), caller(PRIVATE, requires=bound, lanes=frozenset({"private"})), far)
    assert [r.rule for r in against([candidate(far)], unasked)] == [
        "data_class_not_cleared", "requirement_not_met", "lane_not_allowed",
    ]  # fmt: skip
    alone = question(Findings(9, ()), caller(), far)
    assert [r.rule for r in against([candidate(far)], alone)] == ["not_scannable"], "nothing else is in the way"
    other = snapshot(far, near)
    named = Question(ask("far"), caller(PRIVATE, lanes=frozenset()), alone.traits._replace(named="far"), other)
    assert [r.rule for r in against([candidate(near)], named)] == ["other_model"], "nobody asked for that one"
    assert against([], alone) == []


def test_what_was_asked_already_is_told_as_it_was() -> None:
    far = hosted()
    asked = question(SEARCHED, caller(PRIVATE), far)
    first = cleared(candidate(far), asked)
    assert first is not None
    assert refusals_of(candidate(far), asked, cleared, first) == [first]
    assert refusals_of(candidate(far), asked, cleared, first)[0] is first


# ---- the permit

BODY, KEY_TEXT, NOW = b'{"model":"m"}', "s" * 64, 1_000_000.0
GOOD = Permit(
    id="p1", door="d1", request="r1", key="k1", team="red", route="chat/completions", provider="far", model="big",
    path="chat/completions", data_class="public", body=body_hash(BODY), policy="v1", expires=NOW + LIFETIME_S,
)  # fmt: skip


def opened(token: str, *, door: str = "d1", body: bytes = BODY, now: float = NOW) -> Permit:
    return permits.check(token, KEY_TEXT, door=door, body=body, now=now)


def sealed(claims: Any) -> str:
    """Any claims under a good seal."""
    text = base64.urlsafe_b64encode(orjson.dumps(claims)).decode()
    return f"{text}.{permits._mac(text, KEY_TEXT)}"


def test_a_permit_is_what_was_sealed() -> None:
    token = permits.seal(GOOD, KEY_TEXT)
    assert opened(token) == GOOD
    assert token == permits.seal(GOOD, KEY_TEXT)
    assert orjson.loads(base64.urlsafe_b64decode(token.partition(".")[0])) == asdict(GOOD)
    assert LIFETIME_S == 5.0
    fields = {name: value for name, value in asdict(GOOD).items() if name != "declassified"}
    assert Permit(**fields).declassified == ""


def test_the_moment_counts_on_both_sides() -> None:
    token = permits.seal(GOOD, KEY_TEXT)
    assert opened(token, now=GOOD.expires) == GOOD
    assert opened(token, now=GOOD.expires - 2 * LIFETIME_S) == GOOD
    for now in (GOOD.expires + 0.01, GOOD.expires - 2 * LIFETIME_S - 0.01):
        with pytest.raises(PermitError, match="expired"):
            opened(token, now=now)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (permits.seal(GOOD, "t" * 64), "seal"), ("é" * 20, "cannot be read"), ("", "seal"), ("a.b", "seal"),
        (sealed(asdict(GOOD) | {"more": 1}), "fields"), (sealed({"id": "x"}), "fields"), (sealed([1]), "fields|read"),
        (sealed("text"), "read|fields"), (sealed(asdict(GOOD) | {"team": 1}), "fields"), (sealed(7), "read"),
        (sealed(asdict(GOOD) | {"expires": "1"}), "fields"), (sealed(asdict(GOOD) | {"declassified": None}), "fields"),
        (f"AAA.{permits._mac('AAA', KEY_TEXT)}", "read"), (f"AAAA.{permits._mac('AAAA', KEY_TEXT)}", "read"),
    ],
)  # fmt: skip
def test_what_is_no_permit_is_said_to_be_none(token: str, why: str) -> None:
    with pytest.raises(PermitError, match=why):
        opened(token)


def test_a_permit_is_for_one_door_and_one_body() -> None:
    token = permits.seal(GOOD, KEY_TEXT)
    for other, why in (({"door": "d2"}, "another door"), ({"body": b"{}"}, "another body")):
        with pytest.raises(PermitError, match=why):
            opened(token, **other)
    assert opened(sealed(asdict(GOOD) | {"expires": int(NOW) + 1})).expires == NOW + 1


# ---- the door's policy

FAR = Provider(enabled=True, base_url="https://far.example/v1")
BIG = hosted("big", provider="far", provider_model="far-1", parameters={"temperature"})
ROW = policy.Key("k1", "red", "public", frozenset({"frontier"}), None, None)


def catalogue(**changed: Any) -> Catalogue:
    fields: dict[str, Any] = {"models": {"big": BIG, "near": local("near")}, "providers": {"far": FAR}}
    return Catalogue(**fields | changed)


def test_where_a_permit_leads() -> None:
    held = catalogue()
    good = replace(GOOD, policy=held.version)
    body = {"model": "big"}
    assert policy.destination(good, body, held) == (BIG, FAR)
    for changed, other, code in (
        ({"policy": "v0"}, body, "policy_mismatch"), ({"model": "none"}, body, "model_unknown"),
        ({"model": "near"}, {"model": "near"}, "model_unknown"), ({}, {"model": "other"}, "model_mismatch"),
        ({}, {}, "model_mismatch"), ({"provider": "near"}, body, "provider_mismatch"),
        ({"path": "files", "route": "files"}, body, "path_not_allowed"),
        ({"route": "embeddings"}, body, "path_not_allowed"),
        ({"path": "responses", "route": "responses"}, body, "path_not_allowed"),
    ):  # fmt: skip
        assert code_of(lambda c=changed, o=other: policy.destination(replace(good, **c), o, held)) == code
    for path in ("chat/completions", "completions", "embeddings"):
        assert policy.destination(replace(good, path=path, route=path), body, held)
    shut = catalogue(providers={"far": FAR.model_copy(update={"enabled": False})})
    assert code_of(lambda: policy.destination(replace(GOOD, policy=shut.version), body, shut)) == "provider_disabled"
    gone = catalogue(providers={})
    assert code_of(lambda: policy.destination(replace(GOOD, policy=gone.version), body, gone)) == "provider_mismatch"
    assert len(policy.PATHS) == 3


def test_which_key_works() -> None:
    model = BIG
    assert policy.key_works(GOOD, ROW, model, NOW) == ROW
    assert policy.key_works(GOOD, replace(ROW, expires=NOW + 1), model, NOW)
    wrong: tuple[tuple[policy.Key | None, str], ...] = (
        (None, "key_unknown"), (replace(ROW, revoked=NOW - 1), "key_revoked"),
        (replace(ROW, revoked=0.0), "key_revoked"),
        (replace(ROW, expires=NOW), "key_expired"), (replace(ROW, expires=NOW - 1), "key_expired"),
        (replace(ROW, team="blue"), "team_mismatch"), (replace(ROW, lanes=frozenset({"cheap"})), "lane_not_allowed"),
    )  # fmt: skip
    for row, code in wrong:
        assert code_of(lambda r=row: policy.key_works(GOOD, r, model, NOW)) == code


def test_which_class_a_permit_may_claim() -> None:
    for key, team, route, claimed in itertools.product(CLASSES, MAYBE, MAYBE, CLASSES):
        site = site_of(team, route)
        least = max(said for said in (key, team, route) if said is not None)
        permit, row = replace(GOOD, data_class=claimed.name), replace(ROW, data_class=key.name)
        code = code_of(lambda p=permit, r=row, s=site: policy.claimed_class(p, r, s))
        assert code == ("" if claimed >= least else "data_class_lowered"), (key, team, route, claimed)
        lowers = replace(permit, declassified="published")
        assert code_of(lambda p=lowers, r=row, s=site: policy.claimed_class(p, r, s)) == "declassify_not_allowed"
        may = replace(row, scopes=SCOPED)
        code = code_of(lambda p=lowers, r=may, s=site: policy.claimed_class(p, r, s))
        assert code == ("data_class_lowered" if least is SECRET and claimed is not SECRET else "")
        if not code:
            assert policy.claimed_class(lowers, may, site) == claimed.name


def test_whose_class_it_is_and_what_is_no_class() -> None:
    other = Site(teams={"blue": {"data_class": "secret"}}, routes={"embeddings": {"data_class": "secret"}})
    assert policy.claimed_class(GOOD, ROW, other) == "public"
    may = replace(ROW, scopes=SCOPED)
    for permit, row, code in (
        (replace(GOOD, data_class="open"), ROW, "data_class_unknown"),
        (GOOD, replace(ROW, data_class=""), "data_class_unknown"),
        (GOOD, replace(ROW, media_class="none"), "data_class_unknown"),
        (replace(GOOD, declassified="A sentence that could hold a text."), may, "permit_invalid"),
        (replace(GOOD, declassified="x" * 41), may, "permit_invalid"),
    ):
        assert code_of(lambda p=permit, r=row: policy.claimed_class(p, r, Site())) == code
    for good in ("x" * 40, "a", "published_2026-01"):
        assert policy.claimed_class(replace(GOOD, declassified=good), may, Site()) == "public"
    fresh = policy.Key("k1", "red", "public", frozenset(), None, None)
    assert fresh.media_class == "private" and not fresh.scopes and not fresh.requires


def test_what_is_required_and_who_promises_it() -> None:
    site = Site(
        teams={"red": {"requires": ["region:eu"]}, "blue": {"requires": ["tag:x"]}},
        routes={"chat/completions": {"requires": ["no-training"]}},
    )
    row = replace(ROW, requires=frozenset({"tag:gdpr"}))
    assert policy.required(row, "chat/completions", site) == ("no-training", "region:eu", "tag:gdpr")
    assert policy.required(replace(ROW, team="none"), "embeddings", site) == ()
    for wanted, fields in PROMISES.items():
        silent = hosted()
        assert code_of(lambda w=wanted, s=silent: policy.promised((w,), s, FAR, TODAY)) == "requirement_not_met"
        policy.promised((wanted,), hosted(**fields), FAR, TODAY)
        policy.promised((wanted,), silent, FAR.model_copy(update=fields), TODAY)
    policy.promised((), hosted(), FAR, TODAY)
    for worse in (
        {"regions": ("eu", "us")},
        {"trains_on_data": True},
        {"retention_days": 30},
        {"compliance": ("soc2",)},
    ):
        # The model's own entry counts before its provider's.
        good = FAR.model_copy(update={k: v for one in PROMISES.values() for k, v in one.items()})
        wanted = next(name for name, fields in PROMISES.items() if fields.keys() == worse.keys())
        assert (
            code_of(lambda w=wanted, m=worse, g=good: policy.promised((w,), hosted(**m), g, TODAY))
            == "requirement_not_met"
        )
    assert code_of(lambda: policy.promised(("a new word",), hosted(), FAR, TODAY)) == "requirement_not_met"


@pytest.mark.parametrize(
    ("regions", "agreed", "day", "kept"),
    [
        ((), ("EU",), TODAY, True), ((), ("eu",), TODAY + dt.timedelta(1), False), (("eu",), ("us",), TODAY, False),
        (("EU",), ("eu",), TODAY, True), (("eu",), ("us",), TODAY + dt.timedelta(1), True), ((), (), TODAY, False),
    ],
)  # fmt: skip
def test_a_region_is_the_only_one_or_none(regions: Any, agreed: Any, day: dt.date, kept: bool) -> None:
    terms = Approval(by="dpo", contract="c", regions=agreed, until=TODAY)
    model = hosted(clearance=INTERNAL, approved=terms).model_copy(update={"regions": regions or None})
    assert (code_of(lambda: policy.promised(("region:eu",), model, FAR, day)) == "") == kept


def test_the_doors_clearance() -> None:
    later = TODAY + dt.timedelta(1)
    for name in ("public", "internal", "private"):
        model = approved(name)
        assert policy.clearance(model, TODAY) == name
        assert policy.clearance(model, later) == "public"
        assert policy.clearance(model.model_copy(update={"approved": None}), TODAY) == "public"
        assert policy.clearance(model.model_copy(update={"clearance": None}), TODAY) == "public"
        assert policy.clearance(model.model_copy(update={"place": "local"}), TODAY) == "public"
    assert policy.clearance(approved("private").model_copy(update={"clearance": SECRET}), TODAY) == "public"


def test_which_fields_may_leave() -> None:
    fine = {"model": "m", "messages": [], "stream": True, "stream_options": {}, "max_tokens": 1, "temperature": 0,
            "max_completion_tokens": 1, "prompt": "x", "input": "x"}  # fmt: skip
    policy.fields_allowed(fine, "chat/completions", BIG)
    for odd in ("base_url", "top_p", "x"):
        with pytest.raises(Forbidden) as refused:
            policy.fields_allowed({**fine, odd: 1}, "chat/completions", BIG)
        assert (refused.value.code, refused.value.param) == ("field_not_allowed", odd)
    with pytest.raises(Forbidden) as refused:
        policy.fields_allowed({"b_odd": 1, "a_odd": 2}, "completions", BIG)
    assert refused.value.param == "a_odd"
    every = {"model", "messages", "prompt", "input", "stream", "stream_options"}
    assert every == policy.EVERY_REQUEST and policy.RANKS == {"public": 0, "internal": 1, "private": 2, "secret": 3}


FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {}, "description": "d"}}


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"tools": None, "functions": None},
        {"tools": [], "functions": []},
        {"tools": [FUNCTION, {"type": "custom", "custom": {"name": "c"}}]},
        {"tools": [{**FUNCTION, "strict": True, "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"type": "custom", "name": "c", "description": "d", "format": {"type": "text"}}]},
        {"tools": [{"type": "function", "name": "f", "parameters": {}}]},
        {"functions": [{"name": "f", "description": "d", "parameters": {}, "strict": True}]},
    ],
)
def test_tools_that_the_caller_runs_may_leave(fine: dict[str, Any]) -> None:
    policy.tools_allowed(fine)


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "mcp", "server_url": "https://collector.example/"},
        {"type": "mcp"},
        {"type": "web_search"},
        {"type": "code_interpreter", "function": {"name": "f"}},
        {"type": ["function"]},
        {"type": None},
        {"googleSearch": {}},
        {"name": "f"},
        {"function": {"name": "f"}},
        {**FUNCTION, "googleSearch": {}},
        {"type": "custom", "custom": {"name": "c"}, "server_url": "https://collector.example/"},
        "function",
        ["function"],
    ],
)
def test_tools_that_the_provider_runs_stay(odd: Any) -> None:
    for field in ("tools", "functions"):
        for given in ([odd], [FUNCTION if field == "tools" else {"name": "g"}, odd], odd, {"0": odd}):
            if field == "functions" and odd == {"name": "f"} and isinstance(given, list):
                continue
            with pytest.raises(Forbidden) as refused:
                policy.tools_allowed({field: given})
            assert (refused.value.code, refused.value.param) == ("tool_not_allowed", field)


@pytest.mark.parametrize("odd", [{}, "", 0, False, ()])
def test_tools_that_are_no_list_stay(odd: Any) -> None:
    for field in ("tools", "functions"):
        with pytest.raises(Forbidden):
            policy.tools_allowed({field: odd})


def test_under_which_rule() -> None:
    assert policy.rule(approved("internal"), "internal") == "approved:c"
    assert policy.rule(approved("internal"), "public") == "public"
    assert policy.rule(hosted(), "internal") == "public"


def test_the_class_of_each_kind() -> None:
    shipped = [("card", "private"), ("card", "internal"), ("id_de", "private"), ("id_fr", "internal"), ("odd", "open")]
    own = [{"name": "river", "data_class": "secret", "words": ["x"]}, {"name": "lock", "words": ["y"]}]
    privacy = Privacy(effects={"id": "secret", "id_fr": "public", "car": "public"}, own=own)
    assert policy.effects(privacy, shipped) == {
        "card": "private", "id_de": "secret", "id_fr": "public", "odd": "open", "own:river": "secret",
        "own:lock": "private",
    }  # fmt: skip
    assert policy.effects(Privacy(), [("a", "internal"), ("a", "private"), ("a", "public"), ("a", "odd")])["a"] == "odd"
    assert policy.effects(Privacy(), [("a", "secret"), ("a", "private")])["a"] == "secret"


def test_the_highest_of_what_was_found() -> None:
    table = {"card": "private", "email": "internal", "word": "public", "odd": "open"}
    for found, wanted in (
        ({}, ("public", "")), ({"card": 0}, ("public", "")), ({"card": 1, "email": 3}, ("private", "card")),
        ({"new": 1, "card": 1}, ("secret", "new")), ({"odd": 2}, ("secret", "odd")), ({"word": 1}, ("public", "word")),
        ({"email": 1, "word": 1}, ("internal", "email")),
    ):  # fmt: skip
        assert policy.found_class(found, table) == wanted


def test_the_last_word() -> None:
    """Every combination, beside the sentence of the design: the highest of all, held against the clearance."""
    for claimed, found, media, opaque, unread, highest in itertools.product(
        NAMES, NAMES, NAMES, (False, True), (False, True), ("public", "internal", "private")
    ):
        given = [claimed, found, *([media] if opaque else []), *(["secret"] if unread else [])]
        wanted = max(given, key=NAMES.index)
        findings = Findings(9, ("prompt",) if opaque else ())

        def work(f: Findings = findings, c: str = claimed, k: str = found, m: str = media, u: bool = unread,
                 h: str = highest) -> str:  # fmt: skip
            return policy.cleared(c, f, "budget" if u else "", (k, "card"), m, BIG, h)

        if NAMES.index(wanted) <= NAMES.index(highest):
            assert work() == wanted
            continue
        seen = max(claimed, found, key=NAMES.index)
        code = "data_class_not_cleared" if NAMES.index(seen) > NAMES.index(highest) else "not_scannable"
        assert code_of(work) == code, (claimed, found, media, opaque, unread, highest)
    for claimed, highest in itertools.product(NAMES, NAMES):
        above = NAMES.index(claimed) > NAMES.index(highest)
        assert code_of(lambda c=claimed, h=highest: policy.within(c, BIG, h)) == (
            "data_class_not_cleared" if above else ""
        )


def test_fields_of_a_permit_are_of_their_kind() -> None:
    policy.well_formed(GOOD)
    policy.well_formed(replace(GOOD, expires=7))
    for wrong in ({"team": 1}, {"expires": "x"}, {"data_class": None}, {"declassified": []}):
        assert code_of(lambda w=wrong: policy.well_formed(replace(GOOD, **w))) == "permit_invalid"


def test_a_permit_is_used_once_also_when_many_are_and_the_clock_goes_back() -> None:
    used = policy.Used(limit=3)
    each = [replace(GOOD, id=f"p{number}", expires=NOW + number) for number in range(6)]
    for permit in each[:3]:
        used.take(permit, NOW)
        assert code_of(lambda p=permit: used.take(p, NOW)) == "permit_used"
    assert code_of(lambda: used.take(each[4], NOW)) == "permits_exhausted"
    used.take(each[5], NOW + 1.5)  # the first two have expired and are forgotten
    for permit in each[:3]:
        assert code_of(lambda p=permit: used.take(p, NOW - 100)) == "permit_used"
    used.take(each[3], NOW + 1.5)
    assert code_of(lambda: used.take(each[4], NOW + 2)) == "permits_exhausted", "what expires now is not over yet"
    assert policy.Used()._limit == 20_000
    used = policy.Used(limit=2)
    for number, ends in enumerate((1.0, 2.0)):
        used.take(replace(GOOD, id=f"a{number}", expires=NOW + ends), NOW)
    used.take(replace(GOOD, id="b", expires=NOW + 9), NOW + 3)  # both are over: the later end counts
    assert code_of(lambda: used.take(replace(GOOD, id="c", expires=NOW + 2), NOW + 3)) == "permit_used"


@pytest.mark.parametrize("label", [PRIVATE, SECRET])
def test_a_label_that_is_no_lower_has_lowered_nothing(label: DataClass) -> None:
    asked, who = ask(raised=label.name, declassify="x"), caller(PRIVATE, scopes=SCOPED)
    found = data_class_of(asked, who, Findings(10, (), searched=True), Site())
    assert found.why == found.sources[0].why and found.declassified == ""


def test_only_a_request_that_gives_a_reason_lowers_what_people_said() -> None:
    said, seen = Source("key", PRIVATE, "key k1 is private"), Source("found", PRIVATE, "a card")
    assert lowers(ask(raised="public", declassify="x"), said)
    assert not lowers(ask(raised="public"), said)
    assert not lowers(ask(raised="public", declassify="x"), seen)
    assert not lowers(ask(raised="public", declassify="x"), Source("key", SECRET, "key k1 is secret"))
