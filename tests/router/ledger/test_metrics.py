"""The metrics an operator watches, read as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from router.ledger.metrics import Metrics
from router.records import Attempt, Decision, Outcome, Usage
from tests.fakes.asking import ask, caller, decided, hosted, local

NEAR = local()


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Value by name and label values, in the order of the labels' names."""
    families = text_string_to_metric_families(metrics.text().decode())
    pairs = [(s, ",".join(value for _, value in sorted(s.labels.items()))) for f in families for s in f.samples]
    return {(s.name, labels): s.value for s, labels in pairs}


def tried(model: str = "near", place: str = "local", cost: float | None = 0.5) -> Attempt:
    return Attempt(model, model, place, "answered", 200, 1.0, cost=cost)


def decision() -> Decision:
    return decided(ask(), caller("private"), NEAR, hosted())


def test_an_answer_is_counted_with_its_tokens_cost_and_times() -> None:
    metrics = Metrics()
    metrics.opened(decision())
    assert samples(metrics)["headgate_requests_open", ""] == 1
    vain = tried("far", "hosted", 0.25)
    metrics.closed(
        decision(), NEAR,
        Outcome("answered", 200, (vain, tried()), Usage(10, 20), cost=0.75, first_byte_ms=30.0, total_ms=2000.0),
    )  # fmt: skip
    found = samples(metrics)
    assert found["headgate_requests_open", ""] == 0
    assert found["headgate_requests_total", "near,answered,local"] == 1
    assert found["headgate_refusals_total", "far,data_class_not_cleared"] == 1
    assert found["headgate_tokens_total", "prompt,near"] == 10
    assert found["headgate_tokens_total", "output,near"] == 20
    assert found["headgate_cost_usd_total", "near,local"] == 0.5
    assert found["headgate_cost_usd_total", "far,hosted"] == 0.25
    assert found["headgate_first_byte_seconds_sum", "local"] == 0.03
    assert found["headgate_request_seconds_sum", "local"] == 2.0


def test_an_unpriced_answer_adds_no_cost_and_is_counted_as_unpriced() -> None:
    metrics = Metrics()
    metrics.opened(decision())
    metrics.closed(decision(), NEAR, Outcome("answered", 200, (tried(cost=None),), Usage(10, 20)))
    found = samples(metrics)
    assert found["headgate_unpriced_total", "near"] == 1
    assert ("headgate_cost_usd_total", "near,local") not in found


def test_a_refusal_has_no_model_and_no_tokens() -> None:
    metrics = Metrics()
    metrics.opened(decision())
    metrics.closed(decision(), None, Outcome("refused", 403, cost=0.0))
    found = samples(metrics)
    assert found["headgate_requests_total", ",refused,"] == 1
    assert found["headgate_requests_open", ""] == 0
    assert not [name for name, _ in found if name.startswith("headgate_tokens_total")]


def test_two_routers_in_one_process_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.opened(decision())
    assert samples(two)["headgate_requests_open", ""] == 0
