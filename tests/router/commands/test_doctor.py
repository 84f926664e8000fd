"""`doctor` finds what is wrong and names the command that mends it; `plan` shows what would run."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.commands import checks, context
from router.commands.checks import _workers
from router.commands.foreign import address
from router.commands.status import isolation_words
from router.ledger.store import Event, Store
from serving import catalogue, isolation
from serving.home import Home
from tests.conftest import ROOT, free_port, instance
from tests.fakes.command_line import Said, eventually

Say = Callable[..., Said]
MODULE = "vllm.entrypoints.openai.api_server"


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A vLLM server that somebody else started, as far as its command line goes: its pid and port."""
    folder = tmp_path / "site"
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text("import asyncio\nfrom tests.fakes.engine import main\nasyncio.run(main())\n")
    port = free_port()
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", MODULE, "--port", str(port), "--served-model-name", "theirs"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(port))
        yield child.pid, port
    finally:
        child.kill()
        child.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def findings(said: Said) -> dict[str, dict[str, str]]:
    return {f["what"]: f for f in said.json()}


def test_a_running_vllm_is_found_with_the_command_that_attaches_it(say: Say, foreign: tuple[int, int]) -> None:
    pid, port = foreign
    found = findings(say("doctor", "--json"))
    mine = found[f"a vLLM server (pid {pid}) at http://127.0.0.1:{port} serves theirs"]
    assert mine["remedy"] == f"headgate up --attach http://127.0.0.1:{port}" and mine["level"] == "note"
    shown = say("doctor")
    assert f"      → {mine['remedy']}\n" in shown.out


def test_an_attached_one_is_not_offered_again(say: Say, home: Home, foreign: tuple[int, int]) -> None:
    pid, port = foreign
    (home.root / "headgate.yaml").write_text(f"attach: [{{url: 'http://127.0.0.1:{port}/v1'}}]\n")
    assert f"a vLLM server (pid {pid}) at http://127.0.0.1:{port} is attached" in findings(say("doctor", "--json"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["python", "-m", MODULE], "http://127.0.0.1:8000"),
        (["python3", "-m", MODULE, "--port", "9", "--host", "10.1.1.1"], "http://10.1.1.1:9"),
        (["/env/bin/python", "/env/bin/vllm", "serve", "m", "--port=9", "--host=0.0.0.0"], "http://127.0.0.1:9"),
        (["/env/bin/vllm", "serve", "m", "--host", "::", "--port", "9"], "http://[::1]:9"),
        (["python", "-m", MODULE, "--ssl-certfile", "c", "--port", "9"], "https://127.0.0.1:9"),
        (["python", "-m", MODULE, "--uds", "/s"], ""),
        (["grep", "-r", MODULE], ""),
        (["vim", "/env/bin/vllm"], ""),
        ([""], ""),
    ],
)
def test_a_vllm_server_is_known_by_its_command_line(args: list[str], expected: str) -> None:
    assert address(args) == expected


