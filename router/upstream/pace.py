"""What is learned of each endpoint from this router's own requests there: how fast it reads and how fast it writes.

An engine reads prompts first come, first served, so what a first token shows is the work of all that were sent before
it, and never of one prompt alone: from the moment the first of them began to be read. Such a stretch ends when nothing
is left to be read, or after STRETCH_S. A line through stretches (time over tokens) gives what a token takes and what a
request takes besides. The time is handed in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from router.records import LIKELY_BYTES_PER_TOKEN, MOST_PICTURED, SMALL_PROMPT, Met, Pace, Usage
from router.upstream.batch import Batch
from router.upstream.fading import Line, Mean

STRETCH_S = 0.25
"""A stretch of reading is measured after so long, though more is left to be read: at full load something always is."""
TOGETHER_S = 0.005
"""First tokens that come so shortly after one another come of one step of the engine."""
OFF = 4.0
"""A measurement further off than so many times what was expected counts as just that far: one that stood still for an
hour says little, and a lasting change is followed all the same."""
FEW = 8
"""Output tokens from which on an answer shows how fast it was written."""
MOST_WEIGHT = 256
"""Output tokens beyond which an answer shows that no better."""
RECENT_S = 5.0
"""So long it is remembered how many requests were in flight, which is what an engine's own count is held against."""
AROUND_S = 0.1
"""How far off the moment of a reading may be."""
MOST_COUNTS = 4096
AGAIN_S = 0.02
"""How soon what was learned is worked out anew: at thousands of requests a second each would cost more than it says."""


class Sent:
    """One request at an endpoint, from its sending on."""

    __slots__ = ("_area", "_at", "_began", "_first", "_size", "_there", "_tokens", "blind", "streams")

    def __init__(
        self, there: There, tokens: float, size: int, now: float, area: float, *, streams: bool, blind: bool
    ) -> None:  # fmt: skip
        """`tokens`: of its prompt, as expected, that are not cached there. `size`: bytes; 0 says nothing of tokens.
        `area`: what `There.count` gave for it."""
        self.streams, self.blind = streams, blind
        """Whether its first token is seen as it comes; and where it is not, whether more than a few follow unseen."""
        self._there, self._tokens, self._size, self._at = there, tokens, size, now
        self._first = 0.0
        self._began = now
        self._area = area

    @property
    def tokens(self) -> float:
        return self._tokens

    @property
    def at(self) -> float:
        return self._at

    def first(self, now: float) -> None:
        """Its first token has come."""
        if not self._first:
            self._first = now
            self._began = max(self._at, self._there.started(self, now))

    def left(self, now: float) -> None:
        """It brought no whole answer, so it shows nothing."""
        if not self._first:
            self._there.gave_up(self, now)
        self._there.count(-1, now)

    def ended(self, usage: Usage, pieces: int, now: float) -> Met:
        """It was answered to its end. `pieces`: output tokens as they were counted, where the usage names none."""
        there, output = self._there, usage.output or pieces
        if output < FEW and not self._first:  # an embedding, or one word: all of the time was reading
            self.first(now)
        running = (there.count(-1, now) - self._area) / max(1e-6, now - self._at)
        if self._size and usage.prompt:
            there.ratio.add(self._size / usage.prompt, float(usage.prompt), now)
            there.stale = True
        speed = self._written(output, running, now)
        if not self._first:
            there.gave_up(self, now)
            return Met(there.name, tokens_per_s=speed)
        return Met(there.name, self._began - self._at, self._first - self._at, speed)

    def _written(self, output: int, running: float, now: float) -> float | None:
        """Tokens a second after the first; learned from where there are enough."""
        if output < FEW:
            return None
        there = self._there
        begun = self._first or self._at + there.reading_s(self._tokens)
        if self._first and now - self._first < TOGETHER_S:  # somebody gathered it: its first token came with its last
            begun = self._at
        took = now - begun
        if took <= 0:
            return None
        each = took / (output - 1 if self._first else output)
        there.wrote(running, each, float(min(output, MOST_WEIGHT)), now)
        return 1 / each


