"""Fixtures: a home folder, and a house: a real router over real sockets, with scripted upstreams behind it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest
import yaml
from xdist.scheduler.loadgroup import LoadGroupScheduling

from router import app
from router.ledger.keys import KeyBook
from router.listen import Listen
from serving import catalogue, engines, gpus
from serving.catalogue import DataClass, EngineChoice, KeyDefaults
from serving.home import Home, find_home
from tests.fakes.faults import Upstream
from tests.fakes.rules import lay_out
from tests.installation import Installation
from tests.lookout import LOOKOUT

ROOT = Path(__file__).parent.parent

# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile("headgate", deadline=None)
hypothesis.settings.load_profile("headgate")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reaches(*hosts): what a test may connect to or look up beyond this machine")
    LOOKOUT.set_up()


class Grouped(LoadGroupScheduling):  # type: ignore[misc]
    """Tests of one group go to one worker. xdist 3.8 writes the group behind a test's id, where pytest 9.2 loses it."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.split("::")[0]) or nodeid


@functools.cache
def _group(path: str) -> str:
    """The group of a file's tests; empty where they have none."""
    found = re.search(r'^pytestmark = .*xdist_group\("(\w+)"\)', (ROOT / path).read_text(), re.MULTILINE)
    return found[1] if found else ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return Grouped(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(autouse=True)
def stays_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that would have left this machine, also where the code took the refusal for a broken network."""
    marks = request.node.iter_markers("reaches")
    LOOKOUT.strays.clear()
    LOOKOUT.allowed = frozenset(host for mark in marks for host in mark.args)
    yield
    LOOKOUT.allowed = frozenset()
    assert not LOOKOUT.strays, f"it would have left this machine: {LOOKOUT.strays}"


@pytest.fixture
def home() -> Iterator[Home]:
    """A state folder of its own, with a path short enough for Unix sockets."""
    root = Path(tempfile.mkdtemp(prefix="hg-"))
    made = Home(root, root / "engines")
    made.make()
    yield made
    shutil.rmtree(root)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False
    """Whether the connection ended before the body did."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json()["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


class House:
    """The router of one test. `local` stands in for an engine, `provider` for a hosted service behind the real door."""

    def __init__(self, home: Home, local: Upstream, provider: Upstream) -> None:
        self.home, self.local, self.provider = home, local, provider
        self.url = ""
        self.site: dict[str, Any] = {}
        self.instances: list[dict[str, Any]] = [instance("small", local.address)]
        self.built: app.Built | None = None
        self.stop = asyncio.Event()
        self.running: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def start(self, *, hosted: bool = False, **site: Any) -> None:
        """Run the router; with `hosted`, the real door in a process of its own and one enabled provider."""
        models: dict[str, Any] = {
            "small": {"place": "local", "lanes": ["private", "cheap"], "context": 4096, "output": 64,
                      "abilities": ["chat", "completions", "embeddings", "tools", "schema", "logprobs"],
                      "price": {"input": 1, "output": 2}},
        }  # fmt: skip
        if hosted:
            models["big"] = {
                "place": "hosted", "lanes": ["frontier"], "context": 100_000, "output": 1000, "provider": "far",
                "provider_model": "far-1", "abilities": ["chat", "tools", "schema"],
                "parameters": ["temperature", "tools", "tool_choice", "response_format", "stream_options"],
                "price": {"input": 10, "output": 50},
            }  # fmt: skip
            site["providers"] = {
                "far": {"enabled": True, "base_url": f"{self.provider.address}/v1", "key_env": "FAR_KEY",
                        "private_ranges": ["127.0.0.0/8"]},
            }  # fmt: skip
        for name, fields in site.pop("models", {}).items():
            models.setdefault(name, {}).update(fields)
        self.site = {"models": models, **site}
        path = self.home.root / "headgate.yaml"
        path.write_text(yaml.safe_dump(self.site))
        found = catalogue.load(path)
        serving = Upstream(path=self.home.socket("serving"), script={"body": json.dumps(self.document())})
        await self._stack.enter_async_context(serving)
        self.serving = serving
        if hosted:
            lay_out(self.home)
            await self._start_door(path)
        self.built = app.build(self.home, found)
        port = free_port()
        task = asyncio.create_task(app.serve(self.built, self.home, found, Listen(port=port), self.stop))
        self.running = task
        self._stack.push_async_callback(_end, self.stop, task)
        self.url = f"http://127.0.0.1:{port}"
        self.client = await self._stack.enter_async_context(aiohttp.ClientSession())
        await until(lambda: self._ready(hosted), task)

    def document(self) -> dict[str, Any]:
        """What serving publishes."""
        return {"version": 1, "host": "test", "boot": "b", "at": time.time(), "gpus": [], "gpu_note": "none here",
                "instances": self.instances}  # fmt: skip

    def _ready(self, hosted: bool) -> bool:
        assert self.built is not None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(self.url[-5:].strip(":/")))):
            return self.built.fleet.heard > 0 and (not hosted or self.built.fleet.door.open)
        return False

    async def _start_door(self, config: Path) -> None:
        environment = {**os.environ, "HEADGATE_HOME": str(self.home.root), "PYTHONPATH": str(ROOT), "FAR_KEY": "k" * 20}
        with (self.home.logs / "door.log").open("wb") as log:
            door = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "router.door", "--config", str(config), env=environment, stderr=log
            )

        async def end() -> None:
            if door.returncode is None:
                door.terminate()
            await door.wait()

        self.door = door
        self._stack.push_async_callback(end)

    def key(self, data_class: str = "private", team: str = "tests", **settings: Any) -> str:
        """A new key's text."""
        book = KeyBook(self.home.ledger, self.home.secret("pepper"))
        with contextlib.closing(book):
            return book.create(team, DataClass[data_class], KeyDefaults(), **settings)[1]

    async def post(
        self,
        body: Any,
        key: str | None = None,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
    ) -> Reply:
        """POST `body` (JSON, or bytes as they are) and read the whole answer."""
        given = {"Authorization": f"Bearer {key}"} if key else {}
        given |= {"Content-Type": "application/json", **(headers or {})}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data, headers=given) as answer:
            body, broken = bytearray(), False
            try:
                async for piece in answer.content.iter_any():
                    body += piece
            except aiohttp.ClientPayloadError:
                broken = True
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, bytes(body), broken)

    async def get(self, path: str, key: str | None = None) -> Reply:
        given = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.client.get(self.url + path, headers=given) as answer:
            return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    async def events(self, reply: Reply) -> list[dict[str, Any]]:
        """What the ledger holds of the request that was answered with `reply`."""
        assert self.built is not None
        await self.built.store.durable()
        return self.built.store.events(reply.headers["x-request-id"])

    async def close(self) -> None:
        await self._stack.aclose()


