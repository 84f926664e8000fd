"""What was private once stays private: texts and sessions are known again by keyed hashes, in a new session too.

Noted are each message in which something was found, each answer to a request that was above public because of its
content, and the session; never a system prompt, a tool's schema or a short text alone. A class that a label raised
stays in its session. Whatever cannot be looked up counts as private.

What is noted comes from content or from a label, so that it ends: where the content is a text that was noted before, it
ends with that one, and that a session was noted gives nothing else a mark.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from router.ledger.likeness import Marker, Piece, Read, long_enough, one_form
from router.ledger.marks import LOST, Mark, Marks
from router.ledger.openings import Openings
from router.ledger.store import LedgerError
from router.records import Ask, Caller, Found, Past
from serving.catalogue import DataClass

MOST_LOOKED_UP = 8192
"""Texts of one request that are looked up, long ones and whole messages; one with more counts as private."""
MOST_ANSWERS = 128
"""Texts of one answer that are known again: its choices, thoughts and calls of tools."""
MOST_TOLD = 500
"""Marks of one request that are told of by their ids."""
FRESH = 0.9
"""A mark that has more than this share of its life before it is not written again."""
WHY = {
    "message": "an earlier request had a text of it, in which was found: {kinds}",
    "answer": "a text of it is an answer to an earlier request that was {data_class}",
    "session": "its session was {data_class} before",
    "label": "its session was said to be {data_class} before",
}
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

    def __init__(self, marks: Marks, secret: str, effects: Mapping[str, DataClass] | None = None) -> None:
        """`effects`: what each kind of finding means now; a mark whose kinds mean less than once counts for less."""
        self._marks, self._secret, self._effects = marks, secret, effects or {}
        self._markers: dict[str, Marker] = {}
        self._openings = Openings()

    @property
    def trouble(self) -> str:
        """Why not all that is noted is known for sure; "" where it is."""
        if self._marks.dropped:
            return "more was private than could be written down, so everything counts as private until the next start"
        return f"what is private does not reach the disk: {self._marks.trouble}" if self._marks.trouble else ""

    @property
    def in_memory(self) -> bool:
        """Whether `has_none` can say anything: every mark is known here without the disk."""
        return self._marks.in_memory

    @property
    def killed(self) -> int:
        """How many processes before this one ended without writing down all that was private."""
        return self._marks.killed

    def close(self) -> None:
        """Write what waits. Raises LedgerError where that cannot be."""
        self._marks.close()

    def flush(self) -> None:
        """Block until all that was noted is on disk, where other processes see it. Raises LedgerError."""
        self._marks.flush()

    # ---- looking back

    def past(self, caller: Caller, ask: Ask, texts: Sequence[Piece]) -> tuple[Past, ...]:
        """What session and texts of this request were before, where that was above public; the highest first.

        Never raises for the store's sake: what cannot be looked up is private. Blocks; not for the event loop.
        """
        wanted, begun = self._wanted(caller, ask, texts)
        if len(wanted) > MOST_LOOKED_UP:
            return (Past(DataClass.private, TOO_MANY, ""),)
        self._openings.saw(begun)
        try:
            if self._marks.lost():
                return (Past(DataClass.private, GONE, LOST),)
            return _told(self._found(wanted))
        except LedgerError:
            return (Past(DataClass.private, UNREADABLE, ""),)

    def has_none(self, caller: Caller, ask: Ask, texts: Sequence[Piece]) -> bool:
        """Whether it is certain without the disk that `past` would say nothing: of nearly all that is public, where no
        other process takes notes. Does not block."""
        wanted, begun = self._wanted(caller, ask, texts)
        if len(wanted) > MOST_LOOKED_UP or not self._marks.none_of(wanted):
            return False
        self._openings.saw(begun)
        return True

    def _wanted(self, caller: Caller, ask: Ask, texts: Sequence[Piece]) -> tuple[list[bytes], list[bytes]]:
        """The marks of its texts and its session, and the names of its openings where nobody named the session."""
        read, marker = Read(texts), self._marker(caller)
        begun = [] if ask.session else marker.openings(caller, read.begun())
        sessions = self._named(ask) or self._openings.own(begun)
        return [*_texts(read, marker), *(mark for name in sessions for mark in marker.session(name))], begun

    def _found(self, wanted: Sequence[bytes]) -> list[Mark]:
        """The marks that count today, with the class they have today. Raises LedgerError."""
        found = (mark._replace(data_class=self._today(mark)) for mark in self._marks.find(wanted))
        return [mark for mark in found if mark.data_class > DataClass.public]

    def _today(self, mark: Mark) -> DataClass:
        """The class of a mark by what its kinds mean now; what is no kind known now means what it meant."""
        classes = (self._effects.get(kind, mark.data_class) for kind in mark.kinds.split(","))
        return min(mark.data_class, max(classes))

    # ---- noting

    def concerns(self, caller: Caller, ask: Ask, searched: Searched, *, opaque: bool) -> bool:
        """Whether there is anything to note of a request that had no past: by its content, or by its label."""
        return max((_raised(caller, ask), *_content(caller, searched, opaque).values())) > DataClass.public

    def note(
        self, caller: Caller, ask: Ask, texts: Sequence[Piece], searched: Searched, *, opaque: bool = False,
        said: Said | None = None,
    ) -> None:  # fmt: skip
        """Remember what this request was by its content, and what it was answered.

        `opaque`: it has parts that nobody can read. `said`: its answer; None where it had none. Blocks; not for the
        event loop.
        """
        read, marker = Read(texts), self._marker(caller)
        if not ask.session:
            self._openings.saw(marker.openings(caller, read.begun()))
        given = self._given(caller, read, marker, searched, opaque=opaque)
        self._marks.add(self._new([*self._made(caller, ask, read, marker, searched, given, said)]))

    def unsearched(self, caller: Caller, ask: Ask, texts: Sequence[Piece], *, said: Said | None = None) -> None:
        """Remember that nobody searched this request: its session is private, or its answer where it has no session.

        In place of `note`, where too much waits to be noted. It does not read the disk.
        """
        read, marker = Read(texts), self._marker(caller)
        made = self._making(caller, ask)
        given = _Given(DataClass.private, frozenset({"unsearched"}), self._end())
        sessions = self._sessions(caller, ask, read, marker, said)
        if sessions:
            self._marks.add([made(marker.session(name)[0], "session", given) for name in sessions])
        else:
            self._marks.add([made(marker.text(form), "answer", given) for form in _answers(said)])

    def _made(
        self, caller: Caller, ask: Ask, read: Read, marker: Marker, searched: Searched, given: _Given,
        said: Said | None,
    ) -> Iterator[Mark]:  # fmt: skip
        """Everything that is to be known again of one request."""
        made, end = self._making(caller, ask), self._end()
        for form, found in _messages(read, searched.by_text):
            kinds = frozenset(one.kind for one in found)
            yield made(marker.text(form), "message", _Given(max(one.effect for one in found), kinds, end))
        label = _Given(_raised(caller, ask), frozenset(), end)
        highest = max(given.data_class, label.data_class)
        for name in self._sessions(caller, ask, read, marker, said) if highest > DataClass.public else ():
            for mark, kind, one in zip(marker.session(name), ("session", "label"), (given, label), strict=True):
                if one.data_class > DataClass.public:
                    yield made(mark, kind, one)
        if given.data_class > DataClass.public:
            for form in _answers(said):
                yield made(marker.text(form), "answer", given)

    def _given(self, caller: Caller, read: Read, marker: Marker, searched: Searched, *, opaque: bool) -> _Given:
        """What the request was by its content: by what is in it, or by a text of it that was known already.

        What it has from that text alone ends with it: else each answer would mark the next one, for ever.
        """
        own = _content(caller, searched, opaque)
        highest, end = max(own.values(), default=DataClass.public), self._end()
        texts = _texts(read, marker)
        try:
            if len(texts) > MOST_LOOKED_UP:
                raise LedgerError(TOO_MANY)
            before = self._found(texts)
        except LedgerError:
            return _Given(max(highest, DataClass.private), frozenset({*own, "unsearched"}), end)
        kinds = {kind for mark in before for kind in mark.kinds.split(",") if kind}
        if (known := max((mark.data_class for mark in before), default=DataClass.public)) > highest:
            ends = (mark.expires for mark in before if mark.data_class == known)
            return _Given(known, frozenset({*own, *kinds}), max(ends))
        return _Given(highest, frozenset(own), end)

    def _new(self, made: list[Mark]) -> list[Mark]:
        """Those that say something that is not on disk yet: a conversation is sent whole with each of its turns."""
        try:
            known = {mark.mark: mark for mark in self._marks.find({mark.mark for mark in made})} if made else {}
        except LedgerError:
            return made
        late = (1 - FRESH) * self._marks.life_s
        return [
            mark
            for mark in made
            if (there := known.get(mark.mark)) is None
            or there.data_class < mark.data_class
            or there.expires < mark.expires - late
            or not {*mark.kinds.split(",")} <= {*there.kinds.split(","), ""}
        ]

    def _making(self, caller: Caller, ask: Ask) -> Callable[[bytes, str, _Given], Mark]:
        now = self._marks.clock.now()

        def made(mark: bytes, kind: str, given: _Given) -> Mark:
            return Mark(
                mark, kind, given.data_class, caller.team, ask.id, ",".join(sorted(given.kinds)), now, given.end
            )

        return made

    def _end(self) -> float:
        return self._marks.clock.end_in(self._marks.life_s)

    # ---- what both need

    def _own(self, caller: Caller, ask: Ask, read: Read, marker: Marker, more: Iterable[bytes] = ()) -> list[bytes]:
        """The names of its session: its caller's, else each of its openings that is not shared by many conversations.

        None where it is too short to be told from others.
        """
        return self._named(ask) or self._openings.own(marker.openings(caller, read.begun(more)))

    @staticmethod
    def _named(ask: Ask) -> list[bytes]:
        """The name that its caller gave it, if it has one."""
        return [ask.session.encode("utf-8", "surrogatepass")] if ask.session else []

    def _sessions(self, caller: Caller, ask: Ask, read: Read, marker: Marker, said: Said | None) -> list[bytes]:
        """The names by which the session is to be known again: by its shortest opening, for what comes after may be
        left out; and by all of it, should the short one prove to be that of many.

        `said`: the answer, with which it may be long enough when it goes on.
        """
        names = self._own(caller, ask, read, marker)
        if not names and said is not None and (texts := said.texts()):
            names = self._own(caller, ask, read, marker, [one_form(texts[0])])
        return [*dict.fromkeys((*names[:1], *names[-1:]))]

    def _marker(self, caller: Caller) -> Marker:
        found = self._markers.get(caller.team)
        if found is None:
            found = self._markers[caller.team] = Marker(self._secret, caller.team)
        return found


class _Given(NamedTuple):
    """What a mark says: a class, by which kinds of findings, and until when."""

    data_class: DataClass
    kinds: frozenset[str]
    end: float


def open_history(
    path: Path, secret: str, begun: Path, days: float, effects: Mapping[str, DataClass] | None = None, *,
    alone: bool = False,
) -> History:  # fmt: skip
    """The history in the ledger at `path`. `begun`: a file that stays when the ledger is lost, and says that there was
    one. `effects`: what each kind of finding means now. `alone`: no other process takes notes. Raises LedgerError, or
    OSError."""
    check = hashlib.blake2b(key=secret.encode()[:64], digest_size=16, person=b"headgate-check").hexdigest()
    return History(Marks(path, check, begun, days, time.time, time.monotonic, alone=alone), secret, effects)


def _texts(read: Read, marker: Marker) -> list[bytes]:
    """The marks of all texts of a request that may be known again: each long one, and each message as a whole."""
    return [*{marker.text(form): None for form in (*read.forms.values(), *read.inside, *read.whole().values())}]


def _raised(caller: Caller, ask: Ask) -> DataClass:
    """The class that a label gave, where it raised anything: one with a reason may be there to lower the key's."""
    label = DataClass.public if ask.data_class is None else ask.data_class
    return DataClass.public if ask.declassify and label <= caller.data_class else label


