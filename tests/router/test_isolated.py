"""`isolate: true`, whole: a real router answers callers of the host, and reaches nothing but Unix sockets itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from router import keeper
from router.ledger.keys import KeyBook
from serving import isolation
from serving.catalogue import DataClass, KeyDefaults
from serving.home import Home
from serving.isolation import wrapped
from tests.conftest import ask, free_port, instance
from tests.fakes.answers import completion
from tests.fakes.faults import Upstream

SITE: dict[str, Any] = {
    "isolate": True,
    "models": {
        "small": {"place": "local", "lanes": ["private", "cheap"], "context": 4096, "output": 64},
        "afar": {"place": "local", "lanes": ["private"], "context": 4096, "output": 64},
    },
}
NOT_ENFORCED = "NOT ENFORCED by the kernel"


class Isolated:
    """A router in a process of its own; `small` behind a Unix socket, `afar` on the host's loopback."""

    def __init__(
        self, home: Home, far: Upstream, workers: int = 1, before: tuple[str, ...] = (), **site: Any
    ) -> None:  # fmt: skip
        self.home, self.far, self.workers, self.before, self.site = home, far, workers, before, SITE | site
        self.port, self.admin_port = free_port(), free_port()
        self.process: asyncio.subprocess.Process | None = None
        with contextlib.closing(KeyBook(home.ledger, home.secret("pepper"))) as book:
            self.key = book.create("tests", DataClass.private, KeyDefaults())[1]
            self.public = book.create("tests", DataClass.public, KeyDefaults())[1]

    async def start(self) -> None:
        settings = {"workers": self.workers, "admin_port": self.admin_port, "queue_wait_s": 0}
        config = self.home.root / "headgate.yaml"
        config.write_text(yaml.safe_dump(self.site | {"router": settings}))
        command = (*self.before, sys.executable, "-m", "router", "--config", str(config), f"--port={self.port}")
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, "--parent-pipe", stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env=keeper.environment(self.home, os.environ),
            )  # fmt: skip
        end = time.monotonic() + 60
        while not await self._heard_of_models():
            assert self.process.returncode is None and time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.02)

    @property
    def log(self) -> Path:
        return self.home.logs / "router.log"

    async def _heard_of_models(self) -> bool:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            return bool((await self.operator("/status"))["serving_heard"])
        return False

    async def operator(self, path: str) -> Any:
        """By the TCP port on the host's loopback, with the token."""
        token = {"Authorization": f"Bearer {self.home.secret('admin-token')}"}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url, headers=token) as answer:
            return json.loads(await answer.read())

    async def told(self, model: str) -> Any:
        """The answer of a worker that has heard of the model: each hears of it for itself."""
        async with asyncio.timeout(20):
            while (reply := await self.ask(model))[0] == 404:
                await asyncio.sleep(0.05)
        return reply

    async def ask(self, model: str, key: str = "") -> tuple[int, dict[str, Any]]:
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        given = {"Authorization": f"Bearer {key or self.key}"}
        async with aiohttp.ClientSession() as session, session.post(url, json=ask(model), headers=given) as answer:
            return answer.status, json.loads(await answer.read())

    def pids(self) -> list[int]:
        """Of those that answer callers."""
        assert self.process is not None
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(child) for child in children] if self.workers > 1 else [parent]

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            async with asyncio.timeout(60):
                await self.process.wait()


@pytest.fixture
def allowed() -> None:
    done = subprocess.run(wrapped(["true"]), capture_output=True, text=True, check=False)
    if done.stderr:
        pytest.skip(f"namespaces are not to be had here: {done.stderr.strip()}")


