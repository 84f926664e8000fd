"""A caller that writes bytes as it likes: what no HTTP client would send, and as slowly as it wants."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    """Whether the body ended as it was announced."""

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class RawCaller:
    """One connection. `async with RawCaller(url) as caller:`"""

    def __init__(self, url: str, key: str = "") -> None:
        self._at, self.key = urlsplit(url), key
        self.informed: list[int] = []
        """Statuses of interim answers."""

    async def __aenter__(self) -> RawCaller:
        self.reader, self.writer = await asyncio.open_connection(self._at.hostname, self._at.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, body: Any, path: str = "/v1/chat/completions", *headers: str, length: int | None = None) -> None:
        """A whole request; `length` is what to claim instead of the body's own."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send(
            self.head("POST", path, f"Content-Length: {len(data) if length is None else length}", *headers) + data
        )

    def head(self, method: str, path: str, *headers: str, host: bool = True, key: bool = True) -> bytes:
        """A head, with Host and key where they are not left out."""
        lines = [f"{method} {path} HTTP/1.1", *(["Host: headgate"] if host else [])]
        if self.key and key:
            lines.append(f"Authorization: Bearer {self.key}")
        return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")

    async def begun(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer; interim ones are noted and read over."""
        while True:
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = raw.strip().split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                return status, {name.lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)}
            self.informed.append(status)

    async def chunk(self) -> bytes:
        """The next piece of a chunked body; empty is its end. Raises IncompleteReadError where the connection ended."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:size]

    async def answer(self, *, bodyless: bool = False, within_s: float = 10) -> Answer:
        """The next answer, whole or as far as it came."""
        async with asyncio.timeout(within_s):
            status, headers = await self.begun()
            if bodyless:
                return Answer(status, headers, b"")
            if headers.get("transfer-encoding") != "chunked":
                return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
            body = b""
            try:
                while piece := await self.chunk():
                    body += piece
            except asyncio.IncompleteReadError:
                return Answer(status, headers, body, whole=False)
            return Answer(status, headers, body)

    async def ended(self, within_s: float = 10) -> bytes:
        """What still came until the router closed the connection."""
        async with asyncio.timeout(within_s):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""
