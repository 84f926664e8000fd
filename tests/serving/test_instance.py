"""One engine's process group: ready means it answered, stopped means nothing of it is left, and a death says why."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from serving import instance as instances
from serving import processes, reasons
from serving.command import Command
from serving.home import Home
from serving.instance import Instance, InstanceError

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
Make = Callable[..., Instance]


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home", tmp_path / "engines")
    made.make()
    return made


@pytest_asyncio.fixture
async def make(home: Home) -> AsyncIterator[Make]:
    made: list[Instance] = []

    def instance(name: str = "demo", **settings: str) -> Instance:
        args = (sys.executable, str(FAKE), "--uds", str(instances.socket_path(home, name)))
        environment = {"PATH": os.environ["PATH"], **{f"FAKE_{key.upper()}": value for key, value in settings.items()}}
        made.append(Instance(name, Command(args, environment), home, home.installation()))
        return made[-1]

    yield instance
    for one in made:
        await one.stop(0.1)
    assert processes.ours(home.installation()) == []


async def test_ready_means_it_answered_and_stopped_means_nothing_is_left(make: Make) -> None:
    engine = make()
    await engine.start()
    assert engine.state == "starting"
    await engine.ensure_ready(20)
    pid = engine.pid
    assert engine.state == "ready"
    assert pid is not None
    assert os.getpgid(pid) == pid
    assert (engine.served, engine.context) == ("fake", 2048)
    assert engine.log_tail(5) == ["INFO the fake engine serves"]
    await engine.stop(5)
    assert engine.state == "stopped"
    assert gone(pid)
    assert not engine.socket.exists()


async def test_an_open_port_alone_is_not_ready(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "FIRST_TOKEN_S", 0.1)
    hang = tmp_path / "hang"
    hang.touch()
    engine = make(hang=str(hang))
    await engine.start()
    with pytest.raises(InstanceError, match=r"not ready within .*no answer within"):
        await engine.ensure_ready(20)
    assert engine.state == "failed"


async def test_one_that_ignores_sigterm_is_ended(make: Make) -> None:
    engine = make(ignore_term="1")
    await engine.start()
    await engine.ensure_ready(20)
    pid = engine.pid
    assert pid is not None
    await engine.stop(0.2)
    assert gone(pid)


async def test_a_grandchild_that_outlives_the_server_is_ended(make: Make, tmp_path: Path) -> None:
    """As EngineCore does, which holds the GPU after its API server was killed."""
    engine = make(child=str(tmp_path / "child"))
    await engine.start()
    await engine.ensure_ready(20)
    child, pid = int((tmp_path / "child").read_text()), engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await engine.wait()
    assert not gone(child)
    await engine.stop(0.2)
    assert gone(child)


async def test_a_start_ends_what_an_earlier_one_left(make: Make, tmp_path: Path) -> None:
    first = make(child=str(tmp_path / "child"))
    await first.start()
    await first.ensure_ready(20)
    first_pid, child = first.pid, int((tmp_path / "child").read_text())
    second = make()
    await second.start()
    assert first_pid is not None
    assert gone(first_pid)
    assert gone(child)
    await second.ensure_ready(20)


async def test_a_death_at_start_says_why_at_once(make: Make) -> None:
    engine = make(die_at_start="RuntimeError: Found no NVIDIA driver on your system.")
    began = time.monotonic()
    await engine.start()
    with pytest.raises(InstanceError, match="nvidia-smi") as failed:
        await engine.ensure_ready(60)
    assert failed.value.lasting
    assert engine.state == "failed"
    assert time.monotonic() - began < 10


async def test_the_reason_is_this_starts_and_not_an_earlier_ones(make: Make) -> None:
    first = make(die_at_start="torch.OutOfMemoryError: CUDA out of memory.")
    await first.start()
    with pytest.raises(InstanceError, match="memory"):
        await first.ensure_ready(20)
    second = make(die_at_start="KeyError: 'weir'")
    await second.start()
    with pytest.raises(InstanceError, match="weir") as failed:
        await second.ensure_ready(20)
    assert "memory" not in str(failed.value)


async def test_a_missing_program_is_one_sentence(home: Home) -> None:
    engine = Instance("demo", Command(("/no/such/python",), {}), home, home.installation())
    with pytest.raises(InstanceError, match="cannot be started"):
        await engine.start()
    await engine.stop(0.1)


async def test_a_long_log_is_put_aside_at_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "LOG_LIMIT", 100)
    engine = make()
    engine.log.write_text("old line\n" * 50)
    await engine.start()
    await engine.ensure_ready(20)
    assert engine.log_tail(5) == ["INFO the fake engine serves"]
    assert engine.log.with_suffix(".log.1").read_text().startswith("old line")
    assert engine.log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["org/Model:latest", "../../etc/passwd", "m" * 128])
def test_a_name_cannot_leave_its_folder_or_be_too_long(home: Home, name: str) -> None:
    assert instances.log_path(home, name).parent == home.logs
    assert len(os.fsencode(instances.socket_path(home, name))) <= 107
    assert instances.file_name("a/b") != instances.file_name("a_b")


@pytest.mark.parametrize(
    ("log", "says", "lasting"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "ran out of memory", False),
        ("ValueError: No available memory for the cache blocks.", "ran out of memory", False),
        ("OSError: [Errno 98] Address already in use", "address is taken", False),
        ("OSError: [Errno 28] No space left on device", "disk space", True),
        ("torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found", "install gcc", True),
        ("OSError: libcuda.so.1: cannot open shared object file", "nvidia-smi", True),
        ("ValueError: Unrecognized: the checkpoint does not recognize this architecture", "architecture", True),
        ("api_server.py: error: unrecognized arguments: --tool-parser x", "`args`", True),
        ("ModuleNotFoundError: No module named 'torch'", "environment is broken", True),
        (
            "ValueError: User-specified max_model_len (9) is greater than the derived max_model_len (4)",
            "`context`",
            True,
        ),
    ],
)
def test_known_deaths_come_with_their_remedy(log: str, says: str, lasting: bool) -> None:
    death = reasons.death(1, f"INFO 11-21 04:00:00 [x.py:1] starts\n{log}\n")
    assert says in death.reason
    assert log.split(": ", 1)[1][:30] in death.reason
    assert death.lasting is lasting


def test_the_cause_is_shown_and_not_its_consequence() -> None:
    log = (
        "(EngineCore pid=7) ERROR 11-21 04:00:00 [core.py:9] KeyError: 'sluice'\n"
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert reasons.death(1, log).reason == "it ended by itself with exit status 1; it said: KeyError: 'sluice'"


def test_a_dead_worker_is_named_and_not_what_followed_from_it() -> None:
    log = (
        "(EngineCore pid=7) ERROR 11-21 04:48:40 [m.py:315] Worker proc VllmWorker-0 died unexpectedly (code: -4)\n"
        "(EngineCore pid=7) ERROR 11-21 04:48:40 [core.py:1512] RuntimeError: cancelled\n"
    )
    assert "worker processes crashed" in reasons.death(0, log).reason


def test_a_warning_is_no_cause() -> None:
    log = "WARNING 11-21 04:00:00 [x.py:1] ImportError: out of memory\nKeyError: 'weir'\n"
    assert "weir" in reasons.death(1, log).reason


def test_a_kill_without_a_word_names_the_likely_cause() -> None:
    assert "machine ran out of memory" in reasons.death(-signal.SIGKILL, "INFO all is well\n").reason
