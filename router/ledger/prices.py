"""What an answer cost. Pure: the price comes from the catalogue, the counts from the answer."""

from __future__ import annotations

from router.records import Usage
from serving.catalogue import Price


def cost(price: Price | None, usage: Usage) -> float | None:
    """US dollars of an answer; None ("unpriced", never 0) where the price or a count is unknown."""
    if price is None or usage.prompt is None or usage.output is None:
        return None
    return price.cost(usage.prompt, usage.output, usage.cached or 0)
