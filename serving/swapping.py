"""Which model of a group has their common place now: who is asked for gets it, and keeps it for a least stay. Pure.

A group is a list of models that run one at a time; a model that sleeps while nobody asks for it is a group of one.
Times are seconds of one clock that never goes back. What a move is made of (sleep, stop, start) is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["away", "barred", "coming", "here", "leaving"]
"""`away`: it has no place and can be woken. `barred`: it failed and is left alone for a while. `coming`: from being
woken to its first answer. `here`: it answers. `leaving`: it finishes its requests and gives the place up."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a group, as far as it matters for whose turn it is."""

    name: str
    phase: Phase
    since: float = 0.0
    """When it came to be here."""
    worked: float | None = None
    """When it was last seen to work, or that could not be seen; None: never since it came, and nobody asked for it."""
    asked: float | None = None
    """When the first request came that still waits for it; None: none does."""
    sleep_after_s: float | None = None
    """Without work for so long it sleeps though nobody else wants the place; None: never."""
    start_s: float | None = None
    """How long its last start or wake took."""
    fetching: bool = False
    """Whether it comes though nobody asked for it, and is not even here yet: its engine or weights are fetched."""


@dataclass(frozen=True, slots=True)
class Move:
    """One step: `name` is woken, or is to rest."""

    name: str
    to: Literal["wake", "rest"]
    why: str


def move(members: Sequence[Member], now: float, min_stay_s: float) -> Move | None:
    """The next step of a group, None where all is as it should be.

    Whoever was asked for first is first. A member that is here stays `min_stay_s` at least, so the place changes hands
    at most so often; only one that nobody ever asked for (the one that runs first) makes room at once.
    """
    holder, wanted = _holder(members), _next(members)
    if holder is None:
        return None if wanted is None else Move(wanted.name, "wake", "a request waits for it")
    if holder.phase == "leaving" and holder.asked is not None and wanted is None:
        return Move(holder.name, "wake", "a request waits for it")  # it stays, or comes again as soon as it is gone
    if wanted is not None and holder.phase == "coming" and holder.fetching:
        return Move(holder.name, "rest", f"requests wait for {wanted.name}, which is here already")
    if holder.phase != "here":
        return None
    if wanted is not None and _stayed(holder, now, min_stay_s):
        return Move(holder.name, "rest", f"requests wait for {wanted.name}, which gets its place")
    if wanted is None and _idle(holder, now, min_stay_s):
        return Move(holder.name, "rest", f"nobody has asked for it for {holder.sleep_after_s:g} s")
    return None


def ready_in(name: str, members: Sequence[Member], now: float, min_stay_s: float) -> float | None:
    """Seconds until `name` is likely to answer, by how long starts took; None where that is not known.

    What the one before it still has to finish is not counted: nobody knows how long that takes.
    """
    found = {m.name: m for m in members}
    mine, holder = found[name], _holder(members)
    if mine.phase == "here":
        return 0.0
    if mine.start_s is None or mine.phase == "barred":
        return None
    if mine.phase == "coming":
        return max(0.0, mine.since + mine.start_s - now)
    waits = 0.0
    if holder is not None and holder.phase == "coming" and not holder.fetching:
        waits = max(0.0, holder.since + (holder.start_s or 0.0) - now) + min_stay_s
    elif holder is not None and holder.phase == "here" and holder.worked is not None:
        waits = max(0.0, holder.since + min_stay_s - now)
    for other in members:
        sooner = other.asked is not None and (mine.asked is None or other.asked < mine.asked)
        if other.name != name and other.phase == "away" and sooner:
            waits += (other.start_s or 0.0) + min_stay_s
    return waits + mine.start_s


def _holder(members: Sequence[Member]) -> Member | None:
    """Whose place it is now, from being woken until it is gone."""
    return next((m for m in members if m.phase in ("coming", "here", "leaving")), None)


def _next(members: Sequence[Member]) -> Member | None:
    """Of those that are away and asked for, the one that was asked for first."""
    waiting = [m for m in members if m.phase == "away" and m.asked is not None]
    return min(waiting, key=lambda m: m.asked or 0.0, default=None)


def _stayed(holder: Member, now: float, min_stay_s: float) -> bool:
    return holder.worked is None or now - holder.since >= min_stay_s


def _idle(holder: Member, now: float, min_stay_s: float) -> bool:
    """Whether it has had its stay and nothing to do for as long as it may have; unknown is not idle."""
    if holder.sleep_after_s is None:
        return False
    quiet_since = holder.since if holder.worked is None else max(holder.since, holder.worked)
    return now - quiet_since >= holder.sleep_after_s and now - holder.since >= min_stay_s
