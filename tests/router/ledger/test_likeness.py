"""When two texts are one and the same, and what tells a conversation from another."""

from __future__ import annotations

import json
import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger.likeness import LEAST, MOST_BEGUN, Begun, Marker, Read, long_enough, one_form
from tests.fakes.asking import caller
from tests.fakes.remembering import FIRST, OTHER, SECRET, Text, talk

SPACES = st.sampled_from([" ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u200b", "\ufeff", "\u00ad"])
Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")
WORD = st.text(st.characters(categories=["Lu", "Ll", "Nd", "Po"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORD, SPACES), max_size=20), st.sampled_from(FORMS))
def test_other_spacing_and_unicode_forms_make_no_other_text(words: list[tuple[str, str]], form: Form) -> None:
    spaced = "".join(word + space for word, space in words)
    assert one_form(unicodedata.normalize(form, spaced)) == one_form(" ".join(word for word, _ in words))


@pytest.mark.parametrize("form", FORMS)
def test_long_texts_are_brought_into_one_form_in_slices(form: Form) -> None:
    text = "déjà vu, 한국어 텍스트, ﬁne Ｆullwidth, naïve façade. " * 2000
    assert one_form(unicodedata.normalize(form, text)) == one_form(text)
    assert one_form("e\u0301" * 20_000) == one_form("\u00e9" * 20_000)


def test_words_that_differ_are_different_texts() -> None:
    assert one_form("one two") != one_form("one three")
    assert one_form("Two") != one_form("two")


def test_lone_surrogates_and_nothing_at_all() -> None:
    assert one_form("a \ud800 b") == one_form("a\ud800b")
    assert one_form("") == one_form(" \n\u200b") == b""


@pytest.mark.parametrize(("text", "long"), [("a " * LEAST, True), ("a " * (LEAST - 1), False), ("é" * 40, False),
                                            ("é" * LEAST, True), (" " * 500, False)])  # fmt: skip
def test_white_space_makes_no_text_long(text: str, long: bool) -> None:
    assert long_enough(one_form(text)) is long


def test_what_stands_in_the_arguments_of_a_call_is_known_for_itself() -> None:
    called = json.dumps({"todo": [{"text": FIRST}, OTHER, "short", 7]})
    for where in ("messages[1].tool_calls[0].function.arguments", "input[1].arguments"):
        read = Read([Text(where, called, "assistant"), Text(where, '{"todo": ' + FIRST, "assistant")])
        assert sorted(read.inside) == sorted(map(one_form, (FIRST, OTHER)))
        assert [*read.forms] == [0, 1], "as it came, too"
    assert Read([Text("messages[1].content", called, "assistant")]).inside == []


def test_only_what_somebody_said_is_known_again() -> None:
    texts = [
        Text("messages[0].content", FIRST, "system"), Text("messages[1].content", FIRST, "developer"),
        Text("system[0].text", FIRST), Text("instructions", FIRST), Text("tools[0].description", FIRST),
        Text("prompt_cache_key", FIRST), Text("metadata.input", FIRST), Text("input_mode", FIRST),
    ]  # fmt: skip
    assert Read(texts).forms == {}
    said = [
        Text("messages[2].content", OTHER, "user"), Text("messages[3].tool_calls[0].function.arguments", OTHER),
        Text("suffix", OTHER), Text("documents[0].text", OTHER), Text("documents", OTHER),
        Text("input", OTHER), Text("input[3].content[0].text", OTHER, "user"), Text("prompt", OTHER),
        Text("prompt[7]", OTHER), Text("prediction.content", OTHER),
    ]  # fmt: skip
    assert len(Read(said).forms) == len(said)


def test_marks_of_clients_beside_what_a_message_says_do_not_change_it() -> None:
    plain = talk([FIRST])
    marked = [*plain, Text("messages[0].content[0].cache_control.type", "ephemeral", "user", said=False),
              Text("messages[0].name", "ann", "user", said=False)]  # fmt: skip
    assert Read(plain).whole() == Read(marked).whole()


def openings(texts: list[Text], *more: bytes, key: str = "k1", first: str = "") -> list[bytes]:
    return Marker(SECRET, "search").openings(caller(key=key, first=first), Read(texts).begun(more))


def test_an_opening_is_the_same_under_a_key_that_was_rotated() -> None:
    assert openings(talk(FIRST), key="k2", first="k1") == openings(talk(FIRST)) != openings(talk(FIRST), key="k2")


def test_documents_and_a_suffix_begin_no_conversation() -> None:
    beside = [Text("documents[0].text", OTHER), Text("suffix", OTHER)]
    assert openings([*beside, *talk(FIRST)]) == openings([*talk(FIRST), *beside]) == openings(talk(FIRST))
    assert openings(beside) == []


def test_an_opening_is_the_same_in_every_later_turn_and_for_no_other_conversation() -> None:
    first = openings(talk("Hello", system="S", tools="T"), one_form(FIRST))
    assert len(first) == 1
    later = openings(talk("Hello", FIRST, "More", OTHER, system="S", tools="T"))
    assert (later[:1], len(later)) == (first, 3)
    assert openings(talk("Hello", FIRST, "More", system="S", tools="T")) == later[:2]
    assert openings(talk("Hello", system="S", tools="T")) == []
    others = [
        talk("Hello", OTHER, system="S", tools="T"), talk("Hello", FIRST, system="R", tools="T"),
        talk("Hello", FIRST, system="S", tools="U"),
    ]  # fmt: skip
    assert not {*later} & {name for other in others for name in openings(other)}
    assert not {*later} & {*openings(talk("Hello", FIRST, system="S", tools="T"), key="k2")}


def test_a_later_system_message_is_no_part_of_the_opening() -> None:
    first = talk(FIRST, system="S")
    assert openings([*first, Text("messages[9].content", "be short", "system")]) == openings(first) != []


def test_a_very_long_conversation_is_known_by_its_beginning() -> None:
    long = talk(*(f"{number}: {OTHER}" for number in range(MOST_BEGUN + 9)))
    assert len(openings(long)) == MOST_BEGUN


def test_a_mark_depends_on_secret_team_and_what_it_is_for() -> None:
    marker, form = Marker(SECRET, "a"), one_form(FIRST)
    marks = {marker.text(form), *marker.session(form), Marker(SECRET, "b").text(form), Marker("6" * 64, "a").text(form)}
    for who, said in ((caller(), [form]), (caller(key="k2"), [form]), (caller(), [form[:70], form[70:]])):
        marks |= {*marker.openings(who, Begun((b"", b""), said))[-1:]}
    assert len(marks) == 8
    assert marker.text(form) == Marker(SECRET, "a").text(form)
