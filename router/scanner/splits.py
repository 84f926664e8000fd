"""What was split and is put together again, as bytes: over the ends of lines, and from one text to the next. Pure.

One view leaves the ends of lines out. The other one is for numbers in groups that stand on lines, or in messages, of
their own: there it matters where the number begins and ends, or every column of numbers would hold one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from typing import NamedTuple

from router.scanner.reading import Text
from router.scanner.views import Read, View, starts

EDGE = 160
"""Bytes on either side of the end of a line, or of a text, that are looked at as if there were none."""
STEP = 32 * 1024
"""Bytes that are looked at in one step, for Python runs nothing else meanwhile."""
MOST = 12
"""Pieces that one number may come in."""
COLUMN = 2 * MOST
"""A longer row of lines with nothing but numbers is a column: some of them would pass any check by chance."""
REACH = 64
"""Bytes before the end of a line in which a number there begins."""
COST = 4
"""What it takes to put pieces together, in pieces that are looked at."""
LEAST_DIGITS, LONGEST = 6, 56
"""Of what pieces make together: fewer digits are no number of anybody, more letters and digits are more than one."""
_BREAK = re.compile(rb"\n(?:(?<=[^\n\t\x00 ]\n)|(?<=[^\n\t\x00 ] \n))(?= ?[^\s\x00])")
"""The end of a line that something can go over: no paragraph follows, and no indented line."""
_TOKEN = rb"(?:[A-Za-z]{0,6}+[0-9][0-9A-Za-z]{0,33}+|[A-Z]{1,6}+)(?![0-9A-Za-z_])"
_GROUP = rb"([+(./-]{0,2}+" + _TOKEN + rb"(?:[ .()/-]{1,3}+" + _TOKEN + rb"){0,8}[-./)]?+)"
_LINE = re.compile(rb"\n[ \t]*+" + _GROUP + rb"(?:[ \t]*+(?=(\n))|(?=[\s,;!?\"'\x00\])]))")
"""How a line begins that goes on with a number; the second group is there where it is all of the line."""
_COLUMN = re.compile(rb"(?:\n\s*+" + _GROUP + rb"[ \t]*+(?=\n))*+")
# How a line ends, read from the right, on the text turned round, so that no beginning is tried in vain.
_NEKOT = rb"(?:[0-9A-Za-z]{0,33}[0-9][A-Za-z]{0,6}|[A-Z]{1,6}+)(?![0-9A-Za-z_])"
_LIAT = re.compile(
    rb"[ \t]*+([-./)]?" + _NEKOT + rb"(?:[ .()/-]{1,3}+" + _NEKOT + rb"){0,8}[+(./-]{0,2})(?=[\s:=(\"'#,;]|\Z)"
)
_DIGITS, _BETWEEN = b"0123456789", b" .()/+-"


class Together(NamedTuple):
    """Pieces that could be one number, put together."""

    text: bytes
    first: int
    """Bytes of the first piece: the number begins there."""
    last: int
    """Where the last piece begins, in which the number ends."""
    at: int
    """Where the first piece stands in the plain view, and where the last one does."""
    last_at: int


_Piece = tuple[int, bytes]
"""Where it stands in its view, and what it is."""


class _Run(NamedTuple):
    """Pieces that stand one after the other, with nothing else between them."""

    pieces: list[_Piece]
    tail: bool
    """Whether the first one can be the end of a line that says something else before it."""
    head: bool
    """Whether the last one is only the beginning of its line."""


def joined(found: Read, texts: Sequence[Text], most: int) -> View | None:
    """Both sides of every line end without it; then of every place where a speaker goes on after another one.

    None where there are more than `most` such ends.
    """
    data = found.view.data
    parts, origins = list[bytes](), list[int]()
    done = 0
    for low, high in _steps(data):
        step = data[low:high]
        lines = _BREAK.split(step)
        firsts = [done, *map(operator.add, accumulate(map(len, lines[:-1])), count(low + 1))]
        if len(lines) > 1:
            lines[0] = data[done : firsts[1] - 1]
        last = lines.pop()
        done = firsts.pop()
        if _BREAK.match(data, high - 1):
            lines.append(last[:-1] if firsts else data[done : high - 1])
            firsts.append(done)
            done = high
        most -= len(lines)
        if most < 0:
            return None
        if b"=\n" in step:  # as quoted-printable has it where a line goes on
            lines = [line.removesuffix(b"=") for line in lines]
        _add(lines, firsts, parts, origins)
    if parts:
        _add([data[done : done + EDGE]], [done], parts, origins)
    for tail_at, tail, head_at, head in _seams(found, texts):
        parts += [b"\x00", tail, head]
        origins += [tail_at, tail_at, head_at]
    return View(b"".join(parts) + b"\n", starts(parts), origins or [0])


def _add(lines: list[bytes], firsts: list[int], parts: list[bytes], origins: list[int]) -> None:
    """Lines without their ends; of long ones only what is near those."""
    if max(map(len, lines), default=0) <= 2 * EDGE:
        parts += lines
        origins += firsts
        return
    for first, line in zip(firsts, lines, strict=True):
        if len(line) <= 2 * EDGE:
            parts.append(line)
            origins.append(first)
        else:
            parts += [line[:EDGE] + b"\x00", line[-EDGE:]]
            origins += [first, first + len(line) - EDGE]


def _steps(data: bytes) -> Iterator[tuple[int, int]]:
    """Stretches to be looked at in turn; each ends with the end of a line."""
    low = 0
    while (cut := data.find(b"\n", low + STEP)) >= 0:
        yield low, cut + 1
        low = cut + 1
    yield low, len(data)


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


def pieced(found: Read, texts: Sequence[Text], most: int) -> list[Together] | None:
    """Numbers whose pieces stand on lines or in messages of their own, of one speaker too, put together.

    None where that takes more than `most` steps.
    """
    made: list[Together] = []
    left = [most]
    for view in (found.view, _spoken(found, texts)):
        for run in _runs(view.data, left):
            spans = _spans(run)
            left[0] -= COST * len(spans)
            if left[0] < 0:
                break
            for first, last in spans:
                made += _together(view, run.pieces[first : last + 1])
    return made if left[0] >= 0 else None


def _spoken(found: Read, texts: Sequence[Text]) -> View:
    """What each one says whom somebody else interrupts, without that: the beginning and end of each message."""
    data, roles = found.view.data, dict[str, list[int]]()
    for place, number in enumerate(found.order):
        if texts[number].said:
            roles.setdefault(texts[number].role, []).append(place)
    parts, origins = list[bytes](), list[int]()
    for places in roles.values():
        if places[-1] - places[0] + 1 == len(places):
            continue  # nobody does: it is one stretch of the plain view
        for place in places:
            first = found.starts[place]
            stop = found.starts[place + 1] if place + 1 < len(found.starts) else len(data)
            said = data[first:stop].rstrip(b"\x00\n")
            if len(said) <= 2 * EDGE:
                parts.append(said + b"\n")
                origins.append(first)
            else:  # what is cut off by the underscore is no number
                parts += [said[:EDGE] + b"_\n\x00_", said[-EDGE:] + b"\n"]
                origins += [first, first + len(said) - EDGE]
        parts.append(b"\x00\n")
        origins.append(0)
    return View(b"".join(parts), starts(parts), origins or [0])


def _runs(data: bytes, left: list[int]) -> Iterator[_Run]:
    """All runs of two pieces and more; columns are left out. Ends early where more lines begin with a piece than are
    `left`, which is less by each."""
    pieces, tail, goes_on = list[_Piece](), False, -1
    for step, high in _steps(data):
        low = max(0, step - 1)
        while found := _LINE.search(data, low, high):
            low, start = found.end(), found.start()
            left[0] -= 1
            if left[0] < 0:
                return
            # Nothing but blank lines may lie between. They are no part of the pattern: it would try each of them anew.
            if goes_on < 0 or data[goes_on:start].strip():
                if 1 < len(pieces) <= COLUMN:
                    yield _Run(pieces, tail, False)
                before = _before(data, start)
                if before is None and found[2] is None:  # as in most lines that begin with a number
                    pieces, goes_on = [], -1
                    continue
                pieces = [before] if before else []
                tail = before is not None and data[max(0, before[0] - 1) : before[0]] not in (b"", b"\n")
            pieces.append((found.start(1), found[1]))
            if found[2] is None:
                if 1 < len(pieces) <= COLUMN:
                    yield _Run(pieces, tail, True)
                pieces, goes_on = [], -1
                continue
            if len(pieces) > COLUMN and (column := _COLUMN.match(data, low, high)):
                low = column.end()
            goes_on = low
    if 1 < len(pieces) <= COLUMN:
        yield _Run(pieces, tail, False)


def _before(data: bytes, end: int) -> _Piece | None:
    """The piece that a line ends with, if it does."""
    whole = data[max(0, end - REACH) : end]
    line = whole.rstrip()
    end -= len(whole) - len(line)
    word = line[line.rfind(b" ") + 1 :]
    if word.isalpha() and not word.isupper():
        return None  # as most lines end
    found = _LIAT.match(line[::-1])
    if found is None or (found.end() == len(line) < end):
        return None
    return end - found.end(), found[1][::-1]


def _spans(run: _Run) -> list[tuple[int, int]]:
    """Which pieces could be one number: those from the first one on, and those up to the last one.

    A piece that is only a part of its line can belong to something else, so without it too.
    """
    last = len(run.pieces) - 1
    digits = [len(text) - len(text.translate(None, _DIGITS)) for _, text in run.pieces]
    if sum(digits) < LEAST_DIGITS:
        return []
    if last == 1:
        return [(0, 1)]
    signs = [len(text.translate(None, _BETWEEN)) for _, text in run.pieces]
    spans = {(first, end) for first in range(1 + run.tail) for end in range(first + 1, min(first + MOST, last + 1))}
    spans |= {(first, end) for end in range(last - run.head, last + 1) for first in range(max(0, end - MOST + 1), end)}
    return [
        (first, end)
        for first, end in sorted(spans)
        if sum(digits[first : end + 1]) >= LEAST_DIGITS and sum(signs[first : end + 1]) <= LONGEST
    ]


def _together(view: View, pieces: Sequence[_Piece]) -> Iterator[Together]:
    """One number without gaps, with spaces between its pieces, and without any space."""
    texts = [text for _, text in pieces]
    at, last_at = view.origin(pieces[0][0]), view.origin(pieces[-1][0])
    glued = b"".join(texts)
    yield Together(glued, len(texts[0]), len(glued) - len(texts[-1]), at, last_at)
    spaced = b" ".join(texts)
    yield Together(spaced, len(texts[0]), len(spaced) - len(texts[-1]), at, last_at)
    if b" " in glued:
        bare, first, last = (text.replace(b" ", b"") for text in (glued, texts[0], texts[-1]))
        yield Together(bare, len(first), len(bare) - len(last), at, last_at)
