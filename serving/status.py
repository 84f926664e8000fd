"""What is published of this host: GET /instances (version 1), /metrics for Prometheus, /health.

On a Unix socket that only its owner may open. Names where keys lie, never a key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.endpoint import View
from serving.gpus import Gpu
from serving.supervisor import Supervisor

VERSION = 1
_GPU_FIELDS = (
    "uuid", "name", "index", "memory_total_gb", "memory_free_gb", "utilisation", "power_w", "temperature_c",
    "throttle", "fault",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Host:
    """Who publishes: the host's name, and an id that is new with each start."""

    name: str
    boot: str


def document(supervisor: Supervisor, host: Host, now: float) -> dict[str, Any]:
    """The document of GET /instances. `now` in Unix seconds."""
    engine = supervisor.engine
    return {
        "version": VERSION,
        "host": host.name,
        "boot": host.boot,
        "at": now,
        "engine": engine and {"package": engine.package, "version": engine.version, "python": str(engine.python)},
        "gpus": [{name: getattr(gpu, name) for name in _GPU_FIELDS} for gpu in supervisor.readings.gpus],
        "gpu_note": supervisor.readings.note,
        "instances": [_instance(view) for view in supervisor.views()],
    }


def _instance(view: View) -> dict[str, Any]:
    entry = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    age = entry.pop("load_age_s")
    load = view.load
    entry["load"] = load and {
        "running": load.running,
        "waiting": load.waiting,
        "kv_use": load.kv_use,
        "asleep": load.asleep,
        "age_s": None if age is None else round(age, 3),
    }
    return entry


def application(supervisor: Supervisor, host: Host) -> Starlette:
    """The three pages as an ASGI application."""
    registry = CollectorRegistry()
    registry.register(_Collector(supervisor))

    async def instances(_: Request) -> Response:
        return JSONResponse(document(supervisor, host, time.time()))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/instances", instances), Route("/metrics", metrics), Route("/health", health)])


class _Collector(Collector):
    """Reads the supervisor when asked; a reading that is unknown is left out, never 0."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterable[Metric]:
        views, gpus = self._supervisor.views(), self._supervisor.readings.gpus
        yield from _instance_metrics(views)
        yield from _gpu_metrics(gpus)


def _instance_metrics(views: Sequence[View]) -> Iterator[Metric]:
    labels = ["instance", "model"]
    state = GaugeMetricFamily("headgate_instance_state", "1 for the state it is in", labels=[*labels, "state"])
    restarts = CounterMetricFamily("headgate_instance_restarts", "Starts after the first", labels=labels)
    running = GaugeMetricFamily("headgate_instance_running", "Requests the engine runs", labels=labels)
    waiting = GaugeMetricFamily("headgate_instance_waiting", "Requests the engine lets wait", labels=labels)
    for view in views:
        where = [view.name, view.model]
        state.add_metric([*where, view.state], 1)
        if not view.attached:
            restarts.add_metric(where, view.restarts)
        if view.load is not None and view.load.running is not None:
            running.add_metric(where, view.load.running)
        if view.load is not None and view.load.waiting is not None:
            waiting.add_metric(where, view.load.waiting)
    yield from (state, restarts, running, waiting)


def _gpu_metrics(gpus: Sequence[Gpu]) -> Iterator[Metric]:
    kinds = (
        ("memory_total_gb", "headgate_gpu_memory_total_bytes", "Memory", 1e9),
        ("memory_free_gb", "headgate_gpu_memory_free_bytes", "Memory nobody uses", 1e9),
        ("utilisation", "headgate_gpu_utilisation", "Share of time it works, as NVML gives it", 1.0),
        ("power_w", "headgate_gpu_power_watts", "Power it draws", 1.0),
        ("temperature_c", "headgate_gpu_temperature_celsius", "Temperature", 1.0),
    )
    for field, name, text, factor in kinds:
        family = GaugeMetricFamily(name, text, labels=["uuid", "index"])
        for gpu in gpus:
            if (value := getattr(gpu, field)) is not None:
                family.add_metric([gpu.uuid, str(gpu.index)], value * factor)
        yield family
    fault = GaugeMetricFamily("headgate_gpu_fault", "1 where it must not be used", labels=["uuid", "index"])
    for gpu in gpus:
        fault.add_metric([gpu.uuid, str(gpu.index)], 1 if gpu.fault else 0)
    yield fault


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to __main__, which stops the engines first and this last.
        yield


def server(app: Starlette) -> uvicorn.Server:
    """The HTTP server; run it with `serve(sockets=[listen_privately(path)])`, end it by `should_exit`."""
    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    return _Server(config)
