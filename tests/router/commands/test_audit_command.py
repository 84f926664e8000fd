"""`headgate audit egress` as a person and as a program use it, from files that lie still."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router.commands import audit
from router.commands.context import Stop
from serving.home import Home
from tests.fakes import month
from tests.fakes.command_line import Said

Say = Callable[..., Said]
NOW = 1_795_000_000.0


@pytest.fixture
def lived(home: Home, monkeypatch: pytest.MonkeyPatch) -> month.Month:
    """Three days that ended just now."""
    monkeypatch.setattr(month, "START", time.time() - 3.1 * 86400)
    return month.Month(home, requests=150, days=3, boots=2).write()


def test_what_left_is_shown_with_whom_it_went_to(say: Say, lived: month.Month) -> None:
    said = say("audit", "egress", "--since", "4d")
    assert said.code == 0, said.all
    assert "0 bytes unaccounted" in said.out and "Ledger, book and kernel agree." in said.out
    assert "api.far.example" in said.out and "Kernel, for" in said.out


def test_json_has_the_same(say: Say, lived: month.Month) -> None:
    found = say("audit", "egress", "--since", "4d", "--json").json()
    assert found["verdict"] == "balanced" and found["requests"] >= 150 and found["unaccounted_bytes"] == 0
    assert found["left"] == found["to"][0]["requests"] > 0


def test_what_does_not_agree_is_said_and_ends_with_1(say: Say, lived: month.Month, home: Home) -> None:
    raw = bytearray(home.book.read_bytes())
    raw[len(raw) // 2] ^= 1
    home.book.write_bytes(raw)
    said = say("audit", "egress", "--since", "4d")
    assert said.code == 1
    assert "Discrepancies:" in said.out and "Book, line" in said.out and "do not agree" in said.out
    assert say("audit", "egress", "--since", "4d", "--json").json()["verdict"] == "not balanced"


def test_what_nobody_can_say_is_said_and_ends_with_3(say: Say, lived: month.Month, home: Home) -> None:
    """The note says that entries were written which were not on the disk for sure: a power cut takes such."""
    length = home.book.stat().st_size
    home.book.with_name("book.jsonl.head").write_text(f"{length + 10:020d} {'0' * 64} {length:020d}\n")
    said = say("audit", "egress", "--since", "4d")
    assert said.code == 3, said.all
    assert "Cannot be said: 1" in said.out and "a power cut" in said.out
    assert "cannot be held against each other" in said.out and "Discrepancies" not in said.out


def test_the_export_goes_to_a_new_folder_and_can_be_verified(say: Say, lived: month.Month, tmp_path: Path) -> None:
    folder = tmp_path / "statement"
    said = say("audit", "egress", "--since", "4d", "--export", str(folder))
    assert said.code == 0, said.all
    assert sorted(p.name for p in folder.iterdir()) == [
        "book.jsonl", "kernel.jsonl", "key.pem", "ledger.jsonl", "statement.json", "statement.sig",
    ]  # fmt: skip
    key = json.loads((folder / "statement.json").read_bytes())["key"]
    assert key in said.out
    again = say("audit", "egress", "--export", str(folder))
    assert again.code == 3 and "is there already" in again.err


@pytest.mark.parametrize("there", [False, True])
def test_a_home_without_an_installation_is_refused_and_nothing_is_made(
    there: bool, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error must not come out as a signed statement that nothing left."""
    wrong = tmp_path / "elsewhere"
    if there:
        wrong.mkdir()
    monkeypatch.setenv("HEADGATE_HOME", str(wrong))
    said = say("audit", "egress", "--export", str(tmp_path / "out"))
    assert said.code == 3 and said.out == ""
    what = "has no ledger and no book" if there else "is not there"
    assert said.err == f"headgate: the home folder {wrong} {what}; set HEADGATE_HOME to that of the installation\n"
    assert not (tmp_path / "out").exists() and (list(wrong.iterdir()) == [] if there else not wrong.exists())


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("30d", NOW - 30 * 86400), ("12h", NOW - 43200), ("90m", NOW - 5400), ("2w", NOW - 14 * 86400),
        ("2026-11-01", 1793491200.0), ("2026-11-01T01:00", 1793494800.0), ("2026-11-01T01:00+01:00", 1793491200.0),
        ("999999w", 0.0),
    ],
)  # fmt: skip
def test_times_can_be_given_as_so_long_ago_or_as_dates(text: str, at: float) -> None:
    assert audit._moment(text, "--since", NOW) == at


@pytest.mark.parametrize("text", ["30", "d", "soon", "2026-13-01", "-3d", "１d"])
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Stop, match="is no time"):
        audit._moment(text, "--since", NOW)


@pytest.mark.parametrize("given", ["--since 2100-01-01", "--since 1h --until 2h", "--until 2100-01-01"])
def test_a_window_has_to_lie_in_the_past(given: str, say: Say, lived: month.Month) -> None:
    said = say("audit", "egress", *given.split())
    assert said.code == 3 and "before --until" in said.err
