"""What serving/ publishes, and `python -m serving` as a whole: refusals, the parent's end, a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from serving import __main__ as program
from serving import need as needs
from serving import probe, processes, status
from serving.endpoint import Timing, View, Watch
from serving.engines import Engine
from serving.gpus import Gpu, Readings
from serving.home import Home
from serving.need import Setup
from serving.probe import Target
from serving.scrape import Load, parse
from serving.shapes import shape

CHECKOUT = Path(__file__).parents[2]
FAKE = CHECKOUT / "tests" / "fakes" / "engine.py"
HOST = status.Host("here", "b001")
VIEW = View(
    name="demo", model="demo", served="demo", state="ready", detail="", since=1.0, address="unix:/run/engine-demo.sock",
    attached=False, context=4096, limit=16, metrics="vllm", pid=7, load=Load(running=2), load_age_s=0.5,
    key_env="SOME_KEY", log=("a line",),
)  # fmt: skip


class Told:
    """Stands in for the supervisor: what it was told to say."""

    def __init__(
        self, *views: View, gpus: tuple[Gpu, ...] = (), engine: Engine | None = None, at: float | None = None
    ) -> None:
        self.engine = engine
        self.readings = Readings(gpus, "no driver", at)
        self._views = list(views)

    def views(self) -> list[View]:
        return self._views


def document(*views: View, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(status.document(Told(*views, **more), HOST, 9.0)))  # type: ignore[arg-type]
    return found


def test_the_document_has_exactly_the_fields_of_version_1() -> None:
    found = document(VIEW, gpus=(Gpu("GPU-1", "H", 0),), engine=Engine(Path("/e/python"), "vllm", "0.33.0"))
    assert set(found) == {"version", "host", "boot", "at", "engine", "gpus", "gpus_age_s", "gpu_note", "instances"}
    assert (found["version"], found["host"], found["boot"], found["at"]) == (1, "here", "b001", 9.0)
    assert found["engine"] == {"package": "vllm", "version": "0.33.0", "python": "/e/python"}
    assert set(found["gpus"][0]) == {
        "uuid", "name", "index", "memory_total_gb", "memory_free_gb", "utilisation", "power_w", "temperature_c",
        "throttle", "fault", "memory_used_gb", "memory_temperature_c", "energy_j", "ecc", "xid", "recovery", "warnings",
        "others_gb",
    }  # fmt: skip
    assert set(found["instances"][0]) == {
        "name", "model", "served", "state", "detail", "since", "address", "attached", "context", "limit", "restarts",
        "pid", "gpus", "abilities", "metrics", "key_env", "key_file", "ca_file", "load", "log", "way_out",
        "gpu_memory_gb", "start_s", "ready_in_s", "swaps",
    }  # fmt: skip


def test_an_unknown_reading_is_null_and_not_zero() -> None:
    load = document(VIEW)["instances"][0]["load"]
    assert load == {
        "running": 2, "waiting": None, "kv_use": None, "asleep": None, "preemptions": None, "rejections": None,
        "prompt_tokens": None, "output_tokens": None, "prefix_queries": None, "prefix_hits": None, "kv_tokens": None,
        "age_s": 0.5, "preempted_s": None,
    }  # fmt: skip
    gpu = document(gpus=(Gpu("GPU-1", "H", 0, memory_free_gb=0.0),))["gpus"][0]
    assert gpu["memory_free_gb"] == 0
    assert {name for name, value in gpu.items() if value is None} == {
        "memory_total_gb", "utilisation", "power_w", "temperature_c", "throttle", "memory_used_gb",
        "memory_temperature_c", "energy_j", "ecc", "xid", "recovery", "others_gb",
    }  # fmt: skip


def test_an_instance_says_what_it_holds_of_each_gpu_and_a_gpu_what_others_hold() -> None:
    cards = (
        Gpu("GPU-1", "H", 0, held=(("demo", 20.5), ("other", 3.0)), others_gb=7.0),
        Gpu("GPU-2", "H", 1, held=(("demo", None),)), Gpu("GPU-3", "H", 2, held=(("other", 9.0),)),
    )  # fmt: skip
    found = document(VIEW, gpus=cards)
    assert found["instances"][0]["gpu_memory_gb"] == {"GPU-1": 20.5, "GPU-2": None}
    assert [gpu["others_gb"] for gpu in found["gpus"]] == [7.0, None, None]
    assert document(VIEW)["instances"][0]["gpu_memory_gb"] is None


def test_the_whole_load_of_an_engine_is_published() -> None:
    load = Load(3, 1, 0.25, False, 4, 5, 1200, 34, 1000, 800, 65536)
    published = document(replace(VIEW, load=load, preempted_s=2.5))["instances"][0]["load"]
    assert published == {**asdict(load), "age_s": 0.5, "preempted_s": 2.5} and None not in published.values()


def test_readings_of_gpus_have_an_age_so_that_old_ones_are_not_believed() -> None:
    assert document(gpus=(Gpu("GPU-1", "H", 0),), at=time.monotonic() - 40)["gpus_age_s"] == pytest.approx(40, abs=2)
    assert document()["gpus_age_s"] is None


def test_without_an_engine_and_gpus_it_says_so() -> None:
    found = document()
    assert (found["engine"], found["gpus"], found["gpu_note"], found["instances"]) == (None, [], "no driver", [])


async def test_an_endpoint_that_no_json_can_say_hides_no_other() -> None:
    odd = [replace(VIEW, name="caf\udce9"), replace(VIEW, name="odd", start_s=float("nan")), VIEW]
    (page,) = (r for r in status.application(Told(*odd), HOST).routes if r.path == "/instances")  # type: ignore[arg-type, attr-defined]
    found = json.loads((await page.endpoint(None)).body)["instances"]  # type: ignore[attr-defined]
    assert [(one["name"], one["state"]) for one in found] == [("caf?", "failed"), ("odd", "failed"), ("demo", "ready")]


def get(path: Path, page: str) -> tuple[int, bytes]:
    """One request over the Unix socket."""

    async def ask() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(f"GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        await writer.wait_closed()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    return asyncio.run(ask())


class Run:
    """`python -m serving` with a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home", folder / "engines")
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, engines: str = "") -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        environment |= {"HEADGATE_HOME": str(self.home.root), "PYTHONPATH": str(CHECKOUT)}
        environment |= {"HEADGATE_ENGINES": engines or str(self.home.engines)}
        process = subprocess.Popen(
            [sys.executable, "-m", "serving", *arguments],
            env=environment, cwd=self.folder, stdin=subprocess.PIPE,
            # What is never read must not be a pipe that can run full.
            stderr=subprocess.DEVNULL if engines else subprocess.PIPE,
        )  # fmt: skip
        self.started.append(process)
        return process

    def instances(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError, IndexError):
            found: list[dict[str, Any]] = json.loads(get(self.home.socket("serving"), "/instances")[1])["instances"]
            return found
        return []

    def ready(self, limit_s: float = 20) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while True:
            found = self.instances()
            for one in found:
                if one["state"] == "ready":
                    return one
            assert time.monotonic() < end, found
            time.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    for process in made.started:
        # So that it ends its engines as well; killed, it could not.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server somebody else runs, and its address."""
    process = subprocess.Popen(
        [sys.executable, str(FAKE), "--uds", str(tmp_path / "theirs.sock")], stdout=subprocess.DEVNULL
    )
    yield f"unix:{tmp_path}/theirs.sock", process
    process.kill()
    process.wait()


