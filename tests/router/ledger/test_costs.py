"""What a month cost: by team, model and lane, local and hosted apart, and beside one frontier model."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from router.ledger.costs import Report, frontier_cost, frontier_model, read
from router.ledger.prices import Prices
from router.ledger.store import Event, LedgerError, Store
from router.records import Usage
from serving.catalogue import Catalogue, Costs, Model, Price, Provider, Site
from tests.fakes.asking import hosted, local
from tests.fakes.spending import NOVEMBER, Spending

MONTH = dt.date(2026, 11, 1)
NEAR, FAR = local(), hosted()
"""$1 and $2, $10 and $50 a million tokens."""
M = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def dear(prompt: int, cached: int, output: int, at: float) -> float:
    """A frontier of $20, $2 and $100 a million tokens."""
    return ((prompt - cached) * 20 + cached * 2 + output * 100) / M


def by(path: Path, group: str, month: dt.date = MONTH) -> dict[str, tuple[Any, ...]]:
    """Requests, answered, local and hosted dollars of each group."""
    found = read(path, group, month, dear)
    return {r.name: (r.requests, r.answered, round(r.local, 9), round(r.hosted, 9)) for r in found.rows}


def test_by_team_model_and_lane(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(M, M), team="search", named="cheap")  # $3
        spent.answered(NEAR, usage=Usage(M, 0), team="legal", named="private")  # $1
        spent.answered(FAR, usage=Usage(M, M, 5), team="legal", named="frontier")  # $60
        spent.answered(NEAR, usage=Usage(M, 0), team="legal", named="cheap")  # $1
        spent.answered(FAR, usage=Usage(0, M), team="legal", named="frontier")  # $50
        spent.refused("search")
    assert by(path, "team") == {"search": (2, 1, 3, 0), "legal": (4, 4, 2, 110)}
    assert by(path, "model") == {"near": (3, 3, 5, 0), "far": (2, 2, 0, 110), "": (1, 0, 0, 0)}
    assert by(path, "lane") == {
        "cheap": (2, 2, 4, 0),
        "private": (1, 1, 1, 0),
        "frontier": (2, 2, 0, 110),
        "auto": (1, 0, 0, 0),
    }
    total = read(path, "lane", MONTH).total
    assert (total.requests, total.answered, total.prompt, total.cached, total.output) == (6, 5, 4 * M, 5, 3 * M)
    assert (total.local, total.hosted, total.total) == pytest.approx((5, 110, 115))


def test_the_dearest_comes_first(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(M, 0), team="little")
        spent.answered(FAR, usage=Usage(M, 0), team="much")
    assert [row.name for row in read(path, "team", MONTH).rows] == ["much", "little"]


def written(path: Path, opened: dict[str, Any], closed: dict[str, Any], cost: float | None) -> None:
    """One request as a record says it."""
    store = Store(path)
    store.append(Event(NOVEMBER, "opened", "req_1", "k", {"team": "t", "route": "chat/completions"} | opened))
    store.append(Event(NOVEMBER, "closed", "req_1", "k", {"attempts": []} | closed, cost))
    store.close()


@pytest.mark.parametrize(
    ("asked", "closed", "name"),
    [
        ("auto", {"lane": "cheap"}, "cheap"),
        ("frontier", {"lane": None}, "frontier"),  # nobody answered
        ("private", {}, "private"),  # written before records named the lane
        ("auto", {}, "auto"),
        ("far", {}, "named"),
    ],
)
def test_the_lane_is_what_the_record_says_else_what_was_asked(
    path: Path, asked: str, closed: dict[str, Any], name: str
) -> None:
    written(path, {"asked": asked}, closed, 0.0)
    assert list(by(path, "lane")) == [name]


def test_an_attempt_in_vain_counts_where_it_was_made(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(FAR, NEAR, usage=Usage(M, 0))
    (row,) = read(path, "model", MONTH).rows
    # The provider may have worked on it: what was held for that, beside the dollar of the local answer.
    assert row.name == "near" and row.local == pytest.approx(1) and row.hosted > 0
    assert row.local + row.hosted == pytest.approx(row.total) and row.estimated == 1


@pytest.mark.parametrize(
    ("when", "month"),
    [
        ("2026-11-01T00:00:00", (2026, 11)), ("2026-11-30T23:59:59", (2026, 11)), ("2026-10-31T23:59:59", (2026, 10)),
        ("2026-12-31T23:59:59", (2026, 12)), ("2027-01-01T00:00:00", (2027, 1)),
    ],
)  # fmt: skip
def test_a_request_belongs_to_the_month_it_was_asked_in(path: Path, when: str, month: tuple[int, int]) -> None:
    with Spending(path) as spent:
        asked = dt.datetime.fromisoformat(when).replace(tzinfo=dt.UTC).timestamp()
        spent.answered(NEAR, usage=Usage(1, 1), at=asked, took=60)
    found = {(year, m) for year in (2026, 2027) for m in range(1, 13) if read(path, "team", dt.date(year, m, 1)).rows}
    assert found == {month}


def test_the_saving_is_over_the_same_tokens(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(M, M, 500_000))  # $3, for the test's rate has no price for cached tokens
        spent.answered(FAR, usage=Usage(M, 0))  # $10
    total = read(path, "team", MONTH, dear).total
    # 0.5 × 20 + 0.5 × 2 + 100, and 20
    assert (total.compared, total.left_out, total.paid, total.frontier) == pytest.approx((2, 0, 13, 131))


def test_what_is_not_known_is_in_neither_sum(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(M, 0))
        spent.answered(local(price=None), usage=Usage(M, M))  # unpriced
        spent.answered(NEAR, usage=Usage())  # estimated
        spent.answered(NEAR, usage=Usage(M), named="near", route="embeddings")  # nothing that it could have made
        spent.refused()  # costs nothing here nor there
    total = read(path, "team", MONTH, dear).total
    assert (total.compared, total.left_out, total.paid, total.frontier) == pytest.approx((1, 3, 1, 20))
    assert (total.unpriced, total.estimated) == (1, 1)


def test_a_frontier_that_is_cheaper_is_said_so(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(FAR, usage=Usage(M, 0))
    total = read(path, "team", MONTH, lambda prompt, cached, output, at: prompt / M).total
    assert total.frontier - total.paid == pytest.approx(1 - 10)


def test_every_answer_is_priced_at_the_time_it_was_asked_for(path: Path) -> None:
    seen: list[float] = []

    def noting(prompt: int, cached: int, output: int, at: float) -> float:
        seen.append(at)
        return 1.0

    with Spending(path) as spent:
        for hour in (0, 1):
            spent.answered(NEAR, usage=Usage(1, 1), at=NOVEMBER + hour * 3600, took=600)
    assert read(path, "team", MONTH, noting).total.frontier == 2
    assert sorted(seen) == [NOVEMBER, NOVEMBER + 3600]


def test_unpriced_models_are_named_and_in_no_sum(path: Path) -> None:
    dark = hosted("dark", price=None)
    with Spending(path) as spent:
        spent.answered(local(price=None), usage=Usage(M, M))
        spent.answered(local(price=None), usage=Usage(M, M))
        spent.answered(dark, NEAR, usage=Usage(M, 0))
    found = read(path, "team", MONTH)
    assert [(u.model, u.place, u.requests) for u in found.unpriced] == [("near", "local", 2), ("dark", "hosted", 1)]
    assert (found.total.unpriced, found.total.total) == (3, pytest.approx(1))


def test_a_request_whose_router_was_killed_costs_what_was_held(path: Path) -> None:
    written(path, {"asked": "auto"}, {"outcome": "lost", "model": None, "estimated": True, "unpriced": False}, 0.25)
    (row,) = read(path, "team", MONTH, dear).rows
    assert (row.requests, row.answered, row.local, row.hosted, row.left_out) == (1, 0, 0, 0.25, 1)


@pytest.mark.parametrize(("places", "local"), [(["local", "local"], 0.25), (["local", "hosted"], 0), ([], 0)])
def test_a_lost_request_that_could_only_be_answered_here_does_not_look_as_if_it_had_left(
    path: Path, places: list[str], local: float
) -> None:
    lost = {"outcome": "lost", "model": None, "estimated": True, "unpriced": False, "attempts": []}
    written(path, {"asked": "auto", "order": [{"place": place} for place in places]}, lost, 0.25)
    (row,) = read(path, "team", MONTH, dear).rows
    assert (row.local, row.hosted) == (local, 0.25 - local)


def test_a_record_that_could_not_be_written_is_counted_and_unpriced(path: Path) -> None:
    written(path, {"unwritable": "a bug"}, {"unwritable": "a bug"}, None)
    (row,) = read(path, "team", MONTH, dear).rows
    assert (row.requests, row.answered, row.total, row.unpriced, row.compared, row.left_out) == (1, 0, 0, 1, 0, 1)


def test_it_is_read_while_the_router_writes(path: Path) -> None:
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(1, 1))
        spent.store.flush()
        assert read(path, "team", MONTH).total.requests == 1
        spent.answered(NEAR, usage=Usage(1, 1))
        spent.store.flush()
        assert read(path, "team", MONTH).total.requests == 2


def test_a_ledger_that_is_damaged_is_one_sentence(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE events RENAME TO other")
    with pytest.raises(LedgerError, match="cannot be read: no such table"):
        read(path, "team", MONTH)


def catalogue(*models: Model, enabled: bool = False, frontier: str = "") -> Catalogue:
    providers = {"cloud": Provider(enabled=enabled), "on": Provider(enabled=True)}
    site = Site(costs=Costs(frontier=frontier))
    return Catalogue(models={m.name: m for m in models}, providers=providers, site=site)


CHEAP, DEAR = hosted("cheap-far", price=Price(input=1, output=2)), hosted("dear-far", price=Price(input=9, output=9))
ON = hosted("on-far", price=Price(input=5, output=5), provider="on")


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (catalogue(DEAR, CHEAP), "cheap-far"),  # none is enabled: the cheapest of all
        (catalogue(DEAR, CHEAP, ON), "on-far"),  # an enabled one first
        (catalogue(DEAR, CHEAP, ON, enabled=True), "cheap-far"),
        (catalogue(DEAR, CHEAP, ON, frontier="dear-far"), "dear-far"),
        (catalogue(DEAR, hosted("other-lane", lanes=("cheap",), price=Price(input=0, output=0))), "dear-far"),
        (catalogue(DEAR, hosted("dark", price=None)), "dear-far"),  # unpriced is not cheap
        (catalogue(hosted("dark", price=None)), None),
        (catalogue(NEAR), None),
    ],
)
def test_the_frontier_is_the_one_set_else_the_cheapest(found: Catalogue, name: str | None) -> None:
    chosen = frontier_model(found)
    assert (chosen.name if chosen else None) == name


def test_the_frontier_is_priced_by_its_list_with_tier_and_cache(path: Path) -> None:
    sol = hosted("sol", provider_model="gpt-6.1-sol", price=None, provider="openai")
    listing = Catalogue(models={"sol": sol}, providers={"openai": Provider(base_url="https://api.openai.com/v1")})
    priced = frontier_cost(Prices.of(listing, NOVEMBER, all_hosted=True), sol)
    with Spending(path) as spent:
        spent.answered(NEAR, usage=Usage(1000, 50, 100))  # $0.00231
        spent.answered(local(context=400_000), usage=Usage(300_000, 1000))  # the dearer tier: $1.215
    found: Report = read(path, "team", MONTH, priced)
    assert found.total.frontier == pytest.approx(0.00231 + 1.215)


def test_an_unpriced_frontier_is_no_comparison() -> None:
    dark = hosted("dark", price=None)
    assert frontier_cost(Prices.of(catalogue(dark), NOVEMBER), dark) is None
