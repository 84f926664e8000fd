"""What was private once stays private: texts and sessions are known again by keyed hashes, in a new session too.

Noted are each message in which something was found, each answer to a request that was above public because of its
content, and the session; never a system prompt, a tool's schema or a short text alone. A class that a label raised
stays in its session. Whatever cannot be looked up counts as private.

How it is used (`gate.py`): `expect` in the moment in which an answer has ended, then in the background either `note`
or, where that cannot be, `unsearched`. `past` waits for what was expected before it, so it runs in another thread.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from router.ledger.likeness import Marker, Piece, Read, long_enough, one_form
from router.ledger.marks import LOST, Mark, Marks
from router.ledger.store import LedgerError
from router.records import Ask, Caller, Found, Past
from serving.catalogue import DataClass

MOST_LOOKED_UP = 8192
"""Texts of one request that are looked up, long ones and whole messages; one with more counts as private."""
MOST_ANSWERS = 128
"""Texts of one answer that are known again: its choices, thoughts and calls of tools."""
WAIT_S = 0.5
"""So long a request waits for what its team was answered just before and what is not noted yet."""
FRESH = 0.9
"""A mark that has more than this share of its life before it is not written again."""
WHY = {
    "message": "an earlier request had a text of it, in which was found: {kinds}",
    "answer": "a text of it is an answer to an earlier request that was {data_class}",
    "session": "its session was {data_class} before",
    "label": "its session was said to be {data_class} before",
}
NOT_NOTED = "what its team was answered a moment ago is not looked through yet"
UNREADABLE = "it cannot be looked up now what was private before"
TOO_MANY = f"it has more than {MOST_LOOKED_UP} texts, and no more are looked up"
GONE = "what was private before is no longer known, since the history was lost"
KINDS = ("label", "session", "answer", "message")
"""Of two with one class the later one here is named: it says most."""


class Searched(Protocol):
    """What the scanner found in the texts of a request, as far as the history needs it."""

    @property
    def found(self) -> Sequence[Found]: ...
    @property
    def unread(self) -> str: ...
    @property
    def by_text(self) -> Sequence[Sequence[Found]]: ...


class Said(Protocol):
    """What an answer said, kept until it is noted."""

    def texts(self) -> list[str]:
        """Its texts, the one that its caller is shown first; none where it was too long to be kept."""


class History:
    """What one installation remembers, as one process of it knows it. For any thread."""

    def __init__(self, marks: Marks, secret: str) -> None:
        self._marks, self._secret = marks, secret
        self._markers: dict[str, Marker] = {}
        self._change = threading.Condition()
        self._numbers = itertools.count(1)
        self._expected: dict[int, str] = {}
        """By its number, the team of each answer that is not noted yet; the oldest first."""

    def close(self) -> None:
        """Write what waits. Raises LedgerError where that cannot be."""
        self._marks.close()

    def flush(self) -> None:
        """Block until all that was noted is on disk, where other processes see it. Raises LedgerError."""
        self._marks.flush()

    # ---- looking back

    def past(self, caller: Caller, ask: Ask, texts: Sequence[Piece], wait_s: float = WAIT_S) -> Past | None:
        """The highest class that the session or a text of this request had before; None where nothing is known of it.

        Never raises for the store's sake: what cannot be looked up is private. Blocks; not for the event loop.
        """
        if not self._all_noted(caller.team, wait_s):
            return Past(DataClass.private, NOT_NOTED, "")
        read, marker = Read(texts), self._marker(caller)
        wanted = [*_texts(read, marker), *self._session(caller, ask, read, marker)]
        if len(wanted) > MOST_LOOKED_UP:
            return Past(DataClass.private, TOO_MANY, "")
        try:
            if self._marks.lost():
                return Past(DataClass.private, GONE, LOST)
            found = self._marks.find(wanted)
        except LedgerError:
            return Past(DataClass.private, UNREADABLE, "")
        found = [mark for mark in found if mark.data_class > DataClass.public]
        return _past(max(found, key=lambda mark: (mark.data_class, KINDS.index(mark.kind)))) if found else None

    # ---- noting

    def expect(self, caller: Caller) -> int:
        """An answer to this caller has ended, and is to be noted: until then who asks what was before it waits."""
        with self._change:
            number = next(self._numbers)
            self._expected[number] = caller.team
            return number

    def forget(self, expected: int) -> None:
        """What was expected has been noted, or needs not be."""
        with self._change:
            self._expected.pop(expected, None)
            self._change.notify_all()

    def note(
        self, caller: Caller, ask: Ask, texts: Sequence[Piece], searched: Searched, *, opaque: bool = False,
        said: Said | None = None, expected: int = 0,
    ) -> None:  # fmt: skip
        """Remember what this request was by its content, and what it was answered.

        `opaque`: it has parts that nobody can read. `said`: its answer; None where it had none. `expected`: what
        `expect` gave for it. Blocks; not for the event loop.
        """
        try:
            made = list(self._made(caller, ask, Read(texts), searched, opaque=opaque, said=said))
            self._marks.add(self._new(made))
        finally:
            self.forget(expected)

    def unsearched(
        self, caller: Caller, ask: Ask, texts: Sequence[Piece], *, said: Said | None = None, expected: int = 0
    ) -> None:  # fmt: skip
        """Remember that nobody searched this request: its session is private, or its answer where it has no session.

        In place of `note`, where too much waits to be noted. It does not read the disk.
        """
        try:
            read, marker = Read(texts), self._marker(caller)
            sessions = self._session(caller, ask, read, marker, said)
            marks = sessions[:1] or [marker.text(form) for form in _answers(said)]
            kind = "session" if sessions else "answer"
            self._marks.add([self._mark(m, kind, DataClass.private, caller, ask, ["unsearched"]) for m in marks])
        finally:
            self.forget(expected)

    def _made(
        self, caller: Caller, ask: Ask, read: Read, searched: Searched, *, opaque: bool, said: Said | None
    ) -> Iterator[Mark]:  # fmt: skip
        """Everything that is to be known again of one request."""
        marker = self._marker(caller)
        yield from self._messages(caller, ask, read, searched.by_text, marker)
        sessions = self._session(caller, ask, read, marker, said)
        given = _given(caller, searched, opaque)
        before, of_session = self._before(_texts(read, marker), sessions[:1])
        if before > DataClass.public:
            given["history"] = before
        own = max(given.values(), default=DataClass.public)
        if sessions:
            raised = _raised(caller, ask)
            # Not for its own sake: else a session that is used would never end.
            for mark, kind, data_class in zip(sessions, ("session", "label"), (own, raised), strict=True):
                if data_class > DataClass.public:
                    yield self._mark(mark, kind, data_class, caller, ask, given if kind == "session" else ())
        if (answered := max(own, of_session)) > DataClass.public:
            for form in _answers(said):
                yield self._mark(marker.text(form), "answer", answered, caller, ask, given or ["history"])

    def _messages(
        self, caller: Caller, ask: Ask, read: Read, by_text: Sequence[Sequence[Found]], marker: Marker
    ) -> Iterator[Mark]:  # fmt: skip
        """Each message in which something was found, whole, and each text of it in which that was."""
        whole = read.whole()
        for number, message in enumerate(read.messages):
            found = {text: by_text[text] for text in message.texts if text < len(by_text)}
            forms = [(whole[number], [one for some in found.values() for one in some])] if number in whole else []
            forms += [(read.forms[text], [*some]) for text, some in found.items() if text in read.forms]
            for form, some in forms:
                above = [one for one in some if one.effect > DataClass.public]
                if above:
                    highest = max(one.effect for one in above)
                    kinds = {one.kind for one in above}
                    yield self._mark(marker.text(form), "message", highest, caller, ask, kinds)

    def _before(self, texts: Sequence[bytes], session: Sequence[bytes]) -> tuple[DataClass, DataClass]:
        """The class that the texts had before, and the session by its content. Private where it cannot be looked up."""
        if len(texts) > MOST_LOOKED_UP:
            return DataClass.private, DataClass.public
        try:
            found = self._marks.find([*texts, *session])
        except LedgerError:
            return DataClass.private, DataClass.public
        highest = [DataClass.public, DataClass.public]
        for mark in found:
            place = int(mark.kind == "session")
            highest[place] = max(highest[place], mark.data_class)
        return highest[0], highest[1]

    def _new(self, made: list[Mark]) -> list[Mark]:
        """Those that say something that is not on disk yet: a conversation is sent whole with each of its turns."""
        try:
            known = {mark.mark: mark for mark in self._marks.find({mark.mark for mark in made})} if made else {}
        except LedgerError:
            return made
        clock, life = self._marks.clock, self._marks.life_s
        return [
            mark
            for mark in made
            if (there := known.get(mark.mark)) is None
            or there.data_class < mark.data_class
            or there.expires < clock.now() + FRESH * life
        ]

    def _mark(
        self, mark: bytes, kind: str, data_class: DataClass, caller: Caller, ask: Ask, kinds: object
    ) -> Mark:  # fmt: skip
        clock = self._marks.clock
        listed = ",".join(sorted(map(str, kinds)))  # type: ignore[call-overload]
        return Mark(mark, kind, data_class, caller.team, ask.id, listed, clock.now(), clock.end_in(self._marks.life_s))

    # ---- what both need

    def _session(
        self, caller: Caller, ask: Ask, read: Read, marker: Marker, said: Said | None = None
    ) -> tuple[bytes, ...]:  # fmt: skip
        """The two marks of the session; none where the conversation is too short to be told from others.

        `said`: the answer, with which it may be long enough when it goes on.
        """
        if ask.session:
            return marker.session(ask.session.encode("utf-8", "surrogatepass"))
        opening = read.opening()
        if opening is None and said is not None and (texts := said.texts()):
            opening = read.opening([one_form(texts[0])])
        return () if opening is None else marker.session(marker.opening(caller, opening))

    def _marker(self, caller: Caller) -> Marker:
        found = self._markers.get(caller.team)
        if found is None:
            found = self._markers[caller.team] = Marker(self._secret, caller.team)
        return found

    def _all_noted(self, team: str, wait_s: float) -> bool:
        """Wait for what was expected of this team before now. False where that takes too long."""
        with self._change:
            before = [number for number, of in self._expected.items() if of == team]
            return not before or self._change.wait_for(
                lambda: not any(number in self._expected for number in before), wait_s
            )


def open_history(path: Path, secret: str, begun: Path, days: float) -> History:
    """The history in the ledger at `path`. `begun`: a file that stays when the ledger is lost, and says that there was
    one. Raises LedgerError, or OSError."""
    check = hashlib.blake2b(key=secret.encode()[:64], digest_size=16, person=b"headgate-check").hexdigest()
    return History(Marks(path, check, begun, days, time.time, time.monotonic), secret)


def _texts(read: Read, marker: Marker) -> list[bytes]:
    """The marks of all texts of a request that may be known again: each long one, and each message as a whole."""
    return [*{marker.text(form): None for form in (*read.forms.values(), *read.whole().values())}]


def _raised(caller: Caller, ask: Ask) -> DataClass:
    """The class that a label gave, where it raised anything: one with a reason may be there to lower the key's."""
    label = DataClass.public if ask.data_class is None else ask.data_class
    return DataClass.public if ask.declassify and label <= caller.data_class else label


def _given(caller: Caller, searched: Searched, opaque: bool) -> dict[str, DataClass]:
    """What gave a request a class above public by its content alone, by its name."""
    given: dict[str, DataClass] = {}
    for one in searched.found:
        given[one.kind] = max(one.effect, given.get(one.kind, DataClass.public))
    if opaque:
        given["unreadable"] = caller.media_class
    if searched.unread:
        given["unsearched"] = DataClass.private
    return {kind: data_class for kind, data_class in given.items() if data_class > DataClass.public}


def _answers(said: Said | None) -> Iterator[bytes]:
    """The texts of an answer that may be known again, in their one form."""
    if said is not None:
        yield from itertools.islice(filter(long_enough, map(one_form, said.texts())), MOST_ANSWERS)


def _past(mark: Mark) -> Past:
    kinds = mark.kinds.replace(",", ", ")
    return Past(mark.data_class, WHY[mark.kind].format(kinds=kinds, data_class=mark.data_class.name), mark.id)
