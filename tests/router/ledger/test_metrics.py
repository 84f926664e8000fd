"""The metrics an operator watches, read as Prometheus reads them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.ledger.metrics import LIVE, Live, Metrics
from router.records import Attempt, Decision, Endpoint, Gpu, Met, Outcome, Prediction, Usage
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from tests.conftest import House, instance
from tests.conftest import ask as chat
from tests.fakes.asking import ask, caller, decided, endpoint, hosted, local
from tests.fakes.serving import GPU

NEAR, FAR = local(), hosted()
DECLARED = {
    "headgate_requests_total", "headgate_decisions_total", "headgate_refusals_total", "headgate_requests_refused_total",
    "headgate_overflow_total", "headgate_tokens_total", "headgate_cost_usd_total", "headgate_unpriced_total",
    "headgate_queue_left_total", "headgate_requests_open", "headgate_in_flight", "headgate_queue_length",
    "headgate_queue_batch", "headgate_queue_teams", "headgate_endpoint_drain", "headgate_endpoint_saturation",
    "headgate_endpoint_wait_seconds",
    "headgate_endpoint_limit", "headgate_instance_state", "headgate_instance_restarts_total",
    "headgate_instance_swaps_total", "headgate_instance_running", "headgate_instance_waiting",
    "headgate_instance_kv_use",
    "headgate_instance_tokens_total", "headgate_gpu_memory_total_bytes", "headgate_gpu_memory_free_bytes",
    "headgate_gpu_utilisation", "headgate_gpu_power_watts", "headgate_gpu_temperature_celsius", "headgate_gpu_fault",
    "headgate_gpu_throttled", "headgate_door_open", "headgate_ledger_healthy", "headgate_tasks",
    "headgate_history_healthy", "headgate_scanner_healthy",
    "headgate_router_workers", "headgate_router_workers_expected",
    "headgate_attempts_total", "headgate_retries_total", "headgate_endpoint_resting",
    "headgate_placed_total", "headgate_prefix_tokens_total",
    "headgate_instance_prefix_tokens_total", "headgate_instance_preemptions_total",
    "headgate_instance_rejections_total", "headgate_instance_gpu_memory_bytes",
    "headgate_gpu_memory_others_bytes", "headgate_gpu_energy_joules_total",
    "headgate_gpu_memory_temperature_celsius", "headgate_gpu_ecc_errors_total", "headgate_gpu_xid",
    "headgate_gpu_warning",
}  # fmt: skip
TIMED = {
    "headgate_first_token_seconds", "headgate_request_seconds", "headgate_queue_wait_seconds",
    "headgate_prediction_error_ratio",
}  # fmt: skip


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    return values(metrics.text().decode())


def values(page: str) -> dict[tuple[str, str], float]:
    """Value by name and label values, in the order of the labels' names."""
    families = text_string_to_metric_families(page)
    pairs = [(s, ",".join(value for _, value in sorted(s.labels.items()))) for f in families for s in f.samples]
    assert len(pairs) == len({(s.name, labels) for s, labels in pairs}), "one stands there twice"
    return {(s.name, labels): s.value for s, labels in pairs}


def tried(model: str = "near", place: str = "local", cost: float | None = 0.5, **more: Any) -> Attempt:
    return Attempt(model, model, place, **{"outcome": "answered", "status": 200, "ms": 1.0, "cost": cost, **more})


def decision(model: str = "auto", data_class: str = "private", **state: Any) -> Decision:
    return decided(ask(model), caller(data_class), NEAR, FAR, **state)


def ended(outcome: Outcome, what: Decision | None = None, answered: Any = NEAR) -> dict[tuple[str, str], float]:
    """The samples after one request."""
    metrics, what = Metrics(), what or decision()
    metrics.opened(what)
    metrics.closed(what, answered, outcome)
    return samples(metrics)


def live(**state: Any) -> dict[tuple[str, str], float]:
    metrics = Metrics()
    metrics.watch(lambda: Live(**state))
    return samples(metrics)


def named(found: dict[tuple[str, str], float], name: str) -> dict[str, float]:
    return {labels: value for (one, labels), value in found.items() if one == name}


