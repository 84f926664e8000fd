"""Classes, requirements and lowering over real sockets and the real door: what is written down, and what stays."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import House, ask, until

LOWER = {"x-headgate-data-class": "public", "x-headgate-reason": "press-release"}
MAY = frozenset({"declassify"})
CARD = "4111 1111 1111 1111"


def said(house: House) -> int:
    return len(house.provider.requests)


async def test_a_class_is_lowered_only_by_a_key_that_may_and_the_reason_is_in_ledger_and_book(house: House) -> None:
    await house.start(hosted=True)
    refused = await house.post(ask("big"), house.key("private"), headers=LOWER)
    assert (refused.status, refused.error["code"]) == (403, "declassify_not_allowed")
    key = house.key("private", scopes=MAY)
    without = await house.post(ask("big"), key, headers={"x-headgate-data-class": "public"})
    assert (without.status, without.error["code"]) == (403, "data_class_not_cleared")
    assert said(house) == 0
    reply = await house.post(ask("big"), key, headers=LOWER)
    assert (reply.status, reply.headers["x-headgate-place"]) == (200, "hosted"), reply.body
    opened, *_ = await house.events(reply)
    assert (opened["data_class"], opened["declassified"]) == ("public", "press-release")
    assert opened["classes"] == [f"key {key.split('_')[1]} is private"]
    await until(lambda: "press-release" in house.home.book.read_text())
    # What a detector finds, the reason does not cover.
    body = ask("big")
    body["messages"][0]["content"] = f"My card is {CARD}."
    found = await house.post(body, key, headers=LOWER)
    assert found.status == 403 and said(house) == 1
    assert "card" in found.error["message"] and CARD not in found.error["message"]


async def test_team_route_and_requirements_of_headgate_yaml_hold(house: House) -> None:
    site: dict[str, Any] = {
        "teams": {"legal": {"data_class": "internal"}, "eu": {"requires": ["region:eu", "no-training"]}},
        "routes": {"embeddings": {"data_class": "secret"}},
        "models": {"big": {"regions": ["us"]}},
    }
    await house.start(hosted=True, **site)
    legal = await house.post(ask("big"), house.key("public", team="legal"))
    assert (legal.status, legal.error["code"]) == (403, "data_class_not_cleared")
    assert "team legal is internal" in legal.error["message"]
    assert "in headgate.yaml, teams.legal.data_class: public" in legal.error["message"]
    eu = await house.post(ask("big"), house.key("public", team="eu"))
    assert (eu.status, eu.error["code"]) == (403, "requirement_not_met")
    assert "to keep data in eu alone" in eu.error["message"] and "required by team eu" in eu.error["message"]
    own = await house.post(ask("big"), house.key("public", requires=frozenset({"no-retention"})))
    assert (own.status, own.error["code"]) == (403, "requirement_not_met")
    assert said(house) == 0
    assert (await house.post(ask("small"), house.key("public", team="eu"))).status == 200


@pytest.mark.parametrize("media_class", ["private", "public"])
async def test_what_nobody_can_read_leaves_only_where_its_key_says_what_class_it_is(
    house: House, media_class: str
) -> None:
    from serving.catalogue import DataClass

    await house.start(hosted=True, models={"big": {"abilities": ["chat", "vision"]}})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"model": "big", "messages": [{"role": "user", "content": [image]}]}
    reply = await house.post(body, house.key("public", media_class=DataClass[media_class]))
    if media_class == "public":
        assert reply.status == 200, reply.body
        assert json.loads(house.provider.requests[0].body)["messages"] == body["messages"]
        return
    assert (reply.status, said(house)) == (403, 0)
    assert "--media-class public" in reply.error["message"]
