"""An upstream's answer: begun before it is chosen, then passed on, and always closed.

`begin` is the commit point: until the first delta of content, reasoning or tool call another model may still answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, Protocol

import orjson

from router.errors import UpstreamFailed
from router.records import LIKELY_BYTES_PER_TOKEN, Attempt, Candidate, Met, Route, Usage
from router.upstream.address import UpstreamError
from router.upstream.events import LARGE, is_json, usage_of
from router.upstream.response import Response
from router.upstream.said import Kept, Said
from router.upstream.sse import StreamError, StreamReader
from serving.catalogue import Model

MOST_BEFORE = 16 * 1024 * 1024
"""Bytes of a stream that are kept until its first delta; responses repeat the whole request there."""
MOST_STREAM = 1024 * 1024 * 1024
"""Bytes of a stream in all. A deadline alone bounds nothing that comes fast. It is sixteen times a whole answer, since
each token comes in an event of its own: a thousand tokens a second for ten minutes, each with 20 log probabilities
(1.7 KB an event), do not reach it."""
NUMBER = re.compile(rb'"sequence_number":\s*(\d{1,9})\b')
"""The number of an event of responses. Inside a text the quotes would be escaped."""
FEW = 16
"""Deltas up to here say nothing of a wrong count: a stream has some that carry no token."""
End = Literal["ended", "cut", "left"]
"""How an answer ended: whole, broken off by the upstream, or before its end and not for the upstream's fault."""


class Log(Protocol):
    """Where an attempt is written down; the ledger's entry is one."""

    attempts: list[Attempt]
    usage: Usage
    model: Model | None
    outcome: str
    status: int
    estimated_output: int
    queued_ms: float | None
    trigger: str
    check: str
    finish: str
    replaced: bool
    met: Met | None

    def first_byte(self) -> None: ...
    async def sending(self, claims: dict[str, Any]) -> None: ...


class Unusable(Exception):
    """The answer ended or failed before its first delta; the text says how."""

    def __init__(self, text: str, *, full: bool = False, wrong: str = "") -> None:
        super().__init__(text)
        self.full, self.wrong = full, wrong
        """Whether the upstream said that it takes no more now; and its words, where the request itself is wrong."""


