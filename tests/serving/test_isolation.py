"""What runs in a network of its own reaches nothing, and where the kernel does not allow one nothing is pretended."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import isolation
from serving.isolation import interfaces, refusal, wrapped
from tests.conftest import ROOT

STRANDED = Path(__file__).parents[1] / "fakes" / "stranded.py"
WAYS = ("host's loopback", "TCP", "UDP", "TCP over IPv6", "UDP over IPv6", "private network", "link", "back")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def allowed() -> None:
    """Skips where this machine's kernel gives no process a network of its own."""
    if said := run(*wrapped(["true"])).stderr:
        pytest.skip(f"namespaces are not to be had here: {said.strip()}")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody on the host's loopback, who would hear whoever reaches it."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def heard(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@pytest.mark.usefixtures("allowed")
def test_a_command_reaches_nothing_but_its_own_loopback(listener: socket.socket) -> None:
    port = str(listener.getsockname()[1])
    outside = json.loads(run(sys.executable, str(STRANDED), port).stdout)
    assert outside["host's loopback"] and heard(listener), "what is tried works without isolation"
    done = run(*wrapped([sys.executable, str(STRANDED), port]))
    found = json.loads(done.stdout)
    assert {way: found[way] for way in WAYS} == dict.fromkeys(WAYS, False)
    assert found["own loopback"] and done.stderr == ""
    assert not heard(listener)


@pytest.mark.usefixtures("allowed")
def test_what_it_starts_reaches_nothing_either(listener: socket.socket) -> None:
    port = str(listener.getsockname()[1])
    nested = ["sh", "-c", f"{sys.executable} {STRANDED} {port}; true"]
    found = json.loads(run(*wrapped(nested)).stdout)
    assert {way: found[way] for way in WAYS} == dict.fromkeys(WAYS, False)
    assert not heard(listener)


@pytest.mark.usefixtures("allowed")
def test_an_ordinary_user_gets_it_too(listener: socket.socket) -> None:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    user = ("setpriv", "--reuid=65534", "--clear-groups")
    if python is None or shutil.which("setpriv") is None or run(*user, python, "-c", "").returncode:
        pytest.skip("another user cannot be taken here")
    with tempfile.TemporaryDirectory() as folder:  # that everybody may read; the checkout may lie in somebody's own
        Path(folder).chmod(0o755)
        script, stranded = (shutil.copy(one, folder) for one in (isolation.__file__, STRANDED))
        done = run(*user, python, script, python, stranded, str(listener.getsockname()[1]))
    found = json.loads(done.stdout)
    assert {way: found[way] for way in WAYS} == dict.fromkeys(WAYS, False), done.stderr
    assert found["own loopback"] and done.stderr == ""
    assert not heard(listener)


CALLED = """
import socket, sys
from serving import isolation
callers = socket.create_server(("127.0.0.1", 0))
print(callers.getsockname()[1], flush=True)
print(isolation.enter(), flush=True)
caller, _ = callers.accept()
caller.sendall(b"answered")
caller.recv(1)
other = ("127.0.0.1", int(sys.argv[1]))
tried = socket.socket()
for one in (tried, callers, caller):  # those made before are the host's, and must not be turned outwards
    try:
        if one is not tried:
            import ctypes
            ctypes.CDLL(None).connect(one.fileno(), bytes(16), 16)
        one.connect(other)
        print("connected", flush=True)
    except OSError:
        print("refused", flush=True)
"""


@pytest.mark.usefixtures("allowed")
def test_callers_are_answered_through_a_socket_that_was_there_first(listener: socket.socket) -> None:
    command = [sys.executable, "-c", CALLED, str(listener.getsockname()[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as inside:
        assert inside.stdout is not None
        port = int(inside.stdout.readline())
        assert inside.stdout.readline() == "\n", "the kernel knows no way out"
        assert "route" not in isolation.way_out(inside.pid), "and says so of it to others"
        with socket.create_connection(("127.0.0.1", port), 10) as asked:
            assert asked.recv(100) == b"answered"
            asked.sendall(b"!")
            tried = inside.stdout.read().split()
    if landlock():
        assert tried == ["refused"] * 3
    assert tried[0] == "refused"
    assert not (landlock() and heard(listener))


def landlock() -> bool:
    """Whether the kernel can forbid TCP connections to a process."""
    code = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))"
    return int(run(sys.executable, "-c", code).stdout) >= isolation.LANDLOCK_NETWORK_VERSION


def test_where_the_kernel_gives_no_namespace_it_says_so_and_runs_the_command() -> None:
    """In a user namespace whose owner allows no network namespaces."""
    forbid = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    command = ["unshare", "-r", "sh", "-c", forbid, "-"]
    if shutil.which("unshare") is None or run(*command, "true").returncode:
        pytest.skip("the limit cannot be set here")
    done = run(*command, *wrapped(["sh", "-c", "echo ran; exit 7"]))
    assert (done.returncode, done.stdout) == (7, "ran\n")
    assert "NOT ENFORCED by the kernel" in done.stderr and "network of its own" in done.stderr


def test_a_process_with_threads_does_not_pretend() -> None:
    code = (
        "import threading; from serving import isolation; stop = threading.Event()\n"
        "threading.Thread(target=stop.wait).start(); print(isolation.enter()); stop.set()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert "2 threads" in done.stdout


def test_a_command_that_is_not_there_is_named() -> None:
    done = run(*wrapped(["/no/such/engine"]))
    assert done.returncode == 127 and "/no/such/engine" in done.stderr


ROUTES4 = "Iface\tDestination\tGateway\nlo\t0000007F\t0\neth0\t00000000\t0100A8C0\n"
ROUTES6 = "0 80 0 00 0 0 1 0 200200       lo\nfe8 40 0 00 0 100 1 0 1     wlan0\n"


@pytest.mark.parametrize(
    ("v4", "v6", "found"),
    [("", "", []), (ROUTES4, "", ["eth0"]), ("", ROUTES6, ["wlan0"]), (ROUTES4, ROUTES6, ["eth0", "wlan0"]),
     (ROUTES4.replace("eth0", "lo"), ROUTES6.replace("wlan0", "lo"), [])],
)  # fmt: skip
def test_routes_are_read_as_the_kernel_writes_them(v4: str, v6: str, found: list[str]) -> None:
    assert interfaces(v4, v6) == found


def test_a_process_that_has_gone_is_not_called_isolated() -> None:
    assert "cannot be read" in isolation.way_out(2**22 + 1)


def test_servers_on_the_network_are_refused_with_the_remedy() -> None:
    told = refusal(["unix:/run/a.sock", "http://127.0.0.1:8000"])
    assert "http://127.0.0.1:8000" in told and "unix:/path" in told and "isolate: false" in told
    assert refusal(["unix:/run/a.sock"]) == refusal([]) == ""
