"""What stands in front of the fixed upstream: nothing, nginx, Headgate and whichever peers are installed."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks import nginx, wire
from benchmarks.asking import Asking
from benchmarks.installation import ROOT, Installation, Stop, answers, free_port, own
from serving.catalogue import DataClass

MODEL = "bench"
FAR = "bench-far"
SEARCHING = "headgate, searching"
"""A Headgate whose asks could leave, so that each is searched; they stay, since the local model is the cheaper one."""


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
    model: str = MODEL

    @property
    def pids(self) -> list[int]:
        return list(self.processes())

    def asking(self, words: str = "", stream: bool = False) -> Asking:
        """A chat with it; `words` stand in the prompt, for the upstream to see."""
        message = {"role": "user", "content": f"{words} the quick brown fox jumps over the lazy dog again".strip()}
        extra = {"messages": [message]}
        return Asking(url=self.url, key=self.key, model=self.model, stream=stream, max_tokens=64, extra=extra)


def direct(port: int) -> Gateway:
    """Nothing in between."""
    return Gateway("direct", f"http://127.0.0.1:{port}", "", "", dict)


def of_nginx(front: nginx.Nginx) -> Gateway:
    return Gateway("nginx", front.url, "", front.version, lambda: dict.fromkeys(front.pids, "nginx"))


def of_headgate(headgate: Installation) -> Gateway:
    """All its processes, but for engines."""
    return Gateway("headgate", headgate.url, headgate.key(), "", lambda: _parts(headgate))


def _parts(headgate: Installation) -> dict[int, str]:
    return {pid: part for pid, part in headgate.processes().items() if part != "engine"}


@contextlib.contextmanager
def searching(upstream: Upstream, folder: Path) -> Iterator[Gateway]:
    """Another Headgate, with a provider that its asks may go to and do not go to. Raises Stop.

    Nobody listens where the provider is said to be: all answers are the local model's.
    """
    secret = key_file(folder)
    site = {
        "models": {FAR: {"place": "hosted", "provider": "far", "provider_model": MODEL, "lanes": ["cheap", "frontier"],
                         "context": 32768, "output": 256, "price": {"input": 2, "output": 10}}},
        "providers": {"far": {"enabled": True, "base_url": "http://127.0.0.1:9/v1", "key_file": str(secret),
                              "private_ranges": ["127.0.0.0/8"]}},
    }  # fmt: skip
    with own("--attach", upstream.url, site=site) as headgate:
        key = headgate.new_key("bench", DataClass.public)
        gateway = Gateway(SEARCHING, headgate.url, key, "", lambda: _parts(headgate), model="auto")
        for _ in range(2):
            uvloop.run(wire.closed([wire.place(gateway.asking())], 1, 5))
        if why := not_searched(headgate.metrics()):
            raise Stop(f"{SEARCHING} is left out: {why}")
        yield gateway


def key_file(folder: Path) -> Path:
    """A file with a provider's key, which opens nothing."""
    path = folder / "provider-key"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(16))
    return path


def not_searched(metrics: str) -> str:
    """Why the asks of a Headgate were not searched and answered here, by its metrics; "" where they were. Pure."""
    if f'headgate_refusals_total{{model="{FAR}"' in metrics:
        return "the provider's model was refused, so nothing had to be searched"
    answered = re.findall(r"^headgate_requests_total\{([^}]*)\}", metrics, re.MULTILINE)
    here = ('model="bench"', 'outcome="answered"', 'place="local"')
    if not answered or not all(label in labels for labels in answered for label in here):
        return "not all of its asks were answered by the local model"
    return ""


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
