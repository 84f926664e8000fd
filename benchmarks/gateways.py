"""What stands in front of the fixed upstream: nothing, nginx, Headgate and whichever peers are installed."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks import nginx
from benchmarks.asking import Asking
from benchmarks.installation import ROOT, Installation, Stop, answers, free_port

MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the load goes to, and the processes whose CPU is counted, by part."""

    name: str
    url: str
    key: str = dataclasses.field(repr=False)
    version: str
    processes: Callable[[], Mapping[int, str]]
    effort: float = 1.0
    """The share of the load it is given."""
    streams: int = 1000
    """Idle streams it is given."""

    @property
    def pids(self) -> list[int]:
        return list(self.processes())

    def asking(self, words: str = "", stream: bool = False) -> Asking:
        """A chat with it; `words` stand in the prompt, for the upstream to see."""
        message = {"role": "user", "content": f"{words} the quick brown fox jumps over the lazy dog again".strip()}
        extra = {"messages": [message]}
        return Asking(url=self.url, key=self.key, model=MODEL, stream=stream, max_tokens=64, extra=extra)


def direct(port: int) -> Gateway:
    """Nothing in between."""
    return Gateway("direct", f"http://127.0.0.1:{port}", "", "", dict)


def of_nginx(front: nginx.Nginx) -> Gateway:
    return Gateway("nginx", front.url, "", front.version, lambda: dict.fromkeys(front.pids, "nginx"))


def of_headgate(headgate: Installation) -> Gateway:
    """All its processes, but for engines."""

    def processes() -> dict[int, str]:
        return {pid: part for pid, part in headgate.processes().items() if part != "engine"}

    return Gateway("headgate", headgate.url, headgate.key(), "", processes)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A running upstream of ours."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def upstream(*words: str) -> Iterator[Upstream]:
    """The fixed upstream as a process of its own, with these further words. Raises Stop."""
    port = free_port()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.upstream", f"--port={port}", *words], cwd=ROOT)
    try:
        until = time.monotonic() + 10
        while not answers(port):
            if child.poll() is not None or time.monotonic() > until:
                raise Stop("the upstream of the benchmark does not start; see the lines above")
            time.sleep(0.02)
        yield Upstream(port, child.pid)
    finally:
        child.terminate()
        child.wait(10)
