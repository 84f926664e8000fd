"""The gate: what could leave is searched here before it is decided; what stayed is searched after its answer.

Scanner and history are asked in threads, within a time. Whatever one of them does but give its answer means that
nothing was searched, and so that nothing leaves: an exception, silence, another form. For the history alone, what
stayed is searched as well, as far as a bounded queue allows; beyond it the session counts as private.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.records import Ask, Caller, Findings, Found, Past
from router.scanner import reading
from router.scanner.reading import Text

if TYPE_CHECKING:  # it needs packages that only a router with a provider loads
    from router.scanner.search import Searched

LOG = logging.getLogger("headgate.router")
WITHIN_S = 5.0
"""Seconds a search may take. The scanner has a budget of its own; this is for one that keeps to none."""
AT_ONCE = 8 * 1024
"""Bytes of a body that is searched without a thread where there is no history to ask: at most two milliseconds."""
THREADS = 4
MOST_WAITING = 64 * 2**20
"""Bytes of requests and answers that wait for their search after the answer."""
TEST_S = 60.0
"""Between two self-tests of the scanner."""


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

    def past(self, caller: Caller, ask: Ask, texts: Sequence[Text], /) -> Past | None: ...
    def expect(self, caller: Caller, /) -> int: ...
    def forget(self, expected: int, /) -> None: ...
    def note(
        self, caller: Caller, ask: Ask, texts: Sequence[Text], searched: Searched, /, *, opaque: bool = False,
        said: Said | None = None, expected: int = 0,
    ) -> None: ...  # fmt: skip
    def unsearched(
        self, caller: Caller, ask: Ask, texts: Sequence[Text], /, *, said: Said | None = None, expected: int = 0
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
        self, scanner: Searching | None, history: Remembering | None = None, within_s: float = WITHIN_S,
        most_waiting: int = MOST_WAITING,
    ) -> None:  # fmt: skip
        """Without a scanner nothing is ever searched, so nothing leaves."""
        self._scanner, self._history = scanner, history
        self._within_s, self._most_waiting = within_s, most_waiting
        self._searches = ThreadPoolExecutor(THREADS, "search")
        self._notes, self._marks = ThreadPoolExecutor(1, "note"), ThreadPoolExecutor(1, "mark")
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def remembers(self) -> bool:
        """Whether answers are to be kept until they were looked through."""
        return self._history is not None

    @property
    def trouble(self) -> str:
        """Why nothing counts as searched; empty while the scanner's last self-test passed."""
        return "there is no scanner" if self._scanner is None else self._scanner.trouble

    async def run(self) -> None:
        """Let the scanner test itself each minute, until cancelled."""
        while self._scanner is not None:
            await asyncio.sleep(TEST_S)
            before = self._scanner.trouble
            trouble = await asyncio.get_running_loop().run_in_executor(self._searches, self._scanner.test)
            if trouble != before:
                LOG.error("the scanner closes the door: %s", trouble) if trouble else LOG.warning("the scanner is well")

    def close(self) -> None:
        """Take no more; what waits for the history is finished, since a session may be private by it."""
        self._searches.shutdown(wait=False, cancel_futures=True)
        self._notes.shutdown(wait=True)
        self._marks.shutdown(wait=True)

    # -- before

    async def search(self, ask: Ask, caller: Caller, findings: Findings) -> Seen:
        """Search the ask and look back. Never raises but when cancelled: what fails is `unread`."""
        if self._scanner is None or self._scanner.trouble:
            return _unread(findings, "scanner")
        try:
            if self._history is None and ask.size <= AT_ONCE:
                return self._look(ask, caller, findings)
            async with asyncio.timeout(self._within_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._searches, self._look, ask, caller, findings)
        except TimeoutError:
            LOG.error("a search did not end within %g s", self._within_s)
            return _unread(findings, "timeout")
        except Exception as failed:
            # Only its name: what it says may hold a text.
            LOG.error("a search failed: %s", type(failed).__name__)
            return _unread(findings, "error")

    def _look(self, ask: Ask, caller: Caller, findings: Findings) -> Seen:
        texts, searched = self._search(ask)
        past = self._history.past(caller, ask, texts) if self._history is not None else None
        # Made anew, so that something of another form fails here and not where it is relied on.
        found = tuple(Found(one.kind, one.effect, one.count, one.where) for one in searched.found)
        least = sum(len(one.text) for one in texts)
        known = len(searched.by_text) == len(texts) and isinstance(searched.unread, str)
        whole = known and (searched.bytes >= least or searched.unread != "")
        unread = searched.unread if whole else "error"
        return Seen(findings._replace(searched=True, found=found, past=past, unread=unread), texts, searched)

    def _search(self, ask: Ask) -> tuple[list[Text], Searched]:
        assert self._scanner is not None
        texts = reading.texts(ask.body)
        return texts, self._scanner.search(texts)

    # -- after

    def ended(self, ask: Ask, caller: Caller, seen: Seen, said: Said | None) -> None:
        """What the request was, for the history: noted in the background. Never raises."""
        history = self._history
        if history is None:
            return
        size = ask.size + (0 if said is None else said.size)
        with self._lock:
            room = self._waiting + size <= self._most_waiting
            self._waiting += size if room else 0
        expected = history.expect(caller)
        try:
            if room:
                self._notes.submit(self._note, history, ask, caller, seen, said, expected, size)
            else:
                self._marks.submit(self._mark, history, ask, caller, said, expected)
        except RuntimeError:  # it is being stopped; the answer was not read by anybody else
            history.forget(expected)

    def _note(
        self, history: Remembering, ask: Ask, caller: Caller, seen: Seen, said: Said | None, expected: int, size: int
    ) -> None:
        try:
            texts, searched = (seen.texts, seen.searched) if seen.searched is not None else self._search(ask)
            opaque = bool(seen.findings.opaque)
            history.note(caller, ask, texts, searched, opaque=opaque, said=said, expected=expected)
        except Exception as failed:
            LOG.error("a request could not be noted: %s", type(failed).__name__)
            self._mark(history, ask, caller, said, expected)
        finally:
            with self._lock:
                self._waiting -= size

    def _mark(self, history: Remembering, ask: Ask, caller: Caller, said: Said | None, expected: int) -> None:
        """In place of a note: the session counts as private."""
        try:
            history.unsearched(caller, ask, reading.texts(ask.body), said=said, expected=expected)
        except Exception as failed:
            LOG.error("a session could not be marked: %s", type(failed).__name__)


def _unread(findings: Findings, why: str) -> Seen:
    return Seen(findings._replace(searched=True, unread=why))
