"""serving's document: checked before anything is sent, and no entry or reading, however odd, hides the others."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest

from router.records import Endpoint, Gpu
from router.upstream import instances
from router.upstream.inside import Inside
from router.upstream.instances import Instances, unlisted
from serving.catalogue import Price
from tests.conftest import instance
from tests.fakes.serving import CATALOGUE, GPU, document

RATE = Price(input=0.25, output=1.5)
LOAD = {
    "running": 3, "waiting": 1, "kv_use": 0.25, "asleep": False, "prompt_tokens": 1200, "output_tokens": 34,
    "age_s": 0.2,
}  # fmt: skip


def read(*entries: Any, **changed: Any) -> Instances:
    """As the router reads it: from JSON."""
    said = orjson.loads(json.dumps(document(*entries, **changed)))
    return instances.read(said, CATALOGUE, Inside(CATALOGUE), {"mine": RATE}.get)


def state(found: Instances, name: str = "x") -> tuple[str, str, bool]:
    """State and detail of an endpoint, and whether it can be reached."""
    endpoint = next(e for e in found.endpoints if e.name == name)
    return endpoint.state, endpoint.detail, name in found.access


def loaded(load: Any, **changed: Any) -> Endpoint:
    """The endpoint of an entry with this load."""
    return read(instance("x", "unix:/x", load=load), **changed).endpoints[0]


def card(gpus: Any, used: Any = ("GPU-a",), **changed: Any) -> tuple[Gpu, ...]:
    """The GPUs of an endpoint that says it runs on `used`."""
    return read(instance("x", "unix:/x", gpus=used), gpus=gpus, **changed).endpoints[0].gpus


def test_an_entry_is_reached_as_it_says() -> None:
    found = read(instance("x", "https://gpu-9.internal:8000", ca_file="/etc/ca.pem", key_file="/etc/key"))
    assert state(found) == ("ready", "", True)
    assert found.access["x"].address.ca_file == "/etc/ca.pem" and found.access["x"].key_file == "/etc/key"


def test_an_address_outside_is_refused_and_not_reached() -> None:
    found, detail, reached = state(read(instance("x", "https://anything.example", attached=True)))
    assert (found, reached) == ("failed", False) and "attach[].ca_file" in detail


def test_servings_own_reason_is_kept_where_it_refused_first() -> None:
    found = read(instance("x", "https://a.example", state="failed", detail="put it into the file"))
    assert state(found) == ("failed", "put it into the file", False)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "two words"}, {"model": "auto"}, {"model": 7}, {"address": "ftp://x"}, {"address": "http://a/b"},
        {"address": ["unix:/x"]}, {"address": ""}, {"context": "many"}, {"context": -1}, {"limit": True},
        {"limit": 1.5}, {"limit": 1e300}, {"state": 1}, {"ca_file": 1}, {"key_env": {}}, {"served": []},
        {"detail": 1.5}, {"model": "big"}, {"model": "new", "abilities": [{}]}, {"model": "new", "abilities": 7},
        {"model": "new", "abilities": "chat"},
    ],
)  # fmt: skip
def test_one_odd_entry_fails_alone_and_says_why(changed: dict[str, Any]) -> None:
    odd = instance("x", "unix:/x") | changed
    found = read(odd, instance("small", "unix:/run/small"))
    assert found.left_out == 0
    how, detail, reached = state(found)
    assert (how, reached) == ("failed", False) and detail and "\n" not in detail
    assert state(found, "small") == ("ready", "", True)
    assert {e.model for e in found.endpoints} <= set(found.models)


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, {"name": None}, {"name": ""}, {"name": "a b"}, {"name": "auto"}])
def test_an_entry_without_a_usable_name_is_left_out(odd: Any) -> None:
    found = read(odd, instance("small", "unix:/run/small"))
    assert found.left_out == 1 and [e.name for e in found.endpoints] == ["small"]


def test_a_second_entry_of_one_name_does_not_take_over_the_first() -> None:
    found = read(instance("small", "unix:/a"), instance("small", "unix:/b"))
    assert found.left_out == 1 and str(found.access["small"].address) == "unix:/a"


def test_an_entry_that_says_little_is_taken() -> None:
    assert state(read({"name": "x", "state": "starting"})) == ("starting", "", False)


@pytest.mark.parametrize("odd", [None, 7, [], {}, {"version": 2}, {"version": 1}, {"version": 1, "instances": {}}])
def test_a_document_of_another_shape_is_refused_in_words(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"another version|no list of instances"):
        instances.read(odd, CATALOGUE, Inside(CATALOGUE), lambda _: None)


def test_the_load_of_an_engine_is_that_of_its_endpoint() -> None:
    seen = loaded(LOAD)
    assert (seen.running, seen.waiting, seen.kv_use, seen.asleep) == (3, 1, 0.25, False)
    assert (seen.prompt_tokens, seen.output_tokens, seen.restarts) == (1200, 34, 0)
    attached = read(instance("x", "unix:/x", attached=True)).endpoints[0]
    assert attached.restarts is None  # it is not started here, so nobody knows


@pytest.mark.parametrize("odd", [-1, "two", True, 1e300, 10**15, [], {}, 2**70])
def test_a_reading_of_an_engine_that_cannot_be_true_is_unknown_and_the_engine_stays(odd: Any) -> None:
    for name, known in LOAD.items():
        if name not in ("asleep", "age_s"):
            seen = loaded({**LOAD, name: odd})
            assert getattr(seen, name) is None, name
            assert seen.state == "ready" and seen.asleep is False
            others = [n for n in LOAD if n not in (name, "age_s")]
            assert [getattr(seen, n) for n in others] == [LOAD[n] for n in others], known


@pytest.mark.parametrize("used", [7, 1.01, math.nextafter(1, 2), -0.01, "0.5", True])
def test_a_share_of_the_cache_is_between_none_and_all(used: Any) -> None:
    assert loaded({**LOAD, "kv_use": used}).kv_use is None
    assert loaded({**LOAD, "kv_use": 1}).kv_use == 1


def test_a_number_that_is_none_is_in_no_range() -> None:
    """JSON has no NaN; this holds wherever a reading comes from."""
    found = instances.read(
        document(instance("x", "unix:/x", load={**LOAD, "kv_use": math.nan}), gpus=[{**GPU, "utilisation": math.nan}]),
        CATALOGUE, Inside(CATALOGUE), lambda _: None,
    )  # fmt: skip
    assert found.endpoints[0].kv_use is None and found.gpus[0].utilisation is None


@pytest.mark.parametrize("load", [None, "full", 7, [], {}])
def test_a_load_that_is_none_is_unknown_and_never_idle(load: Any) -> None:
    seen = loaded(load)
    assert (seen.state, seen.running, seen.waiting, seen.kv_use, seen.asleep) == ("ready", None, None, None, None)


@pytest.mark.parametrize("odd", ["no", 0, 1, [], {}])
def test_whether_it_sleeps_is_yes_no_or_unknown(odd: Any) -> None:
    assert loaded({**LOAD, "asleep": odd}).asleep is None


def test_a_load_of_long_ago_is_unknown_but_not_whether_it_sleeps() -> None:
    seen = loaded({**LOAD, "asleep": True, "age_s": 15.1})
    assert (seen.running, seen.waiting, seen.kv_use, seen.asleep) == (None, None, None, True)
    assert loaded({**LOAD, "age_s": 15}).running == 3


READ = {"prefix_queries": 1000, "prefix_hits": 800, "preemptions": 2, "preempted_s": 1.5, "rejections": 4}


def test_what_its_engine_counts_is_read_and_what_it_does_not_say_is_unknown() -> None:
    seen = loaded({**LOAD, **READ, "kv_tokens": 65536})
    assert {name: getattr(seen, name) for name in READ} == READ and seen.kv_tokens == 65536
    silent = loaded(LOAD)
    assert all(getattr(silent, name) is None for name in (*READ, "kv_tokens"))


@pytest.mark.parametrize("odd", [-1, "many", True, 1e300, [], {}])
def test_a_count_that_cannot_be_true_is_unknown_and_takes_no_other_along(odd: Any) -> None:
    for name in READ:
        seen = loaded({**LOAD, **READ, name: odd})
        assert getattr(seen, name) is None and seen.running == 3
    assert loaded({**LOAD, "kv_tokens": 0}).kv_tokens is None


def test_an_interruption_of_an_old_reading_was_at_another_time() -> None:
    seen = loaded({**LOAD, **READ, "age_s": 15.1})
    assert seen.preempted_s is None and seen.preemptions == 2


@pytest.mark.parametrize(
    ("said", "swaps"),
    [
        ({"start": 2, "stop": 1, "sleep": 0, "wake": 0}, (("start", 2), ("stop", 1), ("sleep", 0), ("wake", 0))),
        ({"start": 2, "stop": -1, "sleep": "often", "x": 7}, (("start", 2),)), (None, ()), ([1], ()), ("start", ()),
    ],
)  # fmt: skip
def test_how_often_it_came_and_went_is_read_word_by_word(said: Any, swaps: tuple[tuple[str, int], ...]) -> None:
    found = read(instance("x", "unix:/x", swaps=said)).endpoints[0]
    assert found.swaps == swaps and found.state == "ready"
    assert found.now(0, 1, False, 0, "", False, 1.0).swaps == swaps, "what the router adds takes nothing away"


@pytest.mark.parametrize(
    ("said", "gb"),
    [
        ({"GPU-a": 20.5, "GPU-b": 20.0}, 40.5), ({"GPU-a": 20.5, "GPU-b": None}, None), (None, None), ({}, None),
        ([20.5], None), ({"GPU-a": -1}, None), ({"GPU-a": "many"}, None),
    ],
)  # fmt: skip
def test_what_it_holds_of_all_its_gpus_is_known_as_a_whole_or_not_at_all(said: Any, gb: float | None) -> None:
    found = read(instance("x", "unix:/x", gpu_memory_gb=said))
    assert found.endpoints[0].gpu_memory_gb == gb and found.endpoints[0].state == "ready"


@pytest.mark.parametrize(
    ("load", "limit", "in_flight", "fills"),
    [
        ({"running": 7, "waiting": 0}, 16, 0, False), ({"running": 7, "waiting": 1}, 16, 0, True),
        ({"running": 0}, 16, 8, True), ({"running": 16}, 16, 0, False), ({"kv_use": 0.5}, 16, 0, True),
        ({"kv_use": 1.0}, 16, 0, False), ({"running": 100}, 0, 50, False), ({}, 16, 0, False),
    ],
)  # fmt: skip
def test_an_engine_fills_between_half_full_and_full(
    load: dict[str, Any], limit: int, in_flight: int, fills: bool
) -> None:  # fmt: skip
    endpoint = read(instance("x", "unix:/x", load=load, limit=limit)).endpoints[0]
    assert instances.filling(endpoint, in_flight) is fills
    assert not instances.filling(endpoint._replace(state="starting"), in_flight)


def test_an_endpoint_has_the_gpus_it_runs_on() -> None:
    other = {**GPU, "uuid": "GPU-b", "index": 1}
    (gpu,) = card([other, GPU])
    assert gpu == Gpu("GPU-a", 0, 20.5, 0.9, 71, ("hardware thermal",), "", "H200", 141.0, 600)
    assert [g.index for g in card([GPU, other], ["GPU-b", "GPU-c", "GPU-a"])] == [
        1,
        0,
    ]  # one that is unknown is left out


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("memory_free_gb", -1), ("memory_free_gb", 141.5), ("memory_free_gb", "many"), ("memory_total_gb", -5),
        ("utilisation", 3.0), ("utilisation", -1), ("utilisation", True), ("power_w", -1), ("power_w", 1e300),
        ("temperature_c", -40), ("temperature_c", []),
    ],
)  # fmt: skip
def test_a_reading_of_a_gpu_that_cannot_be_true_is_unknown(name: str, odd: Any) -> None:
    (gpu,) = card([{**GPU, name: odd}])
    assert getattr(gpu, name) is None and gpu.index == 0 and gpu.throttle == ("hardware thermal",)


MORE: dict[str, Any] = {
    "memory_used_gb": 99.5, "memory_temperature_c": 66, "energy_j": 1234.5, "ecc": 3, "xid": 79, "recovery": "reset",
    "warnings": ["PCIe runs on 4 of 16 lanes"], "others_gb": 7.5,
}  # fmt: skip


def test_what_a_gpu_says_of_its_health_is_read() -> None:
    (gpu,) = card([{**GPU, **MORE}])
    assert {name: getattr(gpu, name) for name in MORE} == MORE | {"warnings": tuple(MORE["warnings"])}
    (silent,) = card([GPU])
    assert all(not getattr(silent, name) and getattr(silent, name) != 0 for name in MORE)


@pytest.mark.parametrize("odd", [-1, "79", [], {}, True, 1e300])
def test_what_cannot_be_true_of_its_health_is_unknown(odd: Any) -> None:
    for name in ("memory_used_gb", "memory_temperature_c", "energy_j", "ecc", "xid", "others_gb"):
        (gpu,) = card([{**GPU, **MORE, name: odd}])
        assert getattr(gpu, name) is None and gpu.warnings == ("PCIe runs on 4 of 16 lanes",)


@pytest.mark.parametrize(
    "odd",
    [
        None, 7, "GPU-a", [None], [[]], ["GPU-a"], [{}], [{**GPU, "uuid": None}], [{**GPU, "uuid": ["GPU-a"]}],
        [{**GPU, "index": "0"}], [{**GPU, "index": -1}],
    ],
)  # fmt: skip
def test_gpus_of_another_shape_are_unknown(odd: Any) -> None:
    assert card(odd) == ()


@pytest.mark.parametrize("used", [None, "GPU-a", {"GPU-a": 1}, [["GPU-a"]], [None], 7])
def test_an_entry_that_names_its_gpus_oddly_has_none_that_are_known(used: Any) -> None:
    found = read(instance("x", "unix:/x", gpus=used), gpus=[GPU])
    assert found.endpoints[0].gpus == () and found.endpoints[0].state == "ready"


@pytest.mark.parametrize("throttle", [None, "hardware thermal", [7], {}])
def test_reasons_of_another_shape_are_no_reasons(throttle: Any) -> None:
    assert card([{**GPU, "throttle": throttle}])[0].throttle == ()


def test_readings_of_gpus_of_long_ago_are_not_believed() -> None:
    assert card([GPU], gpus_age_s=15.1) == ()
    assert card([GPU], gpus_age_s=14.9) != () and card([GPU], gpus_age_s=None) != ()


def test_an_unlisted_model_can_do_what_serving_says_of_it() -> None:
    assert unlisted("demo", 0, ["chat"]).abilities == {"chat"}
    assert "embeddings" in unlisted("theirs", 0).abilities


def test_a_model_that_no_catalogue_lists_carries_its_internal_rate() -> None:
    found = read(instance("mine", "unix:/x"), instance("yours", "unix:/y"), instance("small", "unix:/z"))
    assert found.models["mine"].price == RATE
    assert found.models["yours"].price is None  # unpriced, never 0
    assert found.models["small"] is CATALOGUE.models["small"]
