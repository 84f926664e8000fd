"""The keeper starts what belongs together, brings back what dies, gives up what cannot be, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router import child, keeper
from router.keeper import Keeper, Part, last_words, only_one, parts, running
from serving import catalogue, processes
from serving.home import Home
from tests.conftest import free_port, listens, until
from tests.fakes.rules import lay_out

SITE = """
providers:
  far: {enabled: true, base_url: "https://far.example/v1", key_env: FAR_KEY}
models:
  big: {place: hosted, lanes: [frontier], context: 10, output: 5, provider: far, provider_model: big}
"""
WAIT = "import time; time.sleep(600)"


def part(home: Home, name: str, code: str) -> Part:
    return Part(name, (sys.executable, "-c", code), keeper.environment(home, os.environ))


def starts(home: Home, name: str, then: str = WAIT) -> str:
    """Code that notes each start, then goes on."""
    return f"open({str(home.root / name)!r}, 'a').write('x')\n{then}"


def count(home: Home, name: str) -> int:
    path = home.root / name
    return len(path.read_text()) if path.exists() else 0


def ours(home: Home) -> int:
    return len(processes.ours(home.installation()))


async def ended(made: Keeper, task: asyncio.Task[int]) -> int:
    made.stop()
    return await asyncio.wait_for(task, 20)


def test_only_the_door_gets_keys_of_providers(tmp_path: Path) -> None:
    (tmp_path / "headgate.yaml").write_text(SITE)
    found = catalogue.load(tmp_path / "headgate.yaml")
    # Also those of providers that are not enabled: who sets one expects it to go nowhere.
    inherited = {"FAR_KEY": "a", "OPENAI_API_KEY": "b", "PATH": "/bin", "OURS": "c"}
    kept = {p.name: p for p in parts(found, inherited, serving=["--model=m"], listen=["--port=1"])}
    assert list(kept) == ["serving", "door", "router"]
    assert kept["door"].environment == inherited
    for name in ("serving", "router"):
        assert kept[name].environment == {"PATH": "/bin", "OURS": "c"}
    for one in kept.values():
        assert "--parent-pipe" in one.args and str(tmp_path / "headgate.yaml") in one.args
    assert kept["serving"].args[-1] == "--model=m" and kept["router"].args[-1] == "--port=1"
    assert [p.name for p in kept.values() if p.beats] == ["door", "router"]


def test_no_door_without_an_enabled_provider(tmp_path: Path) -> None:
    (tmp_path / "headgate.yaml").write_text(SITE.replace("enabled: true", "enabled: false"))
    found = catalogue.load(tmp_path / "headgate.yaml")
    assert [p.name for p in parts(found, {}, serving=[], listen=[])] == ["serving", "router"]


def test_every_process_carries_the_installation_and_finds_the_packages(home: Home) -> None:
    made = keeper.environment(home, {"PYTHONPATH": "/theirs", "A": "b"})
    assert made["HEADGATE_INSTALLATION"] == home.installation() and made["HEADGATE_HOME"] == str(home.root)
    assert made["PYTHONPATH"].split(os.pathsep) == [str(Path(keeper.__file__).parent.parent), "/theirs"]
    assert keeper.environment(home, made)["PYTHONPATH"] == made["PYTHONPATH"]


async def test_what_dies_is_started_again_and_nothing_is_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    made = Keeper(home, [part(home, "serving", starts(home, "a")), part(home, "router", starts(home, "b", "1/0"))])
    task = asyncio.create_task(made.run())
    await until(lambda: count(home, "b") >= 3 and count(home, "a") == 1, task)
    assert await ended(made, task) == 0
    assert ours(home) == 0 and count(home, "a") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_router_that_stands_still_is_ended_and_started_again(
    home: Home, workers: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(child, "STILL_GRACE_S", 0.05)
    (home.root / "headgate.yaml").write_text(f"router: {{workers: {workers}}}\n")
    found, port = catalogue.load(home.root / "headgate.yaml"), free_port()
    inherited = keeper.environment(home, os.environ)
    (router,) = (p for p in parts(found, inherited, serving=[], listen=[f"--port={port}"]) if p.name == "router")
    made = Keeper(home, [router], silent_s=4.0)
    task = asyncio.create_task(made.run())
    try:
        await until(lambda: listens(port), task)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        (first,) = (c for c in children if f"--port={port}".encode() in Path(f"/proc/{c}/cmdline").read_bytes())
        os.kill(int(first), signal.SIGSTOP)
        said = "keeper: router stood still for 4 s and was ended; starting it again in 0.01 s"
        await until(lambda: said in capfd.readouterr().out, task, within_s=30)
        await until(lambda: listens(port), task)
    finally:
        await ended(made, task)


async def test_a_door_that_stands_still_is_ended_and_started_again(
    home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(child, "STILL_GRACE_S", 0.05)
    (home.root / "headgate.yaml").write_text(SITE)
    lay_out(home)
    found = catalogue.load(home.root / "headgate.yaml")
    inherited = keeper.environment(home, os.environ)
    (door,) = (p for p in parts(found, inherited, serving=[], listen=[]) if p.name == "door")
    made = Keeper(home, [door], silent_s=4.0)
    task = asyncio.create_task(made.run())

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(1)
            asking.connect(str(home.socket("door")))
            asking.sendall(b"GET /door HTTP/1.1\r\nHost: door\r\n\r\n")
            return bool(asking.recv(1))
        return False

    def pids() -> list[int]:
        return [one["pid"] for one in map(json.loads, home.book.read_bytes().splitlines()) if one["kind"] == "opened"]

    try:
        await until(answers, task, within_s=60)
        os.kill(pids()[0], signal.SIGSTOP)
        said = "keeper: door stood still for 4 s and was ended; starting it again in 0.01 s"
        await until(lambda: said in capfd.readouterr().out, task, within_s=60)
        await until(answers, task, within_s=60)
        assert len(pids()) == 2
    finally:
        await ended(made, task)


async def test_a_part_that_is_configured_wrongly_ends_all(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = "import sys; print('router: the port is taken', file=sys.stderr); sys.exit(2)"
    made = Keeper(home, [part(home, "serving", WAIT), part(home, "router", wrong)])
    (home.logs / "router.log").write_text("router: an older sentence\n")
    assert await asyncio.wait_for(made.run(), 20) == keeper.CONFIG_ERROR
    assert made.given_up == "router" and ours(home) == 0
    assert "keeper: router cannot start: the port is taken\n" in capfd.readouterr().out


async def test_a_mistake_in_the_file_later_does_not_stop_what_runs(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(keeper, "SETTLED_S", 0.2)
    later = "import time, sys, os; time.sleep(0.4 if os.path.getsize(%r) == 1 else 0); sys.exit(2)"
    code = starts(home, "b", later % str(home.root / "b"))
    made = Keeper(home, [part(home, "serving", starts(home, "a")), part(home, "router", code)])
    task = asyncio.create_task(made.run())
    await until(lambda: count(home, "b") >= 3, task)
    assert not made.given_up and count(home, "a") == 1
    await ended(made, task)


async def test_callers_are_stopped_first_and_engines_last(home: Home) -> None:
    order = home.root / "order"
    code = "import signal, time\ndef end(*_):\n    open(%r, 'a').write('%s ')\n    raise SystemExit\n"
    code += "signal.signal(signal.SIGTERM, end)\nopen(%r, 'w').close()\ntime.sleep(600)"
    names = ("serving", "door", "router")
    made = Keeper(home, [part(home, n, code % (str(order), n, str(home.root / f"{n}-on"))) for n in names])
    task = asyncio.create_task(made.run())
    await until(lambda: all((home.root / f"{n}-on").exists() for n in names), task)
    await ended(made, task)
    assert order.read_text().split() == ["router", "door", "serving"]


async def test_what_does_not_end_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(keeper.STOP_S, "router", 0.1)
    deaf = starts(home, "on", WAIT).replace("open", "import signal; signal.signal(15, signal.SIG_IGN)\nopen", 1)
    made = Keeper(home, [part(home, "router", deaf)])
    task = asyncio.create_task(made.run())
    await until(lambda: count(home, "on") == 1, task)
    await ended(made, task)
    assert ours(home) == 0


async def test_a_log_that_cannot_be_written_is_no_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_PAUSE_S", 0.01)
    home.logs.rmdir()
    made = Keeper(home, [part(home, "router", starts(home, "b"))])
    task = asyncio.create_task(made.run())
    await asyncio.sleep(0.05)
    assert not task.done()
    home.logs.mkdir()
    await until(lambda: count(home, "b") == 1, task)
    await ended(made, task)


def test_last_words_are_those_since_the_start_without_the_name(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert last_words(log, 0) == ""
    log.write_text("router: old\n")
    since = log.stat().st_size
    assert last_words(log, since) == ""
    for line in ("router: new", "headgate door: new", "2026-01-02 03:04:05 keeper: new", "serving: new", "new"):
        log.write_text(f"router: old\n{line}\n\n")
        assert last_words(log, since) == "new"
    log.write_text("router: old\n" + "x" * 100_000 + "\nKeyError: 'a'\n")
    assert last_words(log, since) == "KeyError: 'a'"


def test_a_note_is_believed_only_while_that_process_lives(home: Home) -> None:
    assert running(home) is None
    child = subprocess.Popen([sys.executable, "-c", WAIT])
    try:
        keeper.note(home, child.pid, "http://127.0.0.1:1", "")
        found = running(home)
        assert found is not None and found.pid == child.pid and found.url == "http://127.0.0.1:1"
        # The same number, started at another time, is another process.
        path = home.run / "keeper.json"
        path.write_text(path.read_text().replace(f'"start":{found.start}', f'"start":{found.start + 1}'))
        assert running(home) is None
    finally:
        child.kill()
        child.wait()
    for broken in ("", "{", "[]", '{"pid": 1}', "null"):
        path.write_text(broken)
        assert running(home) is None


def test_one_at_a_time(home: Home) -> None:
    with only_one(home, "keeper"):
        again = only_one(home, "keeper")
        with pytest.raises(keeper.AlreadyRunning, match="another keeper"):
            again.__enter__()
    with only_one(home, "keeper"), only_one(home, "up"):
        pass
    with pytest.raises(BlockingIOError), only_one(home, "keeper"):
        raise BlockingIOError  # of whatever is done under the lock, and not of the lock


def test_a_second_keeper_disturbs_nobody(home: Home) -> None:
    with only_one(home, "keeper"):
        command = [sys.executable, "-m", "router.keeper"]
        second = subprocess.run(command, env=keeper.environment(home, os.environ), capture_output=True, text=True)
    assert second.returncode == keeper.CONFIG_ERROR and "another keeper of" in second.stdout
