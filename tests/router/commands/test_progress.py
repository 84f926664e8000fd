"""What a person sees while things start: what is new, why it failed, and never a wait without end."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from router.commands import progress
from router.commands.context import NotRunning, Stop
from router.commands.progress import Start, follow, show_closed, starting
from serving.home import Home
from tests.conftest import instance

URL = "unix:/nowhere"


class Sockets:
    """What serving and the router answer, one look after the other; the last answer stays."""

    def __init__(self) -> None:
        self.looks: list[list[dict[str, Any]]] = []
        self.endpoints: list[dict[str, Any]] | None = None
        self.door: dict[str, Any] | None = None
        self.scanner: dict[str, Any] = {"trouble": ""}

    def __call__(self, home: Home, name: str, path: str) -> Any:
        if name == "serving":
            return {"instances": self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]}
        if self.endpoints is None:
            raise NotRunning("not yet")
        return {"endpoints": self.endpoints, "door": self.door, "scanner": self.scanner}


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    made = Sockets()
    monkeypatch.setattr(progress, "ask_socket", made)
    monkeypatch.setattr(progress, "POLL_S", 0.005)
    return made


def start(home: Home, **changed: Any) -> Start:
    given: dict[str, Any] = {"home": home, "alive": lambda: True, "url": "http://127.0.0.1:1", "since": 0, **changed}
    return Start(**given)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200, markup=False, highlight=False)


def text(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_each_step_is_shown_once_and_brackets_are_no_markup(home: Home, sockets: Sockets, terminal: bool) -> None:
    steps = [("environment", "fetching [/torch]"), ("environment", "10 %"), ("starting", ""), ("ready", "")]
    sockets.looks = [[instance("small", URL, state=state, detail=detail)] for state, detail in steps]
    sockets.endpoints = [{"name": "small", "state": "ready", "address": URL}]
    out = console(terminal=terminal)
    follow(start(home), out)
    lines = [line.partition("] ")[2] for line in text(out).splitlines() if "s] small" in line]
    assert [line.strip() for line in lines] == [
        "small: making the engine's environment: fetching [/torch]", "small: starting", "small: ready",
    ]  # fmt: skip


def test_it_waits_until_the_router_knows_the_model(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("small", URL)]]
    sockets.endpoints = [{"name": "small", "state": "starting", "address": URL}]
    alive = iter([True] * 20)
    with pytest.raises(Stop):
        follow(start(home, alive=lambda: next(alive, False)), console())
    sockets.endpoints[0]["state"] = "ready"
    follow(start(home), console())


def test_a_server_that_the_router_will_not_use_is_told_and_not_waited_for(home: Home, sockets: Sockets) -> None:
    """It bears a hosted model's name, under which the door's endpoint is known too."""
    why = "big is the name of a hosted model; give the server another one with attach[].name"
    sockets.looks = [[instance("small", URL), instance("big", "http://127.0.0.1:2", attached=True)]]
    refused = {"name": "big", "state": "failed", "address": "http://127.0.0.1:2", "detail": why}
    far = {"name": "big", "state": "ready", "address": "door", "detail": ""}
    sockets.endpoints, sockets.door = [{"name": "small", "state": "ready", "address": URL}, refused, far], {"at": 5.0}
    out, soon = console(), {"alive": lambda: next(looks, False)}
    looks = iter([True] * 20)
    follow(start(home, **soon), out)
    assert f"big: FAILED: {why}\n" in text(out) and "big is left out; it is tried again\n" in text(out)
    with pytest.raises(Stop, match=f"^big: failed: {re.escape(why)}$"):  # with --attach
        follow(start(home, insisted=frozenset({"http://127.0.0.1:2"}), **soon), console())
    sockets.looks = [[instance("big", "http://127.0.0.1:2", attached=True)]]
    with pytest.raises(Stop, match=f"^big: failed: {re.escape(why)}$"):  # nothing is left that could answer
        follow(start(home, **soon), console())


def test_it_waits_for_a_door_that_has_not_said_anything(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("small", URL)]]
    sockets.endpoints = [
        {"name": "small", "state": "ready", "address": URL}, {"name": "big", "state": "closed", "address": "door"},
    ]  # fmt: skip
    sockets.door = {"at": 0.0}
    alive = iter([True] * 20)
    with pytest.raises(Stop):
        follow(start(home, alive=lambda: next(alive, False)), console())
    sockets.door = {"at": 5.0}  # closed, since its key is missing: no reason to wait
    follow(start(home), console())


def test_a_model_that_failed_ends_it_with_the_reason(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("other", URL), instance("small", URL, state="failed", detail="out of memory")]]
    out = console()
    with pytest.raises(Stop, match=r"^small: failed: out of memory$"):  # it wrote no log that could be named
        follow(start(home), out)
    assert "out of memory" not in text(out)  # the reason is said once
    (home.logs / "small.log").touch()
    with pytest.raises(Stop, match=r"^small: failed: out of memory; see: headgate logs small$"):
        follow(start(home), console())


def test_an_enabled_provider_that_is_closed_is_noted(home: Home, sockets: Sockets) -> None:
    sockets.endpoints = []
    why = "no key for the provider far: the variable FAR_KEY is empty or not set where the door runs"
    sockets.door = {"at": 5.0, "providers": {"far": why, "near": "", "off": "the provider off is not enabled"}}
    out = console()
    show_closed(home, ["far", "near"], out)
    assert text(out) == "note: far is closed: the variable FAR_KEY is empty or not set where the door runs\n"


def test_a_door_or_scanner_that_lets_nothing_out_is_noted(home: Home, sockets: Sockets) -> None:
    why = "privacy.effects: 'emial' is no kind"
    sockets.endpoints, sockets.door = [], {"at": 5.0, "open": False, "detail": why, "providers": {"far": ""}}
    out = console()
    show_closed(home, ["far"], out)
    assert text(out) == f"note: nothing leaves to any provider: {why}\n"
    sockets.door |= {"open": True, "detail": ""}
    out, sockets.scanner = console(), {"trouble": "a planted card was not found"}
    show_closed(home, ["far"], out)
    assert text(out) == "note: nothing leaves to any provider: a planted card was not found\n"
    out, sockets.scanner = console(), {"trouble": ""}
    show_closed(home, ["far"], out)
    show_closed(home, [], out)
    sockets.door |= {"at": 0.0, "open": False, "detail": "it has not answered yet"}
    show_closed(home, ["far"], out)
    assert text(out) == ""


def test_a_model_that_sleeps_until_it_is_asked_for_is_not_waited_for(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("small", URL), instance("other", URL, state="asleep", detail="it has not run yet")]]
    sockets.endpoints = [{"name": "small", "state": "ready", "address": URL}]
    out = console()
    follow(start(home), out)
    assert "other: asleep, a request wakes it: it has not run yet" in text(out)
    assert not starting(start(home))


def test_what_is_still_coming_up_is_told_from_what_is_ready(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("small", URL, state="starting")]]
    assert starting(start(home))
    sockets.looks, sockets.endpoints = [[instance("small", URL)]], [{"name": "small", "state": "ready", "address": URL}]
    assert not starting(start(home))


def test_a_keeper_that_ended_gives_the_last_words_of_this_start(home: Home, sockets: Sockets) -> None:
    log = home.logs / "keeper.log"
    log.write_text("2026-01-01 00:00:00 keeper: router cannot start: of another day\n")
    since = log.stat().st_size
    with pytest.raises(Stop, match="it ended at once; see "):
        follow(start(home, alive=lambda: False, since=since), console())
    with log.open("a") as file:
        file.write("2026-01-02 00:00:00 keeper: door cannot start: the book is gone\n")
    with pytest.raises(Stop, match=r"^door cannot start: the book is gone$"):
        follow(start(home, alive=lambda: False, since=since), console())


def test_a_part_that_dies_again_and_again_is_not_waited_for(home: Home, sockets: Sockets) -> None:
    sockets.looks = [[instance("small", URL)]]
    again = "2026-01-02 00:00:00 keeper: router ended with code 1; starting it again in 1 s; its last words: no space\n"
    (home.logs / "keeper.log").write_text(again * 3)
    with pytest.raises(Stop, match=r"router ended with code 1; .* no space; see: headgate logs"):
        follow(start(home), console())
