"""Connections of callers over real sockets, as they are served: on uvloop, with callers that do as they like."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import socket
import sqlite3
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from uvicorn.server import ServerState

from router.api.idempotency import Claim
from router.api.protocol import Connection, protocol_of
from router.ledger import store
from router.ledger.keys import KeyBook
from tests.conftest import House, ask, until
from tests.fakes.caller import RawCaller
from tests.router.test_listen import certificate

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")


def body_of(path: str, **more: Any) -> dict[str, Any]:
    """A small body for a route."""
    fields: dict[str, Any] = {"model": "small", **more}
    if path.endswith("/completions") and "chat" not in path:
        return fields | {"prompt": "Hello"}
    if path.endswith(("embeddings", "responses")):
        return fields | {"input": "Hello"}
    return fields | {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10}


def open_requests(house: House) -> int:
    assert house.built is not None
    return house.built.edge.load.open


def change_key(house: House, key: str, **changed: Any) -> None:
    """As the operator's command does, and as the router sees it within a second."""
    assert house.built is not None
    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        book.set(key.split("_")[1], **changed)
    house.built.keyring.refresh()


# ---- one request after the other


async def test_requests_follow_each_other_on_one_connection(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        for _ in range(3):
            caller.post(ask("small"))
            assert (await caller.answer()).status == 200
        caller.send(caller.head("GET", "/health"))
        page = await caller.answer()
        assert json.loads(page.body) == {"status": "ok"}
        assert "x-request-id" not in page.headers  # no record has it


async def test_requests_sent_together_are_answered_in_turn(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small"))
        caller.post(ask("nobody"))
        caller.send(b"\r\n" + caller.head("GET", "/health"))
        caller.post(ask("small", stream=True))
        assert [(await caller.answer()).status for _ in range(4)] == [200, 404, 200, 200]


async def test_a_request_in_pieces_of_one_byte_is_the_same_request(house: House) -> None:
    await house.start()
    key = house.key()
    for headers in ("", "Transfer-Encoding: chunked\r\n"):
        body = json.dumps(ask("small")).encode()
        sent = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n" if headers else body
        headers = headers or f"Content-Length: {len(body)}\r\n"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\n{headers}\r\n".encode()
        async with RawCaller(house.url) as caller:
            for byte in head + sent:
                caller.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await caller.answer()).status == 200


async def test_a_caller_that_sends_far_ahead_is_read_no_further(house: House) -> None:
    await house.start()
    house.local.script = {"never": True}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        sent, data = 0, b"x" * 65536
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 2**20:
                caller.send(data)
                async with asyncio.timeout(0.5):
                    await caller.writer.drain()
                sent += len(data)
        assert sent < 32 * 2**20


async def test_a_connection_that_is_to_be_closed_is_closed(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small"), "/v1/chat/completions", "Connection: close")
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.ended() == b""


@pytest.mark.parametrize("stream", [True, False])
async def test_http_1_0_gets_one_answer_without_chunks(house: House, stream: bool) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        body = json.dumps(ask("small", stream=stream)).encode()
        head = caller.head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}")
        caller.send(head.replace(b"HTTP/1.1", b"HTTP/1.0") + body)
        raw = await caller.ended()
    assert raw.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in raw
    assert raw.rstrip().endswith(b"data: [DONE]" if stream else b"}")


# ---- what is refused before it is read


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 2", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: chunked", "Content-Length: 2"], 400),
        (["Content-Length: 2", "Content-Length: 2"], 400),
        (["Content-Length: 2, 2"], 400),
        (["Content-Length: -2"], 400),
        (["Content-Length: +2"], 400),
        (["Content-Length: 99999999999999999999999"], 400),
        (["Transfer-Encoding: chunked, identity"], 400),
        (["Transfer-Encoding: gzip, chunked"], 400),
        (["Transfer-Encoding: xchunked"], 400),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
        (["A: b", " folded"], 400),
        (["A : b"], 400),
        (["A: b\x00c"], 400),
        (["A: b\x01c"], 400),
        (["A: b\x7fc"], 400),
        (["A: b\rX-Evil: c"], 400),
        (["A: b\nX-Evil: c"], 400),
        ([": b"], 400),
        (["Host: other"], 400),
        (["Expect: 200-ok"], 400),
        (["Content-Length: 2", "Content-Encoding: gzip"], 415),
        (["Content-Length: 2", "Content-Encoding: identity, br"], 415),
        ([f"A: {'x' * 17_000}"], 431),
        ([f"A{n}: x" for n in range(70)], 431),
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused_and_the_connection_closed(
    house: House, lines: list[str], status: int
) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head("POST", "/v1/chat/completions", *lines) + b"{}GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await caller.answer()
        assert answer.status == status
        assert answer.error["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"].startswith("req_")
        if status != 415:
            assert answer.headers["connection"] == "close"
            assert await caller.ended() == b""
    assert house.local.requests == []


