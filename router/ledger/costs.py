"""What the requests of a month cost, summed out of the ledger's file; and what one frontier model would have cost.

It reads only, beside a router that runs as well as without one. A month is a UTC calendar month, and a request belongs
to the one in which it was asked, as it does in `budgets.py`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from router.ledger.prices import Prices
from router.ledger.store import LedgerError, connect
from router.records import Usage
from serving.catalogue import Catalogue, Model

GROUPS = {
    "team": "json_extract(o.body, '$.team')",
    "model": "json_extract(c.body, '$.model')",
    # Records made before the closed event named the lane: what was asked for says it.
    "lane": "COALESCE(json_extract(c.body, '$.lane'), CASE WHEN json_extract(o.body, '$.asked') IN "
    "('private', 'cheap', 'frontier', 'auto') THEN json_extract(o.body, '$.asked') ELSE 'named' END)",
}
"""What sums can be taken by, and where a record says it."""

# One row a request. Attempts in vain can cost as well, so what is local and what is not is asked of each attempt.
# `LIMIT -1` keeps SQLite from putting each expression wherever its name stands, and from reading the JSON again there.
# Compared with the frontier are answers of known tokens and cost; vectors are nothing that it could have made.
ROWS = """
SELECT {group} AS name, o.at AS at, c.cost AS cost, json_extract(c.body, '$.outcome') IS 'answered' AS answered,
    json_extract(c.body, '$.prompt_tokens') AS prompt, json_extract(c.body, '$.cached_tokens') AS cached,
    json_extract(c.body, '$.output_tokens') AS output, json_extract(c.body, '$.model') AS model,
    COALESCE(json_extract(c.body, '$.unpriced'), c.cost IS NULL) AS unpriced,
    COALESCE(json_extract(c.body, '$.estimated'), 0) AS estimated,
    json_extract(o.body, '$.route') AS route,
    CASE WHEN json_extract(c.body, '$.outcome') = 'lost' AND json_array_length(o.body, '$.order') > 0 AND NOT EXISTS
        (SELECT 1 FROM json_each(o.body, '$.order') d WHERE json_extract(d.value, '$.place') = 'hosted') THEN c.cost
    ELSE (SELECT SUM(json_extract(a.value, '$.cost_usd')) FROM json_each(c.body, '$.attempts') a
        WHERE json_extract(a.value, '$.place') = 'local') END AS local
FROM events o JOIN events c ON c.request = o.request AND c.kind = 'closed'
WHERE o.kind = 'opened' AND o.at >= :start AND o.at < :end LIMIT -1
"""
SUMS = """
WITH one AS ({rows}),
marked AS (SELECT *, model IS NOT NULL AND NOT unpriced AND NOT estimated AND prompt IS NOT NULL
    AND output IS NOT NULL AND route IS NOT 'embeddings' AS compared FROM one)
SELECT COALESCE(name, '') AS name, COUNT(*) AS requests, SUM(answered) AS answered,
    COALESCE(SUM(prompt), 0) AS prompt, COALESCE(SUM(cached), 0) AS cached, COALESCE(SUM(output), 0) AS output,
    COALESCE(SUM(local), 0.0) AS local, COALESCE(SUM(cost), 0.0) AS total,
    SUM(unpriced) AS unpriced, SUM(estimated) AS estimated, SUM(compared) AS compared,
    SUM(NOT compared AND (model IS NOT NULL OR cost IS NULL OR cost > 0)) AS left_out,
    COALESCE(SUM(cost) FILTER (WHERE compared), 0.0) AS paid,
    COALESCE(SUM(frontier(prompt, cached, output, at)) FILTER (WHERE compared), 0.0) AS frontier
FROM marked GROUP BY 1 ORDER BY total DESC, requests DESC, name
"""
UNPRICED = """
SELECT json_extract(a.value, '$.model') AS model, json_extract(a.value, '$.place') AS place,
    COUNT(DISTINCT c.request) AS requests
FROM events o JOIN events c ON c.request = o.request AND c.kind = 'closed', json_each(c.body, '$.attempts') a
WHERE o.kind = 'opened' AND o.at >= :start AND o.at < :end AND json_extract(c.body, '$.unpriced')
    AND json_extract(a.value, '$.cost_usd') IS NULL
