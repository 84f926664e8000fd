"""List prices of hosted models, as the package genai-prices knows them: tiers, peak hours, and changes by date.

Only the prices that come with the package are read. Its updater is never started: nothing phones home.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from serving.catalogue import Model, Price, Provider

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, StartDateConstraint, TieredPrices, TimeOfDateConstraint

NAMED_BY_THE_SITE = frozenset({"azure"})
"""Providers where the site itself names what it deploys, so that the name says nothing of the price."""
DAY_S = 86400
EPOCH = dt.date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens, for a prompt of more than `above` tokens."""

    above: int
    input: float
    cached: float
    output: float


Tiers = tuple[Rates, ...]
"""Highest first; the last one holds for any prompt."""


@dataclass(frozen=True, slots=True)
class Period:
    """Rates and when they hold; None is always."""

    when: StartDateConstraint | TimeOfDateConstraint | None
    tiers: Tiers


class ListPrice:
    """What one model costs at any time. Compiled to floats once: genai-prices' own sum takes 30 to 90 µs.

    The meaning is that of `genai_prices.types.ModelInfo.get_prices` and `calc_unit_price`: the last period that is
    active counts, else the first; the tier is that of the whole prompt, and holds for all tokens of the request.
    """

    def __init__(self, periods: tuple[Period, ...]) -> None:
        self._periods = periods
        self._days: dict[int, list[tuple[float, Tiers]]] = {}

    def cost(self, prompt: int, output: int, cached: int, at: float) -> float:
        """US dollars of one answer that was asked for at `at` (Unix seconds). Cached tokens are part of the prompt."""
        day, second = divmod(at, DAY_S)
        tiers = next(tiers for start, tiers in self._day(int(day)) if second >= start)
        rates = next(r for r in tiers if prompt > r.above)
        cached = min(cached, prompt)
        return ((prompt - cached) * rates.input + cached * rates.cached + output * rates.output) / 1_000_000

    def most(self, context: int, now: float) -> Price:
        """The flat price that no answer of this model exceeds from `now` on, its prompt being within `context`."""
        today = int(now // DAY_S)
        starts = (getattr(p.when, "start_date", None) for p in self._periods)
        days = {today, *((s - EPOCH).days for s in starts if s is not None and (s - EPOCH).days > today)}
        found = [r for day in days for _, tiers in self._day(day) for r in tiers if r.above < context]
        cached = max(r.cached for r in found)
        fresh = max(cached, *(r.input for r in found))
        return Price(input=fresh, output=max(r.output for r in found), cached=cached)

    def _day(self, day: int) -> list[tuple[float, Tiers]]:
        """The prices of a day (since 1970, UTC), each with the second from which it holds, the latest first."""
        if day not in self._days:
            date = EPOCH + dt.timedelta(days=day)
            starts = {dt.time()}
            for period in self._periods:
                ends = (getattr(period.when, "start_time", None), getattr(period.when, "end_time", None))
                starts |= {_utc(time, date) for time in ends if time is not None}
            moments = [dt.datetime.combine(date, start, dt.UTC) for start in sorted(starts, reverse=True)]
            self._days[day] = [(moment.timestamp() % DAY_S, self._tiers(moment)) for moment in moments]
        return self._days[day]

    def _tiers(self, moment: dt.datetime) -> Tiers:
        active = (p for p in reversed(self._periods) if p.when is None or p.when.active(moment))
        return next(active, self._periods[0]).tiers


def find(model: Model, provider: Provider) -> ListPrice | None:
    """The list price of a hosted model at its provider's address; None where none is known.

    By address and not by name: who points `base_url` at a gateway of his own pays what that asks.
    """
    # Here and not above: it takes a quarter of a second and 75 MB, and few commands and not every router need it.
    from genai_prices.data_snapshot import get_snapshot

    try:
        seller, found = get_snapshot().find_provider_model(model.provider_model, None, None, provider.base_url)
    except LookupError:
        return None
    if seller.id in NAMED_BY_THE_SITE:
        return None
    embeds = model.abilities == {"embeddings"}
    if isinstance(found.prices, list):
        periods = [Period(c.constraint, _compiled(c.prices, embeds)) for c in found.prices]
    else:
        periods = [Period(None, _compiled(found.prices, embeds))]
    return ListPrice(tuple(periods)) if periods and all(p.tiers for p in periods) else None


def _compiled(price: ModelPrice, embeds: bool) -> Tiers:
    """The tiers of a price; none where it is no price by tokens alone, or one of them is not known."""
    fresh, output = price.input_mtok, price.output_mtok
    if fresh is None or price.requests_kcount or (output is None and not embeds):
        return ()
    cached = fresh if price.cache_read_mtok is None else price.cache_read_mtok
    starts = {tier.start for p in (fresh, cached, output) for tier in getattr(p, "tiers", ())}
    return tuple(
        Rates(above, _rate(fresh, above), _rate(cached, above), _rate(output, above))
        for above in (*sorted(starts, reverse=True), -1)
    )


def _rate(price: Decimal | TieredPrices | None, above: int) -> float:
    if price is None:
        return 0.0  # the output of embeddings, of which there is none
    if isinstance(price, Decimal):
        return float(price)
    return float(next((tier.price for tier in reversed(price.tiers) if tier.start <= above), price.base))


def _utc(time: dt.time, day: dt.date) -> dt.time:
    """A time of day in UTC; one without a zone is in UTC already."""
    return dt.datetime.combine(day, time, time.tzinfo or dt.UTC).astimezone(dt.UTC).time()
