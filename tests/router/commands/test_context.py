"""What every command asks of an installation that runs: the router answers through any of its workers."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.commands import context
from router.commands.context import NotRunning, Silent, Stop, ask_admin
from serving.home import Home
from tests.fakes.faults import Upstream


async def asked(home: Home) -> object:
    return await asyncio.to_thread(ask_admin, home, "/status")


def answering(home: Home, number: int, **script: object) -> Upstream:
    name = f"admin-{number}" if number > 1 else "admin"
    return Upstream(path=home.socket(name), script={"body": json.dumps({"worker": number}), **script})


async def test_the_next_worker_answers_while_the_first_is_started_again(home: Home) -> None:
    async with answering(home, 2):
        assert await asked(home) == {"worker": 2}
        async with answering(home, 1):
            assert await asked(home) == {"worker": 1}
    async with answering(home, 10), answering(home, 3):
        assert await asked(home) == {"worker": 3}  # what worker 2 has left there refuses at once


async def test_one_that_stands_still_is_not_waited_for_long(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "NEXT_S", 0.1)
    async with answering(home, 1, gate=True) as still:
        async with answering(home, 2):
            assert await asked(home) == {"worker": 2}
        with pytest.raises(Silent, match="the router does not answer"):
            await asked(home)
        still.gate.set()


async def test_no_worker_at_all_is_not_running_and_an_error_is_an_answer(home: Home) -> None:
    with pytest.raises(NotRunning, match="headgate up"):
        await asked(home)
    async with answering(home, 1, status=404, body='{"error": {"message": "no such request"}}'), answering(home, 2):
        with pytest.raises(Stop, match="no such request"):
            await asked(home)
