"""What fails does not leak: detectors, ledger, clocks and settings in every state of disrepair, and a router that lies.

The router runs in this process, so that any part of it can be broken; the door is the real one, in a process of its
own, broken where a test says so. Data whose key is public is asked of a hosted model by its name: it may leave, but
for the credential that stands in it. The provider counts every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from router import traces
from router.records import DataClass, Findings
from router.scanner import scanner
from serving.catalogue import Model
from serving.home import Home
from tests.conftest import ROOT, House, Reply, ask, until
from tests.fakes.faults import Upstream
from tests.leaks.canaries import credential, word

STAYS = {"data_class_not_cleared", "not_scannable", "door_closed", "scanner_failed", "ledger_unavailable"}
HANGS_S = 0.3
BROKEN_DOOR = """
import sys, threading
from router.door import searching
searching.SEARCH_S = {hangs}
{patch}
from router.door.__main__ import main
sys.exit(main())
"""
SEARCHES: dict[str, str] = {
    "raises": "raise RuntimeError('broken')",
    "hangs": "threading.Event().wait(1)",
    "returns nothing": "return None",
    "finds nothing and read nothing": "return scanner.Searched((), 0, '', ())",
    "returns another thing": "return {{'found': []}}",
    "has no memory left": "raise MemoryError",
}
"""What a scanner can do instead of its work."""


class Breakable(House):
    """Its door runs with `patch` laid over it."""

    patch = ""

    async def _start_door(self, config: Path) -> None:
        environment = {**os.environ, "HEADGATE_HOME": str(self.home.root), "PYTHONPATH": str(ROOT), "FAR_KEY": "k" * 20}
        program = BROKEN_DOOR.format(hangs=HANGS_S, patch=self.patch)
        self.log = self._stack.enter_context((self.home.logs / "door.log").open("wb"))
        self.door = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, "--config", str(config), env=environment, stderr=self.log
        )
        self._stack.push_async_callback(self._end_door)

    async def _end_door(self) -> None:
        if self.door.returncode is None:
            self.door.terminate()
        await self.door.wait()

    async def restart_door(self) -> None:
        """The same door again, with whatever the settings say now."""
        await self._end_door()
        await self._start_door(self.home.root / "headgate.yaml")

    async def tell(self, text: str, key: str | None = None, **more: Any) -> Reply:
        """Ask the hosted model with this text."""
        body = {**ask("big"), "messages": [{"role": "user", "content": text}], **more}
        return await self.post(body, key or self.key("public"))

    async def stays(self, text: str | None = None, **more: Any) -> Reply:
        """A request with a credential in it is refused, and nothing of it came to the provider."""
        had = self.provider.received.total()
        reply = await self.tell(text or f"My token is {credential()}.", **more)
        assert reply.status in (403, 503), (reply.status, reply.body)
        assert reply.error["code"] in STAYS, reply.error
        assert self.provider.received.total() == had, "bytes came to the provider"
        return reply


@pytest.fixture
async def house(home: Home) -> AsyncIterator[Breakable]:
    async with Upstream() as local, Upstream() as provider:
        made = Breakable(home, local, provider)
        try:
            yield made
        finally:
            await made.close()


Lies = Callable[[], None]


@pytest.fixture
def lies(monkeypatch: pytest.MonkeyPatch) -> Lies:
    """Make this router find nothing in anything, in good faith: its permits then claim that everything is public."""

    def begin() -> None:
        def nothing(self: Any, texts: Any, budget: Any = None) -> Any:
            found = tuple(() for _ in texts)
            return scanner.Searched((), 2**40, "", found)

        monkeypatch.setattr(scanner.Scanner, "search", nothing)

    return begin


def broken(how: str) -> Callable[..., Any]:
    """A search that does this."""
    space: dict[str, Any] = {"scanner": scanner, "threading": threading}
    exec(f"def search(self, *given):\n    {SEARCHES[how].format()}", space)
    found: Callable[..., Any] = space["search"]
    return found


# ---- the detectors


async def test_as_things_are_it_stays_and_without_it_leaves(house: Breakable) -> None:
    await house.start(hosted=True)
    await house.stays()
    assert (await house.tell("Hello")).status == 200


async def test_a_router_whose_detectors_fail(house: Breakable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the search does instead, nothing leaves, also what holds nothing; and local models answer."""
    await house.start(hosted=True)
    assert house.built is not None
    monkeypatch.setattr(house.built.gate, "_within_s", HANGS_S)
    key = house.key("public")
    for how in SEARCHES:
        monkeypatch.setattr(scanner.Scanner, "search", broken(how))
        await house.stays(key=key)
        await house.stays("Hello", key=key)
        reply = await house.post(ask("auto"), key)
        assert (reply.status, reply.headers["x-headgate-place"]) == (200, "local"), how
    assert house.provider.accepted == 0


