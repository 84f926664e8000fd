"""New schemas a minute: what engines compile is counted once, by key, and comes back evenly."""

from __future__ import annotations

import pytest

from router.errors import TooFast
from router.ledger import forms
from router.ledger.forms import Forms
from tests.fakes.asking import caller


def test_new_schemas_are_counted_and_known_ones_are_free() -> None:
    kept, who = Forms(2), caller()
    for one in (b"a", b"b", b"a", b"b", b""):
        kept.admit(who, one, 0.0)
    with pytest.raises(TooFast, match="schemas_per_minute") as refused:
        kept.admit(who, b"c", 0.0)
    assert refused.value.retry_after == pytest.approx(30)
    kept.admit(who, b"a", 0.0)
    with pytest.raises(TooFast):  # one that was rotated brings no more
        kept.admit(caller(key="k2", first=who.key), b"c", 0.0)
    kept.admit(caller(key="k2"), b"c", 0.0)
    kept.admit(who, b"c", 0.0)  # somebody else has had it compiled
    kept.admit(who, b"d", 30.1)
    with pytest.raises(TooFast):
        kept.admit(who, b"e", 30.2)


def test_what_was_refused_is_still_new() -> None:
    kept, who = Forms(1), caller()
    kept.admit(who, b"a", 0.0)
    for _ in range(2):
        with pytest.raises(TooFast):
            kept.admit(who, b"b", 1.0)


def test_without_a_limit_nothing_is_counted() -> None:
    kept = Forms(0)
    for number in range(1000):
        kept.admit(caller(), str(number).encode(), 0.0)
    assert not kept._known and not kept._ends


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "MOST_KNOWN", 5)
    monkeypatch.setattr(forms, "MOST_KEYS", 5)
    kept = Forms(60)
    for number in range(50):
        kept.admit(caller(key=str(number)), str(number).encode(), number * 10.0)
    assert len(kept._known) == 5
    assert len(kept._ends) <= 6
