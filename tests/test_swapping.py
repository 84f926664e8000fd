"""Two models in one place, from a caller to an answer: who is asked for comes, nobody's request is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from router import app
from router.ledger.keys import KeyBook
from router.listen import Listen
from serving import catalogue, processes, status
from serving.catalogue import DataClass, KeyDefaults, Model, Swap
from serving.command import Command
from serving.endpoint import Timing
from serving.engines import Engine
from serving.gpus import Readings
from serving.home import Home, listen_privately
from serving.local import Means, Say
from serving.placement import Placed, Plan
from serving.supervisor import Supervisor
from serving.turns import Turns
from tests.conftest import ask, free_port, until

FAKE = Path(__file__).parent / "fakes" / "engine.py"
QUICK = Timing(
    scrape_s=0.05, busy_scrape_s=0.05, idle_scrape_s=0.05, look_s=0.02, quiet_s=1.0, first_pause_s=0.05, start_s=20,
    grace_s=1, drain_s=2, drain_least_s=0.05, sleep_s=20, memory_s=0.5, heard_s=1.5,
)  # fmt: skip
STAY_S = 1.5


class Site:
    """A whole site in this process: supervisor, fake engines `a` and `b` in one place, and the real router."""

    def __init__(self, home: Home) -> None:
        self.home, self.said = home, list[str]()
        self.settings: dict[str, dict[str, str]] = {}
        self.stack = contextlib.AsyncExitStack()

    async def start(self, *, router: Mapping[str, Any], swap: Swap | None = None, sleeps: bool = False) -> None:
        entry = {"place": "local", "lanes": ["private", "cheap"], "context": 4096, "output": 64}
        path = self.home.root / "headgate.yaml"
        path.write_text(yaml.safe_dump({"models": {"a": entry, "b": entry}, "router": dict(router)}))
        found = catalogue.load(path)
        models = [placed(found.models[name], sleeps) for name in ("a", "b")]
        await self._serve(models, swap or Swap(groups=(("a", "b"),), min_stay_s=STAY_S, drain_s=20))
        built, port, stop = app.build(self.home, found), free_port(), asyncio.Event()
        self.built = built
        running = asyncio.create_task(app.serve(built, self.home, found, Listen(port=port), stop))
        self.stack.push_async_callback(_stopped, stop, running)
        self.url = f"http://127.0.0.1:{port}"
        self.client = await self.stack.enter_async_context(aiohttp.ClientSession())
        book = KeyBook(self.home.ledger, self.home.secret("pepper"))
        with contextlib.closing(book):
            self.key = book.create("tests", DataClass.private, KeyDefaults())[1]
        await until(lambda: self.state("a") == "ready" and self.state("b") == "asleep", running)

    async def _serve(self, models: list[Placed], swap: Swap) -> None:
        means = Means(
            home=self.home, installation=self.home.installation(), inherited=os.environ.copy(), engine=_engine,
            weights=_weights, command=self._command, say=self.said.append, turns=Turns(),
        )  # fmt: skip
        self.supervisor = Supervisor(
            plan=Plan(tuple(models), ()), attached=(), means=means, timing=QUICK, read_gpus=Readings,
            readings=Readings(), providers=frozenset(), swap=swap,
        )  # fmt: skip
        host = status.Host("test", secrets.token_hex(4))
        server = status.server(status.application(self.supervisor, host))
        listener = self.stack.enter_context(listen_privately(self.home.socket("serving")))
        serving, stop = asyncio.create_task(server.serve(sockets=[listener])), asyncio.Event()

        async def end() -> None:
            server.should_exit = True
            await serving

        self.stack.push_async_callback(end)
        self.stack.push_async_callback(_stopped, stop, asyncio.create_task(self.supervisor.run(stop, asyncio.Event())))

    def _command(self, one: Placed, *, python: Path, socket: Path, instance: str, **_: Any) -> Command:
        settings = {f"FAKE_{key.upper()}": value for key, value in self.settings.get(instance, {}).items()}
        args = (str(python), str(FAKE), "--uds", str(socket), "--served-model-name", one.model.name)
        return Command(args, {"PATH": os.environ["PATH"], **settings})

    def state(self, name: str) -> str:
        """What the router holds it for."""
        return next((e.state for e in self.built.fleet.snapshot().endpoints if e.name == name), "")

    def starts(self) -> list[str]:
        """Who was started, in order."""
        return [line.split(":")[0] for line in self.said if line.endswith("starting: the engine starts")]

    async def ask(self, model: str) -> tuple[int, dict[str, str], Any]:
        """One request of the private key: status, headers, body."""
        headers = {"Authorization": f"Bearer {self.key}"}
        async with self.client.post(f"{self.url}/v1/chat/completions", json=ask(model), headers=headers) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(await answer.read())

    async def get(self, path: str) -> Any:
        async with self.client.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}) as answer:
            return json.loads(await answer.read())


async def _engine(say: Say) -> Engine:
    return Engine(Path(sys.executable), "fake", "1")


async def _weights(engine: Engine, one: Placed, say: Say) -> str:
    return "/weights"


async def _stopped(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    stop.set()
    await task


def placed(model: Model, sleeps: bool) -> Placed:
    return Placed(model, None, "cpu", (), 4096, 8, sleeps=sleeps)


@pytest_asyncio.fixture
async def site(home: Home) -> AsyncIterator[Site]:
    made = Site(home)
    try:
        yield made
    finally:
        await made.stack.aclose()
    assert processes.ours(home.installation()) == []


async def test_a_private_request_waits_for_a_model_that_sleeps_and_is_answered_by_it(site: Site) -> None:
    await site.start(router={"queue_wait_s": 60})
    code, headers, body = await site.ask("b")
    assert (code, headers["x-headgate-model"], body["model"]) == (200, "b", "b")
    assert site.starts() == ["a", "b"]
    code, headers, body = await site.ask("a")
    assert (code, body["model"]) == (200, "a")
    assert site.starts() == ["a", "b", "a"]


async def test_models_asked_for_in_turn_change_places_at_most_once_a_stay_and_nothing_is_lost(site: Site) -> None:
    site.settings["a"] = site.settings["b"] = {"takes_s": "0.1"}
    await site.start(router={"queue_wait_s": 60})
    began = asyncio.get_running_loop().time()
    answers = await asyncio.gather(*(site.ask(name) for name in "abababababab"))
    assert [code for code, _, _ in answers] == [200] * 12
    assert [body["model"] for _, _, body in answers] == list("abababababab")
    later = await asyncio.gather(*(site.ask(name) for name in "abab"))
    assert [body["model"] for _, _, body in later] == list("abab")
    took = asyncio.get_running_loop().time() - began
    assert len(site.starts()) - 1 <= took / STAY_S + 1


@pytest.mark.long
async def test_who_waits_for_room_at_a_model_that_falls_asleep_meanwhile_is_not_forgotten(site: Site) -> None:
    site.settings["a"] = {"takes_s": "3"}
    await site.start(router={"queue_wait_s": 30})
    many = [asyncio.create_task(site.ask("a")) for _ in range(12)]  # it has eight places
    await until(lambda: site.built.fleet._room.waiting() == 4)
    other = asyncio.create_task(site.ask("b"))
    assert [code for code, _, _ in await asyncio.gather(*many, other)] == [200] * 13
    assert site.starts() == ["a", "b", "a"]


@pytest.mark.long
async def test_under_a_steady_load_of_both_every_request_is_answered_by_its_own_model(site: Site) -> None:
    site.settings["a"] = site.settings["b"] = {"takes_s": "0.2"}
    await site.start(router={"queue_wait_s": 60}, swap=Swap(groups=(("a", "b"),), min_stay_s=2, drain_s=20))
    began, sent = asyncio.get_running_loop().time(), []
    for number in range(120):
        sent.append(("a" if number % 3 else "b", asyncio.create_task(site.ask("a" if number % 3 else "b"))))
        await asyncio.sleep(0.08)
    answers = [(name, *await task) for name, task in sent]
    assert [code for _, code, _, _ in answers] == [200] * 120
    assert all(body["model"] == name for name, _, _, body in answers)
    took = asyncio.get_running_loop().time() - began
    assert 2 < len(site.starts()) <= took / 2 + 2


async def test_who_would_wait_too_long_is_told_when_the_model_will_be_there(site: Site) -> None:
    await site.start(router={"queue_wait_s": 30}, swap=Swap(groups=(("a", "b"),), min_stay_s=40, drain_s=20))
    assert (await site.ask("b"))[0] == 200, "nobody had asked for the first one, so it made room at once"
    assert site.supervisor.sharing.ready_in_s("a") is not None
    site.built.fleet._room.wait_s = 0.3
    code, headers, body = await site.ask("a")
    assert (code, body["error"]["code"]) == (503, "queue_timeout")
    assert 30 <= int(headers["retry-after"]) <= 45, "what is left of the stay of b, and the start of a"
    assert (await site.ask("b"))[0] == 200


async def test_a_model_that_sleeps_is_listed_and_shown(site: Site) -> None:
    await site.start(router={})
    listed = await site.get("/v1/models")
    assert {"a", "b"} <= {entry["id"] for entry in listed["data"]}
    document = site.built.fleet.instances["instances"]
    asleep = next(entry for entry in document if entry["name"] == "b")
    assert asleep["state"] == "asleep" and "has not run yet" in asleep["detail"]
    assert site.state("b") == "asleep"
    assert (await site.get("/ready"))["ready"]


async def test_serving_hears_demand_on_its_own_socket_alone_and_takes_no_nonsense(site: Site) -> None:
    await site.start(router={}, swap=Swap(groups=(("a", "b"),), min_stay_s=600))
    connector = aiohttp.UnixConnector(path=str(site.home.socket("serving")))
    async with aiohttp.ClientSession("http://serving", connector=connector) as serving:

        async def told(body: bytes) -> int:
            async with serving.post("/demand", data=body) as answer:
                return answer.status

        for nonsense in (b"", b"[]", b"{}", b'"b"', b"\xff", b"[" * 5000):
            assert await told(nonsense) == 400
        for nobody in (b'{"model": "c"}', b'{"model": 7}', b'{"model": ["b"]}'):
            assert await told(nobody) == 404
        assert site.state("b") == "asleep"
        for _ in range(2):
            assert await told(b'{"model": "b"}') == 200
    async with site.client.post(f"{site.url}/demand", json={"model": "b"}) as answer:
        assert answer.status == 404, "callers cannot say it"
    await until(lambda: site.state("b") == "ready")


async def test_a_lane_with_a_model_that_is_awake_wakes_nobody(site: Site) -> None:
    await site.start(router={"queue_wait_s": 60})
    answers = await asyncio.gather(*(site.ask("private") for _ in range(20)))
    assert {body["model"] for _, _, body in answers} == {"a"}
    assert site.starts() == ["a"]
    assert not re.search("b: wakes", "\n".join(site.said))
