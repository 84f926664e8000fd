"""Local against hosted: the formulas by numbers worked out by hand, and what is said where something is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost, engine
from benchmarks.breakeven import (
    Flow,
    break_even,
    busy,
    compared,
    hosted_per_million,
    local_per_million,
    separate,
)
from benchmarks.engine import Count
from benchmarks.installation import Stop
from benchmarks.samples import quantiles
from benchmarks.steps import Step
from serving import catalogue
from serving.catalogue import Price
from tests.conftest import instance
from tests.fakes.asking import hosted, local

PRICE = Price(input=2, output=10)
FULL = Flow(prompt=3000, output=1000)
"""An hour of it: 10.8 million prompt and 3.6 million output tokens; hosted 21.6 + 36 = 57.60 dollars."""


def test_break_even_by_hand() -> None:
    assert break_even(28.80, FULL, PRICE) == pytest.approx(0.5)
    assert break_even(2.88, FULL, PRICE) == pytest.approx(0.05)


def test_a_machine_that_costs_more_than_all_its_tokens_hosted_never_pays() -> None:
    share = break_even(115.20, FULL, PRICE)
    assert share == pytest.approx(2.0)
    said = cost.verdict(local_per_million(115.20, FULL), {"break_even": share, "usd_per_million": 4.0})
    assert said == "never: local at full load costs 2 times as much"


def test_what_is_free_elsewhere_is_never_beaten() -> None:
    assert break_even(1, FULL, Price(input=0, output=0)) is None
    assert "never" in cost.verdict(1.0, {"break_even": None, "usd_per_million": 0.0})


def test_dollars_a_million_by_hand() -> None:
    # 14.4 million tokens an hour.
    assert local_per_million(14.40, FULL) == pytest.approx(1.0)
    assert local_per_million(14.40, FULL, utilisation=0.25) == pytest.approx(4.0)
    assert hosted_per_million(PRICE, FULL) == pytest.approx((3 * 2 + 1 * 10) / 4)


def test_at_the_break_even_both_cost_the_same() -> None:
    share = break_even(7, FULL, PRICE)
    assert share is not None
    assert local_per_million(7, FULL, share) == pytest.approx(hosted_per_million(PRICE, FULL))


def test_prompts_and_answers_are_told_apart() -> None:
    # Reads 10,000 a second or writes 500: nine tenths of reading leave a tenth for writing, and the other way round.
    alone = separate(Flow(9000, 50), Flow(1000, 450))
    assert alone is not None
    assert (alone.prompt, alone.output) == (pytest.approx(10_000), pytest.approx(500))
    assert busy(Flow(5000, 250), alone) == pytest.approx(1.0)


@pytest.mark.parametrize("other", [Flow(4500, 25), Flow(20_000, 100)])
def test_what_cannot_be_told_apart_is_unknown(other: Flow) -> None:
    assert separate(Flow(9000, 50), other) is None
    assert separate(Flow(9000, 50), Flow(9500, 60)) is None, "more of both: noise, not a machine"


# ---- what it is compared with


def found(*models: Any, **site: Any) -> catalogue.Catalogue:
    return catalogue.Catalogue(models={m.name: m for m in models}, providers={}, site=catalogue.Site(**site))


def test_it_is_compared_with_its_own_weights_hosted_and_with_both_ends_of_the_frontier() -> None:
    mine = local("mine", family="q")
    models = [
        mine, hosted("same", same_as="mine", lanes=("cheap",), price=Price(input=1, output=1)),
        hosted("kin", family="q", lanes=("cheap",)), hosted("cheapest", price=Price(input=2, output=2)),
        hosted("middle", price=Price(input=5, output=5)), hosted("dearest", price=Price(input=9, output=9)),
        hosted("unpriced", price=None),
    ]  # fmt: skip
    assert [m.name for m in compared(found(*models), mine, FULL)] == ["same", "cheapest", "dearest"]
    chosen = compared(found(*models, costs={"frontier": "middle"}), mine, FULL)
    assert [m.name for m in chosen] == ["same", "cheapest", "middle", "dearest"]
    assert [m.name for m in compared(found(*models), mine, FULL, ["middle"])] == ["middle"]
    assert [m.name for m in compared(found(*models), None, FULL)] == ["cheapest", "dearest"]


def test_the_shipped_catalogue_has_something_to_compare_with() -> None:
    shipped = cost.priced(catalogue.load(), 200, 64, at=1_790_000_000)
    assert len(compared(shipped, None, FULL)) == 2
    assert "qwen3.8-27b" in {m.same_as for m in compared(shipped, shipped.find("qwen3.8-27b"), FULL)}


def test_list_prices_are_those_of_the_request_and_the_unknown_stays_unknown() -> None:
    models = [hosted("far", price=PRICE), hosted("dark", price=None, provider="nobody"), local("mine", price=None)]
    provider = catalogue.Provider(base_url="https://far.invalid/v1")
    before = found(*models).model_copy(update={"providers": {"cloud": provider, "nobody": provider}})
    after = cost.priced(before, 150, 64, at=1_790_000_000)
    far = after.models["far"].price
    assert far is not None and (far.input, far.output) == (pytest.approx(2), pytest.approx(10))
    assert after.models["dark"].price is None and after.models["mine"] == models[2]


# ---- the price of the hour


def test_the_price_of_the_hour_is_the_options_else_the_settings() -> None:
    assert cost.hour_price(0.1, found(costs={"gpu_hour_usd": 2.5})) == (0.1, "--gpu-hour")
    assert cost.hour_price(None, found(costs={"gpu_hour_usd": 2.5})) == (2.5, "headgate.yaml")
    with pytest.raises(Stop, match="--gpu-hour USD"):
        cost.hour_price(None, found())
    with pytest.raises(Stop, match="above 0"):
        cost.hour_price(-1.0, found())


def test_nothing_is_started_before_the_price_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADGATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.picture.check", lambda: None)
    assert cost.main(["--quick"]) == 1
    said = capsys.readouterr()
    assert "costs: {gpu_hour_usd: USD}" in said.err and said.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


# ---- what the engine counts


def test_all_ready_replicas_count_and_their_gpus_are_paid_for() -> None:
    both = [instance("a", "unix:/a", gpus=["g1", "g2"]), instance("a@2", "unix:/b", model="a", gpus=["g3", "g4"])]
    rest = [instance("a@3", "unix:/c", model="a", state="starting", gpus=["g5"]), instance("b", "unix:/d")]
    mine = engine.find([*both, *rest], "a")
    assert (mine.addresses, mine.gpus, mine.on_gpu, mine.limit) == (("unix:/a", "unix:/b"), 4, True, 8)
    alone = engine.find(rest, "")
    assert (alone.model, alone.gpus, alone.on_gpu) == ("b", 1, False)
    with pytest.raises(Stop, match="ready are: b"):
        engine.find(rest, "a")


def test_a_server_without_vllms_counters_cannot_be_measured() -> None:
    with pytest.raises(Stop, match="ready are: none"):
        engine.find([instance("a", "unix:/a", metrics="none")], "")


def test_tokens_a_second_are_those_between_two_counts() -> None:
    assert engine.flow(Count(10, 100, 50), Count(14, 500, 90)) == Flow(100, 10)
    with pytest.raises(Stop, match="restarted"):
        engine.flow(Count(10, 100, 50), Count(14, 90, 60))


# ---- the whole


def step(name: str, prompt: float, output: float, mixed: bool = True) -> Step:
    none = quantiles([])
    return Step(name, None, Flow(prompt, output), mixed, 10, 10, 0, (), False, none, none)


def result(price: float = 28.80) -> dict[str, Any]:
    steps = [
        step("full", 3000, 1000), step("low", 750, 250), step("medium", 1800, 600), step("high", 2900, 980),
        step("prompts", 9000, 50, mixed=False), step("answers", 1000, 450, mixed=False),
    ]  # fmt: skip
    seen = found(local("mine"), hosted("far", price=PRICE))
    one = engine.find([instance("mine", "unix:/a")], "")
    return cost.result_of(steps, one, seen, (price, "--gpu-hour"), [])


def test_the_result_prices_full_load_and_every_rate() -> None:
    made = result()
    assert made["full"] == {"prompt": 3000, "output": 1000} and made["usd_per_million"] == pytest.approx(2.0)
    low = next(s for s in made["steps"] if s["name"] == "low")
    assert low["usd_per_million"] == pytest.approx(8.0) and low["share"] == pytest.approx(0.25)
    (far,) = made["hosted"]
    assert far["break_even"] == pytest.approx(0.5)
    assert cost.verdict(2.0, far) == "local is cheaper when busy more than 50% of the time"


def test_the_line_for_the_settings_is_taken_by_them(tmp_path: Path) -> None:
    made = result() | {"model": "qwen3.8-27b"}
    line = cost.throughput_line(made)
    (tmp_path / "headgate.yaml").write_text(line.partition("\n")[2] + "\n")
    taken = catalogue.load(tmp_path / "headgate.yaml").site.costs.throughput["qwen3.8-27b"]
    assert (taken.input, taken.output, taken.gpus) == (10_000, 500, 1)
    assert "run again" in cost.throughput_line(made | {"alone": None})


def test_a_machine_that_changed_its_speed_meanwhile_is_owned_up_to() -> None:
    made = result()
    assert made["busy_by_alone"]["full"] == pytest.approx(3000 / 10_000 + 1000 / 500)
    assert "230%" in cost.unsteady(made)
    assert cost.unsteady(made | {"busy_by_alone": {"full": 1.1}}) == ""
    assert cost.unsteady(made | {"busy_by_alone": None}) == ""
