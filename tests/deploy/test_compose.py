"""deploy/compose.yaml and its images: only the door has a way out, and nothing runs with more than it needs.

Docker is not needed: the property is read off the file. Each check is a function from the file to a list of problems,
and `test_each_check_can_fail` hands it a broken one.
"""

from __future__ import annotations

import copy
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.engines import GPU_VERSION
from serving.home import Home, listen_privately
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
Compose = dict[str, Any]

MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
GATEWAY = "com.docker.network.bridge.gateway_mode_ipv4"
OURS = ("router", "door", "serving", "fetch")
ONE_UID = "10001:10001"


@pytest.fixture(scope="module")
def compose() -> Compose:
    found: Compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def started(compose: Compose) -> dict[str, Any]:
    """The services that `up` starts; those with a profile are started by name alone."""
    return {name: service for name, service in compose["services"].items() if "profiles" not in service}


def networks(compose: Compose, name: str) -> set[str]:
    """The networks a service is in, also where it shares another's; Docker's own where it names none."""
    service = compose["services"][name]
    mode = service.get("network_mode", "")
    if mode.startswith("service:"):
        return networks(compose, mode.removeprefix("service:"))
    if mode:
        return set() if mode == "none" else {mode}
    return set(service.get("networks") or ["default"])


def lets_out(compose: Compose, network: str) -> bool:
    """Whether a container in this network can reach the world and be answered."""
    settings = (compose["networks"] or {}).get(network) or {}
    options = settings.get("driver_opts", {})
    return not settings.get("internal") and options.get(MASQUERADE) != "false"


def ways_out(compose: Compose) -> list[str]:
    """Services with a way out, but for the door; and a door without one."""
    out = {name for name in started(compose) if any(lets_out(compose, n) for n in networks(compose, name))}
    return [f"{name} has a way out" for name in sorted(out - {"door"})] + ([] if "door" in out else ["no door"])


def internal_is_closed(compose: Compose) -> list[str]:
    """An internal network without the gateway mode `isolated` still reaches the host's own services."""
    closed = {name: n for name, n in compose["networks"].items() if n.get("internal")}
    wrong = [name for name, n in closed.items() if n.get("driver_opts", {}).get(GATEWAY) != "isolated"]
    return [f"{name} reaches the host" for name in wrong] + ([] if closed else ["no internal network"])


def published(compose: Compose) -> list[str]:
    """Ports of anything but the edge, and ports for other machines without somebody choosing so."""
    found = []
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if name != "edge" or not str(port).startswith("127.0.0.1:"):
                found.append(f"{name} publishes {port}")
    return found


def one_offs(compose: Compose) -> list[str]:
    """What may go out by name must see nothing that anybody said: no state, no sockets, no keys, no settings."""
    found = []
    for name, service in compose["services"].items():
        if "profiles" in service:
            found += [f"{name} sees {v}" for v in volumes(service) if v != "cache"]
            found += [f"{name} sees {what}" for what in ("secrets", "configs", "environment") if service.get(what)]
    return found


def volumes(service: dict[str, Any]) -> list[str]:
    return [str(volume).split(":")[0] for volume in service.get("volumes", [])]


def privileges(compose: Compose) -> list[str]:
    found = []
    for name, service in compose["services"].items():
        if service.get("privileged") or service.get("cap_add") or service.get("devices"):
            found.append(f"{name} has privileges")
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            found.append(f"{name} keeps capabilities")
        if service.get("read_only") is not True:
            found.append(f"{name} can write to its image")
        if any(service.get(key) == "host" for key in ("network_mode", "pid", "ipc", "userns_mode", "uts")):
            found.append(f"{name} shares the host's namespaces")
        if any("docker.sock" in str(volume) for volume in service.get("volumes", [])):
            found.append(f"{name} rules Docker")
        if name not in OURS and str(service.get("user", "0")).split(":")[0] in ("0", "root"):
            found.append(f"{name} runs as root")
    return found


