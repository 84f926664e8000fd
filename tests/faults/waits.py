"""What would make the event loop wait for something else than its sockets: a disk, a lock, another thread, a name.

How long such a call takes says more of a busy machine than of the code, so here none is timed: each one that the
router makes on the loop's thread is a fault by itself. Seen are the calls that Python tells audit hooks of, those below
that are wrapped, and SQLite's statements that change something. What a test or a fake does itself is left out: their
frames are on the stack then. A bare `lock.acquire` is not seen, nor a read of a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = str(Path(__file__).parent.parent) + os.sep
ROUTER = str(Path(__file__).parent.parent.parent / "router") + os.sep
HERE = __file__


def _always(_: tuple[Any, ...]) -> bool:
    return True


def _blocks(args: tuple[Any, ...]) -> bool:
    sock: socket.socket = args[0]
    return sock.gettimeout() != 0


def _waits_for_lock(args: tuple[Any, ...]) -> bool:
    return not args[1] & (fcntl.LOCK_NB | fcntl.LOCK_UN)


TOLD: Mapping[str, Callable[[tuple[Any, ...]], bool]] = {
    "socket.getaddrinfo": _always, "socket.gethostbyname": _always, "socket.gethostbyaddr": _always,
    "socket.getnameinfo": _always, "socket.connect": _blocks,
    "subprocess.Popen": _always, "os.system": _always, "os.posix_spawn": _always, "os.fork": _always,
    "fcntl.flock": _waits_for_lock, "fcntl.lockf": _waits_for_lock,
}  # fmt: skip
"""Audit events → whether one with these arguments waits."""
WRAPPED: tuple[tuple[Any, str], ...] = (
    (time, "sleep"), (os, "fsync"), (os, "fdatasync"), (threading.Condition, "wait"), (threading.Thread, "join"),
)  # fmt: skip
"""What no audit event tells of; of `sleep` one does only in newer Pythons. Events, queues and futures of threads wait
through `Condition`."""
CHANGES = ("insert", "update", "delete", "replace", "create", "drop", "begin", "commit", "vacuum")


class Waits:
    """What was seen on one loop's thread since `begin`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._thread: int | None = None
        self._set_up = False

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look while inside: connections to SQLite that are made meanwhile are looked at for as long as they live."""
        if not self._set_up:
            self._set_up = True
            sys.addaudithook(self.heard)  # it cannot be taken away again
        with contextlib.ExitStack() as stack:
            for holder, name in WRAPPED:
                stack.enter_context(mock.patch.object(holder, name, self._wrapped(holder, name)))
            stack.enter_context(mock.patch.object(sqlite3, "connect", self._connecting(sqlite3.connect)))
            try:
                yield
            finally:
                self._thread = None

    def begin(self) -> None:
        """From now on, on this thread."""
        self.seen.clear()
        self._thread = threading.get_ident()

    def end(self) -> list[str]:
        """No longer; returns what was seen."""
        self._thread = None
        return list(self.seen)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        """One audit event."""
        if self._thread is not None and (waits := TOLD.get(event)) is not None and waits(args):
            self.note(event)

    def note(self, what: str) -> None:
        """Write it down, where the router does it on the loop's thread and for no test."""
        if threading.get_ident() == self._thread and (place := _place()):
            self.seen.append(f"{what} in {place}")

    def _connecting(self, real: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connect(*args: Any, **more: Any) -> sqlite3.Connection:
            made = real(*args, **more)
            made.set_trace_callback(self._statement)
            return made

        return connect

    def _statement(self, statement: str) -> None:
        if statement[:20].lstrip().lower().startswith(CHANGES):
            self.note(f"SQLite's {statement.split(None, 1)[0]}")

    def _wrapped(self, holder: Any, name: str) -> Callable[..., Any]:
        real = getattr(holder, name)

        def call(*args: Any, **more: Any) -> Any:
            if not (name == "wait" and 0 in (*args[1:], *more.values())):  # that only looks
                self.note(f"{holder.__name__}.{name}")
            return real(*args, **more)

        return call


def _place() -> str:
    """Where in the router this is called; empty where it is not the router's doing.

    Waiting until a thread has begun is left out: pools start theirs with their first work.
    """
    frame, found = sys._getframe(2), ""
    at: Any = frame
    while at is not None:
        name = at.f_code.co_filename
        if name.startswith(TESTS) and name != HERE:
            return ""
        if name == threading.__file__ and at.f_code.co_name == "start":
            return ""
        if not found and name.startswith(ROUTER):
            found = f"router/{name.removeprefix(ROUTER)}:{at.f_lineno}"
        at = at.f_back
    return found


WAITS = Waits()
"""One for each process, as audit hooks are."""
