"""The regular expressions of a request: whether each can be compiled, within a budget for all of them together. Pure.

Compiling holds the event loop, and a pattern of 2,000 characters can take half a second. So what each one may cost is
worked out first, from its text alone: the same request is always judged the same, however busy the machine is.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import jsonschema_rs

MOST_CHARACTERS = 2000
"""Of one regular expression."""
BUDGET_US = 60_000
"""Microseconds that all patterns of one request may take to compile together, by `cost_us`: over a hundred that only
differ in their letters, or one that counts long words of any alphabet."""
STATES = 2**23
"""Bytes that one may need when it is compiled; nested counts multiply to more."""
MOST_US, MOST_WIDE_US = 40_000, 100_000
"""What a pattern costs that is given up at STATES."""
FANCY = jsonschema_rs.FancyRegexOptions(size_limit=STATES)
LINEAR = jsonschema_rs.RegexOptions(size_limit=STATES)
_CLASSES = re.compile(r"\\[dDsSwW]")
_LOOKS = re.compile(r"\(\?[=!<]|\\[1-9]")
_WORDS = re.compile(r"\\[wW]")
"""Of all alphabets where something looks around, else of ASCII alone."""
_WIDE = re.compile(r"\\[pP]|\[:|\(\?[a-z]*i")
_COUNTS = re.compile(r"\{(?:\d*,)?(\d+)")
_NESTED = re.compile(r"[)}?*+]\{")


class Pattern(NamedTuple):
    """One regular expression of a request."""

    text: str
    linear: bool = False
    """Whether it may not look around: the answer itself is to match it, and engines take none that do."""

    @property
    def cost_us(self) -> int:
        """About how many microseconds it takes to compile, rather more than fewer; tried with random patterns.

        Classes such as `\\d` are written out one after the other in a copy of the whole, so their count goes in
        squared. What looks around is compiled by itself; counts cost their number of copies, and nested ones multiply.
        """
        text = self.text
        classes, looks = len(_CLASSES.findall(text)), len(_LOOKS.findall(text))
        wide = len(_WIDE.findall(text)) + (len(_WORDS.findall(text)) if looks else 0)
        most = (1 + looks) * (MOST_WIDE_US if wide or looks else MOST_US)
        copies = sum(int(number[:9]) for number in _COUNTS.findall(text))
        repeated = most if _NESTED.search(text) else min(most, copies * (300 if wide else 30 if looks else 8))
        return 150 + 2 * len(text) + 3 * classes**2 + 400 * (wide + looks) + (100 * classes if looks else 0) + repeated


def fault(those: Collection[Pattern], spent_us: int) -> str:
    """What is wrong with these, in one sentence; "" where nothing is. `spent_us`: what they cost with those before."""
    if any(len(one.text) > MOST_CHARACTERS for one in those):
        return f"A pattern may have {MOST_CHARACTERS} characters; shorten it."
    if spent_us > BUDGET_US:
        return "The patterns of the request stand for too much together; make them simpler, or send fewer."
    if not all(_compiles(one) for one in those):
        return "A pattern is not valid, or stands for too much; make it simpler."
    return ""


@lru_cache(maxsize=1024)
def _compiles(one: Pattern) -> bool:
    options = LINEAR if one.linear else FANCY
    try:
        jsonschema_rs.validator_for({"pattern": one.text}, pattern_options=options, offline=True)
    except ValueError:
        return False
    return True