async def test_a_door_whose_detectors_fail_behind_a_router_that_lies(house: Breakable, lies: Lies) -> None:
    """It does what a file says, so that one door can fail in every way, one after the other."""
    said = house.home.root / "how"
    said.write_text("works")
    cases = "\n".join(f"    if how == {how!r}:\n        {line.format()}" for how, line in SEARCHES.items())
    house.patch = "from router.scanner import scanner\nreal = scanner.Scanner.search\n"
    house.patch += (
        f"def search(self, *given):\n    how = open({str(said)!r}).read()\n{cases}\n    return real(self, *given)\n"
    )
    house.patch += "scanner.Scanner.search = search"
    lies()
    await house.start(hosted=True)
    key = house.key("public")
    for how in SEARCHES:
        said.write_text(how)
        await house.stays(key=key)
        await house.stays("Hello", key=key)
    assert house.provider.accepted == 0
    said.write_text("works")
    assert (await house.tell("Hello", key)).status == 200, "what was broken is whole again"


async def test_a_router_that_finds_nothing_is_not_believed(house: Breakable, lies: Lies) -> None:
    lies()
    await house.start(hosted=True)
    token = credential()
    reply = await house.stays(f"My token is {token}.")
    assert "door" in reply.error["message"].lower()
    (tried,) = (await house.events(reply))[-1]["attempts"]
    assert tried["detail"].startswith("data_class_not_cleared: it holds what counts as secret (credential_")
    assert token not in str(await house.events(reply)), "the door's reason quotes nothing"
    assert (await house.tell("Hello")).status == 200, "what holds nothing may leave: the door found that for itself"


async def test_a_router_that_takes_everything_for_public_is_not_believed(
    house: Breakable, monkeypatch: pytest.MonkeyPatch, lies: Lies
) -> None:
    """Every question in the router is answered with yes: class, clearance, promises, search."""
    from router.decision import eligibility
    from router.upstream.attempts import Attempts

    lies()
    monkeypatch.setattr(Model, "cleared_for", lambda self, today: DataClass.secret)
    monkeypatch.setattr(eligibility, "RULES", (eligibility.same_identity,))
    monkeypatch.setattr(Attempts, "_bar", lambda *_: None)
    await house.start(hosted=True)
    await house.stays()
    for name in ("internal", "private", "secret"):
        await house.stays("Hello", key=house.key(name))
    assert house.provider.accepted == 0


async def test_detectors_that_are_not_there_close_the_way_out(house: Breakable, lies: Lies) -> None:
    house.patch = "sys.modules['hyperscan'] = None"
    lies()
    house._ready = lambda hosted: House._ready(house, False)  # type: ignore[method-assign]
    await house.start(hosted=True)
    await until(lambda: house.built is not None and house.built.fleet.heard > 0)
    await house.stays()
    await house.stays("Hello")
    assert (await house.post(ask("auto"), house.key("public"))).status == 200
    assert house.provider.accepted == 0


async def test_rules_that_do_not_compile_close_the_way_out(
    house: Breakable, monkeypatch: pytest.MonkeyPatch, lies: Lies
) -> None:
    from router.scanner import matcher

    def fails(*_: Any) -> Any:
        raise matcher.MatcherError("the patterns do not compile")

    monkeypatch.setattr(matcher, "compiled", fails)
    monkeypatch.setattr(scanner, "compiled", fails, raising=False)
    house.patch = "from router.scanner import matcher, scanner\ndef fails(*_):\n    raise matcher.MatcherError('no')\n"
    house.patch += "matcher.compiled = scanner.compiled = fails"
    house._ready = lambda hosted: House._ready(house, False)  # type: ignore[method-assign]
    await house.start(hosted=True)
    await house.stays()
    await house.stays("Hello")
    assert (await house.post(ask("auto"), house.key("public"))).status == 200
    assert house.provider.accepted == 0


