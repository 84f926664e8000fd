"""Both clocks set back by two days, as real processes see it: nothing holds again that had ended.

The ledger and the book know what time it was; the clock of the machine, which router and door share, does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from router.door.book import open_book
from router.ledger.keys import KeyBook
from router.ledger.store import Event, Store
from serving.catalogue import DataClass, KeyDefaults
from serving.home import Home
from tests.conftest import ROOT, ask, free_port, instance, until
from tests.fakes.faults import Upstream
from tests.fakes.rules import lay_out

DAY_S = 86_400.0
BACK = (
    "import time, runpy, sys; real, back = time.time, float(sys.argv.pop(1)); time.time = lambda: real() - back; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Runs a module on a machine whose clock is so many seconds late."""


def site(provider: str) -> dict[str, Any]:
    yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    return {
        "models": {
            "small": {"place": "local", "lanes": ["cheap"], "context": 4096, "output": 64, "abilities": ["chat"]},
            "big": {"place": "hosted", "lanes": ["frontier"], "context": 100_000, "output": 1000, "provider": "far",
                    "provider_model": "far-1", "abilities": ["chat"], "clearance": "private",
                    "approved": {"by": "dpo", "contract": "c", "until": yesterday}},
        },
        "providers": {"far": {"enabled": True, "base_url": f"{provider}/v1", "key_env": "FAR_KEY",
                              "private_ranges": ["127.0.0.0/8"]}},
    }  # fmt: skip


def seen_today(home: Home) -> None:
    """Router and door have run until a moment ago, by the right clock."""
    with contextlib.closing(Store(home.ledger)) as store:
        store.append(Event(time.time(), "refused", "req_1", "", {"route": "embeddings", "outcome": "refused"}))
        store.flush()
    open_book(home.book, "policy").close()


@contextlib.asynccontextmanager
async def running(home: Home, module: str, *args: str) -> AsyncIterator[None]:
    environment = {**os.environ, "HEADGATE_HOME": str(home.root), "PYTHONPATH": str(ROOT), "FAR_KEY": "k" * 20}
    with (home.logs / f"{module}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BACK, str(2 * DAY_S), module, "--config", str(home.root / "headgate.yaml"), *args,
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def router(home: Home, far: Upstream) -> AsyncIterator[str]:
    """The router's address; it and the door run two days late, and were right before."""
    port = free_port()
    (home.root / "headgate.yaml").write_text(yaml.safe_dump(site(far.address)))
    lay_out(home)
    seen_today(home)
    async with Upstream() as local, contextlib.AsyncExitStack() as stack:
        document = {"version": 1, "host": "t", "boot": "b", "at": 0, "gpus": [], "gpu_note": "",
                    "instances": [instance("small", local.address)]}  # fmt: skip
        served = Upstream(path=home.socket("serving"), script={"body": json.dumps(document)})
        await stack.enter_async_context(served)
        await stack.enter_async_context(running(home, "router.door"))
        await stack.enter_async_context(running(home, "router", f"--port={port}"))
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
async def far() -> AsyncIterator[Upstream]:
    async with Upstream() as provider:
        yield provider


async def test_no_approval_and_no_key_that_had_ended_holds_again(home: Home, far: Upstream, router: str) -> None:
    with contextlib.closing(KeyBook(home.ledger, home.secret("pepper"))) as book:
        made = [book.create("t", DataClass[name], KeyDefaults())[1] for name in ("public", "internal")]
        ended = book.create("t", DataClass.public, KeyDefaults(), expires=time.time() - DAY_S)[1]
    async with aiohttp.ClientSession() as client:

        async def said(key: str) -> tuple[int, str]:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                headers = {"Authorization": f"Bearer {key}"}
                async with client.post(f"{router}/v1/chat/completions", json=ask("big"), headers=headers) as answer:
                    return answer.status, (await answer.json()).get("error", {}).get("code")
            return 0, ""

        found: list[tuple[int, str]] = []
        task = asyncio.create_task(_tried(lambda: said(made[0]), found))
        await until(task.done, within_s=60)
        assert found[-1][0] == 200, "the way out is open for what a public model may have"
        before = len(far.requests)
        assert await said(made[1]) == (403, "data_class_not_cleared")
        assert (await said(ended))[0] == 401
    assert len(far.requests) == before, "not a byte of it"
    for name in ("router", "router.door"):
        assert "2.0 days behind" in Path(home.logs / f"{name}.log").read_text(), "and the logs say so"


async def _tried(say: Any, found: list[tuple[int, str]]) -> None:
    """Until it is answered: both have to start first."""
    while not found or found[-1][0] != 200:
        found.append(await say())
        await asyncio.sleep(0.05)
