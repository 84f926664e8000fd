"""Two models that share a place, on real engines: on a CPU by stop and start, on a GPU by vLLM's sleep mode."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from serving import gpus, processes
from tests.installation import Installation

pytestmark = [
    pytest.mark.engine, pytest.mark.long, pytest.mark.xdist_group("engine"), pytest.mark.timeout(900),
]  # fmt: skip

DEMO = {
    "place": "local", "lanes": ["private"], "abilities": ["chat"], "context": 2048, "output": 16, "limit": 4,
    "repo": "demo", "environment": {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    "variants": [
        {"name": "gpu", "device": "gpu", "memory_gb": 3, "args": {"kv-cache-memory-bytes": 536870912}},
        {"name": "cpu", "device": "cpu", "memory_gb": 3},
    ],
}  # fmt: skip
SITE: dict[str, Any] = {
    "run": ["one", "other"], "models": {"one": DEMO, "other": DEMO}, "router": {"queue_wait_s": 300},
    "swap": {"groups": [["one", "other"]], "min_stay_s": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Installation]:
    made = Installation(site=SITE)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def chat(installation: Installation, model: str) -> str:
    """Ask as the first key, whose data is private; the model that answered."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    asked = urllib.request.Request(
        f"{installation.url}/v1/chat/completions", json.dumps(body).encode(),
        {"Authorization": f"Bearer {installation.first_key}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(asked, timeout=400) as answer:
        return str(json.loads(answer.read())["model"])


def instances(installation: Installation) -> dict[str, Any]:
    document = json.loads(installation.ask("serving", "/instances"))
    return {one["name"]: one for one in document["instances"]}


@pytest.mark.skipif(bool(gpus.read().gpus), reason="with a GPU the models sleep")
def test_a_request_for_the_other_model_has_it_started_in_the_place_of_the_first(shared: Installation) -> None:
    before = instances(shared)
    assert (before["one"]["state"], before["other"]["state"]) == ("ready", "asleep")
    assert chat(shared, "one") == "one"
    assert chat(shared, "other") == "other"
    after = instances(shared)
    assert (after["one"]["state"], after["other"]["state"]) == ("asleep", "ready")
    running = {one.instance for one in processes.ours(shared.home.installation())} & {"one", "other"}
    assert running == {"other"}, "what left its place holds no memory"
    assert after["other"]["start_s"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not gpus.read().gpus, reason="needs a GPU: there is no sleep mode without one")
def test_on_a_gpu_the_models_sleep_and_wake(shared: Installation) -> None:
    pid = instances(shared)["one"]["pid"]
    assert chat(shared, "other") == "other"
    asleep = instances(shared)["one"]
    assert (asleep["state"], asleep["pid"]) == ("asleep", pid), "its process waits, with its weights in main memory"
    began = time.monotonic()  # the other has only just come: the request waits until that one's stay is over
    assert chat(shared, "one") == "one"
    assert instances(shared)["one"]["pid"] == pid, "it woke up and was not started"
    assert instances(shared)["one"]["start_s"] < time.monotonic() - began + 1
