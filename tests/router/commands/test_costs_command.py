"""`headgate costs`: a month's costs as a person reads them and as a program does, from a ledger that lies still."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.records import Usage
from serving.home import Home
from tests.fakes.asking import hosted, local
from tests.fakes.command_line import Said
from tests.fakes.spending import Spending

M = 1_000_000
NEAR, FAR, DARK = local(), hosted(), local("dark", price=None)
Say = Callable[..., Said]


@pytest.fixture
def spent(home: Home) -> None:
    """Two teams: $4 on local models, $60 on a hosted one, and one answer that nobody knows the price of."""
    with Spending(home.ledger) as spending:
        spending.answered(NEAR, usage=Usage(2 * M, M, M), team="search")
        spending.answered(FAR, usage=Usage(M, M), team="legal")
        spending.answered(DARK, usage=Usage(M, 0), team="legal")


def settings(home: Home, **found: Any) -> None:
    (home.root / "headgate.yaml").write_text(json.dumps(found))


def lines(said: Said) -> list[str]:
    assert said.code == 0, said.all
    return [" ".join(line.split()) for line in said.out.splitlines() if line]


def test_by_team(say: Say, home: Home, spent: None) -> None:
    settings(home, costs={"frontier": "gpt-6-astra"}, providers={"openai": {"enabled": True}})
    assert lines(say("costs", "--month", "2026-11")) == [
        "2026-11 (UTC)",
        "team requests answered prompt cached output local $ hosted $ total $",
        "legal 2 2 2.0M 0 1.0M 0.00 60.00 60.00+",
        "search 1 1 2.0M 1.0M 1.0M 4.00 0.00 4.00",
        "total 3 3 4.0M 1.0M 2.0M 4.00 60.00 64.00+",
        "Local $ is the internal rate: GPU hours that are paid for anyway.",
        "1 request is unpriced, and in no sum of money (+):",
        "dark (1): in headgate.yaml, costs.gpu_hour_usd: USD and costs.throughput.dark: {input: N, output: N}",
        # Above 272,000 tokens of prompt: $20, $2 and $75 a million. 20 + 2 + 75, and 20 + 75.
        "Everything to gpt-6-astra would have cost $192.00; these 2 answers cost $64.00: saved $128.00 (67 %).",
        "The comparison leaves out 1: of unknown cost or estimated usage, or embeddings.",
    ]


def test_a_model_without_any_price_costs_no_0(say: Say, spent: None) -> None:
    assert "dark 1 1 1.0M 0 0 - - unpriced" in lines(say("costs", "--month", "2026-11", "--by", "model"))


def test_json_says_the_same(say: Say, home: Home, spent: None) -> None:
    settings(home, costs={"frontier": "gpt-6-astra"})
    found = say("costs", "--month", "2026-11", "--by", "model", "--json").json()
    near = {
        "model": "near", "requests": 1, "answered": 1, "prompt_tokens": 2 * M, "cached_tokens": M,
        "output_tokens": M, "local_usd": 4.0, "hosted_usd": 0.0, "total_usd": 4.0, "unpriced": 0, "estimated": 0,
    }  # fmt: skip
    assert (found["month"], found["by"]) == ("2026-11", "model")
    assert [row["model"] for row in found["rows"]] == ["far", "near", "dark"]
    assert found["rows"][1] == pytest.approx(near)
    dark = found["rows"][2]
    assert (dark["local_usd"], dark["hosted_usd"], dark["total_usd"], dark["unpriced"]) == (None, None, None, 1)
    assert (found["total"]["requests"], found["total"]["total_usd"], found["total"]["unpriced"]) == (3, 64, 1)
    setting = "costs.gpu_hour_usd: USD and costs.throughput.dark: {input: N, output: N}"
    assert found["unpriced"] == [{"model": "dark", "place": "local", "requests": 1, "setting": setting}]
    assert found["saving"] == pytest.approx({
        "frontier": "gpt-6-astra", "enabled": False, "requests": 2, "left_out": 1, "frontier_usd": 192.0,
        "paid_usd": 64.0, "saved_usd": 128.0, "saved_share": 128 / 192,
    })  # fmt: skip


def test_a_frontier_that_would_have_been_cheaper(say: Say, home: Home, spent: None) -> None:
    settings(home, costs={"frontier": "zai/glm-5.3-flash"})
    # 0.15 + 0.03 + 0.50, and 0.15 + 0.50
    assert (
        "Everything to zai/glm-5.3-flash (not enabled) would have cost $1.3300; these 2 answers cost $64.00: "
        "saved -$62.67 (-4712 %)."
    ) in lines(say("costs", "--month", "2026-11"))


def test_a_frontier_without_a_price(say: Say, home: Home, spent: None) -> None:
    settings(home, costs={"frontier": "azure/gpt-6.1-sol"})
    assert (
        "Nothing to compare with: azure/gpt-6.1-sol is unpriced. To change it: in headgate.yaml, "
        "models.azure/gpt-6.1-sol.price: {input: USD, output: USD}"
    ) in lines(say("costs", "--month", "2026-11"))
    assert say("costs", "--month", "2026-11", "--json").json()["saving"] is None


def test_a_model_that_has_got_a_price_since(say: Say, home: Home, spent: None) -> None:
    """By the settings that were named."""
    throughput = {"dark": {"input": 1000, "output": 100}}
    settings(home, attach=[{"url": "unix:/x", "name": "dark"}], costs={"gpu_hour_usd": 2.5, "throughput": throughput})
    found = lines(say("costs", "--month", "2026-11"))
    assert "dark (1): it has a price by now; what is written down stays" in found
    assert "Local $ is the internal rate: GPU hours that are paid for anyway, at 50 % utilisation." in found


@pytest.mark.parametrize("args", [(), ("--month", "2025-01"), ("--by", "lane")])
def test_before_anything_was_asked(say: Say, home: Home, args: tuple[str, ...]) -> None:
    assert "has ended yet." in say("costs", *args).out
    found = say("costs", *args, "--json").json()
    assert (found["rows"], found["total"]["requests"], found["saving"]["saved_share"]) == ([], 0, None)
    assert not home.ledger.exists(), "a report makes no ledger"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--by", "key"), "--by: 'key' is nothing to sum by; choose one of team, model, lane"),
        (("--month", "2026-13"), "--month: '2026-13' is no month; give e.g. 20"),
        (("--month", "11-2026"), "--month: '11-2026' is no month; give e.g. 20"),
        (("--month", "２０２６-11"), "is no month"),
    ],
)
def test_what_cannot_be_asked(say: Say, args: tuple[str, ...], said: str) -> None:
    found = say("costs", *args)
    assert found.code == 1 and said in found.err and not found.out


def test_a_ledger_that_is_none(say: Say, home: Home) -> None:
    Path(home.ledger).write_text("nothing of the kind, and long enough to be looked at" * 40)
    found = say("costs")
    assert found.code == 1 and str(home.ledger) in found.err and "Traceback" not in found.err
