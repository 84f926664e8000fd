"""The last requests out of the ledger: the newest first, each with how it ended, at the cost of a few."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from router.errors import NotFound
from router.ledger.recent import LAST, last
from router.ledger.schema import connect
from router.ledger.store import Event, LedgerError, Store
from router.records import Usage
from tests.fakes.asking import ask, caller, decided, hosted, local
from tests.fakes.spending import NOVEMBER, Spending

NEAR, FAR = local(), hosted()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with Spending(path) as spending:
        spending.answered(NEAR, usage=Usage(10, 5), named="cheap", took=1.5)
        spending.answered(NEAR, FAR, usage=Usage(10, 5), at=NOVEMBER + 10)
        spending.now = NOVEMBER + 20
        spending.refused()
        spending.now = NOVEMBER + 30
        spending.ledger.refused("req_early", caller(), "chat/completions", NotFound("no", code="model_not_found"))
        spending.now = NOVEMBER + 40
        request = ask("frontier")._replace(id="req_open")
        spending.ledger.entry(request, caller(), decided(request, caller(), FAR)).__enter__()
    return path


def test_the_newest_first_with_what_was_asked_who_answered_and_how_it_ended(ledger: Path) -> None:
    found = last(ledger, 10)
    assert [(r.request, r.asked, r.model, r.outcome, r.status) for r in found] == [
        ("req_open", "frontier", None, "open", None),
        ("req_early", None, None, "refused", 404),
        ("req_3", "auto", None, "refused", 200),
        ("req_2", "auto", "far", "answered", 200),
        ("req_1", "cheap", "near", "answered", 200),
    ]
    assert (found[1].error, found[4].total_ms, found[4].at) == ("model_not_found", 1500.0, NOVEMBER)
    assert found[3].cost_usd is not None and found[3].cost_usd > 0 and found[0].cost_usd is None
    assert [r.request for r in last(ledger, 2)] == ["req_open", "req_early"]


def test_a_large_ledger_is_not_searched_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(Store(path)) as store:
        for n in range(5000):
            store.append(Event(NOVEMBER + n, "opened", f"req_{n}", "k", {"asked": "auto"}))
            store.append(Event(NOVEMBER + n, "closed", f"req_{n}", "k", {"outcome": "answered"}))
    with contextlib.closing(connect(path, read_only=True)) as db:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        db.set_progress_handler(count, 1)
        found = db.execute(LAST, {"most": 10}).fetchall()
    assert [row[1] for row in found] == [f"req_{n}" for n in range(4999, 4989, -1)]
    assert steps < 5000


def test_nothing_was_ever_asked(tmp_path: Path) -> None:
    assert last(tmp_path / "ledger.sqlite", 10) == []
    (tmp_path / "ledger.sqlite").write_bytes(b"")
    with pytest.raises(LedgerError, match="is empty"):
        last(tmp_path / "ledger.sqlite", 10)