class There:
    """One endpoint, as its requests show it."""

    __slots__ = (
        "_area", "_batch", "_changed", "_clean", "_counts", "_drain", "_each", "_known", "_last", "_learned", "_others",
        "_paces", "_queue", "_read", "_running", "_since", "_work", "_writes", "_writing", "name", "ratio", "stale",
        "unread",
    )  # fmt: skip

    def __init__(self, name: str, ratio: Mean) -> None:
        """`ratio`: bytes a token, that of all endpoints of the model."""
        self.name, self.ratio = name, ratio
        self.unread = 0.0
        """Prompt tokens sent whose first output token has not come."""
        self.stale = True
        """Whether something was learned since the pace was last worked out."""
        self._read, self._writes, self._each = Line(), Line(), Mean()
        self._queue: dict[Sent, None] = {}
        """Requests whose first token has not come, as they were sent."""
        self._since = self._work = 0.0
        """The stretch of reading under way: when it began, and the tokens read in it."""
        self._clean = False
        """Whether all of it was spent on reading what is known."""
        self._last = 0.0
        """When the last first token came."""
        self._running, self._changed, self._area = 0, 0.0, 0.0
        """Requests in flight, since when, and their sum over time before."""
        self._counts: deque[tuple[float, int]] = deque(maxlen=MOST_COUNTS)
        self._others = 0
        self._batch = Batch()
        self._known = Pace()
        self._writing: tuple[float, float, float] | None = None
        """Seconds a token of an answer: at least, alone, and more for each one beside it."""
        self._learned = -math.inf
        """When both were worked out."""
        self._drain: tuple[float | None, int | None] = (None, None)
        self._paces: dict[int, Pace | None] = {}
        """What follows for one more beside so many."""

    # ---- what happens there

    def sent(
        self, size: int, cached: int, now: float, *, streams: bool = True, blind: bool = False, pictured: bool = False
    ) -> Sent:  # fmt: skip
        """A request was sent. `cached`: bytes of it that the endpoint has lately read; `streams`, `blind`: see `Sent`.

        `pictured`: whether it holds what bytes say nothing of.
        """
        tokens = max(1.0, (size - cached) / self.bytes_per_token())
        if pictured:
            tokens = min(tokens, MOST_PICTURED)
        made = Sent(self, tokens, 0 if pictured else size, now, self.count(1, now), streams=streams, blind=blind)
        if not self._queue:
            self._since, self._work, self._clean = now, 0.0, True
        if self._batch.crowded(self._running + self._others):  # it waits for a place, and not for others' prompts
            self._clean = False
        self._queue[made] = None
        self.unread += tokens
        self._each.add(tokens, 1.0, now)
        return made

    def started(self, sent: Sent, now: float) -> float:
        """The first token of `sent` has come. Returns when it began to be read, by what came before it."""
        if sent not in self._queue:  # taken to be read already
            return 0.0
        if self._last - self._since >= STRETCH_S and now - self._last > TOGETHER_S:
            self._close(self._last, clean=True)
        before = next(iter(self._queue))
        while before.blind and before is not sent:  # first come, first served: it was read before
            self._work += before.tokens
            self._take(before)
            before = next(iter(self._queue))
        self._take(sent)
        began, self._last = self._last, now
        # Where the next one's first token is not seen, nobody knows how long it is read and when the engine rests.
        known = bool(self._queue) and not next(iter(self._queue)).blind
        self._work += sent.tokens
        if not known:
            self._close(now, clean=False)
        return began

    def _close(self, at: float, *, clean: bool) -> None:
        """A stretch ends, and another begins. `clean`: whether that one is spent on reading what is known."""
        if self._clean and at > self._since:
            self._measured(self._work, at - self._since, at)
        self._since, self._work = at, 0.0
        self._clean = clean and not self._batch.crowded(self._running + self._others)

    def gave_up(self, sent: Sent, now: float) -> None:
        """It will bring no first token, or had it unseen: nobody knows how much of it was read."""
        if sent in self._queue:
            self._take(sent)
            self._since, self._work, self._clean = now, 0.0, False

    def wrote(self, running: float, each: float, weight: float, now: float) -> None:
        """An answer took `each` seconds a token beside so many requests on average, itself included."""
        expected = self._writing_s(running)
        if expected:
            each = min(max(each, expected / OFF), expected * OFF)
        self._writes.add(running, each, weight, now)
        self.stale = True

    def count(self, change: int, now: float) -> float:
        """One more in flight, or one less. Returns the sum over time of those that were."""
        self._area += self._running * (now - self._changed)
        self._changed = now
        self._running += change
        self._counts.append((now, self._running))
        batch = self._batch
        if change < 0:
            batch.ended(now)
        if batch.size is not None:
            batch.holds(self._running + self._others, now)
        return self._area

    def read(self, running: int | None, waiting: int, at: float) -> None:
        """The engine said at `at` how many requests it works on, and how many it lets wait; None: nobody knows. What is
        not ours is others'."""
        if running is None:
            self._others = 0
            return
        self._batch.read(running, waiting, at)
        while len(self._counts) > 1 and self._counts[1][0] < at - RECENT_S:
            self._counts.popleft()
        own = 0
        for when, count in self._counts:
            if when > at + AROUND_S:
                break
            own = count if when < at - AROUND_S else max(own, count)
        self._others = max(0, running + waiting - own)

    def forget(self) -> None:
        """It is another process by now, or stood still: what was learned is not true of it. What is under way there is
        ours as before, and ends as it ends."""
        self._read, self._writes, self._each, self._known = Line(), Line(), Mean(), Pace()
        self._clean, self.stale, self._others, self._writing, self._learned = False, True, 0, None, -math.inf
        self._batch = Batch()

    # ---- what is known of it

    @property
    def others(self) -> int:
        return self._others

    def bytes_per_token(self) -> float:
        found = self.ratio.value()
        return LIKELY_BYTES_PER_TOKEN if found is None else max(0.5, found)

    def unstarted(self, now: float) -> int:
        """Prompt tokens that are still to be read, as far as can be said."""
        queue = self._queue
        if not queue:
            return 0
        rate = self._known.prefill
        if rate is None:
            return math.ceil(self.unread)
        # What the first of them has been read by now; and where their first tokens are not seen, what must have been.
        done = max(0.0, now - max(self._since, self._last)) * rate
        left, first = self.unread, next(iter(queue))
        while first.blind and done >= first.tokens:
            done -= first.tokens
            self._last = max(self._last, self._since) + first.tokens / rate
            left -= first.tokens
            self._work += first.tokens
            self._take(first)
            if not queue:
                return 0
            first = next(iter(queue))
        return math.ceil(left - min(done, 0.95 * first.tokens))

    def pace(self, now: float, drain: float | None = None) -> Pace | None:
        """What was learned; None where that is nothing. `drain`: requests that end in a second while it is full."""
        if self.stale and (self._writing is None or now - self._learned >= AGAIN_S):
            self._learned = now
            self._learn()
        beside = self._running + self._others
        at_once = None
        if self._running and (ends := self._batch.drained(now)) is not None:
            drain, at_once = ends * beside / self._running, self._batch.size  # others' end as ours do
        if (drain, at_once) != self._drain:
            self._drain = drain, at_once
            self._paces.clear()
        if beside not in self._paces:
            each, k = self._writing_s(beside + 1), self._known
            known = Pace(k.prefill, 1 / each if each else None, k.first_s, drain, k.ratio, k.prompt, at_once)
            nothing = each is None and k.prefill is None and k.first_s is None and k.ratio is None
            self._paces[beside] = None if nothing else known
        return self._paces[beside]

    def reading_s(self, tokens: float) -> float:
        """Seconds that a prompt takes alone; 0 where that is not known."""
        known = self._known
        return (known.first_s or 0.0) + (tokens / known.prefill if known.prefill else 0.0)

    def _learn(self) -> None:
        self.stale = False
        line, prefill, first_s = self._read.fit(), self._known.prefill, self._known.first_s
        if line is not None:
            first_s, prefill = line[0], 1 / line[1]
        elif (middle := self._read.means()) is not None:
            tokens, took = middle
            first_s = None if first_s is None else min(first_s, self._read.least)
            if tokens >= SMALL_PROMPT:
                prefill = tokens / (took - first_s if first_s and 2 * first_s < took else took)
            elif prefill is None:
                first_s = took
        self._known = Pace(prefill, None, first_s, ratio=self.ratio.value(), prompt=self._each.value())
        self._paces.clear()
        line, middle = self._writes.fit(), self._writes.means()
        if line is not None:
            self._writing = (self._writes.least, *line)
        elif middle is not None:
            self._writing = (0.0, middle[1], 0.0)

    def _measured(self, tokens: float, took: float, now: float) -> None:
        known = self._known
        if known.prefill is not None:
            expected = max(1e-3, self.reading_s(tokens))
            took = min(max(took, expected / OFF), expected * OFF)
        # What is off grows with the work of a stretch, so long ones do not decide alone. Not weighed by their time:
        # then an engine that has become slower would be believed only slowly.
        self._read.add(tokens, took, 1 / (SMALL_PROMPT + tokens), now)
        self.stale = True

    def _writing_s(self, running: float) -> float | None:
        """Seconds a token of an answer beside so many, itself included."""
        if self._writing is None:
            return None
        least, alone, more = self._writing
        return max(least, alone + more * running)

    def _take(self, sent: Sent) -> None:
        del self._queue[sent]
        self.unread = self.unread - sent.tokens if self._queue else 0.0


class Paces:
    """All endpoints by name."""

    def __init__(self) -> None:
        self._there: dict[str, There] = {}
        self._ratios: dict[str, Mean] = {}

    def there(self, endpoint: str, model: str) -> There:
        """The endpoint as its requests show it."""
        found = self._there.get(endpoint)
        if found is None:
            ratio = self._ratios.setdefault(model, Mean())
            found = self._there[endpoint] = There(endpoint, ratio)
        return found

    def known(self, endpoint: str) -> There | None:
        """The same, where something was sent there."""
        return self._there.get(endpoint)

    def restarted(self, endpoint: str) -> None:
        """It is another process by now: how fast that one is has to be learned anew."""
        if (there := self._there.get(endpoint)) is not None:
            there.forget()

    def only(self, endpoints: Iterable[str]) -> None:
        """Forget all others."""
        for name in set(self._there).difference(endpoints):
            del self._there[name]
