"""Every Prometheus metric of the installation, declared here and nowhere else. Names follow Prometheus' conventions.

Requests are counted as they come and go, in plain numbers; they become a page of text when somebody asks. What is live
(endpoints, GPUs, queue, door, ledger) is read then too. A reading that is unknown is left out, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from router.ledger.counted import Count, Metric, Times
from router.records import Decision, Endpoint, Gpu, Latency, Met, Outcome, Prediction, Usage
from serving.catalogue import Model

Reading = tuple[str, tuple[str, ...], float | None]
"""A metric's name, the values of its labels, and what was read."""

ERRORS = (-0.9, -0.75, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2, 5, 10)
"""Bounds of what a prediction was off by, as a share of what came: -0.5 is half of it, 1 twice as much."""
GB = 10**9
IN_QUEUE = ("queue_full", "pushed_out", "hopeless", "deadline_passed", "left_queue")
"""Outcomes of requests that never got the local room they wanted to wait for."""

LIVE: dict[str, tuple[str, ...]] = {
    "headgate_in_flight": ("Requests the router has there now.", "endpoint", "model"),
    "headgate_endpoint_limit": ("Requests it takes at once.", "endpoint", "model"),
    "headgate_endpoint_saturation": ("How full it is: from 1 on what may leave goes elsewhere.", "endpoint", "model"),
    "headgate_endpoint_wait_seconds": ("Wait of another request before it begins, as predicted.", "endpoint", "model"),
    "headgate_endpoint_resting": ("1 where it is left alone since it fails or asked for it.", "endpoint", "model"),
    "headgate_queue_length": ("Requests that wait for local room.",),
    "headgate_queue_batch": ("Those of them that are batch.",),
    "headgate_queue_teams": ("Teams whose requests wait.",),
    "headgate_endpoint_drain": ("Requests that end there in a second while it is full.", "endpoint", "model"),
    "headgate_tasks": ("Tasks of the event loop: a few, and one or two for each open request.",),
    "headgate_instance_state": ("1 for the state it is in.", "instance", "model", "state"),
    "headgate_instance_restarts_total": ("Starts after the first.", "instance", "model"),
    "headgate_instance_swaps_total": ("Times it came and went, as it runs by demand.", "instance", "model", "how"),
    "headgate_instance_running": ("Requests the engine says it runs.", "instance", "model"),
    "headgate_instance_waiting": ("Requests the engine says it lets wait.", "instance", "model"),
    "headgate_instance_kv_use": ("Share of its KV cache in use, 0 to 1.", "instance", "model"),
    "headgate_instance_tokens_total": ("Tokens by the engine's own count.", "instance", "model", "kind"),
    "headgate_instance_prefix_tokens_total": ("Prompt tokens and its prefix cache.", "instance", "model", "kind"),
    "headgate_instance_preemptions_total": ("Requests it interrupted for want of KV cache.", "instance", "model"),
    "headgate_instance_rejections_total": ("Requests its own admission limit turned away.", "instance", "model"),
    "headgate_instance_gpu_memory_bytes": ("GPU memory its processes hold.", "instance", "model"),
    "headgate_gpu_memory_total_bytes": ("Memory.", "uuid", "index"),
    "headgate_gpu_memory_others_bytes": ("Memory that processes use which are not serving's.", "uuid", "index"),
    "headgate_gpu_memory_free_bytes": ("Memory that nobody uses.", "uuid", "index"),
    "headgate_gpu_utilisation": ("Share of time in which it worked, 0 to 1.", "uuid", "index"),
    "headgate_gpu_power_watts": ("Power it draws.", "uuid", "index"),
    "headgate_gpu_energy_joules_total": ("Energy since serving first read it.", "uuid", "index"),
    "headgate_gpu_temperature_celsius": ("Temperature.", "uuid", "index"),
    "headgate_gpu_memory_temperature_celsius": ("Temperature of its memory.", "uuid", "index"),
    "headgate_gpu_ecc_errors_total": ("Errors in its memory that were not corrected.", "uuid", "index"),
    "headgate_gpu_xid": ("Number of the last fatal error that its driver reported.", "uuid", "index"),
    "headgate_gpu_warning": ("1 for each thing that should be seen to.", "uuid", "index", "warning"),
    "headgate_gpu_fault": ("1 where it must not be used.", "uuid", "index"),
    "headgate_gpu_throttled": ("1 for each reason its clocks are held down.", "uuid", "index", "reason"),
    "headgate_router_workers": ("Workers of the router that answer.",),
    "headgate_router_workers_expected": ("Workers it should have, by router.workers.",),
    "headgate_door_open": ("1 where the door lets requests out; absent without a provider.",),
    "headgate_ledger_healthy": ("1 where records reach the ledger's disk.",),
    "headgate_history_healthy": ("1 where what was private is remembered; absent without a provider.",),
    "headgate_scanner_healthy": ("1 where the router's scanner works; absent without a provider.",),
}
"""What is read when somebody asks: help text and labels. Gauges, but for those that end in `_total`."""