def secrets(compose: Compose) -> list[str]:
    """Secrets in the environment, and provider keys or TLS keys where they have no business."""
    found = []
    may = {"openai": {"door"}, "openrouter": {"door"}, "tls-key": {"router"}, "tls-cert": {"router"}}
    may |= {"admin-token": {"router", "prometheus"}, "grafana-admin": {"grafana"}}
    for name, service in compose["services"].items():
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"KEY|TOKEN|SECRET|PASSWORD", key) and not str(value).startswith("/run/secrets/"):
                found.append(f"{name} has {key} in its environment")
        for secret in service.get("secrets", []):
            source = secret if isinstance(secret, str) else secret["source"]
            if name not in may.get(source, set()):
                found.append(f"{name} sees {source}")
    return found


def state(compose: Compose) -> list[str]:
    """Who sees the state folder, and that the book is the door's alone."""
    may = {"state": {"router", "door", "serving"}, "book": {"door"}, "cache": {"serving", "fetch"}}
    services = compose["services"]
    seen = [(name, volume) for name, service in services.items() for volume in volumes(service)]
    return [f"{name} sees {volume}" for name, volume in seen if name not in may.get(volume, {name})]


def images(compose: Compose) -> list[str]:
    """Images without a version, and our own asked of a registry."""
    found = []
    for name, service in compose["services"].items():
        tag = str(service["image"]).rpartition(":")[2]
        if not re.search(r"\d+\.\d+", tag) or "latest" in tag:
            found.append(f"{name} has no version")
        if str(service["image"]).startswith("headgate") and service.get("pull_policy") != "never":
            found.append(f"{name} would be pulled")
    return found


CHECKS = (ways_out, internal_is_closed, published, one_offs, privileges, secrets, state, images)


@pytest.mark.parametrize("check", CHECKS)
def test_it_holds(check: Callable[[Compose], list[str]], compose: Compose) -> None:
    assert check(compose) == []


def broken() -> Iterator[tuple[Callable[[Compose], list[str]], str, Any]]:
    """A check, the place to change (`/` between keys), and the value that must be seen."""
    for service in ("router", "serving", "prometheus", "grafana", "edge"):
        yield ways_out, f"services/{service}", {"image": "x:1.0", "networks": ["outside"]}
        yield ways_out, f"services/{service}", {"image": "x:1.0"}  # Docker's default network
        yield ways_out, f"services/{service}", {"image": "x:1.0", "network_mode": "host"}
        yield privileges, f"services/{service}/privileged", True
        yield privileges, f"services/{service}/read_only", False
        yield privileges, f"services/{service}/cap_drop", []
        yield images, f"services/{service}/image", "nginx:latest"
    yield ways_out, "networks/inside/internal", False
    yield ways_out, "networks/callers/driver_opts", {}
    yield ways_out, "services/door/networks", ["inside"]
    yield internal_is_closed, "networks/inside/driver_opts", {}
    yield published, "services/edge/ports", ["8443:8443"]
    yield published, "services/router/ports", ["127.0.0.1:8080:8080"]
    yield one_offs, "services/fetch/volumes", ["state:/var/lib/headgate"]
    yield one_offs, "services/fetch/secrets", ["openai"]
    yield privileges, "services/serving/pid", "host"
    yield privileges, "services/edge/volumes", ["/var/run/docker.sock:/var/run/docker.sock"]
    yield privileges, "services/grafana/user", "0"
    yield secrets, "services/door/environment", {"OPENAI_API_KEY": "x"}
    yield secrets, "services/router/secrets", ["openai"]
    yield state, "services/router/volumes", ["book:/var/lib/headgate/door"]
    yield state, "services/prometheus/volumes", ["state:/state"]
    yield images, "services/door/pull_policy", "always"


@pytest.mark.parametrize(("check", "place", "value"), list(broken()))
def test_each_check_can_fail(check: Callable[[Compose], list[str]], place: str, value: Any, compose: Compose) -> None:
    changed = copy.deepcopy(compose)
    *path, last = place.split("/")
    at = changed
    for key in path:
        at = at[key]
    at[last] = value
    assert check(changed), f"{check.__name__} did not see it"


