"""The first promise, over real sockets and through the real door: what may not leave does not reach the provider."""

from __future__ import annotations

import datetime as dt
import json
import secrets
from typing import Any

import pytest
from multidict import CIMultiDict

from router.door.book import verify
from tests.conftest import House, ask, until

APPROVED = {"by": "someone", "contract": "c-1", "regions": ["eu"]}


def silent(house: House) -> bool:
    """Whether the provider saw nothing at all: not a byte, not even a connection."""
    return house.provider.accepted == 0


async def test_public_data_is_answered_through_the_door(house: House) -> None:
    await house.start(hosted=True)
    reply = await house.post(ask("frontier"), house.key("public"))
    assert reply.status == 200, reply.body
    assert reply.headers["x-headgate-place"] == "hosted"
    (seen,) = house.provider.requests
    assert seen.path == "/v1/chat/completions"
    assert seen.json()["model"] == "far-1"
    assert seen.headers["authorization"] == "Bearer " + "k" * 20
    assert "hg_" not in json.dumps(seen.headers)
    kinds = [json.loads(line)["kind"] for line in house.home.book.read_text().splitlines()]
    assert "sending" in kinds
    assert verify(house.home.book) == []


async def test_a_stream_comes_through_the_door(house: House) -> None:
    await house.start(hosted=True)
    reply = await house.post(ask("big", stream=True), house.key("public"))
    assert reply.status == 200, reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")
    *_, closed = await house.events(reply)
    assert closed["cost_usd"] > 0
    assert closed["place"] == "hosted"


@pytest.mark.parametrize("data_class", ["internal", "private", "secret"])
@pytest.mark.parametrize("model", ["frontier", "big"])
async def test_a_request_above_the_clearance_is_a_refusal_that_says_why(
    house: House, data_class: str, model: str
) -> None:
    await house.start(hosted=True)
    key = house.key(data_class)
    reply = await house.post(ask(model), key)
    assert (reply.status, reply.error["code"]) == (403, "data_class_not_cleared")
    assert f"this is {data_class}" in reply.error["message"]
    assert key.split("_")[1] in reply.error["message"]  # the line that would change it
    assert silent(house)
    opened, *_, closed = await house.events(reply)
    assert closed["outcome"] == "refused"
    assert any(r["rule"] == "data_class_not_cleared" for r in opened["refusals"])


async def test_auto_with_private_data_stays_even_where_nothing_local_is_ready(house: House) -> None:
    house.instances[0]["state"] = "failed"
    await house.start(hosted=True)
    for model in ("auto", "private", "cheap"):
        reply = await house.post(ask(model), house.key("private"))
        assert reply.status == 503, reply.body
        assert "retry-after" in reply.headers
    assert silent(house)


async def test_a_local_failure_never_sends_private_data_out(house: House) -> None:
    await house.start(hosted=True)
    for script in ({"status": 500, "body": "{}"}, {"reset": 0}, {"cut": 10}, {"raw": "nonsense"}):
        house.local.script = script
        reply = await house.post(ask(), house.key("private"))
        assert reply.status in (502, 503)
    assert silent(house)


async def test_a_local_failure_of_public_data_goes_on_along_the_order(house: House) -> None:
    await house.start(hosted=True)
    house.local.script = {"status": 500, "body": "{}"}
    reply = await house.post(ask(), house.key("public"))
    assert (reply.status, reply.headers["x-headgate-model"]) == (200, "big")
    *_, closed = await house.events(reply)
    assert [a["outcome"] for a in closed["attempts"]] == ["error", "answered"]


@pytest.mark.parametrize("how", ["header", "body"])
async def test_a_label_raises_the_class(house: House, how: str) -> None:
    await house.start(hosted=True)
    body, headers = ask("big"), {}
    if how == "header":
        headers = {"x-headgate-data-class": "private"}
    else:
        body["headgate"] = {"data_class": "private"}
    reply = await house.post(body, house.key("public"), headers=headers)
    assert reply.status == 403
    assert silent(house)


@pytest.mark.parametrize("labels", [("private", "public"), ("public", "private"), ("public, private",)])
async def test_of_several_labels_the_highest_counts(house: House, labels: tuple[str, ...]) -> None:
    await house.start(hosted=True)
    headers = CIMultiDict([("x-headgate-data-class", label) for label in labels])
    headers["Authorization"] = f"Bearer {house.key('public')}"
    async with house.client.post(f"{house.url}/v1/chat/completions", json=ask("big"), headers=headers) as answer:
        assert answer.status == 403
    assert silent(house)


async def test_a_misspelt_choice_is_refused_and_not_passed_over(house: House) -> None:
    await house.start(hosted=True)
    reply = await house.post(ask("big", headgate={"dataclass": "private"}), house.key("public"))
    assert (reply.status, reply.error["param"]) == (400, "headgate")
    assert silent(house)


@pytest.mark.parametrize("data_class", ["public", "private"])
async def test_nobody_fetches_an_address_for_a_caller(house: House, data_class: str) -> None:
    await house.start(hosted=True, models={"small": {"abilities": ["chat", "vision"]}})
    for url in ("https://x.example/?data=secret", "http://169.254.169.254/", "file:///etc/passwd"):
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "video_url", "video_url": url}):
            body = {"model": "auto", "messages": [{"role": "user", "content": [part]}]}
            reply = await house.post(body, house.key(data_class))
            assert (reply.status, reply.error["code"]) == (400, "media_url_not_allowed")
    assert silent(house)
    assert house.local.requests == []


