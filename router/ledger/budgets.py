"""Budgets: money is held before an attempt and settled after it, so that a race cannot overspend.

One writer: everything happens in the event loop's thread between two awaits. Months are UTC calendar months.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
from dataclasses import dataclass

from router.errors import LimitReached
from router.records import Caller

PICO = 1_000_000_000_000
"""Money is summed in whole 10⁻¹² dollars: in floats, fifty holds of $0.02 are more than a dollar."""


@dataclass(slots=True)
class Hold:
    """US dollars set aside for one request of one key, until settled."""

    key: str
    month: str
    amount: float
    settled: bool = False


class Budgets:
    """Spent and held per key and month."""

    def __init__(self) -> None:
        self._used: dict[tuple[str, str], int] = {}

    def load(self, db: sqlite3.Connection, now: float) -> None:
        """Take up what the ledger says was spent on requests that were opened this month."""
        start = dt.datetime.fromtimestamp(now, dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        rows = db.execute(
            "SELECT c.key, SUM(c.cost) FROM events o JOIN events c ON c.request=o.request AND c.kind='closed' "
            "WHERE o.kind='opened' AND o.at>=? AND c.cost IS NOT NULL GROUP BY c.key",
            (start.timestamp(),),
        )
        for key, spent in rows:
            self._used[key, _month(now)] = _pico(spent)

    def used(self, key: str, now: float) -> float:
        """US dollars settled and held this month."""
        return self._used.get((key, _month(now)), 0) / PICO

    def hold(self, caller: Caller, amount: float, now: float) -> Hold:
        """Set `amount` aside. Raises LimitReached where the budget does not cover it."""
        month = _month(now)
        used = self._used.get((caller.key, month), 0)
        if caller.budget_usd is not None and amount > 0 and used + _pico(amount) > _pico(caller.budget_usd):
            raise LimitReached(
                f"key {caller.key} has used ${used / PICO:.4f} of its ${caller.budget_usd:.2f} for {month}, and this "
                f"request may cost ${amount:.4f}. To change it: headgate keys set {caller.key} --budget USD"
            )
        self._used[caller.key, month] = used + _pico(amount)
        return Hold(caller.key, month, amount)

    def settle(self, hold: Hold, cost: float) -> None:
        """Put the real cost in the hold's place, in the month the request was admitted. A second call does nothing."""
        if not hold.settled:
            hold.settled = True
            self._used[hold.key, hold.month] += _pico(cost) - _pico(hold.amount)


def _pico(usd: float) -> int:
    return round(usd * PICO)


def _month(now: float) -> str:
    day = dt.datetime.fromtimestamp(now, dt.UTC)
    return f"{day.year:04}-{day.month:02}"
