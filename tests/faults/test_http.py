"""What two servers in a row could read differently, and headers that lie: cases HT-* of the fault catalogue."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from router.api.inference import ROUTES
from tests.conftest import ask
from tests.fakes.faults import completion
from tests.faults import wire
from tests.faults.cases import each
from tests.faults.conftest import FaultHouse
from tests.faults.line import Line

CHAT = "/v1/chat/completions"
BODY = b'{"model":"small","messages":[{"role":"user","content":"Hello"}]}'
HIDDEN = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
"""What an attacker hopes is taken for a second request."""
ADMIN = ("/metrics", "/state", "/requests", "/explain", "/admin", "/openapi.json/../metrics")


def raw(key: str, *lines: str, body: bytes = BODY, first: str = f"POST {CHAT} HTTP/1.1", host: bool = True) -> bytes:
    """A request with exactly these header lines besides Host and the key."""
    fixed = [first, *(["Host: localhost"] if host else []), f"Authorization: Bearer {key}"]
    return "\r\n".join([*fixed, *lines]).encode("latin-1") + b"\r\n\r\n" + body


LENGTH = f"Content-Length: {len(BODY)}"


async def refused(
    house: FaultHouse, sent: bytes, status: int | tuple[int, ...], code: str = "", *, closed: bool = True
) -> bytes:
    """These bytes get one error, the connection is closed, and nobody behind the router hears of them.

    `closed`: by the router alone; otherwise what was sent was whole and understood, so another request might follow.
    """
    async with Line(house) as line:
        await line.send(sent)
        if not closed:
            line.end_sending()
        came = await line.ended()
    assert came.count(b"HTTP/1.1 ") == 1, came
    allowed = (status,) if isinstance(status, int) else status
    assert int(came[9:12]) in allowed, came[:200]
    assert not code or f'"code":"{code}"'.encode() in came, came
    assert house.asked() == 0
    assert len([events for events in house.rows().values() if events[0]["kind"] == "opened"]) == 0
    return came


FRAMINGS = {
    "length-and-chunks": [LENGTH, "Transfer-Encoding: chunked"],
    "chunks-and-length": ["Transfer-Encoding: chunked", LENGTH],
    "two-lengths": [LENGTH, "Content-Length: 5"],
    "two-equal-lengths": [LENGTH, LENGTH],
    "list-of-lengths": [f"Content-Length: {len(BODY)}, {len(BODY)}"],
    "chunked-identity": ["Transfer-Encoding: chunked, identity"],
    "identity": ["Transfer-Encoding: identity", LENGTH],
    "gzip-chunked": ["Transfer-Encoding: gzip, chunked"],
    "two-codings": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "odd-coding": ["Transfer-Encoding: xchunked"],
    "tab-coding": ["Transfer-Encoding:\x0bchunked"],
    "folded": [LENGTH, "X-Folded: a\r\n b"],
    "space-before-colon": ["Content-Length : 5"],
    "space-before-name": [" Content-Length: 5"],
    "no-name": [LENGTH, ": 5"],
    "no-colon": [LENGTH, "Bare"],
    "negative-length": ["Content-Length: -1"],
    "signed-length": [f"Content-Length: +{len(BODY)}"],
    "hex-length": ["Content-Length: 0x10"],
    "huge-length": ["Content-Length: 99999999999999999999999999"],
    "empty-length": ["Content-Length:"],
    "lone-cr": [LENGTH, "X-A: b\rX-Evil: 1"],
    "nul": [LENGTH, "X-A: b\0"],
}


@each(FRAMINGS)
async def test_ht_001_a_request_that_can_be_read_in_two_ways_is_refused(house: FaultHouse, lines: list[str]) -> None:
    await house.start()
    await refused(house, raw(house.key(), *lines) + HIDDEN, (400, 413, 501))


async def test_ht_001_lone_line_feeds_do_not_end_headers(house: FaultHouse) -> None:
    await house.start()
    await refused(house, raw(house.key(), LENGTH).replace(b"\r\n", b"\n") + HIDDEN, 400)


@each(
    [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcX\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n",
        b"3 \x0b\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
    ]
)
async def test_ht_001_chunks_that_do_not_add_up_are_refused(house: FaultHouse, chunks: bytes) -> None:
    await house.start(router={"body_timeout_s": 0.5})
    await refused(house, raw(house.key(), "Transfer-Encoding: chunked", body=chunks), (400, 408, 413))


async def test_ht_001_good_chunks_are_read_and_what_follows_is_a_request_of_its_own(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    halves = b"%x\r\n%b\r\n%x;note=1\r\n%b\r\n0\r\n\r\n" % (9, BODY[:9], len(BODY) - 9, BODY[9:])
    async with Line(house) as line:
        await line.send(raw(key, "Transfer-Encoding: chunked", body=halves))
        assert (await line.answer()).status == 200
        await line.send(raw(key, LENGTH))
        assert (await line.answer()).status == 200
    assert next(request.body for request in house.local.requests) == house.local.requests[1].body


@each(["X-Headgate-Session: a\rX-Evil: 1", "X-Headgate-Escalate: a\nX-Evil: 1", "X-Headgate-Reason: a\r b"])
async def test_ht_002_a_raw_line_end_ends_no_header(house: FaultHouse, line: str) -> None:
    await house.start()
    await refused(house, raw(house.key(), LENGTH, line), 400)


EVIL = "a\r\nX-Evil: 1\r\n\r\n<script>"


@each([EVIL, "a%0d%0aX-Evil: 1", "a\nb", "a\0b", "\u0130\r\n"])
async def test_ht_002_text_of_a_body_never_becomes_a_header(house: FaultHouse, value: str) -> None:
    await house.start()
    key = house.key()
    for body in (
        ask(value),
        ask("small", user=value),
        ask("small", metadata={"a": value}),
        ask("small", prompt_cache_key=value),
    ):
        found = await house.tell(body, key)
        assert found.status in (200, 400, 404)
        assert not [name for name in found.headers if "evil" in name]
        assert all("\r" not in text and "\n" not in text for text in found.headers.values())
    for request in house.local.requests:
        assert not [name for name in request.headers if "evil" in name]
    for body in (ask("small", headgate={"escalate": value}), ask("small", headgate={"data_class": value})):
        assert (await house.tell(body, key)).status == 400


WORDS = {"message": EVIL, "type": EVIL, "param": EVIL, "code": EVIL}
UPSTREAMS: list[dict[str, Any]] = [
    {"body": json.dumps({**json.loads(completion()), "model": EVIL, "id": EVIL, "system_fingerprint": EVIL})},
    {"status": 400, "body": json.dumps({"error": WORDS})},
    {"status": 500, "body": json.dumps({"error": WORDS})},
    {"status": 429, "body": "{}", "headers": {"retry-after": "7\nX-Evil: 1"}},
    {"body": completion(), "headers": {"content-type": "application/json\nX-Evil: 1"}},
    {"body": completion(), "headers": {"x-request-id": "a\r\nX-Evil: 1", "x-headgate-model": "a\rX-Evil: 1"}},
]


@each(UPSTREAMS)
async def test_ht_002_an_upstreams_line_end_becomes_no_header(house: FaultHouse, script: dict[str, Any]) -> None:
    """Neither one in its JSON, nor one in the values of its headers. `send` reads the head strictly."""
    await house.start()
    house.fail_all(script)
    found = await house.tell(ask("small"), house.key())
    assert found.status == script.get("status", 200) or found.status in (502, 503)
    assert not [name for name in found.headers if "evil" in name]
    assert not [value for value in found.headers.values() if "evil" in value.lower() or "\r" in value]


HOSTS = [
    "localhost/#@evil",
    "localhost?a",
    "a/b",
    "a\\b",
    "user@evil",
    "",
    " ",
    "a b",
    "a,b",
    "a:b",
    "a:99999999",
    "[::1",
    "[zz]",
    "%6cocalhost",
    "ex\xe4mple",
    "a" * 300,
    "http://localhost",
    "a;b",
    "a\tb",
    "localhost:80:80",
    "localhost:0",
    "localhost:65536",
    "[::::]",
    "[1.2.3.4]",
]


@each([CHAT, "/v1/models", "/health"])
@each(HOSTS)
async def test_ht_003_a_host_that_is_none_is_refused(house: FaultHouse, host: str, path: str) -> None:
    await house.start()
    method = "POST" if path == CHAT else "GET"
    sent = raw(house.key(), f"Host: {host}", LENGTH, first=f"{method} {path} HTTP/1.1", host=False)
    await refused(house, sent, 400, "invalid_host")


@each([[], ["Host: a", "Host: a"], ["Host: a", "host: b"]])
async def test_ht_003_there_is_exactly_one_host(house: FaultHouse, hosts: list[str]) -> None:
    await house.start()
    await refused(house, raw(house.key(), *hosts, LENGTH, host=False), 400, "invalid_host")


@each(["localhost", "127.0.0.1:8080", "[::1]:443", "router.example", "ROUTER.example.", "a_b"])
async def test_ht_003_a_host_that_is_one_is_taken_whatever_it_is(house: FaultHouse, host: str) -> None:
    await house.start()
    found = await house.send(raw(house.key(), f"Host: {host}", LENGTH, host=False))
    assert found.status == 200


PATHS = [
    "//v1/chat/completions",
    "/v1//chat/completions",
    "/v1/../v1/chat/completions",
    "/v1/./chat/completions",
    "/v1/chat%2fcompletions",
    "/v1/%2e%2e/admin",
    "/%76%31/chat/completions",
    "/v1/chat/completions;x",
    "/v1/chat/completions.",
    "/v1/chat/completions/",
    "/V1/CHAT/COMPLETIONS",
    "/v1/chat/completions%00",
    "/v1/chat/completions%20",
    "/v1\\chat\\completions",
    "/v1/../metrics",
    "/v1/chat/completions/../../../metrics",
    "/v1/chat/completions%2f..%2f..%2fstate",
    "*",
    "/",
    "/admin/",
    *ADMIN,
]


@each(PATHS)
async def test_ht_004_only_the_exact_paths_lead_anywhere(house: FaultHouse, path: str) -> None:
    await house.start()
    for first in (f"POST {path} HTTP/1.1", f"GET {path} HTTP/1.1"):
        found = await house.send(raw(house.key(), LENGTH, first=first))
        assert found.status in (404, 400), f"{first}: {found.status}"
    assert house.asked() == 0


@each(["/v1/chat\0", "/v1/ü", "/v1/chat completions"])
async def test_ht_004_a_path_that_is_none_is_refused(house: FaultHouse, path: str) -> None:
    await house.start()
    async with Line(house) as line:
        await line.send(raw(house.key(), LENGTH, first=f"POST {path} HTTP/1.1"))
        assert (await line.answer()).status in (400, 404)
    assert house.asked() == 0


async def test_ht_004_an_absolute_address_names_no_other_host(house: FaultHouse) -> None:
    await house.start()
    for target in (f"http://evil.example{CHAT}", "http://evil.example/metrics", "evil.example:443"):
        found = await house.send(raw(house.key(), LENGTH, first=f"POST {target} HTTP/1.1"))
        assert found.status in (400, 404)
    assert house.asked() == 0


SPOOFED = [
    "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: evil.example",
    "X-Real-IP: 127.0.0.1",
    "Forwarded: for=10.0.0.1;host=evil.example;proto=https",
    "X-Original-URL: /metrics",
    "X-Rewrite-URL: /metrics",
    "X-Forwarded-Prefix: /evil",
]


async def test_ht_005_what_a_proxy_would_say_is_not_believed(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    plain = await house.send(raw(key, LENGTH))
    found = await house.send(raw(key, *SPOOFED, LENGTH))
    assert (found.status, found.body) == (200, plain.body)
    assert found.headers.keys() == plain.headers.keys()
    assert not any("evil" in text for text in found.headers.values())
    one, two = house.local.requests
    assert one.headers.keys() == two.headers.keys(), "nothing of it goes on to the upstream"
    events = [event for rows in house.rows().values() for event in rows]
    assert not any("evil.example" in str(event) or "10.0.0.1" in str(event) for event in events)
    assert (await house.send(raw("hg_none", *SPOOFED, LENGTH))).status == 401


async def test_ht_007_a_label_in_a_header_only_raises_whatever_connection_says(house: FaultHouse) -> None:
    await house.start()
    key = house.key("public")
    raised = ("X-Headgate-Data-Class: secret", "Connection: X-Headgate-Data-Class")
    body = BODY.replace(b"small", b"big")
    length = f"Content-Length: {len(body)}"
    found = await house.send(raw(key, *raised, length, body=body))
    assert (found.status, found.code) == (403, "data_class_not_cleared")
    lowered = house.key("private")
    for line in ("X-Headgate-Data-Class: public", "Connection: X-Headgate-Data-Class", "Connection: Authorization"):
        found = await house.send(raw(lowered, line, length, body=body))
        assert (found.status, found.code) == (403, "data_class_not_cleared")
    two = ("X-Headgate-Data-Class: public", "X-Headgate-Data-Class: private, public")
    assert (await house.send(raw(key, *two, length, body=body))).status == 403


LARGE = {
    "one-header": (["X-A: " + "a" * 65_536], 431),
    "many-headers": ([f"X-{n}: a" for n in range(1000)], 431),
    "one-name": (["X" * 65_536 + ": a"], 431),
    "no-end": (["X-A: " + "a" * 2_000_000], 431),
}


@each(LARGE)
async def test_ht_008_headers_are_bounded(house: FaultHouse, lines: list[str], status: int) -> None:
    await house.start()
    await refused(house, raw(house.key(), *lines, LENGTH), status)


async def test_ht_008_the_url_is_bounded(house: FaultHouse) -> None:
    await house.start()
    await refused(house, raw(house.key(), LENGTH, first=f"POST {CHAT}?{'a' * 65_536} HTTP/1.1"), 414)


async def test_ht_008_headers_that_do_not_come_are_not_waited_for(house: FaultHouse) -> None:
    await house.start(router={"header_timeout_s": 0.3})
    async with Line(house) as line:
        await line.send(raw(house.key(), LENGTH)[:60])
        came = await line.ended(5)
    assert came == b"" or came.startswith(b"HTTP/1.1 408 ")


async def test_ht_008_a_body_that_does_not_come_is_not_waited_for(house: FaultHouse) -> None:
    await house.start(router={"body_timeout_s": 0.3})
    async with Line(house) as line:
        await line.send(raw(house.key(), LENGTH)[:-5])
        came = await line.ended(5)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert house.asked() == 0


BOMB = gzip.compress(b'{"model":"small","x":"' + b"a" * 20_000_000 + b'"}')
CODED = {
    "gzip-bomb": ("gzip", BOMB),
    "gzip": ("gzip", gzip.compress(BODY)),
    "deflate": ("deflate", zlib.compress(BODY)),
    "br": ("br", BODY),
    "zstd": ("zstd", BODY),
    "twice": ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
    "upper": ("GZIP", BODY),
    "hidden": ("identity\r\nContent-Encoding: gzip", gzip.compress(BODY)),
}


@each(CODED)
async def test_ht_009_a_compressed_body_is_not_taken(house: FaultHouse, coding: str, body: bytes) -> None:
    await house.start()
    sent = raw(house.key(), f"Content-Encoding: {coding}", f"Content-Length: {len(body)}", body=body)
    await refused(house, sent, 415, closed=False)


@each(["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_ht_010_another_method_is_refused(house: FaultHouse, method: str) -> None:
    await house.start()
    for path in ROUTES:
        async with Line(house) as line:
            await line.send(raw(house.key(), LENGTH, first=f"{method} {path} HTTP/1.1"))
            head = (await line.until(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 405 "), head
            assert "access-control" not in head.lower()
    assert house.asked() == 0


@each(
    [
        f"CONNECT {CHAT} HTTP/1.1",
        "CONNECT  HTTP/1.1",
        "CONNECT evil.example:443 HTTP/1.1",
        f"BREW {CHAT} HTTP/1.1",
        f"post {CHAT} HTTP/1.1",
    ]
)
async def test_ht_010_an_unknown_method_is_refused(house: FaultHouse, first: str) -> None:
    await house.start()
    await refused(house, raw(house.key(), LENGTH, first=first), (400, 404, 405), closed=False)


async def test_ht_010_no_header_changes_the_method(house: FaultHouse) -> None:
    await house.start()
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        found = await house.send(raw(house.key(), f"{name}: DELETE", LENGTH))
        assert found.status == 200
        found = await house.send(raw(house.key(), f"{name}: POST", LENGTH, first=f"GET {CHAT} HTTP/1.1"))
        assert found.status == 405


PARTS = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="../../etc/passwd"\r\n'
    + b"X-A: b\r\n" * 20_000
    + b"\r\nabc\r\n--x--\r\n"
)


@each([b"a" * 500_000 + PARTS, PARTS, b"--x--"])
async def test_ht_012_forms_are_not_read(house: FaultHouse, body: bytes) -> None:
    await house.start()
    for path in (CHAT, "/v1/audio/transcriptions", "/v1/files"):
        lines = ("Content-Type: multipart/form-data; boundary=x", f"Content-Length: {len(body)}")
        found = await house.send(raw(house.key(), *lines, body=body, first=f"POST {path} HTTP/1.1"))
        assert found.status in (400, 404, 415)
    assert house.asked() == 0


async def test_ht_014_http2_is_not_spoken(house: FaultHouse) -> None:
    """Its floods cannot be met by a server that reads HTTP/1.1 alone: the preface is refused, an upgrade not taken."""
    await house.start()
    await refused(house, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 100, (400, 405, 505))
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", LENGTH)
    assert (await house.send(raw(house.key(), *lines))).status == 200


SOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@each([*ROUTES, "/v1/realtime", "/v1/models", "/"])
async def test_ht_015_no_websocket_is_opened(house: FaultHouse, path: str) -> None:
    await house.start()
    for key in ("", house.key()):
        async with Line(house) as line:
            await line.send(raw(key, *SOCKET, first=f"GET {path} HTTP/1.1", body=b""))
            head = await line.until(b"\r\n\r\n")
            assert int(head[9:12]) in ((200, 401) if path == "/v1/models" else (404, 405)), head
            assert b"upgrade: websocket" not in head.lower() and b"sec-websocket-accept" not in head.lower()
    assert house.asked() == 0


async def test_ht_016_no_page_of_another_origin_may_read_an_answer(house: FaultHouse) -> None:
    await house.start()
    lines = (
        "Origin: https://evil.example",
        "Cookie: a=b",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization",
    )
    for first in (
        f"POST {CHAT} HTTP/1.1",
        f"OPTIONS {CHAT} HTTP/1.1",
        "GET /v1/models HTTP/1.1",
        "GET /nothing HTTP/1.1",
    ):
        found: Any = await wire.exchange(house.port, raw(house.key(), *lines, LENGTH, first=first))
        assert not [name for name in found.headers if name.startswith("access-control")]
        assert "set-cookie" not in found.headers
    assert (await house.send(raw("hg_none", *lines, LENGTH))).status == 401