class Answer:
    """One answer with status 200. Take it with `begin`, then `whole`, `relay` or `parts`; `close` whatever happens."""

    __slots__ = (
        "_begun", "_closed", "_done", "_end", "_ends", "_kept", "_last", "_log", "_problem", "_reader", "_rename",
        "_response", "_route", "_size", "_unread", "candidate", "content_type", "dropped", "status", "stream",
    )  # fmt: skip

    def __init__(
        self, candidate: Candidate, response: Response, log: Log, *, stream: bool, hide_usage: bool,
        dropped: tuple[str, ...], route: Route = "chat/completions", done: Callable[[End], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`done` is told once how it ended, when it is closed: then its place is free."""
        self.candidate, self.stream, self.dropped = candidate, stream, dropped
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        self._response, self._log, self._route, self._done = response, log, route, done
        self._reader = StreamReader(route, hide_usage=hide_usage) if stream else None
        self._begun = self._last = b""
        self._kept: Kept | None = None
        self._ends: Callable[[], None] = lambda: None
        self._size = 0
        """Bytes that came after the commit point."""
        self._problem: UpstreamFailed | None = None
        self._end: End = "left"
        self._unread = False
        """Whether it was cut since its caller took it too slowly: a cut to the caller, no fault of the endpoint."""
        self._closed = False
        self._rename = _rename(candidate)

    async def begin(self) -> None:
        """Read up to the commit point: a stream's first delta, or the whole of any other body.

        Raises UpstreamError and Unusable; nothing has been passed on then, and the caller closes the response.
        """
        reader = self._reader
        if reader is None:
            body = await self._response.read()
            if len(body) > LARGE:
                await asyncio.sleep(0)  # to put it together, to look at it and to write it are a turn of the loop each
            self._take(body)
            if len(body) > LARGE:
                await asyncio.sleep(0)
            return
        begun: list[bytes] = []
        size = 0
        try:
            async for data in self._response.chunks():
                begun.append(relayed := self._feed(data))
                size += len(relayed)
                if reader.started or reader.done:
                    self._begun = b"".join(begun)
                    return
                if size > MOST_BEFORE:
                    raise Unusable("it sent very much before its first delta")
                if reader.error is not None:
                    raise Unusable("it reported an error", full=reader.full, wrong=reader.error if reader.wrong else "")
        except StreamError as broken:
            raise Unusable(str(broken)) from broken
        raise Unusable("the stream ended before its first delta")

    def _take(self, body: bytes) -> None:
        """The whole body of an answer that is no stream. Raises Unusable."""
        log = self._log
        if not body.lstrip().startswith(b"{"):
            raise Unusable("it is no JSON object")
        usage = usage_of(body)
        if usage.prompt is None and usage.output is None and not is_json(body):
            raise Unusable("it is no whole JSON object")
        if self._route == "messages/count_tokens":
            usage = Usage(0, 0)  # a tokenizer was at work, and no model
        elif usage.output is None and self._route != "embeddings":
            log.estimated_output = max(1, len(body) // LIKELY_BYTES_PER_TOKEN)
        log.usage = usage
        self._begun, self._end = self._renamed_whole(body), "ended"

    @property
    def trigger(self) -> str:
        """Why another model came first than without load and wishes; "" where none did."""
        return self._log.trigger

    @property
    def check(self) -> str:
        """`passed` or `failed` where it was held against what was asked for."""
        return self._log.check

    @property
    def cut(self) -> bool:
        """Whether it was broken off: its last event says so, and nobody may take it for whole."""
        return self._end == "cut"

    @property
    def next_number(self) -> int:
        """The number that the next event of a stream has, where its events are numbered: those of responses."""
        numbers = NUMBER.findall(self._last)
        return int(numbers[-1]) + 1 if numbers else 0

    @property
    def usage(self) -> Usage:
        """The tokens it took, as far as they are known by now; of a stream once it is closed."""
        return self._log.usage

    @property
    def pieces(self) -> int:
        """Of a stream: how many pieces of what the model wrote have come by now, about a token each."""
        return 0 if self._reader is None else self._reader.events

    def whole(self) -> bytes:
        """The body of an answer that is no stream, once it has begun; of a stream what was read by then."""
        return self._begun

    def keep(self, ends: Callable[[], None] = lambda: None) -> None:
        """Keep what it says, for `said`. Once it has begun, and before it is passed on.

        `ends` is told before the last of it goes out: once or more often, and not where nobody took it to its end.
        """
        self._ends = ends
        if self.stream and self._kept is None:
            self._kept = Kept(self._route)
            self._kept.add(self._begun)

    def said(self) -> Said:
        """What it has said by now; of a stream since `keep` was called."""
        return Said(self._route, b"" if self.stream else self._begun, self._kept)

    def passed_on(self) -> bytes:
        """The body of an answer that is no stream, which goes to the caller now."""
        self._ends()
        self._log.first_byte()
        return self._begun

    async def relay(self, write: Callable[[bytes], bool]) -> None:
        """Hand every piece for the caller to `write`, as soon as it is there, the last one included.

        `write` runs inside the upstream socket's callback: it must not raise, and says whether more is welcome; where
        it is not, `resume` asks for more. The way it ended goes into the log, and usage when it is closed.
        """
        self._log.first_byte()
        if self._reader is None or self._reader.done:
            self._ends()
        if self._begun and not write(self._begun):
            self._response.pause()
        if self._reader is None or self._reader.done:
            self._finish()
            return

        def take(data: bytes) -> None:
            relayed = self._next(data)
            if relayed and not write(relayed):
                self._response.pause()

        try:
            await self._response.forward(take)
        except UpstreamError as failed:
            self._broke_off(failed)
        if last := self._finish():
            write(last)

    def resume(self) -> None:
        """More is welcome again, after `write` of `relay` has said that it is not."""
        self._response.resume()

    async def parts(self) -> AsyncIterator[bytes]:
        """The same as `relay`, as pieces to iterate over."""
        self._log.first_byte()
        reader = self._reader
        if reader is None or reader.done:
            self._ends()
        if self._begun:
            yield self._begun
        if reader is None:
            return
        try:
            while not (reader.done or self._problem):
                data = await anext(self._response, b"")
                if not data:
                    break
                if relayed := self._next(data):
                    yield relayed
        except UpstreamError as failed:
            self._broke_off(failed)
        if last := self._finish():
            yield last

    def close(self) -> None:
        """Let go of the connection; one that was not read to its end is closed, so that the engine stops."""
        if self._closed:
            return
        self._closed = True
        reader = self._reader
        if reader is not None:
            # Not in `relay`: where the caller leaves, that ends only after the ledger's entry is closed.
            log = self._log
            log.usage, log.estimated_output = _believed(reader.usage, reader.events), reader.events
            log.finish, log.replaced = reader.finish or ("missing" if reader.done else ""), reader.replaced
        if self._end == "ended":
            self._response.finish()  # the connection can be used again once its last bytes have come
        else:
            self._response.close()
        self._done("left" if self._unread else self._end)

    # ---- a stream on its way

    def _feed(self, data: bytes) -> bytes:
        """What of these bytes is for the caller; and whether they brought the answer on. Raises StreamError."""
        reader, progress = self._reader, self._response.progress
        assert reader is not None
        events, started = reader.events, reader.started
        relayed = reader.feed(data)
        if reader.events != events and (socket := self._response.socket) is not None:
            progress.heard_at = socket.loop.time()
        if reader.started and not started:
            progress.delta(self._now())
        if relayed and self._route == "responses":
            self._last = relayed
        return relayed if self._rename is None else self._renamed(relayed)

    def _next(self, data: bytes) -> bytes:
        """As `_feed`, after the commit point: what goes wrong becomes the stream's last event."""
        reader = self._reader
        assert reader is not None
        if reader.done or self._problem is not None:
            return b""
        self._size += len(data)
        if self._size > MOST_STREAM:
            self._fail(f"The upstream's stream was cut: it is larger than {MOST_STREAM} bytes.")
            self._response.close()
            return b""
        try:
            relayed = self._feed(data)
        except StreamError as broken:
            self._fail("An event of the upstream could not be read.", broken.code)
            self._response.close()
            return b""
        if reader.done:
            self._ends()
            self._response.finish()
        elif reader.error is not None:
            self._fail("The upstream reported an error and ended the stream.")
            self._response.close()
        if relayed and self._kept is not None:
            self._kept.add(relayed)
        return relayed

    def _broke_off(self, failed: UpstreamError) -> None:
        if self._problem is None and not (self._reader and self._reader.done):
            self._unread = failed.kind == "unread"
            slow = "The stream was cut: it was not read to its end within router.total_timeout_s."
            self._fail(slow if self._unread else f"The upstream's stream was cut ({failed.kind}).")

    def _fail(self, text: str, code: str = "") -> None:
        """Nobody else can go on here: the caller must see that this is not the whole answer."""
        if self._problem is None:
            cut = UpstreamFailed(text, code="upstream_interrupted")
            self._problem = UpstreamFailed(text, code=code) if code else cut

    def _finish(self) -> bytes:
        """The last bytes: what was kept back, or the error event that says it is not the whole answer."""
        reader, rest = self._reader, b""
        if reader is None:
            return b""
        self._ends()
        if self._problem is None and not reader.done:
            try:
                rest = self._renamed(reader.end())
                self._last = rest or self._last
                if rest and self._kept is not None:
                    self._kept.add(rest)
            except StreamError:
                self._fail("The upstream ended the stream inside an event.")
            if reader.error is not None:
                self._fail("The upstream reported an error and ended the stream.")
            elif not reader.done:
                self._fail("The upstream ended the stream before its end.")
        self._end = "ended" if self._problem is None else "cut"
        if self._problem is None:
            return rest
        self._log.outcome = "cut"
        return rest + self._problem.event(self._route, self.next_number)

    def _now(self) -> float:
        socket = self._response.socket
        return socket.loop.time() if socket is not None else 0.0

    def _renamed_whole(self, body: bytes) -> bytes:
        """As `_renamed`; in a whole answer the arguments of a tool may be no text, and hold the same field."""
        named = [(at, there, here) for there, here in self._rename or () if (at := body.find(there)) >= 0]
        if not named:
            return body
        at, there, here = named[0]
        if len(named) == 1 and body.find(there, at + 1) < 0:  # nearly always
            whole = memoryview(body)
            return b"".join((whole[:at], here, whole[at + len(there) :]))
        found, endpoint = orjson.loads(body), self.candidate.endpoint
        if found.get("model") == endpoint.served:
            found["model"] = self.candidate.model.name
        return orjson.dumps(found)

    def _renamed(self, data: bytes) -> bytes:
        """With the name the model has here, where the server has another one for it."""
        if self._rename is not None and data:
            for there, here in self._rename:
                data = data.replace(there, here)
        return data


def _rename(candidate: Candidate) -> list[tuple[bytes, bytes]] | None:
    """What stands for the model in an answer, in both ways JSON is written here, and what the caller is shown."""
    served, name = candidate.endpoint.served, candidate.model.name
    if not served or served == name:
        return None
    # Inside a text the quotes would be escaped, so a model's own words are never changed.
    there, here = orjson.dumps(served), orjson.dumps(name)
    return [(field + there, field + here) for field in (b'"model":', b'"model": ')]


def _believed(usage: Usage, events: int) -> Usage:
    """The usage a stream stated; without an output count far below what was seen of it, which cannot be true."""
    if usage.output is not None and events > FEW and usage.output < events // 2:
        return usage._replace(output=None)
    return usage
