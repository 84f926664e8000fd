"""The Headgate that is measured: the one that runs here, or one started for the purpose in a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from router import keeper
from router.commands.context import Stop as Stop
from router.commands.context import ask_socket
from router.commands.keys import existing_first_key
from router.ledger.keys import KeyBook
from serving import probe, processes
from serving.catalogue import DataClass, KeyDefaults
from serving.home import Home, find_home
from serving.probe import Target

ROOT = Path(__file__).parent.parent
PATIENCE_S = 900.0
"""The first start on a machine makes an engine's environment."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A Headgate that runs."""

    home: Home
    url: str

    def key(self) -> str:
        """The text of its first key. Raises Stop where that does not work."""
        return existing_first_key(self.home)

    def instances(self) -> list[dict[str, Any]]:
        """What its serving publishes of its engines. Raises Stop."""
        return list(ask_socket(self.home, "serving", "/instances")["instances"])

    def engine(self) -> str | None:
        """The engine's package and version, where one is run by it."""
        found = ask_socket(self.home, "serving", "/instances").get("engine")
        return f"{found['package']} {found['version']}" if found else None

    def new_key(self, team: str, data_class: DataClass) -> str:
        """The text of another key of its."""
        with contextlib.closing(KeyBook(self.home.ledger, self.home.secret("pepper"))) as book:
            return book.create(team, data_class, KeyDefaults())[1]

    def again(self, site: dict[str, Any]) -> None:
        """Stop it and start it with another headgate.yaml; keys and ledger stay. Raises Stop."""
        _headgate(self.home, "down")
        (self.home.root / "headgate.yaml").write_text(yaml.safe_dump(site))
        _headgate(self.home, "up", "--port", self.url.rpartition(":")[2], "--detach", "--wait")

    def metrics(self) -> str:
        """The router's own metrics as text. Raises ProbeError."""
        return asyncio.run(probe.metrics(Target(f"unix:{self.home.socket('admin')}")))

    def processes(self) -> dict[int, str]:
        """Every living process of it: id and part (`router`, `serving`, `door`, `keeper`, `engine`)."""
        found = processes.ours(self.home.installation())
        return {p.pid: "engine" if p.instance else part_of(_command_line(p.pid)) for p in found}


def part_of(command: Sequence[str]) -> str:
    """Which part a process is, by its command line."""
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else ""
    return {"router": "router", "serving": "serving", "router.door": "door", "router.keeper": "keeper"}.get(
        module, "other"
    )


def _command_line(pid: int) -> list[str]:
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:  # it ended meanwhile
        return []


def running() -> Installation:
    """The Headgate that runs here. Raises Stop."""
    home = find_home()
    found = keeper.running(home)
    if found is None:
        raise Stop("no Headgate is running here; start it with: headgate up, or name an address with --url")
    return Installation(home, found.url)


@contextlib.contextmanager
def own(*words: str, site: dict[str, Any] | None = None) -> Iterator[Installation]:
    """A Headgate of its own, started by `headgate up` with these further words; stopped and forgotten at the end.

    It uses the engines' environments that this machine has. Raises Stop where it does not come up.
    """
    root = Path(tempfile.mkdtemp(prefix="hg-bench-"))
    home, port = Home(root, find_home().engines), free_port()
    home.make()
    (root / "headgate.yaml").write_text(yaml.safe_dump(site or {}))
    try:
        _headgate(home, "up", "--port", str(port), "--detach", "--wait", *words)
        yield Installation(home, f"http://127.0.0.1:{port}")
    finally:
        try:
            _headgate(home, "down")
        finally:
            shutil.rmtree(root, ignore_errors=True)


def _headgate(home: Home, *words: str) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
    environment = kept | {
        "HEADGATE_HOME": str(home.root), "HEADGATE_ENGINES": str(home.engines), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-m", "router.cli", *words], capture_output=True, text=True, check=False,
        env=environment, cwd=home.root, timeout=PATIENCE_S,
    )  # fmt: skip
    if done.returncode != 0:
        last = " ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise Stop(f"headgate {words[0]} did not succeed: {last}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """Whether a connection to this port of loopback is taken now."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
