"""What an answer costs: by the price that is set, by the provider's list, or by the rate of the site's own GPUs.

Unknown is None, "unpriced", and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.ledger import listed
from router.ledger.listed import ListPrice
from router.records import Usage
from serving.catalogue import Catalogue, Costs, Model, Price


def cost(price: Price | None, usage: Usage) -> float | None:
    """US dollars of an answer; None ("unpriced", never 0) where the price or a count is unknown."""
    if price is None or usage.prompt is None or usage.output is None:
        return None
    return price.cost(usage.prompt, usage.output, usage.cached or 0)


def local_rate(costs: Costs, name: str) -> Price | None:
    """The internal rate of a local model: what the GPU time of a token costs. None where a setting for it is missing.

    A million tokens take 10⁶ ÷ (tokens a second) seconds of so many GPUs, and the hours in which nobody asks are paid
    for too: `$/M = GPUs × $/hour ÷ 3600 ÷ tokens a second ÷ utilisation × 10⁶`. Prompt and answer each pay for their
    own time, so their throughputs are those of one without the other. A token out of the prefix cache is not computed
    again and takes no such time, so it costs 0; what it costs to look back at it is part of the output's throughput.
    """
    throughput = costs.throughput.get(name)
    if costs.gpu_hour_usd is None or throughput is None:
        return None
    second = throughput.gpus * costs.gpu_hour_usd / 3600 / costs.utilisation
    return Price(input=second / throughput.input * 1e6, output=second / throughput.output * 1e6, cached=0)


class Prices:
    """Every model's price, found once for one configuration."""

    def __init__(self, catalogue: Catalogue, found: Mapping[str, ListPrice], now: float) -> None:
        self._costs = costs = catalogue.site.costs
        self._set = frozenset(n for n, m in catalogue.models.items() if m.price is not None)
        self._listed = dict(found)
        self._rates = {name: rate for name in costs.throughput if (rate := local_rate(costs, name)) is not None}
        models = {n: m.model_copy(update={"price": self._flat(m, now)}) for n, m in catalogue.models.items()}
        self.catalogue = catalogue.model_copy(update={"models": models})
        """The catalogue with every price that is known: of hosted models by list, the most that can be charged."""

    @classmethod
    def of(cls, catalogue: Catalogue, now: float, *, all_hosted: bool = False) -> Prices:
        """Find the prices of a configuration; list prices that have ended at `now` (Unix seconds) no longer count.

        `all_hosted` looks up the models of providers that are not enabled as well: to compare, for none of them is
        ever asked.
        """
        wanted = [m for m in catalogue.models.values() if m.place == "hosted" and m.price is None]
        found = {
            m.name: price
            for m in wanted
            if all_hosted or catalogue.enabled(m)
            if (price := listed.find(m, catalogue.providers[m.provider])) is not None
        }
        return cls(catalogue, found, now)

    def rate(self, name: str) -> Price | None:
        """The internal rate of a local model by `costs`, also of one that no catalogue lists (the demo, attached)."""
        return self._rates.get(name)

    def cost(self, model: Model, usage: Usage, at: float) -> float | None:
        """US dollars of an answer that was asked for at `at` (Unix seconds); None is unpriced."""
        if usage.prompt is None or usage.output is None:
            return None
        if (price := self._listed.get(model.name)) is not None:
            return price.cost(usage.prompt, usage.output, usage.cached or 0, at)
        return cost(model.price or self.rate(model.name), usage)

    def source(self, name: str) -> str:
        """Where a model's price comes from: `set`, `list`, `gpu-hours`, or "" where it is unpriced."""
        if name in self._set:
            return "set"
        if name in self._listed:
            return "list"
        return "gpu-hours" if name in self._rates else ""

    def remedy(self, name: str) -> str:
        """The setting that gives a model a price; "" where it has one."""
        model = self.catalogue.models.get(name)
        if self.source(name):
            return ""
        if model is not None and model.place == "hosted":
            return f"models.{name}.price: {{input: USD, output: USD}}"
        missing = [] if self._costs.gpu_hour_usd is not None else ["costs.gpu_hour_usd: USD"]
        missing += [] if name in self._costs.throughput else [f"costs.throughput.{name}: {{input: N, output: N}}"]
        return " and ".join(missing)

    def _flat(self, model: Model, now: float) -> Price | None:
        if model.price is not None:
            return model.price
        if (price := self._listed.get(model.name)) is not None:
            return price.most(model.context, now)
        return self._rates.get(model.name) if model.place == "local" else None
