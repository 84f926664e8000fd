"""Several workers on one port: real processes, one ledger, one budget, one operator's view, and no request lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml

from router import child, keeper, workers
from router.ledger.keys import KeyBook
from router.ledger.store import verify
from router.workers import Share, Workers
from serving.catalogue import DataClass, KeyDefaults
from serving.home import Home
from tests.conftest import ask, free_port, instance, listens, until
from tests.fakes.faults import Upstream


class Crew:
    """`python -m router` with several workers, in front of a scripted engine."""

    def __init__(self, home: Home, engine: Upstream) -> None:
        self.count = 2
        self.home, self.engine, self.port = home, engine, free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.url = f"http://127.0.0.1:{self.port}/v1/chat/completions"

    async def start(self) -> None:
        """Start it, and return once every worker answers callers and has heard serving."""
        config = self.home.root / "headgate.yaml"
        config.write_text(yaml.safe_dump(SITE | {"router": {"workers": self.count}}))
        command = (sys.executable, "-m", "router", "--parent-pipe", "--config", str(config), f"--port={self.port}")
        with (self.home.logs / "router.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env=keeper.environment(self.home, os.environ),
            )  # fmt: skip
        await self.all_up()

    async def all_up(self) -> None:
        await asyncio.gather(*(self._up(number) for number in range(1, self.count + 1)))

    async def _up(self, number: int) -> None:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                if (await self.operator("/status", number))["serving_heard"]:
                    return
            assert time.monotonic() < end and (self.process is None or self.process.returncode is None), self.log()
            await asyncio.sleep(0.02)

    def log(self) -> str:
        path = self.home.logs / "router.log"
        return path.read_text() if path.exists() else ""

    async def operator(self, path: str, number: int = 1) -> Any:
        """What a worker answers on its own Unix socket."""
        connector = aiohttp.UnixConnector(str(self.home.socket(Share(number, self.count).socket())))
        async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://worker{path}") as answer:
            raw = await answer.read()
            return orjson.loads(raw) if answer.content_type == "application/json" else raw.decode()

    async def answered(self) -> float:
        """Requests that ended with an answer, as the operator's metrics have it."""
        lines = (await self.operator("/metrics")).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines
                   if line.startswith("headgate_requests_total{") and 'outcome="answered"' in line)  # fmt: skip

    def key(self, **settings: Any) -> tuple[str, str]:
        """A new key's id and text."""
        with contextlib.closing(KeyBook(self.home.ledger, self.home.secret("pepper"))) as book:
            key, text = book.create("tests", DataClass.private, KeyDefaults(), **settings)
            return key.id, text

    async def ask(self, key: str, **more: Any) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own, so that any worker may get it."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url, json=ask(**more), headers={"Authorization": f"Bearer {key}"}) as answer,
        ):
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read()

    def rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.home.ledger)) as db:
            return db.execute(query).fetchall()

    def kinds(self) -> dict[str, int]:
        """How many events of requests are on disk, by kind."""
        return dict(self.rows("SELECT kind, COUNT(*) FROM events WHERE request != '' GROUP BY kind"))

    def worker_pid(self, number: int, parent: int = 0) -> int:
        """Of the worker that runs now, among the children of `parent`."""
        parent = parent or (self.process.pid if self.process else 0)
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        given = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children}
        wanted = [b"--worker", str(number).encode()]
        return next(int(pid) for pid, args in given.items() if wanted in [args[i : i + 2] for i in range(len(args))])

    async def stop(self) -> int:
        """SIGTERM to the parent, as the keeper does."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(30):
            return await self.process.wait()


SITE: dict[str, Any] = {
    "models": {
        "small": {"place": "local", "lanes": ["private", "cheap"], "context": 4096, "output": 64,
                  "abilities": ["chat", "completions"], "price": {"input": 1, "output": 2}},
    },
}  # fmt: skip


@pytest.fixture
async def crew(home: Home) -> AsyncIterator[Crew]:
    async with Upstream() as engine:
        document = {"version": 1, "host": "test", "boot": "b", "at": time.time(), "gpus": [], "gpu_note": "none here",
                    "instances": [instance("small", engine.address, limit=0)]}  # fmt: skip
        async with Upstream(path=home.socket("serving"), script={"body": json.dumps(document)}):
            made = Crew(home, engine)
            try:
                yield made
            finally:
                if made.process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        made.process.terminate()
                    await made.process.wait()


def refused(answers: list[tuple[int, dict[str, str], bytes]], code: str) -> int:
    return sum(status != 200 and json.loads(body)["error"]["code"] == code for status, _, body in answers)


async def test_workers_answer_on_one_port_and_are_one_router_to_callers_and_operator(crew: Crew) -> None:
    crew.count = 3
    await crew.start()
    _, key = crew.key()
    answers = await asyncio.gather(*(crew.ask(key) for _ in range(60)))
    assert Counter(status for status, _, _ in answers) == {200: 60}
    # Whichever worker is asked, and whoever answered.
    for _, headers, _ in answers:
        events = (await crew.operator(f"/requests/{headers['x-request-id']}"))["events"]
        assert [event["kind"] for event in events] == ["opened", "closed"]
    per_writer = Counter(writer for (writer,) in crew.rows("SELECT writer FROM events WHERE kind='opened'"))
    assert len(per_writer) > 1 and sum(per_writer.values()) == 60
    with contextlib.closing(sqlite3.connect(crew.home.ledger)) as db:
        assert verify(db) == []
    assert await crew.answered() == 60
    status = await crew.operator("/status")
    assert status["workers"] == {"count": 3, "answer": [1, 2, 3]}
    assert status["in_flight"] == 0 and status["ledger"]["healthy"]
    # Any worker can be asked, for the first one may just be started again.
    assert (await crew.operator("/status", 3))["workers"] == status["workers"]
    assert (await crew.operator("/status?alone=true", 3))["workers"] == {"count": 1, "answer": [3]}
    await _bu_008_a_limit_a_minute_is_that_of_all_workers(crew)
    await _au_006_a_revoked_key_works_at_no_worker_a_moment_later(crew)
    await _a_port_of_somebody_else_and_a_second_router_are_refused(crew)
    assert await crew.stop() == 0


async def _bu_008_a_limit_a_minute_is_that_of_all_workers(crew: Crew) -> None:
    _, key = crew.key(requests_per_minute=5, tokens_per_minute=100_000)
    answers = await asyncio.gather(*(crew.ask(key) for _ in range(20)))
    assert refused(answers, "rate_limit_exceeded") == 15
    assert sorted(status for status, _, _ in answers) == [200] * 5 + [429] * 15
    for status, headers, _ in answers:
        assert headers["x-ratelimit-limit-requests"] == "5"
        assert 0 < int(headers["x-ratelimit-remaining-tokens"]) < 100_000
        assert status == 200 or 0 < float(headers["retry-after"]) <= 60


async def _au_006_a_revoked_key_works_at_no_worker_a_moment_later(crew: Crew) -> None:
    name, key = crew.key()
    assert {status for status, _, _ in await asyncio.gather(*(crew.ask(key) for _ in range(20)))} == {200}
    with contextlib.closing(KeyBook(crew.home.ledger, crew.home.secret("pepper"))) as book:
        book.revoke(name)
        revoked = time.monotonic()
    while {status for status, _, _ in await asyncio.gather(*(crew.ask(key) for _ in range(20)))} != {401}:
        assert time.monotonic() < revoked + 5
    # And stays so, wherever it is tried.
    assert {status for status, _, _ in await asyncio.gather(*(crew.ask(key) for _ in range(20)))} == {401}


async def _a_port_of_somebody_else_and_a_second_router_are_refused(crew: Crew) -> None:
    for port, words in ((crew.port, f"127.0.0.1:{crew.port} cannot be used"), (free_port(), "another router of")):
        command = (sys.executable, "-m", "router", "--config", str(crew.home.root / "headgate.yaml"), f"--port={port}")
        second = await asyncio.create_subprocess_exec(
            *command, env=keeper.environment(crew.home, os.environ), stderr=asyncio.subprocess.PIPE
        )
        _, said = await second.communicate()
        assert second.returncode == keeper.CONFIG_ERROR and words in said.decode()
    assert (await crew.operator("/status"))["workers"]["answer"] == [1, 2, 3]


async def test_bu_001_bu_002_px_001_a_budget_is_exact_over_workers_also_when_one_is_killed(crew: Crew) -> None:
    await crew.start()
    _, free = crew.key()
    await crew.ask(free)
    await until(lambda: crew.rows("SELECT 1 FROM events WHERE kind='closed'"))
    ((hold,),) = crew.rows("SELECT cost FROM events WHERE kind='opened'")
    ((cost,),) = crew.rows("SELECT cost FROM events WHERE kind='closed'")
    _, key = crew.key(budget_usd=50 * hold)
    crew.engine.script, before = {"gate": True}, len(crew.engine.requests)
    asked = [asyncio.create_task(crew.ask(key)) for _ in range(200)]
    await until(lambda: sum(task.done() for task in asked) == 150)
    await until(lambda: len(crew.engine.requests) == before + 50)
    assert refused([task.result() for task in asked if task.done()], "budget_exceeded") == 150

    await until(lambda: crew.kinds() == {"opened": 201, "closed": 151})

    pid = crew.worker_pid(1)  # the operator's too
    os.kill(pid, signal.SIGKILL)
    await until(lambda: crew.engine.left > 0)  # the engine stops working for nobody
    await crew.all_up()
    assert crew.worker_pid(1) != pid and "worker-1 ended with code -9; starting it again" in crew.log()
    assert await crew.answered() == 0  # the sums begin anew, and do not fall to what the others have
    # The others' requests are still open, and what the dead one had open is closed at its hold.
    broken = sum(task.done() and task.exception() is not None for task in asked)
    assert 0 < broken < 50
    await until(lambda: crew.kinds() == {"opened": 201, "closed": 151 + broken})
    lost = crew.rows("SELECT cost FROM events WHERE kind='closed' AND body LIKE '%\"outcome\":\"lost\"%'")
    assert lost == [(hold,)] * broken
    crew.engine.gate.set()
    ended = await asyncio.gather(*asked, return_exceptions=True)
    answered = [one for one in ended if isinstance(one, tuple) and one[0] == 200]
    assert len(answered) == 50 - broken
    assert sum(isinstance(one, aiohttp.ClientError) for one in ended) == broken
    assert await crew.answered() == len(answered)
    await until(lambda: crew.kinds() == {"opened": 201, "closed": 201})
    each = "SELECT COUNT(*) n FROM events WHERE request != '' GROUP BY request, kind"
    assert crew.rows(f"SELECT MAX(n) FROM ({each})") == [(1,)]
    with contextlib.closing(sqlite3.connect(crew.home.ledger)) as db:
        assert verify(db) == []

    # What is left of the budget is what the ledger says, to the cent, and so it is after a start from the ledger.
    left = int((50 * hold - broken * hold - len(answered) * cost) / hold + 1e-9)
    crew.engine.gate.clear()
    before = len(crew.engine.requests)
    asked = [asyncio.create_task(crew.ask(key)) for _ in range(60)]
    await until(lambda: sum(task.done() for task in asked) == 60 - left)
    crew.engine.gate.set()
    assert sum(status == 200 for status, _, _ in await asyncio.gather(*asked)) == left
    assert len(crew.engine.requests) == before + left


async def test_a_worker_that_stands_still_is_ended_and_what_it_held_is_settled_as_for_one_that_died(
    crew: Crew, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(child, "STILL_GRACE_S", 0.05)
    config = crew.home.root / "headgate.yaml"
    config.write_text(yaml.safe_dump(SITE | {"router": {"workers": 2}}))
    args = ["--config", str(config), f"--port={crew.port}"]
    workers.prepare(crew.home, time.time())
    parent = Workers(crew.home, 2, args, keeper.environment(crew.home, os.environ), silent_s=4.0)
    running = asyncio.create_task(parent.run())
    try:
        await crew.all_up()
        _, key = crew.key(budget_usd=1.0)
        crew.engine.script = {"gate": True}
        asked = [asyncio.create_task(crew.ask(key)) for _ in range(20)]
        await until(lambda: len(crew.engine.requests) == 20 and crew.kinds() == {"opened": 20})
        pids = {number: crew.worker_pid(number, os.getpid()) for number in (1, 2)}
        os.kill(pids[2], signal.SIGSTOP)
        assert (await crew.operator("/status"))["workers"] == {"count": 2, "answer": [1]}
        lines = (await crew.operator("/metrics")).splitlines()
        assert {"headgate_router_workers 1.0", "headgate_router_workers_expected 2.0"} <= {*lines}
        await until(lambda: "stood still" in capfd.readouterr().out, running, within_s=30)
        await crew.all_up()
        assert crew.worker_pid(1, os.getpid()) == pids[1] != crew.worker_pid(2, os.getpid()) != pids[2]
        crew.engine.gate.set()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        broken = sum(isinstance(one, aiohttp.ClientError) for one in ended)
        assert 0 < broken < 20 and sum(isinstance(one, tuple) and one[0] == 200 for one in ended) == 20 - broken
        await until(lambda: crew.kinds() == {"opened": 20, "closed": 20})
        lost = crew.rows("SELECT COUNT(*) FROM events WHERE kind='closed' AND body LIKE '%\"outcome\":\"lost\"%'")
        assert lost == [(broken,)]
        assert {status for status, _, _ in await asyncio.gather(*(crew.ask(key) for _ in range(20)))} == {200}
    finally:
        parent.stop()
        await running


async def test_a_stop_lets_answers_end_and_leaves_no_process(crew: Crew) -> None:
    await crew.start()
    _, key = crew.key()
    pids = [crew.worker_pid(number) for number in range(1, crew.count + 1)]
    crew.engine.script = {"gate": True}
    asked = [asyncio.create_task(crew.ask(key)) for _ in range(12)]
    await until(lambda: len(crew.engine.requests) == 12)
    stopping = asyncio.create_task(crew.stop())
    await until(lambda: not listens(crew.port))
    crew.engine.gate.set()
    assert {status for status, _, _ in await asyncio.gather(*asked)} == {200}
    assert await stopping == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert crew.rows("SELECT COUNT(*) FROM events WHERE kind='closed'") == [(12,)]


async def test_workers_end_with_their_parent_and_the_next_router_waits_for_them(crew: Crew) -> None:
    await crew.start()
    _, key = crew.key()
    assert crew.process is not None
    crew.engine.script = {"gate": True}
    asked = asyncio.create_task(crew.ask(key))
    await until(lambda: len(crew.engine.requests) == 1)
    crew.process.kill()
    await crew.process.wait()
    await until(lambda: not listens(crew.port))
    again = asyncio.create_task(crew.start())
    await until(lambda: crew.process is not None and crew.process.returncode is None)
    assert not asked.done()
    crew.engine.gate.set()
    assert (await asked)[0] == 200  # it was answered to its end
    await again
    closed = crew.rows("SELECT body FROM events WHERE kind='closed'")
    assert [orjson.loads(body)["outcome"] for (body,) in closed] == ["answered"]


async def test_workers_that_cannot_start_as_they_are_configured_end_the_whole(home: Home) -> None:
    made = Workers(home, 2, [], os.environ)
    wrong = "import sys; assert '--writer' in sys.argv; sys.exit(2)"
    made._parts = [replace(part, args=(sys.executable, "-c", wrong)) for part in made._parts]
    async with asyncio.timeout(20):
        assert await made.run() == keeper.CONFIG_ERROR


async def test_what_a_dead_worker_left_open_is_passed_on_until_one_has_closed_it(home: Home) -> None:
    made = Workers(home, 1, [], os.environ)
    note = f"import sys; open({str(home.root / 'starts')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n'); sys.exit(1)"
    made._parts = [replace(part, args=(sys.executable, "-c", note)) for part in made._parts]
    task = asyncio.create_task(made.run())
    await until(lambda: (home.root / "starts").exists() and len((home.root / "starts").read_text().splitlines()) >= 3)
    made.stop()
    await task
    first, second, third = ((home.root / "starts").read_text().splitlines())[:3]
    ids = [line.split()[3] for line in (first, second, third)]
    gone = [
        [a.removeprefix("--gone=") for a in line.split() if a.startswith("--gone=")] for line in (first, second, third)
    ]
    assert len(set(ids)) == 3 and gone == [[], ids[:1], ids[:2]]


@pytest.mark.parametrize(("limit", "of"), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 3), (100, 7), (5, 1)])
def test_parts_of_a_limit_make_the_whole_but_each_worker_has_one(limit: int, of: int) -> None:
    parts = [Share(number, of).part(limit) for number in range(1, of + 1)]
    assert sum(parts) == (max(limit, of) if limit else 0)
    assert max(parts) - min(parts) <= 1
