"""Words that mix scripts so that nobody sees it: Latin ones with letters of another script that look the same. Pure.

They are read as what they look like, too (normal.py). That somebody writes so is a sign in itself: no keyboard does.
"""

from __future__ import annotations

import re

MIXED_KIND = "mixed_script"
"""The kind of such a word."""
SLICE = 8192
"""Characters that are looked at in one step, for Python runs nothing else meanwhile."""
LONGEST, SHORTEST = 64, 4
"""Characters of a word to either side that are looked at, and letters from which on it is one."""
_ALIKE = (
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u04cf\u04bb\u0501\u051b\u051d"  # Cyrillic
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0405\u0406\u0408\u04c0\u050c\u051a\u051c"
    "\u03bf\u03f2\u03f3\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7"  # Greek
)
"""Letters that nobody can tell from a Latin one. Not those that only resemble one: formulas are full of them."""
_BEFORE_LATIN = re.compile(f"[{_ALIKE}][A-Za-z]")
"""Before, not only after: in Russian an English word may have a Russian ending."""
_WORD = re.compile(r"[^\W\d_]+")
_MIXED = re.compile(f"[A-Za-z{_ALIKE}]{{{SHORTEST},}}")


def mixed(text: str) -> int:
    """How many words of a text are mixed so."""
    if text.isascii():
        return 0
    found = done = 0
    for low in range(0, len(text), SLICE):
        for seed in _BEFORE_LATIN.finditer(text, low, low + SLICE + 1):
            if seed.start() < done:
                continue
            start, done = _word(text, seed.start())
            found += _MIXED.fullmatch(text, start, done) is not None
    return found


def _word(text: str, at: int) -> tuple[int, int]:
    """Where the word around a place begins and ends."""
    low = max(0, at - LONGEST)
    before = next((at - n for n in range(at - low) if not _WORD.match(text[at - n - 1])), low)
    end = _WORD.match(text, at, at + LONGEST)
    return before, end.end() if end else at + 1
