"""An upstream that fails on demand: an HTTP/1.1 server on a raw socket. It counts every byte it is sent.

Without a script it answers like vLLM: `stream: true` in the body gives an event stream, otherwise one whole answer.
What shall happen is said per request: in the header `x-fault`, as JSON or as one word (`never`); in the last message,
prompt or input of its body, made with `told({...})`, which passes a router; or for this upstream alone, in `then` (the
next requests, one script each) and `script` (all others). The fields, each optional:

status, headers, body, http   the plain answer; headers: a mapping, or pairs where a name comes twice
chunks, pause_s               the body in pieces, chunked, with a pause after each
stream                        the body is an event stream with these deltas; a dict is an event's document
bare                          of `stream` nothing but what is listed: no role, finish reason, usage or [DONE]
length                        the Content-Length to claim, whatever the body is
eof                           no length at all: the body ends with the connection
inform                        1xx statuses to send first
raw                           exactly these bytes (text is latin-1), nothing else
delay_s, body_delay_s         wait before the head, or between head and body
split, split_s                bytes per write, each in a segment of its own, and a pause after each
cut, reset                    close or reset after this many bytes of the answer
close                         answer with Connection: close, and close
never                         read the request and say nothing
gate                          read the request and wait for `Upstream.gate`
endless, times                send pieces of this many bytes for ever, or so many of them
stale                         answer nothing and close, if the connection was used before: the keep-alive race

Among `chunks` and `stream`, bytes are sent as they are, a number is a pause in seconds, None one without end, and True
waits for `Upstream.gate`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.fakes import answers
from tests.fakes.answers import completion as completion
from tests.fakes.answers import events as events

Script = dict[str, Any]
TOLD = "x-fault: "
BODY = {"raw", "body", "chunks", "stream", "endless"}


def told(script: Script) -> str:
    """The script as the text of a message: it arrives whatever lies between."""
    return TOLD + json.dumps(script)


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: int
    """Which connection it came over, counted from 1."""

    def json(self) -> Any:
        return json.loads(self.body)

    def told(self) -> Script:
        """The script in its text; empty where there is none."""
        if TOLD.encode() not in self.body:
            return {}
        asked = self.json()
        text = asked["messages"][-1]["content"] if asked.get("messages") else asked.get("prompt") or asked.get("input")
        return cast(Script, json.loads(text.removeprefix(TOLD)))


class Upstream:
    """The server. `async with Upstream() as upstream:`, then `upstream.address`."""

    def __init__(self, *, path: Path | None = None, tls: ssl.SSLContext | None = None, script: Script | None = None):
        self.script: Script = script or {}
        self.then: list[Script] = []
        self.gate = asyncio.Event()
        self.requests: list[Request] = []
        self.received: Counter[int] = Counter()
        """Bytes that arrived, by connection."""
        self.accepted = 0
        """Connections so far."""
        self.open: set[Peer] = set()
        self.answering = self.most = 0
        """Requests that are being answered now, and the most there were at once."""
        self.left = 0
        """Connections the client ended while an answer was due or under way."""
        self.sent = self.blocked = 0
        """Bytes of answers handed to the kernel or waiting for it; times a writer had to wait for a slow client."""
        self._path, self._tls = path, tls

    async def __aenter__(self) -> Upstream:
        loop = asyncio.get_running_loop()
        if self._path is not None:
            self._server = await loop.create_unix_server(lambda: Peer(self), str(self._path), ssl=self._tls)
            self.address = f"unix:{self._path}"
        else:
            self._server = await loop.create_server(lambda: Peer(self), "127.0.0.1", 0, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]
            self.address = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for peer in list(self.open):
            peer.transport.abort()
        await self.until(lambda: not self.open)
        await self._server.wait_closed()

    async def until(self, true: Callable[[], object], within_s: float = 5.0) -> None:
        """Wait until `true()`; TimeoutError after `within_s`."""
        async with asyncio.timeout(within_s):
            while not true():
                await asyncio.sleep(0.002)

    def script_of(self, request: Request) -> Script:
        """What shall happen to this request."""
        text = request.headers.get("x-fault", "")
        script = json.loads(text) if text.startswith("{") else {text: 0 if text in ("cut", "reset") else True}
        if not text:
            script = dict(request.told() or (self.then.pop(0) if self.then else self.script))
        if script.keys() & BODY:
            return script
        asked = json.loads(request.body) if request.body.startswith(b"{") else {}
        if asked.get("stream"):
            return {"stream": answers.streamed(request.path), "bare": True, **script}
        return {"body": answers.whole(request.path), **script}


class Peer(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.buffer = bytearray()
        self.answering: asyncio.Task[None] | None = None
        self.answers = 0
        self.written = 0
        self.flow = asyncio.Event()
        self.flow.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        self.upstream.accepted += 1
        self.number = self.upstream.accepted
        self.upstream.open.add(self)
        if self.upstream._path is None:
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self.upstream.received[self.number] += len(data)
        self.buffer += data
        if self.answering is None or self.answering.done():
            self.begin()

    def begin(self) -> None:
        request = self.take()
        if request is not None:
            self.upstream.requests.append(request)
            self.answering = asyncio.ensure_future(self.answer(request))

    def take(self) -> Request | None:
        head, empty, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not empty:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self.buffer = bytearray(rest[length:])
        method, path, _ = first.split(" ")
        return Request(method, path, headers, rest[:length], self.number)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open.discard(self)
        if self.answering is not None and not self.answering.done():
            self.upstream.left += 1
            self.answering.cancel()

    def pause_writing(self) -> None:
        self.upstream.blocked += 1
        self.flow.clear()

    def resume_writing(self) -> None:
        self.flow.set()

    async def answer(self, request: Request) -> None:
        upstream = self.upstream
        upstream.answering += 1
        upstream.most = max(upstream.most, upstream.answering)
        try:
            await self.follow(upstream.script_of(request))
        finally:
            upstream.answering -= 1

    async def follow(self, script: Script) -> None:
        self.answers += 1
        self.written = 0
        if script.get("stale") and self.answers > 1:
            self.transport.close()
            return
        await asyncio.sleep(script.get("delay_s", 0))
        if script.get("never"):
            await asyncio.Event().wait()
        if script.get("gate"):
            await self.upstream.gate.wait()
        try:
            await self.send_all(script)
        except ConnectionAbortedError:  # the script ended it
            return
        if script.get("close") or script.get("eof"):
            self.transport.close()
        elif self.buffer:
            asyncio.get_running_loop().call_soon(self.begin)

    async def send_all(self, script: Script) -> None:
        if "raw" in script:
            raw = script["raw"]
            await self.send(raw if isinstance(raw, bytes) else raw.encode("latin-1"), script)
            return
        for status in script.get("inform", ()):
            await self.send(f"HTTP/1.1 {status} Wait\r\nx-early: yes\r\n\r\n".encode(), script)
        pieces = answers.pieces_of(script)
        body = script.get("body", "").encode()
        head = self.head(script, body, chunked=pieces is not None)
        if pieces is None:
            if "body_delay_s" in script:
                await self.send(head, script)
                await asyncio.sleep(script["body_delay_s"])
                head = b""
            await self.send(head + body, script)
            return
        await self.send(head, script)
        await asyncio.sleep(script.get("body_delay_s", 0))
        plain = "length" in script or "eof" in script
        for piece in pieces:
            if isinstance(piece, bytes):
                await self.send(piece if plain else b"%x\r\n%b\r\n" % (len(piece), piece), script)
                await asyncio.sleep(script.get("pause_s", 0))
            elif piece is None:
                await asyncio.Event().wait()
            elif piece is True:
                await self.upstream.gate.wait()
            else:
                await asyncio.sleep(piece)
        await self.send(b"" if plain else b"0\r\n\r\n", script)

    def head(self, script: Script, body: bytes, chunked: bool) -> bytes:
        """Status line and headers; those of the script win."""
        given = script.get("headers", {})
        given = list(given.items()) if isinstance(given, dict) else given
        kind = "text/event-stream" if "stream" in script else "application/json"
        more = {"content-type": kind, "x-peer": str(self.number)}
        if script.get("close"):
            more["connection"] = "close"
        if "length" in script or not (chunked or script.get("eof")):
            more["content-length"] = str(script.get("length", len(body)))
        elif chunked and not script.get("eof"):
            more["transfer-encoding"] = "chunked"
        said = {name.lower() for name, _ in given}
        fields = [*((name, value) for name, value in more.items() if name not in said), *given]
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{script.get('http', 'HTTP/1.1')} {script.get('status', 200)} Fine\r\n{lines}\r\n".encode("latin-1")

    async def send(self, data: bytes, script: Script) -> None:
        limit = script.get("cut", script.get("reset"))
        ends = limit is not None and self.written + len(data) >= limit
        data = data[: limit - self.written] if ends else data
        step = script.get("split") or max(1, len(data))
        for start in range(0, len(data), step):
            await self.flow.wait()
            part = data[start : start + step]
            self.transport.write(part)
            self.written += len(part)
            self.upstream.sent += len(part)
            await asyncio.sleep(script.get("split_s", 0))
        if ends:
            self.end(reset="reset" in script)

    def end(self, reset: bool) -> None:
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            self.transport.close()
        raise ConnectionAbortedError
