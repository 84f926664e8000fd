"""Logs say what kind of error there was and where, and never what it says: that may be a caller's text."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from router import traces
from serving.home import Home
from tests.conftest import ROOT, free_port, until
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

class Dropped:
    def __init__(self, text):
        self.text = text

    def __del__(self):
        outer(self.text)

    def __repr__(self):
        return self.text

Dropped(text)
outer(text)
"""


def test_whatever_tells_of_an_exception_leaves_its_words_out() -> None:
    """A logger, a task nobody waited for, a callback of the loop, a thread, a `__del__`, the end of the process."""
    text = word()
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, input=text, capture_output=True, text=True)
    assert run.returncode == 1
    assert text not in run.stderr + run.stdout
    assert run.stderr.count("KeyError") == run.stderr.count("ValueError") == 6
    assert run.stderr.count("in inner") == 6 and "since:" in run.stderr


def test_it_is_told_where_and_why() -> None:
    with pytest.raises(ZeroDivisionError) as found:
        asyncio.run(_divide())
    text = traces.told(found.value)
    assert "in _divide" in text and text.endswith("ZeroDivisionError")


async def _divide() -> float:
    return 1 / 0


def cores(pid: int) -> list[str]:
    """How large a core of this process may become, by the kernel's word: the limit, and the most that it may be."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4:6]


def unlimited() -> None:
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV])
@pytest.mark.parametrize("module", ["router", "router.door"])
async def test_a_part_that_crashes_leaves_no_core(home: Home, tmp_path: Path, module: str, number: int) -> None:
    """It holds requests and providers' keys, and the next one who reads it is nobody's caller."""
    (home.root / "headgate.yaml").write_text("{}")
    more = ["--port", str(free_port())] if module == "router" else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "--config", str(home.root / "headgate.yaml"), *more, cwd=tmp_path,
        env={**os.environ, "HEADGATE_HOME": str(home.root), "PYTHONPATH": str(ROOT)}, preexec_fn=unlimited,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    socket = home.socket("admin" if module == "router" else "door")
    try:
        await until(socket.exists)
        assert cores(process.pid) in (["1", "1"], ["0", "0"]), "0 where this machine allows none anyway"
    finally:
        process.send_signal(number)
        await process.wait()
    assert process.returncode == -number
    assert list(tmp_path.iterdir()) == []


def test_what_the_keeper_starts_leaves_no_core_either(home: Home) -> None:
    program = (
        "import subprocess, sys; from router import keeper\n"
        "async def run(self): return subprocess.run(['cat', '/proc/self/limits']).returncode\n"
        "keeper.Keeper.run = run; sys.exit(keeper.main())"
    )
    (home.root / "headgate.yaml").write_text("{}")
    said = subprocess.run(
        [sys.executable, "-c", program, "--config", str(home.root / "headgate.yaml")], capture_output=True, text=True,
        env={**os.environ, "HEADGATE_HOME": str(home.root), "PYTHONPATH": str(ROOT)}, preexec_fn=unlimited, check=True,
    ).stdout  # fmt: skip
    (line,) = [line for line in said.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] in (["1", "1"], ["0", "0"])