def test_a_missing_provider_key_is_named_with_its_variable(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text("providers: {openai: {enabled: true, key_env: NOT_SET_HERE}}\n")
    said = say("doctor")
    assert said.code == 1
    assert (
        "wrong provider openai is enabled; no key may use it; no key for the provider openai: the variable " in said.out
    )
    assert "NOT_SET_HERE" in said.out


def test_where_the_sockets_lie_is_told_where_it_is_not_the_state_folder(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Home(tmp_path / ("long" * 30), home.engines)
    for one, expected in ((home, 0), (far, 1)):
        one.make()
        found = checks._configuration(context.Context(one, catalogue.load(None)))
        told = [one.what for one in found if one.what.startswith("its sockets lie in ")]
        assert len(told) == expected, told
    assert str(far.socket("admin").parent) in told[0]
    far.socket("admin").parent.rmdir()


FAR = "providers: {far: {enabled: true, base_url: 'https://a.example/v1'%s}}\n"


@pytest.mark.parametrize(
    ("settings", "said_by_the_door", "level", "what", "remedy"),
    [
        ("", None, "ok", "it is asked without a key", ""),
        (", key_env: FAR_KEY", "", "ok", "its key is there", ""),
        (", key_env: FAR_KEY", None, "wrong", "the variable FAR_KEY is empty",
         "set it where Headgate is started, then: headgate down; headgate up"),
        (", key_file: /no/key", None, "wrong", "the file /no/key: No such file",
         "put the key there; it counts at once"),
        (", key_env: FAR_KEY, proxy: foo", None, "wrong", "proxy must be http://HOST:PORT",
         "correct providers.far in headgate.yaml, then: headgate down; headgate up"),
        (", key_env: FAR_KEY, ca_file: /no/ca", "ca_file /no/ca cannot be used", "wrong", "ca_file /no/ca cannot",
         "correct providers.far in headgate.yaml, then: headgate down; headgate up"),
    ],
)  # fmt: skip
def test_what_helps_a_provider_fits_what_it_lacks(
    home: Home, monkeypatch: pytest.MonkeyPatch, settings: str, said_by_the_door: str | None, level: str, what: str,
    remedy: str,
) -> None:  # fmt: skip
    (home.root / "headgate.yaml").write_text(FAR % settings)
    monkeypatch.setenv("HEADGATE_HOME", str(home.root))
    monkeypatch.chdir(home.root)
    monkeypatch.setattr(checks, "_door", lambda _: None if said_by_the_door is None else {"far": said_by_the_door})
    (found,) = checks._hosted(context.open_context(None))
    assert found.level == level and what in found.what and found.remedy == remedy


def test_what_a_check_of_the_configuration_refuses_is_wrong(say: Say, home: Home) -> None:
    path = home.root / "headgate.yaml"
    path.write_text("privacy: {effects: {emial: public}}\nattach: [{url: http://far.example:8000}]\n")
    told = [what for what, one in findings(say("doctor", "--json")).items() if one["level"] == "wrong"]
    assert any(what.startswith(f"{path}:1: privacy.effects.emial: ") for what in told)
    assert any(what.startswith(f"{path}:2: attach[0]: ") for what in told)


def test_an_approval_that_has_ended_is_wrong(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text(
        "models:\n  claude-haiku-5-5:\n    clearance: internal\n"
        "    approved: {by: Jo, contract: C1, regions: [eu], until: 2020-01-31}\n"
    )
    said = say("doctor", "--json")
    assert said.code == 1
    found = findings(said)["the approval of claude-haiku-5-5 ended on 2020-01-31; it counts as public"]
    assert found["level"] == "wrong" and "models.claude-haiku-5-5.approved" in found["remedy"]


def test_hosted_services_on_private_addresses_and_clear_text_are_shown(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text(
        "providers: {openai: {enabled: true, private_ranges: [127.0.0.0/8]}}\n"
        "attach: [{url: 'http://10.0.0.9:8000', allow_cleartext: true}]\n"
    )
    out = say("doctor").out
    assert "openai may resolve into 127.0.0.0/8; it still counts as hosted" in out
    assert "http://10.0.0.9:8000 is reached in clear (allow_cleartext)" in out


def test_an_engine_that_is_not_there_is_named(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text("engine: {python: /nowhere/bin/python}\n")
    said = say("doctor")
    assert said.code == 1 and "engine: /nowhere/bin/python is not there" in said.out


def test_what_isolation_is_worth_here_is_tried_and_said(say: Say, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.root / "headgate.yaml").write_text("isolate: true\n")
    said = findings(say("doctor", "--json"))
    if subprocess.run(isolation.wrapped(["true"]), capture_output=True, check=False).stderr:
        assert any(what.startswith("isolate: NOT ENFORCED by the kernel") for what in said)
    else:
        assert said["isolate: the kernel gives processes here a network of their own"]["level"] == "ok"
    told = "isolation: NOT ENFORCED by the kernel: it was not allowed"
    monkeypatch.setattr(isolation, "wrapped", lambda _: ("sh", "-c", f"echo '{told}' >&2"))
    refused = say("doctor", "--json")
    found = findings(refused)[told.replace("isolation", "isolate")]
    assert refused.code == 1 and found["level"] == "wrong" and "namespaces are allowed" in found["remedy"]


def test_an_engine_is_looked_at_itself_whatever_serving_says_of_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process asked about is this one, which has whatever way out this machine has."""
    (home.root / "headgate.yaml").write_text("isolate: true\n")
    engine = {"name": "small", "pid": os.getpid(), "way_out": ""}
    monkeypatch.setattr(checks, "ask_socket", lambda *_: {"instances": [engine]})
    monkeypatch.setattr(checks, "ask_admin", lambda *_: {"isolation": {"asked": True, "way_out": "it has a way"}})
    found = {
        one.what: one.level
        for one in checks._isolation(context.Context(home, catalogue.load(home.root / "headgate.yaml")))
    }
    assert found["isolate: the router: NOT ENFORCED by the kernel: it has a way"] == "wrong"
    way = isolation.way_out(os.getpid())
    assert found[f"isolate: small: {isolation_words(way)}"] == ("wrong" if way else "ok")


def test_nothing_wrong_is_exit_code_0(say: Say) -> None:
    said = say("doctor", "--json")
    assert said.code == 0 and "Headgate is not running" in findings(said)


def test_plan_shows_the_command_and_starts_nothing(say: Say) -> None:
    said = say("plan", "--model", "demo")
    assert said.code == 0
    command = next(line for line in said.out.splitlines() if f"-m {MODULE}" in line)
    assert "--uds" in command and "--served-model-name demo" in command
    placed = say("plan", "--model", "demo", "--json").json()["placed"]
    assert placed[0]["model"] == "demo" and placed[0]["command"] == command


def test_plan_says_what_does_not_fit_and_what_would_help(say: Say) -> None:
    said = say("plan", "--model", "kimi-k3")
    assert said.code == 1 and "kimi-k3 cannot run here: " in said.out
    misfit = say("plan", "--model", "kimi-k3", "--json").json()["misfits"][0]
    assert misfit["model"] == "kimi-k3" and misfit["reason"] and misfit["remedy"]


def test_plan_without_models_says_why_it_is_the_demo(say: Say, home: Home) -> None:
    assert "no model is configured, and no model hub can be reached: the demo model" in say("plan").out
    (home.root / "headgate.yaml").write_text("attach: [{url: 'http://127.0.0.1:9'}]\n")
    said = say("plan", "--json").json()
    assert said["placed"] == [] and said["attached"] == ["http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("running", "wanted", "levels"),
    [
        ({"count": 1, "answer": [1]}, 1, {}),
        ({"count": 2, "answer": [1]}, 2, {"worker 2 of the router's 2 does not answer": "wrong"}),
        ({"count": 3, "answer": [2]}, 2, {"worker 1 of the router's 3 does not answer": "wrong",
                                          "worker 3 of the router's 3 does not answer": "wrong"}),
        ({"count": 1, "answer": [1]}, 2, {"the router runs 1 workers; router.workers is 2": "note"}),
        ({"count": 2, "answer": [1, 2]}, 2, {"the router's 2 workers answer": "ok"}),
        ({"count": 3, "answer": [1, 2, 3]}, 3, {"the router's 3 workers answer": "ok",
                                                "router.workers is 3, and 2 cores may be used": "note"}),
    ],
)  # fmt: skip
def test_workers_that_are_silent_or_too_many_are_said(
    running: dict[str, Any], wanted: int, levels: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert {found.what: found.level for found in _workers(running, wanted)} == levels


def test_a_clock_that_was_set_back_is_told(say: Say, home: Home) -> None:
    said = say("keys", "create", "--team", "a")
    assert said.code == 0 and not [what for what in findings(say("doctor", "--json")) if "behind" in what]
    with contextlib.closing(Store(home.ledger)) as store:
        store.append(Event(time.time() + 3 * 86_400, "refused", "req_1", "", {}))
        store.flush()
    (what,) = [what for what in findings(say("doctor", "--json")) if "behind" in what]
    assert "3.0 days behind" in what


def test_a_scanner_of_the_router_that_does_not_work_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"ledger": {"healthy": True}, "scanner": {"trouble": "a planted card was not found"}}
    monkeypatch.setattr(checks, "ask_admin", lambda home, path: state)
    monkeypatch.setattr(checks, "ask_socket", lambda home, name, path: {"instances": []})
    monkeypatch.setenv("HEADGATE_HOME", str(home.root))
    found = [one for one in checks._running(context.open_context(None)) if "scanner" in one.what]
    assert [(one.level, "a planted card was not found" in one.what) for one in found] == [("wrong", True)]


def test_a_server_that_the_router_will_not_use_is_wrong(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"name": "far", "address": "http://gpu-7:8000", "state": "failed", "detail": "it bears another's name"}
    behind = {"name": "far", "address": "door", "state": "ready", "detail": ""}
    state = {"ledger": {"healthy": True}, "endpoints": [refused, behind]}
    monkeypatch.setattr(checks, "ask_admin", lambda home, path: state)
    monkeypatch.setattr(checks, "ask_socket", lambda *_: {"instances": [instance("far", "x", attached=True)]})
    monkeypatch.setenv("HEADGATE_HOME", str(home.root))
    found = {one.what: one.level for one in checks._running(context.open_context(None))}
    assert found["far is FAILED: it bears another's name"] == "wrong"
