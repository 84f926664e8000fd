"""Every Prometheus metric of the installation, declared here and nowhere else. Names follow Prometheus' conventions.

Requests are counted as they come and go; what is live (endpoints, GPUs, queue, door, ledger) is read when somebody
asks. A reading that is unknown is left out, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from router.records import Decision, Endpoint, Gpu, Outcome, Usage
from serving.catalogue import Model

M = TypeVar("M", bound=MetricWrapperBase)
Reading = tuple[str, tuple[str, ...], float | None]
"""A metric's name, the values of its labels, and what was read."""

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GB = 10**9
IN_QUEUE = ("queue_full", "deadline_passed", "left_queue")
"""Outcomes of requests that never got the local room they wanted to wait for."""

LIVE: dict[str, tuple[str, ...]] = {
    "headgate_in_flight": ("Requests the router has there now.", "endpoint", "model"),
    "headgate_endpoint_limit": ("Requests it takes at once.", "endpoint", "model"),
    "headgate_queue_length": ("Requests that wait for local room.",),
    "headgate_instance_state": ("1 for the state it is in.", "instance", "model", "state"),
    "headgate_instance_restarts_total": ("Starts after the first.", "instance", "model"),
    "headgate_instance_running": ("Requests the engine says it runs.", "instance", "model"),
    "headgate_instance_waiting": ("Requests the engine says it lets wait.", "instance", "model"),
    "headgate_instance_kv_use": ("Share of its KV cache in use, 0 to 1.", "instance", "model"),
    "headgate_instance_tokens_total": ("Tokens by the engine's own count.", "instance", "model", "kind"),
    "headgate_gpu_memory_total_bytes": ("Memory.", "uuid", "index"),
    "headgate_gpu_memory_free_bytes": ("Memory that nobody uses.", "uuid", "index"),
    "headgate_gpu_utilisation": ("Share of time in which it worked, 0 to 1.", "uuid", "index"),
    "headgate_gpu_power_watts": ("Power it draws.", "uuid", "index"),
    "headgate_gpu_temperature_celsius": ("Temperature.", "uuid", "index"),
    "headgate_gpu_fault": ("1 where it must not be used.", "uuid", "index"),
    "headgate_gpu_throttled": ("1 for each reason its clocks are held down.", "uuid", "index", "reason"),
    "headgate_door_open": ("1 where the door lets requests out; absent without a provider.",),
    "headgate_ledger_healthy": ("1 where records reach the ledger's disk.",),
}
"""What is read when somebody asks: help text and labels. Gauges, but for those that end in `_total`."""