async def test_an_error_inside_the_decision_answers_500_and_sends_nothing(
    house: Breakable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from router import pipeline

    await house.start(hosted=True)

    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("no such thing")

    for name in ("decide", "could_leave"):
        monkeypatch.setattr(pipeline, name, fails, raising=False)
    reply = await house.tell(f"My token is {credential()}.")
    assert reply.status == 500 or reply.error["code"] in STAYS
    assert house.provider.accepted == 0


# ---- ledger, clock, settings


async def test_a_ledger_that_is_locked_or_full(house: Breakable, monkeypatch: pytest.MonkeyPatch) -> None:
    from router.ledger.store import LedgerError

    await house.start(hosted=True)
    key = house.key("public")
    assert (await house.tell("Hello", key)).status == 200
    had = house.provider.received.total()
    with contextlib.closing(sqlite3.connect(house.home.ledger, timeout=5)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert house.built is not None
        durable = house.built.store.durable
        monkeypatch.setattr(house.built.store, "durable", lambda timeout_s=0.3: durable(0.3))
        reply = await house.tell("Hello", key)
        assert reply.status == 503 and reply.error["code"] in STAYS
        other.execute("ROLLBACK")

    async def full(timeout_s: float = 0) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(house.built.store, "durable", full)
    assert (await house.tell("Hello", key)).status == 503
    assert house.provider.received.total() == had


async def test_a_clock_that_jumps(house: Breakable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the router alone, so that the two disagree: no permit holds, and no approval that has ended opens again."""
    yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    over = {"clearance": "private", "approved": {"by": "dpo", "contract": "c", "until": yesterday}}
    await house.start(hosted=True, models={"big": over})
    assert house.built is not None
    key, private = house.key("public"), house.key("private")
    real, fleet = time.time, house.built.fleet
    for days in (-400, -1, 1, 400):
        monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
        monkeypatch.setattr(fleet, "today", lambda days=days: yesterday + dt.timedelta(days=days))
        await house.stays(key=key)
        await house.stays("Hello", key=private)
        monkeypatch.setattr(time, "time", real)  # each alone as well: the day of the approval, the moment of the permit
        await house.stays("Hello", key=private)
    assert house.provider.accepted == 0


async def test_settings_that_change_while_a_request_is_under_way(house: Breakable) -> None:
    """The door was started again with other settings than those it was decided under: no permit of it holds."""
    await house.start(hosted=True, models={"big": {"lanes": ["cheap", "frontier"]}})
    key = house.key("public")
    house.local.script = {"gate": True, "status": 500, "body": "{}"}
    under_way = asyncio.create_task(house.post(ask("cheap"), key))
    await until(lambda: house.local.answering == 1)
    site = house.home.root / "headgate.yaml"
    settings = yaml.safe_load(site.read_text())
    settings["teams"] = {"tests": {"data_class": "private"}}
    site.write_text(yaml.safe_dump(settings))
    await house.restart_door()
    assert house.built is not None
    old = house.built.fleet.door.instance
    await until(
        lambda: house.built is not None and house.built.fleet.door.open and house.built.fleet.door.instance != old
    )
    house.local.gate.set()
    reply = await under_way
    assert reply.status in (403, 502, 503), reply.body
    assert house.provider.accepted == 0


# ---- a crash tells nothing


async def test_a_crash_writes_no_text_anywhere(
    house: Breakable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception can quote what it fell over; neither log nor answer nor ledger has it."""
    from router import pipeline
    from router.upstream.sending import Sending

    for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    made, text = logging.getLogRecordFactory(), word()

    def fails(*_: Any, **__: Any) -> Any:
        raise ValueError(f"cannot read {text}")

    await house.start(hosted=True)
    traces.install()
    try:
        for where, name in ((Sending, "send"), (pipeline, "decide")):
            monkeypatch.setattr(where, name, fails)
            reply = await house.tell(f"About {text}")
            assert (reply.status, reply.error["code"]) == (500, "internal_error")
            assert text.encode() not in reply.body
    finally:
        logging.setLogRecordFactory(made)
    assert text not in caplog.text
    assert caplog.text.count("\nValueError\n") == 2
    await house.close()
    for file in (file for file in house.home.root.rglob("*") if file.is_file()):
        assert text.encode() not in file.read_bytes(), file


def test_what_was_not_searched_is_the_default() -> None:
    """A part that forgets to say that it searched has not."""
    assert Findings(1, ()).searched is False
