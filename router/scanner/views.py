"""What one search looks at, as bytes: the texts as they stand, what goes over a line's end, what was decoded. Pure.

Each view knows where its parts came from, so that what is found in it can be told by the text it stands in.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from router.scanner import normal
from router.scanner.fragments import Fragment
from router.scanner.kinds import NEAR
from router.scanner.reading import Text

BARRIER = b"\n\x00\n"
"""Between texts that do not go on in one another. No text has a NUL any more."""
EDGE = 160
"""Bytes on either side of the end of a line, or of a text, that are looked at as if there were none."""
_BREAK = re.compile(rb"\n(?= ?[^\s\x00])")
"""The end of a line that something can go over: no paragraph follows, and no indented line."""
_NOTHING = (b"", b"\n", b"\t", b"\x00")
"""What ends a line that goes on nowhere."""


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
    order = sorted(range(len(texts)), key=lambda number: not texts[number].said)
    for place, number in enumerate(order):
        text = texts[number].text
        piece = normal.encoded(text) if size + len(text) <= most else b""
        if size + max(len(piece), len(text)) > most:
            found = found._replace(whole=False)
            break
        if not text.isascii() and (hidden := normal.hidden(text)):
            found.unseen.append(Fragment(at, hidden))
        found.order.append(number)
        found.starts.append(at)
        goes_on = place + 1 < len(order) and texts[order[place + 1]].said
        gap = b"\n" if goes_on else BARRIER
        parts += [piece, gap]
        at += len(piece) + len(gap)
        size += max(len(piece), len(text))  # what nobody sees is left out of the piece, and was read
    return found._replace(view=View(b"".join(parts) + b"\n", [0], [0]), size=size)


def joined(found: Read, texts: Sequence[Text], most: int) -> View | None:
    """Both sides of every line end without it; then of every place where a speaker goes on after another one.

    None where there are more than `most` such ends.
    """
    data = found.view.data
    ends = (one.start() for one in _BREAK.finditer(data))
    breaks = [at for at in ends if data[max(0, at - 2) : at].rstrip(b" ")[-1:] not in _NOTHING]
    if len(breaks) > most:
        return None
    parts, origins = list[bytes](), list[int]()
    done = -1
    for number, at in enumerate(breaks):
        if done < 0 or at - EDGE > done:
            done = max(done, at - EDGE, 0)
            parts.append(b"\x00")
            origins.append(done)
        parts.append(data[done:at].removesuffix(b"="))  # as quoted-printable has it where a line goes on
        origins.append(done)
        done = at + 1
        if number + 1 == len(breaks) or breaks[number + 1] - done > 2 * EDGE:
            parts.append(data[done : done + EDGE])
            origins.append(done)
            done += EDGE
    for tail_at, tail, head_at, head in _seams(found, texts):
        parts += [b"\x00", tail, head]
        origins += [tail_at, tail_at, head_at]
    return View(b"".join(parts) + b"\n", _starts(parts), origins or [0])


def _seams(found: Read, texts: Sequence[Text]) -> Iterator[tuple[int, bytes, int, bytes]]:
    """Where somebody goes on after another one has spoken: the end before, and the beginning after."""
    data, last = found.view.data, dict[str, int]()
    for place, number in enumerate(found.order):
        if not texts[number].said:
            return
        before = last.get(texts[number].role, place)
        last[texts[number].role] = place
        if before < place - 1:
            stop, at = found.starts[before + 1] - 1, found.starts[place]
            low = max(data.rfind(b"\n", 0, stop) + 1, stop - EDGE)
            head = data[at : at + EDGE].split(b"\n", 1)[0]
            yield low, data[low:stop], at, head


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
    return View(b"".join(parts) + b"\n", _starts(parts), origins), size


def _starts(parts: Sequence[bytes]) -> list[int]:
    return list(accumulate(map(len, parts[:-1]), initial=0))
