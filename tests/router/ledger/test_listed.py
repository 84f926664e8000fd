"""List prices: tiers, cached tokens, peak hours and announced changes; and a hold that no answer exceeds."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices import calc_price
from genai_prices.types import StartDateConstraint
from hypothesis import given
from hypothesis import strategies as st

from router.ledger.listed import ListPrice, Period, Rates, find
from serving.catalogue import Model, Provider, load
from tests.fakes.asking import hosted

SHIPPED = load()
NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
NOON = NOW.timestamp()
OPENAI = Provider(base_url="https://api.openai.com/v1")


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def shipped(name: str) -> ListPrice:
    model = SHIPPED.models[name]
    price = find(model, SHIPPED.providers[model.provider])
    assert price is not None
    return price


def model(name: str, **changed: Any) -> Model:
    return hosted(provider_model=name, price=None, **changed)


LISTED = [m for m in SHIPPED.models.values() if m.place == "hosted" and find(m, SHIPPED.providers[m.provider])]


@pytest.mark.parametrize(
    ("name", "tokens", "when", "usd"),
    [
        # 900 × $2 + 100 × $0.10 + 50 × $10, a million tokens each
        ("gpt-6.1-sol", (1000, 50, 100), "2026-11-21T12:00", 0.00231),
        ("gpt-6.1-sol", (272_000, 1000, 0), "2026-11-21T12:00", 0.554),
        # Above 272,000 tokens of prompt all of them cost $4, and the output $15.
        ("gpt-6.1-sol", (300_000, 1000, 0), "2026-11-21T12:00", 1.215),
        ("gpt-6.1-sol", (300_000, 0, 300_000), "2026-11-21T12:00", 0.06),
        ("gpt-6.1-sol", (100, 0, 500), "2026-11-21T12:00", 0.00001),  # never more cached than the prompt has
        ("gemini-4-argon", (1_000_000, 0, 0), "2026-11-30T23:59:59", 2.0),
        ("gemini-4-argon", (1_000_000, 0, 0), "2026-12-01T00:00", 4.0),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T00:59:59", 0.6765),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T01:00", 1.353),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T03:59:59", 1.353),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T04:00", 0.6765),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T06:00", 1.353),
        ("deepseek/deepseek-flash", (1_000_000, 1_000_000, 500_000), "2026-11-21T23:00", 0.6765),
    ],
)
def test_hand_worked(name: str, tokens: tuple[int, int, int], when: str, usd: float) -> None:
    assert shipped(name).cost(*tokens, at(when)) == pytest.approx(usd, rel=1e-9)


@given(
    st.sampled_from(LISTED),
    st.integers(0, 2_000_000),
    st.integers(0, 200_000),
    st.floats(0, 1),
    st.datetimes(dt.datetime(2025, 1, 1), dt.datetime(2028, 1, 1)),
)
def test_it_is_what_genai_prices_says(
    entry: Model, prompt: int, output: int, share: float, moment: dt.datetime
) -> None:
    moment, cached = moment.replace(tzinfo=dt.UTC), int(prompt * share)
    theirs = calc_price(
        TheirUsage(input_tokens=prompt, output_tokens=output, cache_read_tokens=cached),
        entry.provider_model,
        provider_api_url=SHIPPED.providers[entry.provider].base_url,
        genai_request_timestamp=moment,
    )
    ours = shipped(entry.name).cost(prompt, output, cached, moment.timestamp())
    assert ours == pytest.approx(float(theirs.total_price), rel=1e-9, abs=1e-12)


@given(
    st.sampled_from(LISTED),
    st.floats(0, 1),
    st.integers(0, 200_000),
    st.floats(0, 1),
    st.floats(0, 3 * 365 * 86400),
    st.booleans(),
)
def test_nothing_costs_more_than_is_held_for_it(
    entry: Model, share: float, output: int, cached: float, later: float, whole: bool
) -> None:
    context = 2_000_000 if whole else entry.context
    prompt = int(context * share)
    most = shipped(entry.name).most(context, NOON)
    exact = shipped(entry.name).cost(prompt, output, int(prompt * cached), NOON + later)
    # The hold does not know what will be cached.
    assert most.cost(prompt, output) >= exact - 1e-9
    assert most.cost(prompt, output, int(prompt * cached)) >= exact - 1e-9


@pytest.mark.parametrize(
    ("name", "context", "now", "rates"),
    [
        ("gpt-6.1-sol", 272_000, "2026-11-21", (2, 10, 0.1)),  # the dearer tier cannot be reached
        ("gpt-6.1-sol", 272_001, "2026-11-21", (4, 15, 0.2)),
        ("gemini-4-argon", 200_000, "2026-11-21", (4, 20, 0.2)),  # a router may run into December
        ("deepseek/deepseek-flash", 1_000_000, "2026-11-21", (0.3, 1.2, 0.006)),
        ("deepseek/deepseek-v4-pro", 1_000_000, "2026-11-21", (1.32, 3.96, 0.044)),
        ("zai/glm-5.3-flash", 1_000_000, "2026-11-21", (0.15, 0.5, 0.03)),  # since September; before it was half
    ],
)
def test_the_most_it_can_cost(name: str, context: int, now: str, rates: tuple[float, float, float]) -> None:
    most = shipped(name).most(context, at(now))
    assert (most.input, most.output, most.cached) == pytest.approx(rates)


def test_a_price_that_has_ended_is_held_for_no_more() -> None:
    def period(start: dt.date | None, rate: float) -> Period:
        return Period(StartDateConstraint(start) if start else None, (Rates(-1, rate, rate, rate),))

    price = ListPrice((period(None, 1), period(dt.date(2026, 3, 1), 9), period(dt.date(2026, 6, 1), 2)))
    assert [price.most(1000, at(day)).output for day in ("2026-01-01", "2026-05-31", "2026-06-01")] == [9, 9, 2]


@pytest.mark.parametrize(
    ("asked", "provider"),
    [
        (model("no-such-model-9"), OPENAI),
        (model("gpt-6.1-sol"), Provider(base_url="https://gateway.example.com/v1")),  # what that asks is not known
        (model("gpt-6.1-sol"), Provider()),
        (model("gpt-6.1-sol"), Provider(base_url="https://ours.openai.azure.com/openai/v1")),  # a name of our own
        (model("sonar"), Provider(base_url="https://api.perplexity.ai")),  # a fee for each request comes on top
        (model("text-embedding-3-small"), OPENAI),  # for chat, whose answers would then cost nothing
    ],
)
def test_what_is_not_known_has_no_price(asked: Model, provider: Provider) -> None:
    assert find(asked, provider) is None


def test_embeddings_have_no_output_to_pay_for() -> None:
    price = find(model("text-embedding-3-small", abilities={"embeddings"}), OPENAI)
    assert price is not None and price.cost(1_000_000, 0, 0, NOON) == pytest.approx(0.02)


QUIET = """
import sys
import router.cli
assert "genai_prices" not in sys.modules, "every command would wait for it"
def hook(event, args):
    assert not event.startswith(("socket.", "subprocess.", "urllib.", "http.")), event
    assert not (event == "open" and isinstance(args[1], str) and "w" in args[1]), args
sys.addaudithook(hook)
from router.ledger.prices import Prices
from serving.catalogue import load
prices = Prices.of(load(), 0.0, all_hosted=True)
assert prices.source("gpt-6.1-sol") == "list" and "genai_prices" in sys.modules
"""


def test_nothing_phones_home_and_no_other_command_waits() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", QUIET], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
