"""The gate holds when what it asks is broken: whatever scanner or history do, what was not searched is told so."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from router import gate as module
from router.gate import THREADS, Gate, Seen
from router.records import Ask, Caller, Findings, Found, Past
from router.scanner.reading import MOST_TEXTS, Text, read
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

    def __init__(self, does: Callable[[], tuple[Past, ...]] = lambda: ()) -> None:
        self.does, self.trouble, self.none, self.in_memory = does, "", False, True
        self.asked = 0
        """How often it was asked whether it has nothing."""
        self.noted: list[dict[str, Any]] = []
        self.marked: list[Ask] = []
        self.fails = 0
        """How many of the next calls fail."""
        self.may_note = threading.Event()
        self.may_note.set()

    def past(self, who: Caller, asked: Ask, texts: Sequence[Text]) -> tuple[Past, ...]:
        return self.does()

    def has_none(self, who: Caller, asked: Ask, texts: Sequence[Text]) -> bool:
        self.asked += 1
        return self.none

    def concerns(self, who: Caller, asked: Ask, searched: Searched, *, opaque: bool) -> bool:
        return bool(searched.found) or opaque or asked.data_class is not None

    def note(self, who: Caller, asked: Ask, texts: Sequence[Text], searched: Searched, **more: Any) -> None:
        self.may_note.wait()
        self._fail()
        self.noted.append({"team": who.team, "texts": texts, "searched": searched, **more})

    def unsearched(self, who: Caller, asked: Ask, texts: Sequence[Text], **more: Any) -> None:
        self._fail()
        self.marked.append(asked)

    def _fail(self) -> None:
        if self.fails:
            self.fails -= 1
            raise OSError("the disk is full")


def ended(gate: Gate, asked: Ask, found: Seen | None = None, who: Caller | None = None) -> None:
    """A request came to its end, without an answer."""
    noting = gate.noting(asked, who or caller(), found or Seen(read(asked.body)))
    assert noting is not None
    noting.ended(None)


async def seen(gate: Gate, asked: Ask | None = None) -> Findings:
    asked = asked or ask()
    return (await gate.search(asked, caller(), read(asked.body))).findings


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


async def test_what_was_found_and_what_was_before_are_told_together() -> None:
    past = Past(DataClass.secret, "it was", "p1")
    found = await seen(Gate(Scanner(), History(lambda: (past,))))
    assert (found.searched, found.found, found.past, found.unread) == (True, (FOUND,), (past,), "")
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
        return Searched((), 5, "", ((),))

    gate = Gate(Scanner(look))
    assert (await seen(gate, ask(size=100))).unread == ""
    assert (await seen(gate, ask(size=1_000_000))).unread == ""
    assert where[0] is threading.main_thread()
    assert where[1] is not threading.main_thread()


async def test_where_the_history_need_not_be_read_a_small_text_is_searched_at_once() -> None:
    where: list[threading.Thread] = []

    def look() -> Searched:
        where.append(threading.current_thread())
        return Searched((FOUND,), 5, "", ((FOUND,),))

    past = Past(DataClass.secret, "it was", "p1")
    history = History(lambda: (past,))
    gate = Gate(Scanner(look), history)
    assert (await seen(gate)).past == (past,)
    history.none = True
    found = await gate.search(ask(), caller(), read(ask().body))
    assert (found.findings.found, found.findings.past, found.findings.searched) == ((FOUND,), (), True)
    assert found.searched is not None and [one.text for one in found.texts][-1] == "Hello"
    assert (await seen(gate, ask(size=module.AT_ONCE + 1))).past == (past,)
    asked, history.in_memory = history.asked, False
    assert (await seen(gate)).past == (past,) and history.asked == asked, "of what it could not tell it is not asked"
    main = threading.main_thread()
    assert [one is main for one in where] == [False, True, False, False]


async def test_nothing_is_said_at_once_of_a_team_whose_answers_are_not_noted_yet_or_never_will_be() -> None:
    history = History()
    history.none = True
    gate = Gate(Scanner(), history, wait_s=0.01)
    awaited = gate.expect("search")
    assert "not looked through yet" in (await seen(gate)).past[0].why
    awaited.set_result(None)
    assert (await seen(gate)).past == ()
    history.fails = 2
    ended(gate, ask())
    await until(lambda: gate.forgets != "")
    assert "could not be remembered" in (await seen(gate)).past[0].why
    assert (await gate.search(ask(), caller(team="other"), read(ask().body))).findings.past == ()


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
    ended(gate, asked, await gate.search(asked, caller(), read(asked.body)))
    gate.close()
    assert [one["searched"].found for one in history.noted] == [(FOUND,)] * 2
    assert scanner.searches == 1


async def test_of_what_was_searched_and_is_public_nothing_is_noted_and_nobody_waits() -> None:
    history = History()
    gate, asked = Gate(Scanner(lambda: Searched((), 5, "", ((),))), history), ask()
    found = await gate.search(asked, caller(), read(asked.body))
    assert gate.noting(asked, caller(), found) is None and gate._awaited == {}
    before = found._replace(findings=found.findings._replace(past=(Past(DataClass.private, "it was", "h1"),)))
    unread = found._replace(findings=found.findings._replace(unread="budget"))
    for other in (before, unread, Seen(read(asked.body))):
        assert gate.noting(asked, caller(), other) is not None
    gate.close()


async def test_what_was_found_is_noted_before_there_is_an_answer() -> None:
    """A follow-up in its session comes while it is answered, or the router is killed in mid-answer."""
    history = History()
    gate, asked = Gate(Scanner(), history), ask()
    assert gate.noting(asked, caller(), await gate.search(asked, caller(), read(asked.body))) is not None
    gate.close()
    assert len(history.noted) == 1
    clean = Gate(Scanner(lambda: Searched((), 5, "", ((),))), history)
    assert clean.noting(asked, caller(), await clean.search(asked, caller(), read(asked.body))) is None
    clean.close()
    assert len(history.noted) == 1


@pytest.mark.parametrize("how", ["label", "media", "past", "unread"])
async def test_what_makes_a_session_private_is_noted_before_there_is_an_answer(how: str) -> None:
    """And is searched once, however often it is noted."""
    scanner, history = Scanner(lambda: Searched((), 5, "", ((),))), History()
    gate, asked = Gate(scanner, history), ask(raised="private" if how == "label" else None)
    findings = read(asked.body)
    findings = {
        "media": findings._replace(opaque=("messages[0].content[0]",)),
        "past": findings._replace(past=(Past(DataClass.private, "it was", "h1"),)),
        "unread": findings._replace(unread="budget"),
    }.get(how, findings)
    noting = gate.noting(asked, caller(), Seen(findings))
    assert noting is not None
    await until(lambda: len(history.noted) == 1)
    noting.ended(None)
    gate.close()
    assert (scanner.searches, len(history.noted)) == (1, 2)
    assert [one["opaque"] for one in history.noted] == [how == "media"] * 2


async def test_a_public_label_and_no_label_cost_nothing_before_the_answer() -> None:
    for label in (None, "public"):
        scanner = Scanner()
        gate, asked = Gate(scanner, History()), ask(raised=label)
        assert gate.noting(asked, caller(), Seen(read(asked.body))) is not None
        assert gate._awaited == {}, "nobody waits for a note"
        gate.close()
        assert scanner.searches == 0


async def test_what_stayed_is_searched_after_its_answer() -> None:
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history), ask()
    ended(gate, asked)
    gate.close()
    assert (scanner.searches, len(history.noted), history.marked) == (1, 1, [])


async def test_where_too_much_waits_the_session_is_private_instead() -> None:
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history, most_waiting=100), ask(size=101)
    ended(gate, asked)
    gate.close()
    assert (scanner.searches, history.noted, history.marked) == (0, [], [asked])


async def test_at_the_end_what_waits_too_long_makes_its_session_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", -1.0)
    scanner, history = Scanner(), History()
    history.may_note.clear()
    gate, first, last = Gate(scanner, history), ask(), ask()
    ended(gate, first)
    await until(lambda: scanner.searches)
    ended(gate, last)
    asyncio.get_running_loop().call_later(0.05, history.may_note.set)
    await asyncio.to_thread(gate.close)
    assert (scanner.searches, len(history.noted), history.marked) == (1, 1, [last])


@pytest.mark.parametrize("number", [0, 1e308], ids=["short", "numbers that are longer than in the body"])
async def test_a_request_in_too_many_parts_is_not_searched_and_its_session_is_private(number: float) -> None:
    body = {"metadata": {f"key {n}": number or "v" for n in range(MOST_TEXTS)}}
    scanner, history = Scanner(), History()
    gate, asked = Gate(scanner, history), ask(body=body, size=1000)
    assert (await seen(gate, asked)).unread == "budget"
    ended(gate, asked)
    gate.close()
    assert (scanner.searches, history.noted, history.marked) == (0, [], [asked])


async def test_room_comes_back_once_something_was_noted() -> None:
    history = History()
    gate, asked = Gate(Scanner(), history, most_waiting=100), ask(size=100)
    for number in range(1, 4):
        ended(gate, asked)
        await until(lambda number=number: len(history.noted) == number and gate._notes.waiting == 0)
    assert history.marked == []


@pytest.mark.parametrize("scanner", [Scanner(), Scanner(raising(ValueError("x"))), None])
async def test_what_cannot_be_noted_makes_its_session_private(scanner: Scanner | None) -> None:
    history = History()
    history.fails = 1 if isinstance(scanner, Scanner) and scanner.does is None else 0
    gate, asked = Gate(scanner, history), ask()
    ended(gate, asked)
    gate.close()
    assert (history.marked, gate.forgets) == ([asked], "")


async def test_what_cannot_be_remembered_at_all_makes_its_team_private_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = History()
    history.fails = 2
    gate = Gate(Scanner(), history)
    assert gate.forgets == ""
    ended(gate, ask())
    await until(lambda: gate.forgets != "")
    (past,) = (await seen(gate)).past
    assert past.data_class is DataClass.private
    assert "its team" in gate.forgets and "search" in gate.forgets and "its team is private" in caplog.text
    other = await gate.search(ask(), caller(team="other"), read(ask().body))
    assert other.findings.past == ()


async def test_a_disk_that_takes_nothing_is_told() -> None:
    history = History()
    gate = Gate(Scanner(), history)
    history.trouble = "the disk is full"
    assert gate.forgets == "the disk is full"


async def test_what_was_answered_a_moment_ago_is_waited_for_by_its_team_alone() -> None:
    history = History()
    history.may_note.clear()
    gate, asked = Gate(Scanner(), history, wait_s=0.01), ask()
    ended(gate, asked)
    (past,) = (await seen(gate)).past
    assert past.data_class is DataClass.private
    assert "not looked through yet" in past.why
    other = await gate.search(asked, caller(team="other"), read(asked.body))
    assert other.findings.past == ()
    patient = Gate(Scanner(), history, wait_s=30)
    ended(patient, asked)
    waiting = asyncio.create_task(seen(patient))
    await asyncio.sleep(0)
    history.may_note.set()
    assert (await waiting).past == ()


async def test_the_wait_begins_before_the_answer_has_ended() -> None:
    """`expect` is told before the last byte goes out; the note itself can only be made after it."""
    gate, asked = Gate(Scanner(), History(), wait_s=0.01), ask()
    noting = gate.noting(asked, caller(), Seen(read(asked.body)))
    assert noting is not None
    assert (await seen(gate)).past == ()
    noting.expect()
    assert "not looked through yet" in (await seen(gate)).past[0].why
    noting.ended(None)
    gate.close()
    assert (await gate._before("search")) == ()


async def test_one_team_that_waits_keeps_nobody_else_from_being_searched() -> None:
    """Far more requests wait for their team's notes than there are threads that search; the self-test has its own."""
    history, scanner = History(), Scanner()
    history.may_note.clear()
    gate, asked = Gate(scanner, history, wait_s=30), ask()
    ended(gate, asked)
    waiting = [asyncio.create_task(seen(gate)) for _ in range(4 * THREADS)]
    await asyncio.sleep(0)
    other = await gate.search(asked, caller(team="other"), read(asked.body))
    assert other.findings.past == () and other.findings.unread == ""
    history.may_note.set()
    assert {found.unread for found in await asyncio.gather(*waiting)} == {""}