def test_the_names_are_those_that_are_documented() -> None:
    """Dashboards, alerts and the README go by them; `names` gives them before anything was counted."""
    buckets = {f"{name}_{end}" for name in TIMED for end in ("bucket", "sum", "count")}
    assert Metrics().names() == DECLARED | buckets
    assert set(LIVE) <= DECLARED


def test_how_full_an_endpoint_is_is_shown_where_somebody_knows() -> None:
    near, far = endpoint(NEAR), endpoint(FAR)
    found = live(endpoints=(near, far), saturations={"near": 1.25}, waits={"near": None})
    assert named(found, "headgate_endpoint_saturation") == {"near,near": 1.25}
    assert named(found, "headgate_endpoint_wait_seconds") == {}
    assert named(live(endpoints=(near,), waits={"near": 0.0}), "headgate_endpoint_wait_seconds") == {"near,near": 0}


def test_an_answer_is_counted_with_its_tokens_cost_and_times() -> None:
    metrics = Metrics()
    metrics.opened(decision())
    assert samples(metrics)["headgate_requests_open", ""] == 1
    vain = tried("far", "hosted", 0.25)
    metrics.closed(
        decision(), NEAR,
        Outcome("answered", 200, (vain, tried()), Usage(10, 20, 4), cost=0.75, first_byte_ms=30.0, total_ms=2000.0),
    )  # fmt: skip
    found = samples(metrics)
    assert found["headgate_requests_open", ""] == 0
    assert found["headgate_requests_total", "auto,near,answered,local"] == 1
    assert found["headgate_refusals_total", "far,data_class_not_cleared"] == 1
    assert named(found, "headgate_tokens_total") == {
        "prompt,near,local": 10, "cached,near,local": 4, "output,near,local": 20,
    }  # fmt: skip
    assert found["headgate_cost_usd_total", "near,local"] == 0.5
    assert found["headgate_cost_usd_total", "far,hosted"] == 0.25
    assert found["headgate_first_token_seconds_sum", "local"] == 0.03
    assert found["headgate_request_seconds_sum", "local"] == 2.0


def test_tokens_that_nobody_counted_are_not_counted_as_none() -> None:
    found = named(ended(Outcome("answered", 200, (tried(),), Usage(10, None))), "headgate_tokens_total")
    assert found == {"prompt,near,local": 10}


def test_an_answer_that_was_set_aside_counts_with_its_tokens_for_its_own_model() -> None:
    aside = tried(outcome="check_failed", usage=Usage(7, 3))
    found = ended(Outcome("answered", 200, (aside, tried("far", "hosted")), Usage(8, 5)), answered=FAR)
    tokens = named(found, "headgate_tokens_total")
    assert (tokens["prompt,near,local"], tokens["output,near,local"], tokens["output,far,hosted"]) == (7, 3, 5)


def test_an_unpriced_answer_adds_no_cost_and_is_counted_as_unpriced() -> None:
    found = ended(Outcome("answered", 200, (tried(cost=None),), Usage(10, 20)))
    assert found["headgate_unpriced_total", "near"] == 1
    assert ("headgate_cost_usd_total", "near,local") not in found


def test_a_refusal_has_no_model_and_no_tokens() -> None:
    found = ended(Outcome("refused", 403, cost=0.0), decision("frontier"), None)
    assert found["headgate_requests_total", "frontier,,refused,"] == 1
    assert found["headgate_requests_open", ""] == 0
    assert named(found, "headgate_decisions_total") == {"frontier,,": 1}
    assert not [name for name, _ in found if name.startswith("headgate_tokens_total")]


@pytest.mark.parametrize(
    ("model", "lane"), [("auto", "auto"), ("private", "private"), ("cheap", "cheap"), ("near", "named")]
)
def test_a_decision_is_counted_by_what_was_asked_for(model: str, lane: str) -> None:
    found = ended(Outcome("answered", 200, (tried(),)), decision(model))
    assert named(found, "headgate_decisions_total") == {f"{lane},local,": 1}


