"""`up`, `down`, `status`, `logs` with real processes: they start, answer, survive what dies, and leave nothing."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.fakes.command_line import Headgate, Said, Server, eventually

Say = Callable[..., Said]


def printed_curl(out: str) -> str:
    return next(line for line in out.splitlines() if line.startswith("curl "))


def run_in_shell(line: str) -> str:
    return subprocess.run(["sh", "-c", f"{line} --silent --show-error"], capture_output=True, text=True).stdout


def test_one_command_gives_a_key_and_a_curl_line_that_answers(headgate: Headgate, say: Say, vllm: Server) -> None:
    up = headgate.up(vllm.url)
    assert up.code == 0, up.all
    assert f"endpoint  http://127.0.0.1:{headgate.port}/v1" in up.out
    assert re.search(r"key       hg_\w+\n +data class private, team first", up.out)
    curl = printed_curl(up.out)
    assert "Good morning" in run_in_shell(curl)

    again = say("up")
    assert again.code == 0 and "runs already" in again.out and curl in again.out
    assert "still starting" not in again.out
    other = say("up", "--port", "1", "--attach", vllm.url)
    assert other.code == 1 and "--port, --attach cannot take effect; first: headgate down" in other.err

    chat = say("chat", "Hello")
    assert chat.code == 0, chat.all
    # As it came: no markup, no emoji, no control sequence that would clear a terminal.
    assert chat.out.startswith("Good [/morning] :cat: \n— river (local): ")
    shown = re.search(r"headgate (explain --request \S+)", chat.out)
    assert shown is not None
    record = say(*shown[1].split())
    assert record.code == 0
    assert (
        "river: answered, first byte after" in record.out
        and "3 in, 2 out" in record.out
        and "cost       unpriced" in record.out
    )

    dry = say("explain", stdin='{"model": "auto", "messages": [{"role": "user", "content": "x"}]}')
    assert dry.code == 0 and "goes to    river (local)" in dry.out
    broken = say("explain", stdin='{"model": ')
    assert broken.code == 1 and broken.err.startswith("headgate: ") and broken.err.count("\n") == 1

    status = say("status", "--json").json()
    assert status["running"] is True and status["url"] == f"http://127.0.0.1:{headgate.port}"
    assert "river" in say("status").out
    assert say("logs", "router").code == 0

    down = say("down")
    assert down.code == 0 and "none left" in down.out
    assert not headgate.processes()
    assert say("down").out == "Nothing of this installation runs.\n"


@pytest.mark.long
def test_detach_returns_at_once_and_a_later_up_waits(headgate: Headgate, say: Say, vllm: Server) -> None:
    first = headgate("up", "--attach", vllm.url, "--port", str(headgate.port), "--detach")
    assert first.code == 0 and "is starting" in first.out and "curl " in first.out
    second = say("up", "--detach", "--wait")
    assert second.code == 0 and "runs already" in second.out
    assert "still starting" not in second.out
    assert "Good morning" in run_in_shell(printed_curl(second.out))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_ends_cleanly_and_leaves_nothing(headgate: Headgate, vllm: Server, number: int) -> None:
    up = headgate.start("up", "--attach", vllm.url, "--port", str(headgate.port))
    assert up.stdout is not None
    for line in up.stdout:
        if line.startswith("Ctrl-C"):
            break
    up.send_signal(number)
    rest = up.stdout.read()
    assert up.wait(30) == 0, rest
    assert "nothing of it is left" in rest and "Traceback" not in rest
    assert not headgate.processes()


@pytest.mark.long
def test_a_foreground_that_is_killed_takes_everything_with_it(headgate: Headgate, vllm: Server) -> None:
    up = headgate.start("up", "--attach", vllm.url, "--port", str(headgate.port))
    eventually(lambda: "router" in headgate.processes())
    up.kill()
    eventually(lambda: not headgate.processes())


@pytest.mark.long
def test_a_killed_keeper_leaves_nothing_and_the_next_start_works(headgate: Headgate, say: Say, vllm: Server) -> None:
    assert headgate.up(vllm.url).code == 0
    os.kill(headgate.processes()["router.keeper"], signal.SIGKILL)
    eventually(lambda: not headgate.processes())
    again = headgate.up(vllm.url)
    assert again.code == 0 and "runs already" not in again.out, again.all
    assert say("down").code == 0
    assert not headgate.processes()


@pytest.mark.long
def test_what_was_left_behind_is_ended_by_up_and_by_down(headgate: Headgate, say: Say, vllm: Server) -> None:
    environment = headgate.environment | {"HEADGATE_INSTALLATION": headgate.home.installation()}

    def leave() -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)

    left = leave()
    doctor = say("doctor")
    assert "1 processes of an earlier start are left" in doctor.out and doctor.code == 1
    up = headgate.up(vllm.url)
    assert up.code == 0 and "earlier start left behind" in up.out
    assert left.wait(5) < 0
    say("down")
    left = leave()
    assert "1 processes ended, none left" in say("down").out
    assert left.wait(5) < 0


@pytest.mark.long
def test_a_killed_router_comes_back(headgate: Headgate, say: Say, vllm: Server) -> None:
    up = headgate.up(vllm.url)
    before = headgate.processes()["router"]
    os.kill(before, signal.SIGKILL)
    eventually(lambda: headgate.processes().get("router", before) != before)
    eventually(lambda: "Good morning" in run_in_shell(printed_curl(up.out)))
    assert "router ended with code -9; starting it again" in say("logs", "keeper").out


def test_only_the_door_sees_the_keys_of_providers(
    headgate: Headgate, say: Say, vllm: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    headgate.site("providers: {openai: {enabled: true, key_env: FAR_KEY}}\n")
    planted = secrets.token_hex(16)
    up = headgate.up(vllm.url, FAR_KEY=planted, UNUSED=secrets.token_hex(4))
    assert up.code == 0, up.all
    seen = {
        module: planted.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        for module, pid in headgate.processes().items()
    }
    # The keeper hands it on; it opens no connection and reads no request.
    assert seen == {"router.keeper": True, "router.door": True, "router": False, "serving": False}
    monkeypatch.setenv("FAR_KEY", planted)
    for command in (["status"], ["status", "--json"], ["doctor"], ["providers", "list"], ["keys", "list"]):
        assert planted not in say(*command).all, command
    monkeypatch.delenv("FAR_KEY")
    assert "is closed" not in up.out
    # What counts is the door's environment, not that of whoever runs doctor.
    assert "provider openai is enabled; no key may use it; its key is there" in say("doctor").out


@pytest.mark.long
def test_up_notes_a_provider_whose_key_is_not_there(headgate: Headgate, vllm: Server) -> None:
    headgate.site("providers: {openai: {enabled: true, key_env: NOT_SET_HERE}}\n")
    up = headgate.up(vllm.url)
    assert up.code == 0, up.all
    assert "note: openai is closed: the variable NOT_SET_HERE is empty or not set" in up.out


@pytest.mark.long
def test_chat_makes_no_key_in_place_of_one_that_was_revoked(headgate: Headgate, say: Say, vllm: Server) -> None:
    assert headgate.up(vllm.url).code == 0
    (key,) = (k["id"] for k in say("keys", "list", "--json").json())
    say("keys", "revoke", key)
    chat = say("chat", "Hello")
    assert chat.code == 1 and "the first key is revoked; make one with: headgate keys create" in chat.err
    assert len(say("keys", "list", "--json").json()) == 1
    assert "The first key is revoked: a new one was made." in say("up").out
    assert say("chat", "Hello").code == 0


@pytest.mark.long
def test_up_while_something_is_coming_up_says_so(headgate: Headgate, say: Say, vllm: Server) -> None:
    assert headgate.up(vllm.url).code == 0
    running = headgate.processes()
    os.kill(running["router.keeper"], signal.SIGSTOP)  # nobody starts the router again for now
    os.kill(running["router"], signal.SIGKILL)
    try:
        again = say("up")
    finally:
        os.kill(running["router.keeper"], signal.SIGCONT)
    assert again.code == 0 and "It is still starting; follow it with: headgate status" in again.out


@pytest.mark.long
@pytest.mark.parametrize("part", ["router", "serving", "router.door"])
def test_a_part_that_cannot_start_ends_all_with_its_sentence(headgate: Headgate, vllm: Server, part: str) -> None:
    if part == "router":
        headgate.home.ledger.write_bytes(b"this is no database at all, whatever its name says" * 100)
        args = ["up", "--attach", vllm.url]
    elif part == "serving":
        (headgate.home.run / "serving.lock").mkdir()
        args = ["up", "--attach", vllm.url]
    else:
        headgate.site("providers: {openai: {enabled: true}}\n")
        headgate.home.book.mkdir()
        args = ["up", "--attach", vllm.url]
    up = headgate(*args, "--port", str(headgate.port), "--detach", "--wait")
    assert up.code == 1
    sentence = up.err.strip().splitlines()[-1]
    assert sentence.startswith("headgate: ") and {"router": "ledger", "serving": "serving.lock",
                                                  "router.door": "book"}[part] in sentence  # fmt: skip
    assert not headgate.processes()


@pytest.mark.long
def test_attaching_to_nothing_says_so_and_leaves_nothing(headgate: Headgate) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    up = headgate.up(url)
    assert up.code == 1 and "unreachable: connection refused; start that server first" in up.err
    assert not headgate.processes()


@pytest.mark.long
def test_attaching_without_the_right_key_names_the_setting(headgate: Headgate, vllm: Server) -> None:
    vllm.key = secrets.token_hex(8)
    up = headgate.up(vllm.url)
    assert up.code == 1 and "wrong key" in up.err and f"under `attach:` in {headgate.home.root}/headgate.yaml" in up.err
    assert not headgate.processes()
    headgate.site(f"attach: [{{url: '{vllm.url}', key_env: OURS}}]\n")
    up = headgate("up", "--port", str(headgate.port), "--detach", "--wait", OURS=vllm.key)
    assert up.code == 0, up.all
    assert "Good morning" in run_in_shell(printed_curl(up.out))


@pytest.mark.long
def test_a_configured_server_that_is_down_does_not_hold_up_the_others(headgate: Headgate, vllm: Server) -> None:
    headgate.site(f"attach: [{{url: '{vllm.url}'}}, {{url: 'http://127.0.0.1:{free_port()}'}}]\n")
    up = headgate("up", "--port", str(headgate.port), "--detach", "--wait")
    assert up.code == 0, up.all
    assert "unreachable: connection refused" in up.out and "is left out; it is tried again" in up.out


@pytest.mark.long
def test_what_is_configured_so_that_nobody_can_use_it_is_said_at_the_start(headgate: Headgate, vllm: Server) -> None:
    """A server that calls its model as a hosted one is called; and a typo that closes the way out."""
    site = "providers: {far: {enabled: true, base_url: 'https://a.example/v1'}}\nprivacy: {effects: {emial: public}}\n"
    model = "{place: hosted, provider: far, provider_model: m, lanes: [frontier], context: 1000, output: 100}"
    headgate.site(f"{site}models: {{far-one: {model}}}\n")
    up = headgate.up(vllm.url)
    assert up.code == 0, up.all
    assert "note: nothing leaves to any provider: " in up.out and "'emial' is no kind" in up.out
    assert headgate("down").code == 0
    headgate.site(f"{site}models: {{river: {model}}}\n")
    up = headgate.up(vllm.url)
    assert up.code == 1 and "river: failed: river is the name of a hosted model; give the server another" in up.err
    assert not headgate.processes()


@pytest.mark.long
def test_tls_answers_and_chat_trusts_it(headgate: Headgate, say: Say, vllm: Server, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert with space.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=gate", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    up = headgate.up(vllm.url, "--tls-cert", str(cert), "--tls-key", str(key), "--host", "0.0.0.0")
    assert up.code == 0, up.all
    assert f"https://localhost:{headgate.port}/v1" in up.out  # the name the certificate is for
    assert "Good morning" in run_in_shell(printed_curl(up.out))
    chat = say("chat", "Hello")
    assert chat.code == 0 and "Good" in chat.out, chat.all
    trusting = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(f"https://localhost:{headgate.port}/health", context=trusting) as answer:
        assert answer.status == 200


@pytest.mark.long
def test_two_starts_at_once_end_in_one_running(headgate: Headgate, say: Say, vllm: Server) -> None:
    args = ["up", "--attach", vllm.url, "--port", str(headgate.port), "--detach", "--wait"]
    both = [headgate.start(*args), headgate.start(*args)]
    codes = sorted(child.wait(60) for child in both)
    texts = [child.stdout.read() for child in both if child.stdout]
    assert codes[0] == 0, texts
    assert codes[1] == 0 or any("another up of" in t or "cannot take effect" in t for t in texts), texts
    assert say("status", "--json").json()["running"] is True


def test_what_is_refused_starts_nothing(headgate: Headgate, vllm: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        up = headgate("up", "--attach", vllm.url, "--port", port, "--detach")
    assert up.code == 1
    assert up.err == (
        f"headgate: 127.0.0.1:{port} cannot be used (Address already in use); choose another port with --port\n"
    )
    assert not headgate.processes()


@pytest.mark.long
def test_a_model_that_cannot_run_is_an_error_with_its_reason(headgate: Headgate) -> None:
    headgate.site("engine: {python: /nowhere/bin/python}\n")
    up = headgate("up", "--model", "demo", "--port", str(headgate.port), "--detach", "--wait")
    assert up.code == 1
    assert "demo: failed: /nowhere/bin/python does not exist; correct `engine: {python: …}` in headgate.yaml" in up.err
    assert not headgate.processes()