GROUP BY 1, 2 ORDER BY requests DESC, model
"""

FrontierCost = Callable[[int, int, int, float], float]
"""US dollars of prompt, cached and output tokens, asked for at a time."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What the requests of one group cost together. Money is US dollars."""

    name: str
    requests: int
    answered: int
    prompt: int
    """Tokens, as far as they are known or estimated; those of the cache are among them."""
    cached: int
    output: int
    local: float
    """By the internal rate: a share of GPU hours that are paid for anyway."""
    total: float
    unpriced: int
    """Requests that have an attempt of unknown cost, which is in no sum of money."""
    estimated: int
    compared: int
    """Answers of known tokens and cost, which `paid` and `frontier` are about."""
    left_out: int
    paid: float
    frontier: float
    """What the compared answers would have cost at the frontier model."""

    @property
    def hosted(self) -> float:
        """All that is not local. A request whose router was killed counts at what was held for it: as local where only
        local models could have answered it, else here."""
        return max(0.0, round(self.total - self.local, 12))


@dataclass(frozen=True, slots=True)
class Unpriced:
    """A model that was asked and whose cost is not known."""

    model: str
    place: str
    requests: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the requests of a month cost."""

    rows: tuple[Sums, ...]
    """The dearest first."""
    total: Sums
    unpriced: tuple[Unpriced, ...]


def read(path: Path, by: str, month: dt.date, frontier: FrontierCost | None = None) -> Report:
    """Sum the requests of a month, given by its first day, in groups `by` team, model or lane.

    Every answer is priced one by one at the frontier, since a tier and a peak hour are a request's own; SQLite calls
    back for it, so that nothing is held in memory. Without `frontier` that sum is 0. Raises LedgerError.
    """
    span = {"start": _start(month), "end": _start((month + dt.timedelta(days=31)).replace(day=1))}
    try:
        with contextlib.closing(connect(path, read_only=True)) as db:
            db.row_factory = sqlite3.Row
            db.create_function("frontier", 4, _callback(frontier))
            rows = tuple(Sums(**row) for row in db.execute(SUMS.format(rows=ROWS.format(group=GROUPS[by])), span))
            summed = total(rows)
            unpriced = tuple(Unpriced(**row) for row in db.execute(UNPRICED, span)) if summed.unpriced else ()
    except sqlite3.Error as broken:
        raise LedgerError(f"the ledger {path} cannot be read: {broken}; see: headgate doctor") from broken
    return Report(rows, summed, unpriced)


def frontier_model(priced: Catalogue) -> Model | None:
    """The model of the comparison: the one that is set, else the cheapest of lane frontier, an enabled one first.

    `priced` is the catalogue with its prices. Cheapest is by a million tokens in and a million out. None where no
    model of the lane has a price.
    """
    if priced.site.costs.frontier:
        return priced.models[priced.site.costs.frontier]
    lane = [(m, m.price) for m in priced.models.values() if m.place == "hosted" and "frontier" in m.lanes]
    found = [(not priced.enabled(m), price.input + price.output, m.name) for m, price in lane if price is not None]
    return priced.models[min(found)[-1]] if found else None


def frontier_cost(prices: Prices, model: Model) -> FrontierCost | None:
    """How an answer is priced at the frontier model; None where that one is unpriced."""
    if prices.cost(model, Usage(0, 0, 0), 0.0) is None:
        return None

    def cost(prompt: int, cached: int, output: int, at: float) -> float:
        return prices.cost(model, Usage(prompt, output, cached), at) or 0.0

    return cost


def _callback(frontier: FrontierCost | None) -> Callable[[int, int | None, int, float], float]:
    def called(prompt: int, cached: int | None, output: int, at: float) -> float:
        return 0.0 if frontier is None else frontier(prompt, cached or 0, output, at)

    return called


def total(rows: tuple[Sums, ...]) -> Sums:
    """All rows together."""
    summed: dict[str, Any] = {
        f.name: sum((getattr(row, f.name) for row in rows), start=0) for f in fields(Sums) if f.name != "name"
    }
    return Sums(name="total", **summed)


def _start(day: dt.date) -> float:
    return dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp()
