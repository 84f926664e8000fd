"""Callers who would have somebody else fetch an address, and settings that lead to the wrong place (SR-…)."""

from __future__ import annotations

import ast
import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from router.api import inference
from router.door.destination import AddressRefused, Destination, DestinationError
from serving import catalogue
from serving.catalogue import Provider
from tests import known
from tests.conftest import ask
from tests.faults import wire
from tests.faults.cases import each
from tests.faults.conftest import FaultHouse
from tests.house import tree

INSIDE = (
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/latest/", "http://metadata.google.internal/",
    "http://127.0.0.1:9/", "https://elsewhere.example/a?what=was+said", "//elsewhere.example/a", "HTTPS://x.example/a",
)  # fmt: skip
SCHEMES = (
    "file:///etc/passwd", "ftp://a.example/x", "gopher://a.example/_x", "jar:http://a.example!/x", r"\\host\share\x",
    "data:text/html;base64,PGgxPg==", "data:text/html,<h1>", "data:,x", "javascript:alert(1)", "blob:x", "/etc/passwd",
)  # fmt: skip


def asked(url: str) -> dict[str, tuple[dict[str, Any], str]]:
    """A request that names `url` as media, in each dialect: its body and its path."""
    pictures = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "look"}]
    source = [{"type": "image", "source": {"type": "url", "url": url}}]
    return {
        "chat": ({"messages": [{"role": "user", "content": pictures}]}, "/v1/chat/completions"),
        "short": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]},
                  "/v1/chat/completions"),
        "video": ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]},
                  "/v1/chat/completions"),
        "responses": ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
                      "/v1/responses"),
        "messages": ({"messages": [{"role": "user", "content": source}], "max_tokens": 5}, "/v1/messages"),
    }  # fmt: skip


async def refused(house: FaultHouse, url: str, codes: set[str]) -> None:
    await house.start()
    for data_class in ("public", "private"):
        for name, (body, path) in asked(url).items():
            if name == "messages" and not url.startswith(("http", "HTTP", "//", "file", "ftp", "gopher")):
                continue  # a `url` source is an address by its type; others are refused by the same rule
            found = await house.tell({"model": "auto", **body}, house.key(data_class), path)
            assert found.status == 400, (name, found.body)
            said = "" if path == "/v1/messages" else found.code
            assert said in codes | {""}, (name, said)
    assert house.asked() == house.leaked() == 0


@each(INSIDE)
async def test_sr_001_no_address_a_caller_names_is_fetched_by_anybody(house: FaultHouse, url: str) -> None:
    """Neither here, where the test's lookout would see a look-up, nor by an engine, which never gets it."""
    await refused(house, url, {"media_url_not_allowed"})


@each(SCHEMES)
async def test_sr_002_no_scheme_but_data_of_a_medium_is_taken(house: FaultHouse, url: str) -> None:
    await refused(house, url, {"media_url_not_allowed", "invalid_media"})


class Names:
    """A resolver whose answer changes, as that of a name which is turned against whoever looks it up twice."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int, family: int) -> list[ResolveResult]:
        self.asked += 1
        now = self.answers.pop(0)
        kind = socket.AF_INET6 if ":" in now else socket.AF_INET
        return [ResolveResult(hostname=host, host=now, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        return


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[tuple[int, Path, list[tuple[str | None, bytes]]]]:
    """A TLS server that is called api.test: its port, its certificate, and the name and head of each request."""
    pem, seen = tmp_path / "ca.pem", list[tuple[str | None, bytes]]()
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    make += ["-subj", "/CN=api.test", "-addext", "subjectAltName=DNS:api.test", "-keyout", pem, "-out", pem]
    subprocess.run([str(part) for part in make], check=True, capture_output=True)
    names: list[str | None] = []
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    inside.load_cert_chain(pem)
    inside.sni_callback = lambda _socket, name, _context: names.append(name)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append((names[-1], head))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=inside)
    yield server.sockets[0].getsockname()[1], pem, seen
    server.close()


async def test_sr_004_a_name_is_resolved_once_and_the_connection_goes_there(provider: Any) -> None:
    """Host and SNI stay the name's; the next connection asks anew, and a worse answer is refused before it is made."""
    port, pem, seen = provider
    url = f"https://api.test:{port}/v1"
    way = Destination(Provider(base_url=url, private_ranges=("127.0.0.1/32",), ca_file=str(pem)))
    names = Names("127.0.0.1", "127.0.0.2", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "100.64.0.1")
    way._resolver._inner = names  # type: ignore[union-attr, assignment]
    async with await way.post(f"{url}/x", {}, b"{}") as answer:
        assert answer.status == 200
    assert names.asked == 1
    ((name, head),) = seen
    assert name == "api.test" and f"host: api.test:{port}\r\n" in head.decode().lower()
    for turn in range(len(names.answers)):
        with pytest.raises(OSError) as refused:  # aiohttp's own, around ours
            await way.post(f"{url}/x", {}, b"{}")
        cause = getattr(refused.value, "os_error", refused.value)
        assert isinstance(cause, AddressRefused) and names.asked == turn + 2
    assert len(seen) == 1
    await way.close()


