"""The metrics of several workers on one page: nothing counted twice, nothing lost, no counter that goes down."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from router.ledger.metrics import Live, Metrics
from router.ledger.totals import Totals, read
from router.records import Endpoint


class Worker:
    """One worker's metrics, from its start on."""

    def __init__(self) -> None:
        self.metrics = Metrics()

    def page(
        self, requests: int = 0, refused: int = 0, in_flight: int = 0, tokens: int = 0, waiting: int = 0,
        healthy: bool = True,
    ) -> bytes:  # fmt: skip
        """After so many requests more."""
        endpoint = Endpoint("small", "small", "unix:/s", "ready", in_flight=in_flight, limit=4, prompt_tokens=tokens)
        full = {"small": in_flight / 4}
        now = Live((endpoint,), queue_length=waiting, ledger_healthy=healthy, workers=3, saturations=full, waits=full)
        self.metrics.watch(lambda: now)
        for _ in range(refused):
            self.metrics.refused("invalid_request")
        for _ in range(requests):
            self.metrics.refused("other")
        return self.metrics.text()


def page(requests: int = 0, refused: int = 0, **more: int) -> bytes:
    """That of a worker which has just been started."""
    return Worker().page(requests, refused, **more)


def value(found: bytes, name: str, **labels: str) -> float:
    """One sample, as Prometheus reads the page."""
    for family in text_string_to_metric_families(found.decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise AssertionError(f"{name} is not there")


def test_what_was_counted_is_summed_and_what_all_see_is_not() -> None:
    found = Totals().page(page(3, 1, in_flight=2, tokens=500), [page(4, in_flight=1, tokens=500, waiting=2), page()])
    assert value(found, "headgate_requests_refused_total", code="other") == 7
    assert value(found, "headgate_requests_refused_total", code="invalid_request") == 1
    assert value(found, "headgate_in_flight") == 3
    assert value(found, "headgate_endpoint_limit") == 12
    assert value(found, "headgate_endpoint_saturation") == value(found, "headgate_endpoint_wait_seconds") == 0.5
    assert value(found, "headgate_queue_length") == 2
    assert value(found, "headgate_instance_tokens_total") == 500  # the engine's own count
    assert value(found, "headgate_ledger_healthy") == 1
    assert value(found, "headgate_router_workers") == 3 and value(found, "headgate_router_workers_expected") == 3


def test_a_worker_that_is_silent_is_missing_from_those_that_answer() -> None:
    found = Totals().page(page(), [None, page()])
    assert value(found, "headgate_router_workers") == 2 and value(found, "headgate_router_workers_expected") == 3


def test_a_ledger_that_one_worker_cannot_write_is_not_healthy() -> None:
    assert value(Totals().page(page(), [page(), page(healthy=False)]), "headgate_ledger_healthy") == 0


def test_what_only_another_worker_has_counted_is_on_the_page() -> None:
    found = Totals().page(page(), [page(2)])
    assert value(found, "headgate_requests_refused_total", code="other") == 2


def test_one_page_is_the_same_page_to_prometheus() -> None:
    own = page(3, 1, in_flight=2, tokens=500)
    before, after = (list(text_string_to_metric_families(text.decode())) for text in (own, Totals().page(own, [None])))
    assert {f.name: (f.type, f.samples) for f in before} == {f.name: (f.type, f.samples) for f in after}
    assert read(own).keys() == read(Totals().page(own, [])).keys()


def others(found: bytes) -> float:
    return value(found, "headgate_requests_refused_total", code="other")


def test_a_worker_that_is_silent_or_was_started_again_makes_no_counter_go_down() -> None:
    totals, seen = Totals(), []
    own, one, next_one = page(1), Worker(), Worker()
    for other in (one.page(5), None, one.page(2), next_one.page(1, 2), None, next_one.page(2), page(0, 1)):
        seen.append(others(totals.page(own, [other])))
    assert seen == [6, 6, 8, 9, 9, 11, 11]
    assert value(totals.page(page(1), [None]), "headgate_in_flight") == 0  # nothing of what is not there now


def test_a_worker_started_again_that_has_counted_more_by_now_hides_nothing_of_the_earlier_one() -> None:
    totals, own = Totals(), page(1)
    assert others(totals.page(own, [page(5)])) == 6
    assert others(totals.page(own, [page(7)])) == 13


def test_where_the_first_worker_was_started_again_all_begins_anew() -> None:
    """Prometheus takes what is left of a sum that fell for new: what the others have would be counted twice."""
    one, two, own = Worker(), Worker(), Worker()
    assert others(Totals().page(page(10), [one.page(20), two.page(30)])) == 60
    totals = Totals(successor=True)
    assert others(totals.page(own.page(1), [one.page(2), None])) == 1
    assert others(totals.page(own.page(1), [one.page(3), two.page(4)])) == 5
    assert others(totals.page(own.page(), [one.page(), two.page(5)])) == 10
    assert others(totals.page(own.page(), [page(7), two.page()])) == 17
    counts = totals.page(own.page(), [None, None])
    assert value(counts, "headgate_queue_wait_seconds_count", latency="batch") == 0


def test_sums_of_fractions_that_round_otherwise_make_no_counter_go_down() -> None:
    totals, last, first = Totals(), 0.0, Worker()
    first.metrics._cost["m", "hosted"] += 0.1
    for number in range(100):
        workers = [Worker(), Worker()]
        for step in range(3):
            for worker in workers:
                worker.metrics._cost["m", "hosted"] += step * (number + 1) / 70
            pages = [worker.metrics.text() for worker in workers]
            now = value(totals.page(first.page(), pages), "headgate_cost_usd_total")
            assert now >= last
            last = now