@pytest.fixture
async def house(home: Home) -> AsyncIterator[House]:
    async with Upstream() as local, Upstream() as provider:
        made = House(home, local, provider)
        try:
            yield made
        finally:
            await made.close()


@pytest.fixture(scope="session")
def engine_python() -> Path:
    """The Python of this machine's engine; made first, as `up` would, where it is missing."""
    engine = engines.find(EngineChoice(), find_home().engines, gpu=bool(gpus.read().gpus))
    return asyncio.run(engines.ensure(engine, lambda _: None)).python


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """The run's one real installation; only tests in the xdist group `engine` use it, so one worker starts one."""
    made = Installation()
    try:
        made.start()
        yield made
    finally:
        made.stop()


def instance(name: str, address: str, **changed: Any) -> dict[str, Any]:
    """One entry of serving's document."""
    return {
        "name": name, "model": name, "state": "ready", "detail": "", "since": 0, "address": address, "attached": False,
        "context": 4096, "limit": 4, "restarts": 0, "pid": None, "gpus": [], "metrics": "vllm", "key_env": "",
        "key_file": "", "ca_file": "", "load": None, "log": [], **changed,
    }  # fmt: skip


def ask(model: str = "auto", **more: Any) -> dict[str, Any]:
    """A small chat body."""
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody answers on this port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def until(true: Any, task: asyncio.Task[Any] | None = None, within_s: float = 20.0) -> None:
    """Wait until `true()` holds; a task that ends meanwhile is an error."""
    end = time.monotonic() + within_s
    while not true():
        if task is not None and task.done():
            await task
        assert time.monotonic() < end, "it did not become true in time"
        await asyncio.sleep(0.01)


async def _end(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    stop.set()
    await task
