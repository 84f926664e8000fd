"""The building that must not leak: real router, real door, local engines in one network; the sink is the only other.

`python -m tests.leaks.building FOLDER [alone]` tries everything and writes FOLDER/report.json. With `alone` it stands
in a network namespace of its own and the sink in another one. `test_matrix.py` reads the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from router.ledger.keys import KeyBook
from router.records import Route
from serving.catalogue import DataClass, KeyDefaults
from serving.home import Home
from serving.parameters import REFUSED
from tests.conftest import free_port, instance, until
from tests.fakes.faults import Upstream
from tests.leaks import network, places

FAST = {"queue_wait_s": 0, "schemas_per_minute": 0, "header_timeout_s": 30, "max_connections": 256}
LOCALS: dict[str, dict[str, Any]] = {
    "fine": {},
    "failing": {"status": 500, "body": "{}"},
    "dropping": {"reset": 0},
    "silly": {},
    "full": {"gate": True},
}
"""The local models and what their engines do; each has a hosted twin of the same weights, where data could go next."""
LOUD = (
    "import logging, runpy, sys; logging.basicConfig(level=logging.DEBUG); name = sys.argv.pop(1); "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)
"""Runs a module with all that anybody would ever log."""
AT_ONCE = 6


def site(address: str, ca_file: Path) -> dict[str, Any]:
    """Hosted models that take every field there is, so that nothing but their clearance and the search holds any."""
    everything = sorted(places.all_fields() - REFUSED.keys() - {"headgate"})
    abilities = ["chat", "completions", "embeddings", "tools", "schema", "logprobs", "vision"]
    near = {"place": "local", "lanes": ["private", "cheap"], "context": 2048, "output": 64, "abilities": abilities,
            "price": {"input": 1, "output": 2}}  # fmt: skip
    far = {"place": "hosted", "lanes": ["cheap", "frontier"], "context": 100_000, "output": 64, "provider": "far",
           "provider_model": "far-1", "abilities": abilities, "parameters": everything,
           "price": {"input": 10, "output": 50}}  # fmt: skip
    twins = {f"{name}-far": {**far, "same_as": name, "lanes": ["cheap"]} for name in LOCALS}
    until = dt.datetime.now(dt.UTC).date() + dt.timedelta(days=2)
    inner = {"clearance": "internal", "approved": {"by": "dpo", "contract": "c", "until": until}}
    return {
        "models": {**{name: near for name in LOCALS}, **twins, "big": {**far, "lanes": ["frontier"]},
                   "inner": {**far, **inner, "lanes": ["frontier"]}},
        "providers": {"far": {"enabled": True, "base_url": f"{address}/v1", "key_env": "FAR_KEY",
                              "ca_file": str(ca_file), "private_ranges": ["203.0.113.0/24", "127.0.0.0/8"]}},
        "routes": {"chat/completions": {"check": "json_schema"}},
        "escalate": [{"name": team, "when": {"team": team}} for team in ("ruled", "free-ruled")],
        "router": FAST,
    }  # fmt: skip


@dataclass
class Answer:
    """What came of one try."""

    status: int
    place: str
    body: bytes
    headers: dict[str, str]

    @property
    def code(self) -> str:
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            error = json.loads(self.body)["error"]
            return str(error.get("code") or error.get("type"))
        return ""


@dataclass
class Building:
    """All that runs. `came()` is what the sink has."""

    folder: Path
    alone: bool
    home: Home = field(init=False)
    url: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    client: aiohttp.ClientSession = field(init=False)
    admin: aiohttp.ClientSession = field(init=False)
    door: aiohttp.ClientSession = field(init=False)
    sink: asyncio.subprocess.Process = field(init=False)
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    """Every answer of the admin API, and the metrics."""

    def __post_init__(self) -> None:
        self.home = Home(self.folder / "home", self.folder / "engines")
        self.home.make()
        self.config = self.home.root / "headgate.yaml"

    async def came(self) -> dict[str, Any]:
        """What the sink has seen since the start."""
        assert self.sink.stdin and self.sink.stdout
        self.sink.stdin.write(b"\n")
        return dict(json.loads(await self.sink.stdout.readline()))

    async def ask(
        self, route: Route, body: Any, key: str, headers: dict[str, str] | None = None, query: str = ""
    ) -> Answer:
        """One request to the router."""
        given = {"Authorization": f"Bearer {self.keys[key]}", **(headers or {})}
        async with self.client.post(f"{self.url}/v1/{route}{query}", json=body, headers=given) as answer:
            found = {name.lower(): value for name, value in answer.headers.items()}
            data = bytearray()
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for piece in answer.content.iter_any():
                    data += piece
            return Answer(answer.status, found.get("x-headgate-place", ""), bytes(data), found)

    async def explain(self, body: Any, key: str) -> Answer:
        """A dry run, by the operator."""
        name = self.keys[key].split("_")[1]
        async with self.admin.post(f"/explain?key={name}", json=body) as answer:
            data = await answer.read()
            self.said.append(data)
            return Answer(answer.status, "", data, {})

    async def operator(self, path: str) -> bytes:
        """What an operator is shown at `path`."""
        async with self.admin.get(path) as answer:
            self.said.append(await answer.read())
            return self.said[-1]

    def key(self, name: str, data_class: str, team: str = "tests", **settings: Any) -> None:
        """Make a key, known here by `name`."""
        with contextlib.closing(KeyBook(self.home.ledger, self.home.secret("pepper"))) as book:
            self.keys[name] = book.create(team, DataClass[data_class], KeyDefaults(), **settings)[1]


@contextlib.asynccontextmanager
async def standing(folder: Path, alone: bool) -> AsyncIterator[Building]:
    """The building, up and ready; all of it ends with the context."""
    async with contextlib.AsyncExitStack() as stack:
        built = Building(folder, alone)
        address, pem = await _sink(built, stack)
        found = []
        for name, script in LOCALS.items():
            for number in range(2 if name == "failing" else 1):
                engine = await stack.enter_async_context(Upstream(script=dict(script)))
                built.upstreams[f"{name}-{number}"] = engine
                limit = 1 if name == "full" else 64
                found.append(instance(f"{name}-{number}", engine.address, model=name, limit=limit, context=2048))
        document = {"version": 1, "host": "t", "boot": "b", "at": 0, "gpus": [], "gpu_note": "", "instances": found}
        served = Upstream(path=built.home.socket("serving"), script={"body": json.dumps(document)})
        await stack.enter_async_context(served)
        built.config.write_text(yaml.safe_dump(site(address, pem)))
        await _processes(built, stack)
        yield built


async def _sink(built: Building, stack: contextlib.AsyncExitStack) -> tuple[str, Path]:
    """Start the sink; returns the provider's address and its certificate."""
    pem = network.certificate(built.folder)
    start = [*(network.alone() if built.alone else ()), *network.python("-m", "tests.leaks.sink", str(pem))]
    port = "443" if built.alone else "0"
    built.sink = await asyncio.create_subprocess_exec(
        *start, port, *(["tap"] if built.alone else []), env=network.environment(), limit=2**28,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stack.push_async_callback(_ended, built.sink)
    assert built.sink.stdout
    port = json.loads(await built.sink.stdout.readline())["port"]
    if built.alone:
        network.joined(built.sink.pid)
    return f"https://{network.SINK if built.alone else '127.0.0.1'}:{port}", pem


async def _processes(built: Building, stack: contextlib.AsyncExitStack) -> None:
    """Start router and door as processes of their own, both as loud as can be, and wait until they are ready."""
    port = free_port()
    environment = network.environment(HEADGATE_HOME=str(built.home.root), FAR_KEY="k" * 20)
    for name, more in (("router.door", []), ("router", ["--port", str(port)])):
        log = stack.enter_context((built.home.logs / f"{name}.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            *network.python("-c", LOUD, name, "--config", str(built.config), *more), env=environment, stderr=log,
            stdout=log,
        )  # fmt: skip
        stack.push_async_callback(_ended, process)
        built.processes.append(process)
    built.url = f"http://127.0.0.1:{port}"
    built.client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)))
    for name in ("admin", "door"):
        connector = aiohttp.UnixConnector(str(built.home.socket(name)), limit=AT_ONCE)
        session = aiohttp.ClientSession(f"http://{name}", connector=connector)
        setattr(built, name, await stack.enter_async_context(session))
    await asyncio.gather(*(_reached(built, name) for name in ("admin", "door")))
    await _ready(built)
    # What may leave is asked by other teams: for those of the first the history knows more with every request.
    for name, data_class, team in (("private", "private", ""), ("public", "public", ""), ("free", "public", "free-")):
        built.key(name, data_class, f"{team}tests")
        built.key(f"{name}-escalates", data_class, f"{team}tests", scopes=frozenset({"escalate"}))
        built.key(f"{name}-ruled", data_class, f"{team}ruled")


async def _reached(built: Building, name: str) -> None:
    path = built.home.socket(name)
    await until(lambda: path.exists() or any(one.returncode is not None for one in built.processes), within_s=60)


async def _ready(built: Building) -> None:
    for _ in range(3000):
        with contextlib.suppress(aiohttp.ClientError):
            async with built.admin.get("/status") as answer:
                state = await answer.json()
                ready = [e for e in state["endpoints"] if e["state"] == "ready"]
                if len(ready) >= 2 * len(LOCALS) + 3:
                    return
        await asyncio.sleep(0.02)
    log = (built.home.logs / "router.log").read_text()[-2000:]
    raise AssertionError(f"not ready; the router's log ends with: {log}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.stdin:
        process.stdin.close()
    elif process.returncode is None:
        process.terminate()
    await process.wait()


def main() -> None:
    """Try everything, in this process's network."""
    from tests.leaks.trying import try_everything

    folder, alone = Path(sys.argv[1]), "alone" in sys.argv[2:]

    async def run() -> None:
        async with standing(folder, alone) as built:
            report = await try_everything(built)
        (folder / "report.json").write_text(json.dumps(report))

    asyncio.run(run())


if __name__ == "__main__":
    main()
