"""What tests of the history need: texts of requests, what was found in them, answers, and clocks set by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from router.ledger.history import History
from router.ledger.marks import Marks
from router.records import Found
from serving.catalogue import DataClass

SECRET = "5" * 64
PRIVATE, INTERNAL, PUBLIC = DataClass.private, DataClass.internal, DataClass.public
FIRST = "Please read the file of our customer Kowalski and tell me what is owed to her since last spring."
ANSWER = "She is owed the sum of the three invoices of March, April and May, which were never paid to her."
OTHER = "A wholly different question about the weather on the coast in November, asked by someone of the team."


class Text(NamedTuple):
    where: str
    text: str
    role: str = ""
    said: bool = True


class Searched(NamedTuple):
    found: tuple[Found, ...] = ()
    unread: str = ""
    by_text: tuple[tuple[Found, ...], ...] = ()


class Said(NamedTuple):
    said: tuple[str, ...]

    def texts(self) -> list[str]:
        return [*self.said]


class Clocks:
    """A wall clock that anybody may set, and a steady one that nobody does."""

    def __init__(self) -> None:
        self.at, self.steady = 1_800_000_000.0, 50.0

    def wall(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.steady

    def pass_days(self, days: float) -> None:
        self.at += days * 86_400
        self.steady += days * 86_400


def talk(*said: str | Sequence[str], system: str = "", tools: str = "") -> list[Text]:
    """A conversation's texts: what was said, in turn by user and assistant; several texts make one message."""
    texts = [Text("tools[0].function.description", tools)] if tools else []
    if system:
        texts.append(Text("messages[0].content", system, "system"))
    for number, one in enumerate(said, bool(system)):
        role = "user" if (number - bool(system)) % 2 == 0 else "assistant"
        parts = [one] if isinstance(one, str) else one
        for place, part in enumerate(parts):
            path = "content" if isinstance(one, str) else f"content[{place}].text"
            texts.append(Text(f"messages[{number}].{path}", part, role))
    return texts


def finding(texts: Sequence[Text], *holding: str, effect: DataClass = PRIVATE, kind: str = "card") -> Searched:
    """What the scanner says of texts of which those that are `holding` have something in them."""
    found = Found(kind, effect)
    return Searched((found,) * len(holding), "", tuple((found,) if one.text in holding else () for one in texts))


def opened(
    folder: Path, clocks: Clocks | None = None, days: float = 30, secret: str = SECRET, *, alone: bool = False,
    **effects: DataClass
) -> History:  # fmt: skip
    """The history of the installation in `folder`; opened twice it is that of two workers, who are not `alone`."""
    how: Any = {} if clocks is None else {"wall": clocks.wall, "steady": clocks.monotonic}
    check = f"check of {secret}"
    return History(Marks(folder / "ledger.sqlite", check, folder / "begun", days, **how, alone=alone), secret, effects)
