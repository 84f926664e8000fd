"""Pure: the public form of a token, as literal parts and runs of characters: its pattern, and examples of it.

A pattern and its examples come from one form, so no file needs to hold what looks like somebody's secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"


class Run(NamedTuple):
    """So many characters of one alphabet; between `size` and `most` where that is given."""

    alphabet: str
    size: int
    most: int = 0


Part = str | tuple[str, ...] | Run
"""A literal, one of several literals, or a run."""
Form = tuple[Part, ...]

DIGIT = DIGITS
HEX = DIGITS + "abcdef"
LOWER = DIGITS + LETTERS
UPPER = DIGITS + LETTERS.upper()
BASE32 = LETTERS.upper() + "234567"
ALPHA = LETTERS + LETTERS.upper()
WORD = DIGITS + ALPHA
URL = WORD + "_-"
BASE64 = WORD + "+/"


def pattern(form: Form) -> str:
    """As Hyperscan takes it. It ends once: after the last character the form asks for.

    What begins with a sign of its maker may go on: makers lengthen their tokens. Else it must end there as a word.
    """
    first, last = form[0], form[-1]
    sign = first if isinstance(first, str) else first[0] if not isinstance(first, Run) else ""
    closed = isinstance(last, Run) and last.alphabet.isalnum() and str(sign).isalnum()
    return r"\b" + "".join(map(_pattern, form)) + (r"\b" if closed else "")


def example(form: Form, choose: Callable[[str], str]) -> str:
    """One text of this form, as short as it can be; `choose` picks a character of an alphabet."""
    found = []
    for part in form:
        if isinstance(part, Run):
            found += [choose(part.alphabet) for _ in range(part.size)]
        else:
            found.append(part if isinstance(part, str) else part[0])
    return "".join(found)


def in_turn() -> Callable[[str], str]:
    """Picks characters far apart, always the same ones: for examples that need no chance."""
    state = 1

    def choose(alphabet: str) -> str:
        nonlocal state
        state = (state * 1103515245 + 12345) % 2**31
        return alphabet[(state >> 12) % len(alphabet)]

    return choose


def _pattern(part: Part) -> str:
    if isinstance(part, Run):
        return f"[{_class(part.alphabet)}]{{{part.size}{f',{part.most}' if part.most else ''}}}"
    if isinstance(part, str):
        return re.escape(part)
    return "(?:" + "|".join(map(re.escape, part)) + ")"


def _class(alphabet: str) -> str:
    """The inside of a character class: ranges where they are whole, then what is left."""
    left = alphabet
    ranges = ""
    for whole, written in ((DIGITS, "0-9"), (LETTERS, "a-z"), (LETTERS.upper(), "A-Z")):
        if whole in left:
            ranges, left = ranges + written, left.replace(whole, "")
    return ranges + "".join("\\" + letter if letter in "-+/.=~^]\\" else letter for letter in left)
