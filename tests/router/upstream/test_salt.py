"""What an engine remembers of prompts is kept apart by team, with a mark nobody can guess or send."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import House, ask

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ask("small"),
    "/v1/completions": {"model": "small", "prompt": "hello"},
    "/v1/responses": {"model": "small", "input": "hello"},
    "/v1/messages": {"model": "small", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]},
}


async def salt(house: House, path: str, key: str) -> Any:
    assert (await house.post(ASKED[path], key, path)).status == 200
    return house.local.requests[-1].json().get("cache_salt")


async def test_two_teams_have_two_salts_and_the_keys_of_one_team_one(house: House) -> None:
    await house.start()
    red, red_too, blue = house.key(team="red"), house.key(team="red"), house.key(team="blue")
    for path in ASKED:
        own = [await salt(house, path, key) for key in (red, red_too, blue)]
        assert own[0] == own[1] != own[2] and len(own[0]) == 32, path
        assert "red" not in own[0]
    sent = len(house.local.requests)
    reply = await house.post(ask("small", cache_salt="mine"), red)
    assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
    assert len(house.local.requests) == sent


@pytest.mark.parametrize(("load", "salted"), [(None, False), ({"running": 0, "waiting": 0, "kv_use": 0.0}, True)])
async def test_an_attached_server_gets_one_only_where_it_is_a_vllm(house: House, load: Any, salted: bool) -> None:
    """Another kind of server may refuse a field it does not know."""
    house.instances[0] |= {"attached": True, "load": load and {**load, "at": house.document()["at"]}}
    await house.start(attach=[{"url": house.local.address, "name": "small"}])
    assert bool(await salt(house, "/v1/chat/completions", house.key())) is salted
