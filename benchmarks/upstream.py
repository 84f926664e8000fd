"""`python -m benchmarks.upstream`: an upstream that always answers the same, as cheaply as Python can.

It reads as little of a request as it may: whether it is complete, and whether it asks for a stream. It answers what
serving asks of an attached server (/v1/models, /health, /metrics); no model is anywhere near.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from typing import Any, cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAMS = re.compile(rb'"stream": ?true')


class Script:
    """The answers, made once. Sizes in bytes, the pause in seconds."""

    def __init__(self, size: int = 330, chunks: int = 100, chunk_size: int = 190, pause_s: float = 0.01) -> None:
        self.pause_s = pause_s
        self.whole = _answer(b"application/json", _padded(_completion, size))
        begin = _event({"role": "assistant", "content": ""}, None, 0)
        events = [_event({"content": "w"}, None, chunk_size) for _ in range(chunks)]
        usage = {"prompt_tokens": 40, "completion_tokens": chunks, "total_tokens": 40 + chunks}
        events.append(_event({}, "stop", 0))
        events.append(_data({"id": "c1", "object": "chat.completion.chunk", "model": "bench", "choices": [],
                             "usage": usage}))  # fmt: skip
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.pieces = [_chunk(event) for event in events]
        # The first text comes at once: a time to first token is then that of whatever stands in between.
        self.pieces[0] = head + _chunk(begin) + self.pieces[0]
        # What ends a stream comes with its last event, as vLLM sends it.
        self.pieces[-1] += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        entry = {"id": "bench", "object": "model", "max_model_len": 32768}
        self.pages = {
            b"/v1/models": _answer(b"application/json", json.dumps({"object": "list", "data": [entry]}).encode()),
            b"/health": _answer(b"application/json", b"{}"),
            b"/metrics": _answer(b"text/plain", b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),
        }


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, script: Script, loop: asyncio.AbstractEventLoop) -> None:
        self._script, self._loop = script, loop
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            request, self._buffer = self._buffer[:whole], self._buffer[whole:]
            self._answer(request, end)

    def _answer(self, request: bytes, end: int) -> None:
        if request.startswith(b"GET "):
            path = request[4 : request.index(b" ", 4)]
            self._transport.write(self._script.pages.get(path, _answer(b"text/plain", b"", b"404 Not Found")))
        elif _STREAMS.search(request, end):
            self._stream(0)
        else:
            self._transport.write(self._script.whole)

    def _stream(self, number: int) -> None:
        self._transport.write(self._script.pieces[number])
        if number + 1 < len(self._script.pieces):
            self._timer = self._loop.call_later(self._script.pause_s, self._stream, number + 1)


def _completion(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52}
    return json.dumps(
        {"id": "c1", "object": "chat.completion", "created": 1, "model": "bench", "choices": [choice], "usage": usage}
    ).encode()


def _event(delta: dict[str, str], finish: str | None, size: int) -> bytes:
    def made(text: str) -> bytes:
        said = {**delta, "content": text} if "content" in delta and size else delta
        choice = {"index": 0, "delta": said, "logprobs": None, "finish_reason": finish}
        return _data({"id": "c1", "object": "chat.completion.chunk", "model": "bench", "choices": [choice]})

    return _padded(made, size)


def _padded(made: Any, size: int) -> bytes:
    """`made(text)` with a text so long that the whole has `size` bytes, where it is not longer anyway."""
    return cast(bytes, made("w" * max(1, size - len(made("")))))


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _answer(kind: bytes, body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (status, kind, len(body), body)


async def serve(script: Script, port: int) -> None:
    """Answer on loopback until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(script, loop), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size", type=int, default=330, help="bytes of an answer that is no stream")
    parser.add_argument("--chunks", type=int, default=100, help="chunks of a stream with text")
    parser.add_argument("--chunk-size", type=int, default=190, help="bytes of a chunk")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="between two chunks")
    given = parser.parse_args()
    script = Script(given.size, given.chunks, given.chunk_size, given.pause_ms / 1000)
    uvloop.run(serve(script, given.port))


if __name__ == "__main__":
    main()
