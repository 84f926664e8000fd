"""The words for error codes: those of the READMEs' tables, which other tests hold against the code."""

from __future__ import annotations

import pytest

from router.commands.codes import ERRORS, OF_THE_DOOR, sentence
from tests.house import ROOT
from tests.test_docs import documented_codes, rows, section


@pytest.mark.parametrize(
    ("page", "title", "said"),
    [("README.md", "Errors", ERRORS), ("router/README.md", "What the door refuses", OF_THE_DOOR)],
)
def test_each_code_means_what_the_readme_says(page: str, title: str, said: dict[str, str]) -> None:
    text = section((ROOT / page).read_text(), title)
    codes = [code for code, _ in documented_codes(text)]
    assert dict(zip(codes, [row[2] for row in rows(text)], strict=True)) == said


def test_a_sentence_speaks_of_the_key_and_of_no_other() -> None:
    assert sentence("escalation_not_allowed", "k7").endswith("headgate keys set k7 --escalate")
    assert sentence("a_code_of_somebody_else", "k7") == ""
    assert all("`" not in sentence(code, "k") for code in (*ERRORS, *OF_THE_DOOR))
