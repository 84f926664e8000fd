"""A stand-in for vLLM's API server: same address flags, same pages, no model.

Scripted by environment variables: FAKE_DIE_AT_START (text for stderr, then exit 1), FAKE_DIE_AFTER_S (exit 1 so long
after the first completion), FAKE_IGNORE_TERM, FAKE_CHILD (a file; a grandchild that ignores SIGTERM writes its pid
there), FAKE_RUNNING (requests the metrics show as running; a file's content where it is a path), FAKE_HANG (a file;
while it exists, completions hang), FAKE_FULL (a file; while it exists, completions are refused as vLLM's admission
limit does, and each leaves a mark in it), FAKE_STARTS (a file that gets one line a start), FAKE_KEY (the bearer key to
ask for), FAKE_PORT_FILE (a file for the port it listens on), FAKE_CORE (a file; a child called as vLLM's engine core is
writes its pid there, ignores SIGTERM as it does, and has to be asked for every completion; pages need it not),
FAKE_TAKES_S (how long a chat answer takes), FAKE_SLEEP (its sleep mode: `works`, `refuses`, `stays` asleep; without it
there is none. As vLLM's, it answers nobody meanwhile).
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
CORE = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path('/proc/self/comm').write_text('VLLM::EngineCore')
while asked := sys.stdin.buffer.raw.read(1):
    sys.stdout.buffer.raw.write(asked)
signal.pause()
"""


def flag(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def setting(name: str) -> str:
    return os.environ.get(f"FAKE_{name}", "")


core: asyncio.subprocess.Process | None = None
asking = 0
"""Completions that wait for the core."""
one_at_a_time = asyncio.Lock()


async def ask_core() -> None:
    """Return when the core has worked; never where it is frozen or gone."""
    global asking
    if core is None:
        return
    asking += 1
    try:
        async with one_at_a_time:
            assert core.stdin is not None and core.stdout is not None
            core.stdin.write(b"t")
            if not await core.stdout.read(1):
                await asyncio.Event().wait()
    finally:
        asking -= 1


class Now:
    """What it does now."""

    running, output, asleep = 0, 7, False


def running() -> str:
    given = setting("RUNNING") or str(asking + Now.running)
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
            f"vllm:generation_tokens_total{labels} {Now.output}",
        ]
        if tokens := setting("KV_TOKENS"):
            lines.append(f'vllm:cache_config_info{{engine="0",kv_cache_size_tokens="{tokens}"}} 1')
        return "text/plain", "\n".join(lines).encode()
    if path in ("/v1/completions", "/v1/chat/completions"):
        return "application/json", json.dumps({"model": name, "choices": [{"text": "a"}]}).encode()
    return "", b""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, path, _ = head.split("\r\n")[0].split(" ")
    # Read to its end: one that closes before breaks the pipe of whoever still sends.
    await reader.readexactly(int(head.lower().partition("content-length:")[2].split("\r\n")[0] or 0))
    if setting("KEY") and f"Authorization: Bearer {setting('KEY')}" not in head and path.startswith("/v1"):
        kind, body, status = "application/json", b'{"error": {"message": "wrong key"}}', "401 Unauthorized"
    else:
        kind, body = page(path)
        status = "200 OK" if kind else "404 Not Found"
    if (found := await nap(path.partition("?")[0])) is not None:
        kind, (body, status) = "application/json", found
    elif method == "POST" and (full := Path(setting("FULL") or "/nowhere/full")).exists():
        full.write_text(full.read_text() + "x")
        body, status = b'{"error": {"message": "too many requests"}}', "503 Service Unavailable"
    elif method == "POST":
        while Now.asleep:
            await asyncio.sleep(0.02)
        await ask_core()
        await work(path)
        while setting("HANG") and Path(setting("HANG")).exists():
            await asyncio.sleep(0.02)
        if setting("DIE_AFTER_S"):
            asyncio.get_running_loop().call_later(float(setting("DIE_AFTER_S")), die)
    answer = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    writer.write(answer.encode() + body)
    await writer.drain()
    writer.close()


async def nap(path: str) -> tuple[bytes, str] | None:
    """The pages of vLLM's sleep mode."""
    mode = setting("SLEEP")
    if not mode or path not in ("/sleep", "/wake_up", "/is_sleeping"):
        return None
    if path == "/sleep":
        while Now.running:  # mode=wait
            await asyncio.sleep(0.02)
        if mode == "refuses":
            return b'{"error": {"message": "no room"}}', "500 Internal Server Error"
        Now.asleep = True
    elif path == "/wake_up":
        Now.asleep = mode == "stays"
    return json.dumps({"is_sleeping": Now.asleep}).encode(), "200 OK"


async def work(path: str) -> None:
    """Answer one request, as long as that takes."""
    if path == "/v1/chat/completions":
        Now.running += 1
        await asyncio.sleep(float(setting("TAKES_S") or 0))
        Now.running -= 1
        Now.output += 5


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
    if setting("CORE"):
        global core
        core = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CORE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        Path(setting("CORE")).write_text(str(core.pid))
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
