"""What is left behind of a failure: of an exception its kind and where it rose, never its words, for these may quote a
request; of a crash no picture of the memory, for that holds requests and keys.

`install` holds for all of a process, whoever logs: this router's code, the server below it, the loop, the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

LOG = logging.getLogger("headgate")
MOST_CAUSES = 5
"""Exceptions that led to it, of which the places are told as well."""


def install() -> None:
    """From now on, no record of a log and nothing that ends a thread or the process tells an exception's words, and
    no core is left behind."""
    no_core()
    make = logging.getLogRecordFactory()

    def record(*given: Any, **more: Any) -> logging.LogRecord:
        made = make(*given, **more)
        if made.exc_info and made.exc_info[1] is not None:
            made.exc_text, made.exc_info = told(made.exc_info[1]), None
        return made

    logging.setLogRecordFactory(record)
    sys.excepthook = _ended
    sys.unraisablehook = lambda given: _ended(given.exc_type, given.exc_value, given.exc_traceback)
    threading.excepthook = lambda given: _ended(given.exc_type, given.exc_value, given.exc_traceback)


def no_core() -> None:
    """Leave no core behind, here and in processes that are started from here.

    By one byte and not by none: 0 forbids the file alone, and Linux gives the core to a program all the same where one
    is set to take it; at 1 it gives it to nobody. PR_SET_DUMPABLE would do it too, but it also hides /proc/PID from the
    very user: the keeper could no longer find what an earlier start left, nor anybody look into one that stands still.
    """
    with contextlib.suppress(OSError, ValueError):  # a sandbox that forbids the call has a limit of its own
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        least = 1 if most == resource.RLIM_INFINITY else min(1, most)
        resource.setrlimit(resource.RLIMIT_CORE, (least, least))


def told(error: BaseException) -> str:
    """The kinds of an exception and of what led to it, each with its places in the code."""
    lines: list[str] = []
    one: BaseException | None = error
    for number in range(MOST_CAUSES):
        if one is None:
            break
        lines.append("since:" if number else "where:")
        lines += [line.rstrip("\n") for line in traceback.format_tb(one.__traceback__)]
        lines.append(type(one).__name__)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "\n".join(lines)


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: the loop's own words show a task with its exception, and that with its text."""
    error = context.get("exception")
    LOG.error("nobody waited for an exception in the loop", exc_info=error if error is not None else False)


def _ended(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    sys.stderr.write(f"{told(error)}\n")
