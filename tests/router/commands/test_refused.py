"""Whatever is given wrongly is one sentence with what would be right, exit code 1, and nothing is started."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from serving import processes
from serving.home import Home
from tests.fakes.command_line import Said

Say = Callable[..., Said]


def refused(said: Said, *words: str) -> None:
    assert said.code == 1, said.all
    assert said.err.startswith("headgate: ") and said.err.count("\n") == 1, said.err
    for word in words:
        assert word in said.err


@pytest.fixture(autouse=True)
def _nothing_started(home: Home) -> object:
    yield
    assert not processes.ours(home.installation())


def test_an_unknown_field_names_file_line_and_what_is_allowed(say: Say, home: Home) -> None:
    (home.root / "headgate.yaml").write_text("# ours\nrunn: [a]\n")
    for command in (["up"], ["config", "check"], ["doctor"], ["plan"], ["keys", "create", "--team", "a"]):
        refused(say(*command), f"{home.root}/headgate.yaml:2: runn: unknown field; allowed here: ", "run")


def test_up_on_other_addresses_needs_tls_or_a_proxy(say: Say) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", ""):
        refused(say("up", "--host", host), "in clear; add --tls-cert and --tls-key, or --behind-proxy")


def test_up_checks_the_certificate(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.write_text("no certificate")
    refused(say("up", "--tls-cert", str(file)), "--tls-cert and --tls-key go together")
    refused(say("up", "--tls-cert", str(file), "--tls-key", str(tmp_path / "none")), "none: no such file")
    refused(say("up", "--tls-cert", str(file), "--tls-key", str(file)), "give a PEM certificate and its own key")


def test_up_names_the_models_there_are(say: Say) -> None:
    refused(say("up", "--model", "nothing-like-it"), "'nothing-like-it'", "qwen3.5-0.8b")
    refused(say("plan", "--model", "nothing-like-it"), "qwen3.5-0.8b")
    refused(say("models", "add", "nothing-like-it"), "qwen3.5-0.8b")


def test_a_hosted_model_is_enabled_and_not_started(say: Say) -> None:
    for command in (["up", "--model"], ["plan", "--model"], ["models", "add"]):
        refused(say(*command, "claude-opus-5-5"), "hosted", "headgate providers add anthropic")


@pytest.mark.parametrize(
    ("url", "word"),
    [("localhost:8000", "http://host:port"), ("http://10.0.0.1:8000", "in clear"), ("http://a:b@127.0.0.1", "key_env")],
)
def test_up_refuses_an_address_it_may_not_use(say: Say, url: str, word: str) -> None:
    refused(say("up", "--attach", url), f"--attach {url}: ", word)


@pytest.mark.parametrize("command", [["status"], ["chat", "hello"], ["explain"], ["explain", "--request", "x"]])
def test_what_needs_a_running_headgate_says_how_to_start_it(say: Say, home: Home, command: list[str]) -> None:
    said = say(*command, stdin="{}")
    told = f"Headgate is not running here (its state: {home.root}); start it with: headgate up"
    assert said == Said(1, "", f"headgate: {told}\n")


def test_a_dry_run_of_nothing_says_what_to_give(say: Say) -> None:
    refused(say("explain", stdin="\n"), "request body on stdin", "headgate explain < body.json")


def test_status_for_programs_says_that_nothing_runs(say: Say) -> None:
    said = say("status", "--json")
    assert said.code == 1 and said.json() == {"running": False, "starting": False}


def test_a_home_that_cannot_be_used(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADGATE_HOME", str(tmp_path / "file" / "home"))
    for command in (["up"], ["doctor"], ["config", "init"], ["keys", "create", "--team", "a"]):
        refused(say(*command), f"{tmp_path}/file", "set HEADGATE_HOME to a folder of yours")
    assert say("down").out == "Nothing of this installation runs.\n"


def test_a_missing_config_file(say: Say) -> None:
    refused(say("doctor", "--config", "/nowhere/headgate.yaml"), "/nowhere/headgate.yaml: no such file", "config init")


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["keys", "create", "--team", "a", "--data-class", "secrt"], "public, internal, private, secret"),
        (["keys", "create", "--team", "a", "--media-class", "secrt"], "public, internal, private, secret"),
        (["keys", "create", "--team", "a", "--requires", "eu"], "region:NAME, tag:NAME, no-training, no-retention"),
        (["keys", "create", "--team", "a", "--requires", ""], "region:NAME"),
        (["keys", "set", "nobody", "--declassify"], "headgate keys list"),
        (["keys", "create", "--team", "a", "--lanes", "fast"], "private, cheap, frontier"),
        (["keys", "create", "--team", "a", "--lanes", ""], "at least one"),
        (["keys", "create", "--team", "a", "--budget", "-3"], "US dollars"),
        (["keys", "create", "--team", "a", "--requests-per-minute", "0"], "whole number from 1"),
        (["keys", "create", "--team", "a", "--tokens-per-minute", "1e3"], "or none"),
        (["keys", "create", "--team", "a", "--expires", "soon"], "90d"),
        (["keys", "create", "--team", "a", "--expires", "9999999999d"], "90d"),
        (["keys", "create", "--team", "[red]"], "team name"),
        (["keys", "set", "nobody", "--data-class", "public"], "headgate keys list"),
        (["keys", "set", "nobody"], "nothing to change"),
        (["keys", "revoke", "nobody"], "headgate keys list"),
        (["keys", "rotate", "nobody"], "headgate keys list"),
        (["explain", "--data-class", "pubic"], "public, internal, private, secret"),
        (["logs", "nothing"], "no log called 'nothing'"),
        (["providers", "add", "nobody"], "--base-url"),
    ],
)
def test_what_cannot_be_is_one_sentence(say: Say, command: list[str], word: str) -> None:
    refused(say(*command), word)


def test_a_broken_ledger_is_named(say: Say, home: Home) -> None:
    home.ledger.write_bytes(b"this is no database at all, whatever its name says" * 100)
    refused(say("keys", "list"), str(home.ledger))


def test_another_up_at_work_is_not_disturbed(say: Say, home: Home) -> None:
    with (home.run / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(say("up"), "another up of", "is at work")