@pytest.mark.parametrize(
    ("decided_by", "ended_by", "counted"),
    [
        ("caller:low", "caller:low", "caller"), ("rule:proofs", "rule:proofs", "rule"),
        ("context", "context", "context"),
        ("overflow", "", ""),  # there was room here in the end
        ("", "overflow", "overflow"), ("rule:proofs", "cascade", "cascade"), ("", "", ""),
    ],
)  # fmt: skip
def test_a_trigger_is_counted_by_its_kind_and_not_by_what_callers_call_it(
    decided_by: str, ended_by: str, counted: str
) -> None:
    """A label is the caller's; as a label of a metric it would let callers make as many series as they like."""
    what = decision(data_class="public")._replace(trigger=decided_by)
    found = ended(Outcome("answered", 200, (tried(),), trigger=ended_by), what)
    assert named(found, "headgate_decisions_total") == {f"auto,local,{counted}": 1}


def test_an_overflow_names_who_was_full_and_who_answered() -> None:
    served = [endpoint(NEAR, limit=4, in_flight=4), endpoint(FAR)]
    full = decision(data_class="public", endpoints=served)._replace(trigger="overflow")
    answer = Outcome("answered", 200, (tried("far", "hosted"),), trigger="overflow")
    assert named(ended(answer, full, FAR), "headgate_overflow_total") == {"near,far": 1}
    # It had room at last, so nothing went elsewhere.
    assert named(ended(Outcome("answered", 200, (tried(),)), full), "headgate_overflow_total") == {}
    assert named(ended(Outcome("failed", 502), full, None), "headgate_overflow_total") == {}


def test_an_engine_that_said_it_is_full_is_an_overflow_too() -> None:
    said = tried(outcome="overloaded", status=503, cost=0.0)
    answer = Outcome("answered", 200, (said, tried("far", "hosted")), trigger="overflow")
    assert named(ended(answer, answered=FAR), "headgate_overflow_total") == {"near,far": 1}
    broken = Outcome("answered", 200, (said._replace(outcome="reset"), tried("far", "hosted")))
    assert named(ended(broken, answered=FAR), "headgate_overflow_total") == {}


@pytest.mark.parametrize(
    ("outcome", "queued_ms", "left"),
    [
        ("answered", 250.0, "served"), ("failed", 250.0, "served"), ("queue_full", None, "queue_full"),
        ("queue_full", 0.0, "queue_full"), ("deadline_passed", 10_000.0, "deadline_passed"),
        ("left_queue", 30.0, "left_queue"), ("answered", None, None), ("pushed_out", 20.0, "pushed_out"),
        ("hopeless", 0.1, "hopeless"),
    ],
)  # fmt: skip
def test_how_a_request_left_the_queue_is_its_own_count(outcome: str, queued_ms: float | None, left: str | None) -> None:
    found = ended(Outcome(outcome, 200, queued_ms=queued_ms), answered=None)
    assert named(found, "headgate_queue_left_total") == ({left: 1} if left else {})
    waits = named(found, "headgate_queue_wait_seconds_sum")
    assert waits == {"interactive": (queued_ms or 0) / 1000, "batch": 0}


def test_a_request_that_could_not_be_decided_is_counted_by_its_code() -> None:
    metrics = Metrics()
    metrics.refused("model_not_found")
    assert named(samples(metrics), "headgate_requests_refused_total") == {"model_not_found": 1}


def test_instances_are_shown_as_they_are_now() -> None:
    near = endpoint(
        NEAR, name="near-1", in_flight=3, limit=16, running=2, waiting=1, kv_use=0.25, restarts=1, prompt_tokens=1200,
        output_tokens=34,
    )  # fmt: skip
    found = live(endpoints=(near, endpoint(FAR, state="closed", in_flight=2)))
    instances = {name: value for (name, labels), value in found.items() if labels == "near-1,near"}
    assert instances == {
        "headgate_instance_running": 2, "headgate_instance_waiting": 1, "headgate_instance_kv_use": 0.25,
        "headgate_instance_restarts_total": 1, "headgate_in_flight": 3, "headgate_endpoint_limit": 16,
        "headgate_endpoint_resting": 0,
    }  # fmt: skip
    assert named(found, "headgate_instance_state") == {"near-1,near,ready": 1}  # a hosted model is no instance
    assert named(found, "headgate_instance_tokens_total") == {"near-1,prompt,near": 1200, "near-1,output,near": 34}
    assert named(found, "headgate_in_flight") == {"near-1,near": 3, "far,far": 2}


