"""The scanner's benchmark: its texts are what they say, and giving up on an ordinary one misses the goal."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from benchmarks import texts
from benchmarks.scanner import LARGE, SMALL, Cost, goals


def result(**unread: str) -> dict[str, Any]:
    names = [f"{name}, {size // 1000} KB" for size in (SMALL, LARGE)
             for name in ("English", "French", "Chinese", "Arabic", "source code")]  # fmt: skip
    costs = [Cost(name, 1, 1, 0.1, 0.2, unread.get(name.split(",")[0], "")) for name in names]
    entries = [dataclasses.asdict(cost) for cost in costs]
    return {"ordinary": entries, "worst_ascii": entries, "worst_other": entries, "stall_ms": 1.0, "idle_ms": 0.5}


def test_an_ordinary_text_that_is_given_up_misses_its_goal() -> None:
    assert all(goal.met for goal in goals(result()))
    assert [goal.name for goal in goals(result(Chinese="budget")) if not goal.met] == [
        "400 KB of French, Chinese, Arabic, searched whole"
    ]


@pytest.mark.parametrize("words", [texts.ENGLISH, texts.FRENCH, texts.CHINESE, texts.ARABIC])
def test_ordinary_texts_have_their_size_and_are_the_same_each_time(words: str) -> None:
    text = texts.ordinary(words, 5000, 1)
    assert 5000 <= len(text.encode()) <= 5100
    assert text == texts.ordinary(words, 5000, 1) != texts.ordinary(words, 5000, 2)


def test_hard_texts_are_of_their_script_and_size() -> None:
    for table, of_ascii in ((texts.ASCII, True), (texts.OTHER, False)):
        for name, make in table.items():
            text = make(random.Random(1), 4000)
            assert text.isascii() is of_ascii, name
            assert len(text.encode()) <= 4100, name
