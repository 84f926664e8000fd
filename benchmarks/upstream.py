"""`python -m benchmarks.upstream`: an upstream that always answers the same, as cheaply as Python can.

It reads as little of a request as it may: whether it is complete, whether it asks for a stream, and a few words that a
prompt may hold and that every gateway passes on: `[silent]` has a stream fall silent after its first text, `[late]` has
any answer begin only after a while, `[stamp]` has a stream's first text say when it was sent. With `--slots` it takes
so many requests at once for a fixed time each, lets as many wait as `--queue` says and refuses the rest as vLLM does.
With `--mark` it counts the requests that hold this text, and says at /seen how many there were. With `--as-asked` a
stream has as many chunks as its request's `max_tokens` allows.
It answers what serving asks of an attached server (/v1/models, /health, /metrics); no model is anywhere near.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAMS = re.compile(rb'"stream": ?true')
_MOST = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
SILENT, LATE, STAMP = "[silent]", "[late]", "[stamp]"
STAMPED = b"at%018.6f;"
"""Seconds of the monotonic clock, which all processes of a machine share."""
LATE_S = 0.3


class Script:
    """The answers, made once. Sizes in bytes, the pause in seconds."""

    def __init__(
        self, size: int = 330, chunks: int = 100, chunk_size: int = 190, pause_s: float = 0.01, idle_s: float = 0.0, *,
        first_s: float = 0.0, as_asked: bool = False, prompt_tokens: int = 40, mark: str = "",
    ) -> None:  # fmt: skip
        self.pause_s, self.idle_s, self.first_s = pause_s, idle_s, first_s
        self.as_asked, self.mark = as_asked, mark.encode()
        self.requests = self.marked = self.marked_bytes = 0
        """Posted since the start; those that hold the mark, and the bytes of these."""
        self.whole = _answer(b"application/json", _padded(_completion, size))
        begin = _event({"role": "assistant", "content": ""}, None, 0)
        events = [_event({"content": "w"}, None, chunk_size) for _ in range(chunks)]
        self._texts, self._prompt_tokens = chunks, prompt_tokens
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.pieces = [_chunk(event) for event in events]
        # The first text comes at once: a time to first token is then that of whatever stands in between.
        self.pieces[0] = head + _chunk(begin) + self.pieces[0]
        self._shorter: dict[int, list[bytes]] = {}
        self.pieces += self._end(chunks)
        entry = {"id": "bench", "object": "model", "max_model_len": 32768}
        self.pages = {
            b"/v1/models": _answer(b"application/json", json.dumps({"object": "list", "data": [entry]}).encode()),
            b"/health": _answer(b"application/json", b"{}"),
            b"/metrics": _answer(b"text/plain", b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),
        }
        error = {"message": "too many requests wait", "type": "ServiceUnavailableError", "param": None, "code": 503}
        full = json.dumps({"error": error}).encode()
        self.full = _answer(b"application/json", full, b"503 Service Unavailable")

    def _end(self, texts: int) -> list[bytes]:
        """The pieces after so many texts."""
        total = self._prompt_tokens + texts
        usage = {"prompt_tokens": self._prompt_tokens, "completion_tokens": texts, "total_tokens": total}
        said = {"id": "c1", "object": "chat.completion.chunk", "model": "bench", "choices": [], "usage": usage}
        # What ends a stream comes with its last event, as vLLM sends it.
        return [_chunk(_event({}, "stop", 0)), _chunk(_data(said)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]

    def asked(self, request: bytes, begin: int) -> list[bytes]:
        """The pieces of a stream that answers this request, whose body begins there."""
        found = _MOST.search(request, begin) if self.as_asked else None
        texts = self._texts if found is None else max(1, min(int(found[1]), self._texts))
        if texts == self._texts:
            return self.pieces
        if texts not in self._shorter:
            self._shorter[texts] = [*self.pieces[:texts], *self._end(texts)]
        return self._shorter[texts]

    def look(self, request: bytes) -> None:
        """Count a request, and whether it holds the mark."""
        self.requests += 1
        if self.mark and self.mark in request:
            self.marked += 1
            self.marked_bytes += len(request)

    def seen(self) -> bytes:
        """The page that says what was counted."""
        counted = {"requests": self.requests, "marked": self.marked, "marked_bytes": self.marked_bytes}
        return _answer(b"application/json", json.dumps(counted).encode())


class Capacity:
    """What the upstream can do: `slots` requests at once for `service_s` each, `queue` that wait; 0 slots: no bound."""

    def __init__(self, slots: int = 0, service_s: float = 0.0, queue: int = 0) -> None:
        self._slots, self._service_s, self._queue = slots, service_s, queue
        self._busy = 0
        self._waiting: deque[Callable[[], bool]] = deque()

    def admit(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], bool]) -> bool:
        """Whether it is taken. `begin` answers it when its time is over; false where its client has left."""
        if not self._slots:
            return begin()
        if self._busy < self._slots:
            self._serve(loop, begin)
            return True
        if len(self._waiting) >= self._queue:
            return False
        self._waiting.append(begin)
        return True

    def _serve(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], bool]) -> None:
        self._busy += 1
        loop.call_later(self._service_s, self._served, loop, begin)

    def _served(self, loop: asyncio.AbstractEventLoop, begin: Callable[[], bool]) -> None:
        begin()
        self._busy -= 1
        if self._waiting:
            self._serve(loop, self._waiting.popleft())


class Peer(asyncio.Protocol):
    """One connection."""

    def __init__(self, script: Script, loop: asyncio.AbstractEventLoop, capacity: Capacity | None = None) -> None:
        self._script, self._loop, self._capacity = script, loop, capacity or Capacity()
        self._buffer = b""
        self._pieces: list[bytes] = []
        self._gone = False
        self._asked = loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        if self._script.idle_s:
            self._look()

    def _look(self) -> None:
        """Close it once nothing was asked for a while, which is taken to be longer than any answer."""
        if self._loop.time() - self._asked >= self._script.idle_s:
            self._transport.close()
        elif not self._gone:
            self._loop.call_later(self._script.idle_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._asked = self._loop.time()
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
            page = self._script.seen() if path == b"/seen" else self._script.pages.get(path)
            self._transport.write(page or _answer(b"text/plain", b"", b"404 Not Found"))
            return
        self._script.look(request)
        streams, silent = bool(_STREAMS.search(request, end)), SILENT.encode() in request
        self._pieces = self._script.asked(request, end) if streams else []
        if streams and STAMP.encode() in request:
            self._stamp()
        elif LATE.encode() in request:
            self._timer = self._loop.call_later(LATE_S, self._begin, streams, silent)
        elif not self._capacity.admit(self._loop, lambda: self._begin(streams, silent)):
            self._transport.write(self._script.full)

    def _begin(self, streams: bool, silent: bool) -> bool:
        if self._gone:
            return False
        if silent:
            self._transport.write(self._script.pieces[0])
        elif streams and self._script.first_s:
            self._timer = self._loop.call_later(self._script.first_s, self._stream, 0)
        elif streams:
            self._stream(0)
        else:
            self._transport.write(self._script.whole)
        return True

    def _stamp(self) -> None:
        """Stream, and say in the first text when that was; it stays as long as it is."""
        stamp = STAMPED % time.monotonic()
        self._transport.write(self._script.pieces[0].replace(b"w" * len(stamp), stamp, 1))
        self._timer = self._loop.call_later(self._script.pause_s, self._stream, 1)

    def _stream(self, number: int) -> None:
        self._transport.write(self._pieces[number])
        if number + 1 < len(self._pieces):
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


async def serve(script: Script, port: int, capacity: Capacity) -> None:
    """Answer on loopback until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(script, loop, capacity), "127.0.0.1", port, backlog=4096)
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
    parser.add_argument("--slots", type=int, default=0, help="requests it takes at once; 0: no bound")
    parser.add_argument("--service-ms", type=float, default=100.0, help="with --slots: how long each takes")
    parser.add_argument("--queue", type=int, default=0, help="with --slots: requests that may wait")
    parser.add_argument("--idle-s", type=float, default=0.0, help="close a connection idle for so long; 0: never")
    parser.add_argument("--first-ms", type=float, default=0.0, help="until a stream's first text")
    parser.add_argument("--as-asked", action="store_true", help="a stream has the chunks that max_tokens allows")
    parser.add_argument("--prompt-tokens", type=int, default=40, help="what its usage says of every prompt")
    parser.add_argument("--mark", default="", help="count the requests that hold this text")
    given = parser.parse_args()
    script = Script(
        given.size, given.chunks, given.chunk_size, given.pause_ms / 1000, given.idle_s,
        first_s=given.first_ms / 1000, as_asked=given.as_asked, prompt_tokens=given.prompt_tokens, mark=given.mark,
    )  # fmt: skip
    gc.set_threshold(50_000)  # a collection would look like the gateway's delay
    uvloop.run(serve(script, given.port, Capacity(given.slots, given.service_ms / 1000, given.queue)))


if __name__ == "__main__":
    main()