def test_every_file_it_names_is_there(compose: Compose) -> None:
    named = {name: DEPLOY / config["file"] for name, config in compose["configs"].items()}
    # The site's own, made from the example.
    assert named.pop("headgate") == DEPLOY / "headgate.yaml"
    assert [str(path) for path in named.values() if not path.is_file()] == []
    assert all(secret["file"].startswith("secrets/") for secret in compose["secrets"].values())
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/secrets/openai", "deploy/headgate.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if (ROOT / ".git").exists():
        assert ignored.stdout.split() == ["deploy/secrets/openai", "deploy/headgate.yaml"], "they could be committed"


def test_router_and_door_take_the_command_lines(compose: Compose) -> None:
    for name in ("router", "door", "serving"):
        module, *options = compose["services"][name]["command"]
        asked = [sys.executable, "-P", "-m", module, "--help"]
        environment = {"PYTHONPATH": str(ROOT)}
        help_text = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
        assert [o for o in options if o.startswith("--") and o not in help_text] == []


# The images.


def dockerfiles() -> list[Path]:
    return sorted((DEPLOY / "containers").glob("*.Dockerfile"))


def hadolint() -> str:
    """The linter, in the environment of the tests or on the path; else the test is skipped with the reason."""
    beside = Path(sys.executable).with_name("hadolint")
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    if not found:
        pytest.skip("hadolint is not installed (it comes with deploy/requirements-dev.txt)")
    return found


@pytest.mark.parametrize("path", dockerfiles(), ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([hadolint(), str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", dockerfiles(), ids=lambda path: path.name)
def test_an_image_copies_what_is_there_and_runs_as_nobody_in_particular(path: Path) -> None:
    text = path.read_text()
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    allowed = path.with_name(path.name + ".dockerignore").read_text().splitlines()
    assert [name for name in copied if f"!{name}" not in allowed] == []
    assert "*" in allowed
    users = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert users == [ONE_UID], "router, door and serving open each other's sockets, so they share one number"
    assert "--require-hashes" in text
    assert re.search(r"^HEALTHCHECK ", text, re.MULTILINE)
    # No shell stands between Docker and the program: signals arrive, and nothing is expanded.
    assert all(
        line.split(" ", 1)[1].startswith("[") for line in re.findall(r"^(?:ENTRYPOINT|CMD) .*$", text, re.MULTILINE)
    )


def test_the_engine_in_the_image_is_the_one_this_release_was_made_for() -> None:
    text = (DEPLOY / "containers" / "serving.Dockerfile").read_text()
    assert re.findall(r"^FROM vllm/vllm-openai:v([\d.]+)", text, re.MULTILINE) == [GPU_VERSION[1]]
    # The Python that the example's line for containers names is the one the image is checked with.
    (line,) = re.findall(r"engine: \{python: (\S+)\}", (DEPLOY / "headgate.example.yaml").read_text())
    assert f'RUN ["{line}", "-P", "-c", "import vllm' in text


@pytest.mark.parametrize(
    ("answer", "code"), [(b"HTTP/1.1 200 OK\r\n\r\n", 0), (b"HTTP/1.1 503 No\r\n\r\n", 1), (None, 1)]
)
def test_the_health_check_asks_the_part(home: Home, answer: bytes | None, code: int) -> None:
    command = [sys.executable, "-P", str(DEPLOY / "containers" / "health.py"), "admin", "/status"]
    environment = {"HEADGATE_HOME": str(home.root)}
    if answer is None:
        assert subprocess.run(command, env=environment, capture_output=True).returncode == code
        return
    with listen_privately(home.socket("admin")) as listener:
        asking = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        listener.settimeout(20)
        part, _ = listener.accept()
        with part:
            assert part.recv(200).startswith(b"GET /status HTTP/1.1\r\n")
            part.sendall(answer)
            part.shutdown(socket.SHUT_WR)
        assert asking.wait(20) == code


def test_no_container_leaves_a_core(compose: Compose) -> None:
    assert {name for name, service in compose["services"].items() if service.get("ulimits") != {"core": 1}} == set()
