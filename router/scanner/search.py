"""One search: a pass over all texts of a request, candidates held against their checks, then what is hidden in them.

Four views are searched, each once: the texts as they stand; the same without line ends, and one message right after
the other, for what was split; numbers in pieces, put together; and what is written in another form, decoded, twice at
most. Every one of them is linear in the texts, and all work is counted against a budget. What the budget does not cover
is not searched, and is said so.
"""

from __future__ import annotations

import bisect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from router.records import Found
from router.scanner import fragments, scripts, splits, views
from router.scanner.kinds import NEAR, Kind, beside
from router.scanner.layout import Layout
from router.scanner.matcher import Hit, Matcher
from router.scanner.reading import WHOLE, Text
from router.scanner.views import Read, View
from serving.catalogue import DataClass

LAYERS = 2
"""How often what was decoded is decoded again."""
ENOUGH = 32
"""Of one kind in one text: from there on candidates are counted without being checked."""
MOST_FOUND = 64
"""Different findings that are told of; the highest come first."""
_GAP = re.compile(rb"[\s,;|\"'<>(){}]")


class Budget(NamedTuple):
    """What one search may cost; beyond it texts count as unread. Of texts over WHOLE bytes each may cost as much."""

    bytes: int = 4 * 2**20
    hits: int = 30_000
    """Matches of patterns, at about half a microsecond."""
    checks: int = 1_500
    """Candidates that are checked, at about ten."""
    breaks: int = 64_000
    """Ends of lines that are looked across, at about a third of one."""
    pieces: int = 15_000
    """Lines that begin with a number, at about one; see `splits.COST`."""
    fragments: int = 4_000
    """What can stand in another form, at about five."""
    seconds: float = 2.0
    """By the clock: far more than the rest allows, for a machine that stands still."""


class Searched(NamedTuple):
    """What one search found."""

    found: tuple[Found, ...]
    """By kind and place, the highest first."""
    bytes: int
    """Of text that was searched."""
    unread: str
    """Why not all was: `budget`, `timeout`, `error` or `scanner`; empty where all was."""
    by_text: tuple[tuple[Found, ...], ...]


class Passes(NamedTuple):
    """The compiled patterns of a layout."""

    strong: Matcher
    weak: Matcher | None
    shapes: Matcher


class Allows(Protocol):
    """What of the rules a search asks."""

    def allowed(self, kind: str, text: str) -> bool: ...


class _Spent(Exception):
    """The budget is used up; the text is the word for `unread`."""