def _content(caller: Caller, searched: Searched, opaque: bool) -> dict[str, DataClass]:
    """What in a request gives it a class above public, by its name."""
    given: dict[str, DataClass] = {}
    for one in searched.found:
        given[one.kind] = max(one.effect, given.get(one.kind, DataClass.public))
    if opaque:
        given["unreadable"] = caller.media_class
    if searched.unread:
        given["unsearched"] = DataClass.private
    return {kind: data_class for kind, data_class in given.items() if data_class > DataClass.public}


def _messages(read: Read, by_text: Sequence[Sequence[Found]]) -> Iterator[tuple[bytes, list[Found]]]:
    """Each message in which something was found, whole, and each text of it in which that was, with what it was."""
    whole = read.whole()
    for number, message in enumerate(read.messages):
        found = {text: by_text[text] for text in message.texts if text < len(by_text)}
        forms = [(whole[number], [one for some in found.values() for one in some])] if number in whole else []
        forms += [(read.forms[text], [*some]) for text, some in found.items() if text in read.forms]
        for form, some in forms:
            if above := [one for one in some if one.effect > DataClass.public]:
                yield form, above


def _answers(said: Said | None) -> Iterator[bytes]:
    """The texts of an answer that may be known again, in their one form."""
    if said is not None:
        yield from itertools.islice(filter(long_enough, map(one_form, said.texts())), MOST_ANSWERS)


def _told(found: Iterable[Mark]) -> tuple[Past, ...]:
    """What was found: the highest class first, and of one class first what says most. Marks that say the same are told
    of together."""
    order = sorted(found, key=lambda mark: (-mark.data_class, -KINDS.index(mark.kind), mark.kinds))[:MOST_TOLD]
    told: dict[tuple[DataClass, str], list[str]] = {}
    for mark in order:
        why = WHY[mark.kind].format(kinds=mark.kinds.replace(",", ", "), data_class=mark.data_class.name)
        told.setdefault((mark.data_class, why), []).append(mark.id)
    return tuple(Past(data_class, why, " ".join(ids)) for (data_class, why), ids in told.items())
