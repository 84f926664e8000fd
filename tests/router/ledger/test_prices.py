"""What an answer costs; what is unknown stays unknown."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from router.ledger.prices import Prices, cost, local_rate
from router.records import Usage
from serving.catalogue import Catalogue, Costs, Model, Price, Provider, Site, load
from tests.fakes.asking import hosted, local

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


COSTS = Costs.model_validate(
    {"gpu_hour_usd": 2.5, "utilisation": 0.5, "throughput": {"near": {"input": 10_000, "output": 1_000, "gpus": 2}}}
)
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC).timestamp()


def of(*models: Model, on: bool = True, all_hosted: bool = False, costs: Costs | None = None) -> Prices:
    cloud = Provider(base_url="https://api.openai.com/v1", enabled=on)
    site = Site(costs=costs or Costs())
    catalogue = Catalogue(models={m.name: m for m in models}, providers={"cloud": cloud}, site=site, version="v1")
    return Prices.of(catalogue, NOW, all_hosted=all_hosted)


def sol(**changed: Any) -> Model:
    return hosted("sol", **{"provider_model": "gpt-6.1-sol", "price": None} | changed)


def test_a_local_token_costs_the_time_its_gpus_need_for_it() -> None:
    rate = local_rate(COSTS, "near")
    assert rate is not None
    # Two GPUs at $2.50, half used: $10 for an hour of work. An hour is 36 million tokens in, or 3.6 million out.
    assert (rate.input, rate.output, rate.cached) == pytest.approx((10 / 36, 10 / 3.6, 0))
    # Whoever fills half the hour has paid for all of it.
    assert rate.cost(prompt=0, output=1_800_000) == pytest.approx(2 * 2.5)
    assert rate.cost(prompt=1000, output=0, cached=1000) == 0


@pytest.mark.parametrize("costs", [Costs(), Costs(gpu_hour_usd=2.5), COSTS.model_copy(update={"gpu_hour_usd": None})])
def test_a_local_model_is_unpriced_without_both_settings(costs: Costs) -> None:
    prices = of(local(price=None), costs=costs)
    assert prices.cost(local(price=None), Usage(0, 0), NOW) is None, "never 0"
    assert prices.catalogue.models["near"].price is None
    assert (prices.source("near"), prices.rate("near")) == ("", None)


@pytest.mark.parametrize(
    ("costs", "remedy"),
    [
        (Costs(), "costs.gpu_hour_usd: USD and costs.throughput.near: {input: N, output: N}"),
        (Costs(gpu_hour_usd=2.5), "costs.throughput.near: {input: N, output: N}"),
        (COSTS.model_copy(update={"gpu_hour_usd": None}), "costs.gpu_hour_usd: USD"),
        (COSTS, ""),
    ],
)
def test_what_is_missing_is_named(costs: Costs, remedy: str) -> None:
    assert of(local(price=None), costs=costs).remedy("near") == remedy


def test_a_hosted_model_without_a_price_says_which_setting_gives_it_one() -> None:
    prices = of(sol(provider_model="no-such-model-9"))
    assert prices.cost(sol(), Usage(0, 0), NOW) is None, "never 0"
    assert prices.catalogue.models["sol"].price is None
    assert prices.remedy("sol") == "models.sol.price: {input: USD, output: USD}"


def test_a_model_that_no_catalogue_lists_has_the_rate_of_its_name() -> None:
    prices = of(costs=COSTS)
    assert prices.rate("near") == local_rate(COSTS, "near") and prices.rate("demo") is None
    assert prices.source("near") == "gpu-hours"
    assert prices.cost(local(price=None), Usage(0, 3_600_000), NOW) == pytest.approx(10)


def test_a_list_price_is_flat_for_the_decision_and_exact_for_the_ledger() -> None:
    prices = of(sol(context=400_000))
    flat = prices.catalogue.models["sol"].price
    assert flat is not None and (flat.input, flat.output) == (4, 15)
    assert prices.cost(sol(), Usage(1000, 50, 100), NOW) == pytest.approx(0.00231)
    assert prices.source("sol") == "list"
    # The model as the decision had it, with the flat price, costs the same.
    assert prices.cost(prices.catalogue.models["sol"], Usage(1000, 50, 100), NOW) == pytest.approx(0.00231)


@pytest.mark.parametrize("usage", [Usage(), Usage(prompt=10), Usage(output=10)])
def test_unknown_counts_are_unpriced_by_list_too(usage: Usage) -> None:
    assert of(sol()).cost(sol(), usage, NOW) is None


@pytest.mark.parametrize("model", [sol(price=PRICE), local(price=PRICE)])
def test_a_price_that_is_set_wins(model: Model) -> None:
    prices = of(model, costs=COSTS)
    assert prices.catalogue.models[model.name].price == PRICE
    assert prices.source(model.name) == "set" and prices.remedy(model.name) == ""
    assert prices.cost(model, Usage(1_000_000, 1_000_000), NOW) == pytest.approx(10)


def test_what_is_not_enabled_is_looked_up_only_to_compare() -> None:
    assert of(sol(), on=False).catalogue.models["sol"].price is None
    assert of(sol(), on=False, all_hosted=True).catalogue.models["sol"].price is not None


def test_prices_change_no_policy() -> None:
    before = load()
    after = Prices.of(before, NOW, all_hosted=True).catalogue
    assert after.version == before.version
    assert {n: m.model_copy(update={"price": None}) for n, m in after.models.items()} == {
        n: m.model_copy(update={"price": None}) for n, m in before.models.items()
    }
    assert (after.site, after.providers, after.path) == (before.site, before.providers, before.path)
