"""The command line as a person uses it: in this process where nothing is started, else as processes of its own."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router import cli
from serving.home import Home
from tests.fakes.command_line import Headgate, Said, Server


@pytest.fixture
def headgate(home: Home) -> Iterator[Headgate]:
    made = Headgate(home)
    yield made
    made.end()


@pytest.fixture
def say(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """Run a command that starts no process, in this one: the same `main`, without the half second of a new Python."""
    for name in list(os.environ):
        if name.startswith("HEADGATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HEADGATE_HOME", str(home.root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str = "") -> Said:
        monkeypatch.setattr(sys, "argv", ["headgate", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capfd.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def vllm() -> Iterator[Server]:
    """A server that already runs: in this process, so that it cannot be one of ours by mistake."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