def test_an_instances_own_counts_are_shown() -> None:
    near = endpoint(
        NEAR, name="near-1", prefix_queries=1000, prefix_hits=800, preemptions=0, rejections=5,
        gpu_memory_gb=20.5,
    )  # fmt: skip
    found = live(endpoints=(near,))
    shown = {name: value for (name, labels), value in found.items() if labels == "near-1,near"}
    assert {name: value for name, value in shown.items() if "instance" in name} == {
        "headgate_instance_preemptions_total": 0, "headgate_instance_rejections_total": 5,
        "headgate_instance_gpu_memory_bytes": 20.5e9,
    }  # fmt: skip
    tokens = named(found, "headgate_instance_prefix_tokens_total")
    assert tokens == {"near-1,queried,near": 1000, "near-1,hit,near": 800}
    assert named(found, "headgate_instance_swaps_total") == {}, "it does not run by demand"


def test_how_often_a_model_by_demand_came_and_went_is_shown() -> None:
    found = live(endpoints=(endpoint(NEAR, name="near-1", swaps=(("start", 3), ("sleep", 0))),))
    shown = named(found, "headgate_instance_swaps_total")
    assert sorted(shown.values()) == [0, 3] and all("near-1" in labels for labels in shown)


def test_the_health_of_a_gpu_is_shown() -> None:
    gpu = Gpu(
        "GPU-a", 0, memory_temperature_c=66, energy_j=1234.5, ecc=0, xid=79,
        warnings=("PCIe runs on 4 of 16 lanes",), others_gb=7.5, fault="XID 79: it has fallen off the bus",
    )  # fmt: skip
    found = live(gpus=(gpu,))
    assert {name: value for (name, labels), value in found.items() if labels == "0,GPU-a"} == {
        "headgate_gpu_memory_others_bytes": 7.5e9,
        "headgate_gpu_memory_temperature_celsius": 66, "headgate_gpu_energy_joules_total": 1234.5,
        "headgate_gpu_ecc_errors_total": 0, "headgate_gpu_xid": 79, "headgate_gpu_fault": 1,
    }  # fmt: skip
    assert named(found, "headgate_gpu_warning") == {"0,GPU-a,PCIe runs on 4 of 16 lanes": 1}


def test_an_endpoint_of_which_nothing_is_known_shows_nothing_and_no_zero() -> None:
    found = live(endpoints=(endpoint(NEAR),))
    of_it = {name for name, labels in found if "near" in labels}
    assert of_it == {"headgate_in_flight", "headgate_instance_state", "headgate_endpoint_resting"}


def test_gpus_are_shown_with_what_is_wrong() -> None:
    hot = Gpu("GPU-a", 0, 20.5, 0.9, 71, ("power cap", "hardware thermal"), "", "H200", 141.0, 600)
    lost = Gpu("GPU-b", 1, fault="GPU is lost")
    found = live(gpus=(hot, lost))
    assert {name: value for (name, labels), value in found.items() if labels == "0,GPU-a"} == {
        "headgate_gpu_memory_total_bytes": 141e9, "headgate_gpu_memory_free_bytes": 20.5e9,
        "headgate_gpu_utilisation": 0.9, "headgate_gpu_power_watts": 600, "headgate_gpu_temperature_celsius": 71,
        "headgate_gpu_fault": 0,
    }  # fmt: skip
    assert named(found, "headgate_gpu_throttled") == {"0,power cap,GPU-a": 1, "0,hardware thermal,GPU-a": 1}
    # What a lost card no longer says is unknown.
    assert {name: value for (name, labels), value in found.items() if "GPU-b" in labels} == {"headgate_gpu_fault": 1}


