"""The pages beside the inference routes: one request to the FastAPI application, one whole answer back.

Only a path that the application has comes this far, spelled exactly so. Pages take no body: none is read.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from router.api import answers
from router.api.exchange import Exchange
from router.api.pages import missing
from router.errors import HeadgateError, WrongMethod

MESSAGES = b"/v1/messages/"
"""What begins so is asked for by Anthropic's clients."""
Message = MutableMapping[str, Any]
OURS = (b"content-length", b"connection", b"transfer-encoding")
"""Headers of the connection; they are not the application's to set."""


class Bridge:
    """Speaks ASGI to `app` for the paths it has."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._paths = frozenset(route.path.encode() for route in app.routes if isinstance(route, Route))

    def accept(self, exchange: Exchange) -> int:
        """Whether there is such a page. Raises NotFound and WrongMethod."""
        head = exchange.head
        if head.path.startswith(MESSAGES):
            exchange.route = "messages"  # so that an error is in Anthropic's words
        if head.method in ("TRACE", "CONNECT"):
            raise WrongMethod("This method is never taken.")
        if head.path not in self._paths:
            raise missing(head.path.decode("latin-1"))
        return 0

    def refuse(self, exchange: Exchange, error: HeadgateError) -> None:
        """Pages are not accounted for."""

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """One page."""
        head, told = exchange.head, list[Message]()
        path = head.path.decode("ascii")
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
            "method": head.method, "path": path, "raw_path": head.path, "query_string": head.query, "root_path": "",
            "headers": head.headers, "server": None, "client": None,
        }  # fmt: skip
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            return next(asked, {"type": "http.disconnect"})

        async def send(message: Message) -> None:
            told.append(message)

        await self._app(scope, receive, send)
        start, *pieces = told
        if start["status"] < 400:
            exchange.id = ""  # an id leads to a record, and pages have none
        lines = answers.lines((name, value) for name, value in start["headers"] if name not in OURS)
        exchange.whole(start["status"], lines, b"".join(piece.get("body", b"") for piece in pieces))
