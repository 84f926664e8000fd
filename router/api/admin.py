"""The admin API, on a Unix socket of its own that only its owner may open (and on loopback TCP with a token).

It reads: metrics, state, records, dry runs. Keys and settings are changed by the commands, in the ledger and the files.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from router.api.body import parse
from router.api.inference import make_ask, new_id, read_body
from router.api.pages import install_errors
from router.errors import BadRequest, InvalidKey, NotFound
from router.ledger.entries import Ledger, decision_json
from router.ledger.keys import Keyring
from router.pipeline import Pipeline
from router.records import Caller, Route
from serving.catalogue import DataClass, KeyDefaults

MAX_BODY = 64 * 2**20
STAND_IN = "KEY"
"""The id of a dry run's caller where none was named: what a remedy then says to put a real one for."""


def build(
    pipeline: Pipeline, ledger: Ledger, keyring: Keyring, state: Callable[[], dict[str, Any]], defaults: KeyDefaults
) -> FastAPI:
    """The admin application, without its lock; see `with_token`. `state` is the live state as data."""
    app = FastAPI(title="Headgate admin", version="1", docs_url=None, redoc_url=None)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(ledger.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return state() | {"ledger": {"healthy": ledger.store.healthy, "trouble": ledger.store.trouble}}

    @app.post("/explain")
    async def explain(request: Request, key: str = "", data_class: str = "") -> dict[str, Any]:
        raw = await read_body(request.scope["headers"], request.receive, MAX_BODY) or b""
        body = parse(raw)
        body.setdefault("model", "auto")
        ask = make_ask(new_id(), _route(body), body, len(raw), [])
        caller = _caller(keyring, key, data_class, defaults)
        found = decision_json(pipeline.decide(ask, caller)) | {"asked": ask.model, "key": key or None}
        return found if key else _without_key(found, caller, "--data-class says so" if data_class else "")

    @app.get("/requests/{request_id}")
    async def request_record(request_id: str) -> dict[str, Any]:
        await ledger.store.durable()
        events = ledger.store.events(request_id)
        if not events:
            raise NotFound(f"The ledger has no request {request_id[:80]!r}.")
        return {"request": request_id, "events": events}

    install_errors(app)
    return app


def with_token(app: ASGIApp, token: str) -> ASGIApp:
    """Lock `app` behind `Authorization: Bearer TOKEN`, for a listener that others on this machine can reach."""
    expected = f"Bearer {token}".encode()

    async def locked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, expected):
                error = InvalidKey("The admin API needs its token.")
                await Response(error.envelope(), error.status, None, "application/json")(scope, receive, send)
                return
        await app(scope, receive, send)

    return locked


def _route(body: dict[str, Any]) -> Route:
    """The route a body is meant for, by the field that carries its text."""
    if "messages" not in body and "prompt" in body:
        return "completions"
    return "embeddings" if "messages" not in body and "input" in body else "chat/completions"


def _caller(keyring: Keyring, key: str, data_class: str, defaults: KeyDefaults) -> Caller:
    """The caller a dry run is made for: a key by its id, else one of the given class with the defaults."""
    if data_class and data_class not in DataClass.__members__:
        known = ", ".join(DataClass.__members__)
        raise BadRequest(f"{data_class[:40]!r} is no data class; choose one of {known}", param="data_class")
    if key:
        found = keyring.by_id(key)
        if found is None:
            raise NotFound(f"No key has the id {key[:40]!r}; see: headgate keys list")
        return found
    wanted = DataClass.parse(data_class) if data_class else defaults.data_class
    return Caller(STAND_IN, "", wanted, frozenset(defaults.lanes), budget_usd=defaults.budget_usd)


def _without_key(found: dict[str, Any], caller: Caller, why: str) -> dict[str, Any]:
    """A decision for the stand-in, in words that do not speak of it as of a key; `why` its class is what it is."""
    spoken = f"key {caller.key} is {caller.data_class.name}"
    why = why or f"new keys are {caller.data_class.name}"
    refusals = [r | {"reason": r["reason"].replace(spoken, why)} for r in found["refusals"]]
    return found | {"why_class": found["why_class"].replace(spoken, why), "refusals": refusals}