@pytest.mark.parametrize(
    "host",
    ["", "localhost/#@evil", "a?b", "a#b", "a\\b", "u@a", "u:p@a", "a b", "a,b", "a:x", "a:1:2", "[::1", "a%00", "ä"],
)
async def test_a_host_that_is_none_is_refused(house: House, host: str) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head("GET", "/health", f"Host: {host}", host=False))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_host")


async def test_no_host_at_all_is_refused_and_good_ones_are_not(house: House) -> None:
    await house.start()
    async with RawCaller(house.url) as caller:
        caller.send(caller.head("GET", "/health", host=False))
        assert (await caller.answer()).error["code"] == "invalid_host"
    async with RawCaller(house.url) as caller:
        for host in ("a", "a.b:8080", "127.0.0.1:1", "[::1]", "[fe80::1]:8080", "a_b"):
            caller.send(caller.head("GET", "/health", f"Host: {host}", host=False))
            assert (await caller.answer()).status == 200


@pytest.mark.parametrize(
    "path",
    ["//v1/chat/completions", "/v1//chat/completions", "/v1/../v1/chat/completions", "/v1/chat/completions/",
     "/v1/chat/completions;x", "/v1/chat/completions.", "/V1/chat/completions", "/v1/chat%2fcompletions",
     "/%761/chat/completions", "/v1/chat/completions%00", "/v1/chat/completions#a", "http://x/v1/chat/completions",
     "/admin", "/v1/models/", "/metrics", "/../health", "/health%20", "/v1/rerank", "/v1/audio/speech",
     "/v1/images/generations", "/v1/realtime", "/v1/message", "/v1", "/v1/", "/"],
)  # fmt: skip
async def test_any_other_spelling_of_a_path_is_another_path(house: House, path: str) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        for method in ("POST", "GET"):
            caller.send(caller.head(method, path, "Content-Length: 2") + b"{}")
            answer = await caller.answer()
            assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")
            assert answer.error["message"]
            assert not any(name.startswith("access-control") for name in answer.headers)
    assert house.local.requests == []


async def test_a_path_with_a_nul_or_a_long_url_is_refused(house: House) -> None:
    await house.start()
    for path, status in (("/a\x00b", 400), ("/a b", 400), ("/" + "a" * 9000, 414), ("/" + "a" * 65_000, 414)):
        async with RawCaller(house.url) as caller:
            caller.send(caller.head("GET", path))
            assert (await caller.answer()).status == status
    async with RawCaller(house.url) as caller:
        caller.send(b"GET /" + b"a" * 9000)  # and no end of it
        assert (await caller.answer()).status == 414


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "QUERY"])
async def test_no_other_method_is_taken(house: House, method: str) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head(method, "/v1/chat/completions", "X-HTTP-Method-Override: POST"))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
        caller.send(caller.head("DELETE", "/health"))
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
        assert (answer.headers["allow"], answer.headers["x-should-retry"]) == ("GET", "false")


@pytest.mark.parametrize("line", [b"CONNECT a:1 HTTP/1.1", b"TRACE /health HTTP/1.1", b"HELLO /health HTTP/1.1"])
async def test_methods_that_are_never_taken(house: House, line: bytes) -> None:
    await house.start()
    async with RawCaller(house.url) as caller:
        caller.send(line + b"\r\nHost: x\r\n\r\n")
        assert (await caller.answer()).status == 405


