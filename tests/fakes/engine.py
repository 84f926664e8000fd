"""A stand-in for vLLM's API server: same address flags, same pages, no model.

Scripted by environment variables: FAKE_DIE_AT_START (text for stderr, then exit 1), FAKE_DIE_AFTER_S (exit 1 so long
after the first completion), FAKE_IGNORE_TERM, FAKE_CHILD (a file; a grandchild that ignores SIGTERM writes its pid
there), FAKE_RUNNING (requests the metrics show as running; a file's content where it is a path), FAKE_HANG (a file;
while it exists, completions hang), FAKE_STARTS (a file that gets one line a start), FAKE_KEY (the bearer key to ask
for), FAKE_PORT_FILE (a file for the port it listens on).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def flag(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def setting(name: str) -> str:
    return os.environ.get(f"FAKE_{name}", "")


def running() -> str:
    given = setting("RUNNING") or "0"
    return Path(given).read_text() if given.startswith("/") else given


def page(path: str) -> tuple[str, bytes]:
    name = flag("--served-model-name", "fake")
    if path == "/v1/models":
        entry = {"id": name, "object": "model", "max_model_len": 2048}
        return "application/json", json.dumps({"object": "list", "data": [entry]}).encode()
    if path == "/metrics":
        labels = f'{{model_name="{name}",engine="0"}}'
        lines = [
            f"vllm:num_requests_running{labels} {running()}",
            f"vllm:num_requests_waiting{labels} 0",
            f"vllm:generation_tokens_total{labels} 7",
        ]
        return "text/plain", "\n".join(lines).encode()
    if path in ("/v1/completions", "/v1/chat/completions"):
        return "application/json", json.dumps({"model": name, "choices": [{"text": "a"}]}).encode()
    return "", b""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, path, _ = head.split("\r\n")[0].split(" ")
    if setting("KEY") and f"Authorization: Bearer {setting('KEY')}" not in head and path.startswith("/v1"):
        kind, body, status = "application/json", b'{"error": {"message": "wrong key"}}', "401 Unauthorized"
    else:
        kind, body = page(path)
        status = "200 OK" if kind else "404 Not Found"
    if method == "POST":
        while setting("HANG") and Path(setting("HANG")).exists():
            await asyncio.sleep(0.02)
        if setting("DIE_AFTER_S"):
            asyncio.get_running_loop().call_later(float(setting("DIE_AFTER_S")), die)
    answer = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write(answer.encode() + body)
    await writer.drain()
    writer.close()


def die() -> None:
    print("ValueError: the river is dry", file=sys.stderr, flush=True)
    os._exit(1)


async def main() -> None:
    if setting("STARTS"):
        with Path(setting("STARTS")).open("a") as file:
            file.write(f"{time.monotonic()}\n")
    if setting("DIE_AT_START"):
        print(setting("DIE_AT_START"), file=sys.stderr, flush=True)
        sys.exit(1)
    if setting("CHILD"):
        child = subprocess.Popen([sys.executable, "-c", CHILD])
        Path(setting("CHILD")).write_text(str(child.pid))
    if setting("IGNORE_TERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("INFO the fake engine serves", flush=True)
    if socket := flag("--uds"):
        server = await asyncio.start_unix_server(serve, socket)
    else:
        server = await asyncio.start_server(serve, "127.0.0.1", int(flag("--port", "0")))
        if setting("PORT_FILE"):
            Path(setting("PORT_FILE")).write_text(str(server.sockets[0].getsockname()[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
