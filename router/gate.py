"""The gate: what could leave is searched here before it is decided; what stayed is searched after its answer.

Scanner and history are asked in threads, within a time. Whatever one of them does but give its answer means that
nothing was searched, and so that nothing leaves: an exception, silence, another form. For the history alone, what
stayed is searched as well, as far as a bounded queue allows; beyond it the session counts as private.

Before the last byte of an answer goes out it is known that it is to be noted, and until that is done its team waits for
it, without a thread. Where an answer could not be noted at all, its team's requests count as private from then on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.backlog import Backlog
from router.records import Ask, Caller, Findings, Found, Past
from router.scanner import reading
from router.scanner.reading import Text, TooMany
from serving.catalogue import DataClass

if TYPE_CHECKING:  # it needs packages that only a router with a provider loads
    from router.scanner.search import Searched

LOG = logging.getLogger("headgate.router")
WAIT_S = 0.5
"""So long a request waits for what its team was answered just before and what is not noted yet."""
WITHIN_S = 5.0
"""Seconds a search may take. The scanner has a budget of its own; this is for one that keeps to none."""
AT_ONCE = 8 * 1024
"""Bytes of a body that is searched without a thread where the history need not be read from disk: at most two
milliseconds, and a thread alone would cost more than most searches."""
THREADS = 4
MOST_WAITING = 64 * 2**20
"""Bytes of requests and answers that wait for their search after the answer."""
CLOSE_S = 5.0
"""After how long at the end what waits is no longer searched; its sessions are private then. Else whoever stops this
process may end it before all is noted."""
TEST_S = 60.0
"""Between two self-tests of the scanner."""
NOT_NOTED = "what its team was answered a moment ago is not looked through yet"
NEVER_NOTED = "something its team was answered could not be remembered; see: headgate logs router"


class Searching(Protocol):
    """A scanner."""

    @property
    def trouble(self) -> str: ...
    def search(self, texts: Sequence[Text], /) -> Searched: ...
    def test(self) -> str: ...


class Said(Protocol):
    """What an answer said."""

    @property
    def size(self) -> int: ...
    def texts(self) -> list[str]: ...


class Remembering(Protocol):
    """What was private before: `ledger/history.py`."""

    @property
    def trouble(self) -> str: ...
    @property
    def in_memory(self) -> bool: ...
    def past(self, caller: Caller, ask: Ask, texts: Sequence[Text], /) -> tuple[Past, ...]: ...
    def has_none(self, caller: Caller, ask: Ask, texts: Sequence[Text], /) -> bool: ...
    def concerns(self, caller: Caller, ask: Ask, searched: Searched, /, *, opaque: bool) -> bool: ...
    def note(
        self, caller: Caller, ask: Ask, texts: Sequence[Text], searched: Searched, /, *, opaque: bool = False,
        said: Said | None = None,
    ) -> None: ...  # fmt: skip
    def unsearched(
        self, caller: Caller, ask: Ask, texts: Sequence[Text], /, *, said: Said | None = None
    ) -> None: ...  # fmt: skip


class Seen(NamedTuple):
    """What is known of one request's texts: the findings, and what they were made of, for the history."""

    findings: Findings
    texts: Sequence[Text] = ()
    searched: Searched | None = None
    """None where nothing was searched yet."""


