"""One real installation for a whole run: `headgate up` with the demo model, and a second vLLM as hosted provider."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from serving import engines, gpus
from serving.catalogue import EngineChoice
from serving.home import Home, find_home

ROOT = Path(__file__).parent.parent
PROVIDER_KEY = "FAR_PROVIDER_KEY"


class CountingRelay:
    """Passes TCP on to `port`, and counts every byte and every connection that came."""

    def __init__(self, port: int) -> None:
        self.bytes = self.connections = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                far = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                self.bytes += len(data) if counted else 0
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.close()


class Installation:
    """Started once by `start`, stopped by `stop`; everything in between through the command line and the sockets."""

    def __init__(self, site: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> None:
        """`site`: laid over the headgate.yaml of the tests. `environment`: added to that of its processes."""
        self._given, self._added = site or {}, environment or {}
        root = Path(tempfile.mkdtemp(prefix="hg-run-"))
        # The engines of this machine's own installation are used, and made there if they are missing.
        self.home = Home(root, find_home().engines)
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = ""
        self._provider: subprocess.Popen[bytes] | None = None
        self.provider_port = _free_port()
        self._relay = CountingRelay(self.provider_port)

    def start(self) -> None:
        self.home.make()
        (self.home.root / "headgate.yaml").write_text(yaml.safe_dump(self._site()))
        self.output = self.run("up", "--port", str(self.port), "--detach", "--wait").stdout

    def stop(self) -> None:
        log = (self.home.logs / "keeper.log").read_text()
        try:
            self.run("down")
            left = self.pids()
        finally:
            if self._provider is not None:
                self._provider.terminate()
                self._provider.wait(60)
            self._relay.close()
            shutil.rmtree(self.home.root, ignore_errors=True)
        assert not left, f"left running: {left}"
        assert "starting it again" not in log, log

    def run(self, *args: str, given: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A headgate command of this installation."""
        done = subprocess.run(
            [sys.executable, "-m", "router.cli", *args], input=given, capture_output=True, text=True, check=False,
            env=self._environment(), cwd=self.home.root, timeout=600,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{args}: {done.stdout}\n{done.stderr}"
        return done

    @property
    def first_key(self) -> str:
        return (self.home.secrets / "first-key").read_text()

    def make_key(self, data_class: str, *options: str, team: str = "tests") -> str:
        made = self.run("keys", "create", "--team", team, "--data-class", data_class, *options, "--json")
        return str(json.loads(made.stdout)["key"])

    def ask(self, name: str, path: str) -> str:
        """GET from one of the installation's Unix sockets."""
        return self.get(self.home.socket(name), path)

    def get(self, place: Path, path: str) -> str:
        """GET from a Unix socket, an engine's for one."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(place))
        connection.request("GET", path)
        try:
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def requests_served(self) -> float:
        """Requests the router has ended, by its own metrics."""
        lines = self.ask("admin", "/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("headgate_requests_total"))

    def provider_bytes(self) -> int:
        """Bytes that reached the hosted provider's address; the provider is started at the first call."""
        if self._provider is None:
            self._start_provider()
            self._relay.bytes = 0
        return self._relay.bytes

    def pids(self) -> set[int]:
        """Every living process that carries this installation's id."""
        mine = self.home.installation()
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HEADGATE_INSTALLATION") == mine and process.status() != "zombie":
                    found.add(process.pid)
        return found

    def listening_sockets(self, pids: set[int]) -> list[tuple[str, int]]:
        return [
            (c.laddr.ip, c.laddr.port)
            for c in psutil.net_connections("tcp")
            if c.pid in pids and c.status == psutil.CONN_LISTEN
        ]

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        return kept | {
            "HEADGATE_HOME": str(self.home.root),
            "HEADGATE_ENGINES": str(self.home.engines),
            "PYTHONPATH": str(ROOT),
            PROVIDER_KEY: "k" * 24,
            **self._added,
        }

    def _site(self) -> dict[str, Any]:
        far = {
            "place": "hosted", "lanes": ["frontier"], "context": 4096, "output": 64, "provider": "far",
            "provider_model": "far-1", "abilities": ["chat", "tools", "schema"], "parameters": "vllm",
            "price": {"input": 2.0, "output": 10.0},
        }  # fmt: skip
        provider = {
            "enabled": True, "base_url": f"http://127.0.0.1:{self._relay.port}/v1", "key_env": PROVIDER_KEY,
            "private_ranges": ["127.0.0.0/8"],
        }  # fmt: skip
        site: dict[str, Any] = {"models": {"far-demo": far}, "providers": {"far": provider}}
        for section in ("models", "providers"):
            for name, fields in self._given.get(section, {}).items():
                site[section][name] = {**site[section].get(name, {}), **fields}
        return {**self._given, **site}

    def _start_provider(self) -> None:
        """A second vLLM with the same demo weights, on loopback TCP: it plays the hosted service."""
        engine = engines.find(EngineChoice(), self.home.engines, gpu=bool(gpus.read().gpus))
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home.root), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }  # fmt: skip
        with (self.home.logs / "provider.log").open("wb") as log:
            self._provider = subprocess.Popen(
                [str(engine.python), "-m", "vllm.entrypoints.openai.api_server", "--model",
                 str(self.home.models / "demo"), "--served-model-name", "far-1", "--host", "127.0.0.1", "--port",
                 str(self.provider_port), "--enforce-eager", "--max-model-len", "4096", "--api-key", "k" * 24],
                stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            assert self._provider.poll() is None, (self.home.logs / "provider.log").read_text()[-2000:]
            connection = http.client.HTTPConnection("127.0.0.1", self.provider_port, timeout=5)
            with contextlib.suppress(OSError), contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise AssertionError("the provider's engine did not start in time")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