class Search:
    """One search's state. Made for one request; `run` once."""

    def __init__(
        self, layout: Layout, passes: Passes, rules: Allows, budget: Budget, clock: Callable[[], float]
    ) -> None:  # fmt: skip
        self._layout, self._passes, self._rules = layout, passes, rules
        self._hits = self._checks = self._breaks = self._pieces = self._fragments = 0
        self._budget = budget
        self._clock, self._end = clock, clock() + budget.seconds
        self._counts: Counter[tuple[int, str]] = Counter()
        """By text and kind, of the view that is being searched."""
        self._total: Counter[tuple[int, str]] = Counter()
        """The most of any view: what is found in several is one thing."""
        self._read = Read(View(b"", [0], [0]), [], [], 0, True, [])
        self._span = 0, 0, 0
        """Where the text begins and ends in which something was found last, and which one it is."""
        self._ended: set[tuple[int, str]] = set()
        """Where something was found, and its kind: what only goes on there is no second thing."""
        self._last: dict[str, int] = {}
        """Where a kind was found last in the view that is being searched."""

    def run(self, texts: Sequence[Text]) -> Searched:
        """Search all of them. Raises MatcherError, and whatever a check raises."""
        unread = ""
        self._read = read = views.read(texts, self._budget.bytes)
        self._grant(read.size)
        try:
            self._search_scripts(texts)
            self._search_plain(read.view)
            self._search_joined(texts)
            self._search_pieces(texts)
            self._search_decoded(read.view, read.unseen)
        except _Spent as spent:
            unread = str(spent)
        self._end_view()
        return self._result(texts, read.size, unread or ("" if read.whole else "budget"))

    def _grant(self, size: int) -> None:
        """How much work so many bytes may cost."""
        budget, times = self._budget, max(1.0, size / WHOLE)
        self._hits, self._checks = int(budget.hits * times), int(budget.checks * times)
        self._breaks, self._fragments = int(budget.breaks * times), int(budget.fragments * times)
        self._pieces = int(budget.pieces * times)

    # -- the views

    def _search_plain(self, view: View) -> None:
        for hit in self._matches(view.data):
            self._judge(view, hit, 0)
        self._end_view()

    def _search_scripts(self, texts: Sequence[Text]) -> None:
        """Words of two scripts. They are no hits: the view no longer shows them."""
        if self._layout.scripts:
            for number in self._read.order:
                if many := scripts.mixed(texts[number].text):
                    self._total[number, scripts.MIXED_KIND] = many

    def _search_joined(self, texts: Sequence[Text]) -> None:
        """What goes over the end of a line, or on in the next text: once, and not what the plain view has judged."""
        view = splits.joined(self._read, texts, self._breaks)
        if view is None:
            raise _Spent("budget")
        ends = frozenset(self._ended)
        for end, kind in self._matches(view.data):
            part = bisect.bisect_left(view.starts, end) - 1
            first = view.starts[part]
            if part <= 0 or view.data[first - 1] == 0:
                continue
            name, before = self._layout.kinds[kind].name, view.origins[part - 1] + first - view.starts[part - 1]
            if (view.origins[part] + end - first, name) not in ends and (before, name) not in ends:
                self._judge(view, (end, kind), 0 if self._layout.kinds[kind].wrapped else view.starts[part - 1])
        self._end_view()

    def _search_pieces(self, texts: Sequence[Text]) -> None:
        """Numbers that stand in pieces, from the first piece to the last one."""
        found = splits.pieced(self._read, texts, self._pieces)
        if found is None:
            raise _Spent("budget")
        parts = [one.text + b"\x00" for one in found]
        starts, data = views.starts(parts), b"".join(parts)
        seen: set[tuple[int, str]] = set()  # once, in however many ways it can be put together
        for end, number in self._in_pieces(data) if data else ():
            part = bisect.bisect_left(starts, end) - 1
            one, kind = found[part], self._layout.kinds[number]
            if (one.last_at, kind.name) not in seen and self._judge_together(one, kind, end - starts[part]):
                seen.add((one.last_at, kind.name))
        self._end_view()

    def _in_pieces(self, data: bytes) -> Iterator[Hit]:
        """Every candidate of a kind that can stand in pieces. Raises _Spent."""
        layout = self._layout
        for matcher, owners in ((self._passes.strong, layout.owners), (self._passes.weak, layout.weak_owners)):
            for start, stop in views.slices(data):
                for end, number in self._scan(matcher, data, start, stop) if matcher else ():
                    if number < len(owners) and layout.kinds[owners[number]].in_pieces and (end > start or not start):
                        yield end, owners[number]

    def _search_decoded(self, plain: View, unseen: list[fragments.Fragment]) -> None:
        """What is written in another form, and what is in that form there again."""
        view, left = plain, 2 * len(plain.data) + 4096
        for _ in range(LAYERS):
            found = [*unseen, *self._decoded(view)]
            unseen = []
            if not found:
                return
            view, size = views.decoded(view, found)
            left -= size
            if left < 0:
                raise _Spent("budget")
            for hit in self._matches(view.data):
                self._judge(view, hit, 0)
            self._end_view()

    def _decoded(self, view: View) -> Iterator[fragments.Fragment]:
        """Every fragment of a view that could be read. Those that could not, and hide something, are counted."""
        data = view.data
        runs, spaced, pairs = self._shapes(data)
        self._charge(len(spaced) + len(pairs))
        for at, run in fragments.runs(data, runs):
            self._charge(not fragments.is_hash(run))
            text, rest = fragments.read(run)
            if text:
                yield fragments.Fragment(at, text)
            if rest and self._layout.blob is not None and fragments.is_blob(rest):
                self._blob(view, at, run)
        low = 0
        for end in spaced:
            yield from fragments.spaced(data, low, end)
            low = end - 1
        low = 0
        for end in pairs:
            yield from fragments.pairs(data, low, end)
            low = end - 3
        escaped, whole = fragments.escapes(data, self._fragments)
        self._fragments -= len(escaped)
        yield from escaped
        if not whole:
            raise _Spent("budget")

    def _charge(self, many: int) -> None:
        """So many fragments more. Raises _Spent."""
        self._fragments -= many
        if self._fragments < 0:
            raise _Spent("budget")

    def _shapes(self, data: bytes) -> tuple[list[int], ...]:
        """Where each shape ends. Raises _Spent."""
        ends: tuple[list[int], ...] = tuple([] for _ in self._layout.shapes)
        for start, stop in views.slices(data):
            for end, number in self._scan(self._passes.shapes, data, start, stop):
                if end > start or not start:
                    ends[number].append(end)
        return ends

    def _blob(self, view: View, at: int, run: bytes) -> None:
        window = view.data[max(0, at - NEAR) : at + len(run)][-4096:]
        self._check_budget()
        if not self._rules.allowed(fragments.BLOB_KIND, window.decode("utf-8", "ignore")):
            self._counts[self._text_at(view.origin(at)), fragments.BLOB_KIND] += 1

    # -- one pass, and one candidate

    def _scan(self, matcher: Matcher, data: bytes, start: int, stop: int) -> Iterator[Hit]:
        """One pass over one slice and what stands before it. Raises _Spent after the last match."""
        low = max(0, start - views.OVERLAP)
        hits, whole = matcher.scan(data[low:stop], self._hits)
        self._hits -= len(hits)
        yield from ((end + low, number) for end, number in hits)
        if not whole:
            raise _Spent("budget")
        if self._clock() > self._end:
            raise _Spent("timeout")

    def _matches(self, data: bytes) -> Iterator[Hit]:
        """Every candidate by where it ends and its kind. Raises _Spent."""
        owners = self._layout.owners
        for start, stop in views.slices(data):
            words = False
            for end, number in self._scan(self._passes.strong, data, start, stop):
                if number >= len(owners):
                    words = True  # also before the slice: each word is told of once
                elif end > start or not start:
                    yield end, owners[number]
            if words and self._passes.weak is not None:
                yield from self._weaker(self._passes.weak, data, start, stop)

    def _weaker(self, matcher: Matcher, data: bytes, start: int, stop: int) -> Iterator[Hit]:
        """Candidates of kinds that need a word beside them, where such a word is near."""
        layout = self._layout
        owners = layout.weak_owners
        hits = list(self._scan(matcher, data, start, stop))
        words: dict[int, list[int]] = {}
        for end, number in hits:
            if number >= len(owners):
                words.setdefault(number - len(owners), []).append(end)
        for end, number in hits:
            # Those just before the slice again: their word may stand in it.
            if number >= len(owners) or (start and end <= start - 2 * NEAR):
                continue
            kind = owners[number]
            places = words.get(layout.groups[kind], ())
            first = bisect.bisect_left(places, end - layout.kinds[kind].reach - NEAR)
            if first < len(places) and places[first] <= end + 2 * NEAR:
                yield end, kind

    def _judge(self, view: View, hit: Hit, low: int) -> None:
        """Hold one candidate against its check. Raises _Spent."""
        end, number = hit
        kind = self._layout.kinds[number]
        text = self._text_at(view.origin(end - 1))
        key = text, kind.name
        if self._counts[key] >= ENOUGH:
            self._counts[key] += 1
            return
        low = max(low, view.data.rfind(b"\x00", max(0, end - kind.reach), end) + 1, end - kind.reach)
        if self._same(view, kind, low, end):
            return
        self._check_budget()
        candidate = view.data[low:end].decode("utf-8", "ignore")
        if self._counts_as(view.data, kind, low, end, candidate):
            self._ended.add((end, kind.name))
            if not self._rules.allowed(kind.name, candidate):
                self._counts[key] += 1
                self._last[kind.name] = end

    def _judge_together(self, one: splits.Together, kind: Kind, end: int) -> bool:
        """Whether a number counts that begins in the first of its pieces and ends in the last one. Raises _Spent."""
        if end <= one.last:
            return False
        self._check_budget()
        last_at = one.last_at + end - one.last
        data, candidate = self._read.view.data, one.text[:end].decode("utf-8", "ignore")
        around = data[max(0, one.at - NEAR) : one.at] + b" " + data[last_at : last_at + NEAR]
        if kind.check is None or not beside(kind.context, around.decode("utf-8", "ignore")):
            return False
        if not kind.check(candidate) or kind.check(candidate[one.first :]):
            return False
        if self._rules.allowed(kind.name, candidate):
            return False
        self._counts[self._text_at(last_at - 1), kind.name] += 1
        return True

    def _same(self, view: View, kind: Kind, low: int, end: int) -> bool:
        """Whether this is one more end of what was found already."""
        last = self._last.get(kind.name, -1)
        return low <= last <= end and _GAP.search(view.data, last, end) is None

    def _counts_as(self, data: bytes, kind: Kind, low: int, end: int, candidate: str) -> bool:
        if kind.context:
            around = data[max(0, low - NEAR) : end + NEAR].decode("utf-8", "ignore")
            if not beside(kind.context, around):
                return False
        return kind.check is None or kind.check(candidate)

    def _check_budget(self) -> None:
        self._checks -= 1
        if self._checks < 0:
            raise _Spent("budget")
        if self._checks % 64 == 0 and self._clock() > self._end:
            raise _Spent("timeout")

    # -- what was found

    def _text_at(self, offset: int) -> int:
        """Which text a place of the plain view lies in; nearly always the same as the last time."""
        low, high, number = self._span
        if low <= offset < high:
            return number
        order, starts = self._read.order, self._read.starts
        if not order:
            return 0
        place = max(0, bisect.bisect_right(starts, offset) - 1)
        high = starts[place + 1] if place + 1 < len(starts) else len(self._read.view.data)
        self._span = starts[place], high, order[place]
        return order[place]

    def _end_view(self) -> None:
        for key, count in self._counts.items():
            self._total[key] = max(self._total[key], count)
        self._counts.clear()
        self._last = {}

    def _result(self, texts: Sequence[Text], size: int, unread: str) -> Searched:
        effects = self._layout.effects
        by_text: list[list[Found]] = [[] for _ in texts]
        for (number, name), count in self._total.items():
            by_text[number].append(Found(name, effects[name], count, texts[number].where))
        found = _merged(one for some in by_text for one in some)
        return Searched(found, size, unread, tuple(tuple(some) for some in by_text))


def _merged(found: Iterable[Found]) -> tuple[Found, ...]:
    """One entry for each kind and place, the highest first."""
    counts: Counter[tuple[str, DataClass, str]] = Counter()
    for one in found:
        counts[one.kind, one.effect, one.where] += one.count
    entries = [Found(kind, effect, count, where) for (kind, effect, where), count in counts.items()]
    return tuple(sorted(entries, key=lambda one: -one.effect)[:MOST_FOUND])