def test_queue_door_and_ledger() -> None:
    found = live(queue_length=7, queue_batch=5, queue_teams=2, door_open=False, ledger_healthy=True)
    assert (found["headgate_queue_length", ""], found["headgate_door_open", ""]) == (7, 0)
    assert (found["headgate_queue_batch", ""], found["headgate_queue_teams", ""]) == (5, 2)
    assert found["headgate_ledger_healthy", ""] == 1
    assert live(history_healthy=False)["headgate_history_healthy", ""] == 0
    assert ("headgate_history_healthy", "") not in live()  # nothing is remembered: neither well nor not
    assert ("headgate_door_open", "") not in live(door_open=None)  # there is none: neither open nor closed


def test_one_name_twice_does_not_spoil_the_page() -> None:
    twice = Endpoint("far", "far", "", "failed", in_flight=1)
    assert named(live(endpoints=(twice, endpoint(FAR))), "headgate_in_flight") == {"far,far": 0}


def test_what_is_live_is_read_anew_each_time() -> None:
    metrics, length = Metrics(), iter((1, 5))
    metrics.watch(lambda: Live(queue_length=next(length)))
    assert [samples(metrics)["headgate_queue_length", ""] for _ in range(2)] == [1, 5]


async def test_the_operators_page_has_requests_engines_and_gpus(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one place that Prometheus asks, through a whole router; a reading that cannot be true is left out."""
    load = {"running": 2, "waiting": -1, "kv_use": 0.5, "age_s": 0.1}
    house.instances = [instance("small", house.local.address, load=load, gpus=["GPU-a"])]
    said = house.document() | {"gpus": [{**GPU, "power_w": -5, "throttle": ["power cap"]}]}
    monkeypatch.setattr(house, "document", lambda: said)
    await house.start()
    assert (await house.post(chat("small"), house.key())).status == 200
    connections = Connections(Deadlines(), Bounds())
    address = Address.parse(f"unix:{house.home.socket('admin')}")
    found = values((await (await connections.get(address, "/metrics")).read()).decode())
    await connections.close()
    assert found["headgate_requests_total", "named,small,answered,local"] == 1
    assert found["headgate_instance_running", "small,small"] == 2
    assert found["headgate_instance_kv_use", "small,small"] == 0.5
    assert found["headgate_gpu_memory_free_bytes", "0,GPU-a"] == 20.5e9
    assert found["headgate_gpu_throttled", "0,power cap,GPU-a"] == 1
    assert found["headgate_ledger_healthy", ""] == 1
    assert not {name for name, _ in found} & {
        "headgate_instance_waiting", "headgate_gpu_power_watts", "headgate_door_open",
    }  # fmt: skip


def test_two_routers_in_one_process_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.opened(decision())
    assert samples(two)["headgate_requests_open", ""] == 0


def test_how_far_off_a_prediction_was_is_counted_as_a_share_of_what_came() -> None:
    """It was made before the request waited for its place, so that wait is a part of what came."""
    predicted, met = Prediction(0.5, 3.0, 50.0), Met("near", 0.1, 1.0, 100.0)
    outcome = Outcome("answered", 200, (tried(),), predicted=predicted, met=met, queued_ms=1000.0)
    found = ended(outcome)
    name = "headgate_prediction_error_ratio"
    assert named(found, f"{name}_sum") == {"near,first_token": pytest.approx(0.5), "near,speed": pytest.approx(-0.5)}
    buckets = named(found, f"{name}_bucket")
    assert (buckets["near,0.25,first_token"], buckets["near,0.5,first_token"]) == (0, 1)
    assert (buckets["near,-0.75,speed"], buckets["near,-0.5,speed"]) == (0, 1)


@pytest.mark.parametrize(
    "changed",
    [{"predicted": None}, {"met": None}, {"met": Met("near")}, {"predicted": Prediction()},
     {"attempts": (tried(), tried())}],
)  # fmt: skip
def test_what_was_not_predicted_or_cannot_be_compared_is_no_error(changed: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"predicted": Prediction(0.0, 1.0, 50.0), "met": Met("near", 0.0, 1.0, 50.0)}
    outcome = Outcome("answered", 200, **{"attempts": (tried(),), **usual, **changed})
    assert not [key for key in ended(outcome) if key[0].startswith("headgate_prediction")]
