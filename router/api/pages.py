"""The FastAPI application behind the inference routes: models, health, readiness, and the one OpenAPI document.

It also describes the inference routes, which `inference.py` answers before a request comes here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from router.api.callers import authenticate
from router.api.inference import ROUTES
from router.errors import HeadgateError, NotFound, WrongMethod
from router.ledger.keys import Keyring
from router.pipeline import Pipeline
from serving.catalogue import LANES, DataClass

ERROR = {"description": "An error in OpenAI's envelope: {error: {message, type, param, code}}"}
TITLES = {
    "/v1/chat/completions": "Answer a conversation; streamed with `stream: true`",
    "/v1/completions": "Continue a text",
    "/v1/embeddings": "Turn texts into vectors",
}


def build(pipeline: Pipeline, keyring: Keyring, ready: Callable[[], str]) -> FastAPI:
    """The application. `ready` says why the router is not ready, or "" where it is."""
    # No docs_url: FastAPI's pages load scripts from elsewhere, and nothing here phones home.
    app = FastAPI(title="Headgate", version="1", docs_url=None, redoc_url=None)
    _describe_inference(app)

    @app.get("/health", summary="Whether the router runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether a request could be answered now")
    async def readiness() -> JSONResponse:
        why = ready()
        return JSONResponse({"ready": not why, "why": why}, 503 if why else 200)

    @app.get("/v1/models", summary="The models, lanes and `auto` this key may name")
    async def models(request: Request) -> dict[str, Any]:
        caller = authenticate(request.scope["headers"], keyring, time.time())
        now = pipeline.snapshot()
        served = {e.model: now.models[e.model] for e in now.endpoints}
        entries = [
            {"id": m.name, "object": "model", "created": 0, "owned_by": m.provider or "local", "place": m.place,
             "context": m.context, "lanes": list(m.lanes)}
            for m in served.values() if caller.lanes & set(m.lanes)
        ]  # fmt: skip
        choices = ["auto", *(lane for lane in LANES if lane in caller.lanes)]
        entries += [{"id": name, "object": "model", "created": 0, "owned_by": "headgate"} for name in choices]
        return {"object": "list", "data": entries}

    install_errors(app)
    return app


def install_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's envelope."""

    @app.exception_handler(HeadgateError)
    async def ours(_: Request, failed: HeadgateError) -> Response:
        headers = {"retry-after": str(failed.retry_after)} if failed.retry_after is not None else None
        return Response(failed.envelope(), failed.status, headers, "application/json")

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, failed: HTTPException) -> Response:
        error: HeadgateError = NotFound(f"There is no {request.url.path[:100]!r} here.")
        if failed.status_code == 405:
            error = WrongMethod("This path does not take that method.")
        return Response(error.envelope(), error.status, None, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, failed: RequestValidationError) -> Response:
        first = failed.errors()[0]
        where = ".".join(map(str, first["loc"]))
        body = {"error": {"message": f"{where}: {first['msg']}", "type": "invalid_request_error", "param": where,
                          "code": "invalid_request"}}  # fmt: skip
        return JSONResponse(body, 400)


def _describe_inference(app: FastAPI) -> None:
    body = {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "required": ["model"], "properties": {
            "model": {"type": "string", "description": "a model's name, a lane (private, cheap, frontier) or auto"},
            "stream": {"type": "boolean"},
            "headgate": {"type": "object", "properties": {"data_class": {
                "enum": list(DataClass.__members__), "description": "raises the class, never lowers it"}}},
        }}}},
    }  # fmt: skip

    async def answered_before() -> Response:
        raise NotFound("This route is answered before it comes here.")

    for path in ROUTES:
        app.add_api_route(
            path, answered_before, methods=["POST"], summary=TITLES[path], name=path,
            openapi_extra={"requestBody": body, "security": [{"key": []}]},
            responses=dict.fromkeys((400, 401, 403, 404, 413, 429, 502, 503, 504), ERROR),
        )  # fmt: skip
