"""`explain`: what a dry run and a record tell a person, in words that hold."""

from __future__ import annotations

import asyncio
import json
import re

from router.upstream.connection import Address, Bounds, Connections, Deadlines
from serving.home import Home
from tests.fakes.command_line import Headgate, Server


def asked(home: Home, path: str) -> tuple[int, str]:
    """A dry run of the admin API itself: its status and text."""

    async def exchange() -> tuple[int, str]:
        connections = Connections(Deadlines(connect_s=1, first_byte_s=10, idle_s=10, total_s=15), Bounds())
        try:
            address = Address.parse(f"unix:{home.socket('admin')}")
            answer = await connections.post(address, path, [], b'{"messages": []}')
            return answer.status, (await answer.read()).decode()
        finally:
            await connections.close()

    return asyncio.run(exchange())


def test_a_dry_run_without_a_key_names_no_key_that_is_not_there(headgate: Headgate, vllm: Server) -> None:
    headgate.site("providers: {openai: {enabled: true, base_url: 'http://127.0.0.1:9/v1', key_env: OUR_KEY}}\n")
    assert headgate.up(vllm.url, OUR_KEY="planted").code == 0
    body = json.dumps({"model": "frontier", "messages": []})
    usual = headgate("explain", stdin=body).out
    assert "private: new keys are private" in usual and "(none)" not in usual and "key KEY is" not in usual
    assert "headgate keys set KEY --data-class public" in usual
    chosen = headgate("explain", "--data-class", "internal", stdin=body).out
    assert "internal: --data-class says so" in chosen and ", since --data-class says so" in chosen
    local = headgate("explain", stdin=json.dumps({"model": "river", "messages": [], "max_tokens": 5})).out
    assert re.search(r"held +nothing \(no price is known\); at most \d+ prompt tokens", local)

    status, text = asked(headgate.home, "/explain?data_class=pubic")
    assert status == 400 and "public, internal, private, secret" in text
