"""The admin API, on a Unix socket of its own that only its owner may open (and on loopback TCP with a token).

It reads: metrics, state, records, dry runs. Keys and settings are changed by the commands, in the ledger and the files.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from router.api.asking import make_ask
from router.api.body import parse
from router.api.ids import new_id
from router.api.pages import install_errors
from router.errors import BadRequest, Forbidden, HeadgateError, InvalidKey, NotFound, TooLarge, Unavailable
from router.ledger.bodies import decision_json
from router.ledger.entries import Ledger
from router.ledger.keys import Keyring
from router.ledger.store import LedgerError
from router.ledger.totals import Totals
from router.pipeline import Pipeline
from router.records import Caller, Route
from serving.catalogue import DataClass, KeyDefaults

MAX_BODY = 64 * 2**20
ROLES = {
    "GET /metrics": ("admin", "auditor"), "GET /status": ("admin", "auditor"), "GET /requests": ("admin", "auditor"),
    "POST /explain": ("admin",), "GET /openapi.json": ("admin",),
}  # fmt: skip
"""Who may do what over TCP, by method and first part of the path. An auditor reads what was written down."""
STAND_IN = "KEY"
"""The id of a dry run's caller where none was named: what a remedy then says to put a real one for."""


class Siblings(Protocol):
    """The other workers of this router."""

    own: int
    """The number of this one."""

    def __len__(self) -> int: ...

    async def ask(self, path: str) -> dict[int, bytes | None]:
        """What each answers to GET `path`, by its number; None for one that does not."""


def build(
    pipeline: Pipeline, ledger: Ledger, keyring: Keyring, state: Callable[[], dict[str, Any]], defaults: KeyDefaults,
    siblings: Siblings, totals: Totals,
) -> FastAPI:  # fmt: skip
    """The admin application, without its lock; see `with_token`. `state` is the live state as data.

    Any worker speaks for all, but for `alone`: so they ask each other. The `totals` of what all count are the first
    one's alone, for they need a memory.
    """
    app = FastAPI(title="Headgate admin", version="1", docs_url=None, redoc_url=None)

    @app.get("/metrics")
    async def metrics() -> Response:
        own = ledger.metrics.text()
        if siblings and siblings.own == 1:
            own = totals.page(own, [*(await siblings.ask("/metrics")).values()])
        return Response(own, media_type="text/plain; version=0.0.4")

    @app.get("/status")
    async def status(alone: bool = False) -> dict[str, Any]:
        heard = {} if alone else await siblings.ask("/status?alone=true")
        others = {number: None if answer is None else orjson.loads(answer) for number, answer in heard.items()}
        own = state() | {"ledger": {"healthy": ledger.store.healthy, "trouble": ledger.store.trouble}}
        return of_all(siblings.own, own, others)

    @app.post("/explain")
    async def explain(request: Request, key: str = "", data_class: str = "") -> dict[str, Any]:
        raw = await _read(request)
        body = parse(raw)
        body.setdefault("model", "auto")
        ask = make_ask(new_id(), _route(body), body, len(raw), [])
        caller = _caller(keyring, key, data_class, defaults)
        found = decision_json(await pipeline.decide(ask, caller)) | {"asked": ask.model, "key": key or None}
        return found if key else _without_key(found, caller, "--data-class says so" if data_class else "")

    @app.get("/requests/{request_id}")
    async def request_record(request_id: str, alone: bool = False) -> dict[str, Any]:
        if not alone:  # whichever worker answered it: asked for it, each brings what it has to the disk first
            await siblings.ask(f"/requests/{quote(request_id, safe='')}?alone=true")
        with contextlib.suppress(LedgerError):  # what is on disk can be told also where nothing more gets there
            await ledger.store.durable()
        try:
            events = ledger.store.events(request_id)
        except LedgerError as broken:
            raise Unavailable(str(broken), code="ledger_unavailable") from broken
        if not events:
            raise NotFound(f"The ledger has no request {request_id[:80]!r}.")
        return {"request": request_id, "events": events}

    install_errors(app, lambda _: None)  # the operator's own mistakes are no refusals
    return app


