"""The door's own search of what would leave: its own scanner, in its own process, and its self-test each minute.

Whatever a scanner does but give its findings means that nothing was searched, and so that nothing leaves.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from router.door import policy
from serving.catalogue import Privacy

SEARCH_S = 10.0
"""Seconds a search may take. The scanner has a budget of its own; this is for one that keeps to none."""
TEST_S = 60.0
"""Seconds the self-test may take, and at the first start the compiling of the rules."""
STALE_S = 150.0
"""Seconds after which a self-test that passed no longer counts: two were due since."""
THREADS = 4
BYTES = re.compile(r"data:[a-z0-9.+/;=_-]{0,200};base64,[a-z0-9+/_=-]*|[a-z0-9+/_=-]{256,}", re.IGNORECASE)
"""What the bytes of media are from end to end, which are no text."""

Result = TypeVar("Result")


class Unsearched(Exception):
    """The scanner did not do its work; the text says how, in words that quote nothing."""


class Seen(NamedTuple):
    """What a search found in a body."""

    found: Mapping[str, int]
    """How often each kind of thing stands in it."""
    unread: str
    """Why not every byte was searched; empty where every byte was."""


class Search:
    """The scanner of one boot of the door. `test` starts it; `close` it at the end."""

    def __init__(self, privacy: Privacy, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`folder`: where the compiled rules are kept, the door's own."""
        self._privacy, self._folder, self._clock = privacy, folder, clock
        self._scanner: Any = None
        self._passed = float("-inf")
        self._trouble = "the scanner has not started yet"
        self._threads, self._tests = ThreadPoolExecutor(THREADS, "scanner"), ThreadPoolExecutor(1, "self-test")
        self.effects: Mapping[str, str] = {}
        """The class of each kind, by the door's own reading of headgate.yaml; of any other kind nobody knows it."""

    @property
    def trouble(self) -> str:
        """Why nothing may leave; empty while the last self-test passed, and not long ago."""
        if self._trouble or self._clock() - self._passed <= STALE_S:
            return self._trouble
        return "the scanner's self-test is overdue"

    @property
    def passed_s_ago(self) -> float | None:
        """Seconds since the self-test passed last; None where it never has."""
        return None if self._scanner is None else round(self._clock() - self._passed, 1)

    async def test(self) -> None:
        """Start the scanner where it has not started, and let it test itself. Never raises."""
        try:
            trouble = await self._aside(self._tests, self._tested, TEST_S)
        except Unsearched as failed:
            trouble = f"the scanner cannot be used: {failed}"
        self._trouble = trouble
        if not trouble:
            self._passed = self._clock()

    async def search(self, body: Mapping[str, Any], opaque: bool) -> Seen:
        """Search every text of a body. `opaque`: whether parts stand in it that nobody can read. Raises Unsearched."""
        return await self._aside(self._threads, lambda: self._searched(body, opaque), SEARCH_S)

    def close(self) -> None:
        """Take no more; what is under way is not waited for."""
        for threads in (self._threads, self._tests):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _aside(self, threads: ThreadPoolExecutor, work: Callable[[], Result], within_s: float) -> Result:
        """Do it in a thread, so that the door goes on meanwhile. Raises Unsearched, whatever went wrong."""
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except Unsearched:
            raise
        except TimeoutError as late:
            raise Unsearched("it did not end in time") from late
        except Exception as failed:
            raise Unsearched(f"it failed with {type(failed).__name__}") from failed

    def _tested(self) -> str:
        """Why the self-test did not pass; "" where it did."""
        # Here, so that a scanner whose packages are missing closes the door instead of ending it.
        from router.scanner import rules
        from router.scanner.scanner import Scanner, ScannerError

        try:
            if self._scanner is None:
                looked_for = rules.of(self._privacy)
                scanner = Scanner(looked_for, self._folder)
                self.effects = policy.effects(self._privacy, [(k.name, k.effect.name) for k in looked_for.kinds])
                self._scanner = scanner
            else:
                self._scanner.test()
        except (ScannerError, rules.UnknownKind) as wrong:
            return str(wrong)
        return str(self._scanner.trouble)

    def _searched(self, body: Mapping[str, Any], opaque: bool) -> Seen:
        from router.scanner.reading import WORDS, most_texts, texts
        from router.scanner.search import Budget

        budget = Budget()
        most = most_texts(budget.bytes)
        given = texts(body, most)
        if len(given) > most:
            return Seen({}, "budget")
        searched = self._scanner.search(given, budget)
        found: dict[str, int] = {}
        for one in searched.found:
            found[one.kind] = found.get(one.kind, 0) + max(1, one.count)
        unread = str(searched.unread)
        if not unread and (
            len(searched.by_text) != len(given) or missed(body, {t.text for t in given} | WORDS, opaque)
        ):
            unread = "missed"
        return Seen(found, unread)


def missed(body: Mapping[str, Any], given: Collection[str], opaque: bool) -> bool:
    """Whether a text or key of the body is not among those that were given to the scanner.

    `opaque`: whether parts stand in it that nobody can read and that have a class of their own; only with such a part
    may the bytes of media be left out.
    """
    left: list[Any] = [value for name, value in body.items() if name != "model"]
    left += body
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            left += value
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and value and value not in given and not (opaque and BYTES.fullmatch(value)):
            return True
    return False
