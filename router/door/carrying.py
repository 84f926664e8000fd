"""Carries one permitted body to its provider and the answer back, byte by byte as it comes.

It judges nothing: what arrives here was permitted and stands in the book.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from router.door import destination
from router.door.destination import Destination
from router.door.policy import Verdict
from router.door.providers import openai
from router.errors import Forbidden, HeadgateError, UpstreamFailed, UpstreamTimeout
from router.permit import Permit
from serving.catalogue import Model

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_LIMIT = 64 * 2**20
"""Bytes of an answer that is no stream."""
ERROR_LIMIT = 64 * 1024
"""Bytes of an error answer that are looked at."""
Mark = Literal["sent", "failed", "refused", "closed"]
"""The header `x-headgate-door`: `sent` and `failed` say whether anything may have left before it went wrong."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What leaves, and where to."""

    permit: Permit
    model: Model
    verdict: Verdict
    way: Destination
    url: str
    headers: dict[str, str]
    body: bytes
    key: str
    """The provider's key, only to keep it out of what comes back."""


@dataclass(slots=True)
class Progress:
    """How far a sending came; read for the book even where it was cancelled."""

    status: int | None = None
    bytes_in: int = 0
    head_bytes_in: int = 0
    """Bytes of the answer's headers; `bytes_in` is its body."""
    connections: int = 0
    """Opened for it, or tried; none where one was there from before."""
    left: bool = True
    """False where not a byte of the request can have left."""
    ended: Literal["answered", "failed", "client_left"] = "failed"
    error: str = ""
    """One word of ours, never a provider's text."""

    def connecting(self) -> None:
        self.connections += 1


class Answer:
    """What goes back to the router."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, mark: Mark | None, content_type: str, retry_after: str = "") -> None:
        """Send status and headers; no other header ever comes back."""
        self.started = True
        headers = [(b"content-type", content_type.encode("latin-1", "replace"))]
        if mark:
            headers.append((b"x-headgate-door", mark.encode()))
        if retry_after:
            headers.append((b"retry-after", retry_after.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(
        self, status: int, data: bytes, mark: Mark | None, content_type: str = "application/json", retry_after: str = ""
    ) -> None:
        """Send a complete answer."""
        await self.start(status, mark, content_type, retry_after)
        await self.chunk(data, more=False)

    async def error(self, error: HeadgateError, mark: Mark) -> None:
        """Answer in OpenAI's error envelope."""
        await self.whole(error.status, error.envelope(), mark)


class _Cut(Exception):
    """The provider's answer is not passed on any further; the text is the word for the book."""


async def carry(parcel: Parcel, receive: Receive, answer: Answer, progress: Progress, shut: asyncio.Event) -> None:
    """Send it and relay the answer. When the client leaves, the provider's connection is closed at once.

    So it is when `shut` is set: the operator has closed the door, and not a byte more is to leave.
    """
    work = asyncio.create_task(_relay(parcel, answer, progress))
    gone, closed = asyncio.create_task(_gone(receive)), asyncio.create_task(shut.wait())
    try:
        await asyncio.wait((work, gone, closed), return_when=asyncio.FIRST_COMPLETED)
        cut = closed.done() and not work.done()
        if cut:
            progress.ended, progress.error = "failed", "cut_by_operator"
        elif not work.done():
            progress.ended, progress.error = "client_left", ""
    finally:
        for task in (work, gone, closed):
            task.cancel()
        await asyncio.wait((work, gone, closed))
    if not work.cancelled():
        work.result()
    elif cut and not answer.started:
        # Not as closed: it may have arrived there, and be billed.
        error = UpstreamFailed("the operator closed the door while the answer was awaited", code="cut_by_operator")
        await answer.error(error, "sent")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _relay(parcel: Parcel, answer: Answer, progress: Progress) -> None:
    try:
        response = await parcel.way.post(parcel.url, parcel.headers, parcel.body, progress.connecting)
    except (aiohttp.ClientError, TimeoutError) as error:
        failure, mark = _explain(error, parcel.model.provider)
        progress.error, progress.left = failure.code, mark == "sent"
        await answer.error(failure, mark)
        return
    try:
        progress.status, progress.head_bytes_in = response.status, destination.header_bytes(response)
        await _answer(parcel, response, answer, progress)
    except (aiohttp.ClientError, TimeoutError, _Cut) as error:
        progress.error = str(error) if isinstance(error, _Cut) else _explain(error, parcel.model.provider)[0].code
        # Once begun, the answer is left without its end: the router sees a broken one, never a whole one.
        if not answer.started:
            failure = UpstreamFailed(f"the provider {parcel.model.provider} broke off", code=progress.error)
            await answer.error(failure, "sent")
    finally:
        # Where the whole answer was read, its connection is back in the pool and this does nothing.
        response.close()


