"""A budget is never overspent, not by a cent of rounding, a race, a month's end or a restart."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import LimitReached, Unavailable
from router.ledger import counters
from router.ledger.budgets import Budgets
from router.ledger.counters import Shared
from router.ledger.entries import Ledger, settle_lost
from router.ledger.keys import KeyBook
from router.ledger.metrics import Metrics
from router.ledger.store import Event, LedgerError, Store, connect
from router.records import Usage
from serving.catalogue import DataClass, KeyDefaults
from tests.fakes.asking import ask, caller, decided, local

JUNE, JULY = (float(calendar.timegm((2026, month, 1, 0, 0, 0))) for month in (6, 7))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "ledger.sqlite")
    yield made
    with contextlib.suppress(LedgerError):
        made.close()


def loaded(store: Store, now: float) -> Budgets:
    """Budgets as a new start finds them."""
    store.flush()
    budgets = Budgets()
    with contextlib.closing(connect(store.path, read_only=True)) as db:
        budgets.load(db, now)
    return budgets


@pytest.mark.parametrize("amount", [0.02, 0.1, 1 / 3, 0.07, 1e-7, 19.99])
async def test_of_a_thousand_at_once_a_budget_for_fifty_admits_fifty(amount: float) -> None:
    budgets, who = Budgets(), caller(budget_usd=50 * amount)
    admitted = 0

    async def one() -> None:
        nonlocal admitted
        await asyncio.sleep(0)
        with contextlib.suppress(LimitReached):
            hold = budgets.hold(who, amount, JUNE)
            admitted += 1
            await asyncio.sleep(0)
            budgets.settle(hold, amount)

    await asyncio.gather(*(one() for _ in range(1000)))
    assert admitted == 50
    assert budgets.used(who.key, JUNE) == pytest.approx(who.budget_usd)


async def test_a_key_that_was_rotated_goes_on_with_what_it_has_spent(store: Store) -> None:
    defaults = KeyDefaults()
    with contextlib.closing(KeyBook(store.path, "pepper")) as book:
        old, _ = book.create("t", DataClass.public, defaults, budget_usd=1.0)
        other, _ = book.create("t", DataClass.public, defaults, budget_usd=1.0)
        middle, _ = book.rotate(old.id, 60)
        new, _ = book.rotate(middle.id, 60)
    for number, key in enumerate((old, middle, new, other)):
        store.append(Event(JUNE, "opened", f"r{number}", key.id, {}, 0.25))
        store.append(Event(JUNE, "closed", f"r{number}", key.id, {}, 0.25))
    budgets = loaded(store, JUNE)
    assert budgets.used(new.caller().account, JUNE) == pytest.approx(0.75)
    hold = budgets.hold(new.caller(), 0.2, JUNE)
    with pytest.raises(LimitReached):  # until its end it spends of the same
        budgets.hold(old.caller(), 0.2, JUNE)
    budgets.settle(hold, 0.0)
    budgets.hold(old.caller(), 0.2, JUNE)
    budgets.hold(other.caller(), 0.7, JUNE)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=60), st.floats(0, 10))
def test_holds_never_pass_the_budget_and_settling_leaves_costs(pairs: list[tuple[float, float]], usd: float) -> None:
    budgets, who, spent, holds = Budgets(), caller(budget_usd=usd), 0.0, []
    for amount, cost in pairs:
        with contextlib.suppress(LimitReached):
            holds.append((budgets.hold(who, amount, JUNE), min(amount, cost)))
            assert budgets.used(who.key, JUNE) <= usd + 1e-11 or amount == 0
    for hold, cost in holds:
        budgets.settle(hold, cost)
        spent += cost
    assert budgets.used(who.key, JUNE) == pytest.approx(spent, abs=1e-9)


def test_the_refusal_names_the_key_the_month_and_the_line_that_changes_it() -> None:
    budgets, who = Budgets(), caller(budget_usd=1.0)
    budgets.hold(who, 0.75, JUNE)
    with pytest.raises(LimitReached) as refused:
        budgets.hold(who, 0.5, JUNE)
    assert (refused.value.status, refused.value.code) == (429, "budget_exceeded")
    assert "$0.7500 of its $1.0000 for 2026-06" in refused.value.message
    assert "headgate keys set k1 --budget USD" in refused.value.message
    assert budgets.used(who.key, JUNE) == 0.75  # what was refused holds nothing


def test_settling_twice_is_settling_once() -> None:
    budgets, who = Budgets(), caller(budget_usd=1.0)
    hold, other = budgets.hold(who, 0.5, JUNE), budgets.hold(who, 0.25, JUNE)
    budgets.settle(hold, 0.125)
    budgets.settle(hold, 0.125)
    assert budgets.used(who.key, JUNE) == 0.375
    budgets.settle(other, 0)
    assert budgets.used(who.key, JUNE) == 0.125


def test_a_cost_above_the_hold_is_charged_in_full() -> None:
    budgets, who = Budgets(), caller(budget_usd=1.0)
    budgets.settle(budgets.hold(who, 0.5, JUNE), 2.0)
    assert budgets.used(who.key, JUNE) == 2.0
    with pytest.raises(LimitReached):
        budgets.hold(who, 0.0001, JUNE)


def test_keys_share_nothing_and_no_budget_is_no_limit() -> None:
    budgets = Budgets()
    budgets.hold(caller(key="a", budget_usd=1.0), 1.0, JUNE)
    budgets.hold(caller(key="b", budget_usd=1.0), 1.0, JUNE)
    budgets.hold(caller(key="c"), 1e9, JUNE)
    assert budgets.used("c", JUNE) == 1e9


def test_what_costs_nothing_passes_an_empty_budget() -> None:
    budgets, who = Budgets(), caller(budget_usd=0.0)
    budgets.hold(who, 0.0, JUNE)
    with pytest.raises(LimitReached):
        budgets.hold(who, 1e-9, JUNE)


def test_a_month_ends_in_utc_whatever_the_machine_thinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    time.tzset()
    try:
        budgets, who = Budgets(), caller(budget_usd=1.0)
        late = budgets.hold(who, 1.0, JULY - 0.001)
        assert (late.month, budgets.used(who.key, JULY)) == ("2026-06", 0.0)
        budgets.hold(who, 1.0, JULY)  # a new month, a new budget
        budgets.settle(late, 0.25)  # after midnight, charged where it was admitted
        assert (budgets.used(who.key, JULY - 1), budgets.used(who.key, JULY)) == (0.25, 1.0)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_restart_finds_what_was_spent_charged_to_the_month_of_admission(store: Store) -> None:
    now = [JULY - 1]
    ledger, who = Ledger(store, Budgets(), Metrics(), clock=lambda: now[0]), caller(budget_usd=1.0)
    with ledger.entry(ask(id="req_old"), who, decided(ask(), who, local())) as entry:
        entry.model, entry.usage = local(), Usage(1000, 1000)
        now[0] = JULY + 1  # the answer ends after midnight
    with ledger.entry(ask(id="req_new"), who, decided(ask(), who, local())) as entry:
        entry.model, entry.usage = local(), Usage(500, 0)
    for month, spent in ((JULY - 1, 0.003), (JULY + 1, 0.0005)):
        assert ledger.budgets.used(who.key, month) == pytest.approx(spent)
    assert loaded(store, JULY + 5).used(who.key, JULY + 5) == pytest.approx(0.0005)


def test_requests_an_earlier_router_lost_are_settled_at_their_hold(store: Store) -> None:
    for number, held in enumerate((0.25, 0.5, None)):
        store.append(Event(JUNE + 1, "opened", f"r{number}", "k1", {}, held))
    store.append(Event(JUNE + 2, "closed", "r0", "k1", {}, 0.125))
    store.flush()
    assert settle_lost(store, JUNE + 9) == 2
    # On disk already: whoever loads budgets next counts it.
    with contextlib.closing(connect(store.path, read_only=True)) as db:
        budgets = Budgets()
        budgets.load(db, JUNE + 9)
    assert budgets.used("k1", JUNE + 9) == pytest.approx(0.125 + 0.5)
    lost, unpriced = store.events("r1")[-1], store.events("r2")[-1]
    assert (lost["outcome"], lost["cost"], lost["estimated"], lost["unpriced"]) == ("lost", 0.5, True, False)
    assert (unpriced["outcome"], unpriced["cost"], unpriced["unpriced"]) == ("lost", None, True)
    assert settle_lost(store, JUNE + 10) == 0
    assert len(store.events("r1")) == 2


def test_a_request_lost_last_month_is_not_charged_to_this_one(store: Store) -> None:
    store.append(Event(JULY - 5, "opened", "r0", "k1", {}, 0.5))
    store.flush()
    assert settle_lost(store, JULY + 5) == 1
    assert loaded(store, JULY + 5).used("k1", JULY + 5) == 0


def test_requests_of_workers_that_live_are_never_closed_as_lost(store: Store) -> None:
    with contextlib.closing(Store(store.path)) as dead, contextlib.closing(Store(store.path)) as living:
        for number, one in enumerate((dead, living)):
            one.append(Event(JUNE, "opened", f"r{number}", "k1", {}, 0.5))
            one.flush()
    assert settle_lost(store, JUNE + 1, gone=[]) == 0
    assert settle_lost(store, JUNE + 1, gone=[dead.writer]) == 1
    assert settle_lost(store, JUNE + 1, gone=[dead.writer]) == 0
    assert [len(store.events(request)) for request in ("r0", "r1")] == [2, 1]
    assert settle_lost(store, JUNE + 2) == 1  # nobody else lives
    assert len(store.events("r1")) == 2


def test_an_empty_ledger_has_spent_nothing(store: Store) -> None:
    assert settle_lost(store, JUNE) == 0
    assert loaded(store, JUNE).used("k1", JUNE) == 0


# ---- shared by several workers


@pytest.fixture
def table(tmp_path: Path) -> Path:
    made = tmp_path / "budgets.table"
    counters.make(made)
    return made


def _spend(path: Path, start: Barrier, admitted: SimpleQueue[int]) -> None:
    budgets, who, holds = Budgets(Shared(path)), caller(budget_usd=50 * 0.07), []
    start.wait()
    for _ in range(250):
        with contextlib.suppress(LimitReached):
            holds.append(budgets.hold(who, 0.07, JUNE))
    for hold in holds:
        budgets.settle(hold, 0.07)
    admitted.put(len(holds))


def test_bu_001_of_a_thousand_at_four_workers_a_budget_for_fifty_admits_fifty(table: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, admitted = context.Barrier(4), context.SimpleQueue()
    children = [context.Process(target=_spend, args=(table, start, admitted)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sum(admitted.get() for _ in children) == 50
    with contextlib.closing(Shared(table)) as shared:
        assert Budgets(shared).used("k1", JUNE) == pytest.approx(50 * 0.07)


def test_what_was_spent_without_a_budget_counts_once_the_key_has_one(table: Path) -> None:
    with contextlib.closing(Shared(table)) as one, contextlib.closing(Shared(table)) as other:
        Budgets(one).hold(caller(), 0.75, JUNE)
        with pytest.raises(LimitReached):
            Budgets(other).hold(caller(budget_usd=1.0), 0.5, JUNE)


def test_where_nobody_knows_what_is_spent_a_key_with_a_budget_is_refused_and_others_go_on(table: Path) -> None:
    free, bound = caller(key="free"), caller(key="bound", budget_usd=9.0)
    with contextlib.closing(Shared(table)) as stuck, contextlib.closing(Shared(table)) as mine:
        budgets = Budgets(mine)
        before = budgets.hold(bound, 1.0, JUNE)
        with stuck:
            with pytest.raises(Unavailable) as refused:
                budgets.hold(bound, 1.0, JUNE)
            assert (refused.value.status, refused.value.code) == (503, "ledger_unavailable")
            hold = budgets.hold(free, 1.0, JUNE)
            budgets.hold(bound, 0.0, JUNE)  # what costs nothing needs no sum
            budgets.settle(hold, 0.5)
            budgets.settle(before, 0.25)
        assert budgets.used("free", JUNE) == 0.0
        budgets.settle(budgets.hold(free, 1.0, JUNE), 1.0)  # what could not be counted then is counted now
        budgets.settle(budgets.hold(bound, 1.0, JUNE), 0.5)
        assert (budgets.used("free", JUNE), budgets.used("bound", JUNE)) == (1.5, 0.75)