class Gate:
    """Joins scanner and history. Built once; `run` it, and `close` it at the end."""

    def __init__(
        self, scanner: Searching | str | None, history: Remembering | None = None, within_s: float = WITHIN_S,
        most_waiting: int = MOST_WAITING, wait_s: float = WAIT_S, make: Callable[[], Searching | str] | None = None,
    ) -> None:  # fmt: skip
        """Without a scanner nothing is searched, so nothing leaves; in its place may stand why there is none. `make` is
        asked for one each minute then."""
        self._scanner: Searching | None = None
        self._trouble = ""
        """Why there is no scanner, or why its self-test did not end."""
        if isinstance(scanner, str | None):
            self._trouble = scanner or "there is none"
        else:
            self._scanner = scanner
        self._history, self._make = history, make
        self._within_s, self._wait_s = within_s, wait_s
        self._searches, self._tests = ThreadPoolExecutor(THREADS, "search"), ThreadPoolExecutor(1, "self-test")
        self._notes, self._marks = Backlog("note", most_waiting), ThreadPoolExecutor(1, "mark")
        self._awaited: dict[str, set[Future[None]]] = {}
        """By team, each answer that has ended and is not noted yet."""
        self._unsure: set[str] = set()
        """Teams that were answered what could not be noted."""
        self._hurry_at = math.inf

    @property
    def trouble(self) -> str:
        """Why nothing counts as searched; empty while the scanner's last self-test passed."""
        return self._trouble if self._scanner is None else self._trouble or self._scanner.trouble

    @property
    def forgets(self) -> str:
        """Why not all that is private is remembered; empty where it is."""
        if self._unsure:
            teams = ", ".join(sorted(self._unsure))
            return f"an answer could not be noted, so all of its team ({teams}) is private until the next start"
        return self._history.trouble if self._history is not None else ""

    async def run(self) -> None:
        """Let the scanner test itself each minute, and make one where there is none yet. Until cancelled."""
        while self._scanner is not None or self._make is not None:
            await asyncio.sleep(TEST_S)
            before = self.trouble
            await asyncio.get_running_loop().run_in_executor(self._tests, self._test)
            if (trouble := self.trouble) != before:
                LOG.error("the scanner closes the door: %s", trouble) if trouble else LOG.warning("the scanner is well")

    def _test(self) -> None:
        """Whatever goes wrong, the next minute has its turn."""
        try:
            made = self._scanner or (self._make() if self._make is not None else self._trouble)
            if isinstance(made, str):
                self._trouble = made
                return
            made.test()
            self._scanner, self._trouble = made, ""
        except Exception as failed:
            self._trouble = f"it fails with {type(failed).__name__}"

    def close(self) -> None:
        """Take no more; what waits for the history is finished, since a session may be private by it."""
        for threads in (self._searches, self._tests):
            threads.shutdown(wait=False, cancel_futures=True)
        self._hurry_at = time.monotonic() + CLOSE_S
        self._notes.close()
        self._marks.shutdown(wait=True)

    # -- before

    async def search(self, ask: Ask, caller: Caller, findings: Findings) -> Seen:
        """Search the ask and look back. Never raises but when cancelled: what fails is `unread`."""
        if self.trouble:
            return _unread(findings, "scanner")
        try:
            if ask.size <= AT_ONCE and (seen := self._at_once(ask, caller, findings)) is not None:
                return seen
            async with asyncio.timeout(self._within_s):
                before = await self._before(caller.team)
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._searches, self._look, ask, caller, findings, before)
        except TimeoutError:
            LOG.error("a search did not end within %g s", self._within_s)
            return _unread(findings, "timeout")
        except TooMany:
            return _unread(findings, "budget")
        except Exception as failed:
            # Only its name: what it says may hold a text.
            LOG.error("a search failed: %s", type(failed).__name__)
            return _unread(findings, "error")

    def _at_once(self, ask: Ask, caller: Caller, findings: Findings) -> Seen | None:
        """What is seen without a thread; None where something must be waited for, or read from disk."""
        history = self._history
        if caller.team in self._unsure or self._awaited.get(caller.team):
            return None
        if history is not None and not history.in_memory:  # it could not tell, so its texts are read in the thread
            return None
        texts = _texts(ask)
        if history is not None and not history.has_none(caller, ask, texts):
            return None
        assert self._scanner is not None
        return _seen(findings, texts, self._scanner.search(texts), ())

    async def _before(self, team: str) -> tuple[Past, ...]:
        """Wait for what was answered to this team before now. What is not noted then may be anything, so it is private.

        No thread waits: one team's answers would keep those of all that search.
        """
        if team in self._unsure:
            return (Past(DataClass.private, NEVER_NOTED, ""),)
        if awaited := [*self._awaited.get(team, ())]:
            try:
                async with asyncio.timeout(self._wait_s):
                    await asyncio.shield(asyncio.gather(*map(asyncio.wrap_future, awaited)))
            except TimeoutError:
                return (Past(DataClass.private, NOT_NOTED, ""),)
        return ()

    def _look(self, ask: Ask, caller: Caller, findings: Findings, before: tuple[Past, ...] = ()) -> Seen:
        texts, searched = self._search(ask)
        past = self._history.past(caller, ask, texts) if self._history is not None else ()
        return _seen(findings, texts, searched, tuple(Past(one.data_class, one.why, one.id) for one in past) + before)

    def _search(self, ask: Ask) -> tuple[list[Text], Searched]:
        assert self._scanner is not None
        texts = _texts(ask)
        return texts, self._scanner.search(texts)

    # -- after

    def noting(self, ask: Ask, caller: Caller, seen: Seen) -> Noting | None:
        """One request on its way into the history; None where nothing of it is to be remembered: most of what may leave
        is public, and costs no more than its search.

        What is above public in it already is noted now: its answer may take long or its router be killed meanwhile,
        and nothing else of its session may leave until then.
        """
        if self._history is None:
            return None
        if seen.searched is not None and not seen.findings.past and not seen.findings.unread:
            opaque = bool(seen.findings.opaque)
            if not self._history.concerns(caller, ask, seen.searched, opaque=opaque):
                return None
        noting = Noting(self, ask, caller, seen)
        if _above_public(ask, seen.findings):
            self.ended(noting, None, self.expect(caller.team))
        return noting

    def expect(self, team: str) -> Future[None]:
        """An answer to this team ends, and is to be noted: until then who asks what was before it waits."""
        awaited: Future[None] = Future()
        self._awaited.setdefault(team, set()).add(awaited)
        awaited.add_done_callback(lambda done: self._awaited[team].discard(done))
        return awaited

    def ended(self, noting: Noting, said: Said | None, awaited: Future[None]) -> None:
        """What the request was, for the history: noted in the background. Never raises."""
        size = noting.ask.size + (0 if said is None else said.size)
        try:
            if not self._notes.add(noting.caller.team, size, lambda: self._remember(noting, said, awaited)):
                self._marks.submit(self._remember, noting, said, awaited, unread=True)
        except RuntimeError as failed:  # it was closed before this request ended, or no thread can be had
            self._unsure.add(noting.caller.team)
            LOG.error("a request is not remembered, so its team is private: %s", failed)
            awaited.set_result(None)

    def _remember(self, noting: Noting, said: Said | None, awaited: Future[None], *, unread: bool = False) -> None:
        """Note it; where that fails its session counts as private, and where that cannot be kept either, all of its
        team does. Never raises. `unread`: there is no room to look through it."""
        hurried = noting.seen.searched is None and time.monotonic() > self._hurry_at
        try:
            for way in (self._mark,) if unread or hurried else (self._note, self._mark):
                try:
                    return way(noting, said)
                except TooMany:  # more than is looked through is no fault
                    continue
                except Exception as failed:
                    # Only its name: what it says may hold a text.
                    LOG.error("a request could not be remembered as it is: %s", type(failed).__name__)
            self._unsure.add(noting.caller.team)
            LOG.error("a session could not be marked, so its team is private: %s", noting.caller.team)
        finally:
            awaited.set_result(None)

    def _note(self, noting: Noting, said: Said | None) -> None:
        """What was found in it, and what it may be known again by."""
        assert self._history is not None
        ask, seen = noting.ask, noting.seen
        if seen.searched is None:  # once, however often it is noted
            texts, searched = self._search(ask)
            noting.seen = seen = seen._replace(texts=texts, searched=searched)
        assert seen.searched is not None
        opaque = bool(seen.findings.opaque)
        self._history.note(noting.caller, ask, seen.texts, seen.searched, opaque=opaque, said=said)

    def _mark(self, noting: Noting, said: Said | None) -> None:
        """In place of a note: the session counts as private."""
        assert self._history is not None
        ask = noting.ask
        texts = reading.texts(ask.body, reading.most_texts(ask.size))
        self._history.unsearched(noting.caller, ask, texts, said=said)