def of_all(number: int, own: dict[str, Any], others: dict[int, dict[str, Any] | None]) -> dict[str, Any]:
    """The state of all workers: that of `number`, with what the others have in flight, and who of them answers."""
    heard = [other for other in others.values() if other is not None]
    endpoints = [dict(endpoint) for endpoint in own["endpoints"]]
    for endpoint in endpoints:
        same = [e for other in heard for e in other["endpoints"] if e["name"] == endpoint["name"]]
        for part in ("in_flight", "limit", "outstanding"):
            endpoint[part] += sum(e[part] for e in same)
    ledgers = [own["ledger"], *(other["ledger"] for other in heard)]
    histories, scanners = ([own[part], *(other[part] for other in heard)] for part in ("history", "scanner"))
    # Where one worker can get out, that is what counts.
    open_one = next(({"isolation": one["isolation"]} for one in heard if one.get("isolation", {}).get("way_out")), {})
    answer = sorted([number, *(n for n, other in others.items() if other is not None)])
    return own | {
        **open_one,
        "endpoints": endpoints,
        "in_flight": sum(one["in_flight"] for one in (own, *heard)),
        "waiting": sum(one["waiting"] for one in (own, *heard)),
        "queue": _queues([one["queue"] for one in (own, *heard)]),
        "saturations": _fullest([one["saturations"] for one in (own, *heard)]),
        "ledger": next((ledger for ledger in ledgers if not ledger["healthy"]), ledgers[0]),
        "history": next((one for one in histories if one["trouble"]), histories[0]),
        "scanner": next((one for one in scanners if one["trouble"]), scanners[0]),
        "workers": {"count": 1 + len(others), "answer": answer},
    }


def _queues(queues: list[dict[str, int]]) -> dict[str, int]:
    """Who waits at all workers; of the teams at least so many, for the same one may wait at several."""
    added = {name: sum(queue[name] for queue in queues) for name in ("interactive", "batch")}
    return added | {"teams": max(queue["teams"] for queue in queues)}


def _fullest(found: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """How full each endpoint is, as the worker says that finds it fullest."""
    return dict(sorted((item for each in found for item in each.items()), key=lambda item: item[1]["value"]))


def with_token(app: ASGIApp, tokens: Mapping[str, str]) -> ASGIApp:
    """Lock `app` behind `Authorization: Bearer TOKEN`, for a listener that others on this machine can reach.

    `tokens`: each token's role; see ROLES for what a role may do. What is not in that table nobody may.
    """
    expected = [(f"Bearer {token}".encode(), role) for token, role in tokens.items()]

    async def locked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if refused := _refused(given, scope["method"], scope["path"], expected):
                await Response(refused.envelope(), refused.status, None, "application/json")(scope, receive, send)
                return
        await app(scope, receive, send)

    return locked


def _refused(given: list[bytes], method: str, path: str, expected: list[tuple[bytes, str]]) -> HeadgateError | None:
    """Why whoever sends these headers may not do this, if so. Each token is compared, whichever fits."""
    one = given[0] if len(given) == 1 else b""
    fitting = [role for token, role in expected if hmac.compare_digest(one, token)]
    if not fitting:
        if one[:10].lower() == b"bearer hg_":
            return Forbidden("An API key opens none of the admin API; it has tokens of its own.")
        return InvalidKey("The admin API needs its token.")
    wanted = f"{method} /{path.split('/')[1]}"
    if fitting[0] not in ROLES.get(wanted, ()):
        return Forbidden(f"The role {fitting[0]} may not do this.")
    return None


async def _read(request: Request) -> bytes:
    """The whole body. Raises TooLarge as soon as the limit is passed."""
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > MAX_BODY:
            raise TooLarge(f"The body is larger than {MAX_BODY >> 20} MiB.")
    return bytes(raw)


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
    classes = [each.replace(spoken, why) for each in found["classes"]]
    return found | {"why_class": found["why_class"].replace(spoken, why), "classes": classes, "refusals": refusals}
