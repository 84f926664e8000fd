"""The inference routes as a raw ASGI application, in front of the FastAPI one: receive, authenticate, answer.

It speaks HTTP and OpenAI's error envelope; what to answer is the pipeline's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from router.api.body import parse, text_field
from router.api.callers import Headers, authenticate
from router.errors import BadRequest, HeadgateError, TooLarge, WrongMethod
from router.ledger.keys import Keyring
from router.pipeline import Answer, Pipeline
from router.records import Ask, Decision, Route
from serving.catalogue import DataClass

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES: dict[str, Route] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MAX_SESSION = 200
CHOICES = ("data_class", "escalate")
"""What a body may choose in `headgate: {…}`."""
LABEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
"""The form of a reason for escalation. It is written down, so it must not be able to hold text of the request."""
LOG = logging.getLogger("headgate.router")


class Inference:
    """Answers the inference routes; everything else goes on to `rest`."""

    def __init__(self, pipeline: Pipeline, keyring: Keyring, max_body: int, rest: App) -> None:
        self._pipeline, self._keyring, self._max_body, self._rest = pipeline, keyring, max_body, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = ROUTES.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._rest(scope, receive, send)
            return
        request_id = new_id()
        reply = HttpReply(send, request_id)
        try:
            await self._answer(scope, receive, reply, route, request_id)
        except HeadgateError as failed:
            await reply.fail(failed)
        except Exception:
            # The outermost handler: whatever it was, the caller gets one well-formed answer and no inner text.
            LOG.exception("request %s failed", request_id)
            await reply.fail(HeadgateError("Something went wrong inside Headgate; the operator's log has the reason."))

    async def _answer(self, scope: Scope, receive: Receive, reply: HttpReply, route: Route, request_id: str) -> None:
        if scope["method"] != "POST":
            raise WrongMethod("Use POST.")
        headers: Headers = scope["headers"]
        caller = authenticate(headers, self._keyring, time.time())  # before a byte of the body is read
        try:
            raw = await read_body(headers, receive, self._max_body)
            if raw is None:
                return  # the client left while sending; nobody is there to answer
            ask = make_ask(request_id, route, parse(raw), len(raw), headers)
        except HeadgateError as error:
            self._pipeline.refuse(request_id, caller, route, error)
            raise
        work = asyncio.ensure_future(self._pipeline.run(ask, caller, reply))
        gone = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()  # closes the upstream's socket, so that the engine stops at once
            await work
        except asyncio.CancelledError:
            if not gone.done():
                raise
        finally:
            gone.cancel()
            work.cancel()


class HttpReply:
    """One HTTP answer: passes an upstream's answer on, or sends an error in OpenAI's envelope."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id
        self._started = False

    async def send(self, answer: Answer, decision: Decision) -> None:
        """Relay: the head goes out with the first bytes, so that a failure before them is still an error answer."""
        head = _head(answer, decision, self._id)
        async for part in answer.parts():
            if not self._started:
                self._started = True
                await self._send({"type": "http.response.start", "status": answer.status, "headers": head})
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: HeadgateError) -> None:
        """Answer with `error`; where an answer has begun, end it so that it cannot be taken for a whole one."""
        if self._started:
            await self._send({"type": "http.response.body", "body": error.event()})
            return
        body = error.envelope()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self._id.encode()),
        ]
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status in (405, 413):
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def _head(answer: Answer, decision: Decision, request_id: str) -> list[tuple[bytes, bytes]]:
    model = answer.candidate.model
    headers = [
        ("content-type", answer.content_type),
        ("x-request-id", request_id),
        ("x-headgate-model", model.name),
        ("x-headgate-place", model.place),
        ("x-headgate-lane", decision.lane),
        ("x-headgate-reason", decision.reason),
    ]
    if answer.trigger:
        headers.append(("x-headgate-trigger", answer.trigger))
    if answer.check:
        headers.append(("x-headgate-check", answer.check))
    if answer.dropped:
        headers.append(("x-headgate-dropped", ",".join(answer.dropped)))
    if answer.stream:
        headers.append(("cache-control", "no-cache"))
    return [(name.encode(), _header_value(value)) for name, value in headers]


def _header_value(text: str) -> bytes:
    """Printable ASCII only: a name that came from an upstream must not end a header and begin another."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return text.encode()


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes | None:
    """The whole body; None where the client left. Raises TooLarge as soon as the limit is passed."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise BadRequest("Send the body without content-encoding.", code="unsupported_encoding")
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise TooLarge(_too_large(limit))
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(_too_large(limit))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> str:
    return f"The body is larger than {limit / 2**20:g} MiB; raise router.max_body_mb in headgate.yaml if that is meant."


async def left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def make_ask(request_id: str, route: Route, body: dict[str, Any], size: int, headers: Headers) -> Ask:
    """The parsed request with the choices made in headers or in `headgate: {…}`. Raises BadRequest."""
    choices = body.pop("headgate", {})
    if not isinstance(choices, dict) or choices.keys() - set(CHOICES):
        raise BadRequest(f"The field 'headgate' is an object with: {', '.join(CHOICES)}.", param="headgate")
    given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    # Every label counts, however often the header stands there and whoever added it: the highest one wins.
    labels = [value.decode("latin-1") for name, value in headers if name == b"x-headgate-data-class"]
    raised = [label.strip() for joined in labels for label in joined.split(",")]
    if "data_class" in choices:
        raised.append(choices["data_class"])
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise BadRequest("The field 'stream' must be true or false.", param="stream")
    return Ask(
        id=request_id, route=route, body=body, size=size, model=text_field(body, "model"), stream=stream,
        data_class=max(map(_class, raised), default=None),
        session=_session(given.get("x-headgate-session") or body.get("prompt_cache_key")),
        escalate=_label(choices.get("escalate") or given.get("x-headgate-escalate")),
    )  # fmt: skip


def _class(text: Any) -> DataClass:
    try:
        return DataClass.parse(text)
    except ValueError as unknown:
        raise BadRequest(f"x-headgate-data-class: {unknown}", param="x-headgate-data-class") from unknown


def _label(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and LABEL.fullmatch(value.strip()):
        return value.strip()
    form = "a short reason of small letters, digits, - and _, at most 40, such as low-confidence"
    raise BadRequest(f"x-headgate-escalate: give {form}.", param="x-headgate-escalate")


def _session(value: Any) -> str | None:
    return value[:MAX_SESSION] if isinstance(value, str) else None


def new_id() -> str:
    """A request id: 48 bits of time and 80 random bits in base 32, so that ids sort by time (a ULID)."""
    number = (int(time.time() * 1000) << 80) | int.from_bytes(os.urandom(10), "big")
    return "req_" + "".join(BASE32[(number >> shift) & 31] for shift in range(125, -1, -5))