class Noting:
    """One request on its way into the history."""

    __slots__ = ("_awaited", "_gate", "ask", "caller", "seen")

    def __init__(self, gate: Gate, ask: Ask, caller: Caller, seen: Seen) -> None:
        self._gate, self.ask, self.caller, self.seen = gate, ask, caller, seen
        self._awaited: Future[None] | None = None

    def expect(self) -> None:
        """Its answer is about to end: from now on whoever comes after it waits for the note."""
        if self._awaited is None:
            self._awaited = self._gate.expect(self.caller.team)

    def ended(self, said: Said | None) -> None:
        """It has ended, however it did; `said`: its answer, None where it had none."""
        self.expect()
        assert self._awaited is not None
        self._gate.ended(self, said, self._awaited)


def _texts(ask: Ask) -> list[Text]:
    """All texts of a request. Raises TooMany."""
    most = reading.most_texts(ask.size)
    texts = reading.texts(ask.body, most)
    if len(texts) > most:
        raise TooMany
    return texts


def _above_public(ask: Ask, findings: Findings) -> bool:
    """Whether it is known before its answer that there is something to note of it."""
    labelled = ask.data_class is not None and ask.data_class > DataClass.public
    found = any(one.effect > DataClass.public for one in findings.found)
    return labelled or found or bool(findings.opaque or findings.past or findings.unread)


def _seen(findings: Findings, texts: list[Text], searched: Searched, past: tuple[Past, ...]) -> Seen:
    """What a search found. Made anew, so that something of another form fails here and not where it is relied on."""
    found = tuple(Found(one.kind, one.effect, one.count, one.where) for one in searched.found)
    least = sum(len(one.text) for one in texts)
    known = len(searched.by_text) == len(texts) and isinstance(searched.unread, str)
    whole = known and (searched.bytes >= least or searched.unread != "")
    unread = searched.unread if whole else "error"
    return Seen(findings._replace(searched=True, found=found, past=past, unread=unread), texts, searched)


def _unread(findings: Findings, why: str) -> Seen:
    return Seen(findings._replace(searched=True, unread=why))
