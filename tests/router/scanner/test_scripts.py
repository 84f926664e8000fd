"""A word of two scripts that look the same is seen; words that are mixed for a reason are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.scanner.kinds import Kind
from router.scanner.scripts import SLICE, mixed
from serving.catalogue import DataClass
from tests.fakes.searching import KINDS, kinds, scanner, search

SPOOF = "p\u0430yp\u0430l"


@pytest.mark.parametrize("word", [SPOOF, "\u0410pple", "micr\u043esoft", "\u039dorth", "g\u03bfogle", "\u0455ecret"])
def test_a_latin_word_with_letters_that_only_look_latin_is_seen(word: str) -> None:
    assert mixed(f"log in at {word}, please") == 1
    assert mixed(f"{word}.com/{word}_x") == 2


@pytest.mark.parametrize(
    "text",
    [
        "Обычный русский текст о скорости",
        "Перезапусти dockerа и проверь gitу, SMSка пришла, API-ключ",  # an English word with a Russian ending
        "h\u03bd = 6.6, 10 \u03bcm, k\u03a9, TNF\u03b1, NF\u03baB, \u0394x, \u03c3x, \u03bbx, IFN\u03b3",
        "Ελληνικό κείμενο με Linux και Python",
        "naïve café façade, Straße, señor",
        "о\u0441C",
        "中文 mixed with English",
        "plain text",
        "",
    ],
)
def test_what_is_written_in_several_scripts_for_a_reason_is_no_finding(text: str) -> None:
    assert mixed(text) == 0


def test_it_does_not_matter_where_it_stands() -> None:
    for at in (SLICE - 7, SLICE - 3, SLICE - 1, SLICE, SLICE + 1):
        assert mixed("\u0436 " * (at // 2) + "." * (at % 2) + SPOOF + " \u0436" * SLICE) == 1, at


def test_it_is_a_finding_of_its_text_with_an_effect_of_its_own(tmp_path: Path) -> None:
    used = scanner(tmp_path, *KINDS, Kind("mixed_script", DataClass.private, (), planted=(SPOOF,)))
    searched = search(used, "hello", f"log in at {SPOOF}")
    assert (kinds(searched), searched.by_text[0]) == ({"mixed_script": 1}, ())
    assert kinds(search(scanner(tmp_path / "without"), f"log in at {SPOOF}")) == {}, "not where it is of no interest"
