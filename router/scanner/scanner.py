"""The scanner as router and door use it: compiled once, kept in a file, tested at the start and whenever it is asked.

Whatever goes wrong in a search is an answer that says `error`, never an exception and never "nothing found".
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from router.scanner.kinds import Kind
from router.scanner.layout import Layout, layout
from router.scanner.matcher import VERSION, MatcherError, compiled, fault, loaded
from router.scanner.reading import Text
from router.scanner.search import Budget, Passes, Search, Searched

LOG = logging.getLogger("headgate.scanner")
FORM = b"headgate patterns 1\n"
"""How a file of compiled patterns begins; raised when what is in it changes."""
DIGEST = 32
USUAL = Budget()
TESTING = Budget(seconds=60)
"""Of a self-test: it asks whether what is planted is found, and not how busy the machine is."""


class ScannerError(Exception):
    """The scanner cannot be used at all; one sentence that quotes no text of a request."""


class Rules(Protocol):
    """What is looked for, and what is allowed after all."""

    @property
    def kinds(self) -> tuple[Kind, ...]: ...
    @property
    def hash(self) -> str: ...
    def allowed(self, kind: str, text: str) -> bool: ...


class Scanner:
    """Searches texts for what `rules` names. Any thread may use it."""

    def __init__(self, rules: Rules, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Compile, or read what was compiled and kept in `folder`, and test it. Raises ScannerError."""
        self._rules, self._clock = rules, clock
        self._layout = layout(rules.kinds)
        self._passes = _passes(self._layout, rules, folder)
        self.trouble = "it was not tested yet"
        """Why it cannot be relied on; empty while the last self-test passed. Nothing counts as searched otherwise."""
        self.test()
        if self.trouble:
            raise ScannerError(f"the scanner's self-test failed: {self.trouble}")

    def search(self, texts: Sequence[Text], budget: Budget = USUAL) -> Searched:
        """Search all texts within the budget. Never raises: what fails is `unread`."""
        if self.trouble:
            return _nothing(texts, "scanner")
        try:
            return self._search(texts, budget)
        except Exception as failed:
            # Only its name: what it says may hold a text.
            LOG.error("a search failed: %s", type(failed).__name__)
            return _nothing(texts, "error")

    def test(self) -> str:
        """Look for the planted example of every kind, and for nothing in a plain sentence; sets `trouble`."""
        planted = [(kind.name, text) for kind in self._layout.kinds for text in kind.planted]
        texts = [Text("planted", text, "key") for _, text in planted]
        plain = Text("plain", "nothing to see here", "key")
        try:
            searched = self._search([*texts, plain], TESTING)
        except Exception as failed:
            self.trouble = f"it fails with {type(failed).__name__}"
            return self.trouble
        *seen, clean = searched.by_text
        kinds = ({one.kind for one in found} for found in seen)
        missed = [name for (name, _), there in zip(planted, kinds, strict=True) if name not in there]
        if missed:
            self.trouble = f"a planted {missed[0]} was not found"
        elif clean or searched.unread:
            self.trouble = f"a plain sentence holds {clean[0].kind}" if clean else f"it gave up: {searched.unread}"
        else:
            self.trouble = ""
        return self.trouble

    def _search(self, texts: Sequence[Text], budget: Budget) -> Searched:
        return Search(self._layout, self._passes, self._rules, budget, self._clock).run(texts)


def _nothing(texts: Sequence[Text], unread: str) -> Searched:
    return Searched((), 0, unread, ((),) * len(texts))


def _passes(found: Layout, rules: Rules, folder: Path) -> Passes:
    """All passes, from the file where it is whole and fits. Raises ScannerError."""
    said = repr((FORM, VERSION, rules.hash, found.strong, found.weak, found.shapes)).encode()
    path = folder / f"patterns-{hashlib.sha256(said).hexdigest()[:DIGEST]}.hs"
    try:
        return _unpacked(path.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, MatcherError) as broken:
        LOG.warning("compiled patterns are made anew: %s", broken)
    try:
        made = Passes(compiled(found.strong), compiled(found.weak) if found.weak else None, compiled(found.shapes))
        kept = _packed(made)
    except MatcherError as wrong:
        raise ScannerError(_blame(found) or str(wrong)) from None
    try:
        _keep(path, kept)
    except OSError as full:
        LOG.warning("compiled patterns could not be kept: %s", full)
    return made


def _blame(found: Layout) -> str:
    """Which kind's pattern does not compile; looked for only once one does not."""
    for patterns, owners in ((found.strong, found.owners), (found.weak, found.weak_owners)):
        for pattern, owner in zip(patterns, owners, strict=False):
            if why := fault(pattern):
                return f"{found.kinds[owner].name}: {why}"
    return ""


def _packed(passes: Passes) -> bytes:
    parts = [one.dump() if one else b"" for one in passes]
    both = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return FORM + hashlib.sha256(both).digest() + both


def _unpacked(data: bytes) -> Passes:
    """Raises MatcherError."""
    head = len(FORM) + DIGEST
    both = data[head:]
    if not data.startswith(FORM) or hashlib.sha256(both).digest() != data[len(FORM) : head]:
        raise MatcherError("the file is broken")
    parts: list[bytes] = []
    at = 0
    while at < len(both):
        size = int.from_bytes(both[at : at + 8], "big")
        parts.append(both[at + 8 : at + 8 + size])
        at += 8 + size
    strong, weak, shapes = parts
    return Passes(loaded(strong), loaded(weak) if weak else None, loaded(shapes))


def _keep(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, for its owner alone; those of other rules go. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    for old in path.parent.glob("patterns-*.hs"):
        if old != path:
            with contextlib.suppress(OSError):
                old.unlink()