@dataclass(frozen=True, slots=True)
class Live:
    """The live state that is published. `app.py` joins it from those who know."""

    endpoints: tuple[Endpoint, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    queue_length: int = 0
    ledger_healthy: bool = True
    door_open: bool | None = None
    """None where there is no door."""


class _Children(dict[tuple[str, ...], M]):
    """A metric's children by their labels: to look one up in the metric itself costs more than to count."""

    def __init__(self, metric: M) -> None:
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> M:
        child = self[labels] = self._metric.labels(*labels) if labels else self._metric
        return child


class Metrics:
    """The registry and what is counted in it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def count(name: str, text: str, *labels: str) -> _Children[Counter]:
            return _Children(Counter(name, text, labels, registry=registry))

        def times(name: str, text: str, *labels: str) -> _Children[Histogram]:
            return _Children(Histogram(name, text, labels, buckets=SECONDS, registry=registry))

        self._requests = count(
            "headgate_requests_total", "Requests ended.", "model", "place", "lane", "outcome"
        )  # fmt: skip
        self._decisions = count(
            "headgate_decisions_total", "Decisions, by the place of the first choice.", "lane", "place", "trigger"
        )
        self._refusals = count("headgate_refusals_total", "Candidates ruled out, by rule.", "model", "rule")
        self._refused = count(
            "headgate_requests_refused_total", "Requests refused before a decision, by code.", "code"
        )  # fmt: skip
        self._overflow = count(
            "headgate_overflow_total", "Answers by another model for want of local room.", "from_model", "to_model"
        )
        self._tokens = count(
            "headgate_tokens_total", "Tokens of answers; cached is a part of prompt.", "model", "place", "kind"
        )
        self._cost = count("headgate_cost_usd_total", "US dollars of attempts.", "model", "place")
        self._unpriced = count("headgate_unpriced_total", "Attempts without a price.", "model")
        self._queue_left = count(
            "headgate_queue_left_total", "Requests that wanted to wait for local room, by how that ended.", "outcome"
        )
        self._first_token = times(
            "headgate_first_token_seconds", "From the request to its answer, of a stream to its first token.", "place"
        )
        self._total = times("headgate_request_seconds", "From the request to the end of its answer.", "place")
        self._queue_wait = times("headgate_queue_wait_seconds", "How long local room was waited for.")
        self._open = Gauge("headgate_requests_open", "Requests now open.", registry=registry)
        self._live = _LiveState()
        registry.register(self._live)

    def watch(self, look: Callable[[], Live]) -> None:
        """Publish what `look` finds, each time somebody asks."""
        self._live.look = look

    def refused(self, code: str) -> None:
        """Count a request that was refused before anything could be decided."""
        self._refused[code,].inc()

    def opened(self, decision: Decision) -> None:
        self._open.inc()
        for refusal in decision.refusals:
            self._refusals[refusal.model, refusal.rule].inc()

    def closed(self, decision: Decision, model: Model | None, outcome: Outcome) -> None:
        """Count a request that ended; `model` is the one that answered, if one did."""
        self._open.dec()
        lane, trigger = decision.lane, outcome.trigger.partition(":")[0]
        first = decision.order[0].model.place if decision.order else ""
        name, place = (model.name, model.place) if model else ("", "")
        self._decisions[lane, first, trigger].inc()
        self._requests[name, place, lane, outcome.outcome].inc()
        if outcome.queued_ms is not None or outcome.outcome in IN_QUEUE:
            self._queue_left[outcome.outcome if outcome.outcome in IN_QUEUE else "served",].inc()
        if outcome.queued_ms is not None:
            self._queue_wait[()].observe(outcome.queued_ms / 1000)
        self._count_attempts(outcome)
        if model is None:
            return
        self._count_tokens(name, place, outcome.usage)
        if trigger == "overflow" and (full := full_model(decision, outcome)) not in ("", name):
            self._overflow[full, name].inc()
        if outcome.first_byte_ms is not None:
            self._first_token[place,].observe(outcome.first_byte_ms / 1000)
        self._total[place,].observe(outcome.total_ms / 1000)

    def _count_attempts(self, outcome: Outcome) -> None:
        for attempt in outcome.attempts:  # a try that brought nothing can cost as well
            if attempt.cost is None:
                self._unpriced[attempt.model,].inc()
            elif attempt.cost:
                self._cost[attempt.model, attempt.place].inc(attempt.cost)
            if attempt.usage is not None:
                self._count_tokens(attempt.model, attempt.place, attempt.usage)

    def _count_tokens(self, model: str, place: str, usage: Usage) -> None:
        for kind, tokens in (("prompt", usage.prompt), ("cached", usage.cached), ("output", usage.output)):
            if tokens is not None:
                self._tokens[model, place, kind].inc(tokens)

    def text(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self.registry)

    def names(self) -> frozenset[str]:
        """The name of every metric as Prometheus sees it, also of those that have no value yet."""
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        return frozenset(m.name + end for m in self.registry.collect() for end in endings.get(m.type, ("",)))


def full_model(decision: Decision, outcome: Outcome) -> str:
    """The local model that had no room for a request which overflowed.

    It was full when that was decided, or said so itself, or had filled up when its turn came; "" where there is none.
    """
    local = [c for c in decision.order if c.model.place == "local"]
    known = [c.model.name for c in local if c.endpoint.full]
    said = [a.model for a in outcome.attempts if a.place == "local" and a.outcome == "overloaded"]
    return next(iter([*known, *said, *(c.model.name for c in local)]), "")


class _LiveState(Collector):
    """Reads the live state when somebody asks."""

    def __init__(self) -> None:
        self.look: Callable[[], Live] | None = None

    def collect(self) -> Iterable[Metric]:
        families = {
            name: (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(name, text, labels=labels)
            for name, (text, *labels) in LIVE.items()
        }
        # By name and labels, for one that stands there twice makes Prometheus refuse the whole page.
        readings = {(name, labels): value for name, labels, value in (_readings(self.look()) if self.look else ())}
        for (name, labels), value in readings.items():
            if value is not None:
                families[name].add_metric(labels, value)
        return families.values()


def _readings(live: Live) -> Iterator[Reading]:
    for endpoint in live.endpoints:
        where = (endpoint.name, endpoint.model)
        yield "headgate_in_flight", where, endpoint.in_flight
        yield "headgate_endpoint_limit", where, endpoint.limit or None
        if endpoint.address != "door":
            yield from _of_instance(endpoint, where)
    for gpu in live.gpus:
        yield from _of_gpu(gpu, (gpu.uuid, str(gpu.index)))
    yield "headgate_queue_length", (), live.queue_length
    yield "headgate_door_open", (), live.door_open
    yield "headgate_ledger_healthy", (), live.ledger_healthy


def _of_instance(endpoint: Endpoint, where: tuple[str, str]) -> Iterator[Reading]:
    yield "headgate_instance_state", (*where, endpoint.state), 1
    yield "headgate_instance_restarts_total", where, endpoint.restarts
    yield "headgate_instance_running", where, endpoint.running
    yield "headgate_instance_waiting", where, endpoint.waiting
    yield "headgate_instance_kv_use", where, endpoint.kv_use
    yield "headgate_instance_tokens_total", (*where, "prompt"), endpoint.prompt_tokens
    yield "headgate_instance_tokens_total", (*where, "output"), endpoint.output_tokens


def _of_gpu(gpu: Gpu, which: tuple[str, str]) -> Iterator[Reading]:
    for name, gb in (("total", gpu.memory_total_gb), ("free", gpu.memory_free_gb)):
        yield f"headgate_gpu_memory_{name}_bytes", which, None if gb is None else gb * GB
    yield "headgate_gpu_utilisation", which, gpu.utilisation
    yield "headgate_gpu_power_watts", which, gpu.power_w
    yield "headgate_gpu_temperature_celsius", which, gpu.temperature_c
    yield "headgate_gpu_fault", which, 1 if gpu.fault else 0
    for reason in gpu.throttle:
        yield "headgate_gpu_throttled", (*which, reason), 1
