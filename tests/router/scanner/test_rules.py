"""What a site's settings make of the shipped kinds; every pattern compiles; nobody's secret stands in a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.examples import EXAMPLES, NATIONAL
from router.scanner import matcher, rules
from router.scanner.kinds import beside
from router.scanner.normal import encoded
from router.scanner.scanner import Scanner, ScannerError
from serving.catalogue import DataClass, Privacy, Words
from tests.house import ROOT


def effects(privacy: Privacy) -> dict[str, DataClass]:
    return {kind.name: kind.effect for kind in rules.of(privacy).kinds}


def test_what_a_finding_means_where_nobody_says_otherwise() -> None:
    found = effects(Privacy())
    assert {name: found[name].name for name in ("email", "phone", "address", "ip", "mac", "bic")} == dict.fromkeys(
        ("email", "phone", "address", "ip", "mac", "bic"), "internal"
    )
    private = {name for name in found if name.startswith(("national_id_", "medical_"))} | {"card", "iban", "passport"}
    assert {found[name] for name in private} == {DataClass.private}
    assert {found[name] for name in found if name.startswith("credential_")} == {DataClass.secret}


def test_twenty_countries_sixty_makers_and_an_example_of_every_kind() -> None:
    names = set(effects(Privacy()))
    assert len(NATIONAL) >= 20
    assert sum(name.startswith("credential_") for name in names) >= 60
    assert names - set(EXAMPLES) == {"blob", "credential_authorization", "mixed_script"}


def test_the_readme_names_every_kind() -> None:
    page = (ROOT / "README.md").read_text()
    table = page[page.index("### What is looked for") :]
    wild = {re.sub("^(credential|national_id)_.*", r"\1_*", name) for name in effects(Privacy())}
    assert [name for name in sorted(wild) if f"`{name}`" not in table] == []


def test_a_site_changes_what_a_kind_means_alone_or_with_its_like() -> None:
    found = effects(Privacy(effects={
        "credential": DataClass.private, "credential_github": DataClass.secret, "email": DataClass.private,
        "phone": DataClass.public,
    }))  # fmt: skip
    assert found["credential_slack"] == DataClass.private
    assert found["credential_github"] == DataClass.secret
    assert found["email"] == DataClass.private
    assert "phone" not in found, "what means nothing is not looked for"


def test_an_unknown_kind_is_one_sentence() -> None:
    with pytest.raises(rules.UnknownKind) as wrong:
        rules.of(Privacy(effects={"e-mail": DataClass.private}))
    said = str(wrong.value)
    assert said.startswith("privacy.effects: 'e-mail' is no kind; kinds are address, ")
    assert "email" in said and "\n" not in said


def test_whatever_decides_a_finding_changes_the_hash() -> None:
    same = rules.of(Privacy()).hash
    assert rules.of(Privacy()).hash == same
    others = (
        Privacy(effects={"email": DataClass.secret}),
        Privacy(own_domains=("corp.dev",)),
        Privacy(own=(Words(name="deal", words=("falcon",)),)),
    )
    assert len({same, *(rules.of(privacy).hash for privacy in others)}) == 4


def test_own_words_are_a_kind() -> None:
    found = rules.of(
        Privacy(own=(Words(name="deal", words=("Project Falcon", "北京项目"), data_class=DataClass.secret),))
    )
    kind = found.kinds[-1]
    assert (kind.name, kind.effect) == ("own:deal", DataClass.secret)
    assert re.search(kind.patterns[0], "about project \n falcon,", re.IGNORECASE)
    assert not re.search(kind.patterns[0], "project falcons", re.IGNORECASE)


def test_an_example_of_an_own_pattern_is_planted(tmp_path: Path) -> None:
    """Without one the self-test could not notice that a pattern finds nothing."""

    def started(example: str) -> Scanner:
        words = Words(name="case", pattern=r"\bCASE-[0-9]{6}\b", example=example)
        return Scanner(rules.of(Privacy(own=(words,)), ()), tmp_path)

    assert started("see CASE-000000").trouble == ""
    assert started("").trouble == ""
    with pytest.raises(ScannerError, match="a planted own:case was not found"):
        started("CASE-12345")


def test_own_words_that_look_alike_in_another_script_are_searched_for_as_texts_are_read() -> None:
    kind = rules.of(Privacy(own=(Words(name="deal", words=("Сокол",)),))).kinds[-1]
    assert all(pattern.isascii() for pattern in kind.patterns)
    assert any(re.search(pattern.encode(), encoded("проект сокол")) for pattern in kind.patterns)


@pytest.mark.parametrize(("kind", "text"), [
    ("email", "jane@example.com"), ("email", "jane@mail.corp.dev"), ("email", "git@code.dev"), ("ip", "10.1.2.3"),
    ("ip", "192.0.2.44"), ("ip", "127.0.0.1"), ("ip", "2001:db8::1"), ("ip", "fe80::1"), ("mac", "00:00:5e:00:53:af"),
    ("mac", "ff:ff:ff:ff:ff:ff"), ("phone", "+1 212 555 0123"),
])  # fmt: skip
def test_examples_documentation_and_own_domains_are_no_findings(kind: str, text: str) -> None:
    found = rules.of(Privacy(own_domains=("corp.dev",)))
    assert found.allowed(kind, f"see {text}")


@pytest.mark.parametrize(("kind", "text"), [
    ("email", "jane@notexample.com"), ("email", "jane@corp.dev.evil.io"), ("ip", "9.9.9.9"), ("ip", "2620:fe::9"),
    ("mac", "3c:22:fb:81:0e:57"), ("phone", "+1 212 556 0123"), ("card", "jane@example.com"),
])  # fmt: skip
def test_nothing_else_is_allowed(kind: str, text: str) -> None:
    assert not rules.of(Privacy(own_domains=("corp.dev",))).allowed(kind, f"see {text}")


def test_words_beside_a_number_are_whole_words() -> None:
    assert beside(("mrn", "patient id"), "Patient_ID: 12")
    assert not beside(("mrn",), "the mrns")
    assert beside(("生日",), "我的生日是") and beside((), "anything")


@pytest.mark.long
def test_every_pattern_compiles_alone() -> None:
    wrong = {
        pattern: said
        for kind in rules.of(Privacy()).kinds
        for pattern in kind.patterns
        if (said := matcher.fault(matcher.Pattern(pattern, kind.caseless)))
    }
    assert wrong == {}