def test_attached_alone_needs_no_engine_and_stops_clean(run: Run, theirs: tuple[str, subprocess.Popen[bytes]]) -> None:
    process = run.start("--attach", theirs[0])
    run.ready()
    socket = run.home.socket("serving")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert get(socket, "/health") == (200, b'{"status":"ok"}')
    assert get(socket, "/metrics")[0] == 404  # Prometheus asks the router alone
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=10)
    assert process.returncode == 0, told
    assert not socket.exists()
    assert not run.home.engines.exists()
    assert theirs[1].poll() is None


def test_a_second_serving_is_refused_in_one_sentence(run: Run, theirs: tuple[str, subprocess.Popen[bytes]]) -> None:
    run.start("--attach", theirs[0])
    run.ready()
    second = run.start("--attach", theirs[0])
    _, told = second.communicate(timeout=10)
    assert second.returncode == 2
    assert told.count(b"\n") == 1
    assert b"already runs" in told
    assert run.instances()


def test_after_a_kill_the_next_start_ends_the_orphans_first(
    run: Run, theirs: tuple[str, subprocess.Popen[bytes]]
) -> None:
    first = run.start("--attach", theirs[0])
    run.ready()
    marks = {"HEADGATE_INSTALLATION": run.home.installation(), "HEADGATE_INSTANCE": "demo"}
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ | marks)
    try:
        first.kill()
        first.wait()
        run.start("--attach", theirs[0])
        run.ready()
        assert orphan.wait(1) == -signal.SIGTERM
        assert theirs[1].poll() is None
    finally:
        orphan.kill()
        orphan.wait()


