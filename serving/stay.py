"""Whether one model is wanted in its place now, and what is known of it for that choice.

Told by two: the model's own task (`local.py`) says how it fares, the one who shares places out (`sharing.py`) says
whether it is wanted. A model that shares its place with nobody and never sleeps is always wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import get_args

from serving.endpoint import Swapped, Watch
from serving.instance import State
from serving.scrape import Load
from serving.swapping import Member, Phase


class Stay:
    """Of one model. Times are monotonic seconds."""

    def __init__(
        self, *, wanted: bool = True, shares: bool = False, sleep_after_s: float | None = None, drain_s: float = 300.0,
        heard_s: float = 2.0, sleeps: Callable[[], str] | None = None,
    ) -> None:  # fmt: skip
        """`shares`: it runs by demand. `drain_s`: the most it may take for what it has when it is to rest. `heard_s`:
        until every router knows; what was sent meanwhile is finished first, for a sleeping engine would take it and
        never answer. `sleeps`: why its engine cannot sleep now, "" where it can; None: it never can,
        and is stopped."""
        self.wanted, self.why = wanted, "" if wanted else "it has not run yet"
        self.shares, self.sleeps = shares, sleeps
        self.swaps: dict[Swapped, int] = dict.fromkeys(get_args(Swapped), 0)
        """How often it came and went, since it runs by demand."""
        self._asked: float | None = None
        self._asked_until = float("inf")
        self.start_s: float | None = None
        """How long its last start or wake took."""
        self._sleep_after_s, self._drain_s, self._heard_s = sleep_after_s, drain_s, heard_s
        self._told_at = time.monotonic()
        """When it was last told to come or to rest."""
        self._here_since: float | None = None
        self._worked: float | None = None
        self._load: Load | None = None
        self._woken = False
        """Whether a request waits for the start that is under way."""
        self._leaves = False
        """Whether it takes nothing any more, since it is to give its place up."""
        self._away = not wanted
        self._prepared = False
        """Whether its engine and its weights are there, so that a request need not wait for more than a start."""
        self._barred = False
        self._changed = asyncio.Event()

    # ---- by the one who shares places out

    @property
    def asked(self) -> float | None:
        """When the first request came that still waits for it."""
        return self._asked if time.monotonic() < self._asked_until else None

    def ask(self, now: float, until: float = float("inf")) -> None:
        """A request waits for it, and counts until then if it is not made again."""
        if self._here_since is None or not self.wanted:
            self._asked = now if self.asked is None else self._asked
            self._asked_until = until
        else:
            self._worked = now  # whoever said so has not heard yet that it is here

    def wake(self) -> None:
        """It gets its place; one that was about to leave and has not begun to keeps it."""
        self.wanted, self.why, self._away = True, "", False
        self._told_at = time.monotonic()
        if self._here_since is None:
            self._woken = True
        else:
            self._worked, self._asked = self._told_at, None
        self._changed.set()

    def rest(self, why: str) -> None:
        """It is to finish what it has and to give its place up."""
        self.wanted, self.why, self._told_at = False, why, time.monotonic()
        self._away = self._fetching()
        self._changed.clear()

    def member(self, name: str) -> Member:
        """It as `swapping.py` sees it."""
        since = self._told_at if self._here_since is None else self._here_since
        return Member(
            name, self._phase(), since, self._worked, self.asked, self._sleep_after_s, self.start_s, self._fetching()
        )  # fmt: skip

    def _fetching(self) -> bool:
        """Whether what it needs is fetched, and no request waits for that: it takes no memory yet."""
        return self._here_since is None and not (self._prepared or self._woken or self.asked is not None)

    def _phase(self) -> Phase:
        if self._barred:
            return "barred"
        if not self.wanted:
            return "away" if self._away else "leaving"
        return "coming" if self._here_since is None else "here"

    # ---- by the model's own task

    async def until_wanted(self) -> None:
        """Until it is woken; all that it needs is there."""
        self._prepared = True
        await self._changed.wait()

    def begins(self) -> None:
        """It starts, or wakes, now."""
        self._prepared = True
        self._told_at = time.monotonic()

    def came(self, how: Swapped = "start") -> None:
        """It answers."""
        now = time.monotonic()
        self.swaps[how] += 1
        self.start_s = now - self._told_at
        self._here_since, self._load, self._barred = now, None, False
        # What was asked for has its stay, even if whoever asked has gone.
        self._worked = now if self._woken or self.asked is not None else None
        self._asked, self._woken = None, False

    def goes(self) -> None:
        """It ends or falls asleep now, and takes nothing more: who asks for it from now on waits until it is back."""
        self._leaves = self._leaves or (self._here_since is not None and not self.wanted)
        self._here_since = None

    def went(self, how: Swapped = "stop") -> None:
        """Its engine has ended, or sleeps; where it is still wanted it comes again."""
        self.goes()
        if self._leaves:
            self.swaps[how] += 1
        self._leaves, self._away = False, not self.wanted

    def failed(self) -> None:
        """It cannot run for now: its place is free for others, and nobody waits for it any more."""
        if self.shares:
            self.wanted, self.why, self._asked = False, "its last start failed", None
            self._away, self._barred, self._woken, self._here_since = True, True, False, None
            self._changed.clear()

    def forgiven(self) -> None:
        """It may be asked for again."""
        self._barred = False

    def seen(self, watch: Watch) -> None:
        """Whether it works, by its last reading; what cannot be seen counts as work."""
        load, before = watch.load, self._load
        if watch.probed:  # serving's own question, whether it is still alive
            self._load = load
            return
        if load is None or load.running != 0 or load.waiting or (before is not None and _read(before, load)):
            self._worked = time.monotonic()
        self._load = load

    def finished(self, watch: Watch) -> bool:
        """Whether it has nothing left of what it had, or has had its time for it."""
        if time.monotonic() - self._told_at >= self._drain_s:
            return True
        return watch.empty_since(self._told_at + self._heard_s)

    def shown(self, state: State, detail: str) -> tuple[State, str]:
        """The state and its detail as they are published: requests wait for what is `asleep` or `waking`."""
        if not self.shares or state in ("failed", "draining", "stopped"):
            return state, detail
        if not self.wanted and self._prepared:
            return "asleep", self.why if self._away else f"{self.why}; it finishes its requests first"
        if self.wanted and self._woken and self._here_since is None:
            return "waking", detail
        return state, detail


def _read(before: Load, load: Load) -> bool:
    """Whether requests came and went between two readings, by its own counts."""
    prompt = (load.prompt_tokens or 0) - (before.prompt_tokens or 0)
    output = (load.output_tokens or 0) - (before.output_tokens or 0)
    return output > 0 or prompt > 0
