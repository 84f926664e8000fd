"""What an answer costs; what is unknown stays unknown."""

from __future__ import annotations

import pytest

from router.ledger.prices import cost
from router.records import Usage
from serving.catalogue import Price

PRICE = Price(input=2, output=8)


@pytest.mark.parametrize(
    ("price", "usage", "usd"),
    [
        (PRICE, Usage(1_000_000, 0), 2.0),
        (PRICE, Usage(0, 1_000_000), 8.0),
        (PRICE, Usage(100, 10), 0.00028),
        (PRICE, Usage(100, 10, cached=50), 0.00028),  # no rate for cached tokens: the plain one
        (Price(input=2, output=8, cached=0.5), Usage(100, 10, cached=40), 0.00022),
        (Price(input=2, output=8, cached=0), Usage(100, 10, cached=100), 0.00008),
        (Price(input=2, output=8, cached=0.5), Usage(100, 10, cached=500), 0.00013),  # never more than the prompt
        (Price(input=0, output=0), Usage(100, 10), 0.0),
        (PRICE, Usage(0, 0), 0.0),
    ],
)
def test_tokens_times_their_rates(price: Price, usage: Usage, usd: float) -> None:
    assert cost(price, usage) == pytest.approx(usd)


@pytest.mark.parametrize(
    ("price", "usage"),
    [(None, Usage(1, 1)), (None, Usage()), (PRICE, Usage()), (PRICE, Usage(prompt=1)), (PRICE, Usage(output=1))],
)
def test_an_unknown_price_or_count_is_no_number(price: Price | None, usage: Usage) -> None:
    assert cost(price, usage) is None
