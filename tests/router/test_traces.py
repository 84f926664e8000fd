"""Logs say what kind of error there was and where, and never what it says: that may be a caller's text."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from router import traces
from tests.conftest import ROOT
from tests.leaks.canaries import word

PROGRAM = """
import asyncio, logging, sys, threading
from router import traces
traces.install()
logging.basicConfig(level=logging.DEBUG)

def inner(text):
    raise ValueError(text)

def outer(text):
    try:
        inner(text)
    except ValueError as wrong:
        raise KeyError(text) from wrong

async def forgotten(text):
    outer(text)

async def run(text):
    asyncio.get_running_loop().set_exception_handler(traces.unhandled)
    task = asyncio.create_task(forgotten(text))
    asyncio.get_running_loop().call_soon(outer, text)
    await asyncio.sleep(0.01)
    del task

text = sys.stdin.read()
try:
    outer(text)
except KeyError:
    logging.getLogger("x").exception("it failed")
asyncio.run(run(text))
thread = threading.Thread(target=outer, args=(text,))
thread.start()
thread.join()
outer(text)
"""


def test_whatever_tells_of_an_exception_leaves_its_words_out() -> None:
    """A logger, a task nobody waited for, a callback of the loop, a thread, the end of the process."""
    text = word()
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, input=text, capture_output=True, text=True)
    assert run.returncode == 1
    assert text not in run.stderr + run.stdout
    assert run.stderr.count("KeyError") == run.stderr.count("ValueError") == 5
    assert run.stderr.count("in inner") == 5 and "since:" in run.stderr


def test_it_is_told_where_and_why() -> None:
    with pytest.raises(ZeroDivisionError) as found:
        asyncio.run(_divide())
    text = traces.told(found.value)
    assert "in _divide" in text and text.endswith("ZeroDivisionError")


async def _divide() -> float:
    return 1 / 0