async def test_notes_of_one_team_hold_up_no_other_s() -> None:
    history = History()
    history.may_note.clear()
    gate, asked = Gate(Scanner(), history, wait_s=30), ask(size=10)
    for _ in range(50):
        ended(gate, asked)
    ended(gate, asked, who=caller(team="other"))
    waiting = asyncio.create_task(gate.search(asked, caller(team="other"), read(asked.body)))
    history.may_note.set()
    assert (await waiting).findings.past == ()
    gate.close()
    assert [one["team"] for one in history.noted].index("other") <= 2


async def test_after_the_end_nothing_is_awaited_that_never_comes() -> None:
    history = History()
    gate, asked = Gate(Scanner(), history, wait_s=0.01), ask()
    gate.close()
    ended(gate, asked)
    assert [one.data_class for one in await gate._before("search")] == [DataClass.private]


async def test_the_scanner_tests_itself_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.gate.TEST_S", 0)
    scanner = Scanner()
    gate, let_go = Gate(scanner, History()), threading.Event()
    scanner.does = let_go.wait
    hanging = [asyncio.create_task(seen(gate)) for _ in range(4 * THREADS)]
    await until(lambda: scanner.searches == THREADS)
    running = asyncio.create_task(gate.run())
    await until(lambda: scanner.tests > 2)  # also while every thread that searches has something to do
    running.cancel()
    let_go.set()
    await asyncio.gather(*hanging)


