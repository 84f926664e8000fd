"""What went wrong at an upstream, as the error a caller gets: one table for statuses, one for broken connections.

Whether to go on along the order is the attempts' business; here it is only said where that would be useless.
"""

from __future__ import annotations

import orjson

from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    LimitReached,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from router.records import Candidate
from router.upstream.connection import Response, UpstreamError

RETRY_AFTER_S = 5
MAX_RETRY_AFTER_S = 300
"""A longer Retry-After of an upstream is cut to this (Linkerd's cap)."""


class Failure(Exception):
    """One try that did not answer. `final` stops the walk: another model would say the same."""

    def __init__(self, error: HeadgateError, outcome: str, status: int | None = None, final: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.outcome, self.status, self.final = error, outcome, status, final


def unreachable(candidate: Candidate, failed: UpstreamError) -> HeadgateError:
    """The error for a connection that gave no answer at all."""
    name = candidate.name
    if failed.kind in ("first_byte_timeout", "idle_timeout", "total_timeout"):
        return UpstreamTimeout(f"{name} did not answer in time.")
    if candidate.model.place == "local" and failed.kind in ("refused", "connect_timeout", "reset", "closed"):
        return Unavailable(f"{name} is not answering; it may be restarting.", retry_after=RETRY_AFTER_S)
    return UpstreamFailed(f"{name} did not give a usable answer ({failed.kind}).")


async def refusal(candidate: Candidate, response: Response) -> Failure:
    """What an answer other than 200 means for the caller and for the walk along the order."""
    status, name = response.status, candidate.name
    try:
        message, code = _error_text(await response.read())
    except UpstreamError:
        message, code = "", ""
    after = _retry_after(response.headers.get("retry-after"))
    if by_door := _by_door(response, name, message, code):
        return by_door
    if status in (400, 404, 413, 422):
        if "context length" in message or "maximum context" in message:
            code = "context_length_exceeded"
        bad = BadRequest(message or f"{name} refused the request.", code=code or "invalid_request")
        return Failure(bad, "bad_request", status, final=True)
    if status == 429:
        limit = LimitReached(
            f"{name} takes no more requests now.", code="rate_limit_exceeded", retry_after=after or RETRY_AFTER_S
        )
        return Failure(limit, "rate_limited", status)
    if status in (503, 529):
        busy = Unavailable(f"{name} is full or not ready.", retry_after=after or RETRY_AFTER_S)
        return Failure(busy, "overloaded", status)
    if status == 504:
        return Failure(UpstreamTimeout(f"{name} did not answer in time."), "timeout", status)
    detail = f": {message}" if candidate.model.place == "hosted" and message else ""
    return Failure(UpstreamFailed(f"{name} answered with status {status}{detail}", code=code or None), "error", status)


def _by_door(response: Response, name: str, message: str, code: str) -> Failure | None:
    """What the door itself says, by its header; None where the provider answered."""
    status = response.status
    match response.headers.get("x-headgate-door"):
        case "refused" if status == 503:
            return Failure(Unavailable(f"{name}: {message}", code=code, retry_after=30), "door_refused", status)
        case "refused":
            forbidden = Forbidden(f"The door refused it: {message}", code=code or "door_refused")
            return Failure(forbidden, "door_refused", status)
        case "closed":
            closed = Unavailable(f"The door is closed: {message}", code="door_closed", retry_after=30)
            return Failure(closed, "door_closed", status)
        case "failed":
            kind = UpstreamTimeout if status == 504 else UpstreamFailed
            return Failure(kind(f"{name} cannot be reached: {message}", code=code or None), "unreachable", status)
    return None


def _error_text(body: bytes) -> tuple[str, str]:
    """Message and code of an OpenAI-shaped error body; empty where there is none."""
    try:
        found = orjson.loads(body)
        error = found.get("error", found)
        code = error.get("code")
        return str(error.get("message", ""))[:500], code if isinstance(code, str) else ""
    except (ValueError, AttributeError):
        return "", ""


def _retry_after(text: str | None) -> int | None:
    """Whole seconds, at most MAX_RETRY_AFTER_S; None where absent or not a plain number."""
    if text is None or not text.strip().isdigit():
        return None
    return min(int(text[:9]), MAX_RETRY_AFTER_S)