@pytest.fixture
async def site(home: Home) -> AsyncIterator[tuple[Home, Upstream]]:
    """What lies around the router: an engine, serving, and a server on the host's loopback that nobody must reach."""
    near = Upstream(path=home.socket("engine-small"), script={"body": completion()})
    async with near, Upstream(script={"body": completion()}) as far:
        entries = [instance("small", f"unix:{home.socket('engine-small')}"), instance("afar", far.address)]
        document = {"version": 1, "host": "h", "boot": "b", "at": time.time(), "gpus": [], "instances": entries}
        async with Upstream(path=home.socket("serving"), script={"body": json.dumps(document)}):
            yield home, far


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("workers", [1, 2])
async def test_callers_are_answered_and_no_connection_leaves(site: tuple[Home, Upstream], workers: int) -> None:
    made = Isolated(*site, workers=workers)
    try:
        await made.start()
        assert await made.told("small") == (200, json.loads(completion())), "asked through the host's own network"
        status, body = await made.told("afar")
        assert status >= 500 and "error" in body, "a server on the host's loopback cannot be reached any more"
        assert made.far.accepted == 0
        # One worker may have answered all of it while the other still starts.
        async with asyncio.timeout(60):
            while made.log.read_text().count("isolate: the kernel knows no way out") < workers:
                await asyncio.sleep(0.05)
        mine = Path("/proc/self/ns/net").stat().st_ino
        for pid in made.pids():
            assert Path(f"/proc/{pid}/ns/net").stat().st_ino != mine and isolation.way_out(pid) == ""
        assert (await made.operator("/status"))["isolation"] == {"asked": True, "way_out": ""}
        assert made.log.read_text().count("isolate: the kernel knows no way out") == workers
    finally:
        await made.stop()


@pytest.mark.usefixtures("allowed")
async def test_what_may_leave_still_does_through_the_door_alone(site: tuple[Home, Upstream]) -> None:
    home, provider = site
    big = {"place": "hosted", "lanes": ["frontier"], "context": 100_000, "output": 1000, "provider": "far",
           "provider_model": "far-1", "price": {"input": 10, "output": 50}}  # fmt: skip
    far = {
        "enabled": True,
        "base_url": f"{provider.address}/v1",
        "key_env": "FAR_KEY",
        "private_ranges": ["127.0.0.0/8"],
    }
    made = Isolated(home, provider, models={"big": big}, providers={"far": far})
    door = None
    try:
        await made.start()
        assert (await made.ask("big", made.public))[0] == 503, "without a door nothing leaves"
        assert provider.accepted == 0
        environment = keeper.environment(home, os.environ) | {"FAR_KEY": "k" * 20}
        command = [sys.executable, "-m", "router.door", "--config", str(home.root / "headgate.yaml")]
        with (home.logs / "door.log").open("ab") as log:
            door = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while (found := await made.ask("big", made.public))[0] == 503:
            assert time.monotonic() < end, (found, (home.logs / "door.log").read_text())
            await asyncio.sleep(0.1)
        assert found == (200, json.loads(completion()))
        assert (await made.ask("big"))[0] == 403, "and private data stays"
        assert len(provider.requests) == 1
    finally:
        await made.stop()
        if door is not None and door.returncode is None:
            door.terminate()
            await door.wait()


async def test_where_the_kernel_does_not_enforce_it_log_and_status_say_so(site: tuple[Home, Upstream]) -> None:
    """In a user namespace whose owner allows no network namespaces; the network is then the host's."""
    before = ("unshare", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "-")
    try:
        able = subprocess.run([*before, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able or not isolation.way_out():
        pytest.skip("the limit cannot be set here, or this machine has no way out to be told of")
    made = Isolated(*site, before=before)
    try:
        await made.start()
        assert (await made.ask("small"))[0] == 200, "it goes on answering"
        found = (await made.operator("/status"))["isolation"]
        assert found["asked"] and found["way_out"], "and claims nothing"
        assert NOT_ENFORCED in made.log.read_text()
    finally:
        await made.stop()


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://gpu-7.internal:8000"])
def test_a_server_that_could_not_be_reached_is_refused_at_the_start(home: Home, url: str) -> None:
    config = home.root / "headgate.yaml"
    config.write_text(f"isolate: true\nattach:\n  - url: {url}\n")
    for module in ("router", "serving"):
        command = [sys.executable, "-m", module, "--config", str(config)]
        done = subprocess.run(
            command, env=keeper.environment(home, os.environ), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 2 and f"{config}:3: " in done.stderr, done.stderr
        assert url in done.stderr and "unix:/path" in done.stderr and "isolate: false" in done.stderr


def test_so_is_one_named_on_the_command_line(home: Home) -> None:
    config = home.root / "headgate.yaml"
    config.write_text("isolate: true\n")
    with socket.create_server(("127.0.0.1", 0)) as there:
        url = f"http://127.0.0.1:{there.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "serving", "--config", str(config), "--attach", url],
            env=keeper.environment(home, os.environ), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "isolate: true leaves the router no way" in done.stderr
