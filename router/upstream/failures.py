"""What went wrong at an upstream, as the error a caller gets: one table for statuses, one for broken connections.

Whether to go on along the order is the attempts' business; here it is only said where that would be useless.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    NotFound,
    TooFast,
    Unavailable,
    Unprocessable,
    UpstreamFailed,
    UpstreamTimeout,
)
from router.records import Candidate
from router.upstream.address import Bounds, UpstreamError
from router.upstream.response import Response
from router.upstream.wording import LONGEST, Said, cleaned, said, sentence

RETRY_AFTER_S = 5
MAX_RETRY_AFTER_S = 300
"""A longer Retry-After of an upstream is cut to this (Linkerd's cap)."""
PASSING = frozenset({"permit_invalid", "permits_exhausted"})
"""The door's refusals that a new permit mends: a door that was restarted, a permit that came late, too many at once."""
REFUSED_BY_PROVIDER = frozenset({"provider_refused_key", "provider_redirected"})
"""The door's words for a provider's 3xx, 401 and 403, which it passes on as 502."""
TOO_LARGE_BY_DOOR = "provider_answer_too_large"
"""Its word for an answer that said itself that it is larger than what is read whole."""
GONE = frozenset({"refused", "outside", "connect_timeout", "reset", "closed"})
"""How an exchange with an endpoint ends that is down or restarting."""
OVERLOADED = "overloaded"
"""The outcome of a try that was refused with 503 or 529."""
TOO_LONG_CODE = "context_length_exceeded"
TOO_LONG = "too_long"
"""The outcome of a try whose prompt the model's context does not hold; a longer one may still answer."""
TOO_LARGE = "too_large"
"""The outcome of a try whose whole answer was too large to be read."""
BAD_REQUEST = "bad_request"
"""The outcome of a try that the model's server refused since the request itself is wrong."""


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
    if kind == TOO_LARGE:
        return too_large()
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
    return Failure(error, kind, sent=connected, blamed=kind != "unread")


async def refusal(candidate: Candidate, response: Response) -> Failure:
    """What an answer other than 200 means for the caller and for the walk along the order."""
    status, name = response.status, candidate.name
    try:
        told = said(await response.read())
    except UpstreamError:
        told = Said()
    message, code = told.message[:LONGEST], told.code
    if candidate.model.place == "hosted" and (by_door := _by_door(response, name, message, code)):
        return by_door
    pause_s = asked_pause(response.headers.get("retry-after"), time.time())
    if status in (400, 404, 413, 422):
        return wrong_request(candidate, status, told)
    if status == 429:
        limit = TooFast(f"{name} takes no more requests now.", retry_after=_told(pause_s))
        rest = RETRY_AFTER_S if pause_s is None else pause_s
        return Failure(limit, "rate_limited", status, sent=False, pause_s=rest)
    if status in (503, 529):
        return overloaded(candidate, status, pause_s)
    if code == TOO_LARGE_BY_DOOR and candidate.model.place == "hosted":
        return too_large(status)
    if status == 504:
        late = UpstreamTimeout(f"{name} did not answer in time.")
        return Failure(late, "timeout", status, blamed=True)
    detail = f": {cleaned(message)}" if candidate.model.place == "hosted" and message else ""
    failed = UpstreamFailed(f"{name} answered with status {status}{detail}", code=code or None)
    # Whoever refuses generates nothing and bills nothing.
    sent = status >= 500 and code not in REFUSED_BY_PROVIDER
    return Failure(failed, "error", status, sent=sent, blamed=True)


def too_large(status: int | None = None) -> Failure:
    """It answered with more than is read whole: what was asked for is to blame, and a replica would say as much."""
    text = (
        f"The answer is larger than {Bounds().body_bytes >> 20} MiB. Ask for less in one request: fewer inputs or "
        "answers, no log probabilities, embeddings with 'encoding_format': 'base64'; or ask for a stream."
    )
    return Failure(Unprocessable(text, code="answer_too_large"), TOO_LARGE, status, final=True)


def wrong_request(candidate: Candidate, status: int, told: Said) -> Failure:
    """It says that the request itself is wrong. Only of a prompt that is too long another model may say otherwise."""
    if told.no_route:
        error = NotFound(f"{candidate.name} is on a server that has no such route.", code="route_not_offered")
        return Failure(error, "no_route", status, sent=False)
    if status == 404 and (told.param == "model" or told.code == "model_not_found"):
        # Which name a server has for the model is the router's to know, never the caller's.
        gone = UpstreamFailed(f"{candidate.name} is on a server that does not serve it now.")
        return Failure(gone, "no_model", status, sent=False, blamed=True)
    text = sentence(told.message) or f"{candidate.name} refused the request."
    if told.code == TOO_LONG_CODE or "context length" in told.message or "maximum context" in told.message:
        return Failure(BadRequest(text, code=TOO_LONG_CODE), TOO_LONG, status, sent=False)
    bad = BadRequest(text, code=told.code or None, param=told.param)
    return Failure(bad, BAD_REQUEST, status, final=True, sent=False)


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
    """What the door itself says, by its header; None where the provider answered. Nothing has left then.

    Its sentence is kept for the record: it names rules, kinds and settings, and quotes nothing of a request.
    """
    status, said_so = response.status, f"{code}: {message}" if code and message else code or message
    error: HeadgateError
    match response.headers.get("x-headgate-door"):
        case "refused" if code in PASSING:
            error = Unavailable(f"The door did not take it: {message}", code="door_closed", retry_after=1)
            return Failure(error, "door_refused", status, sent=False, detail=said_so)
        case "refused" if status == 503:
            error = Unavailable(f"{name}: {message}", code=code or "door_closed", retry_after=30)
            return Failure(error, "door_refused", status, sent=False, detail=said_so)
        case "refused":
            error = Forbidden(f"The door refused it: {message}", code=code or "door_refused")
            # Used before means: sent over a connection that then broke, and asked again.
            return Failure(error, "door_refused", status, sent=code == "permit_used", detail=said_so)
        case "closed":
            error = Unavailable(f"The door is closed: {message}", code="door_closed", retry_after=30)
            return Failure(error, "door_closed", status, sent=False, detail=said_so)
        case "failed":
            kind = UpstreamTimeout if status == 504 else UpstreamFailed
            error = kind(f"{name} cannot be reached: {message}", code=code or None)
            return Failure(error, "unreachable", status, sent=False, blamed=True, detail=said_so)
    return None


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
