"""Every Prometheus metric of the router, declared here and nowhere else. Names follow Prometheus' conventions."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from router.records import Decision, Outcome
from serving.catalogue import Model

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The registry and what is counted in it."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "headgate_requests", "Requests ended.", ["model", "place", "outcome"], registry=registry
        )
        self._refusals = Counter(
            "headgate_refusals", "Candidates ruled out, by rule.", ["model", "rule"], registry=registry
        )
        self._refused = Counter(
            "headgate_requests_refused", "Requests refused before a decision, by code.", ["code"], registry=registry
        )
        self._tokens = Counter("headgate_tokens", "Tokens of answers.", ["model", "kind"], registry=registry)
        self._cost = Counter("headgate_cost_usd", "US dollars of attempts.", ["model", "place"], registry=registry)
        self._unpriced = Counter("headgate_unpriced", "Attempts without a price.", ["model"], registry=registry)
        self._first_byte = Histogram(
            "headgate_first_byte_seconds", "Time to the first byte.", ["place"], buckets=SECONDS, registry=registry
        )
        self._total = Histogram(
            "headgate_request_seconds", "Time to the end.", ["place"], buckets=SECONDS, registry=registry
        )
        self._open = Gauge("headgate_requests_open", "Requests now open.", registry=registry)

    def refused(self, code: str) -> None:
        """Count a request that was refused before anything could be decided."""
        self._refused.labels(code).inc()

    def opened(self, decision: Decision) -> None:
        self._open.inc()
        for refusal in decision.refusals:
            self._refusals.labels(refusal.model, refusal.rule).inc()

    def closed(self, decision: Decision, model: Model | None, outcome: Outcome) -> None:
        """Count a request that ended; `model` is the one that answered, if one did."""
        self._open.dec()
        name, place = (model.name, model.place) if model else ("", "")
        self._requests.labels(name, place, outcome.outcome).inc()
        for attempt in outcome.attempts:  # a try that brought nothing can cost as well
            if attempt.cost is None:
                self._unpriced.labels(attempt.model).inc()
            elif attempt.cost:
                self._cost.labels(attempt.model, attempt.place).inc(attempt.cost)
        if model is None:
            return
        self._tokens.labels(name, "prompt").inc(outcome.usage.prompt or 0)
        self._tokens.labels(name, "output").inc(outcome.usage.output or 0)
        if outcome.first_byte_ms is not None:
            self._first_byte.labels(place).observe(outcome.first_byte_ms / 1000)
        self._total.labels(place).observe(outcome.total_ms / 1000)

    def text(self) -> bytes:
        """All metrics in Prometheus' text form."""
        return generate_latest(self.registry)