def test_it_ends_when_its_parent_is_gone(run: Run, theirs: tuple[str, subprocess.Popen[bytes]]) -> None:
    process = run.start("--attach", theirs[0], "--parent-pipe")
    run.ready()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "no-such-model"), b"no model is called 'no-such-model'"),
        (("--config", "/no/such/file.yaml"), b"no such file"),
        (("--attach", "ftp://somewhere"), b"--attach"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run: Run, arguments: tuple[str, ...], says: bytes) -> None:
    process = run.start(*arguments)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 2
    assert says in told
    assert told.count(b"\n") == 1


def test_no_key_is_published(run: Run, theirs: tuple[str, subprocess.Popen[bytes]]) -> None:
    key = secrets.token_hex(8)
    (run.folder / "key").write_text(key)
    (run.folder / "headgate.yaml").write_text(f"attach:\n  - url: {theirs[0]}\n    key_file: {run.folder}/key\n")
    run.start()
    run.ready()
    body = get(run.home.socket("serving"), "/instances")[1]
    assert f"{run.folder}/key".encode() in body
    assert key.encode() not in body


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_driver_that_never_answers_holds_up_neither_the_start_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    gate, stop = threading.Event(), asyncio.Event()
    monkeypatch.setattr(program, "FIRST_S", 60 if stopped else 0.05)
    if stopped:
        stop.set()
    try:
        async with asyncio.timeout(20):
            found = await program._first(lambda: Readings(note=str(gate.wait(60))), stop)  # type: ignore[arg-type]
    finally:
        gate.set()
    assert found.gpus == () and "the NVIDIA driver did not answer" in found.note


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_real_engine_answers_is_restarted_and_leaves_nothing(run: Run, engine_python: Path) -> None:
    """The demo model in a real vLLM: ready, its API server killed, ready again, stopped."""
    process = run.start("--model", "demo", engines=str(engine_python.parents[2]))
    first = run.ready(300)
    # vLLM gives the few metrics that are needed alone, and they say what the whole page says.
    watch, load = Watch(Target(first["address"]), Timing()), first["load"]
    asyncio.run(watch.read())
    assert watch.narrow and watch.load == parse(asyncio.run(probe.metrics(Target(first["address"]))))
    assert None not in {value for name, value in load.items() if name != "preempted_s"}
    # Its cache of 1 GiB holds what was counted from its config.json, to the token. A block has 128 on a CPU.
    config = json.loads((run.home.models / "demo" / "config.json").read_text())
    shaped = shape(config)
    assert shaped is not None
    counted = needs.tokens(shaped, Setup(context=first["context"], block=128), 2**30)
    assert first["load"]["kv_tokens"] == counted
    group = processes.ours(run.home.installation(), instance="demo")
    assert {"VLLM::EngineCor", "VLLM::Worker"} <= {one.name for one in group}
    os.kill(first["pid"], signal.SIGKILL)
    end = time.monotonic() + 30
    while any(processes.alive(one) for one in group):
        assert time.monotonic() < end
        time.sleep(0.1)
    again = run.ready(300)
    assert again["restarts"] == 1
    assert again["pid"] != first["pid"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert processes.ours(run.home.installation()) == []
    assert list(run.home.run.glob("*.sock")) == []
    assert list(run.home.run.glob("engine-*")) == []  # nor the sockets vLLM makes for itself
