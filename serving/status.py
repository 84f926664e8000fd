"""What is published of this host: GET /instances (version 1) and /health; and POST /demand, by which a router says
that a request waits for a model.

On a Unix socket that only its owner may open. Names where keys lie, never a key. What Prometheus gets comes from the
router, which reads this document.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.endpoint import View
from serving.gpus import Readings
from serving.supervisor import Supervisor

VERSION = 1
_GPU_FIELDS = (
    "uuid", "name", "index", "memory_total_gb", "memory_free_gb", "utilisation", "power_w", "temperature_c",
    "throttle", "fault", "memory_used_gb", "memory_temperature_c", "energy_j", "ecc", "xid", "recovery", "warnings",
    "others_gb",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """Who publishes: the host's name, and an id that is new with each start."""

    name: str
    boot: str


def document(supervisor: Supervisor, host: Host, now: float) -> dict[str, Any]:
    """The document of GET /instances. `now` in Unix seconds."""
    engine, readings = supervisor.engine, supervisor.readings
    return {
        "version": VERSION,
        "host": host.name,
        "boot": host.boot,
        "at": now,
        "engine": engine and {"package": engine.package, "version": engine.version, "python": str(engine.python)},
        "gpus": [{name: getattr(gpu, name) for name in _GPU_FIELDS} for gpu in readings.gpus],
        "gpus_age_s": None if readings.at is None else round(time.monotonic() - readings.at, 3),
        "gpu_note": readings.note,
        "instances": [_instance(view, readings) for view in supervisor.views()],
    }


def _instance(view: View, readings: Readings) -> dict[str, Any]:
    entry = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    times = {"age_s": entry.pop("load_age_s"), "preempted_s": entry.pop("preempted_s")}
    if view.load is not None:
        rounded = {name: None if passed is None else round(passed, 3) for name, passed in times.items()}
        entry["load"] = dataclasses.asdict(view.load) | rounded
    # By GPU, what its processes really hold there; a GPU of which that is unknown is left out.
    held = {gpu.uuid: gb for gpu in readings.gpus for name, gb in gpu.held if name == view.name}
    entry["gpu_memory_gb"] = held or None
    return entry


def _sayable(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, or no more than that it failed where it holds what no JSON can: it must not hide the others."""
    try:
        JSONResponse(entry)
    except (ValueError, TypeError, RecursionError):
        name = str(entry["name"]).encode("ascii", "replace").decode()
        return {"name": name, "state": "failed", "detail": "what is known of it cannot be published"}
    return entry


def application(supervisor: Supervisor, host: Host) -> Starlette:
    """The three pages as an ASGI application."""

    async def instances(_: Request) -> Response:
        found = document(supervisor, host, time.time())
        try:
            return JSONResponse(found)
        except (ValueError, TypeError, RecursionError):
            return JSONResponse(found | {"instances": [_sayable(entry) for entry in found["instances"]]})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def demand(request: Request) -> Response:
        """A request waits for a model. Saying it again changes nothing."""
        try:
            model = (await request.json())["model"]
        except (ValueError, TypeError, LookupError, RecursionError):
            return JSONResponse({"error": 'give {"model": NAME}'}, 400)
        heard = isinstance(model, str) and supervisor.sharing.ask(model)
        return JSONResponse({"heard": heard}, 200 if heard else 404)

    return Starlette(
        routes=[
            Route("/instances", instances), Route("/health", health), Route("/demand", demand, methods=["POST"]),
        ]
    )  # fmt: skip


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to __main__, which stops the engines first and this last.
        yield


def server(app: Starlette) -> uvicorn.Server:
    """The HTTP server; run it with `serve(sockets=[listen_privately(path)])`, end it by `should_exit`."""
    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    return _Server(config)
