"""`explain --last`: whoever never saw an id finds the request, and learns nothing of what it said."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from router.commands import look
from router.commands.context import Stop
from router.commands.look import explain
from router.errors import NotFound
from router.records import Usage
from serving.home import Home
from tests.fakes.asking import ask, caller, decided, local
from tests.fakes.command_line import Said
from tests.fakes.spending import NOVEMBER, Spending

NEAR, DARK = local(), local("dark", price=None)
Say = Callable[..., Said]


@pytest.fixture
def asked(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    with Spending(home.ledger) as spending:
        spending.answered(NEAR, usage=Usage(1000, 500), named="cheap", took=1.5)
        spending.answered(DARK, usage=Usage(10, 5), at=NOVEMBER + 10)
        spending.now = NOVEMBER + 30
        spending.ledger.refused("req_early", caller(), "chat/completions", NotFound("no", code="model_not_found"))
        spending.now = NOVEMBER + 40
        request = ask("cheap")._replace(id="req_open")
        spending.ledger.entry(request, caller(), decided(request, caller(), NEAR)).__enter__()


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.usefixtures("asked")
def test_the_last_requests_without_an_id(say: Say) -> None:
    said = lines(say("explain", "--last", "20").out)
    assert said[0] == "when request asked → answered outcome status cost $ ms"
    assert [line.partition(" ")[2].partition(" ")[2] for line in said[1:5]] == [
        "req_open cheap → … open",
        "req_early not read → nobody refused: model_not_found 404",
        "req_2 auto → dark answered 200 unpriced 0",
        said[4].partition(" ")[2].partition(" ")[2],
    ]
    assert "req_1 cheap → near answered 200 0.00" in said[4] and said[4].endswith(" 1500")
    assert said[5:] == ["Why one went where it did: headgate explain --request req_open"]
    found = say("explain", "--last", "2", "--json").json()
    assert [one["request"] for one in found] == ["req_open", "req_early"]
    assert set(found[0]) == {
        "at", "request", "key", "team", "asked", "model", "outcome", "status", "error", "cost_usd", "total_ms",
    }  # fmt: skip


@pytest.mark.usefixtures("asked")
def test_without_a_number_the_one_that_came_last_is_explained(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(_: Home, path: str) -> dict[str, Any]:
        asked.append(path)
        return {"request": "req_open", "events": []}

    monkeypatch.setattr(look, "ask_admin", answer)
    assert say("explain", "--last").out.split() == ["request", "req_open"]
    assert say("explain", "--last", "--json").json()["request"] == "req_open"
    assert asked == ["/requests/req_open"] * 2
    assert "a number goes with --last: headgate explain --last 3" in say("explain", "3").err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("asked")
def test_a_person_who_names_nothing_gets_the_list(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADGATE_HOME", str(home.root))
    monkeypatch.setattr(sys, "stdin", Terminal())
    explain(None, "", "", "", False, False)
    assert "req_early" in capfd.readouterr().out
    with pytest.raises(Stop, match="give a request body on stdin"):
        explain(None, "", "", "public", False, False)


def test_an_empty_ledger_is_said_and_what_does_not_go_together(say: Say) -> None:
    assert say("explain", "--last").out == say("explain", "--last", "5").out
    assert say("explain", "--last", "5").out == "The ledger holds no request yet; to make one: headgate chat Hello\n"
    assert json.loads(say("explain", "--last", "5", "--json").out) == []
    for more in (["--request", "req_1"], ["--key", "k"], ["--data-class", "public"]):
        assert "--last says which request; give it alone" in say("explain", "--last", "5", *more).err
