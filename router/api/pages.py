"""The FastAPI application behind the inference routes: models, health, readiness, and the one OpenAPI document.

It also describes the inference routes, which `inference.py` answers before a request comes here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from router.api.callers import authenticate
from router.api.inference import ROUTES
from router.errors import BadRequest, HeadgateError, NotFound, WrongMethod
from router.ledger.keys import Keyring
from router.pipeline import Pipeline
from serving.catalogue import LANES, DataClass

ENVELOPE = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"},
        "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
    }}},
}  # fmt: skip
ERROR = {
    "description": "An error in the envelope of OpenAI, {error: {message, type, param, code}}, or of Anthropic",
    "content": {"application/json": {"schema": ENVELOPE}},
}
STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 422, 429, 431, 500, 502, 503, 504)
"""Every status that an inference route can answer with instead of 200."""
ELSEWHERE = (400, 401, 404, 405, 408, 413, 414, 415, 431, 500, 503)
"""Those of the other paths."""
SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"x-api-key": []}]
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "a key of Headgate, as OpenAI's clients send it"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same, as Anthropic's do"},
}
TITLES = {
    "/v1/chat/completions": "Answer a conversation; streamed with `stream: true`",
    "/v1/completions": "Continue a text",
    "/v1/embeddings": "Turn texts into vectors",
    "/v1/responses": "Answer in the form of OpenAI's responses, keeping nothing; local models only",
    "/v1/messages": "Answer in the form of Anthropic's messages; local models only",
    "/v1/messages/count_tokens": "Count the tokens of a prompt in the form of Anthropic's messages; local models only",
}
FIELDS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": {"type": "array"}, "max_tokens": {"type": "integer"}},
    "/v1/completions": {"prompt": {"type": ["string", "array"]}, "max_tokens": {"type": "integer"}},
    "/v1/embeddings": {"input": {"type": ["string", "array"]}},
    "/v1/responses": {
        "input": {"type": ["string", "array"]}, "instructions": {"type": "string"},
        "max_output_tokens": {"type": "integer"}, "store": {"const": False},
    },
    "/v1/messages": {
        "messages": {"type": "array"}, "system": {"type": ["string", "array"]}, "max_tokens": {"type": "integer"},
    },
    "/v1/messages/count_tokens": {"messages": {"type": "array"}, "system": {"type": ["string", "array"]}},
}  # fmt: skip
"""The fields that each route is best known by; README.md has what else it takes."""
NOT_OFFERED = {
    "/v1/messages/batches": "Batches are not taken here; send the messages one by one to /v1/messages.",
    "/v1/responses/": "Answers are not kept here, so none can be fetched, cancelled or deleted later.",
    "/v1/conversations": "Conversations are not kept here; send the earlier turns with each request.",
    "/v1/chat/completions/": "Answers are not kept here, so none can be fetched or deleted later.",
    "/v1/rerank": "Reranking is not offered here.",
    "/v2/rerank": "Reranking is not offered here.",
    "/rerank": "Reranking is not offered here.",
    "/v1/score": "Scoring is not offered here.",
    "/v1/audio": "Speech and transcription are not offered here.",
    "/v1/images": "Pictures are not made here; models with the ability `vision` read them in /v1/chat/completions.",
    "/v1/videos": "Videos are not made here.",
    "/v1/realtime": "Realtime sessions are not offered here; stream from /v1/chat/completions instead.",
    "/v1/batches": "Batches are not taken here; send the requests one by one.",
    "/v1/files": "Files are not kept here; send their content inside the request.",
    "/v1/uploads": "Files are not kept here; send their content inside the request.",
    "/v1/vector_stores": "Files are not kept or searched here; send what matters inside the request.",
    "/v1/moderations": "Moderation is not offered here.",
    "/v1/fine_tuning": "Models are not trained here.",
    "/v1/assistants": "Assistants are not kept here; send the conversation to /v1/chat/completions.",
    "/v1/threads": "Conversations are not kept here; send the earlier turns to /v1/chat/completions.",
}
"""By the beginning of the path: what other servers have there, and what is here instead. The first that fits counts."""


def build(
    pipeline: Pipeline, keyring: Keyring, ready: Callable[[], str], count: Callable[[str], None],
    today: Callable[[], float] = time.time,
) -> FastAPI:  # fmt: skip
    """The application. `ready` says why the router is not ready, or "" where it is; `count` is told of refusals.

    `today`: Unix seconds that never go back, which the ends of keys are held against.
    """
    # No docs_url: FastAPI's pages load scripts from elsewhere, and nothing here phones home.
    app = FastAPI(title="Headgate", version="1", docs_url=None, redoc_url=None)
    _describe_inference(app)

    @app.get("/health", summary="Whether the router runs", responses=dict.fromkeys(ELSEWHERE, ERROR))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether a request could be answered now", responses={
        **dict.fromkeys(ELSEWHERE, ERROR), 503: {"description": "Not ready; `why` says the reason"},
    })  # fmt: skip
    async def readiness() -> JSONResponse:
        why = ready()
        return JSONResponse({"ready": not why, "why": why}, 503 if why else 200)

    @app.get(
        "/v1/models", summary="The models, lanes and `auto` this key may name",
        openapi_extra={"security": SECURITY}, responses=dict.fromkeys(ELSEWHERE, ERROR),
    )  # fmt: skip
    async def models(request: Request) -> dict[str, Any]:
        caller = authenticate(request.scope["headers"], keyring, today())
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

    install_errors(app, count)
    return app


def install_errors(app: FastAPI, count: Callable[[str], None]) -> None:
    """Answer every error in OpenAI's envelope, and tell `count` its code."""

    @app.exception_handler(HeadgateError)
    async def ours(_: Request, failed: HeadgateError) -> Response:
        count(failed.code)
        return told(failed)

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, failed: HTTPException) -> Response:
        error: HeadgateError = missing(request.url.path)
        if failed.status_code == 405:
            error = WrongMethod("This path does not take that method.")
        count(error.code)
        return told(error, failed.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, failed: RequestValidationError) -> Response:
        count("invalid_request")
        first = failed.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return told(BadRequest(f"{where}: {first['msg']}", param=where))


