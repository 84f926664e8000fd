"""The gate holds when what it asks is broken: whatever scanner or history do, what was not searched is told so."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from router.gate import Gate, Seen
from router.records import Ask, Caller, Findings, Found, Past
from router.scanner.reading import Text, read
from router.scanner.search import Searched
from serving.catalogue import DataClass
from tests.conftest import until
from tests.fakes import searching
from tests.fakes.asking import ask, caller

FOUND = Found("card", DataClass.private, 1, "messages[0].content")


class Scanner:
    """Finds one card, or does what it is told."""

    def __init__(self, does: Callable[[], Any] | None = None) -> None:
        self.trouble, self.does, self.searches = "", does, 0
        self.tests = 0

    def search(self, texts: Sequence[Text]) -> Any:
        self.searches += 1
        if self.does is not None:
            return self.does()
        return Searched((FOUND,), 5, "", ((FOUND,),) * len(texts))

    def test(self) -> str:
        self.tests += 1
        return self.trouble


class History:
    """Remembers calls."""

    def __init__(self, does: Callable[[], Past | None] = lambda: None) -> None:
        self.does = does
        self.noted: list[dict[str, Any]] = []
        self.marked: list[Ask] = []
        self.forgotten: list[int] = []
        self.fails = False

    def past(self, who: Caller, asked: Ask, texts: Sequence[Text]) -> Past | None:
        return self.does()

    def expect(self, who: Caller) -> int:
        return 7

    def forget(self, expected: int) -> None:
        self.forgotten.append(expected)

    def note(self, who: Caller, asked: Ask, texts: Sequence[Text], searched: Searched, **more: Any) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.noted.append({"texts": texts, "searched": searched, **more})

    def unsearched(self, who: Caller, asked: Ask, texts: Sequence[Text], **more: Any) -> None:
        self.marked.append(asked)


async def seen(gate: Gate, asked: Ask | None = None) -> Findings:
    asked = asked or ask()
    return (await gate.search(asked, caller(), read(asked.body))).findings


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


async def test_what_was_found_and_what_was_before_are_told_together() -> None:
    past = Past(DataClass.secret, "it was", "p1")
    found = await seen(Gate(Scanner(), History(lambda: past)))
    assert (found.searched, found.found, found.past, found.unread) == (True, (FOUND,), past, "")
    assert found.scanned > 0


BROKEN: dict[str, Callable[[], Any]] = {
    "raises": raising(ValueError("4111 1111 1111 1111")),
    "has no memory": raising(MemoryError()),
    "gives nothing": lambda: None,
    "gives less than was asked": lambda: Searched((), 0, "", ()),
    "gives something else": lambda: Searched(("card",), 0, "", ((),)),  # type: ignore[arg-type]
    "has read nothing": lambda: Searched((), 0, "", ((),)),
    "says it odd": lambda: Searched((), 0, None, ((),)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("history", [None, History()])
@pytest.mark.parametrize("how", BROKEN)
async def test_a_scanner_that_is_broken_has_searched_nothing(
    how: str, history: History | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert (await seen(Gate(Scanner(BROKEN[how]), history))).unread == "error"
    assert "4111" not in caplog.text


@pytest.mark.parametrize("text", ["a line\r\nand another\r\n", "\x1b[1mbold\x1b[0m", "\x00\x00", "e\u0301\u200b", " "])
async def test_what_nobody_sees_is_searched_too(text: str, tmp_path: Path) -> None:
    gate = Gate(searching.scanner(tmp_path))
    asked = ask(messages=[{"role": "user", "content": text}])
    assert (await seen(gate, asked)).unread == ""


async def test_a_scanner_that_hangs_has_searched_nothing() -> None:
    let_go = threading.Event()
    gate = Gate(Scanner(let_go.wait), History(), within_s=0.05)
    assert (await seen(gate)).unread == "timeout"
    let_go.set()


async def test_without_a_scanner_nothing_is_searched() -> None:
    assert (await seen(Gate(None, History()))).unread == "scanner"


async def test_a_scanner_in_trouble_is_not_asked() -> None:
    scanner = Scanner()
    scanner.trouble = "a planted card was not found"
    assert (await seen(Gate(scanner))).unread == "scanner"
    assert scanner.searches == 0


async def test_a_history_that_is_broken_has_told_nothing() -> None:
    assert (await seen(Gate(Scanner(), History(raising(OSError("gone")))))).unread == "error"


async def test_a_small_text_is_searched_at_once_and_a_large_one_beside_the_loop() -> None:
    where: list[threading.Thread] = []

    def look() -> Searched:
        where.append(threading.current_thread())
        return Searched((), 0, "", ((),))

    gate = Gate(Scanner(look))
    await seen(gate, ask(size=100))
    await seen(gate, ask(size=1_000_000))
    assert where[0] is threading.main_thread()
    assert where[1] is not threading.main_thread()


async def test_a_request_that_is_stopped_while_it_is_searched_is_stopped() -> None:
    let_go = threading.Event()
    searching = asyncio.create_task(seen(Gate(Scanner(let_go.wait), History())))
    await asyncio.sleep(0)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    let_go.set()


async def test_what_was_searched_is_noted_without_another_search() -> None:
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history), ask()
    gate.ended(asked, caller(), await gate.search(asked, caller(), read(asked.body)), None)
    gate.close()
    assert [one["expected"] for one in history.noted] == [7]
    assert history.noted[0]["searched"].found == (FOUND,)
    assert scanner.searches == 1


async def test_what_stayed_is_searched_after_its_answer() -> None:
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history), ask()
    gate.ended(asked, caller(), Seen(read(asked.body)), None)
    gate.close()
    assert (scanner.searches, len(history.noted), history.marked) == (1, 1, [])


async def test_where_too_much_waits_the_session_is_private_instead() -> None:
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history, most_waiting=100), ask(size=101)
    gate.ended(asked, caller(), Seen(read(asked.body)), None)
    gate.close()
    assert (scanner.searches, history.noted, history.marked) == (0, [], [asked])


async def test_room_comes_back_once_something_was_noted() -> None:
    history = History()
    gate, asked = Gate(Scanner(), history, most_waiting=100), ask(size=100)
    for number in range(1, 4):
        gate.ended(asked, caller(), Seen(read(asked.body)), None)
        await until(lambda number=number: len(history.noted) == number and gate._waiting == 0)
    assert history.marked == []


@pytest.mark.parametrize("scanner", [Scanner(), Scanner(raising(ValueError("x"))), None])
async def test_what_cannot_be_noted_makes_its_session_private(scanner: Scanner | None) -> None:
    history = History()
    history.fails = True
    gate, asked = Gate(scanner, history), ask()
    gate.ended(asked, caller(), Seen(read(asked.body)), None)
    gate.close()
    assert history.marked == [asked]


async def test_after_the_end_nothing_is_awaited_that_never_comes() -> None:
    history = History()
    gate, asked = Gate(Scanner(), history), ask()
    gate.close()
    gate.ended(asked, caller(), Seen(read(asked.body)), None)
    assert history.forgotten == [7]


async def test_the_scanner_tests_itself_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.gate.TEST_S", 0)
    scanner = Scanner()
    running = asyncio.create_task(Gate(scanner).run())
    await until(lambda: scanner.tests > 2)
    running.cancel()
