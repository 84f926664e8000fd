"""Every error a caller can meet, each with its HTTP status, OpenAI type and code.

HeadgateError
├── BadRequest 400            invalid_request_error
│   └── UnsupportedParameter  the parameter is named
├── InvalidKey 401            authentication_error
├── Forbidden 403             permission_error: lasting; the message names the line that would change it
├── NotFound 404              unknown model or path
├── WrongMethod 405
├── TooLarge 413
├── LimitReached 429          budget or rate
├── UpstreamFailed 502        an upstream answered wrongly, or stopped
├── Unavailable 503           waiting can help: Retry-After
│   ├── QueueFull             too many wait for room already
│   └── DeadlinePassed        no room came in time
└── UpstreamTimeout 504
"""

from __future__ import annotations

import orjson


class HeadgateError(Exception):
    """A refusal or failure that is answered in OpenAI's error envelope."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds after which trying again is sensible."""
        if code is not None:
            self.code = code

    def envelope(self) -> bytes:
        """The JSON body: {"error": {"message", "type", "param", "code"}}."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def event(self) -> bytes:
        """The envelope as the last event of a stream that has begun. No `[DONE]` follows it."""
        return b"data: " + self.envelope() + b"\n\n"


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


class TooLarge(HeadgateError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class LimitReached(HeadgateError):
    status, type, code = 429, "insufficient_quota", "budget_exceeded"


class UpstreamFailed(HeadgateError):
    status, type, code = 502, "server_error", "upstream_bad_response"


class Unavailable(HeadgateError):
    status, type, code = 503, "server_error", "no_local_capacity"


class QueueFull(Unavailable):
    code = "queue_full"


class DeadlinePassed(Unavailable):
    code = "queue_timeout"


class UpstreamTimeout(HeadgateError):
    status, type, code = 504, "server_error", "upstream_timeout"