@each([301, 302, 303, 307, 308])
async def test_sr_005_a_redirect_is_never_followed(house: FaultHouse, status: int) -> None:
    """Neither a provider's, nor an engine's (UP-019)."""
    house.may_leave = True
    await house.start(hosted=True)
    target, before = house.replicas[2], len(house.provider.requests)
    house.provider.script = {"status": status, "headers": {"location": f"{target.address}/x"}, "body": ""}
    found = await house.tell(ask("big"), house.key("public"))
    assert (found.status, found.code) == (502, "provider_redirected")
    assert target.accepted == 0 and len(house.provider.requests) == before + 1
    assert target.address not in found.body.decode()


LITERAL = (
    "http://127.0.0.1:8080/v1", "https://127.0.0.1/v1", "https://169.254.169.254/v1", "https://[::1]/v1",
    "https://[fe80::1]/v1", "https://[::ffff:127.0.0.1]/v1", "https://[64:ff9b::7f00:1]/v1", "https://0.0.0.0/v1",
    "https://[2002:7f00:1::]/v1", "https://100.64.0.1/v1", "https://10.0.0.1/v1", "http://93.184.215.14/v1",
    "https://user:pw@api.example/v1", "https://api.example/v1?x=1", "ftp://api.example/v1", "file:///etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("url", LITERAL)
async def test_sr_006_a_provider_at_an_address_that_is_not_global_or_in_clear_is_refused(url: str) -> None:
    with pytest.raises(DestinationError):
        Destination(Provider(base_url=url))


async def test_sr_006_a_name_that_leads_inside_and_clear_http_outside_are_refused() -> None:
    for url, answer in (
        ("https://api.test/v1", "127.0.0.1"), ("https://api.test/v1", "169.254.169.254"),
        ("https://api.test/v1", "fe80::1"), ("http://api.test/v1", "93.184.215.14"),
    ):  # fmt: skip
        way = Destination(Provider(base_url=url))
        way._resolver._inner = Names(answer)  # type: ignore[union-attr, assignment]
        with pytest.raises(OSError) as refused:
            await way.post(f"{url}/x", {}, b"{}")
        assert isinstance(getattr(refused.value, "os_error", refused.value), AddressRefused), url
        await way.close()


async def test_sr_006_nobody_sets_it_but_the_file_and_a_change_is_another_policy(house: FaultHouse) -> None:
    """No route of the admin API takes settings; what changed stands in every permit, record and entry of the book."""
    await house.start()
    assert house.built is not None
    paths = {route.path for route in house.built.admin.routes}  # type: ignore[attr-defined]
    assert not [path for path in paths if re.search("provider|config|setting|model", path)]
    before = catalogue.load(house.home.root / "headgate.yaml").version
    site = house.home.root / "other.yaml"
    site.write_text("providers:\n  openai: {base_url: 'https://other.example/v1'}\n")
    plain = house.home.root / "plain.yaml"
    plain.write_text("{}\n")
    assert len({before, catalogue.load(site).version, catalogue.load(plain).version}) == 3


STEERING = {
    "x-portkey-custom-host": "http://127.0.0.1:9", "x-portkey-provider": "openai", "x-portkey-config": "{}",
    "x-portkey-forward-headers": "authorization", "helicone-target-url": "http://127.0.0.1:9",
    "x-litellm-api-base": "http://127.0.0.1:9", "x-api-base": "http://127.0.0.1:9", "x-base-url": "http://127.0.0.1:9",
    "x-target-url": "http://127.0.0.1:9", "x-forwarded-host": "elsewhere.example", "x-original-url": "/admin",
    "x-rewrite-url": "/admin", "forwarded": "host=elsewhere.example", "x-envoy-original-path": "/admin",
    "x-headgate-permit": "forged", "x-headgate-door": "sent", "cookie": "a=b", "proxy-authorization": "Basic eDp5",
}  # fmt: skip
LEAVE = {"host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent"}


async def test_sr_007_no_header_leads_a_request_elsewhere_nor_goes_along(house: FaultHouse) -> None:
    house.may_leave = True
    await house.start(hosted=True)
    key = house.key("public")
    for model, upstream in (("small", house.local), ("big", house.provider)):
        before = len(upstream.requests)
        for name, value in STEERING.items():
            found = await house.tell(ask(model), key, headers={name: value})
            assert found.status == 200 and found.headers["x-headgate-model"] == model, name
            sent = upstream.requests[-1].headers
            assert name not in sent and (value == "openai" or value not in sent.values()), name
        assert len(upstream.requests) == before + len(STEERING)
    assert {name for one in house.provider.requests for name in one.headers} == LEAVE


ALIASES = (
    "/chat/completions", "/v1/proxy/x", "/openai/deployments/gpt/chat/completions", "/engines/x/chat/completions",
    "/v1/engines/x/completions", "/v1/v1/chat/completions", "//v1/chat/completions", "/v1/chat/completions/",
    "/V1/chat/completions", "/v1/chat/../chat/completions", "/v1/chat%2fcompletions", "/passthrough", "/vertex_ai/x",
    "/invocations", "/update_weights", "/admin", "/metrics", "/status", "/records",
)  # fmt: skip


async def test_sr_007_every_path_is_known_and_without_a_key_only_health_and_the_document_answer(
    house: FaultHouse,
) -> None:
    await house.start()
    assert house.built is not None
    key = house.key("public")
    for path in ALIASES:
        found = await house.tell(ask("small"), key, path)
        assert found.status in (404, 405), path
    told = {}
    for path in {*inference.ROUTES, *(route.path for route in house.built.pages.routes)}:  # type: ignore[attr-defined]
        found = await house.tell(ask("small"), None, path)
        if found.status == 405:
            raw = f"GET {path} HTTP/1.1\r\nhost: headgate.test\r\n\r\n".encode()
            found = await wire.exchange(int(house.url.rsplit(":", 1)[1]), raw)
        told[path] = found.status
    open_ = {path for path, status in told.items() if status not in (401, 404)}
    assert open_ <= {"/health", "/ready", "/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect"}, told
    assert house.asked() == 0


def test_sr_008_nothing_of_a_request_starts_a_process_and_no_setting_is_an_address_to_report_to() -> None:
    """Webhooks, alerts and log exports are not there; what runs a process is the operator's command line and files."""
    sources = tree()
    spawning = {"subprocess", "multiprocessing", "pty", "os.system"}
    faced = ("router/api/", "router/decision/", "router/scanner/", "router/upstream/", "router/ledger/", "router/door/")
    for path, source in sources.items():
        if path.startswith(faced):
            for node in ast.walk(ast.parse(source)):
                names = [n.name for n in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not spawning & set(names), path
    addresses = [name for name in known.settings() if re.search("url|webhook|host|endpoint|export|callback", name)]
    assert set(addresses) <= {"attach[].url", "providers.NAME.base_url"}, addresses


async def test_sr_008_a_caller_names_no_server_of_tools(house: FaultHouse) -> None:
    await house.start()
    key = house.key("public")
    for field in ("mcp_servers", "webhook", "callback_url", "success_callback", "command", "env"):
        for model in ("small", "big"):
            found = await house.tell(ask(model, **{field: [{"url": "http://127.0.0.1:9", "command": "id"}]}), key)
            assert (found.status, found.code) == (400, "unsupported_parameter"), field
    tool = {"type": "mcp", "server_url": "http://127.0.0.1:9", "server_label": "x"}
    found = await house.tell({"model": "small", "input": "hello", "tools": [tool]}, key, "/v1/responses")
    assert (found.status, found.code) == (400, "tool_not_offered")
    for own in (tool, {"type": "web_search"}, {"googleSearch": {}}):
        found = await house.tell(ask("big", tools=[own]), key)
        assert (found.status, found.code) == (400, "tool_not_offered"), own
    assert house.asked() == house.leaked() == 0
