"""The detector itself: what would make the loop wait is seen where the router does it, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.waits import ROUTER, WAITS

CALLS: dict[str, str] = {
    "time.sleep": "time.sleep(0)",
    "socket.getaddrinfo": "socket.getaddrinfo('127.0.0.1', 80)",
    "socket.connect": "socket.create_connection(('127.0.0.1', port)).close()",
    "os.fsync": "os.fsync(file)",
    "Condition.wait": "event.wait(0.001)",
    "Thread.join": "thread.join()",
    "SQLite's INSERT": "db.execute('INSERT INTO t VALUES (1)')",
}


async def seen(text: str, place: str, names: dict[str, Any]) -> list[str]:
    """What is noted when the loop runs this text, which says that it stands in the file `place`."""
    exec(compile(f"def call():\n    {text}", place, "exec"), names)
    WAITS.begin()
    loop = asyncio.get_running_loop()
    loop.call_soon(names["call"])  # no frame of this file is on the stack then: those of tests are left out
    loop.call_soon((ran := asyncio.Event()).set)
    await ran.wait()
    return WAITS.end()


@pytest.mark.parametrize("what", CALLS)
async def test_what_makes_the_loop_wait_is_seen_in_the_router_alone(what: str, tmp_path: Path) -> None:
    thread = threading.Thread(target=time.sleep, args=(0,))
    with WAITS.looking(), socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "f").open("wb") as file:
        thread.start()
        db = sqlite3.connect(tmp_path / "db.sqlite", isolation_level=None)
        db.execute("CREATE TABLE t (a)")
        names = {
            "time": time, "socket": socket, "os": os, "port": server.getsockname()[1], "file": file.fileno(),
            "event": threading.Event(), "thread": thread, "db": db,
        }  # fmt: skip
        found = (await seen(CALLS[what], f"{ROUTER}some/file.py", names))[-1]
        assert what in found and found.endswith("in router/some/file.py:2")
        assert await seen(CALLS[what], "/somewhere/else.py", names) == []
        db.close()


async def test_what_another_thread_waits_for_is_nobodys_fault() -> None:
    names: dict[str, Any] = {"time": time}
    exec(compile("def call():\n    time.sleep(0)", f"{ROUTER}some/file.py", "exec"), names)
    with WAITS.looking():
        WAITS.begin()
        await asyncio.to_thread(names["call"])
        assert WAITS.end() == []
