"""The upstream client over real sockets: what a broken, slow or hostile upstream can and cannot do to us."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.upstream.connection import Address, Bounds, Connections, Deadlines, Response, UpstreamError
from tests.fakes.faults import Upstream, completion, events

QUICK = Deadlines(connect_s=0.3, first_byte_s=5, idle_s=5, total_s=10)
ASK = b'{"messages":[]}'


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[Connections]:
    connections = Connections(QUICK, Bounds())
    yield connections
    await connections.close()


async def ask(client: Connections, upstream: Upstream, script: Any = "", **more: Any) -> Response:
    text = script if isinstance(script, str) else json.dumps(script)
    headers = [("x-fault", text)] if text else []
    return await client.post(Address.parse(upstream.address), "/v1/chat/completions", headers, ASK, **more)


async def failure(client: Connections, upstream: Upstream, script: Any, **more: Any) -> str:
    """The kind of UpstreamError that asking and reading ends with."""
    with pytest.raises(UpstreamError) as caught:
        await (await ask(client, upstream, script, **more)).read()
    assert "\n" not in str(caught.value)
    return caught.value.kind


async def still_works(client: Connections, upstream: Upstream) -> None:
    """The next exchange gets its own answer, and no connection is left over from what happened before."""
    assert await (await ask(client, upstream)).read() == completion().encode()
    await upstream.until(lambda: len(upstream.open) == 1)


# ---- addresses and requests


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("unix:/run/a b.sock", "localhost"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://gpu-1/", "gpu-1:80"),
        ("https://[::1]:8443", "[::1]:8443"),
    ],
)
def test_an_address_is_read(text: str, authority: str) -> None:
    assert Address.parse(text).authority == authority


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1:8000", "ftp://a:1", "unix:relative", "http://", "http://a:b", "http://a:0", "http://a:99999",
        "http://a:1/v1", "http://user:word@a:1", "http://a:1?x", "http://a:1#x", "http://a b:1", "http://a\r\nb:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="not an address") as caught:
        Address.parse(text)
    assert "\n" not in str(caught.value)


async def test_the_request_arrives_as_it_was_given(client: Connections, upstream: Upstream) -> None:
    address = Address.parse(upstream.address)
    await (await client.post(address, "/v1/x?y=1", [("x-request-id", "r1")], b'{"a":"\xc3\xb6"}')).read()
    await (await client.get(address, "/health")).read()
    posted, got = upstream.requests
    assert (posted.method, posted.path, posted.body) == ("POST", "/v1/x?y=1", b'{"a":"\xc3\xb6"}')
    assert posted.headers["host"] == f"127.0.0.1:{upstream.port}"
    assert posted.headers["x-request-id"] == "r1"
    assert posted.headers["accept-encoding"] == "identity"
    assert (got.method, got.path, got.body) == ("GET", "/health", b"")
    assert "content-length" not in got.headers


@pytest.mark.parametrize(
    "header",
    [("x", "a\r\nb: c"), ("x", "a\nb"), ("x", "a\0"), ("x\r\ny", "a"), ("x:", "a"), ("", "a"), ("x", "€"),
     ("Content-Length", "3"), ("Transfer-Encoding", "chunked"), ("host", "elsewhere")],
)  # fmt: skip
async def test_a_header_cannot_smuggle_anything(
    client: Connections, upstream: Upstream, header: tuple[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"header|latin-1"):
        await client.post(Address.parse(upstream.address), "/x", [header], b"")
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nx: y", "/ö", "http://elsewhere/"])
async def test_a_path_cannot_smuggle_anything(client: Connections, upstream: Upstream, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        await client.get(Address.parse(upstream.address), path)
    assert upstream.requests == []


async def test_proxies_of_the_environment_are_not_used(
    client: Connections, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    await still_works(client, upstream)


# ---- answers


async def test_a_body_larger_than_any_buffer_goes_and_comes_whole(client: Connections, upstream: Upstream) -> None:
    sent = json.dumps({"text": "x" * 3_000_000}).encode()
    response = await client.post(Address.parse(upstream.address), "/x", [], sent)
    assert upstream.requests[0].body == sent
    await response.read()
    large = "äöü" * 500_000
    assert await (await ask(client, upstream, {})).read() == completion().encode()
    upstream.script = {"body": large}
    assert (await (await ask(client, upstream)).read()).decode() == large


@pytest.mark.parametrize("split", [1, 7, 1000])
async def test_an_answer_in_any_pieces_is_the_same(client: Connections, upstream: Upstream, split: int) -> None:
    response = await ask(client, upstream, {"split": split})
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert await response.read() == completion().encode()
    streamed = await ask(client, upstream, {"split": split, "stream": ["grüß", "e"]})
    assert b"".join([piece async for piece in streamed.chunks()]) == b"".join(events(["grüß", "e"]))
    assert upstream.accepted == 1


async def test_chunks_come_as_they_are_sent_not_at_the_end(client: Connections, upstream: Upstream) -> None:
    response = await ask(client, upstream, {"chunks": ["one", "two", "three"], "pause_s": 0.02})
    assert [piece async for piece in response.chunks()] == [b"one", b"two", b"three"]


async def test_interim_answers_are_skipped(client: Connections, upstream: Upstream) -> None:
    response = await ask(client, upstream, {"inform": [100, 103, 103]})
    assert response.status == 200
    assert "x-early" not in response.headers
    assert await response.read() == completion().encode()


@pytest.mark.parametrize("status", [301, 307, 308, 400, 401, 404, 429, 500, 503, 529])
async def test_a_status_is_given_back_and_nothing_followed(
    client: Connections, upstream: Upstream, status: int
) -> None:
    headers = {"location": f"{upstream.address}/elsewhere", "retry-after": "7"}
    response = await ask(client, upstream, {"status": status, "headers": headers})
    assert (response.status, response.headers["retry-after"]) == (status, "7")
    await response.read()
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "more"), [(204, ""), (304, "content-length: 9\r\n"), (205, "content-length: 0\r\n")]
)
async def test_a_status_without_body_is_whole_at_once(
    client: Connections, upstream: Upstream, status: int, more: str
) -> None:
    response = await ask(client, upstream, {"raw": f"HTTP/1.1 {status} x\r\n{more}\r\n"})
    assert (response.status, await response.read()) == (status, b"")
    await still_works(client, upstream)
    assert upstream.accepted == 1


async def test_a_body_that_ends_with_the_connection(client: Connections, upstream: Upstream) -> None:
    assert await (await ask(client, upstream, {"eof": True, "body": "all of it"})).read() == b"all of it"
    await still_works(client, upstream)


async def test_the_last_of_several_headers_wins_and_trailers_are_not_headers(
    client: Connections, upstream: Upstream
) -> None:
    raw = "HTTP/1.1 200 x\r\nX-A: 1\r\nx-a: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-a: 3\r\n\r\n"
    response = await ask(client, upstream, {"raw": raw})
    assert await response.read() == b"ok"
    assert response.headers["x-a"] == "2"
    await still_works(client, upstream)


# ---- wrong answers


OK = "HTTP/1.1 200 OK\r\n"
CHUNKED = f"{OK}transfer-encoding: chunked\r\n\r\n"
WRONG = {
    "garbage status line": "SSH-2.0-x\r\n\r\n",
    "http 0.9": "<html>hello</html>",
    "http 1.0": "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "bad status": "HTTP/1.1 2xx OK\r\n\r\n",
    "protocol switch": "HTTP/1.1 101 x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "nul in a header": f"{OK}x: a\0b\r\n\r\n",
    "bare line feeds": "HTTP/1.1 200 OK\nx: a\n\nbody",
    "folded header": f"{OK}x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "two lengths": f"{OK}content-length: 2\r\ncontent-length: 2\r\n\r\nok",
    "length and chunks": f"{OK}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "negative length": f"{OK}content-length: -1\r\n\r\n",
    "other coding": f"{OK}transfer-encoding: gzip\r\n\r\nxx",
    "two codings": f"{OK}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": f"{CHUNKED}zz\r\nok\r\n0\r\n\r\n",
    "chunk longer than said": f"{CHUNKED}2\r\nokmore\r\n0\r\n\r\n",
    "body longer than said": f"{OK}content-length: 2\r\n\r\nokmore",
    "a second answer": f"{OK}content-length: 2\r\n\r\nok{OK}content-length: 4\r\n\r\nevil",
    "data after the close": f"{OK}connection: close\r\ncontent-length: 2\r\n\r\nokmore",
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_answer_is_an_error_and_its_connection_is_not_used_again(
    client: Connections, upstream: Upstream, name: str
) -> None:
    assert await failure(client, upstream, {"raw": WRONG[name]}) == "bad_response"
    await still_works(client, upstream)
    assert upstream.accepted == 2


@pytest.mark.parametrize("split", [0, 3])
@pytest.mark.parametrize(
    "script",
    [{"length": 1000}, {"cut": 10}, {"cut": 150}, {"chunks": ["ab", "cd"], "cut": 102}, {"cut": 0}],
    ids=["longer length", "in the head", "in the body", "in a chunk", "at once"],
)
async def test_a_truncated_answer_is_never_a_whole_one(
    client: Connections, upstream: Upstream, script: dict[str, Any], split: int
) -> None:
    if "length" in script:
        script = {"cut": 200, **script}
    assert await failure(client, upstream, {"split": split, **script}) == "closed"
    await still_works(client, upstream)


@pytest.mark.parametrize("after", [0, 20, 150])
async def test_a_reset_is_an_error(client: Connections, upstream: Upstream, after: int) -> None:
    assert await failure(client, upstream, {"reset": after, "body": "x" * 500}) in ("reset", "closed")
    await still_works(client, upstream)


async def test_a_stream_gives_what_came_before_it_broke(client: Connections, upstream: Upstream) -> None:
    script = {"chunks": ["one", "two", "three"], "pause_s": 0.02, "cut": 110}
    pieces = []
    with pytest.raises(UpstreamError) as caught:
        async for piece in (await ask(client, upstream, script)).chunks():
            pieces.append(piece)
    assert caught.value.kind == "closed"
    assert pieces[0] == b"one"
    assert b"three" not in pieces


async def test_bytes_nobody_asked_for_never_become_the_next_answer(client: Connections, upstream: Upstream) -> None:
    await (await ask(client, upstream)).read()
    peer = next(iter(upstream.open))
    peer.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    await upstream.until(lambda: not upstream.open)
    await still_works(client, upstream)


# ---- bounds


@pytest.mark.parametrize(
    "raw",
    [
        f"{OK}x: {'y' * 200_000}\r\n\r\n",
        f"{OK}{'x: y' * 30_000}",
        OK + "".join(f"x-{n}: y\r\n" for n in range(10_000)) + "\r\n",
        "HTTP/1.1 103 x\r\n\r\n" * 10_000,
        f"{CHUNKED}0\r\nx: {'y' * 400_000}",
        f"{CHUNKED}2;{'e' * 400_000}",
    ],
    ids=["value", "no end", "many", "endless hints", "trailer", "chunk extension"],
)
async def test_headers_are_bounded(client: Connections, upstream: Upstream, raw: str) -> None:
    upstream.script = {"raw": raw}
    assert await failure(client, upstream, "") == "bad_response"
    upstream.script = {}
    await still_works(client, upstream)


async def test_headers_are_bounded_even_where_a_body_comes_with_them(upstream: Upstream) -> None:
    client = Connections(QUICK, Bounds(header_bytes=1000))
    assert await failure(client, upstream, {"headers": {"x": "y" * 1000}}) == "bad_response"
    await client.close()


@pytest.mark.parametrize(
    "script", [{"body": "x" * 1001}, {"chunks": ["x" * 600, "y" * 600]}, {"endless": 500}, {"length": 5000}]
)
async def test_a_body_read_whole_is_bounded(upstream: Upstream, script: dict[str, Any]) -> None:
    client = Connections(QUICK, Bounds(body_bytes=1000))
    assert await failure(client, upstream, script) == "too_large"
    assert await (await ask(client, upstream, {"body": "x" * 1000})).read() == b"x" * 1000
    await client.close()


async def test_a_reader_that_stops_makes_the_upstream_wait(client: Connections, upstream: Upstream) -> None:
    response = await ask(client, upstream, {"endless": 50_000})
    await upstream.until(lambda: upstream.blocked)
    sent = upstream.sent
    await asyncio.sleep(0.1)
    assert upstream.sent == sent, "the upstream goes on although nobody reads"
    assert response.held <= 2 * 262_144
    pieces = response.chunks()
    taken = 0
    while taken < 10 * 262_144:
        taken += len(await anext(pieces))
    assert upstream.sent > sent
    response.close()
    await upstream.until(lambda: upstream.left == 1)


async def test_very_many_tiny_chunks_come_whole(client: Connections, upstream: Upstream) -> None:
    upstream.script = {"raw": CHUNKED + "1\r\nx\r\n" * 200_000 + "0\r\n\r\n"}
    assert await (await ask(client, upstream)).read() == b"x" * 200_000


# ---- deadlines


@pytest.mark.parametrize(
    ("script", "deadlines", "kind"),
    [
        ("never", Deadlines(first_byte_s=0.05), "first_byte_timeout"),
        ("never", Deadlines(total_s=0.05), "first_byte_timeout"),
        ({"body_delay_s": 3}, Deadlines(first_byte_s=0.05), "first_byte_timeout"),
        ({"chunks": ["a", "b"], "pause_s": 3}, Deadlines(idle_s=0.05), "idle_timeout"),
        ({"chunks": ["a"] * 100, "pause_s": 0.02}, Deadlines(idle_s=1, total_s=0.1), "idle_timeout"),
        ({"split": 1, "chunks": ["a"], "pause_s": 3}, Deadlines(idle_s=0.05), "idle_timeout"),
    ],
)
async def test_each_phase_has_a_deadline(
    client: Connections, upstream: Upstream, script: Any, deadlines: Deadlines, kind: str
) -> None:
    started = asyncio.get_running_loop().time()
    assert await failure(client, upstream, script, deadlines=deadlines) == kind
    assert asyncio.get_running_loop().time() - started < 0.4
    await upstream.until(lambda: upstream.left == 1)
    await still_works(client, upstream)


async def test_the_wait_for_the_first_byte_is_not_idleness(client: Connections, upstream: Upstream) -> None:
    """Engines send their head at once and the first token after the prompt is read."""
    deadlines = Deadlines(first_byte_s=2, idle_s=0.05)
    response = await ask(client, upstream, {"body_delay_s": 0.2, "body": "late"}, deadlines=deadlines)
    assert await response.read() == b"late"


async def test_a_slow_reader_is_not_the_upstreams_silence(client: Connections, upstream: Upstream) -> None:
    response = await ask(client, upstream, {"endless": 50_000}, deadlines=Deadlines(idle_s=0.05))
    pieces = response.chunks()
    await anext(pieces)
    await asyncio.sleep(0.2)
    for _ in range(20):
        await anext(pieces)
    response.close()


async def test_a_deadline_of_one_request_does_not_reach_the_next(client: Connections, upstream: Upstream) -> None:
    await (await ask(client, upstream, deadlines=Deadlines(first_byte_s=0.05, total_s=0.05))).read()
    assert await (await ask(client, upstream, {"delay_s": 0.15})).read() == completion().encode()
    assert upstream.accepted == 1


async def test_a_shorter_deadline_holds_on_a_connection_already_watched(
    client: Connections, upstream: Upstream
) -> None:
    await (await ask(client, upstream)).read()
    started = asyncio.get_running_loop().time()
    assert await failure(client, upstream, "never", deadlines=Deadlines(first_byte_s=0.05)) == "first_byte_timeout"
    assert asyncio.get_running_loop().time() - started < 0.4
    assert upstream.accepted == 1


async def test_failed_connects_use_up_nothing() -> None:
    client = Connections(QUICK, Bounds(), max_per_address=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                await client.get(Address.parse(f"http://127.0.0.1:{free.getsockname()[1]}"), "/health")
            assert caught.value.kind == "refused"
    await client.close()


async def test_nobody_listens(client: Connections, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        for address in (closed, f"unix:{tmp_path}/none.sock"):
            with pytest.raises(UpstreamError) as caught:
                await client.get(Address.parse(address), "/health")
            assert caught.value.kind == "refused"
            assert address in str(caught.value)


@pytest.mark.reaches("no-such-host.invalid")
async def test_a_name_that_does_not_resolve(client: Connections) -> None:
    with pytest.raises(UpstreamError) as caught:
        await client.get(Address.parse("http://no-such-host.invalid:80"), "/health")
    assert caught.value.kind in ("refused", "connect_timeout")


async def test_a_full_backlog_ends_with_the_connect_deadline(client: Connections) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        with pytest.raises(UpstreamError) as caught:
            await client.get(Address.parse(f"http://127.0.0.1:{port}"), "/x", deadlines=Deadlines(connect_s=0.1))
        assert caught.value.kind == "connect_timeout"
        for one in waiting:
            one.close()


# ---- leaving


@pytest.mark.parametrize("script", ["never", {"body_delay_s": 5}, {"chunks": ["a"] * 1000, "pause_s": 0.01}])
async def test_a_cancelled_reader_closes_the_socket_at_once(
    client: Connections, upstream: Upstream, script: Any
) -> None:
    async def whole() -> bytes:
        return await (await ask(client, upstream, script)).read()

    task = asyncio.create_task(whole())
    await upstream.until(lambda: upstream.requests)
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.until(lambda: upstream.left == 1, within_s=0.2)
    assert not upstream.open


async def test_closing_an_unread_answer_closes_the_socket_and_a_read_one_keeps_it(
    client: Connections, upstream: Upstream
) -> None:
    response = await ask(client, upstream, {"chunks": ["a"] * 1000, "pause_s": 0.01})
    response.close()
    response.close()
    await upstream.until(lambda: upstream.left == 1, within_s=0.2)
    whole = await ask(client, upstream)
    await whole.read()
    whole.close()
    await still_works(client, upstream)
    assert upstream.accepted == 2


async def test_stopping_ends_running_exchanges(upstream: Upstream) -> None:
    client = Connections(QUICK, Bounds())
    waiting = asyncio.create_task(failure(client, upstream, "never"))
    await upstream.until(lambda: upstream.requests)
    await client.close()
    assert await waiting == "closed"
    assert await failure(client, upstream, "") == "closed"
    await upstream.until(lambda: not upstream.open)


# ---- the pool


async def test_one_connection_serves_a_hundred_requests(client: Connections, upstream: Upstream) -> None:
    for number in range(100):
        response = await ask(client, upstream, {"body": str(number)} if number % 2 else {"chunks": [str(number)]})
        assert await response.read() == str(number).encode()
    assert upstream.accepted == 1


@pytest.mark.parametrize("how", ["close", "closed while idle"])
async def test_a_connection_the_upstream_closed_is_not_used_again(
    client: Connections, upstream: Upstream, how: str
) -> None:
    await (await ask(client, upstream, {"close": True} if how == "close" else {})).read()
    for peer in list(upstream.open):
        peer.transport.close()
    await upstream.until(lambda: not upstream.open)
    await still_works(client, upstream)
    assert len(upstream.requests) == 2


async def test_a_connection_the_upstream_says_it_will_close_is_not_used_again(
    client: Connections, upstream: Upstream
) -> None:
    raw = f"{OK}connection: close\r\ncontent-length: 2\r\n\r\nok"  # and it stays open
    assert await (await ask(client, upstream, {"raw": raw})).read() == b"ok"
    await still_works(client, upstream)
    assert upstream.accepted == 2


async def test_an_answer_before_the_request_was_taken_ends_the_connection(client: Connections) -> None:
    """What is left of the request would be read as the next one."""

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 x\r\ncontent-length: 0\r\n\r\n")
        peers.append(writer)

    peers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(hasty, "127.0.0.1", 0)
    address = Address.parse(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for body in (b"x" * 20_000_000, b""):
        response = await client.post(address, "/x", [], body)
        assert (response.status, await response.read()) == (413, b"")
    assert len(peers) == 2
    for peer in peers:
        peer.transport.abort()
    server.close()
    await server.wait_closed()


async def test_the_keep_alive_race_is_hidden_once(client: Connections, upstream: Upstream) -> None:
    await (await ask(client, upstream)).read()
    assert await (await ask(client, upstream, "stale")).read() == completion().encode()
    assert [request.peer for request in upstream.requests] == [1, 1, 2]


async def test_an_upstream_that_dies_on_a_fresh_connection_is_not_asked_again(
    client: Connections, upstream: Upstream
) -> None:
    assert await failure(client, upstream, "cut") == "closed"
    assert len(upstream.requests) == 1
    await (await ask(client, upstream)).read()
    assert await failure(client, upstream, "cut") == "closed"
    assert len(upstream.requests) == 4, "the reused connection and one fresh one"


async def test_the_second_try_does_not_use_another_old_connection(client: Connections, upstream: Upstream) -> None:
    await asyncio.gather(*(await_body(client, upstream, {"delay_s": 0.02}) for _ in range(3)))
    assert await failure(client, upstream, "cut") == "closed"
    assert len(upstream.requests) == 5
    assert upstream.requests[-1].peer == 4, "a fresh one"


async def test_an_answer_that_began_is_not_asked_for_again(client: Connections, upstream: Upstream) -> None:
    await (await ask(client, upstream)).read()
    assert await failure(client, upstream, {"cut": 5}) == "closed"
    assert len(upstream.requests) == 2


async def test_a_thousand_requests_at_fifty_at_once_all_get_their_own_answer(
    client: Connections, upstream: Upstream
) -> None:
    numbers = iter(range(1000))

    async def worker() -> None:
        for number in numbers:
            shape = {"chunks": [f"{number}-", "x"]} if number % 3 else {"body": f"{number}-x"}
            assert await (await ask(client, upstream, shape)).read() == f"{number}-x".encode()

    await asyncio.gather(*(worker() for _ in range(50)))
    assert len(upstream.requests) == 1000
    assert upstream.accepted <= 50


async def test_connections_are_bounded_and_those_who_wait_get_their_turn(upstream: Upstream) -> None:
    client = Connections(Deadlines(connect_s=2), Bounds(), max_per_address=3, idle_per_address=1)
    await asyncio.gather(*((await_body(client, upstream, {"delay_s": 0.01})) for _ in range(30)))
    assert len(upstream.requests) == 30
    assert max(request.peer for request in upstream.requests) == upstream.accepted
    await upstream.until(lambda: len(upstream.open) <= 1)
    await client.close()


async def test_a_full_pool_is_an_error_in_time_and_recovers(upstream: Upstream) -> None:
    client = Connections(Deadlines(connect_s=0.05), Bounds(), max_per_address=1)
    first = await ask(client, upstream, {"body_delay_s": 5})
    assert await failure(client, upstream, "") == "pool_full"
    first.close()
    await still_works(client, upstream)
    for script in ("cut", {"raw": "x"}, {"close": True}, {"cut": 40}):  # none of these may keep the only slot
        await asyncio.wait([asyncio.ensure_future(await_body(client, upstream, script))])
    await still_works(client, upstream)
    await client.close()


async def await_body(client: Connections, upstream: Upstream, script: Any) -> bytes:
    try:
        return await (await ask(client, upstream, script)).read()
    except UpstreamError:
        return b""


# ---- other transports


async def test_over_a_unix_socket(client: Connections, tmp_path: Path) -> None:
    async with Upstream(path=tmp_path / "u.sock") as upstream:
        await still_works(client, upstream)
        assert upstream.requests[0].headers["host"] == "localhost"
        assert await failure(client, upstream, {"cut": 20}) == "closed"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "pair.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=upstream"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    return file


def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    return context


async def test_over_tls_with_a_pinned_authority(client: Connections, certificate: Path) -> None:
    async with Upstream(tls=tls(certificate)) as upstream:
        pinned = Address.parse(upstream.address, ca_file=f"{certificate}.crt")
        for _ in range(3):
            assert await (await client.post(pinned, "/x", [], ASK)).read() == completion().encode()
        assert upstream.accepted == 1
        large = {"x-fault": json.dumps({"chunks": ["x" * 60_000] * 20})}
        body = await (await client.post(pinned, "/x", list(large.items()), ASK)).read()
        assert len(body) == 1_200_000


async def test_a_certificate_nobody_vouches_for_is_refused(client: Connections, certificate: Path) -> None:
    async with Upstream(tls=tls(certificate)) as upstream:
        with pytest.raises(UpstreamError, match="not trusted") as caught:
            await ask(client, upstream)
        assert caught.value.kind == "refused"
        other_name = Address.parse(f"https://localhost:{upstream.port}", ca_file=f"{certificate}.crt")
        with pytest.raises(UpstreamError, match=r"not trusted|cannot connect"):
            await client.post(other_name, "/x", [], ASK)
        assert upstream.requests == []


async def test_a_missing_authority_file_is_a_sentence(client: Connections, tmp_path: Path) -> None:
    with pytest.raises(UpstreamError, match="CA file"):
        await client.get(Address.parse("https://127.0.0.1:1", ca_file=f"{tmp_path}/none.pem"), "/")


async def test_a_tls_handshake_that_never_ends_meets_the_connect_deadline(
    client: Connections, certificate: Path
) -> None:
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(UpstreamError) as caught:
        await client.get(Address.parse(f"https://127.0.0.1:{port}", ca_file=f"{certificate}.crt"), "/")
    assert caught.value.kind == "connect_timeout"
    silent.close()
    await silent.wait_closed()


# ---- what is no progress


async def test_an_upstream_that_does_not_take_the_request_is_given_up(client: Connections) -> None:
    with socket.socket() as deaf:  # the kernel takes connections for it, and what its buffers hold
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(5)
        address = Address.parse(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(UpstreamError, match="took nothing") as caught:
            await client.post(address, "/x", [], b"x" * 50_000_000, deadlines=Deadlines(idle_s=0.1, first_byte_s=5))
        assert caught.value.kind == "idle_timeout"


@pytest.mark.parametrize("how", [{"whole": True}, {}])
async def test_one_byte_at_a_time_is_no_progress(client: Connections, upstream: Upstream, how: dict[str, bool]) -> None:
    script = {"chunks": ["x"] * 500, "pause_s": 0.02}
    assert await failure(client, upstream, script, deadlines=Deadlines(idle_s=0.1), **how) == "idle_timeout"
    await upstream.until(lambda: not upstream.open)


async def test_a_stream_that_has_begun_may_be_silent_before_its_first_event(
    client: Connections, upstream: Upstream
) -> None:
    """Nothing, comments and single bytes are no sign of life, and none of death: only the whole has a deadline."""
    limits = Deadlines(idle_s=0.05, first_byte_s=0.1)
    late = {"chunks": [0.2, *[": on it\n\n"] * 8], "pause_s": 0.02}
    assert await (await ask(client, upstream, late, deadlines=limits, stream=True)).read()
    endless = {"chunks": [": on it\n\n"] * 500, "pause_s": 0.02}
    limits = Deadlines(idle_s=0.05, first_byte_s=0.1, total_s=0.4)
    assert await failure(client, upstream, endless, deadlines=limits, stream=True) == "idle_timeout"
    assert await failure(client, upstream, "never", deadlines=limits, stream=True) == "first_byte_timeout"


async def test_a_whole_body_that_comes_slowly_and_steadily_is_taken(client: Connections, upstream: Upstream) -> None:
    script = {"chunks": ["x" * 80] * 15, "pause_s": 0.02}
    response = await ask(client, upstream, script, deadlines=Deadlines(idle_s=0.1), whole=True)
    assert await response.read() == b"x" * 1200


async def test_a_first_token_has_a_deadline_of_its_own_where_that_is_said(
    client: Connections, upstream: Upstream
) -> None:
    limits = Deadlines(first_token_s=0.05)
    script = {"delay_s": 0.2, "body": "x"}
    hurried = await failure(client, upstream, script, deadlines=limits, stream=True, elsewhere=lambda: True)
    assert hurried == "first_token_timeout"
    assert await (await ask(client, upstream, script, deadlines=limits, stream=True)).read() == b"x"


async def test_lines_of_headers_are_bounded(client: Connections, upstream: Upstream) -> None:
    for lines, good in ((120, True), (140, False)):
        upstream.script = {"headers": {f"x-{number}": "y" for number in range(lines)}, "body": "x"}
        if good:
            assert await (await ask(client, upstream)).read() == b"x"
        else:
            assert await failure(client, upstream, "") == "bad_response"


async def test_an_answer_wanted_whole_is_there_at_once_and_bounded(upstream: Upstream) -> None:
    client = Connections(QUICK, Bounds(body_bytes=1000))
    response = await ask(client, upstream, {"chunks": ["x" * 500, "y" * 500], "pause_s": 0.02}, whole=True)
    assert (response.socket, await response.read()) == (None, b"x" * 500 + b"y" * 500)
    for script in ({"chunks": ["x" * 600, "y" * 600]}, {"body": "x" * 1001}, {"length": 5000}, {"endless": 100}):
        assert await failure(client, upstream, script, whole=True) == "too_large"
    refused = await ask(client, upstream, {"status": 503, "endless": 100}, whole=True)
    assert refused.status == 503  # and not read to its end
    refused.close()
    await client.close()


async def test_only_so_many_connections_are_opened_at_once(
    client: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that takes no connections piles up none of ours."""
    monkeypatch.setattr("router.upstream.pool.CONNECTING", 3)
    opening, most = 0, 0

    async def never(*_: object, **__: object) -> None:
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        try:
            await asyncio.Event().wait()
        finally:
            opening -= 1

    monkeypatch.setattr(Connections, "_open", never)
    address = Address.parse("http://127.0.0.1:9")
    tries = [client.get(address, "/", deadlines=Deadlines(connect_s=0.1)) for _ in range(20)]
    found = await asyncio.gather(*tries, return_exceptions=True)
    assert {one.kind for one in found if isinstance(one, UpstreamError)} == {"connect_timeout"}
    assert (most, opening, len(found)) == (3, 0, 20)
