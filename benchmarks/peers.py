"""The gateways Headgate is measured beside: `smg` and the LiteLLM proxy, each in an environment of its own.

They are made on request by uv, below one folder, and never share an environment with Headgate. Each is started with one
upstream, without a database, and with what its own documentation starts with; where a choice had to be made it is the
cheaper one for the peer (no request log for smg, no page of prices fetched for LiteLLM).
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.gateways import Gateway
from benchmarks.installation import Stop, free_port
from benchmarks.nginx import children
from serving.engines import uv_environment

PATIENCE_S = 120.0
LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them: what is installed, and how it is started in front of a port."""

    name: str
    package: str
    program: str
    words: Callable[[int, int, int, Path], list[str]]
    """Its words: the port of the upstream, its own port, a spare port, its folder."""
    effort: float = 1.0
    """The share of the load it is given: a slow one would keep the others waiting."""
    streams: int = 1000
    """Idle streams it is given."""


def _smg(upstream: int, port: int, spare: int, folder: Path) -> list[str]:
    return [
        "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream}",
        "--policy", "round_robin", "--prometheus-host", "127.0.0.1", "--prometheus-port", str(spare),
        "--log-level", "warn",
    ]  # fmt: skip


def _litellm(upstream: int, port: int, spare: int, folder: Path) -> list[str]:
    config = folder / "config.yaml"
    config.write_text(LITELLM.format(upstream=upstream))
    return ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


PEERS = (
    Peer("smg", "smg", "smg", _smg),
    Peer("litellm", "litellm[proxy]", "litellm", _litellm, effort=0.25, streams=100),
)
TOOLS = ("py-spy",)
"""Made with them: what shows where a Python process spends its time."""


def default_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the environments lie unless --peers-folder says otherwise: a user's cache, by the XDG rules."""
    cache = environ.get("XDG_CACHE_HOME") or ""
    return (Path(cache) if cache.startswith("/") else Path("~/.cache").expanduser()) / "headgate" / "peers"


def program(folder: Path, name: str, within: str = "") -> Path | None:
    """The program `name` of an environment, where it is installed."""
    found = folder / (within or name) / "bin" / name
    return found if found.is_file() else None


def install(folder: Path, say: Callable[[str], None]) -> None:
    """Make the environments that are not there yet. Raises Stop with what uv said."""
    for name, package, tool in [*((p.name, p.package, p.program) for p in PEERS), *((t, t, t) for t in TOOLS)]:
        if program(folder, tool, name) is None:
            environment(folder, name, package, say)


def environment(folder: Path, name: str, package: str, say: Callable[[str], None]) -> None:
    """Make one of them anew. Raises Stop with what uv said."""
    environ = uv_environment(os.environ)
    say(f"installing {package} into {name}/ of the peers' folder")
    _uv(["venv", "--clear", "--python", sys.executable, str(folder / name)], environ)
    _uv(["pip", "install", "--python", str(folder / name / "bin" / "python"), package], environ)


def _uv(words: list[str], environ: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *words], env=dict(environ), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Stop(f"uv {words[0]} did not succeed: {' '.join(done.stderr.strip().splitlines()[-3:])}")


def version(folder: Path, name: str, package: str) -> str:
    """Name and version of the package that is installed there; the name alone where none is."""
    package = package.partition("[")[0]
    found = next((folder / name / "lib").glob("python*/site-packages"), None)
    if found is None:
        return package
    there = importlib.metadata.distributions(name=package, path=[str(found)])
    return next((f"{package} {distribution.version}" for distribution in there), package)


@contextlib.contextmanager
def running(peer: Peer, folder: Path, upstream: int, scratch: Path) -> Iterator[Gateway]:
    """The peer in front of the port `upstream`. Raises Stop where it is not installed or does not answer."""
    found = program(folder, peer.program, peer.name)
    if found is None:
        raise Stop(f"{peer.name} is not installed and is left out; python -m benchmarks.overhead --install-peers")
    mine, port, key = scratch / peer.name, free_port(), f"sk-{secrets.token_hex(16)}"
    mine.mkdir(parents=True)
    # A key is the least that LiteLLM starts with; smg asks for none unless it is told to.
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HEADGATE_", "VIRTUAL_ENV"))}
    environ |= {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    with (mine / "log").open("wb") as log:
        child = subprocess.Popen(
            [str(found), *peer.words(upstream, port, free_port(), mine)], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env=environ, cwd=mine,
        )  # fmt: skip
    try:
        _wait(peer, child, port, key, mine / "log")
        yield Gateway(
            peer.name, f"http://127.0.0.1:{port}", key, version(folder, peer.name, peer.package),
            lambda: dict.fromkeys((child.pid, *children(child.pid)), peer.name), peer.effort, peer.streams,
        )  # fmt: skip
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


def _wait(peer: Peer, child: subprocess.Popen[bytes], port: int, key: str, log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while not _answers(port, key):
        if child.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace").strip()[-300:]
            raise Stop(f"{peer.name} does not start and is left out: {said}")
        time.sleep(0.2)


def _answers(port: int, key: str) -> bool:
    """Whether a chat is answered: some listen long before they know their upstream."""
    body = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "Hello"}]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
