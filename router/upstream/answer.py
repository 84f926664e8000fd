"""An upstream's answer: begun before it is chosen, then passed on, and always closed.

`begin` is the commit point: until the first delta of content, reasoning or tool call another model may still answer.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Protocol

from router.errors import UpstreamFailed
from router.records import Attempt, Candidate, Usage
from router.upstream.connection import Response, UpstreamError
from router.upstream.sse import StreamError, StreamReader, usage_of
from serving.catalogue import Model


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

    def first_byte(self) -> None: ...
    async def durable(self) -> None: ...


class Unusable(Exception):
    """The answer ended or failed before its first delta; the text says how."""

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full
        """Whether the upstream said that it takes no more now."""


class Answer:
    """One answer with status 200. Take it with `begin`, then `parts`; `close` whatever happens."""

    def __init__(
        self, candidate: Candidate, response: Response, log: Log, *, stream: bool, hide_usage: bool,
        dropped: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.candidate, self.stream, self.dropped = candidate, stream, dropped
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        self._response, self._log, self._cleanup = response, log, ExitStack()
        self._reader = StreamReader(hide_usage=hide_usage)
        self._chunks = response.chunks()
        self._begun: list[bytes] = []

    async def begin(self) -> None:
        """Read up to the commit point: a stream's first delta, or the whole of any other body.

        Raises UpstreamError and Unusable; nothing has been passed on then, and the caller closes the response.
        """
        if not self.stream:
            body = await self._response.read()
            if not body.lstrip().startswith(b"{"):
                raise Unusable("it is no JSON object")
            self._begun, self._log.usage = [body], usage_of(body)
            return
        try:
            async for data in self._chunks:
                self._begun.append(self._reader.feed(data))
                if self._reader.started or self._reader.done:
                    return
                if self._reader.error is not None:
                    raise Unusable(self._reader.error, full=self._reader.full)
        except StreamError as broken:
            raise Unusable(str(broken)) from broken
        raise Unusable("the stream ended before its first delta")

    @property
    def trigger(self) -> str:
        """Why another model came first than without load and wishes; "" where none did."""
        return self._log.trigger

    @property
    def check(self) -> str:
        """`passed` or `failed` where it was held against what was asked for."""
        return self._log.check

    def whole(self) -> bytes:
        """The body that was read by `begin`; all of it, where it is no stream."""
        return b"".join(self._begun)

    def keep(self, cleanup: ExitStack) -> None:
        """Take over what is to be closed with this answer."""
        self._cleanup = cleanup

    async def parts(self) -> AsyncIterator[bytes]:
        """The bytes for the caller, as they come; the way it ended goes into the log, and usage when it is closed."""
        self._log.first_byte()
        if begun := self.whole():
            yield begun
        if self.stream:
            async for relayed in self._rest():
                yield relayed

    async def _rest(self) -> AsyncIterator[bytes]:
        reader, log = self._reader, self._log
        try:
            async for data in self._chunks:
                if relayed := reader.feed(data):
                    yield relayed
            if rest := reader.end():
                yield rest
            problem = reader.error or ("" if reader.done else "The upstream ended the stream before its end.")
        except (UpstreamError, StreamError) as failed:
            problem = f"The upstream's stream was cut: {failed}"
        if problem:
            # Nobody else can go on here: the caller must see that this is not the whole answer.
            log.outcome = "cut"
            if reader.error is None:
                yield UpstreamFailed(problem, code="upstream_interrupted").event()

    def close(self) -> None:
        """Let go of the connection; one that was not read to its end is closed, so that the engine stops."""
        if self.stream:
            # Not in `parts`: where the caller leaves, its generator ends only after the ledger's entry is closed.
            self._log.usage, self._log.estimated_output = self._reader.usage, self._reader.events
        self._response.close()
        self._cleanup.close()
