"""A real provider on loopback that counts every byte, and a real door in front of it on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import yaml

from router.door.server import serve
from router.permit import LIFETIME_S, Permit, body_hash, seal
from serving import catalogue
from serving.home import Home
from tests.fakes import rules

KEYS = """CREATE TABLE keys (id TEXT PRIMARY KEY, team TEXT NOT NULL, data_class TEXT NOT NULL, mac TEXT NOT NULL,
    last4 TEXT NOT NULL, lanes TEXT NOT NULL, substitute INTEGER NOT NULL DEFAULT 0, budget_usd REAL,
    created REAL NOT NULL, expires REAL, revoked REAL, scopes TEXT NOT NULL DEFAULT '',
    media_class TEXT NOT NULL DEFAULT 'private', requires TEXT NOT NULL DEFAULT '')"""
ANSWER = orjson.dumps({"id": "a1", "choices": []})
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


class FakeProvider:
    """Speaks just enough HTTP; counts the bytes of every connection, whatever they are."""

    def __init__(self) -> None:
        self.bytes_seen = 0
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()
        """Set when a connection was closed from the other side."""
        self.reply: Reply = lambda writer: self.answer(writer)

    async def answer(
        self, writer: asyncio.StreamWriter, status: str = "200 OK", body: bytes = ANSWER, headers: str = ""
    ) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await self._requests(reader, writer)
        writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering: asyncio.Task[None] | None = None
        data = b""
        while chunk := await reader.read(65536):
            self.bytes_seen += len(chunk)
            data += chunk
            head, gap, body = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
            if gap and len(body) >= int(headers.get("content-length", "0")):
                self.requests.append((lines[0], headers, body))
                data = b""
                answering = asyncio.ensure_future(self.reply(writer))
        self.left.set()
        if answering:
            answering.cancel()


class House:
    """One installation: its folder, catalogue and keys, and a door running on them."""

    def __init__(self, root: Path, port: int) -> None:
        self.home = Home(root / "home", root / "engines")
        self.home.make()
        rules.put(self.home.book.with_name("rules"))
        self.root = root
        self.port = port
        self.key = f"pk-{secrets.token_hex(12)}"
        self.environ = {"PROVIDER_KEY": self.key}
        self.providers: dict[str, dict[str, Any]] = {
            "far": self.provider(),
            "off": {**self.provider(), "enabled": False},
        }
        self.site: dict[str, Any] = {}
        """The rest of its headgate.yaml."""
        self.models = [self.model("big"), self.model("dark", provider="off"), self.model("near", place="local")]
        with contextlib.closing(sqlite3.connect(self.home.ledger)) as store:
            store.execute("PRAGMA journal_mode = WAL")
            store.execute(KEYS)
            store.commit()
        self.add_key("kpublic", "public")
        self.add_key("kprivate", "private")
        self.instance = ""
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def provider(self, **fields: Any) -> dict[str, Any]:
        base = {"enabled": True, "base_url": f"http://127.0.0.1:{self.port}/v1", "key_env": "PROVIDER_KEY"}
        return {**base, "private_ranges": ["127.0.0.0/8"], **fields}

    def model(self, name: str, provider: str = "far", place: str = "hosted", **fields: Any) -> dict[str, Any]:
        base = {"name": name, "place": place, "lanes": ["frontier"], "context": 1000, "output": 100}
        if place == "hosted":
            base |= {"provider": provider, "provider_model": f"{name}-at-{provider}"}
        return {**base, **fields}

    def add_key(self, name: str, data_class: str, **fields: Any) -> None:
        row = {"id": name, "team": "red", "data_class": data_class, "mac": "", "last4": "", "created": 0.0}
        row |= {"lanes": "cheap,frontier", **fields}
        columns, marks = ", ".join(row), ", ".join("?" * len(row))
        with contextlib.closing(sqlite3.connect(self.home.ledger)) as store:
            store.execute(f"INSERT INTO keys ({columns}) VALUES ({marks})", tuple(row.values()))
            store.commit()

    def write_files(self) -> catalogue.Catalogue:
        shipped, site = self.root / "models.yaml", self.root / "headgate.yaml"
        shipped.write_text(yaml.safe_dump({"version": 1, "providers": self.providers, "models": self.models}))
        site.write_text(yaml.safe_dump(self.site))
        return catalogue.load(site, shipped)

    async def start(self) -> None:
        self.catalogue = self.write_files()
        self.task = asyncio.create_task(serve(self.catalogue, self.home, self.environ, self.stop))
        await self.up(self.task)

    async def up(self, running: asyncio.Task[None] | None = None) -> None:
        """Wait until the door answers, and learn its instance."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if running is not None and running.done():
                running.result()
            with contextlib.suppress(aiohttp.ClientConnectionError, FileNotFoundError):
                self.instance = (await self.status())["instance"]
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the door did not come up")

    async def end(self) -> None:
        self.stop.set()
        if self.task:
            await self.task

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession("http://door", connector=aiohttp.UnixConnector(str(self.home.socket("door"))))

    async def status(self) -> dict[str, Any]:
        async with self.client() as client, client.get("/door") as answer:
            found: dict[str, Any] = await answer.json()
            assert answer.status == (200 if found["open"] else 503)
            return found

    def body(self, **fields: Any) -> bytes:
        return orjson.dumps({"model": "big", "messages": [{"role": "user", "content": "hello"}], **fields})

    def permit(self, raw: bytes, **changes: Any) -> Permit:
        permit = Permit(
            id=secrets.token_hex(8), door=self.instance, request="req-1", key="kpublic", team="red",
            route="chat/completions", provider="far", model="big", path="chat/completions", data_class="public",
            body=body_hash(raw), policy=self.catalogue.version, expires=time.time() + LIFETIME_S,
        )  # fmt: skip
        return replace(permit, **changes)

    def sealed(self, permit: Permit) -> str:
        return seal(permit, self.home.secret("permit"))

    async def send(self, raw: bytes | None = None, token: str | None = None, **changes: Any) -> tuple[int, str, Any]:
        """Send with a permit, good but for `changes`. Returns status, `x-headgate-door` and the parsed answer."""
        raw = self.body() if raw is None else raw
        token = self.sealed(self.permit(raw, **changes)) if token is None else token
        async with self.client() as client:
            answer = await client.post("/send", data=io.BytesIO(raw), headers={"x-headgate-permit": token})
            found = await answer.read()
            mark = answer.headers.get("x-headgate-door", "")
            return answer.status, mark, orjson.loads(found) if found else None

    def book(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.home.book.read_bytes().splitlines()]

    async def ended(self, count: int = 1) -> list[dict[str, Any]]:
        """The book's `ended` entries once there are so many: they are written after the answer."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            found = [entry for entry in self.book() if entry["kind"] == "ended"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)
        raise AssertionError("the end is not in the book")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for a socket, whatever the test is called."""
    folder = Path(tempfile.mkdtemp(prefix="hg-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def provider() -> AsyncIterator[tuple[FakeProvider, int]]:
    fake = FakeProvider()
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    yield fake, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
def far(provider: tuple[FakeProvider, int]) -> FakeProvider:
    return provider[0]


@pytest.fixture
async def house(short: Path, provider: tuple[FakeProvider, int]) -> AsyncIterator[House]:
    """Not started yet, so that a test can change it first."""
    found = House(short, provider[1])
    yield found
    await found.end()
