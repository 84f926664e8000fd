"""What one search looks at, as bytes: the texts as they stand, and what was decoded; splits.py has the rest. Pure.

Each view knows where its parts came from, so that what is found in it can be told by the text it stands in.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from router.scanner import normal
from router.scanner.fragments import Fragment
from router.scanner.kinds import NEAR
from router.scanner.reading import Text

BARRIER = b"\n\x00\n"
"""Between texts that do not go on in one another. No text has a NUL any more."""
SLICE, OVERLAP = 128 * 1024, 5 * 1024
"""Bytes of one pass, and how many of those before it are looked at again: more than any kind reaches back."""


class View(NamedTuple):
    """Bytes to be searched, and where each part of them came from among the texts."""

    data: bytes
    starts: list[int]
    origins: list[int]
    """By part, the offset in the plain view."""

    def origin(self, offset: int) -> int:
        """Where among the texts a place came from."""
        if len(self.starts) == 1:
            return offset
        part = max(0, bisect.bisect_right(self.starts, offset) - 1)
        return self.origins[part] + offset - self.starts[part]


class Read(NamedTuple):
    """The plain view: the texts one after the other, what is said first."""

    view: View
    order: list[int]
    starts: list[int]
    """Where each text begins, and in `order` which one it is."""
    size: int
    """Bytes of text; of one that is shorter in this form, its characters."""
    whole: bool
    """Whether all texts are there."""
    unseen: list[Fragment]
    """What the texts say beside what is seen of them."""


def read(texts: Sequence[Text], most: int) -> Read:
    """The texts in the form that patterns look at, at most so many bytes."""
    parts: list[bytes] = []
    found = Read(View(b"", [0], [0]), [], [], 0, True, [])
    at = size = 0
    said = [number for number, text in enumerate(texts) if text.said]
    for place, number in enumerate((*said, *(number for number, text in enumerate(texts) if not text.said))):
        text = texts[number].text
        piece = normal.encoded(text) if size + len(text) <= most else b""
        long = len(piece) if len(piece) > len(text) else len(text)  # what nobody sees is left out, and was read
        if size + long > most:
            found = found._replace(whole=False)
            break
        if not text.isascii() and (hidden := normal.hidden(text)):
            found.unseen.append(Fragment(at, hidden))
        found.order.append(number)
        found.starts.append(at)
        gap = b"\n" if place + 1 < len(said) else BARRIER
        parts += (piece, gap)
        at += len(piece) + len(gap)
        size += long
    return found._replace(view=View(b"".join(parts) + b"\n", [0], [0]), size=size)


def decoded(view: View, found: Sequence[Fragment]) -> tuple[View, int]:
    """What was found in a view in another form, each after what stands before it there; and the bytes of it.

    What stands before can say what it is, and a kind may need that word.
    """
    parts, origins = list[bytes](), list[int]()
    size = 0
    for fragment in found:
        head = view.data[max(0, fragment.at - NEAR) : fragment.at]
        head = head[head.rfind(b"\x00") + 1 :]
        head += b" " if head[-1:].isalnum() else b""  # what stands there is no part of a word before it
        piece = normal.encoded(fragment.text)
        size += len(piece)
        parts += [head + piece, BARRIER]
        origins += [view.origin(fragment.at) - len(head)] * 2
    return View(b"".join(parts) + b"\n", starts(parts), origins), size


def starts(parts: Sequence[bytes]) -> list[int]:
    """Where each part begins once they stand one after the other."""
    return list(accumulate(map(len, parts[:-1]), initial=0))


def slices(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each pass begins and ends: between two words wherever there is a gap within reach."""
    start = 0
    while len(data) - start > SLICE:
        stop = start + SLICE
        for gap in (b"\n", b" "):
            if (found := data.rfind(gap, stop - OVERLAP, stop)) > 0:
                stop = found + 1
                break
        yield start, stop
        start = stop
    yield start, len(data)
