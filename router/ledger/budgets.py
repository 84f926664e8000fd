"""Budgets: money is held before an attempt and settled after it, so that a race cannot overspend.

One process keeps the sums to itself; several workers share them, each look and change under one lock. Both are derived
from the ledger at the start. Months are UTC calendar months.
"""

from __future__ import annotations

import datetime as dt
import logging
import sqlite3
from collections import Counter
from dataclasses import dataclass

from router.errors import LimitReached, Unavailable, dollars
from router.ledger.counters import Counters, Own, Stuck
from router.records import Caller

PICO = 1_000_000_000_000
"""Money is summed in whole 10⁻¹² dollars: in floats, fifty holds of $0.02 are more than a dollar."""
KEPT_S = 40 * 86400.0
"""A month's sums are kept so long after it has ended: requests of its last day are settled by then."""
LOG = logging.getLogger("headgate.router")


@dataclass(slots=True)
class Hold:
    """US dollars set aside for one request, until settled."""

    account: str
    month: str
    amount: float
    settled: bool = False


class Budgets:
    """Spent and held per account and month: a key that was rotated goes on with what it has spent."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = Own() if counters is None else counters
        self._owed: dict[tuple[str, str], int] = {}
        """By account and month, what could not be counted yet since the counters were stuck."""
        self._month, self._begins, self._ends = "", 0.0, 0.0

    def load(self, db: sqlite3.Connection, now: float) -> None:
        """Take up what the ledger says was spent on requests that were opened this month. Raises Stuck."""
        month = self._month_of(now)
        rows = db.execute(
            "SELECT c.key, SUM(c.cost) FROM events o JOIN events c ON c.request=o.request AND c.kind='closed' "
            "WHERE o.kind='opened' AND o.at>=? AND c.cost IS NOT NULL GROUP BY c.key",
            (self._begins,),
        )
        first = dict(db.execute("SELECT id, first FROM keys WHERE first != ''"))
        sums = Counter[str]()
        for key, spent in rows:
            sums[first.get(key, key)] += _pico(spent)
        with self._counters as kept:
            for account, spent in sums.items():
                kept.put(f"{month} {account}", spent, self._ends + KEPT_S, now)

    def used(self, account: str, now: float) -> float:
        """US dollars settled and held this month; for several workers, as of a moment ago."""
        return self._counters.get(f"{self._month_of(now)} {account}") / PICO

    def hold(self, caller: Caller, amount: float, now: float) -> Hold:
        """Set `amount` aside. Raises LimitReached where the budget does not cover it.

        Raises Unavailable where the key has a budget and what is spent of it cannot be known now.
        """
        month = self._month_of(now)
        if amount <= 0:
            return Hold(caller.account, month, 0.0)
        asked, budget = _pico(amount), caller.budget_usd
        try:
            with self._counters as kept:
                used = kept.get(f"{month} {caller.account}")
                if budget is None or used + asked <= _pico(budget):
                    kept.put(f"{month} {caller.account}", used + asked, self._ends + KEPT_S, now)
                    return Hold(caller.account, month, amount)
        except Stuck as stuck:
            if budget is not None:
                raise Unavailable(
                    f"What key {caller.key} has spent is not known now: {stuck}",
                    code="ledger_unavailable", retry_after=5,
                ) from stuck  # fmt: skip
            return Hold(caller.account, month, 0.0)
        raise LimitReached(
            f"key {caller.key} has used {dollars(used / PICO)} of its {dollars(budget)} for {month}, and this "
            f"request may cost {dollars(amount)}. To change it: headgate keys set {caller.key} --budget USD"
        )

    def settle(self, hold: Hold, cost: float) -> None:
        """Put the real cost in the hold's place, in the month the request was admitted. A second call does nothing."""
        if hold.settled:
            return
        hold.settled = True
        if change := _pico(cost) - _pico(hold.amount):
            self._owed[hold.account, hold.month] = self._owed.get((hold.account, hold.month), 0) + change
        if self._owed:
            self._pay()

    def _pay(self) -> None:
        """Count what is owed; where the counters are stuck, the next time."""
        now, until = self._begins, self._ends + KEPT_S
        try:
            with self._counters as kept:
                while self._owed:
                    account, month = next(iter(self._owed))
                    name = f"{month} {account}"
                    kept.put(name, kept.get(name) + self._owed[account, month], until, now)
                    del self._owed[account, month]
        except Stuck as stuck:
            LOG.warning("what was spent is counted later: %s", stuck)

    def _month_of(self, now: float) -> str:
        """The calendar month of `now`; worked out once a month."""
        if not self._begins <= now < self._ends:
            first = dt.datetime.fromtimestamp(now, dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            next_month = (first + dt.timedelta(days=32)).replace(day=1)
            self._month, self._begins, self._ends = f"{first:%Y-%m}", first.timestamp(), next_month.timestamp()
        return self._month


def _pico(usd: float) -> int:
    return round(usd * PICO)
