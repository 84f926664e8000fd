"""Every refusal: the provider sees not one byte, and the book holds the reason."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import time
from typing import Any

import orjson
import pytest

from router.door.book import verify
from router.permit import LIFETIME_S, seal

OTHER = "0" * 64
CASES: list[tuple[str, dict[str, Any]]] = [
    ("permit_invalid", {"door": "another"}),
    ("permit_invalid", {"body": OTHER}),
    ("permit_invalid", {"expires": 1.0}),
    ("permit_invalid", {"expires": time.time() + 10 * LIFETIME_S + 3600}),
    ("permit_invalid", {"expires": "soon"}),
    ("permit_invalid", {"body": 7}),
    ("permit_invalid", {"key": ["kpublic"]}),
    ("policy_mismatch", {"policy": "older"}),
    ("key_unknown", {"key": "nobody"}),
    ("key_revoked", {"key": "krevoked"}),
    ("key_expired", {"key": "kexpired"}),
    ("team_mismatch", {"team": "blue"}),
    ("lane_not_allowed", {"key": "kcheap"}),
    ("data_class_lowered", {"key": "kprivate"}),
    ("data_class_lowered", {"key": "kinternal"}),
    ("data_class_not_cleared", {"key": "kprivate", "data_class": "private"}),
    ("data_class_not_cleared", {"data_class": "internal"}),
    ("data_class_unknown", {"data_class": "harmless"}),
    ("data_class_unknown", {"key": "kodd"}),
    ("model_unknown", {"model": "absent"}),
    ("model_mismatch", {"model": "dark", "provider": "off"}),
    ("provider_mismatch", {"provider": "nowhere"}),
    ("provider_mismatch", {"provider": "off"}),
    ("path_not_allowed", {"path": "files"}),
    ("path_not_allowed", {"path": "chat/completions/../../files"}),
    ("path_not_allowed", {"path": "chat/completions?x=1"}),
    ("path_not_allowed", {"path": "completions"}),
    ("path_not_allowed", {"route": "completions"}),
    ("path_not_allowed", {"route": "responses", "path": "responses"}),
    ("declassify_not_allowed", {"key": "kprivate", "declassified": "published"}),
    ("declassify_not_allowed", {"declassified": "published"}),
    ("permit_invalid", {"key": "kmay", "declassified": "what Ms Jones said"}),
    ("permit_invalid", {"declassified": None}),
    ("data_class_lowered", {"key": "kmaysecret", "declassified": "published"}),
    ("data_class_lowered", {"key": "kmay"}),
    ("requirement_not_met", {"key": "keu"}),
    ("data_class_unknown", {"key": "koddmedia"}),
]


async def test_a_permit_that_does_not_hold_sends_nothing(house: Any, far: Any) -> None:
    house.add_key("krevoked", "public", revoked=1.0)
    house.add_key("kexpired", "public", expires=1.0)
    house.add_key("kcheap", "public", lanes="cheap")
    house.add_key("kinternal", "internal")
    house.add_key("kodd", "harmless")
    house.add_key("koddmedia", "public", media_class="harmless")
    house.add_key("kmay", "private", scopes="declassify")
    house.add_key("kmaysecret", "secret", scopes="declassify,escalate")
    house.add_key("keu", "public", requires="region:eu")
    await house.start()
    for code, changes in CASES:
        status, mark, found = await house.send(**changes)
        assert (status, mark, found["error"]["code"]) == (403, "refused", code), changes
        assert (far.bytes_seen, far.connections) == (0, 0), changes
    assert [(e["kind"], e["code"]) for e in house.book()[1:]] == [("refused", code) for code, _ in CASES]
    assert verify(house.home.book) == []


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}
BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("model_mismatch", {"model": "dark"}, {}),
    ("provider_disabled", {"model": "dark"}, {"model": "dark", "provider": "off"}),
    ("model_unknown", {"model": "near"}, {"model": "near", "provider": ""}),
    ("not_scannable", {"messages": [IMAGE]}, {}),
    ("not_scannable", {"messages": [], "prompt": [1, 2, 3]}, {"path": "completions", "route": "completions"}),
]


async def test_a_body_that_may_not_go_there_sends_nothing(house: Any, far: Any) -> None:
    await house.start()
    for code, fields, changes in BODIES:
        status, mark, found = await house.send(house.body(**fields), **changes)
        assert (status, mark, found["error"]["code"]) == (403, "refused", code), fields
        assert far.bytes_seen == 0, fields


@pytest.mark.parametrize("parameters", ["vllm", ["temperature"], ["temperature", "base_url"]])
async def test_a_field_the_model_is_not_known_to_take_sends_nothing(house: Any, far: Any, parameters: Any) -> None:
    """Such a field may name another destination, or headers and keys for it."""
    house.models.append(house.model("strict", parameters=parameters))
    await house.start()
    base = {"model": "strict"}
    for name, value in {
        "api_base": "https://elsewhere.example",
        "extra_headers": {"x": "y"},
        "base_url": "https://elsewhere.example",
        "priority": 1,
        "nobody_knows": False,
    }.items():
        status, mark, found = await house.send(house.body(**base, **{name: value}), model="strict")
        assert (status, mark, found["error"]["code"]) == (403, "refused", "field_not_allowed"), name
        assert found["error"]["param"] == name
        assert far.bytes_seen == 0, name
    limits = {"max_tokens": 5, "max_completion_tokens": 5, "stream_options": {}, "stream": False, "temperature": 0}
    assert (await house.send(house.body(**base, **limits), model="strict"))[0] == 200


async def test_a_tool_that_the_provider_would_run_sends_nothing(house: Any, far: Any) -> None:
    """It would carry on what the provider was told, to where no clearance holds."""
    base = {"model": "big", "messages": [{"role": "user", "content": "hello"}]}
    house.models[0]["parameters"] = ["tools"]
    await house.start()
    for tool in ({"type": "mcp", "server_url": "https://elsewhere.example/"}, {"googleSearch": {}}):
        status, mark, found = await house.send(house.body(**base, tools=[tool]))
        assert (status, mark, found["error"]["code"]) == (403, "refused", "tool_not_allowed"), tool
        assert far.bytes_seen == 0, tool
    own = {"type": "function", "function": {"name": "f"}}
    assert (await house.send(house.body(**base, tools=[own])))[0] == 200


FAR = "https://elsewhere.example/a?what=was+said"
BY_ADDRESS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": FAR}},
    {"type": "image_url", "image_url": {"detail": "low", "url": FAR}},
    {"type": "image_url", "image_url": FAR},
    {"image_url": [FAR]},
    {"type": "image_url", "image_url": {"url": "//elsewhere.example/a"}},
    {"type": "image_url", "image_url": {"url": " file:///etc/passwd"}},
    {"type": "input_image", "image_url": FAR},
    {"type": "video_url", "video_url": {"url": FAR}},
    {"type": "audio_url", "audio_url": {"url": FAR}},
    {"type": "input_audio", "input_audio": {"data": FAR, "format": "wav"}},
    {"type": "file", "file": {"file_data": FAR}},
    {"type": "input_file", "file_url": FAR},
    {"type": "image", "source": {"type": "url", "url": FAR}},
    {"type": "image", "image": "gs://bucket/a.png"},
    {"type": "text", "text": "hello", "image_url": {"url": FAR}},
]
INLINE: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AAAA", "detail": "low"}},
    {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    {"type": "input_audio", "input_audio": {"data": "//uQxAAA", "format": "mp3"}},
    {"type": "file", "file": {"filename": "note: a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
    {"type": "text", "text": FAR},
]


async def test_media_by_address_send_nothing_even_where_private_data_may_go(house: Any, far: Any) -> None:
    approved = {"by": "security", "contract": "c1", "until": "2999-01-01"}
    house.models.append(house.model("trusted", clearance="private", approved=approved))
    await house.start()
    for part in BY_ADDRESS:
        for content in ([{"type": "text", "text": "look"}, part], part):
            body = house.body(model="trusted", messages=[{"role": "user", "content": content}])
            status, mark, found = await house.send(body, model="trusted")
            assert (status, mark, found["error"]["code"]) == (400, "refused", "media_url_not_allowed"), part
            assert (far.bytes_seen, far.connections) == (0, 0), part
    cited = {"type": "url_citation", "url_citation": {"url": FAR, "title": "t"}}
    messages = [
        {"role": "assistant", "content": FAR, "annotations": [cited]},
        {"role": "user", "content": INLINE},
    ]
    assert (await house.send(house.body(model="trusted", messages=messages), model="trusted"))[0] == 200


async def test_a_body_that_is_no_json_object_is_a_400(house: Any, far: Any) -> None:
    await house.start()
    for body in (
        b"{",
        b"[]",
        b'{"model": NaN}',
        b'"\xff"',
        b"[" * 2000,
        b'{"model":"big","n":' + b"[" * 900 + b"]" * 900 + b"}",
    ):
        assert (await house.send(body))[:2] == (400, "refused"), body[:20]
    assert far.bytes_seen == 0


async def test_a_permit_is_good_once_also_for_two_at_the_same_moment(house: Any, far: Any) -> None:
    await house.start()
    token = house.sealed(house.permit(house.body()))
    both = await asyncio.gather(house.send(token=token), house.send(token=token))
    assert sorted(status for status, _, _ in both) == [200, 403]
    assert (await house.send(token=token))[2]["error"]["code"] == "permit_used"
    assert len(far.requests) == 1


async def test_a_used_permit_stays_used_after_the_door_starts_again(house: Any, far: Any) -> None:
    await house.start()
    token = house.sealed(house.permit(house.body()))
    assert (await house.send(token=token))[0] == 200
    await house.end()
    house.stop = asyncio.Event()
    await house.start()
    assert (await house.send(token=token))[2]["error"]["code"] == "permit_invalid"
    assert len(far.requests) == 1


async def test_a_wrong_seal_sends_nothing(house: Any, far: Any) -> None:
    await house.start()
    permit = house.permit(house.body())
    good = house.sealed(permit)
    claims, _, mac = good.partition(".")
    for token in ("", claims, good[:-1] + ("0" if mac[-1] != "0" else "1"), f"e30=.{mac}", seal(permit, OTHER), "\xe9"):
        status, mark, found = await house.send(token=token)
        assert (status, mark, found["error"]["code"]) == (403, "refused", "permit_invalid"), token
    assert far.bytes_seen == 0


async def test_a_request_without_a_permit_or_to_another_path_sends_nothing(house: Any, far: Any) -> None:
    await house.start()
    async with house.client() as client:
        for path in ("/send", "/v1/chat/completions", "/"):
            answer = await client.post(path, data=house.body())
            assert answer.status in (403, 404) and answer.headers["x-headgate-door"] == "refused"
    assert far.bytes_seen == 0


async def test_an_approved_model_receives_more_until_the_approval_ends(house: Any, far: Any) -> None:
    approved = {"by": "security", "contract": "c1", "until": "2999-01-01"}
    over = {**approved, "until": "2020-01-01"}
    house.models.append(house.model("trusted", clearance="private", approved=approved))
    house.models.append(house.model("lapsed", clearance="private", approved=over))
    await house.start()
    for model, wanted in (("trusted", 200), ("lapsed", 403)):
        body = house.body(model=model, messages=[IMAGE])
        status, _, _ = await house.send(body, model=model, key="kprivate", data_class="private")
        assert status == wanted
    assert house.book()[1]["data_class"] == house.book()[1]["clearance"] == "private"
    assert len(far.requests) == 1


async def test_an_unread_part_makes_a_public_request_private_in_the_book(house: Any) -> None:
    approved = {"by": "security", "contract": "c1", "until": "2999-01-01"}
    house.models.append(house.model("trusted", clearance="private", approved=approved))
    await house.start()
    assert (await house.send(house.body(model="trusted", messages=[IMAGE]), model="trusted"))[0] == 200
    assert house.book()[1]["data_class"] == "private"


async def test_secret_data_never_leaves(house: Any, far: Any) -> None:
    house.add_key("ksecret", "secret")
    approved = {"by": "security", "contract": "c1", "until": "2999-01-01"}
    house.models.append(house.model("trusted", clearance="private", approved=approved))
    await house.start()
    body = house.body(model="trusted")
    found = await house.send(body, model="trusted", key="ksecret", data_class="secret")
    assert found[2]["error"]["code"] == "data_class_not_cleared" and far.bytes_seen == 0


@pytest.mark.parametrize("loss", ["gone", "locked", "garbage", "no table"])
async def test_a_ledger_that_cannot_be_read_closes_the_door(house: Any, far: Any, loss: str) -> None:
    await house.start()
    with contextlib.ExitStack() as stack:
        if loss == "locked":
            store = stack.enter_context(contextlib.closing(sqlite3.connect(house.home.ledger)))
            store.execute("PRAGMA journal_mode = DELETE")
            store.execute("BEGIN EXCLUSIVE")
        else:
            for file in house.home.root.glob("ledger.sqlite*"):
                file.unlink()
        if loss == "garbage":
            house.home.ledger.write_bytes(b"no database" * 500)
        if loss == "no table":
            sqlite3.connect(house.home.ledger).close()
            house.home.ledger.touch()
        status, mark, found = await house.send()
        assert (status, mark, found["error"]["code"]) == (503, "closed", "ledger_lost")
        assert far.bytes_seen == 0
        said = await house.status()
        assert said["open"] is False and "ledger" in said["closed_because"]


async def test_a_full_disk_closes_the_door_and_room_opens_it_again(house: Any, far: Any) -> None:
    await house.start()
    reader = sqlite3.connect(house.home.ledger)  # as the router does; SQLite then needs no new file for the door
    reader.execute("SELECT id FROM keys").fetchall()
    whole = house.home.book.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails a write in its middle, as a full disk does; Python ignores SIGXFSZ.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, before[1]))
    try:
        status, mark, found = await house.send()
        said = await house.status()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (status, mark, found["error"]["code"]) == (503, "closed", "book_not_written")
    assert said["open"] is False and "book" in said["closed_because"]
    assert far.bytes_seen == 0 and house.home.book.read_bytes() == whole
    assert (await house.status())["open"] is True
    assert (await house.send())[0] == 200
    await house.ended()
    assert [entry["kind"] for entry in house.book()] == ["opened", "reopened", "sending", "ended"]
    assert verify(house.home.book) == []
    reader.close()


async def test_a_loopback_provider_is_refused_unless_the_site_allows_it(house: Any, far: Any) -> None:
    house.providers["far"] = house.provider(private_ranges=[])
    house.providers["named"] = house.provider(base_url=f"https://localhost:{house.port}/v1", private_ranges=[])
    house.models.append(house.model("byname", provider="named"))
    await house.start()
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (403, "refused", "destination_refused")
    assert "private_ranges" in (await house.status())["providers"]["far"]["reason"]
    # A name is looked up when it is called: the sending is in the book by then, and ends as refused.
    status, mark, found = await house.send(house.body(model="byname"), model="byname", provider="named")
    assert (status, mark, found["error"]["code"]) == (403, "refused", "destination_refused")
    assert (await house.ended())[0]["error"] == "destination_refused"
    assert (far.bytes_seen, far.connections) == (0, 0)


async def test_too_large_a_body_is_a_413(house: Any, far: Any) -> None:
    await house.start()
    body = orjson.dumps({"model": "big", "prompt": "x" * 17 * 2**20})
    assert (await house.send(body))[:2] == (413, "refused")
    assert far.bytes_seen == 0


async def test_team_and_route_have_a_class_the_permit_cannot_undercut(house: Any, far: Any) -> None:
    """By the door's own reading of headgate.yaml, whatever the router's says."""
    house.site = {"teams": {"red": {"data_class": "internal"}}, "routes": {"completions": {"data_class": "private"}}}
    house.add_key("kblue", "public", team="blue")
    await house.start()
    chat, text = house.body(), orjson.dumps({"model": "big", "prompt": "hello"})
    path = {"path": "completions", "route": "completions"}
    for body, changes, code in (
        (chat, {}, "data_class_lowered"),
        (chat, {"data_class": "internal"}, "data_class_not_cleared"),
        (text, {"key": "kblue", "team": "blue", **path}, "data_class_lowered"),
        (text, {"key": "kblue", "team": "blue", "data_class": "internal", **path}, "data_class_lowered"),
    ):
        assert (await house.send(body, **changes))[2]["error"]["code"] == code, changes
        assert far.bytes_seen == 0
    assert (await house.send(chat, key="kblue", team="blue"))[0] == 200


async def test_what_a_key_a_team_and_a_route_require_is_asked_of_the_model_again(house: Any, far: Any) -> None:
    house.site = {"teams": {"red": {"requires": ["no-training"]}}, "routes": {"completions": {"requires": ["tag:own"]}}}
    house.add_key("keu", "public", requires="region:eu,no-retention")
    says = {"regions": ["eu"], "retention_days": 0, "trains_on_data": False}
    house.models.append(house.model("plain", trains_on_data=False))
    house.models.append(house.model("strict", **says))
    await house.start()
    for model, key, sent in (("big", "kpublic", False), ("plain", "kpublic", True), ("plain", "keu", False),
                             ("strict", "keu", True)):  # fmt: skip
        status, _, found = await house.send(house.body(model=model), model=model, key=key)
        assert status == (200 if sent else 403), (model, key, found)
        assert sent or found["error"]["code"] == "requirement_not_met"
    text = orjson.dumps({"model": "strict", "prompt": "hello"})
    found = await house.send(text, model="strict", key="keu", path="completions", route="completions")
    assert found[2]["error"]["code"] == "requirement_not_met" and len(far.requests) == 2
    assert [e["requires"] for e in house.book() if e["kind"] == "sending"] == [
        ["no-training"], ["no-retention", "no-training", "region:eu"],
    ]  # fmt: skip


async def test_only_a_key_whose_media_are_said_to_be_public_sends_pictures_to_a_public_model(
    house: Any, far: Any
) -> None:
    house.add_key("kpictures", "public", media_class="public")
    await house.start()
    body = house.body(messages=[IMAGE])
    assert (await house.send(body))[2]["error"]["code"] == "not_scannable" and far.bytes_seen == 0
    assert (await house.send(body, key="kpictures"))[0] == 200


async def test_a_lowered_class_leaves_with_its_reason_in_the_book_but_not_what_was_found(house: Any, far: Any) -> None:
    """A key that may lowers what people said of its data, never what stands in it."""
    house.add_key("kmay", "private", scopes="declassify")
    await house.start()
    assert (await house.send(key="kmay", declassified="published"))[0] == 200
    entry = next(e for e in house.book() if e["kind"] == "sending")
    assert (entry["declassified"], entry["data_class"], entry["key"]) == ("published", "public", "kmay")
    seen = far.bytes_seen
    body = house.body(messages=[{"role": "user", "content": "my card is 4111 1111 1111 1111"}])
    found = await house.send(body, key="kmay", declassified="published")
    assert found[2]["error"]["code"] == "data_class_not_cleared" and far.bytes_seen == seen
    assert next(e for e in house.book() if e["kind"] == "refused")["code"] == "data_class_not_cleared"
