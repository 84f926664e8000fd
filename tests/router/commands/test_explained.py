"""`explain` for whoever answers for the data: the class with all its sources, and each reason of a refusal once."""

from __future__ import annotations

import datetime as dt
import io
import re
from typing import Any

from rich.console import Console

from router.commands.explained import show_decision
from router.ledger.bodies import decision_json
from router.records import Caller, Decision, Findings, Found, Pace, Past
from serving.catalogue import DataClass
from tests.fakes.asking import TODAY, approval, ask, caller, decided, endpoint, hosted, local, searched

NEAR, FAR = local(), hosted(lanes=("cheap", "frontier"))
FOUR = [hosted(f"far-{n}") for n in range(4)]
SEEN = searched({}, found=(Found("card", DataClass.private, 2, "messages[0].content"),))


def shown(decision: Decision) -> list[str]:
    file = io.StringIO()
    found = decision_json(decision) | {"asked": "auto"}
    show_decision(found, Console(file=file, width=80, markup=False, highlight=False))
    return file.getvalue().splitlines()


def test_the_class_is_told_with_everything_that_had_a_part_in_it() -> None:
    site: dict[str, Any] = {"teams": {"search": {"data_class": "internal"}}}
    said = shown(decided(ask(raised="private"), caller("private"), local(), findings=SEEN, **site))
    at = said.index("class      private: key k1 is private")
    assert said[at + 1 : at + 5] == [
        "           also: the request says private",
        "           also: 2 findings of the kind card, the first in messages[0].content count as private",
        "           also: team search is internal",
        "searched   every byte of it",
    ]


def test_every_entry_of_the_history_that_counts_is_named() -> None:
    answers = Past(DataClass.private, "a text of it is an answer to an earlier request", "a1 a2 a3 a4 a5 a6")
    session = Past(DataClass.internal, "its session was internal before", "b1")
    said = shown(decided(ask(), caller("public"), local(), findings=searched({}, past=(answers, session))))
    assert "entries    a1 a2 a3 a4 a5 a6 b1 (of the history; see: headgate privacy why ID)" in said
    whole = " ".join(said)
    assert "(entries a1, a2, a3, a4 and 2 more of the history)" in whole and "(entry b1 of the history)" in whole


def test_what_was_not_searched_says_so_and_why() -> None:
    unasked = shown(decided(ask(), caller("private"), local(), findings=Findings(10, ())))
    hint = "what a search finds in a text: headgate privacy test FILE"
    assert f"searched   no: it was not searched, for it could not leave; {hint}" in unasked
    alone = shown(decided(ask("frontier"), caller("private"), local(), *FOUR, findings=Findings(10, ())))
    assert (
        "searched   no: it was not searched, for it could not leave; its class alone (key k1 is private) keeps it from "
        f"far-0, far-1, far-2, far-3; {hint}"
    ) in alone
    failed = shown(decided(ask(), caller("public"), local(), findings=searched({}, unread="error")))
    assert "searched   no: its search failed" in failed
    assert "class      private: its search failed, so it counts as private" in failed


def test_a_class_that_was_lowered_is_told_with_the_reason_and_what_stood_against_it() -> None:
    who = caller("private", scopes=frozenset({"declassify"}))
    lowered = decided(ask("far", raised="public", declassify="press-release"), who, hosted())
    said = shown(lowered)
    at = said.index("class      public: key k1 lowered it to public: press-release")
    assert said[at + 1 : at + 3] == [
        "lowered    by its caller, for the reason press-release; what stood against it:",
        "           key k1 is private",
    ]
    assert [c.name for c in lowered.order] == ["far"]


def test_one_reason_is_told_once_with_the_models_it_holds_for() -> None:
    other = hosted("near-by", clearance="internal", approved=approval())
    said = [line for line in shown(decided(ask("frontier"), caller("private"), *FOUR, other)) if "[" in line]
    assert said == [
        "not        far-0, far-1, far-2, far-3 [data_class_not_cleared]: each (hosted) may receive public data; this "
        "is private, since key k1 is private",
        "not        near-by [data_class_not_cleared]: near-by (hosted) may receive internal data; this is private, "
        "since key k1 is private",
    ]
    way = shown(decided(ask("frontier"), caller("private"), *FOUR))[-1]
    assert "to change it: headgate keys set k1 --data-class public" in way and "models.NAME: {clearance: " in way
    many = shown(decided(ask("frontier"), caller("private"), *(hosted(f"m-{n}") for n in range(9))))
    assert [line for line in many if "m-0, m-1, m-2, m-3 and 5 more [data_class_not_cleared]" in line]


def test_every_reason_of_a_refusal_is_told() -> None:
    who = caller("internal", requires=frozenset({"no-training", "region:eu"}))
    said = "\n".join(shown(decided(ask("frontier"), who, *FOUR, findings=SEEN)))
    assert "requires   no-training, region:eu" in said
    assert "also: key k1 is internal" in said
    assert said.count("[data_class_not_cleared]") == said.count("[requirement_not_met]") == 1
    assert "does not promise not to train on what it is sent and to keep data in eu alone; required by key k1" in said


def test_that_a_request_may_wait_is_told() -> None:
    late = "\n".join(shown(decided(ask("auto"), caller("private", latency="batch"), *FOUR, local("near"))))
    assert "latency    batch: " in late
    assert "latency" not in "\n".join(shown(decided(ask("auto"), caller("private"), *FOUR, local("near"))))


def test_what_a_hosted_model_may_have_and_promises_is_told() -> None:
    until = TODAY + dt.timedelta(days=1)
    model = hosted(
        clearance="internal", approved=approval(until), regions=["eu"], retention_days=0, trains_on_data=False,
        compliance=["gdpr"],
    )  # fmt: skip
    (line,) = [line for line in shown(decided(ask("far"), caller("internal"), model)) if line.startswith("cleared")]
    assert line == (
        f"cleared    far: up to internal data, approved by dpo under dpa-1 until {until}; data in eu; keeps it for "
        "0 days; no training on it; tags gdpr"
    )
    (line,) = [line for line in shown(decided(ask("far"), caller(), hosted())) if line.startswith("cleared")]
    assert line == (
        "cleared    far: up to public data; data in unknown regions; keeps it for an unknown time; training on it "
        "unknown; tags none"
    )


def test_nothing_that_is_told_quotes_the_request() -> None:
    who: Caller = caller("public", requires=frozenset({"tag:gdpr"}))
    findings = searched({}, found=(Found("card", DataClass.private, 1, "metadata.Anna is ill"),))._replace(
        opaque=("Anna.file_id",)
    )
    asked = ask("frontier", messages=[{"role": "user", "content": "Anna is ill"}], **{"Anna is ill": 1})
    assert not re.search("Anna|ill", "\n".join(shown(decided(asked, who, *FOUR, findings=findings))))


def test_how_full_each_is_and_what_it_would_do_is_told() -> None:
    pace = Pace(prefill=1000.0, decode=42.0, first_s=0.05, ratio=4.0)
    near = endpoint(NEAR, in_flight=1, limit=4, unstarted=3000, pace=pace)
    said = shown(decided(ask(), caller(), NEAR, FAR, endpoints=[near, endpoint(FAR)]))
    assert "saturation near: 1.50 (a wait of 3.00 s where 2 s are allowed)" in said
    assert "predicted  near: a wait of 3000 ms, first token after 3070 ms, 42.0 tokens a second" in said
    unknown = decided(ask(), caller("private"), NEAR, endpoints=[endpoint(NEAR)])
    assert not [line for line in shown(unknown) if line.startswith(("saturation", "predicted"))]
