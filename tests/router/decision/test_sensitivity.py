"""The data class: the highest that anybody or anything gives it. Only a key that may lowers it, and says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision.sensitivity import UNASKED, UNREAD, Classed, data_class_of, unsearched
from router.errors import BadRequest, Forbidden
from router.records import Ask, Caller, Findings, Found, Past
from serving.catalogue import DataClass, Site
from tests.fakes.asking import ask, caller

CLASSES = st.sampled_from([c.name for c in DataClass])
CLEAN = Findings(10, (), searched=True)
PUBLIC, INTERNAL, PRIVATE, SECRET = DataClass
MAY = frozenset({"declassify"})


def past(data_class: DataClass = PRIVATE) -> Past:
    return Past(data_class, "a text of it was private before", "h1")


def site(team: str = "public", route: str = "public") -> Site:
    return Site(teams={"search": {"data_class": team}}, routes={"chat/completions": {"data_class": route}})


def classed(asked: Ask, who: Caller, findings: Findings = CLEAN, where: Site | None = None) -> Classed:
    return data_class_of(asked, who, findings, where or Site())


# Every source, in every combination.


@st.composite
def situations(draw: st.DrawFn, **asked: Any) -> tuple[Ask, Caller, Findings, Site, list[DataClass]]:
    """An ask from everywhere at once, and the class that each source alone would give it."""
    key, team, route, media = (draw(CLASSES) for _ in range(4))
    label, before = draw(st.none() | CLASSES), draw(st.none() | st.sampled_from(DataClass))
    found = draw(st.lists(st.builds(Found, st.sampled_from(["card", "email"]), st.sampled_from(DataClass)), max_size=4))
    opaque = draw(st.sampled_from([(), ("messages[0].content[1]",)]))
    unread = draw(st.sampled_from(["", "", *UNREAD, "another word"]))
    findings = Findings(10, opaque, False, True, tuple(found), (past(before),) if before is not None else (), unread)
    alone = [DataClass[key], DataClass[team], DataClass[route], *(one.effect for one in found)]
    alone += [DataClass[label]] if label else []
    alone += [before] if before is not None else []
    alone += [DataClass[media]] if opaque else []
    alone += [PRIVATE] if unread else []
    who = caller(key, media_class=DataClass[media], scopes=draw(st.sampled_from([frozenset(), MAY])))
    return ask(raised=label, **asked), who, findings, site(team, route), alone


@given(situations())
def test_no_combination_of_sources_gives_less_than_one_of_them_alone(
    given_: tuple[Ask, Caller, Findings, Site, list[DataClass]],
) -> None:
    asked, who, findings, where, alone = given_
    found = data_class_of(asked, who, findings, where)
    assert found.data_class == max(alone)
    assert found.why and not found.declassified
    ranks = [source.data_class for source in found.sources]
    assert ranks == sorted(ranks, reverse=True) and PUBLIC not in ranks
    assert found.data_class is PUBLIC or ranks[0] is found.data_class


@given(situations(declassify="press-release"))
def test_lowering_leaves_alone_what_was_found_what_was_private_before_and_what_is_secret(
    given_: tuple[Ask, Caller, Findings, Site, list[DataClass]],
) -> None:
    asked, who, findings, where, alone = given_
    who = caller(who.data_class.name, media_class=who.media_class, scopes=MAY)
    if asked.data_class is None:
        return
    found = data_class_of(asked, who, findings, where)
    seen = [one.effect for one in findings.found] + [one.data_class for one in findings.past]
    seen += [who.media_class] if findings.opaque else []
    seen += [PRIVATE] if findings.unread else []
    assert found.data_class >= max([asked.data_class, *seen])
    assert SECRET not in alone or found.data_class is SECRET
    assert found.data_class <= max(alone)
    assert bool(found.declassified) is (found.data_class < max(alone))
    # What was lowered still stands there, for whoever looks at it later.
    assert max((source.data_class for source in found.sources), default=PUBLIC) == max(alone)


@given(situations(declassify="press-release"))
def test_a_key_without_the_scope_lowers_nothing_whatever_else_holds(
    given_: tuple[Ask, Caller, Findings, Site, list[DataClass]],
) -> None:
    asked, who, findings, where, _ = given_
    without = caller(who.data_class.name, media_class=who.media_class, scopes=frozenset({"escalate"}))
    with pytest.raises(Forbidden) as refused:
        data_class_of(asked, without, findings, where)
    assert refused.value.code == "declassify_not_allowed"
    assert "headgate keys set k1 --declassify" in refused.value.message


# In words.


@pytest.mark.parametrize(
    ("who", "raised", "findings", "where", "data_class", "why"),
    [
        (caller("public"), None, CLEAN, Site(), "public", "key k1 is public"),
        (caller("private"), "public", CLEAN, Site(), "private", "key k1 is private"),
        (caller("public"), "internal", CLEAN, Site(), "internal", "the request says internal"),
        (caller("public"), None, CLEAN, site(team="internal"), "internal", "team search is internal"),
        (caller("public"), None, CLEAN, site(route="secret"), "secret", "the route chat/completions is secret"),
        (
            caller("public"), None, Findings(10, ("messages[2].content[0]",), searched=True), Site(), "private",
            "messages[2].content[0] cannot be read and so counts as private",
        ),
        (
            caller("public", media_class=INTERNAL), None, Findings(10, ("prompt",), searched=True), Site(), "internal",
            "prompt cannot be read and so counts as internal",
        ),
        (caller("public", media_class=PUBLIC), None, Findings(10, ("prompt",)), Site(), "public", "key k1 is public"),
        (
            caller("public"), None, CLEAN._replace(past=(past(),)), Site(), "private",
            "a text of it was private before (entry h1 of the history), so it is private",
        ),
        (
            caller("public"), None, CLEAN._replace(past=(Past(PRIVATE, "it cannot be looked up", ""),)), Site(),
            "private", "it cannot be looked up, so it is private",
        ),
        (
            caller("public"), None, CLEAN._replace(found=(Found("card", PRIVATE, 1, "messages[2].content"),)), Site(),
            "private", "1 finding of the kind card in messages[2].content counts as private",
        ),
        (
            caller("public"), None,
            CLEAN._replace(found=(Found("email", INTERNAL, 2, "tools[0].function.description"),
                                  Found("email", INTERNAL, 1, "user"))),
            Site(), "internal",
            "3 findings of the kind email, the first in tools[0].function.description count as internal",
        ),
        (
            caller("public"), None, CLEAN._replace(unread="timeout"), Site(), "private",
            "its search did not end in time, so it counts as private",
        ),
        (
            caller("secret"), "private", CLEAN._replace(found=(Found("card", PRIVATE),)), site("private", "private"),
            "secret", "key k1 is secret",
        ),
    ],
)  # fmt: skip
def test_it_says_where_it_comes_from(
    who: Caller, raised: str | None, findings: Findings, where: Site, data_class: str, why: str
) -> None:
    found = classed(ask(raised=raised), who, findings, where)
    assert (found.data_class.name, found.why) == (data_class, why)


def test_every_source_is_named_the_highest_first_and_of_equal_ones_the_key() -> None:
    findings = CLEAN._replace(found=(Found("private_key", SECRET, 1, "input"),), past=(past(INTERNAL),))
    found = classed(ask(raised="private"), caller("private"), findings, site("private", "internal"))
    assert [source.kind for source in found.sources] == ["found", "key", "team", "request", "route", "past"]
    assert found.why == found.sources[0].why


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("messages[0].content[1].image_url", "messages[0].content[1]"),
        ("messages[0].Anna Karenina.image_url", "messages[0]"),
        ("messages[0].contentAnna.file", "messages[0].content"),
        ("input[0]", "input[0]"),
        ("tools[0].vector_store_ids", "a part of the body"),
        ("Anna.file_id", "a part of the body"),
    ],
)
def test_the_reason_quotes_no_key_of_the_body(path: str, where: str) -> None:
    assert classed(ask(), caller("public"), Findings(10, (path,))).why == (
        f"{where} cannot be read and so counts as private"
    )


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("messages[2].content[0].text", "messages[2].content[0].text"),
        ("metadata.Anna is ill", "metadata"),
        ("metadata.anna_is_ill", "metadata"),
        ("messages[0].tool_calls[1].function.arguments.4111", "messages[0].tool_calls[1].function.arguments"),
        ("4111111111111111", "a part of the body"),
        ("", "a part of the body"),
    ],
)
def test_a_finding_quotes_no_key_of_the_body_though_its_path_did(path: str, where: str) -> None:
    found = classed(ask(), caller("public"), CLEAN._replace(found=(Found("card", PRIVATE, 1, path),)))
    assert f" in {where} counts as private" in found.why


@pytest.mark.parametrize(
    ("findings", "why"),
    [
        (CLEAN, ""),
        (Findings(10, ()), UNASKED),
        (Findings(10, (), unread="budget"), UNASKED),
        (CLEAN._replace(unread="budget"), "it was too much to be searched whole"),
        (CLEAN._replace(unread="a word nobody knows"), "not every byte of it was searched"),
    ],
)
def test_what_was_not_searched_whole_says_why(findings: Findings, why: str) -> None:
    assert unsearched(findings) == why


# Lowering.


@pytest.mark.parametrize(
    ("key", "label", "findings", "where", "data_class", "lowered"),
    [
        ("private", "public", CLEAN, Site(), "public", True),
        ("private", "internal", CLEAN, Site(), "internal", True),
        ("internal", "private", CLEAN, Site(), "private", False),  # a label that raises is no lowering
        ("public", "public", CLEAN, Site(), "public", False),
        ("private", "public", CLEAN, site(team="internal", route="private"), "public", True),
        ("secret", "public", CLEAN, Site(), "secret", False),
        ("private", "public", CLEAN, site(team="secret"), "secret", False),
        ("private", "public", CLEAN._replace(found=(Found("email", INTERNAL),)), Site(), "internal", True),
        ("private", "public", CLEAN._replace(found=(Found("card", PRIVATE),)), Site(), "private", False),
        ("public", "public", CLEAN._replace(found=(Found("private_key", SECRET),)), Site(), "secret", False),
        ("private", "public", CLEAN._replace(past=(past(),)), Site(), "private", False),
        ("private", "public", Findings(10, ("prompt",), searched=True), Site(), "private", False),
        ("private", "public", CLEAN._replace(unread="error"), Site(), "private", False),
    ],
)
def test_a_key_that_may_lowers_what_people_said_and_nothing_else(
    key: str, label: str, findings: Findings, where: Site, data_class: str, lowered: bool
) -> None:
    asked = ask(raised=label, declassify="press-release")
    found = classed(asked, caller(key, scopes=MAY), findings, where)
    assert (found.data_class.name, found.declassified) == (data_class, "press-release" if lowered else "")
    assert not lowered or data_class != label or found.why == f"key k1 lowered it to {label}: press-release"


def test_a_label_without_a_reason_lowers_nothing_though_the_key_may() -> None:
    assert classed(ask(raised="public"), caller("private", scopes=MAY)).data_class is PRIVATE


def test_a_reason_without_a_class_is_a_mistake_that_is_named() -> None:
    with pytest.raises(BadRequest) as refused:
        classed(ask(declassify="press-release"), caller("private", scopes=MAY))
    assert refused.value.param == "x-headgate-reason"
