"""What all connections share: nobody is turned away without being counted, known or not."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import aiohttp

from tests.conftest import House, until

HEAD = b"host: h\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HEAD
TURNED_AWAY = {
    b"GET /nothing HTTP/1.1\r\n" + HEAD: "not_found",
    b"GET /v1/rerank HTTP/1.1\r\n" + HEAD: "not_offered",
    b"GET /v1/chat/completions HTTP/1.1\r\n" + HEAD: "method_not_allowed",
    b"TRACE /health HTTP/1.1\r\n" + HEAD: "method_not_allowed",
    b"POST /health HTTP/1.1\r\n" + HEAD + b"content-length: 0\r\n": "method_not_allowed",
    POST: "invalid_api_key",
    b"GET /v1/models HTTP/1.1\r\n" + HEAD: "invalid_api_key",
    POST + b"authorization: Bearer hg_none\r\ncontent-length: 99999999999\r\n": "invalid_api_key",
    b"GET /health HTTP/1.1\r\n": "invalid_host",
    b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n": "invalid_host",
    b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + HEAD: "uri_too_long",
    b"GET /health HTTP/1.1\r\n" + HEAD + b"a: b\r\n" * 70: "headers_too_large",
    b"GET /health HTTP/2.7\r\n" + HEAD: "http_version_not_supported",
    b"\x16\x03\x01 nonsense\r\n": "invalid_http",
}


async def counted(house: House) -> Counter[str]:
    """Refusals by code, as the operator's metrics have them."""
    connector = aiohttp.UnixConnector(str(house.home.socket("admin")))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://router/metrics") as answer:
        page = await answer.text()
    found = re.findall(r'^headgate_requests_refused_total\{code="(\w+)"\} (\S+)$', page, re.MULTILINE)
    return Counter({code: int(float(number)) for code, number in found})


async def said(house: House, data: bytes) -> bytes:
    """All that is answered to these bytes on a connection of their own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(data)
    async with asyncio.timeout(20):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer


async def test_who_is_turned_away_unknown_is_counted_by_code(house: House) -> None:
    await house.start()
    await until(house.home.socket("admin").exists)
    for data, code in TURNED_AWAY.items():
        before = await counted(house)
        await said(house, data + b"\r\n")
        assert (await counted(house)) - before == Counter({code: 1}), data[:60]
    assert (await counted(house)).total() == len(TURNED_AWAY)
    await said(house, b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
    assert (await counted(house)).total() == len(TURNED_AWAY)
    # One whose key is known is counted once as well, and stands in the ledger.
    assert (await house.post(b"{", house.key())).status == 400
    assert (await counted(house))["invalid_json"] == 1 and (await counted(house)).total() == len(TURNED_AWAY) + 1


async def test_connections_that_are_too_many_or_too_slow_are_counted(house: House) -> None:
    await house.start(router={"max_connections": 1, "header_timeout_s": 1.0})
    assert house.built is not None
    edge = house.built.edge
    await until(lambda: not edge._open)  # whoever looked whether it is there
    port = int(house.url.rpartition(":")[2])
    slow, half = await asyncio.open_connection("127.0.0.1", port)
    half.write(b"GET /hea")
    await until(lambda: edge._open == 1 and not edge._idle)
    assert b" 503 " in await said(house, b"")
    assert (await counted(house))["overloaded"] == 1
    async with asyncio.timeout(20):
        assert b" 408 " in await slow.readline()
    half.close()
    assert await counted(house) == Counter({"overloaded": 1, "request_timeout": 1})
