"""A strict HTTP client on a raw socket: one request, one answer, and every byte of it must be as it should be.

What a lenient client would forgive fails the test here: that is the invariant "one well-formed outcome" (I2).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d)(?: [\x20-\x7e]*)?")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
ENVELOPE = {"message", "type", "param", "code"}
INNER = re.compile(
    r"Traceback|127\.0\.0\.1|localhost|unix:|\.sock\b|File \"|0x[0-9a-f]{6}|<html|hg_[0-9A-Za-z]{8}_", re.I
)
"""What no error may show: addresses behind the router, paths, an upstream's page, our own insides, keys."""


@dataclass(slots=True)
class Outcome:
    """One answer, whole and well formed."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float = 0.0
    """From the request to the answer's end."""
    events: list[str] = field(default_factory=list)
    """Data of each event of a stream, in order."""
    comments: list[str] = field(default_factory=list)
    closed: bool = False
    """Whether the router closed the connection after it."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def error(self) -> dict[str, Any]:
        """The error of the envelope, or of the stream's last event; {} where there is none."""
        if "text/event-stream" in self.headers["content-type"]:
            return error_of(self.events[-1]) if self.events else {}
        found: dict[str, Any] = self.json().get("error") or {}
        return found

    @property
    def code(self) -> str:
        """`ok`, or the error's code."""
        return str(self.error["code"]) if self.error else "ok"

    @property
    def text(self) -> str:
        """The words of the answer."""
        if not self.events:
            return str(self.json()["choices"][0]["message"]["content"])
        found = (document_of(event) for event in self.events)
        choices = [c for one in found for c in one.get("choices") or () if isinstance(c, dict)]
        return "".join((c.get("delta") or {}).get("content") or "" for c in choices)


def request(
    body: Any, key: str | None = None, path: str = "/v1/chat/completions", headers: Mapping[str, str] | None = None
) -> bytes:
    """A request as bytes; `body` is JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": "headgate.test", "content-type": "application/json", "content-length": str(len(data))}
    given |= {"authorization": f"Bearer {key}"} if key else {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in (given | dict(headers or {})).items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + data


async def exchange(port: int, asked: bytes, within_s: float = 20.0) -> Outcome:
    """Send `asked` on a connection of its own and read the one answer. AssertionError where it is not well formed."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        try:
            writer.write(asked)
            found = await read(reader)
            found.seconds = time.monotonic() - started
            return found
        finally:
            writer.transport.abort()


async def read(reader: asyncio.StreamReader) -> Outcome:
    """Read one answer to its end, strictly."""
    status, fields = await _head(reader)
    while status < 200:
        status, fields = await _head(reader)
    names = [name for name, _ in fields]
    assert len(names) == len(set(names)), f"a header stands there twice: {names}"
    headers = dict(fields)
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    assert (coding is None) != (length is None), f"exactly one framing: {headers}"
    ended = True
    if length is not None:
        body = await reader.readexactly(int(length))
    else:
        assert coding == "chunked"
        body, ended = await _chunked(reader)
    found = Outcome(status, headers, body)
    closes = headers.get("connection", "") == "close"
    kind = headers["content-type"]
    if kind.startswith("text/event-stream"):
        assert status == 200, "a stream is a 200, whatever happens in it"
        found.events, found.comments = events_of(body)
        well_ended(found.events)
        assert ended or found.error, "the stream ends without its end"
        closes = closes or bool(found.error)
    else:
        assert kind.startswith("application/json") or not body, f"{kind}: {body[:80]!r}"
        assert ended, "the answer ends without its end"
    if status >= 400:
        well_refused(found)
    if closes:
        found.closed = await reader.read(1) == b""
        assert found.closed, "something came after the end"
    return found


async def _head(reader: asyncio.StreamReader) -> tuple[int, list[tuple[str, str]]]:
    first = await reader.readuntil(b"\r\n")
    match = STATUS.fullmatch(first[:-2])
    assert match, f"no status line: {first!r}"
    fields = []
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        found = FIELD.fullmatch(line[:-2])
        assert found, f"no header: {line!r}"
        fields.append((found[1].decode().lower(), found[2].decode().strip()))
    return int(match[1]), fields


async def _chunked(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """The body, and whether the last chunk came: after an error the connection may end instead, between two chunks."""
    parts: list[bytes] = []
    while True:
        try:
            line = await reader.readuntil(b"\r\n")
        except asyncio.IncompleteReadError as end:
            assert not end.partial, f"half a chunk: {end.partial!r}"
            return b"".join(parts), False
        assert re.fullmatch(rb"[0-9A-Fa-f]{1,8}\r\n", line), f"no chunk size: {line!r}"
        size = int(line, 16)
        if size:
            parts.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n", "a chunk without its end"
        if not size:
            return b"".join(parts), True


def events_of(body: bytes) -> tuple[list[str], list[str]]:
    """The data of each event, and the comments. Line ends are those the upstream sent; all of them are allowed."""
    text = body.decode("utf-8", "replace")
    lines = re.split(r"\r\n|\n|\r", text)
    events: list[str] = []
    comments: list[str] = []
    data: list[str] = []
    for line in lines:
        if line.startswith(":"):
            comments.append(line[1:].strip())
        elif line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            events.append("\n".join(data))
            data = []
    assert not data, "the last event has no end"
    return events, comments


def document_of(event: str) -> dict[str, Any]:
    """The JSON object that an event's data is; {} for anything else."""
    try:
        found = json.loads(event)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def error_of(event: str) -> dict[str, Any]:
    """The error an event carries, or {}."""
    found = document_of(event)
    if found.get("type") == "error" and "code" in found:  # the dialect of /v1/responses
        assert type(found.get("sequence_number")) is int, f"every event there is numbered: {found}"
        return {name: found.get(name) for name in ("message", "code", "param")} | {"type": "error"}
    error = found.get("error")
    return error if isinstance(error, dict) else {}


def well_ended(events: list[str]) -> None:
    """An error ends a stream: nothing after it, `[DONE]` least of all."""
    failed = [number for number, event in enumerate(events) if error_of(event)]
    assert len(failed) <= 1, "two errors in one stream"
    if failed:
        assert failed[0] == len(events) - 1, f"something came after the error: {events[failed[0] + 1 :]}"
        assert "[DONE]" not in (event.strip() for event in events)
        assert not INNER.search(events[-1]), events[-1]


def well_refused(found: Outcome) -> None:
    """An error has one of the two envelopes and shows nothing of what lies behind the router."""
    body = found.json()
    if body.get("type") == "error":  # the dialect of /v1/messages
        assert set(body) <= {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}, body
    else:
        assert set(body) == {"error"} and set(body["error"]) == ENVELOPE, body
        assert isinstance(body["error"]["code"], str) and body["error"]["code"]
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert not INNER.search(found.body.decode()), found.body
