"""nginx as the measure of what passing on costs at least: one worker, keep-alive on both sides, no buffering."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installation import Stop, answers, free_port

CONFIG = """
daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000; client_max_body_size 16m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream bench {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx."""

    url: str
    version: str
    pids: tuple[int, ...]
    """Master and worker."""


def program() -> str | None:
    """Where nginx is; some systems keep it out of a user's path."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def running(upstream: int, folder: Path) -> Iterator[Nginx]:
    """An nginx in front of the port `upstream`, with its own files in `folder`. Raises Stop."""
    found = program()
    if found is None:
        raise Stop("nginx is not installed, and it is the measure here; Debian: apt-get install nginx-light")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, upstream=upstream, port=port))
    args = [found, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    with (folder / "nginx.log").open("wb") as log:
        child = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(child, port, folder)
        yield Nginx(f"http://127.0.0.1:{port}", version(found), (child.pid, *children(child.pid)))
    finally:
        child.terminate()
        child.wait(10)


def _wait(child: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    until = time.monotonic() + 10
    while not answers(port):
        if child.poll() is not None or time.monotonic() > until:
            said = (folder / "nginx.log").read_text(errors="replace").strip()[-300:]
            raise Stop(f"nginx does not start: {said}")
        time.sleep(0.02)


def children(pid: int) -> tuple[int, ...]:
    """The processes that `pid` started."""
    return tuple(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def version(found: str) -> str:
    """What the program says of itself, such as nginx/1.22.1."""
    said = subprocess.run([found, "-v"], capture_output=True, text=True, check=False)
    return (said.stderr or said.stdout).strip().rpartition(" ")[2]
