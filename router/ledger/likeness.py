"""Pure: which texts of a request are known again, and their keyed hashes; one that is spaced otherwise has the same.

Never a system prompt, the schema of a tool or a short text alone: those stand in many conversations, private and not.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from router.records import Caller

LEAST = 64
"""Characters, white space aside, from which on a text is known again."""
MOST_BEGUN = 64
"""First messages of a conversation by which it is known again, at most."""
MARK_BYTES = 16
SLICES = re.compile(r".{1,16384}(?=[ -~]|\Z)|.{1,16384}", re.DOTALL)
"""As many characters are brought into one form at once, for nothing can interrupt that; they end where none composes
with the next one, if there is such a place."""
ASCII_SLICE = 1024 * 1024
WHITE = bytes(range(9, 14)) + bytes(range(28, 33))
"""What Python takes for white space in ASCII."""
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]")
"""Characters that nobody sees and that text picks up on its way through an editor or a web page."""
TALK = re.compile(r"(messages|input|prompt|prediction|suffix|documents)((?:\[\d+\])?)(?![a-z_])")
"""The start of the path of a text that somebody said, and which of them it is."""
BESIDE = frozenset({"documents", "suffix"})
"""What goes along with a conversation and begins none: many are asked about the same documents."""
ARGUMENTS = ".arguments"
"""The end of the path of what a tool was called with, which is JSON inside a text."""
SYSTEM_ROLES = frozenset({"developer", "system"})


class Piece(Protocol):
    """One text of a request, as the scanner reads it."""

    @property
    def where(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def said(self) -> bool: ...


class Message:
    """The texts of one message, by their numbers among those of the request."""

    __slots__ = ("begins", "said", "texts")

    def __init__(self, *, begins: bool) -> None:
        self.begins = begins
        """Whether a conversation can be told by it."""
        self.texts: list[int] = []
        self.said: list[bytes] = []
        """What it says, in one form, piece by piece."""


class Read:
    """A request's texts, in one form, as messages. Made once for each request that is looked up or noted."""

    def __init__(self, texts: Sequence[Piece]) -> None:
        self.forms: dict[int, bytes] = {}
        """By its number, every text of a conversation that is long enough to be known again."""
        self.inside: list[bytes] = []
        """What else is known again: the long texts inside of what a tool was called with."""
        self.messages: list[Message] = []
        self._system: list[str] = []
        self._tools: list[str] = []
        found: dict[str, Message] = {}
        for number, piece in enumerate(texts):
            talk = TALK.match(piece.where)
            if talk is None or piece.role in SYSTEM_ROLES:
                self._aside(piece, talk is not None, begun=bool(found))
                continue
            form = one_form(piece.text)
            if long_enough(form):
                self.forms[number] = form
                if piece.where.endswith(ARGUMENTS):
                    self.inside += filter(long_enough, map(one_form, _strings(piece.text)))
            message = found.get(talk[0])
            if message is None:
                message = found[talk[0]] = Message(begins=talk[1] not in BESIDE)
                self.messages.append(message)
            message.texts.append(number)
            if piece.said:  # beside that there are ids, and marks that clients move about
                message.said.append(form)

    def _aside(self, piece: Piece, message: bool, *, begun: bool) -> None:
        """A text that is never known again itself; those that begin a conversation tell it from others."""
        if message or piece.where.startswith(("system", "instructions")):
            if not (message and begun):  # a later one is no leading one
                self._system.append(piece.text)
        elif piece.where.startswith(("tools", "functions")):
            self._tools.append(piece.text)

    def whole(self) -> dict[int, bytes]:
        """By the number of a message, all that it says as one text, where that is long enough."""
        joined = {number: b"".join(message.said) for number, message in enumerate(self.messages)}
        return {number: form for number, form in joined.items() if long_enough(form)}

    def begun(self, more: Iterable[bytes] = ()) -> Begun:
        """What the conversation began with. `more`: what the answer says, as one more message."""
        said = itertools.chain((b"".join(message.said) for message in self.messages if message.begins), more)
        aside = (one_form("\n".join(self._tools)), one_form("\n".join(self._system)))
        return Begun(aside, [*itertools.islice(said, MOST_BEGUN)])


class Begun(NamedTuple):
    """The beginning of a conversation."""

    aside: tuple[bytes, bytes]
    """Its tools and its leading system text, which alone make no conversation."""
    said: list[bytes]
    """Its first messages."""


class Marker:
    """Makes the keyed hashes of one team. Without the secret nobody can tell what text one stands for."""

    def __init__(self, secret: str, team: str) -> None:
        key = hashlib.blake2b(team.encode(), key=secret.encode()[:64], digest_size=32, person=b"headgate-team").digest()
        self._text, self._session, self._label, self._opening = (
            hashlib.blake2b(key=key, digest_size=MARK_BYTES, person=kind)
            for kind in (b"text", b"session", b"label", b"opening")
        )

    def text(self, form: bytes) -> bytes:
        """The mark of a text in its one form: the same whether somebody sent it or a model answered it."""
        return _made(self._text, form)

    def session(self, name: bytes) -> tuple[bytes, bytes]:
        """Those of a session: for a class that its content gave it, and for one that a label did."""
        return _made(self._session, name), _made(self._label, name)

    def openings(self, caller: Caller, begun: Begun) -> list[bytes]:
        """The names of a session that nobody named: by its first message, its first two, its first three …

        None by fewer than have LEAST characters together, so that a greeting alone makes no conversation.
        """
        made, characters, names = self._opening.copy(), 0, []
        for part in (caller.account.encode(), *begun.aside):
            made.update(len(part).to_bytes(8, "big") + part)
        for said in begun.said:
            made.update(len(said).to_bytes(8, "big") + said)
            characters += length(said) if characters < LEAST else 0
            if characters >= LEAST:
                names.append(made.digest())
        return names


def _made(ready: Any, data: bytes) -> bytes:
    made = ready.copy()
    made.update(data)
    digest: bytes = made.digest()
    return digest


def _strings(text: str) -> Iterator[str]:
    """Every text of a JSON document that can be long enough; none where it is no JSON."""
    try:
        stack = [orjson.loads(text)]
    except ValueError:
        return
    while stack:
        value = stack.pop()
        if isinstance(value, str) and len(value) >= LEAST:
            yield value
        elif isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value


def one_form(text: str) -> bytes:
    """A text without its white space and unseen characters, in the one form that Unicode calls NFKC."""
    if not text.isascii():
        return b"".join(_slice_form(found[0]) for found in SLICES.finditer(text))
    if len(text) <= ASCII_SLICE:
        return text.encode().translate(None, WHITE)
    slices = (text[at : at + ASCII_SLICE] for at in range(0, len(text), ASCII_SLICE))
    return b"".join(one.encode().translate(None, WHITE) for one in slices)


def _slice_form(text: str) -> bytes:
    return "".join(unicodedata.normalize("NFKC", UNSEEN.sub("", text)).split()).encode("utf-8", "surrogatepass")


def length(form: bytes) -> int:
    """Characters of a text in its one form, all but those that only continue one."""
    return len(form) if form.isascii() else len(form.decode("utf-8", "surrogatepass"))


def long_enough(form: bytes) -> bool:
    """Whether a text in its one form is long enough to be known again."""
    return len(form) >= LEAST and (len(form) >= 4 * LEAST or length(form) >= LEAST)  # at most four bytes each
