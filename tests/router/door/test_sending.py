"""What leaves, what comes back, and what the book says of it."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from typing import Any

import aiohttp
import orjson
import pytest

from router.door.book import verify
from router.permit import body_hash


async def test_a_permitted_body_arrives_translated_and_the_answer_comes_back(house: Any, far: Any) -> None:
    await house.start()
    body = house.body(max_tokens=5, top_p=None, headgate={"lane": "frontier"})
    status, mark, answer = await house.send(body)
    assert (status, mark, answer["id"]) == (200, "sent", "a1")
    line, headers, sent = far.requests[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert orjson.loads(sent) == {
        "model": "big-at-far",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
    }
    assert headers.pop("host") == f"127.0.0.1:{house.port}"
    assert headers == {
        "authorization": f"Bearer {house.key}",
        "content-type": "application/json",
        "content-length": str(len(sent)),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "headgate",
    }


async def test_the_book_tells_what_left_and_how_it_ended_but_not_what_was_said(house: Any, far: Any) -> None:
    await house.start()
    await house.send(house.body())
    (ended,) = await house.ended()
    sending = house.book()[1]
    sent = far.requests[0][2]
    wanted = {
        "kind": "sending", "request": "req-1", "key": "kpublic", "team": "red", "route": "chat/completions",
        "provider": "far", "model": "big", "path": "chat/completions", "host": "127.0.0.1", "data_class": "public",
        "clearance": "public", "policy": house.catalogue.version, "received_sha256": body_hash(house.body()),
        "sent_sha256": body_hash(sent), "sent_bytes": len(sent), "boot": house.instance, "claimed": "public",
        "rule": "public", "requires": [], "found": {}, "declassified": "",
    }  # fmt: skip
    assert {name: sending[name] for name in wanted} == wanted
    assert (ended["kind"], ended["permit"], ended["status"]) == ("ended", sending["permit"], 200)
    assert (ended["ended"], ended["error"], ended["ms"] > 0) == ("answered", "", True)
    # Every byte that left is in the book, and so is whether any did.
    assert sending["sent_bytes"] + sending["head_bytes"] == far.bytes_seen and ended["left"] is True
    text = house.home.book.read_text()
    assert "hello" not in text and house.key not in text
    assert verify(house.home.book) == []
    assert house.home.book.stat().st_mode & 0o777 == 0o600
    assert house.home.socket("door").stat().st_mode & 0o777 == 0o600


async def test_the_sending_stands_in_the_book_before_the_provider_sees_a_byte(house: Any, far: Any) -> None:
    await house.start()
    seen: list[str] = []

    async def look(writer: asyncio.StreamWriter) -> None:
        seen.extend(entry["kind"] for entry in house.book())
        await far.answer(writer)

    far.reply = look
    await house.send()
    assert seen == ["opened", "sending"]


async def test_a_stream_arrives_piece_by_piece_before_its_end(house: Any, far: Any) -> None:
    await house.start()
    more = asyncio.Event()

    async def stream(writer: asyncio.StreamWriter) -> None:
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-secret: 1\r\n\r\n"
        )
        writer.write(head + b"9\r\ndata: 1\n\n\r\n")
        await more.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    far.reply = stream
    body = house.body(stream=True, stream_options={"other": 1})
    token = house.sealed(house.permit(body))
    async with house.client() as client:
        answer = await client.post("/send", data=body, headers={"x-headgate-permit": token})
        assert await answer.content.readany() == b"data: 1\n\n"
        more.set()
        assert await answer.content.read() == b"data: 2\n\n"
        assert set(answer.headers) == {"Content-Type", "x-headgate-door", "Transfer-Encoding"}
    assert orjson.loads(far.requests[0][2])["stream_options"] == {"other": 1, "include_usage": True}


async def test_a_client_that_leaves_closes_the_provider_connection(house: Any, far: Any) -> None:
    await house.start()

    async def silent(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await asyncio.Event().wait()

    far.reply = silent
    body = house.body(stream=True)
    async with house.client() as client:
        headers = {"x-headgate-permit": house.sealed(house.permit(body))}
        answer = await client.post("/send", data=body, headers=headers)
        await answer.content.readany()
        answer.close()
        await asyncio.wait_for(far.left.wait(), 2)
    assert [entry["ended"] for entry in await house.ended()] == ["client_left"]


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{}",
    ],
)
async def test_an_answer_that_breaks_off_is_never_passed_on_as_whole(house: Any, far: Any, cut: bytes) -> None:
    await house.start()

    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(cut)
        await writer.drain()
        writer.close()

    far.reply = broken
    with pytest.raises(aiohttp.ClientPayloadError):
        await house.send()
    assert [entry["ended"] for entry in await house.ended()] == ["failed"]


async def test_a_provider_error_is_passed_on_without_its_inside(house: Any, far: Any) -> None:
    await house.start()
    for line, text, status, code, message in (
        ("429 Too Many", '{"error":{"message":"slow down","code":"rate"}}', 429, "rate", "slow down"),
        ("400 Bad", '{"error":{"message":"KEY is bad","code":"KEY"}}', 400, "provider_error", "status 400"),
        ("500 Oops", "<html>trace</html>", 500, "provider_error", "status 500"),
        ("400 Bad", '{"error":{"message":"' + "x" * 500 + '"}}', 400, "provider_error", "status 400"),
        ("401 No", '{"error":{"message":"bad key KEY"}}', 502, "provider_refused_key", "refused the door's key"),
        ("403 No", "{}", 502, "provider_refused_key", "refused the door's key"),
    ):
        answer = (line, text.replace("KEY", house.key).encode(), "retry-after: 7\r\nset-cookie: a=b\r\n")
        far.reply = lambda writer, answer=answer: far.answer(writer, *answer)
        got, mark, found = await house.send()
        assert (got, mark, found["error"]["code"]) == (status, "sent", code), line
        assert message in found["error"]["message"] and house.key not in str(found)


async def test_a_redirect_is_not_followed(house: Any, far: Any) -> None:
    await house.start()
    place = f"location: http://127.0.0.1:{house.port}/elsewhere\r\n"
    far.reply = lambda writer: far.answer(writer, "307 Temporary Redirect", b"", place)
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (502, "sent", "provider_redirected")
    assert len(far.requests) == 1


async def test_proxies_of_the_environment_are_ignored(house: Any, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await house.start()
    assert (await house.send())[0] == 200
    assert far.requests[0][0] == "POST /v1/chat/completions HTTP/1.1"


async def test_a_configured_proxy_gets_a_tunnel_and_neither_key_nor_text(house: Any, far: Any) -> None:
    settings = house.provider(base_url="https://models.example/v1", proxy=f"http://127.0.0.1:{house.port}")
    house.providers["far"] = settings
    far.reply = lambda writer: far.answer(writer, "403 Forbidden", b"")
    await house.start()
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (502, "failed", "provider_proxy")
    line, headers, body = far.requests[0]
    assert line == "CONNECT models.example:443 HTTP/1.1" and body == b""
    assert house.key not in str(headers)


async def test_a_provider_that_cannot_be_reached_is_marked_as_not_sent(house: Any) -> None:
    house.providers["far"] = house.provider(base_url="http://127.0.0.1:1/v1")
    await house.start()
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (502, "failed", "provider_unreachable")
    (ended,) = await house.ended()
    assert (ended["error"], ended["left"]) == ("provider_unreachable", False)


async def test_a_compressed_answer_is_refused_and_an_oversized_one_never_begins(house: Any, far: Any) -> None:
    await house.start()
    far.reply = lambda writer: far.answer(writer, headers="content-encoding: gzip\r\n")
    assert (await house.send())[2]["error"]["code"] == "provider_encoding"
    lines = "".join(f"x-{n}: {'y' * 8000}\r\n" for n in range(9))
    far.reply = lambda writer: far.answer(writer, headers=lines)
    assert (await house.send())[2]["error"]["code"] == "provider_headers_too_large"

    async def huge(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999\r\n\r\n")

    far.reply = huge
    assert (await house.send())[2]["error"]["code"] == "provider_answer_too_large"


async def test_a_key_file_wins_and_a_rotated_key_is_used_at_once(house: Any, far: Any) -> None:
    file = house.root / "key"
    house.providers["far"] = house.provider(key_file=str(file), key_header="api-key")
    await house.start()
    assert (await house.status())["providers"]["far"]["key"] == "missing"
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (503, "refused", "provider_key_missing")
    assert str(file) in found["error"]["message"] and far.bytes_seen == 0
    for turn in ("first", "second"):
        file.write_text(f"{turn}-{house.key}\n")
        assert (await house.send())[0] == 200
        assert far.requests[-1][1]["api-key"] == f"{turn}-{house.key}"
        assert "authorization" not in far.requests[-1][1]


async def test_the_door_says_what_it_is(house: Any) -> None:
    house.environ.clear()
    await house.start()
    found = await house.status()
    assert (found["open"], found["closed_because"], found["policy"]) == (True, "", house.catalogue.version)
    assert found["providers"]["far"]["key"] == "missing" and "PROVIDER_KEY" in found["providers"]["far"]["reason"]
    assert found["providers"]["off"]["enabled"] is False


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_verified_against_the_named_authority(house: Any, far: Any, trusted: bool) -> None:
    pem = house.root / "ca.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", pem, "-out", pem]
    subprocess.run([str(part) for part in make], check=True, capture_output=True)
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(pem)
    server = await asyncio.start_server(far.handle, "127.0.0.1", 0, ssl=inside)
    port = server.sockets[0].getsockname()[1]
    settings = house.provider(base_url=f"https://localhost:{port}/v1", private_ranges=["127.0.0.0/8", "::1/128"])
    house.providers["far"] = {**settings, "ca_file": str(pem) if trusted else ""}
    await house.start()
    status, mark, found = await house.send()
    if trusted:
        assert (status, mark) == (200, "sent")
    else:
        assert (status, mark, found["error"]["code"]) == (502, "failed", "provider_tls")
        assert far.bytes_seen == 0
    server.close()