async def _answer(parcel: Parcel, response: aiohttp.ClientResponse, answer: Answer, progress: Progress) -> None:
    headers = response.headers
    if destination.header_bytes(response) > destination.HEADERS:
        raise _Cut("provider_headers_too_large")
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise _Cut("provider_encoding")
    if not 200 <= response.status < 300:
        await _refusal(parcel, response, answer, progress)
        return
    content_type = headers.get("content-type", "application/json")
    endless = content_type.lower().startswith("text/event-stream")
    if not endless and (response.content_length or 0) > BODY_LIMIT:
        raise _Cut("provider_answer_too_large")
    await answer.start(response.status, "sent", content_type, _retry_after(headers.get("retry-after", "")))
    async for data in response.content.iter_any():
        progress.bytes_in += len(data)
        if progress.bytes_in > BODY_LIMIT and not endless:
            raise _Cut("provider_answer_too_large")
        await answer.chunk(data)
    progress.ended = "answered"
    await answer.chunk(b"", more=False)


async def _refusal(parcel: Parcel, response: aiohttp.ClientResponse, answer: Answer, progress: Progress) -> None:
    """Pass on what a provider refused, as far as a caller may know it."""
    name, status = parcel.model.provider, response.status
    body = b""
    async for data in response.content.iter_chunked(ERROR_LIMIT):
        body += data
        progress.bytes_in += len(data)
        if len(body) > ERROR_LIMIT:
            break
    if status < 400:
        progress.error = "provider_redirected"
        failure = UpstreamFailed(f"the provider {name} redirects (status {status}); that is not followed")
    elif status in (401, 403):
        progress.error = "provider_refused_key"
        failure = UpstreamFailed(f"the provider {name} refused the door's key (status {status})")
    else:
        progress.ended = "answered"
        text = openai.error(status, body, parcel.key, name)
        after = _retry_after(response.headers.get("retry-after", ""))
        await answer.whole(status, text, "sent", retry_after=after)
        return
    failure.code = progress.error
    await answer.error(failure, "sent")


def _retry_after(text: str) -> str:
    """Seconds or an HTTP date; anything else is not passed on."""
    return text if re.fullmatch(r"[A-Za-z0-9 ,:.-]{1,40}", text) else ""


def _explain(error: aiohttp.ClientError | TimeoutError, name: str) -> tuple[HeadgateError, Mark]:
    """What went wrong on the way out, and whether anything may have left by then."""
    if refused := destination.refused(error):
        reason = f"the address of the provider {name} is refused: {refused}"
        return Forbidden(reason, code="destination_refused"), "refused"
    for kind, failure, text, code, mark in _FAILURES:
        if isinstance(error, kind):
            return failure(f"the provider {name} {text}", code=code), mark
    return UpstreamFailed(f"the provider {name} broke off the connection", code="provider_failed"), "sent"


# The first kind that fits counts: some of aiohttp's errors are kinds of others.
_FAILURES: tuple[tuple[type[Exception], type[HeadgateError], str, str, Mark], ...] = (
    (aiohttp.ConnectionTimeoutError, UpstreamTimeout, "could not be reached in time", "provider_unreachable", "failed"),
    (aiohttp.ClientConnectorCertificateError, UpstreamFailed, "has an untrusted certificate", "provider_tls", "failed"),
    (aiohttp.ClientHttpProxyError, UpstreamFailed, "is not let through by the proxy", "provider_proxy", "failed"),
    (aiohttp.ClientConnectorError, UpstreamFailed, "could not be reached", "provider_unreachable", "failed"),
    (TimeoutError, UpstreamTimeout, "did not answer in time", "provider_timeout", "sent"),
)
