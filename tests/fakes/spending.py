"""A ledger's file with requests of chosen costs, written by the real ledger."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import TracebackType
from typing import Any

from router.ledger.budgets import Budgets
from router.ledger.entries import Ledger
from router.ledger.metrics import Metrics
from router.ledger.store import Store
from router.records import Attempt, Usage
from serving.catalogue import Model
from tests.fakes.asking import ask, caller, decided

NOVEMBER = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC).timestamp()
NOTHING = Usage()
"""The answer named no tokens."""


class Spending:
    """Writes one request after the other, each with its own time."""

    def __init__(self, path: Path) -> None:
        self.store, self.now, self.count = Store(path), NOVEMBER, 0
        self.ledger = Ledger(self.store, Budgets(), Metrics(), clock=lambda: self.now)

    def __enter__(self) -> Spending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.store.close()

    def answered(
        self, *models: Model, usage: Usage = NOTHING, team: str = "search", named: str = "auto", at: float = NOVEMBER,
        took: float = 0.0, **asked: Any,
    ) -> None:  # fmt: skip
        """A request that the last of `models` answered; those before it may have worked on it in vain."""
        self.now, self.count = at, self.count + 1
        who = caller(team=team, key=f"k-{team}")
        request = ask(named, **asked)._replace(id=f"req_{self.count}")
        with self.ledger.entry(request, who, decided(request, who, *models)) as entry:
            for model in models:
                outcome = "answered" if model is models[-1] else "reset"
                sent = model.place == "hosted"
                entry.attempts.append(Attempt(model.name, model.name, model.place, outcome, 200, 1.0, sent=sent))
            entry.model, entry.usage = models[-1], usage
            self.now += took

    def refused(self, team: str = "search") -> None:
        """A request that was decided and that nobody may answer."""
        self.count += 1
        who, request = caller(team=team, key=f"k-{team}"), ask()._replace(id=f"req_{self.count}")
        with self.ledger.entry(request, who, decided(request, who)) as entry:
            entry.outcome = "refused"
