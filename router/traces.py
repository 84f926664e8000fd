"""What a log says of an exception: its kind and where it rose. Never its words, for these may quote a request.

`install` holds for all of a process, whoever logs: this router's code, the server below it, the loop, the interpreter.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

LOG = logging.getLogger("headgate")
MOST_CAUSES = 5
"""Exceptions that led to it, of which the places are told as well."""


def install() -> None:
    """From now on, no record of a log and nothing that ends a thread or the process tells an exception's words."""
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
