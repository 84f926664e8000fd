"""`python -m serving` on a simulated GPU: what it publishes of it, and that no engine ever meets the simulation."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import monitor, processes
from tests.fakes import nvml
from tests.serving.test_status import FAKE, Run, get

SITE = """
engine: {{python: {python}}}
run: [small]
models:
  small:
    place: local
    repo: {weights}
    lanes: [private]
    context: 2048
    output: 64
    limit: 4
    abilities: [chat, completions]
    variants: [{{name: gpu, device: gpu, memory_gb: 3}}]
"""
PYTHON = """#!/bin/sh
case "$*" in
  "-m vllm"*) exec "{real}" "{fake}" "$@" ;;
  *) echo version=0.33.0 ;;
esac
"""
"""An engine's Python that finds vLLM in itself, and starts a stand-in where vLLM is asked for."""


class Simulated(Run):
    """serving with a simulated driver before all others, and one fake engine on its first GPU."""

    def __init__(self, folder: Path, driver: Path) -> None:
        super().__init__(folder)
        self.gpu = folder / "gpu"
        self.say("cool")
        python, weights = folder / "python", folder / "weights"
        python.write_text(PYTHON.format(real=sys.executable, fake=FAKE))
        python.chmod(0o755)
        weights.mkdir()
        (folder / "headgate.yaml").write_text(SITE.format(python=python, weights=weights))
        os.environ["LD_PRELOAD"] = str(driver / "libnvidia-ml.so.1")
        os.environ["NVML_FILE"] = str(self.gpu)
        try:
            self.process = self.start(engines=str(folder / "engines"))
        finally:
            del os.environ["LD_PRELOAD"], os.environ["NVML_FILE"]

    def say(self, words: str) -> None:
        """Have the driver say this from now on."""
        new = self.gpu.with_suffix(".new")
        new.write_text(words)
        new.replace(self.gpu)

    def until(self, holds: Callable[[dict[str, Any]], object], limit_s: float = 60) -> dict[str, Any]:
        """The document, once this holds of it."""
        end, found = time.monotonic() + limit_s, {}
        while time.monotonic() < end:
            try:
                found = json.loads(get(self.home.socket("serving"), "/instances")[1])
            except (OSError, ValueError, IndexError):
                found = {}
            if found and holds(found):
                return found
            time.sleep(0.1)
        raise AssertionError(f"it did not come about: {found}")


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulated]:
    monkeypatch.delenv("NVML", raising=False)
    driver = tmp_path / "driver"
    driver.mkdir()
    made = Simulated(tmp_path, nvml.library(driver))
    yield made
    made.process.terminate()
    made.process.wait(60)
    assert made.process.stdin is not None
    made.process.stdin.close()
    assert processes.ours(made.home.installation()) == []


def ready(found: dict[str, Any]) -> bool:
    return bool(found["instances"][0]["state"] == "ready")


def test_an_engine_meets_the_machine_as_it_is(simulated: Simulated) -> None:
    """It asks the driver itself, with a copy of NVML's binding of its own: a simulation there would be believed."""
    pid = simulated.until(ready)["instances"][0]["pid"]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {one.partition(b"=")[0] for one in environment}
    assert b"CUDA_VISIBLE_DEVICES=GPU-0" in environment
    assert not names & {b"LD_PRELOAD", b"NVML", b"NVML_FILE"}
    assert not any(b"driver" in one for one in environment if one.startswith((b"LD_", b"PATH=")))
    assert "nvidia-ml" not in Path(f"/proc/{pid}/maps").read_text()
    assert (
        "nvidia-ml" in Path(f"/proc/{simulated.process.pid}/maps").read_text()
    )  # so that the line above says something


def test_memory_is_mapped_to_the_engine_that_holds_it_and_the_rest_to_others(simulated: Simulated) -> None:
    if monitor.whose("none") is None:
        pytest.skip("the process ids seen here are not the machine's")
    pid = simulated.until(ready)["instances"][0]["pid"]
    simulated.say(f"cool pid={pid} holds=5000000000 other_holds=1500000000 energy=9000000")
    found = simulated.until(lambda said: said["instances"][0]["gpu_memory_gb"])
    # The simulated card lists the same processes on both GPUs.
    assert found["instances"][0]["gpu_memory_gb"] == {"GPU-0": 5.0, "GPU-1": 5.0}
    gpu = found["gpus"][0]
    assert (gpu["others_gb"], gpu["memory_used_gb"], gpu["xid"], gpu["fault"]) == (1.5, 19.5, None, "")
    assert gpu["energy_j"] == pytest.approx(2000)


def test_px_018_a_fatal_error_ends_what_runs_there_names_itself_and_starts_nothing_again(simulated: Simulated) -> None:
    pid = simulated.until(ready)["instances"][0]["pid"]
    simulated.say("cool xid=79 xid_on=0")
    found = simulated.until(lambda said: said["instances"][0]["state"] == "failed")
    assert "XID 79: it has fallen off the bus" in found["instances"][0]["detail"]
    assert [(gpu["xid"], bool(gpu["fault"])) for gpu in found["gpus"]] == [(79, True), (None, False)]
    assert not Path(f"/proc/{pid}").exists() or processes.find(pid) is None
    read = found["gpus_age_s"]
    again = simulated.until(lambda said: said["gpus_age_s"] < read)  # one more look at the GPUs, and nothing changes
    assert (again["instances"][0]["state"], again["instances"][0]["pid"]) == ("failed", None)
    assert again["instances"][0]["restarts"] == 0