async def test_a_scanner_that_could_not_start_is_tried_again_each_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("router.gate.TEST_S", 0)
    made: list[Scanner | str | BaseException] = [MemoryError("4111"), "it needs hyperscan", Scanner()]
    told: list[str] = []

    def make() -> Scanner | str:
        told.append(gate.trouble)
        one = made.pop(0)
        if isinstance(one, BaseException):
            raise one
        return one

    gate = Gate("the rules do not compile", History(), make=make)
    assert (await seen(gate)).unread == "scanner"
    running = asyncio.create_task(gate.run())
    await until(lambda: not gate.trouble)
    assert told == ["the rules do not compile", "it fails with MemoryError", "it needs hyperscan"]
    assert (await seen(gate)).unread == "" and "4111" not in caplog.text
    running.cancel()


async def test_a_self_test_that_breaks_closes_the_way_out_until_one_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.gate.TEST_S", 0)
    scanner = Scanner()
    gate = Gate(scanner, History())
    monkeypatch.setattr(scanner, "test", raising(ValueError("4111")))
    running = asyncio.create_task(gate.run())
    await until(lambda: bool(gate.trouble))
    assert gate.trouble == "it fails with ValueError" and (await seen(gate)).unread == "scanner"
    monkeypatch.setattr(scanner, "test", lambda: "")
    await until(lambda: not gate.trouble)
    assert (await seen(gate)).unread == ""
    running.cancel()
