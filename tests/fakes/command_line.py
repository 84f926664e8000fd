"""The `headgate` command as processes of its own, and a vLLM server to attach."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from serving import processes
from serving.home import Home
from tests.conftest import ROOT, free_port


@dataclass
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def all(self) -> str:
        return self.out + self.err


class Headgate:
    """The `headgate` command with a state folder of its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.port = free_port()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("HEADGATE_", "FAKE_"))} | {
            "HEADGATE_HOME": str(home.root), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *args: str, stdin: str = "", **environment: str) -> Said:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "router.cli", *args], input=stdin, capture_output=True, text=True, timeout=60,
            env=self.environment | environment, cwd=self.home.root,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return Said(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        child = subprocess.Popen(
            [sys.executable, "-m", "router.cli", *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=self.environment | environment, cwd=self.home.root,
            # As on a terminal: whatever a shell starts in the background ignores Ctrl-C, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.started.append(child)
        return child

    def up(self, url: str, *args: str, **environment: str) -> Said:
        """Start in the background and wait until all is ready."""
        return self("up", "--attach", url, "--port", str(self.port), "--detach", "--wait", *args, **environment)

    def site(self, text: str) -> Path:
        path = self.home.root / "headgate.yaml"
        path.write_text(text)
        return path

    def processes(self) -> dict[str, int]:
        """The pids of this installation's processes, by the module each runs."""
        found = {}
        for process in processes.ours(self.home.installation()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                args = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")
                found[args[args.index("-m") + 1] if "-m" in args else args[0]] = process.pid
        return found

    def end(self) -> None:
        for child in self.started:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        for process in processes.ours(self.home.installation()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        eventually(lambda: not processes.ours(self.home.installation()))


def eventually(true: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.02)


class Vllm(BaseHTTPRequestHandler):
    """A vLLM server as far as attaching and chatting goes; with a key where the server has one."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path == "/metrics":
            self._answer("text/plain", b'vllm:num_requests_running{model_name="m"} 0\n')
        else:
            self._json({"object": "list", "data": [{"id": "river", "object": "model", "max_model_len": 2048}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._refused():
            return
        self.server.asked.append(body)
        head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "river"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "Good morning"}
            self._json({**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})
            return
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "Good "}]
        deltas += [{"content": "[/morning] :cat: \x1b[2J"}]
        events = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        events += [{**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
        events += [{**head, "choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self._answer("text/event-stream", text.encode())

    def _refused(self) -> bool:
        if not self.server.key or self.headers.get("authorization") == f"Bearer {self.server.key}":
            return False
        self._json({"error": "Unauthorized"}, 401)
        return True

    def _json(self, data: Any, status: int = 200) -> None:
        self._answer("application/json", json.dumps(data).encode(), status)

    def _answer(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    key = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Vllm)
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