def told(error: HeadgateError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that an error is, with what tells clients whether to try again."""
    more = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.envelope(), error.status, {**(headers or {}), **more}, "application/json")


def missing(path: str) -> NotFound:
    """The error for a path that is not there; for what other servers have, with one sentence on why not."""
    for begins, sentence in NOT_OFFERED.items():
        if path == begins or path.startswith(begins.rstrip("/") + "/"):
            return NotFound(sentence, code="not_offered")
    return NotFound(f"There is no {path[:100]!r} here.")


def _describe_inference(app: FastAPI) -> None:
    async def answered_before() -> Response:
        raise NotFound("This route is answered before it comes here.")

    answered = {
        "description": "The answer, or the events of its stream, as the model gave it",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    for path in ROUTES:
        app.add_api_route(
            path, answered_before, methods=["POST"], summary=TITLES[path], name=path,
            openapi_extra={"requestBody": _body(path), "security": SECURITY},
            responses={200: answered, **dict.fromkeys(STATUSES, ERROR)},
        )  # fmt: skip

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            found.setdefault("components", {})["securitySchemes"] = SCHEMES
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to change the document


def _body(path: str) -> dict[str, Any]:
    fields = {
        "model": {"type": "string", "description": "a model's name, a lane (private, cheap, frontier) or auto"},
        "stream": {"type": "boolean"},
        **FIELDS[path],
        "headgate": {"type": "object", "properties": {"data_class": {
            "enum": list(DataClass.__members__), "description": "raises the class, never lowers it"}}},
    }  # fmt: skip
    schema = {"type": "object", "required": ["model"], "properties": fields}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
