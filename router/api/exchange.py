"""One request and its answer: what is written to the caller, in which order, and that it is one answer only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from router.api import answers
from router.api.heads import Head
from router.api.idempotency import Kept
from router.errors import HeadgateError, WrongMethod
from router.ledger.rates import Rates
from router.pipeline import Answer
from router.records import Caller, Decision

NOBODY = Head()
"""Stands in for the head of a request that could not be read."""


class Line(Protocol):
    """The connection to the caller."""

    keep: bool
    """Whether another request may follow on it."""
    paused: bool
    """Whether the client is behind, so that no more is welcome."""
    resumes: Callable[[], None] | None
    """What is called once it has caught up."""

    def write(self, data: bytes) -> None: ...
    def watch(self) -> None: ...


class Exchange:
    """One request being answered. For the pipeline it is the reply."""

    __slots__ = (
        "_decision", "_line", "_rates", "broken", "caller", "head", "id", "kept", "reply", "route", "started",
        "streams", "worked",
    )  # fmt: skip

    def __init__(self, line: Line, rates: Rates, request_id: str) -> None:
        self._line, self._rates, self.id = line, rates, request_id
        self.head, self.route = NOBODY, ""
        self.caller: Caller | None = None
        """Who asks, once that is known."""
        self.streams = False
        """Whether a stream was asked for: it is kept alive while nothing comes."""
        self.started = False
        """Whether something of the answer was written."""
        self.broken = False
        """Whether the answer ended before its end: the connection ends with it, so that nobody takes it for whole."""
        self.reply: Answer | None = None
        """What the upstream answered."""
        self._decision: Decision | None = None
        self.worked = False
        """Whether a model was given the request, so that it may have worked on it."""
        self.kept: Kept | None = None
        """What was answered, where it is to be given again."""

    def whole(self, status: int, lines: bytes, body: bytes, *, request_id: str = "") -> None:
        """A whole answer, head and body in one write."""
        empty, told = self.head.method == "HEAD", lines + self._rate_lines()
        self.started = True
        answer = answers.whole(status, told, request_id or self.id, body, keep=self._line.keep, empty=empty)
        self._line.write(answer)
        self.kept = Kept(status, lines, self.id, body)

    def repeat(self, kept: Kept) -> None:
        """Answer as it was answered before."""
        lines = kept.lines + answers.lines([(b"x-headgate-replayed", b"true")])
        self.whole(kept.status, lines, kept.body, request_id=kept.request_id)

    def fail(self, error: HeadgateError) -> None:
        """Answer with `error`; in a stream that has begun it is the last event, and the connection ends."""
        if self.started:
            if self.streams and not self.broken:
                self._piece(error.event(self.route, self.reply.next_number if self.reply else 0))
            self.broken = True
            return
        lines = answers.JSON + answers.lines(error.headers())
        if isinstance(error, WrongMethod) and self.route:
            lines += b"allow: POST\r\n"
        self.whole(error.status, lines, error.envelope(self.route))

    def decided(self, decision: Decision) -> None:
        """Who may answer is known by now, and who does is not."""
        self._decision = decision

    def stream(self) -> None:
        """From now on the answer is a stream: should nothing come for long, it is kept alive."""
        self.streams = True
        self._line.watch()

    def keep_alive(self) -> None:
        """Nothing has come for long: say that the answer is still on its way."""
        if not self.started:
            why = () if self._decision is None else _why(self._decision)
            self._begin(answers.fixed_lines(answers.EVENTS, why, stream=True))
        self._piece(answers.KEEP_ALIVE)

    def ping(self) -> None:
        """Write what changes nothing for a client that is there, and is refused by the network if it has gone."""
        if not self.started:
            self._line.write(answers.CONTINUE)
        elif self.streams:
            self._piece(answers.KEEP_ALIVE)

    async def send(self, answer: Answer, decision: Decision) -> None:
        """Relay: the head goes out with the first bytes, so that a failure before them is still an error answer."""
        self.reply, line, lines = answer, self._line, _lines(answer, decision)
        if not answer.stream:
            self.whole(answer.status, lines, answer.passed_on())
            return
        old, frame = self.head.old, answers.chunk

        def piece(part: bytes) -> bool:
            if self.started:
                line.write(part if old else frame(part))
            else:
                self._begin(lines, part)
            return not line.paused

        line.resumes = answer.resume
        try:
            await answer.relay(piece)
        finally:
            line.resumes = None
        if answer.cut:
            self.broken = True
        elif not self.head.old:
            line.write(answers.LAST_CHUNK)

    def _begin(self, lines: bytes, part: bytes = b"") -> None:
        """The head of a stream, with its first piece."""
        self.started, chunked = True, not self.head.old
        head = answers.stream_head(lines + self._rate_lines(), self.id, keep=self._line.keep, chunked=chunked)
        self._line.write(head + (answers.chunk(part) if chunked and part else part))

    def _piece(self, part: bytes) -> None:
        self._line.write(part if self.head.old else answers.chunk(part))

    def _rate_lines(self) -> bytes:
        """What is left to the caller of its limits, where it has any."""
        caller = self.caller
        if caller is None or (caller.requests_per_minute is None and caller.tokens_per_minute is None):
            return b""
        return answers.lines(self._rates.headers(caller, time.monotonic()))


def _why(decision: Decision) -> tuple[tuple[str, str], ...]:
    """What is known before anybody has answered."""
    return ("x-headgate-lane", decision.lane), ("x-headgate-reason", decision.reason)


def _lines(answer: Answer, decision: Decision) -> bytes:
    """Who answered, and why."""
    model = answer.candidate.model
    fields = [
        ("x-headgate-model", model.name),
        ("x-headgate-place", model.place),
        *_why(decision),
    ]
    if answer.trigger:
        fields.append(("x-headgate-trigger", answer.trigger))
    if answer.check:
        fields.append(("x-headgate-check", answer.check))
    if answer.dropped:
        fields.append(("x-headgate-dropped", ",".join(answer.dropped)))
    return answers.fixed_lines(answer.content_type, tuple(fields), answer.stream)
