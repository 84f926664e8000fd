"""Holds the ledger's count of what left against the book's, permit by permit. Pure: rows in, findings and sums out.

Rows come sorted by request and permit, from both sides; nothing is kept of a request once it is judged.

A row is a mapping with `what`: of the ledger `handed` (about to be handed to the door) and `finished` (how that try or,
without a permit, the whole request ended); of the book `sent`, `ended` and `refused`, and `earlier` for what a door of
an earlier release sent, of which the ledger has nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

Row = Mapping[str, Any]
RANKS = {"public": 0, "internal": 1, "private": 2, "secret": 3}
SAME = (
    ("key", "key"), ("team", "team"), ("provider", "provider"), ("model", "model"), ("path", "path"),
    ("policy", "policy"), ("sha256", "received_sha256"), ("door", "boot"), ("data_class", "claimed"),
)  # fmt: skip
"""What must be the same on both sides: the ledger's name for it, and the book's."""
NOT_HANDED = frozenset({"not_recorded", "door_closed", "door_refused", "unreachable", "pool_full"})
"""How a try ends in the ledger of which nothing can have left."""
GIVEN_UP = frozenset({"client_left", "stopped", "lost", "reset", "closed"})
"""How a try ends in the ledger that may have been given up, or cut off, before the door had all of it."""
UNDER_WAY_S = 3600.0
"""A request that has no end is taken to go on for so long."""


class Finding(NamedTuple):
    """One thing that is not as it should be, or that should be known: one sentence with the ids."""

    kind: str
    sentence: str
    request: str = ""
    permit: str = ""
    bytes: int = 0
    """Bytes that left and are not accounted for by it."""


class Left(NamedTuple):
    """One sending that left, or of which a part may have."""

    request: str
    provider: str
    host: str
    model: str
    rule: str
    data_class: str
    bytes: int
    """Of the body; `head` those of its line and headers."""
    head: int


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is asked about, and what the sources' ends mean: Unix seconds, the end is not within."""

    since: float
    until: float
    boot: str = ""
    """The book's last boot: what it sent and has not ended may still go on."""
    last: float = math.inf
    """When the ledger was last written. Of what was handed over before that, long before, the end would stand there; of
    what was handed over right before nobody has written since: it goes on, or the router was killed."""

    def holds(self, at: float) -> bool:
        return self.since <= at < self.until

    def recent(self, at: float) -> bool:
        return at >= self.last - UNDER_WAY_S


@dataclass(slots=True)
class Judged:
    """What came of one request."""

    request: str
    left: list[Left] = field(default_factory=list)
    earlier: list[Row] = field(default_factory=list)
    """What a door of an earlier release sent: nothing to hold it against."""
    discrepancies: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class Case:
    """Everything both sides have of one permit."""

    request: str
    permit: str
    handed: list[Row] = field(default_factory=list)
    finished: list[Row] = field(default_factory=list)
    sent: list[Row] = field(default_factory=list)
    ended: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)
    earlier: list[Row] = field(default_factory=list)

    @property
    def at(self) -> float:
        """The ledger's time where it has one: so a sending at the edge belongs to one window, whoever asks."""
        rows = (*self.handed, *self.sent, *self.earlier, *self.refused, *self.ended)
        return float(next((row["at"] for row in rows), -1.0))

    def says(self, kind: str, text: str, size: int = 0) -> Finding:
        return Finding(kind, f"Request {self.request}, permit {self.permit}: {text}.", self.request, self.permit, size)


def reconcile(rows: Iterable[Row], window: Window) -> Iterator[Judged]:
    """Judge each request that either side has something of within the window."""
    for request, of_request in groupby(rows, key=lambda row: row["request"]):
        judged, whole = Judged(request), list[Row]()
        for permit, of_permit in groupby(of_request, key=lambda row: row["permit"]):
            if not permit:  # how the whole request ended: sorted before its permits
                whole = [row for row in of_permit if row["what"] == "finished"]
                continue
            case = Case(request, permit)
            for row in of_permit:
                getattr(case, row["what"]).append(row)
            case.finished = case.finished or whole
            if window.holds(case.at):
                _judge(case, window, judged)
        if judged.left or judged.earlier or judged.discrepancies or judged.notes:
            yield judged


