"""A stand-in for an upstream: an HTTP/1.1 server on a raw socket that misbehaves on demand.

Without a script it answers like vLLM: `stream: true` in the body gives an event stream, otherwise one completion.
A request says what shall happen in the header `x-script`, as JSON or as one word (`never`); where the program under
test does not pass that header on, set `Upstream.script`. The fields, each optional:

status, headers, body         the plain answer; body is text
chunks, pause_s               the body in pieces, chunked, with a pause between them
stream                        the body is an event stream with these deltas
length                        the Content-Length to claim, whatever the body is
eof                           no length at all: the body ends with the connection
inform                        1xx statuses to send first
raw                           exactly these bytes (latin-1), nothing else
delay_s, body_delay_s         wait before the head, or between head and body
split                         bytes per write, each in a segment of its own
cut, reset                    close or reset after this many bytes of the answer
close                         answer with Connection: close, and close
never                         read the request and say nothing
endless                       send pieces of this many bytes for ever
stale                         answer nothing and close, if the connection was used before: the keep-alive race
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Script = dict[str, Any]


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


class Upstream:
    """The server. `async with Upstream() as upstream:`, then `upstream.address`."""

    def __init__(self, *, path: Path | None = None, tls: ssl.SSLContext | None = None, script: Script | None = None):
        self.script: Script = script or {}
        self.requests: list[Request] = []
        self.accepted = 0
        """Connections so far."""
        self.open: set[Peer] = set()
        self.left = 0
        """Connections the client ended while an answer was due or under way."""
        self.sent = 0
        """Bytes of answers handed to the kernel or waiting for it."""
        self.blocked = 0
        """Times a writer had to wait since the client did not read."""
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

    # ---- answering

    async def answer(self, request: Request) -> None:
        script = self.script_of(request)
        self.answers += 1
        self.written = 0
        if script.get("stale") and self.answers > 1:
            self.transport.close()
            return
        await asyncio.sleep(script.get("delay_s", 0))
        if script.get("never"):
            await asyncio.Event().wait()
        try:
            await self.send_all(script)
        except ConnectionAbortedError:  # the script ended it
            return
        if script.get("close") or script.get("eof"):
            self.transport.close()
        elif self.buffer:
            asyncio.get_running_loop().call_soon(self.begin)

    def script_of(self, request: Request) -> Script:
        text = request.headers.get("x-script", "")
        script = dict(self.upstream.script)
        if text:
            script = json.loads(text) if text.startswith("{") else {text: 0 if text in ("cut", "reset") else True}
        if script.keys() & {"raw", "body", "chunks", "stream", "endless"}:
            return script
        asked = json.loads(request.body) if request.body.startswith(b"{") else {}
        if asked.get("stream"):
            return {"stream": ["Hel", "lo", " wörld"], **script}
        return {"body": completion(), **script}

    async def send_all(self, script: Script) -> None:
        if "raw" in script:
            await self.send(script["raw"].encode("latin-1"), script)
            return
        for status in script.get("inform", ()):
            await self.send(f"HTTP/1.1 {status} Wait\r\nx-early: yes\r\n\r\n".encode(), script)
        pieces = [piece.encode() for piece in script.get("chunks", ())]
        if "stream" in script:
            pieces = events(script["stream"])
        body = script.get("body", "").encode()
        framing = "transfer-encoding: chunked\r\n" if pieces or "endless" in script else ""
        if not framing and not script.get("eof"):
            framing = f"content-length: {script.get('length', len(body))}\r\n"
        kind = "text/event-stream" if "stream" in script else "application/json"
        headers = {"content-type": kind, "x-peer": str(self.number), **script.get("headers", {})}
        if script.get("close"):
            headers["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {script.get('status', 200)} Fine\r\n{lines}{framing}\r\n".encode("latin-1")
        if "body_delay_s" in script or pieces:
            await self.send(head, script)
            await asyncio.sleep(script.get("body_delay_s", 0))
            head = b""
        if not pieces and "endless" not in script:
            await self.send(head + body, script)
            return
        for piece in pieces:
            await self.send(b"%x\r\n%b\r\n" % (len(piece), piece), script)
            await asyncio.sleep(script.get("pause_s", 0))
        while "endless" in script:
            await self.send(head + b"%x\r\n%b\r\n" % (script["endless"], b"x" * script["endless"]), script)
            head = b""
        await self.send(b"0\r\n\r\n", script)

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
            await asyncio.sleep(0)
        if ends:
            self.end(reset="reset" in script)

    def end(self, reset: bool) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        else:
            self.transport.close()
        raise ConnectionAbortedError


def completion(text: str = "Hello.") -> str:
    """A chat completion as vLLM answers it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    return json.dumps({"id": "c1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})


def events(deltas: list[str], *, usage: bool = True) -> list[bytes]:
    """The events of a streamed chat completion as vLLM sends them, `[DONE]` included."""

    def event(choices: list[Any], **more: Any) -> bytes:
        document = {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}
        return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()

    def choice(delta: dict[str, str], finish: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    found = [event(choice({"role": "assistant", "content": ""}))]
    found += [event(choice({"content": delta})) for delta in deltas]
    found.append(event(choice({}, "stop")))
    if usage:
        count = len(deltas)
        found.append(event([], usage={"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}))
    return [*found, b"data: [DONE]\n\n"]
