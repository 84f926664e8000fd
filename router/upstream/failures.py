"""What went wrong at an upstream, as the error a caller gets: one table for statuses, one for broken connections.

Whether to go on along the order is the attempts' business; here it is only said where that would be useless.
"""

from __future__ import annotations

from collections.abc import Sequence

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
PASSING = frozenset({"permit_invalid", "permits_exhausted"})
"""The door's refusals that a new permit mends: a door that was restarted, a permit that came late, too many at once."""
REFUSED_BY_PROVIDER = frozenset({"provider_refused_key", "provider_redirected"})
"""The door's words for a provider's 3xx, 401 and 403, which it passes on as 502."""


OVERLOADED = "overloaded"
"""The outcome of a try that was refused with 503 or 529."""
TOO_LONG = "too_long"
"""The outcome of a try whose prompt the model's context does not hold; a longer one may still answer."""


class Failure(Exception):
    """One try that did not answer. `final` stops the walk: another model would say the same."""

    def __init__(
        self, error: HeadgateError, outcome: str, status: int | None = None, *, final: bool = False, sent: bool = True,
        detail: str = "",
    ) -> None:  # fmt: skip
        super().__init__(error.message)
        self.detail = detail or error.code
        """For the record: a word of ours, never one of the upstream."""
        self.error, self.outcome, self.status, self.final = error, outcome, status, final
        self.sent = sent
        """Whether the upstream may have worked on it. A provider bills that."""


def most_telling(errors: Sequence[HeadgateError]) -> HeadgateError:
    """Of several tries in vain, the error for the caller: one that waiting can help, else that of the first choice."""
    return next((e for e in errors if e.retry_after is not None), errors[0])


def unreachable(candidate: Candidate, failed: UpstreamError) -> Failure:
    """A connection that gave no whole answer, or none at all."""
    name, kind = candidate.name, failed.kind
    connected = kind not in ("refused", "connect_timeout")
    if candidate.model.place == "hosted" and not connected:
        closed = Unavailable("The door does not answer.", code="door_closed", retry_after=RETRY_AFTER_S)
        return Failure(closed, "door_closed", sent=False, detail=kind)
    error: HeadgateError
    if kind in ("first_byte_timeout", "idle_timeout"):
        error = UpstreamTimeout(f"{name} did not answer in time.")
    elif candidate.model.place == "local" and kind in ("refused", "connect_timeout", "reset", "closed"):
        error = Unavailable(f"{name} is not answering; it may be restarting.", retry_after=RETRY_AFTER_S)
    else:
        error = UpstreamFailed(f"{name} did not give a usable answer ({kind}).")
    return Failure(error, kind, sent=connected)


async def refusal(candidate: Candidate, response: Response) -> Failure:
    """What an answer other than 200 means for the caller and for the walk along the order."""
    status, name = response.status, candidate.name
    try:
        message, code = _error_text(await response.read())
    except UpstreamError:
        message, code = "", ""
    if by_door := _by_door(response, name, message, code):
        return by_door
    after = _retry_after(response.headers.get("retry-after")) or RETRY_AFTER_S
    if status in (400, 404, 413, 422):
        if "context length" in message or "maximum context" in message:
            code = "context_length_exceeded"
        bad = BadRequest(message or f"{name} refused the request.", code=code or "invalid_request")
        # Only of a prompt that is too long another model may say something else.
        final = code != "context_length_exceeded"
        return Failure(bad, TOO_LONG if not final else "bad_request", status, final=final, sent=False)
    if status == 429:
        limit = LimitReached(f"{name} takes no more requests now.", code="rate_limit_exceeded", retry_after=after)
        return Failure(limit, "rate_limited", status, sent=False)
    if status in (503, 529):
        return overloaded(candidate, status, after)
    if status == 504:
        return Failure(UpstreamTimeout(f"{name} did not answer in time."), "timeout", status)
    detail = f": {message}" if candidate.model.place == "hosted" and message else ""
    failed = UpstreamFailed(f"{name} answered with status {status}{detail}", code=code or None)
    # Whoever refuses generates nothing and bills nothing.
    return Failure(failed, "error", status, sent=status >= 500 and code not in REFUSED_BY_PROVIDER)


def overloaded(candidate: Candidate, status: int, retry_after: int = RETRY_AFTER_S) -> Failure:
    """It takes no more now. Whoever says so has done nothing, and bills nothing."""
    full = Unavailable(f"{candidate.name} is full or not ready.", retry_after=retry_after)
    return Failure(full, OVERLOADED, status, sent=False)


def _by_door(response: Response, name: str, message: str, code: str) -> Failure | None:
    """What the door itself says, by its header; None where the provider answered. Nothing has left then."""
    status = response.status
    error: HeadgateError
    match response.headers.get("x-headgate-door"):
        case "refused" if code in PASSING:
            error = Unavailable(f"The door did not take it: {message}", code="door_closed", retry_after=1)
            return Failure(error, "door_refused", status, sent=False)
        case "refused" if status == 503:
            error = Unavailable(f"{name}: {message}", code=code or "door_closed", retry_after=30)
            return Failure(error, "door_refused", status, sent=False)
        case "refused":
            error = Forbidden(f"The door refused it: {message}", code=code or "door_refused")
            # Used before means: sent over a connection that then broke, and asked again.
            return Failure(error, "door_refused", status, sent=code == "permit_used")
        case "closed":
            error = Unavailable(f"The door is closed: {message}", code="door_closed", retry_after=30)
            return Failure(error, "door_closed", status, sent=False)
        case "failed":
            kind = UpstreamTimeout if status == 504 else UpstreamFailed
            error = kind(f"{name} cannot be reached: {message}", code=code or None)
            return Failure(error, "unreachable", status, sent=False)
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
