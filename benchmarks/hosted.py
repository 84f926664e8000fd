"""The hosted side of the overflow benchmark: a scripted provider of fixed speed, or a second real vLLM.

Both count what must never come: bytes of requests that hold a mark, which private ones do. For a provider that is ours
it looks itself; in front of a vLLM stands a relay that does.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.bare import vllm
from benchmarks.gateways import upstream
from benchmarks.installation import free_port

MODEL, PROVIDER = "far", "far"
PRICE = {"input": 2.0, "output": 10.0}
"""US dollars a million tokens: the list price of gpt-6-sol and of several others in November 2026."""
FIRST_MS, PAUSE_MS = 400.0, 15.0
"""Until the scripted provider's first text, and between two: some 65 tokens a second."""
CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Hosted:
    """A running provider."""

    port: int
    pids: tuple[int, ...]
    kind: str
    """What it is, for people."""
    model: str
    """Its own name for its model."""
    looks: Relay | None = None

    def seen(self) -> dict[str, int]:
        """Requests that came, and those that held the mark with their bytes. Raises OSError.

        A relay counts pieces as it reads them, so its bytes are those of the pieces that hold the mark.
        """
        if self.looks is not None:
            return self.looks.seen()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/seen")
            found: dict[str, int] = json.loads(connection.getresponse().read())
        return found

    def site(self, key: Path) -> dict[str, Any]:
        """What headgate.yaml says of it."""
        model = {
            "place": "hosted", "lanes": ["cheap", "frontier"], "context": 4096, "output": 256, "provider": PROVIDER,
            "provider_model": self.model, "abilities": ["chat"], "parameters": "vllm", "price": PRICE,
        }  # fmt: skip
        provider = {
            "enabled": True, "base_url": f"http://127.0.0.1:{self.port}/v1", "key_file": str(key),
            "private_ranges": ["127.0.0.0/8"],
        }  # fmt: skip
        return {"models": {MODEL: model}, "providers": {PROVIDER: provider}}


@contextlib.contextmanager
def scripted(mark: str, chunks: int, prompt_tokens: int) -> Iterator[Hosted]:
    """A provider that answers each request at the same speed, however many there are. Raises Stop."""
    words = (
        f"--first-ms={FIRST_MS}", f"--pause-ms={PAUSE_MS}", f"--chunks={chunks}", "--as-asked",
        f"--prompt-tokens={prompt_tokens}", f"--mark={mark}",
    )  # fmt: skip
    with upstream(*words) as behind:
        kind = f"scripted: first token after {FIRST_MS:g} ms, then one each {PAUSE_MS:g} ms, however many ask"
        yield Hosted(behind.port, (behind.pid,), kind, "bench")


@contextlib.contextmanager
def second(mark: str, at_once: int, limit: int) -> Iterator[Hosted]:
    """A second real vLLM with the same demo model, reached over TCP. Raises Stop."""
    with vllm("far", at_once, limit, tcp=True) as engine:
        port = urlsplit(engine.address).port or 0
        with relay(port, mark) as looks:
            yield Hosted(looks.port, tuple(engine.pids), f"a second {engine.package}", engine.name, looks)


class Relay:
    """Passes TCP on to a port of loopback, and looks for a mark in all that goes there. Runs in a thread of its own."""

    def __init__(self, target: int, mark: str) -> None:
        self.port = free_port()
        self._target, self._mark = target, mark.encode()
        self._requests = self._marked = self._bytes = 0

    def seen(self) -> dict[str, int]:
        return {"requests": self._requests, "marked": self._marked, "marked_bytes": self._bytes}

    async def serve(self, ready: threading.Event) -> None:
        """Answer until `stop` is called; `ready` is set once it does."""
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._passed, "127.0.0.1", self.port):
            ready.set()
            await self._over.wait()

    def stop(self) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._over.set)

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # it is stopped
            far, on = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pump(reader, on, look=True), self._pump(far, writer, look=False))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, look: bool) -> None:
        tail = b""
        try:
            while data := await source.read(CHUNK):
                if look:
                    self._look(tail, data)
                    tail = data[-len(self._mark) + 1 :]  # it may come in two pieces
                sink.write(data)
                await sink.drain()
        except OSError:  # one side has left; the other is told
            pass
        finally:
            sink.close()

    def _look(self, tail: bytes, data: bytes) -> None:
        self._requests += data.count(b"POST /")
        if self._mark in tail + data:
            self._marked += 1
            self._bytes += len(data)


@contextlib.contextmanager
def relay(target: int, mark: str) -> Iterator[Relay]:
    """A relay that runs until the block ends."""
    made, ready = Relay(target, mark), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(ready)), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield made
    finally:
        made.stop()
        thread.join(10)


def new_mark() -> str:
    """A text that stands nowhere else."""
    return f"mark {secrets.token_hex(12)}"
