"""vLLM servers on this machine that are not ours: found by their command lines and asked what they serve.

Never touched.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

from router import listen
from serving import probe
from serving.probe import ProbeError, Target


def look(url: str, running: bool) -> tuple[str, str]:
    """What the server at `url` serves, and the command that attaches it to a Headgate that is `running` or not."""
    attach = f"{'headgate down; ' if running else ''}headgate up --attach {url}"
    try:
        served = ", ".join(m.name for m in asyncio.run(probe.models(Target(url))))
    except ProbeError as failed:
        if failed.status in (401, 403):
            entry = f"attach: [{{url: '{url}', key_env: NAME}}]"
            return f"at {url} asks for a key", f"write into headgate.yaml: {entry}; set NAME; then: headgate up"
        return f"does not answer at {url}: {failed}", f"when it has started: {attach}"
    return f"at {url} serves {served or 'nothing yet'}", attach


def servers(proc: Path = Path("/proc")) -> Iterator[tuple[int, str]]:
    """Pid and address of processes whose command line is a vLLM API server on TCP."""
    for entry in sorted(proc.iterdir()) if proc.is_dir() else ():
        try:
            args = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if url := address(args):
            yield int(entry.name), url


def address(args: list[str]) -> str:
    """The address in a vLLM server's command line; "" for other programs and for servers on a Unix socket."""
    serves = any(
        (flag == "-m" and name == "vllm.entrypoints.openai.api_server") or (flag.endswith("/vllm") and name == "serve")
        for flag, name in itertools.pairwise(args)
    )
    given = dict(itertools.pairwise(args)) | dict(a.split("=", 1) for a in args if a.startswith("--") and "=" in a)
    port, host = given.get("--port", "8000"), given.get("--host", "")
    if not serves or "--uds" in given or not port.isdigit():
        return ""
    host = listen.ANY.get(host, host) or "127.0.0.1"
    scheme = "https" if "--ssl-certfile" in given else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
