"""What went wrong at an upstream, as the error a caller gets: one table for statuses, one for broken connections.

Whether to go on along the order is the attempts' business; here it is only said where that would be useless.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import orjson

from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    TooFast,
    Unavailable,
    UpstreamFailed,
    UpstreamTimeout,
)
from router.records import Candidate
from router.upstream.address import UpstreamError
from router.upstream.response import Response

RETRY_AFTER_S = 5
MAX_RETRY_AFTER_S = 300
"""A longer Retry-After of an upstream is cut to this (Linkerd's cap)."""
PASSING = frozenset({"permit_invalid", "permits_exhausted"})
"""The door's refusals that a new permit mends: a door that was restarted, a permit that came late, too many at once."""
REFUSED_BY_PROVIDER = frozenset({"provider_refused_key", "provider_redirected"})
"""The door's words for a provider's 3xx, 401 and 403, which it passes on as 502."""


GONE = frozenset({"refused", "outside", "connect_timeout", "reset", "closed"})
"""How an exchange with an endpoint ends that is down or restarting."""
INNER = re.compile(r"Traceback \(most recent call last\)|^\s+File \"", re.MULTILINE)
PLACES = re.compile(
    r"\b[a-z]+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|(?<![\w/])/(?:[\w.+-]+/)+[\w.+-]*", re.IGNORECASE
)
"""Addresses, and paths of files."""
OVERLOADED = "overloaded"
"""The outcome of a try that was refused with 503 or 529."""
TOO_LONG = "too_long"
"""The outcome of a try whose prompt the model's context does not hold; a longer one may still answer."""


class Failure(Exception):
    """One try that did not answer. `final` stops the walk: another model would say the same."""

    def __init__(
        self, error: HeadgateError, outcome: str, status: int | None = None, *, final: bool = False, sent: bool = True,
        detail: str = "", pause_s: float | None = None, blamed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(error.message)
        self.pause_s = pause_s
        """For how long the endpoint asked to be left alone; None where it did not."""
        self.blamed = blamed
        """Whether it counts as a failure of the endpoint: several in a row, and it rests."""
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
    if kind == "pool_full":
        busy = Unavailable(f"All connections to {name} are busy.", code="overloaded", retry_after=1)
        return Failure(busy, kind, sent=False)
    connected = kind not in ("refused", "outside", "connect_timeout")
    if candidate.model.place == "hosted" and not connected:
        closed = Unavailable("The door does not answer.", code="door_closed", retry_after=RETRY_AFTER_S)
        return Failure(closed, "door_closed", sent=False, detail=kind)
    error: HeadgateError
    if kind in ("first_byte_timeout", "first_token_timeout", "idle_timeout"):
        error = UpstreamTimeout(f"{name} did not answer in time.")
    elif candidate.model.place == "local" and kind in GONE:
        error = Unavailable(f"{name} is not answering; it may be restarting.", retry_after=RETRY_AFTER_S)
    else:
        error = UpstreamFailed(f"{name} did not give a usable answer ({kind}).")
    return Failure(error, kind, sent=connected, blamed=True)


async def refusal(candidate: Candidate, response: Response) -> Failure:
    """What an answer other than 200 means for the caller and for the walk along the order."""
    status, name = response.status, candidate.name
    try:
        message, code = _error_text(await response.read())
    except UpstreamError:
        message, code = "", ""
    if by_door := _by_door(response, name, message, code):
        return by_door
    pause_s = asked_pause(response.headers.get("retry-after"), time.time())
    if status in (400, 404, 413, 422):
        if "context length" in message or "maximum context" in message:
            code = "context_length_exceeded"
        bad = BadRequest(cleaned(message) or f"{name} refused the request.", code=code or "invalid_request")
        # Only of a prompt that is too long another model may say something else.
        final = code != "context_length_exceeded"
        return Failure(bad, TOO_LONG if not final else "bad_request", status, final=final, sent=False)
    if status == 429:
        told = _told(pause_s)
        limit = TooFast(f"{name} takes no more requests now.", retry_after=told)
        rest = RETRY_AFTER_S if pause_s is None else pause_s
        return Failure(limit, "rate_limited", status, sent=False, pause_s=rest)
    if status in (503, 529):
        return overloaded(candidate, status, pause_s)
    if status == 504:
        late = UpstreamTimeout(f"{name} did not answer in time.")
        return Failure(late, "timeout", status, blamed=True)
    detail = f": {cleaned(message)}" if candidate.model.place == "hosted" and message else ""
    failed = UpstreamFailed(f"{name} answered with status {status}{detail}", code=code or None)
    # Whoever refuses generates nothing and bills nothing.
    sent = status >= 500 and code not in REFUSED_BY_PROVIDER
    return Failure(failed, "error", status, sent=sent, blamed=True)


def overloaded(candidate: Candidate, status: int, pause_s: float | None = None) -> Failure:
    """It takes no more now. Whoever says so has done nothing, and bills nothing.

    An engine's own admission limit is no failure; whoever else is overloaded is better left alone.
    """
    at_limit = candidate.model.place == "local" and status == 503
    text, told = f"{candidate.name} is full or not ready.", _told(pause_s)
    full = Unavailable(text, retry_after=told)
    if not at_limit:
        full = Unavailable(text, code="upstream_overloaded", retry_after=told)
    return Failure(full, OVERLOADED, status, sent=False, pause_s=pause_s, blamed=not at_limit)


def _told(pause_s: float | None) -> float:
    """When the caller is told to come back: as the upstream asked, and never at once."""
    return RETRY_AFTER_S if pause_s is None else max(1, pause_s)


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
            return Failure(error, "unreachable", status, sent=False, blamed=True)
    return None


def _error_text(body: bytes) -> tuple[str, str]:
    """Message and code of an OpenAI-shaped error body; empty where there is none."""
    try:
        found = orjson.loads(body)
        error = found.get("error", found)
        code, message = error.get("code"), error.get("message", "")
        return (message[:500] if isinstance(message, str) else ""), code if isinstance(code, str) else ""
    except (ValueError, AttributeError):
        return "", ""


def cleaned(message: str) -> str:
    """An upstream's words about a request, fit for its caller: short, one line, no addresses, paths or inner state."""
    if INNER.search(message):
        return ""
    return PLACES.sub("…", " ".join("".join(c if c.isprintable() else " " for c in message).split()))


def asked_pause(text: str | None, now: float) -> float | None:
    """Seconds that a Retry-After asks for, from 0 to MAX_RETRY_AFTER_S; None where it is absent or nonsense."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text.lstrip("0")[:12] or 0), MAX_RETRY_AFTER_S))
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(at - now, 0.0), MAX_RETRY_AFTER_S)
