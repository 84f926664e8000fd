"""One request to an OpenAI-compatible address, and what came of it. Shared by the open and the closed loop."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from benchmarks.installation import Stop
from benchmarks.samples import Sample

WORDS = (
    "river gate water field stone mill boat bridge meadow winter summer letter market garden window copper silver "
    "paper number answer question morning evening village teacher doctor weather harvest island harbour ladder candle "
    "basket bottle kitchen engine wheel corner season valley forest mountain thunder shadow silence music story colour "
    "little heavy narrow bright hollow patient careful ancient ready open early late begin carry follow gather listen "
    "measure promise remember repair return travel wonder write count between under against toward without because"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked of whom."""

    url: str
    key: str = field(default="", repr=False)
    model: str = "auto"
    prompt_words: int = 60
    max_tokens: int = 64
    stream: bool = True
    seed: int = 1
    same_prompt: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the body."""

    def body(self, number: int) -> bytes:
        """The body of request `number`."""
        text = prompt(self.prompt_words, self.seed, 0 if self.same_prompt else number)
        said = {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": self.max_tokens}
        streamed = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return orjson.dumps({**said, **streamed, **self.extra})

    async def send(
        self, session: aiohttp.ClientSession, number: int, begin: float, scheduled: float, last: float
    ) -> Sample:
        """Ask once. `begin` is the run's start (time.monotonic); `scheduled` and `last` are seconds after it."""
        sent = time.monotonic() - begin
        seen = Seen()
        headers = {"content-type": "application/json", **self.headers}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        try:
            async with asyncio.timeout(max(0.0, last - sent)):
                url = f"{address(self.url)}/v1/chat/completions"
                # A redirect could lead to somebody else.
                async with session.post(url, data=self.body(number), headers=headers, allow_redirects=False) as answer:
                    seen.head(answer.status, answer.headers)
                    if answer.content_type == "text/event-stream":
                        async for data in answer.content.iter_any():
                            seen.piece(data, time.monotonic() - begin - sent)
                        seen.end()
                    else:
                        seen.whole(await answer.read())
        except TimeoutError:
            seen.error = "unfinished"
        except aiohttp.ClientConnectorError:
            seen.error = "no_connection"
        except (aiohttp.ClientError, OSError):
            seen.error = "cut"
        return seen.sample(number, scheduled, sent, time.monotonic() - begin)


class Seen:
    """What has been seen of one answer so far."""

    def __init__(self) -> None:
        self.error = ""
        self._status: int | None = None
        self._headers: Mapping[str, str] = {}
        self._first: float | None = None
        self._usage: Mapping[str, Any] = {}
        self._tail = b""
        self._done = False

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status, self._headers = status, headers

    def piece(self, data: bytes, at: float) -> None:
        """Some bytes of a stream, `at` seconds after the send."""
        *lines, self._tail = (self._tail + data).split(b"\n")
        for line in lines:
            # Every event is decoded until the first token; afterwards only those that say something else than text.
            if line.startswith(b"data:") and (self._first is None or b'"usage"' in line or b'"error"' in line):
                self._event(line[5:].strip(), at)
            elif line.startswith(b"data:") and line[5:].strip() == b"[DONE]":
                self._done = True

    def _event(self, text: bytes, at: float) -> None:
        if text == b"[DONE]":
            self._done = True
            return
        try:
            event = orjson.loads(text)
        except ValueError:
            self.error = "unreadable"
            return
        if event.get("error"):
            self.error = str(event["error"].get("code") or "error_event")
        self._usage = event.get("usage") or self._usage
        if self._first is None and any(_says(choice.get("delta") or {}) for choice in event.get("choices") or ()):
            self._first = at

    def end(self) -> None:
        """The stream is over; one that did not say so was cut."""
        if not self._done and not self.error:
            self.error = "cut"

    def whole(self, body: bytes) -> None:
        """A whole answer that is no stream."""
        try:
            document = orjson.loads(body)
        except ValueError:
            document = {}
        if self._status == 200:
            self._usage = document.get("usage") or {}
            self.error = "" if document.get("choices") else "unreadable"
            return
        error = document.get("error") if isinstance(document, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        self.error = str(code or f"status {self._status}")

    def sample(self, number: int, scheduled: float, sent: float, ended: float) -> Sample:
        """The sample of all that was seen."""
        return Sample(
            number=number, scheduled_s=scheduled, sent_s=sent, ended_s=ended, status=self._status,
            first_token_s=self._first, prompt_tokens=self._usage.get("prompt_tokens"),
            output_tokens=self._usage.get("completion_tokens"), model=self._headers.get("x-headgate-model", ""),
            place=self._headers.get("x-headgate-place", ""), trigger=self._headers.get("x-headgate-trigger", ""),
            error=self.error,
        )  # fmt: skip


def _says(delta: Mapping[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls"))


def prompt(words: int, seed: int, number: int) -> str:
    """A text of so many words, the same for the same seed and number; others differ from their first word on.

    vLLM keeps the blocks of prompts it has seen: equal beginnings would cost next to nothing, unlike real requests.
    """
    source = random.Random(f"{seed}:{number}")
    return " ".join(source.choices(WORDS.split(), k=words))


def address(url: str) -> str:
    """The address without a final slash or /v1."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def check_address(url: str, anywhere: bool) -> None:
    """Raises Stop for an address that is none, or that is not on this machine unless `anywhere`."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
    except ValueError as broken:
        raise Stop(f"{url} is no address: {broken}") from broken
    if parts.scheme not in ("http", "https") or not host:
        raise Stop(f"{url} is no address; give http://HOST:PORT or https://HOST:PORT")
    if not anywhere and not loopback(host):
        raise Stop(
            f"{host} is not this machine, and a load must not hit somebody else by mistake; --anywhere allows it"
        )


def loopback(host: str) -> bool:
    """Whether this names this machine and nothing else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
