"""Pure: what a kind of finding is. The kinds themselves stand in personal.py, national.py and credentials.py.

rules.py joins them with the site's settings; the scanner reads `Rules.kinds` and nothing else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

from serving.catalogue import DataClass

Check = Callable[[str], bool]
"""Whether a candidate counts. It is given the text that ends exactly where the pattern ended and begins at most `reach`
characters before that; it finds the start of the candidate itself, from the right. Its work is linear in that text."""
NEAR = 60
"""Characters before a candidate's reach and after its end in which a word of its context may stand."""


class Kind(NamedTuple):
    """One row of what is looked for. Several rows may share a name: a form that speaks for itself, and a weak one
    that counts beside certain words alone.

    The patterns are Hyperscan's, over the normalised text as UTF-8, all in one database. They hold their own edges:
    a match that begins or ends inside a longer word is their business, never the scanner's.
    """

    name: str
    """In findings, records and `privacy.effects`. `credential_github` is also set by `credential`."""
    effect: DataClass
    patterns: tuple[str, ...]
    check: Check | None = None
    """None: the pattern alone counts."""
    caseless: bool = True
    context: tuple[str, ...] = ()
    """Words in lower case, one of which must stand NEAR the candidate, as `beside` says. None: no word is needed."""
    planted: tuple[str, ...] = ()
    """Texts in which this row must find something: the scanner's self-test. Built at run time: `Rules.kinds` has them
    whole; in the tables a `?` stands where a check digit is still to be found."""
    reach: int = 256
    """How many characters before its end a candidate may begin."""
    wrapped: bool = False
    """Whether its form alone tells it apart: then it may go over any number of line ends, else over one."""
    in_pieces: bool = False
    """Whether its digits belong to one another by their check: then it may stand in pieces on lines of their own."""


def beside(words: tuple[str, ...], around: str) -> bool:
    """Whether one of these words stands in this text as a whole word. No words: nothing is asked for."""
    if not words:
        return True
    lowered = around.lower()
    # Most texts hold none of them at all, which is seen a hundred times sooner.
    return any(start in lowered for start in _starts(words)) and _any_of(words).search(lowered) is not None


@functools.lru_cache(maxsize=256)
def _starts(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(word.split()[0] for word in words)


@functools.lru_cache(maxsize=256)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """A space may be any gap. An underscore ends a word, so that `patient_id` holds `patient`; where a script writes
    no spaces, nothing does."""
    forms = {word: re.escape(word).replace(r"\ ", r"[\s_-]{1,3}") for word in words}
    spaced = "|".join(form for word, form in forms.items() if max(word) < "\u2e80")
    return re.compile(
        "|".join([rf"(?<![^\W_])(?:{spaced})(?![^\W_])", *(forms[w] for w in words if max(w) >= "\u2e80")])
    )