def _judge(case: Case, window: Window, judged: Judged) -> None:
    for side, found in (("ledger", case.handed), ("book", case.sent)):
        if len(found) > 1:
            extra = sum(row.get("sent_bytes", 0) for row in found[1:])
            judged.discrepancies.append(case.says("twice", f"the {side} has it {len(found)} times", extra))
    judged.earlier += case.earlier
    if case.sent:
        _judge_sent(case, window, judged)
    elif case.handed:
        _judge_unsent(case, window, judged)
    elif case.refused:
        judged.discrepancies.append(case.says("only_book", "the door refused it, and the ledger never handed it over"))
    elif case.ended:
        judged.discrepancies.append(case.says("no_beginning", "the book has an end of it and no beginning"))


def _judge_sent(case: Case, window: Window, judged: Judged) -> None:
    """The book says that it was about to leave."""
    sent, size = case.sent[0], int(case.sent[0]["sent_bytes"])
    ended = case.ended[0] if case.ended else None
    left = ended is None or ended["left"] is not False
    if left:
        judged.left.append(_left(case, sent))
    if RANKS.get(sent["data_class"], 9) > RANKS.get(sent["clearance"], -1):
        text = f"{sent['data_class']} data went to a model that is cleared for {sent['clearance']}"
        judged.discrepancies.append(case.says("not_cleared", text))
    if case.handed:
        judged.discrepancies += _differences(case)
        if RANKS.get(sent["claimed"], 9) < RANKS.get(sent["data_class"], 9):
            text = f"the door found it to be {sent['data_class']}, and the router {sent['claimed']}"
            judged.notes.append(case.says("higher_class", text))
    else:
        text = f"by the book {_bytes(size)} left for {sent['host']}, and the ledger never handed it over"
        judged.discrepancies.append(case.says("only_book", text, size if left else 0))
    if ended is None:
        going = sent["boot"] == window.boot and window.recent(sent["at"])
        text = "it has no end yet" if going else "the book has no end of it, so all of it is taken to have left"
        judged.notes.append(case.says("under_way" if going else "no_end", text))
    if ended is not None and case.handed and not case.finished and not window.recent(case.handed[0]["at"]):
        judged.discrepancies.append(case.says("no_end", "the ledger has no end of it, and the book has"))


def _left(case: Case, sent: Row) -> Left:
    return Left(
        case.request, sent["provider"], sent["host"], sent["model"], sent["rule"], sent["data_class"],
        int(sent["sent_bytes"]), int(sent["head_bytes"]),
    )  # fmt: skip


def _differences(case: Case) -> Iterator[Finding]:
    """Where ledger and book do not say the same of one sending."""
    handed, sent = case.handed[0], case.sent[0]
    for ours, theirs in SAME:
        if handed[ours] != sent[theirs]:
            text = f"{theirs} is {handed[ours]} by the ledger and {sent[theirs]} by the book"
            yield case.says("differs", text)
    if RANKS.get(sent["data_class"], -1) < RANKS.get(sent["claimed"], 9):
        text = f"the permit says {sent['claimed']} data, and by the book {sent['data_class']} data left"
        yield case.says("differs", text)
    if _stayed(case) and case.ended and case.ended[0]["ended"] == "answered":
        yield case.says("differs", f"by the ledger nothing left ({_outcome(case)}), by the book it was answered")


def _judge_unsent(case: Case, window: Window, judged: Judged) -> None:
    """The ledger was about to hand it over, and the book has nothing that left."""
    handed, outcome = case.handed[0], _outcome(case)
    if _stayed(case) or (case.refused and outcome != "answered"):
        return
    if not outcome and window.recent(handed["at"]):
        text = "it was handed over, and nothing was written since: it goes on, or the router was killed"
        judged.notes.append(case.says("under_way", text))
    elif outcome in GIVEN_UP:
        text = f"it was handed over and given up ({outcome}) before the door sent it"
        judged.notes.append(case.says("given_up", text))
    else:
        ended = f"ended as {outcome}" if outcome else "has no end"
        text = f"the ledger handed {_bytes(handed['bytes'])} over for {handed['model']}, which {ended}; not in the book"
        judged.discrepancies.append(case.says("only_ledger", text, handed["bytes"]))


def _stayed(case: Case) -> bool:
    """Whether nothing left by the ledger. A permit that the door refused as used may have been used by the same try."""
    return _outcome(case) in NOT_HANDED and not case.finished[0]["sent"]


def _outcome(case: Case) -> str:
    return str(case.finished[0]["outcome"]) if case.finished else ""


def _bytes(count: int) -> str:
    return f"{count:,} bytes"
