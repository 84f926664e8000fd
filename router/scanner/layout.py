"""Which patterns go into which pass, and whose each one is.

What counts alone is looked for in every text, and with it whether a word stands there that a weaker kind needs beside
it. Only where one does, a second pass looks for those weaker kinds. So long numbers cost little in a text without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from router.scanner import fragments
from router.scanner.kinds import Kind
from router.scanner.matcher import Pattern
from router.scanner.normal import folded
from router.scanner.scripts import MIXED_KIND
from serving.catalogue import DataClass

SHAPES = (Pattern(fragments.RUN), Pattern(fragments.SPACED), Pattern(fragments.PAIRS))
"""Not kinds: where something can stand in another form. A pass of their own, since not every view needs it."""


class Layout(NamedTuple):
    """The patterns of each pass, in the order of their numbers."""

    kinds: tuple[Kind, ...]
    """With their words in the form that texts are brought into."""
    strong: tuple[Pattern, ...]
    """Those of the kinds that need no word, then one for each group of words."""
    owners: tuple[int, ...]
    """By the number of a pattern of `strong`, the kind; there are fewer than patterns."""
    weak: tuple[Pattern, ...]
    """Those of the kinds that need a word, then one for each group of words."""
    weak_owners: tuple[int, ...]
    shapes: tuple[Pattern, ...]
    groups: tuple[int, ...]
    """By kind, the number of the group of words it needs; -1 where it needs none."""
    effects: dict[str, DataClass]
    """By the name of a kind, the class of what is found."""
    blob: DataClass | None
    """What it means that a part says nothing to anybody; None where that is of no interest."""
    scripts: bool
    """Whether words of two scripts are of interest."""


def layout(kinds: Sequence[Kind]) -> Layout:
    """The layout of these kinds, the same for the same kinds."""
    rows = tuple(kind._replace(context=tuple(map(folded, kind.context))) for kind in kinds)
    words = list(dict.fromkeys(kind.context for kind in rows if kind.context))
    strong, owners, weak, weak_owners = list[Pattern](), list[int](), list[Pattern](), list[int]()
    for number, kind in enumerate(rows):
        patterns, whose = (weak, weak_owners) if kind.context else (strong, owners)
        patterns += [Pattern(folded(text), kind.caseless) for text in kind.patterns]
        whose += [number] * len(kind.patterns)
    strong += [Pattern(_any_of(group), caseless=True, once=True) for group in words]
    weak += [Pattern(_any_of(group), caseless=True) for group in words]
    effects: dict[str, DataClass] = {}
    for kind in rows:
        effects[kind.name] = max(effects.get(kind.name, kind.effect), kind.effect)
    blobs = [kind.effect for kind in rows if kind.name == fragments.BLOB_KIND]
    return Layout(
        kinds=rows,
        strong=tuple(strong),
        owners=tuple(owners),
        weak=tuple(weak) if weak_owners else (),
        weak_owners=tuple(weak_owners),
        shapes=SHAPES,
        groups=tuple(words.index(kind.context) if kind.context else -1 for kind in rows),
        effects=effects,
        blob=blobs[0] if blobs else None,
        scripts=any(kind.name == MIXED_KIND for kind in rows),
    )


def _any_of(words: Sequence[str]) -> str:
    """One of these words, as loosely as `kinds.beside` could take it: that one has the last word."""
    forms = "|".join(re.escape(word).replace(r"\ ", r"[\s_-]{1,3}") for word in words)
    return f"(?:^|[^A-Za-z0-9])(?:{forms})(?:[^A-Za-z0-9]|$)"