async def test_head_gets_no_body(house: House) -> None:
    await house.start()
    async with RawCaller(house.url) as caller:
        caller.send(caller.head("HEAD", "/v1/chat/completions"))
        assert (await caller.answer(bodyless=True)).status == 405
        caller.send(caller.head("GET", "/health"))
        assert json.loads((await caller.answer()).body) == {"status": "ok"}


@pytest.mark.parametrize(
    ("raw", "status"),
    [(b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", 505), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
     (b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n", 505), (b"GET /health RTSP/1.0\r\nHost: x\r\n\r\n", 400),
     (b"GET /health\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\x01", 400), (b"{}", 400)],
)  # fmt: skip
async def test_other_protocols_are_refused_at_once(house: House, raw: bytes, status: int) -> None:
    await house.start()
    async with RawCaller(house.url) as caller:
        caller.send(raw)
        assert (await caller.answer()).status == status


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
async def test_an_upgrade_is_never_taken_up(house: House, upgrade: str) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small"), "/v1/chat/completions", f"Upgrade: {upgrade}", "Connection: Upgrade")
        assert (await caller.answer()).status == 200
        caller.send(caller.head("GET", "/v1/realtime", "Upgrade: websocket", "Connection: Upgrade"))
        assert (await caller.answer()).status == 404


# ---- bodies


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413_before_its_end(house: House, chunked: bool) -> None:
    await house.start(router={"max_body_mb": 0.01})
    async with RawCaller(house.url, house.key()) as caller:
        how = "Transfer-Encoding: chunked" if chunked else "Content-Length: 10000000"
        caller.send(caller.head("POST", "/v1/chat/completions", how))
        if chunked:
            caller.send((b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 2)  # and no end of it
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert await caller.ended() == b""


@pytest.mark.parametrize(
    ("path", "good_key", "status"),
    [("/v1/chat/completions", True, 413), ("/v1/chat/completions", False, 401), ("/v1/audio/speech", True, 404)],
)
async def test_a_large_body_that_nobody_wants_does_not_take_the_answer_from_its_sender(
    house: House, path: str, good_key: bool, status: int
) -> None:
    await house.start(router={"max_body_mb": 1})
    given = {"x-api-key": house.key() if good_key else "hg_nonsense"}
    data = io.BytesIO(b"x" * (20 * 2**20))
    async with house.client.post(house.url + path, data=data, headers=given) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["message"]


async def test_tiny_chunks_cannot_make_the_router_work_for_long(house: House) -> None:
    await house.start(router={"max_body_mb": 0.1})
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked"))
        caller.send(b"1\r\nx\r\n" * 60_000)
        assert (await caller.answer()).status == 413


async def test_a_bad_key_is_told_before_the_body_is_sent(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, "hg_nonsense") as caller:
        caller.send(caller.head("POST", "/v1/chat/completions", "Content-Length: 10000000", "Expect: 100-continue"))
        assert (await caller.answer()).status == 401
        assert caller.informed == []
        assert await caller.ended() == b""


async def test_a_good_key_is_told_to_go_on(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        body = json.dumps(ask("small")).encode()
        how = f"Content-Length: {len(body)}"
        caller.send(caller.head("POST", "/v1/chat/completions", how, "Expect: 100-continue"))
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(body)
        assert (await caller.answer()).status == 200


# ---- deadlines


async def test_a_head_that_does_not_come_whole_is_408(house: House) -> None:
    await house.start(router={"header_timeout_s": 0.2})
    async with RawCaller(house.url) as caller:
        caller.send(b"GET /health HTTP/1.1\r\nHost:")
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await caller.ended() == b""


async def test_a_body_that_does_not_come_whole_is_408_and_is_written_down(house: House) -> None:
    await house.start(router={"body_timeout_s": 0.2})
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(b"{", length=100)
        answer = await caller.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert await caller.ended() == b""
    assert house.built is not None
    await house.built.store.durable()
    (event,) = house.built.store.events(answer.headers["x-request-id"])
    assert (event["kind"], event["error"]) == ("refused", "request_timeout")
    assert open_requests(house) == 0


async def test_a_silent_connection_is_closed_without_a_word(house: House) -> None:
    await house.start(router={"idle_connection_s": 0.2})
    async with RawCaller(house.url) as caller:
        assert await caller.ended() == b""
    async with RawCaller(house.url) as caller:
        caller.send(caller.head("GET", "/health"))
        assert (await caller.answer()).status == 200
        assert await caller.ended() == b""


async def test_a_client_that_takes_nothing_is_let_go_and_the_upstream_too(house: House) -> None:
    await house.start(router={"write_timeout_s": 0.4})
    event = f"data: {json.dumps({'choices': [{'delta': {'content': 'x' * 60_000}}]})}\n\n"
    house.local.script = {"chunks": [event] * 2000, "headers": {"content-type": "text/event-stream"}}
    async with RawCaller(house.url, house.key()) as caller:
        caller.writer.transport.pause_reading()
        caller.post(ask("small", stream=True))
        await house.local.until(lambda: house.local.blocked, 20)
        sent = house.local.sent
        await house.local.until(lambda: not house.local.open, 20)
        assert sent < 40 * 2**20  # of 120: the rest was never read from the upstream
    await until(lambda: open_requests(house) == 0)
    assert house.built is not None
    await until(lambda: house.built is not None and house.built.fleet.state()["in_flight"] == 0)


# ---- callers that leave, and callers that only seem to


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_stops_the_engine_on_every_route(
    house: House, path: str, stream: bool, how: str
) -> None:
    if stream and path == "/v1/embeddings":
        pytest.skip("embeddings are not streamed")
    await house.start()
    house.local.script = {"never": True}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(body_of(path, **({"stream": True} if stream else {})), path)
        await until(lambda: house.local.requests)
        if how == "reset":
            caller.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        caller.writer.close()
        await house.local.until(lambda: not house.local.open)
    await until(lambda: open_requests(house) == 0)


async def test_a_client_that_leaves_the_queue_never_reaches_an_engine(house: House) -> None:
    house.instances[0]["limit"] = 1
    await house.start()
    house.local.script = {"never": True}
    key = house.key()
    async with RawCaller(house.url, key) as first:
        first.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        async with RawCaller(house.url, key) as second:
            second.post(ask("small"))
            assert house.built is not None
            await until(lambda: house.built is not None and house.built.fleet.state()["waiting"] == 1)
        await until(lambda: house.built is not None and house.built.fleet.state()["waiting"] == 0)
    await until(lambda: open_requests(house) == 0)
    assert len(house.local.requests) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_ends_only_its_own_side_gets_its_answer(house: House, stream: bool) -> None:
    await house.start()
    house.local.script = {"delay_s": 0.3}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small", stream=stream))
        caller.writer.write_eof()
        answer = await caller.answer()
        assert (answer.status, answer.whole) == (200, True)
        assert await caller.ended() == b""


async def test_a_client_that_leaves_while_it_sends_leaves_nothing_behind(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(b"{", length=100)
        await until(lambda: open_requests(house) == 1)
    await until(lambda: open_requests(house) == 0)
    assert house.built is not None and len(house.built.edge._idle) <= 1


@pytest.mark.parametrize("stream", [True, False])
async def test_whenever_a_client_leaves_everything_taken_for_it_is_given_back(house: House, stream: bool) -> None:
    """At any byte of the request, and at any moment of its answer: nobody is told afterwards."""
    house.instances[0]["limit"] = 3
    await house.start()
    house.local.script = {"delay_s": 0.01}
    key = house.key(tokens_per_minute=10_000_000)
    whole = json.dumps(ask("small", stream=stream)).encode()

    async def leave(number: int) -> None:
        async with RawCaller(house.url, key) as caller:
            how = f"Content-Length: {len(whole)}", f"Idempotency-Key: order-{number}"
            sent = caller.head("POST", "/v1/chat/completions", *how) + whole
            caller.send(sent * 2 if number % 3 else sent[: number * len(sent) // 60])
            for _ in range(number):
                await asyncio.sleep(0.0005)
            caller.writer.transport.abort()

    await asyncio.gather(*(leave(number) for number in range(60)))
    assert house.built is not None
    built = house.built
    await until(lambda: open_requests(house) == 0)
    await until(lambda: built.fleet.state()["in_flight"] == built.fleet.state()["waiting"] == 0)
    await until(lambda: built.edge._open == len(built.edge._idle))
    claims: dict[Any, Claim] = built.edge._inference._idempotency._claims  # type: ignore[attr-defined]
    assert all(claim.kept is not None for claim in claims.values())
    caller = built.keyring.find(key, 0.0)
    assert caller is not None
    left = dict(built.edge.rates.headers(caller, time.monotonic()))[b"x-ratelimit-remaining-tokens"]
    assert int(left) > 9_000_000


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_connection_that_ended_is_freed_at_once(house: House, leaves: bool) -> None:
    """Not when garbage is looked for next: that is minutes later, and the memory of all who left would wait for it."""
    await house.start()
    house.local.script = {"delay_s": 30.0} if leaves else {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            async with RawCaller(house.url, house.key()) as caller:
                caller.post(ask("small"))
                if leaves:
                    await until(lambda: open_requests(house) == 1)
                else:
                    assert (await caller.answer()).status == 200
            await until(lambda: open_requests(house) == 0)
        await until(lambda: not any(isinstance(there, Connection) for there in gc.get_objects()))
    finally:
        gc.enable()


# ---- streams that are silent, and streams that break


async def test_a_silent_stream_is_kept_alive_and_then_goes_on(house: House) -> None:
    await house.start(router={"keep_alive_s": 0.1})
    house.local.script = {"delay_s": 0.5}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small", stream=True))
        answer = await caller.answer()
    assert (answer.status, answer.whole) == (200, True)
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("text/event-stream", "no-cache")
    assert answer.headers["x-request-id"] and answer.headers["x-headgate-lane"] == "named"
    assert "small" in answer.headers["x-headgate-reason"] and "x-headgate-model" not in answer.headers
    assert answer.body.startswith(b": keep-alive\n\n")
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_error_after_the_head_is_the_last_event_and_the_connection_ends(house: House, path: str) -> None:
    await house.start(router={"keep_alive_s": 0.1})
    house.local.script = {"delay_s": 0.5, "status": 400, "body": json.dumps({"error": {"message": "no", "code": 400}})}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(body_of(path, stream=True), path)
        answer = await caller.answer()
        assert (answer.status, answer.whole) == (200, False)
        assert await caller.ended() == b""
    last = answer.body.strip().split(b"\n\n")[-1]
    assert last.startswith(b"data: " if "chat" in path else b"event: error\ndata: ")
    assert b"[DONE]" not in answer.body


async def test_a_whole_answer_is_never_kept_alive(house: House) -> None:
    await house.start(router={"keep_alive_s": 0.1})
    house.local.script = {"delay_s": 0.4}
    async with RawCaller(house.url, house.key()) as caller:
        caller.post(ask("small"))
        answer = await caller.answer()
    assert answer.headers["content-type"] == "application/json"
    assert "transfer-encoding" not in answer.headers


async def test_errors_speak_the_dialect_of_their_route(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, "hg_nonsense") as caller:
        caller.post(body_of("/v1/messages"), "/v1/messages")
        answer = await caller.answer()
        assert json.loads(answer.body) == {"type": "error", "error": answer.error}
        assert answer.headers["x-should-retry"] == "false"
    async with RawCaller(house.url) as caller:
        caller.post(body_of("/v1/messages"), "/v1/messages")
        answer = await caller.answer()
        assert "x-api-key" in answer.error["message"], "Anthropic's clients have no other header for it"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [("POST", "/v1/messages/batches", 404, "not_found_error"),
     ("TRACE", "/v1/messages/x", 405, "invalid_request_error"),
     ("GET", "/v1/messages/msg_1", 404, "not_found_error"),
     ("GET", "/v1/messages/count_tokens", 405, "invalid_request_error"),
     ("POST", "/v1/messages/count_tokens", 400, "invalid_request_error")],
)  # fmt: skip
async def test_all_below_messages_speaks_anthropics_dialect(
    house: House, method: str, path: str, status: int, kind: str
) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head(method, path, "Content-Length: 2") + b"{}")
        answer = await caller.answer()
    assert answer.status == status
    assert json.loads(answer.body) == {"type": "error", "error": {"type": kind, "message": answer.error["message"]}}


# ---- too much


async def test_more_requests_than_allowed_are_refused_before_their_body(house: House) -> None:
    await house.start(router={"max_requests": 1})
    house.local.script = {"never": True}
    key = house.key()
    async with RawCaller(house.url, key) as first, RawCaller(house.url, key) as second:
        first.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        second.post(b"{", length=1000)
        answer = await second.answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0


async def test_without_memory_one_request_at_a_time_is_answered(house: House) -> None:
    await house.start(router={"memory_limit_mb": 1})
    house.local.script, key = {"gate": True}, house.key()
    async with RawCaller(house.url, key) as first:
        first.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        reply = await house.post(ask("small"), key)
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert (await house.get("/health")).status == 200
        house.local.gate.set()
        answer = await first.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_the_oldest_idle_connection_makes_room(house: House) -> None:
    await house.start(router={"max_connections": 2})
    assert house.built is not None
    edge = house.built.edge
    await until(lambda: not edge._open)
    async with RawCaller(house.url) as first:
        await until(lambda: edge._open == 1)
        async with RawCaller(house.url) as second, RawCaller(house.url) as third:
            assert await first.ended() == b""
            for caller in (second, third):
                caller.send(caller.head("GET", "/health"))
                assert (await caller.answer()).status == 200


async def test_where_no_connection_is_idle_a_new_one_is_refused(house: House) -> None:
    await house.start(router={"max_connections": 1})
    assert house.built is not None
    edge = house.built.edge
    await until(lambda: not edge._open)
    house.local.script = {"never": True}
    async with RawCaller(house.url, house.key()) as first:
        first.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        async with RawCaller(house.url) as second:
            answer = await second.answer()
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
            assert await second.ended() == b""


# ---- the same request again


async def test_a_named_request_is_answered_once(house: House) -> None:
    await house.start()
    key, named = house.key(), {"Idempotency-Key": "order-1"}
    first = await house.post(ask("small"), key, headers=named)
    again = await house.post(ask("small"), key, headers=named)
    assert (first.status, again.status) == (200, 200)
    assert again.body == first.body
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert again.headers["x-headgate-replayed"] == "true"
    assert "x-headgate-replayed" not in first.headers
    assert len(house.local.requests) == 1
    assert [event["kind"] for event in await house.events(again)] == ["opened", "closed"]
    other = await house.post(ask("small", n=1), key, headers=named)
    assert (other.status, other.error["code"]) == (422, "idempotency_mismatch")
    raised = await house.post(ask("small"), key, headers={**named, "x-headgate-data-class": "secret"})
    assert (raised.status, raised.error["code"]) == (422, "idempotency_mismatch"), "a header makes it another request"
    async with RawCaller(house.url, key) as caller:
        caller.post(ask("small"), "/v1/chat/completions", "Idempotency-Key: order-1", "Idempotency-Key: order-2")
        assert (await caller.answer()).error["param"] == "Idempotency-Key"
    assert (await house.post(ask("small"), house.key(), headers=named)).headers.get("x-headgate-replayed") is None
    assert (await house.post(ask("small"), key, headers={"Idempotency-Key": "x" * 256})).status == 400


async def test_a_repeat_is_accounted_for_as_a_request_that_cost_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer stands in the ledger; where it takes no record there is no answer."""
    await house.start()
    assert house.built is not None
    key, named = house.key(), {"Idempotency-Key": "order-1"}
    first = await house.post(ask("small"), key, headers=named)
    again = await house.post(ask("small"), key, headers=named)
    assert again.headers["x-headgate-replayed"] == "true"
    await house.built.store.durable()
    with contextlib.closing(sqlite3.connect(house.home.ledger)) as db:
        ((request, cost, body),) = db.execute("SELECT request, cost, body FROM events WHERE kind = 'repeated'")
    told = json.loads(body)
    assert told == {"route": "chat/completions", "team": told["team"], "outcome": "repeated", "status": 200,
                    "first": first.headers["x-request-id"]}  # fmt: skip
    assert cost == 0.0 and request not in (told["first"], "")
    change_key(house, key, requests_per_minute=1)
    assert (await house.post(ask("small"), key, headers=named)).status == 200
    assert (await house.post(ask("small"), key, headers=named)).status == 429, "a repeat is a request as well"
    change_key(house, key, requests_per_minute=None)
    monkeypatch.setattr(store, "SPOOL_LIMIT", 0)
    late = await house.post(ask("small"), key, headers=named)
    assert (late.status, late.error["code"]) == (503, "ledger_unavailable")


async def test_a_named_request_in_parallel_is_409_and_free_again_once_its_caller_left(house: House) -> None:
    await house.start()
    house.local.script = {"never": True}
    key, named = house.key(), {"Idempotency-Key": "order-1"}
    async with RawCaller(house.url, key) as first:
        first.post(ask("small"), "/v1/chat/completions", "Idempotency-Key: order-1")
        await house.local.until(lambda: house.local.requests)
        reply = await house.post(ask("small"), key, headers=named)
        assert (reply.status, reply.error["code"]) == (409, "idempotency_in_progress")
        assert reply.headers["retry-after"] == "1"
    await until(lambda: open_requests(house) == 0)
    house.local.script = {}
    assert (await house.post(ask("small"), key, headers=named)).status == 200


async def test_an_error_for_good_is_repeated_and_a_passing_one_is_not(house: House) -> None:
    await house.start()
    key = house.key()
    for name, status, replayed in (("good", 400, "true"), ("busy", 503, None)):
        house.local.script = {"status": 503, "body": "{}"}
        body = ask("small", nonsense=1) if name == "good" else ask("small")
        replies = [await house.post(body, key, headers={"Idempotency-Key": name}) for _ in range(2)]
        assert [reply.status for reply in replies] == [status, status]
        assert replies[1].headers.get("x-headgate-replayed") == replayed


async def test_a_refusal_that_the_operator_has_lifted_is_not_repeated(house: House) -> None:
    await house.start()
    key, named = house.key(lanes=frozenset({"cheap"})), {"Idempotency-Key": "order-1"}
    refused = await house.post(ask("private"), key, headers=named)
    assert (refused.status, refused.error["code"]) == (403, "lane_not_allowed")
    change_key(house, key, lanes=frozenset({"cheap", "private"}))
    assert (await house.post(ask("private"), key, headers=named)).status == 200


async def test_a_revoked_key_and_another_key_get_no_kept_answer(house: House) -> None:
    await house.start()
    key, named = house.key(), {"Idempotency-Key": "order-1"}
    assert (await house.post(ask("small"), key, headers=named)).status == 200
    assert "x-headgate-replayed" not in (await house.post(ask("small"), house.key(), headers=named)).headers
    change_key(house, key, revoked=1.0)
    assert (await house.post(ask("small"), key, headers=named)).status == 401


async def test_a_stream_has_no_name(house: House) -> None:
    await house.start()
    key, named = house.key(), {"Idempotency-Key": "order-1"}
    for _ in range(2):
        reply = await house.post(ask("small", stream=True), key, headers=named)
        assert "x-headgate-replayed" not in reply.headers
    assert len(house.local.requests) == 2


# ---- limits of speed


async def test_a_key_with_limits_is_told_what_is_left_on_every_answer(house: House) -> None:
    await house.start()
    key = house.key(requests_per_minute=2, tokens_per_minute=100_000)
    first = await house.post(ask("small"), key)
    assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "2")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 100_000
    streamed = await house.post(ask("small", stream=True), key)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    refused = await house.post(ask("small"), key)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert "x-ratelimit-reset-requests" in refused.headers
    assert float(refused.headers["retry-after"]) > 0
    assert "x-ratelimit-limit-requests" not in (await house.post(ask("small"), house.key())).headers


# ---- the end


async def test_a_stop_finishes_what_is_being_answered_and_closes_the_rest(house: House) -> None:
    await house.start()
    house.local.script = {"delay_s": 0.5}
    async with RawCaller(house.url, house.key()) as busy, RawCaller(house.url) as idle:
        busy.post(ask("small"))
        await house.local.until(lambda: house.local.requests)
        stopped = asyncio.create_task(house.close())
        assert await idle.ended() == b""
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.ended() == b""
        await stopped


@contextlib.asynccontextmanager
async def served(house: House, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, ServerState]]:
    """The same edge on a port of its own, as uvicorn's server makes its connections."""
    assert house.built is not None
    state, made = ServerState(), protocol_of(house.built.edge)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: made(config=None, server_state=state, app_state={}), "127.0.0.1", ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], state
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await until(lambda: not state.connections)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_outlasts_the_stop_ends_with_an_error(house: House, stream: bool) -> None:
    await house.start(router={"keep_alive_s": 0.05})
    house.local.script = {"never": True}
    async with served(house) as (port, state), RawCaller(f"http://127.0.0.1:{port}", house.key()) as caller:
        caller.post(ask("small", stream=stream))
        await house.local.until(lambda: house.local.requests)
        if stream:
            assert (await caller.begun())[0] == 200
        for task in list(state.tasks):
            task.cancel()  # as uvicorn does when its time is over
        if stream:
            assert b'"overloaded"' in await caller.ended()
        else:
            answer = await caller.answer()
            assert (answer.status, answer.error["code"]) == (503, "overloaded")
        await until(lambda: not state.tasks)
    await house.local.until(lambda: not house.local.open)


async def test_with_tls_a_caller_is_answered_and_its_leaving_is_seen(house: House, tmp_path: Path) -> None:
    made = certificate(tmp_path, "gate")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(str(made.tls_cert), str(made.tls_key))
    trusting = ssl.create_default_context(cafile=str(made.tls_cert))
    await house.start()
    body, key = json.dumps(ask("small")).encode(), house.key()
    head = RawCaller(house.url, key).head("POST", "/v1/chat/completions", f"Content-Length: {len(body)}")
    async with served(house, server) as (port, _):
        caller = RawCaller(house.url)
        caller.reader, caller.writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        for _ in range(2):
            caller.send(head + body)
            assert (await caller.answer()).status == 200
        house.local.script = {"never": True}
        caller.send(head + body)
        await house.local.until(lambda: len(house.local.requests) == 3)
        caller.writer.close()
        await house.local.until(lambda: not house.local.open)
    await until(lambda: open_requests(house) == 0)


# ---- what hides behind another request


@pytest.mark.parametrize("cut", [0, 8, 40])
async def test_what_came_together_with_the_end_of_a_chunked_body_is_never_taken_for_a_request(
    house: House, cut: int
) -> None:
    """A part of it was read with the body and is lost; the rest must not be read as if it stood alone."""
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        hidden = b"GET /a HTTP/1.1\r\nHost: x\r\nPadding: xxxxxx\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        body = json.dumps(ask("small")).encode()
        sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head = caller.head("POST", "/v1/chat/completions", "Transfer-Encoding: chunked")
        caller.send(head + sent + hidden[: cut or None])
        await caller.writer.drain()
        if cut:
            await house.local.until(lambda: house.local.requests)
            caller.send(hidden[cut:])
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.ended() == b""


async def test_requests_of_a_client_that_takes_no_answer_wait(house: House) -> None:
    await house.start()
    assert house.built is not None
    async with served(house) as (port, state), RawCaller(f"http://127.0.0.1:{port}") as caller:
        caller.writer.transport.pause_reading()
        head, told = caller.head("GET", "/nowhere"), 0
        with contextlib.suppress(TimeoutError):
            while told < 32 * 2**20:
                caller.send(head * 2000)
                told += len(head) * 2000
                async with asyncio.timeout(0.5):
                    await caller.writer.drain()
        (connection,) = state.connections
        held = connection._transport.get_write_buffer_size() + len(connection._in.buffer)
        caller.writer.transport.resume_reading()
        assert held < 2**20
        assert told < 32 * 2**20
        for _ in range(1000):
            assert (await caller.answer()).status == 404


async def test_requests_sent_together_in_great_number_are_all_answered(house: House) -> None:
    await house.start()
    async with RawCaller(house.url, house.key()) as caller:
        caller.send(caller.head("GET", "/nowhere") * 3000 + caller.head("GET", "/health") * 30)
        caller.post(ask("small"))
        answers = [(await caller.answer()).status for _ in range(3031)]
        assert answers == [404] * 3000 + [200] * 31