@dataclass(frozen=True, slots=True)
class Live:
    """The live state that is published. `app.py` joins it from those who know."""

    endpoints: tuple[Endpoint, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    queue_length: int = 0
    tasks: int | None = None
    """Tasks of the event loop; None where nobody counts them."""
    ledger_healthy: bool = True
    door_open: bool | None = None
    """None where there is no door."""
    history_healthy: bool | None = None
    """None where nothing is remembered."""
    scanner_healthy: bool | None = None
    """None where there is none."""
    workers: int = 1
    """How many the router should have; of those that answer each counts itself."""
    queue_batch: int = 0
    """Of those that wait, how many are batch."""
    queue_teams: int = 0
    """Of how many teams they are."""
    saturations: Mapping[str, float] = field(default_factory=dict)
    """By the name of an endpoint, how full it is; `waits` the seconds before another request would begin there."""
    waits: Mapping[str, float | None] = field(default_factory=dict)


class Metrics:
    """What is counted."""

    def __init__(self) -> None:
        self._requests = Count("headgate_requests_total", "Requests ended.", "model", "place", "lane", "outcome")
        self._decisions = Count(
            "headgate_decisions_total", "Decisions, by the place of the first choice.", "lane", "place", "trigger"
        )
        self._refusals = Count("headgate_refusals_total", "Candidates ruled out, by rule.", "model", "rule")
        self._refused = Count(
            "headgate_requests_refused_total", "Requests refused before a decision, by code.", "code"
        )  # fmt: skip
        self._overflow = Count(
            "headgate_overflow_total", "Answers by another model for want of local room.", "from_model", "to_model"
        )
        self._tokens = Count(
            "headgate_tokens_total", "Tokens of answers; cached is a part of prompt.", "model", "place", "kind"
        )
        self._cost = Count("headgate_cost_usd_total", "US dollars of attempts.", "model", "place")
        self._attempts = Count(
            "headgate_attempts_total", "Tries at an endpoint, by how they ended.", "endpoint", "outcome"
        )  # fmt: skip
        self._retries = Count(
            "headgate_retries_total", "Tries after a first one of the same request, by how they ended.", "outcome"
        )
        self._unpriced = Count("headgate_unpriced_total", "Attempts without a price.", "model")
        self._queue_left = Count(
            "headgate_queue_left_total", "Requests that wanted to wait for local room, by how that ended.", "outcome"
        )
        self._first_token = Times(
            "headgate_first_token_seconds", "From the request to its answer, of a stream to its first token.", "place"
        )
        self._total = Times("headgate_request_seconds", "From the request to the end of its answer.", "place")
        self._queue_wait = Times("headgate_queue_wait_seconds", "How long local room was waited for.", "latency")
        for latency in get_args(Latency):  # there from the start
            self._queue_wait[latency,]
        self._error = Times(
            "headgate_prediction_error_ratio", "What was predicted less what came, as a share of what came.",
            "endpoint", "what", bounds=ERRORS,
        )  # fmt: skip
        self._placed = Count(
            "headgate_placed_total", "Decisions where a model has replicas, by what chose the first.", "model", "by"
        )  # fmt: skip
        self._prefix = Count(
            "headgate_prefix_tokens_total",
            "Prompt tokens of answers whose beginning was looked up: all, believed and found in the prefix cache.",
            "model", "kind",
        )  # fmt: skip
        self.open = 0
        """Requests now open."""
        self._look: Callable[[], Live] | None = None

    def collect(self) -> Iterator[Metric]:
        """Everything as metrics."""
        for counted in vars(self).values():
            if isinstance(counted, Count | Times):
                yield from counted.metrics()
        yield Metric("headgate_requests_open", "Requests now open.", "gauge", (), [("", (), self.open)])
        yield from _live(self._look)

    def watch(self, look: Callable[[], Live]) -> None:
        """Publish what `look` finds, each time somebody asks."""
        self._look = look

    def refused(self, code: str) -> None:
        """Count a request that was refused before anything could be decided."""
        self._refused[code,] += 1

    def opened(self, decision: Decision) -> None:
        self.open += 1
        for refusal in decision.refusals:
            self._refusals[refusal.model, refusal.rule] += 1

    def closed(self, decision: Decision, model: Model | None, outcome: Outcome) -> None:
        """Count a request that ended; `model` is the one that answered, if one did."""
        self.open -= 1
        lane, trigger = decision.lane, outcome.trigger.partition(":")[0]
        first = decision.order[0].model.place if decision.order else ""
        name, place = (model.name, model.place) if model else ("", "")
        self._decisions[lane, first, trigger] += 1
        self._requests[name, place, lane, outcome.outcome] += 1
        if outcome.queued_ms is not None or outcome.outcome in IN_QUEUE:
            self._queue_left[outcome.outcome if outcome.outcome in IN_QUEUE else "served",] += 1
        if outcome.queued_ms is not None:
            self._queue_wait.observe((decision.traits.latency,), outcome.queued_ms / 1000)
        self._count_attempts(outcome)
        if decision.placed:
            self._placed[decision.order[0].model.name, decision.placed] += 1
        if model is None:
            return
        self._count_prefix(name, decision, outcome)
        self._count_tokens(name, place, outcome.usage)
        if trigger == "overflow" and (full := full_model(decision, outcome)) not in ("", name):
            self._overflow[full, name] += 1
        if outcome.first_byte_ms is not None:
            self._first_token.observe((place,), outcome.first_byte_ms / 1000)
        self._total.observe((place,), outcome.total_ms / 1000)
        if outcome.met is not None and outcome.predicted is not None and len(outcome.attempts) == 1:
            self._count_error(outcome.predicted, outcome.met, (outcome.queued_ms or 0.0) / 1000)

    def _count_error(self, predicted: Prediction, met: Met, queued_s: float) -> None:
        """How far off a prediction was; it was made before the request waited for its place."""
        first = None if met.first_token_s is None else met.first_token_s + queued_s
        pairs = ("first_token", predicted.first_token_s, first), ("speed", predicted.tokens_per_s, met.tokens_per_s)
        for what, expected, came in pairs:
            if expected is not None and came:
                self._error.observe((met.endpoint, what), (expected - came) / came)

    def _count_prefix(self, name: str, decision: Decision, outcome: Outcome) -> None:
        """What was believed to be in the prefix cache beside what the answer says was, where both are known."""
        chain, usage = decision.chain, outcome.usage
        if chain is None or usage.prompt is None or usage.cached is None or not outcome.attempts:
            return
        where = outcome.attempts[-1].endpoint
        cached = next((c.endpoint.cached for c in decision.order if c.endpoint.name == where), 0)
        self._prefix[name, "prompt"] += usage.prompt
        self._prefix[name, "believed"] += usage.prompt * cached / chain.asked
        self._prefix[name, "found"] += usage.cached

    def _count_attempts(self, outcome: Outcome) -> None:
        for number, attempt in enumerate(outcome.attempts):  # a try that brought nothing can cost as well
            self._attempts[attempt.endpoint, attempt.outcome] += 1
            if number:
                self._retries[attempt.outcome,] += 1
            if attempt.cost is None:
                self._unpriced[attempt.model,] += 1
            elif attempt.cost:
                self._cost[attempt.model, attempt.place] += attempt.cost
            if attempt.usage is not None:
                self._count_tokens(attempt.model, attempt.place, attempt.usage)

    def _count_tokens(self, model: str, place: str, usage: Usage) -> None:
        if usage.prompt is not None:
            self._tokens[model, place, "prompt"] += usage.prompt
        if usage.cached is not None:
            self._tokens[model, place, "cached"] += usage.cached
        if usage.output is not None:
            self._tokens[model, place, "output"] += usage.output

    def text(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return "".join(f"{line}\n" for metric in self.collect() for line in metric.lines()).encode()

    def names(self) -> frozenset[str]:
        """The name of every metric as Prometheus sees it, also of those that have no value yet."""
        parts = ("_bucket", "_sum", "_count")
        found = (m for m in self.collect() if not m.name.endswith("_created"))
        return frozenset(m.name + end for m in found for end in (parts if m.kind == "histogram" else ("",)))


def full_model(decision: Decision, outcome: Outcome) -> str:
    """The local model that had no room for a request which overflowed.

    It was full when that was decided, or said so itself, or had filled up when its turn came; "" where there is none.
    """
    local = [c for c in decision.order if c.model.place == "local"]
    known = [c.model.name for c in local if c.endpoint.full]
    said = [a.model for a in outcome.attempts if a.place == "local" and a.outcome == "overloaded"]
    return next(iter([*known, *said, *(c.model.name for c in local)]), "")


def _live(look: Callable[[], Live] | None) -> Iterable[Metric]:
    """What is read when somebody asks."""
    found = {
        name: Metric(name, text, "counter" if name.endswith("_total") else "gauge", tuple(labels), [])
        for name, (text, *labels) in LIVE.items()
    }
    # By name and labels, for one that stands there twice makes Prometheus refuse the whole page.
    readings = {(name, labels): value for name, labels, value in (_readings(look()) if look else ())}
    for (name, labels), value in readings.items():
        if value is not None:
            found[name].samples.append(("", labels, value))
    return found.values()


def _readings(live: Live) -> Iterator[Reading]:
    for endpoint in live.endpoints:
        where = (endpoint.name, endpoint.model)
        yield "headgate_in_flight", where, endpoint.in_flight
        yield "headgate_endpoint_limit", where, endpoint.limit or None
        yield "headgate_endpoint_resting", where, 1 if endpoint.resting else 0
        yield "headgate_endpoint_saturation", where, live.saturations.get(endpoint.name)
        yield "headgate_endpoint_wait_seconds", where, live.waits.get(endpoint.name)
        yield "headgate_endpoint_drain", where, None if endpoint.pace is None else endpoint.pace.drain
        if endpoint.address != "door":
            yield from _of_instance(endpoint, where)
    for gpu in live.gpus:
        yield from _of_gpu(gpu, (gpu.uuid, str(gpu.index)))
    yield "headgate_queue_length", (), live.queue_length
    yield "headgate_queue_batch", (), live.queue_batch
    yield "headgate_queue_teams", (), live.queue_teams
    yield "headgate_tasks", (), live.tasks
    yield "headgate_router_workers", (), 1
    yield "headgate_router_workers_expected", (), live.workers
    yield "headgate_door_open", (), live.door_open
    yield "headgate_ledger_healthy", (), live.ledger_healthy
    yield "headgate_history_healthy", (), live.history_healthy
    yield "headgate_scanner_healthy", (), live.scanner_healthy


def _of_instance(endpoint: Endpoint, where: tuple[str, str]) -> Iterator[Reading]:
    yield "headgate_instance_state", (*where, endpoint.state), 1
    yield "headgate_instance_restarts_total", where, endpoint.restarts
    for how, count in endpoint.swaps:
        yield "headgate_instance_swaps_total", (*where, how), count
    yield "headgate_instance_running", where, endpoint.running
    yield "headgate_instance_waiting", where, endpoint.waiting
    yield "headgate_instance_kv_use", where, endpoint.kv_use
    yield "headgate_instance_tokens_total", (*where, "prompt"), endpoint.prompt_tokens
    yield "headgate_instance_tokens_total", (*where, "output"), endpoint.output_tokens
    yield "headgate_instance_prefix_tokens_total", (*where, "queried"), endpoint.prefix_queries
    yield "headgate_instance_prefix_tokens_total", (*where, "hit"), endpoint.prefix_hits
    yield "headgate_instance_preemptions_total", where, endpoint.preemptions
    yield "headgate_instance_rejections_total", where, endpoint.rejections
    yield "headgate_instance_gpu_memory_bytes", where, _bytes(endpoint.gpu_memory_gb)


def _of_gpu(gpu: Gpu, which: tuple[str, str]) -> Iterator[Reading]:
    memory = {"total": gpu.memory_total_gb, "free": gpu.memory_free_gb, "others": gpu.others_gb}
    for name, gb in memory.items():
        yield f"headgate_gpu_memory_{name}_bytes", which, _bytes(gb)
    yield "headgate_gpu_utilisation", which, gpu.utilisation
    yield "headgate_gpu_power_watts", which, gpu.power_w
    yield "headgate_gpu_energy_joules_total", which, gpu.energy_j
    yield "headgate_gpu_temperature_celsius", which, gpu.temperature_c
    yield "headgate_gpu_memory_temperature_celsius", which, gpu.memory_temperature_c
    yield "headgate_gpu_ecc_errors_total", which, gpu.ecc
    yield "headgate_gpu_xid", which, gpu.xid
    for warning in gpu.warnings:
        yield "headgate_gpu_warning", (*which, warning), 1
    yield "headgate_gpu_fault", which, 1 if gpu.fault else 0
    for reason in gpu.throttle:
        yield "headgate_gpu_throttled", (*which, reason), 1


def _bytes(gb: float | None) -> float | None:
    return None if gb is None else gb * GB
