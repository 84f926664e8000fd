"""Every error a caller can meet, each with its HTTP status, OpenAI type and code.

HeadgateError
├── BadRequest 400            invalid_request_error
│   └── UnsupportedParameter  the parameter is named
├── InvalidKey 401            authentication_error
├── Forbidden 403             permission_error: lasting; the message names the line that would change it
├── NotFound 404              unknown model or path
├── WrongMethod 405
├── RequestTimeout 408        the request did not come whole in time
├── Conflict 409              the same Idempotency-Key is being answered
├── TooLarge 413
├── UriTooLong 414
├── UnsupportedEncoding 415
├── Unprocessable 422         the same Idempotency-Key with another body; a request that brings engines down
├── LimitReached 429          the budget is used up
│   └── TooFast               this minute's requests or tokens are
├── HeadersTooLarge 431
├── UpstreamFailed 502        an upstream answered wrongly, or stopped
├── Unavailable 503           waiting can help: Retry-After
│   ├── Overloaded            this router takes no more now
│   ├── QueueFull             too many wait for room already
│   │   └── PushedOut         it waited, and made way for another team's
│   └── DeadlinePassed        no room came in time
│       └── Hopeless          none will, as far as can be seen
├── UpstreamTimeout 504
└── WrongVersion 505
"""

from __future__ import annotations

import math

import orjson

LONG_WAIT_S = 60
"""A client that would have to wait longer is told not to try again by itself."""
ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
"""The types of errors that Anthropic's clients know, by status; the rest is a bad request or the server's own."""


def dollars(amount: float) -> str:
    """A sum as a sentence names it: four places, and more where those would not show it."""
    if amount <= 0:
        return "$0"
    return f"${amount:.{max(4, 1 - math.floor(math.log10(amount)))}f}"


class HeadgateError(Exception):
    """A refusal or failure that is answered in OpenAI's error envelope."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds after which trying again is sensible; None where it is not."""
        if code is not None:
            self.code = code

    def envelope(self, route: str = "") -> bytes:
        """The JSON body: OpenAI's {"error": {"message", "type", "param", "code"}}, or Anthropic's for messages."""
        if route.startswith("messages"):
            kind = ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return orjson.dumps({"type": "error", "error": {"type": kind, "message": self.message}})
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self, route: str = "", number: int = 0) -> bytes:
        """The error as the last event of a stream that has begun. No `[DONE]` follows it.

        `number`: how many events came before it, where those of the route are numbered.
        """
        if route == "messages":
            return b"event: error\ndata: " + self.envelope(route) + b"\n\n"
        if route == "responses":
            error = {"type": "error", "sequence_number": number, "code": self.code, "message": self.message}
            return b"event: error\ndata: " + orjson.dumps(error | {"param": self.param}) + b"\n\n"
        return b"data: " + self.envelope() + b"\n\n"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What tells a client whether and when to try again, in the words the OpenAI and Anthropic clients read."""
        if self.retry_after is None:
            return [(b"x-should-retry", b"false")]
        told = [(b"retry-after", str(math.ceil(self.retry_after)).encode())]
        if self.retry_after > LONG_WAIT_S:
            return [*told, (b"x-should-retry", b"false")]
        return [*told, (b"retry-after-ms", str(math.ceil(self.retry_after * 1000)).encode())]


class BadRequest(HeadgateError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class UnsupportedParameter(BadRequest):
    code = "unsupported_parameter"


class InvalidKey(HeadgateError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(HeadgateError):
    status, type, code = 403, "permission_error", "forbidden"


class NotFound(HeadgateError):
    status, type, code = 404, "invalid_request_error", "not_found"


class WrongMethod(HeadgateError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(HeadgateError):
    status, type, code = 408, "invalid_request_error", "request_timeout"


class Conflict(HeadgateError):
    status, type, code = 409, "invalid_request_error", "idempotency_in_progress"


class TooLarge(HeadgateError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UriTooLong(HeadgateError):
    status, type, code = 414, "invalid_request_error", "uri_too_long"


class UnsupportedEncoding(HeadgateError):
    status, type, code = 415, "invalid_request_error", "unsupported_encoding"


class Unprocessable(HeadgateError):
    status, type, code = 422, "invalid_request_error", "idempotency_mismatch"


class LimitReached(HeadgateError):
    status, type, code = 429, "insufficient_quota", "budget_exceeded"


class TooFast(LimitReached):
    type, code = "rate_limit_error", "rate_limit_exceeded"


class HeadersTooLarge(HeadgateError):
    status, type, code = 431, "invalid_request_error", "headers_too_large"


class ClientLeft(HeadgateError):
    """Nobody hears of it; it stands in the ledger."""

    status, type, code = 499, "server_error", "client_left"


class UpstreamFailed(HeadgateError):
    status, type, code = 502, "server_error", "upstream_bad_response"


class Unavailable(HeadgateError):
    status, type, code = 503, "server_error", "no_local_capacity"


class Overloaded(Unavailable):
    code = "overloaded"


class QueueFull(Unavailable):
    code = "queue_full"


class PushedOut(QueueFull):
    """It waited, and made way for one of another team or priority of which fewer wait."""


class DeadlinePassed(Unavailable):
    code = "queue_timeout"


class Hopeless(DeadlinePassed):
    """By how fast requests end, no room will come in time: it is told so before its time is over."""


class UpstreamTimeout(HeadgateError):
    status, type, code = 504, "server_error", "upstream_timeout"


class WrongVersion(HeadgateError):
    status, type, code = 505, "invalid_request_error", "http_version_not_supported"
