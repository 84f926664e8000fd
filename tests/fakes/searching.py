"""Kinds of our own, so that tests of the scanner need no shipped ones: a number, a word, a number beside a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from router.scanner.kinds import Kind
from router.scanner.reading import Text
from router.scanner.scanner import USUAL, Scanner
from router.scanner.search import Budget, Searched
from serving.catalogue import DataClass

NUMBER = "4539 1488 0343 6467"
WORD = "operation-heron@blue.test"


def card(text: str) -> bool:
    """Sixteen digits whose last is the check digit."""
    digits = re.sub(r"\D", "", text)[-16:]
    values = [int(d) * (2 - n % 2) for n, d in enumerate(digits)]
    return len(digits) == 16 and sum(v - 9 if v > 9 else v for v in values) % 10 == 0


KINDS = (
    Kind(
        "number", DataClass.private, (r"\b[0-9]{4}(?:[ -]?[0-9]{4}){3}\b",), card, planted=(NUMBER,), reach=32,
        in_pieces=True,
    ),
    Kind("word", DataClass.secret, (r"\boperation-heron@[a-z]{2,10}\.test\b",), planted=(WORD,), reach=40),
    Kind(
        "file", DataClass.internal, (r"\b[0-9]{6}\b",), context=("file number", "акт"), planted=("file number 123456",),
        reach=16,
    ),
    Kind("blob", DataClass.private, ()),
)  # fmt: skip


class Rules(NamedTuple):
    """As `scanner.rules` makes them, of kinds that a test names."""

    kinds: tuple[Kind, ...] = KINDS
    hash: str = "of a test"
    harmless: str = "operation-heron@free.test"

    def allowed(self, kind: str, text: str) -> bool:
        return text.endswith(self.harmless)


def scanner(folder: Path, *kinds: Kind) -> Scanner:
    return Scanner(Rules(kinds or KINDS), folder)


def search(used: Scanner, *texts: str, role: str = "user", said: bool = True, budget: Budget = USUAL) -> Searched:
    """What is found in messages of one speaker."""
    given = [Text(f"messages[{n}].content", text, role, said) for n, text in enumerate(texts)]
    return used.search(given, budget)


def kinds(searched: Searched) -> dict[str, int]:
    """How often each kind was found."""
    found: dict[str, int] = {}
    for one in searched.found:
        found[one.kind] = found.get(one.kind, 0) + one.count
    return found