async def test_a_label_never_lowers_the_class(house: House) -> None:
    await house.start(hosted=True)
    labels = {"x-headgate-data-class": "public"}
    body = ask("big", headgate={"data_class": "public"}, metadata={"privacy": "public"})
    reply = await house.post(body, house.key("private"), headers=labels)
    assert reply.status == 403
    assert silent(house)


async def test_what_cannot_be_read_counts_as_private(house: House) -> None:
    await house.start(hosted=True, models={"big": {"abilities": ["chat", "vision"]}})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    reply = await house.post({"model": "big", "messages": [{"role": "user", "content": [image]}]}, house.key("public"))
    assert reply.status == 403
    assert "cannot be read" in reply.error["message"]
    assert silent(house)


async def test_an_approval_opens_and_its_end_closes(house: House) -> None:
    tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).date()
    await house.start(
        hosted=True, models={"big": {"clearance": "internal", "approved": {**APPROVED, "until": tomorrow}}}
    )
    assert (await house.post(ask("big"), house.key("internal"))).status == 200
    assert (await house.post(ask("big"), house.key("private"))).status == 403


async def test_an_approval_that_has_ended_is_none(house: House) -> None:
    past = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).date()
    await house.start(hosted=True, models={"big": {"clearance": "internal", "approved": {**APPROVED, "until": past}}})
    assert (await house.post(ask("big"), house.key("internal"))).status == 403
    assert silent(house)


async def test_a_key_made_private_a_moment_ago_is_stopped_by_the_door_itself(house: House) -> None:
    """The router's copy of the keys may be a second old; the door reads its own."""
    await house.start(hosted=True)
    key = house.key("public")
    assert (await house.post(ask("big"), key)).status == 200
    seen = len(house.provider.requests)
    assert house.built is not None
    house.built.keyring.refresh = lambda: None  # type: ignore[method-assign]
    import contextlib

    from router.ledger.keys import KeyBook
    from serving.catalogue import DataClass

    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        book.set(key.split("_")[1], data_class=DataClass.private)
    reply = await house.post(ask("big"), key)
    assert reply.status == 403
    assert "door" in reply.error["message"]
    assert len(house.provider.requests) == seen


async def test_no_door_no_way_out(house: House) -> None:
    await house.start(hosted=True)
    house.door.kill()
    await house.door.wait()
    built = house.built
    assert built is not None
    reply = await house.post(ask("big"), house.key("public"))
    assert (reply.status, reply.error["code"]) == (503, "door_closed")
    assert int(reply.headers["retry-after"]) > 0
    assert silent(house)


async def test_a_ledger_that_is_not_written_keeps_hosted_requests_in(house: House, monkeypatch: Any) -> None:
    from router.ledger.store import LedgerError

    await house.start(hosted=True)
    assert house.built is not None

    async def full(timeout_s: float = 0) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(house.built.store, "durable", full)
    reply = await house.post(ask("big"), house.key("public"))
    assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
    assert silent(house)
    assert (await house.post(ask("small"), house.key("public"))).status == 200


async def test_no_text_of_a_request_is_written_anywhere(house: House) -> None:
    await house.start(hosted=True)
    canary = "canary" + secrets.token_hex(12)
    body = ask("big", metadata={"a": canary}, user=canary, tools=[
        {"type": "function", "function": {"name": "f", "description": canary, "parameters": {"type": "object"}}},
    ])  # fmt: skip
    body["messages"][0]["content"] = canary
    await house.post(body, house.key("public"))
    await house.post({**body, "model": "small"}, house.key("private"))
    for status in (400, 500):  # an upstream's error may repeat what it was sent
        house.local.script = {"status": status, "body": json.dumps({"error": {"message": canary}})}
        await house.post({**body, "model": "small"}, house.key("private"))
    assert house.built is not None
    await house.built.store.durable()
    await until(lambda: len(house.local.requests) == 3)
    for file in (f for f in house.home.root.rglob("*") if f.is_file()):
        assert canary.encode() not in file.read_bytes(), file


CARD = "4539 1488 0343 " + "6467"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": f"my card is {CARD}"}]},
        {"messages": [{"role": "user", "content": CARD[:10]}, {"role": "user", "content": CARD[10:]}]},
        {"messages": [{"role": "user", "content": "hi"}], "tools": [
            {"type": "function", "function": {"name": "pay", "description": CARD, "parameters": {"type": "object"}}}]},
    ],
)  # fmt: skip
async def test_what_holds_a_card_number_stays_here(house: House, body: dict[str, Any]) -> None:
    await house.start(hosted=True)
    key = house.key("public")
    refused = await house.post({"model": "big", **body}, key)
    assert (refused.status, refused.error["code"]) == (403, "data_class_not_cleared")
    assert "4539" not in refused.body.decode()
    answered = await house.post({"model": "auto", **body}, key)
    assert (answered.status, answered.headers["x-headgate-place"]) == (200, "local")
    assert silent(house)


async def test_with_a_scanner_that_fails_nothing_leaves(house: House, monkeypatch: Any) -> None:
    from router.scanner.matcher import Matcher, MatcherError

    def fail(*_: Any) -> Any:
        raise MatcherError("a pass failed")

    await house.start(hosted=True)
    monkeypatch.setattr(Matcher, "scan", fail)
    reply = await house.post(ask("big"), house.key("public"))
    assert reply.status == 403
    assert silent(house)
    assert (await house.post(ask("small"), house.key("public"))).status == 200
