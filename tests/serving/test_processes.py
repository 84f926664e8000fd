"""Only processes that carry this installation's id are ever signalled, and those are all ended."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import processes

SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
)


class Children:
    """Starts processes, and ends what a failed test left."""

    def __init__(self) -> None:
        self.installation = secrets.token_hex(8)
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, code: str = SLEEP, *, installation: str | None = None, instance: str = "", group: bool = True
    ) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        environment["HEADGATE_INSTALLATION"] = self.installation if installation is None else installation
        if instance:
            environment["HEADGATE_INSTANCE"] = instance
        child = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, start_new_session=group, stdout=subprocess.PIPE, text=True
        )
        self.started.append(child)
        for _ in range(1000):  # it is the new program a moment before the kernel shows its environment
            if Path(f"/proc/{child.pid}/environ").read_bytes():
                break
            time.sleep(0.001)
        return child.pid

    def runs(self, pid: int) -> bool:
        return next(child for child in self.started if child.pid == pid).poll() is None


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    for child in made.started:
        # The whole group, for a child may have one of its own; each leads the group it was started in.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def test_ends_ours_and_leaves_all_others_alone(children: Children) -> None:
    mine = children.start(instance="demo")
    other_installation = children.start(installation=secrets.token_hex(8), instance="demo")
    no_id = children.start(installation="")
    found = processes.ours(children.installation)
    assert [(process.pid, process.instance) for process in found] == [(mine, "demo")]
    assert await processes.end(found, 5) == []
    assert not children.runs(mine)
    assert children.runs(other_installation)
    assert children.runs(no_id)


def test_no_id_finds_nothing(children: Children) -> None:
    children.start(installation="")
    assert processes.ours("") == []


def test_one_instance_of_several(children: Children) -> None:
    first, second = children.start(instance="one"), children.start(instance="two")
    assert [process.pid for process in processes.ours(children.installation, instance="two")] == [second]
    assert {process.pid for process in processes.ours(children.installation)} == {first, second}


async def test_one_that_ignores_sigterm_is_killed(children: Children) -> None:
    pid = children.start(STUBBORN)
    child = children.started[-1]
    assert child.stdout is not None
    child.stdout.readline()
    began = time.monotonic()
    found = processes.ours(children.installation)
    # Looked at before anything is ended: were the search broken, this would end other people's processes.
    assert [process.pid for process in found] == [pid]
    assert await processes.end(found, 0.2) == []
    assert not children.runs(pid)
    assert time.monotonic() - began >= 0.2


async def test_a_pid_that_was_taken_over_is_not_signalled(children: Children) -> None:
    pid = children.start()
    (found,) = processes.ours(children.installation)
    earlier = processes.Process(pid, found.start - 1, found.name, found.instance)
    assert not processes.alive(earlier)
    assert await processes.end([earlier], 0.05) == []
    assert children.runs(pid)


async def test_what_the_kernel_says_of_one_that_was_stopped_works_or_is_gone(children: Children) -> None:
    pid = children.start("print('on', flush=True)\nwhile True: pass")
    stdout = children.started[-1].stdout
    assert stdout is not None
    stdout.readline()
    (found,) = processes.ours(children.installation)
    first = processes.sign(found)
    assert first is not None and not first.stopped
    end = time.monotonic() + 10
    while (now := processes.sign(found)) is None or now.cpu_s <= first.cpu_s:
        assert time.monotonic() < end
    os.kill(pid, signal.SIGSTOP)
    while (now := processes.sign(found)) is None or not now.stopped:
        assert time.monotonic() < end
    os.kill(pid, signal.SIGKILL)
    while processes.sign(found) is not None:
        assert time.monotonic() < end
    assert processes.sign(processes.Process(os.getpid(), found.start, "other", "")) is None


async def test_a_member_of_anothers_group_goes_alone(children: Children, tmp_path: Path) -> None:
    """The group's leader carries no id, so only the one process with the id is ended."""
    pid_file = tmp_path / "pid"
    spawn = (
        "import os, subprocess, sys, pathlib, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}],"
        f" env=dict(os.environ, HEADGATE_INSTALLATION={children.installation!r}))\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "print('on', flush=True); child.wait(); print('gone', flush=True); time.sleep(600)"
    )
    leader = children.start(spawn, installation="")
    stdout = children.started[-1].stdout
    assert stdout is not None
    stdout.readline()
    found = processes.ours(children.installation)
    assert [process.pid for process in found] == [int(pid_file.read_text())]
    assert await processes.end(found, 5) == []
    assert stdout.readline() == "gone\n"
    assert children.runs(leader)


def test_never_this_process_or_its_ancestors() -> None:
    code = (
        "import os\nfrom serving import processes\n"
        "print([p.pid for p in processes.ours(os.environ['HEADGATE_INSTALLATION'])])"
    )
    environment = os.environ | {"HEADGATE_INSTALLATION": secrets.token_hex(8)}
    shell = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", code]
    told = subprocess.run(shell, env=environment, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert told.stdout.strip() == "[]"
