"""A real vLLM with the demo model that nobody supervises: started as serving would start it, and stopped at the end.

Several routers can be attached to it one after the other, so that all of them meet the same warm engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine import Engine
from benchmarks.installation import Stop, free_port
from serving import command, demo_model, engines, gpus, probe, processes
from serving.catalogue import EngineChoice
from serving.home import find_home
from serving.placement import Placed
from serving.probe import ProbeError, Target

START_S, GRACE_S = 300.0, 15.0


@dataclass(frozen=True, slots=True)
class Vllm:
    """A running vLLM."""

    name: str
    """What it calls its model."""
    address: str
    """`unix:/path`, or `http://127.0.0.1:PORT`."""
    package: str
    """Its package and version."""
    at_once: int
    """Requests it works on at the same time; the others wait in it."""
    limit: int
    """Requests it admits; it refuses more with 503."""
    context: int
    mark: str
    """The id that its processes carry."""

    @property
    def pids(self) -> list[int]:
        """All its processes."""
        return [process.pid for process in processes.ours(self.mark)]

    @property
    def engine(self) -> Engine:
        """The same, for its counters to be read."""
        return Engine(self.name, (self.address,), 1, False, self.context, self.limit)


@contextlib.contextmanager
def vllm(name: str, at_once: int, limit: int, *, tcp: bool = False) -> Iterator[Vllm]:
    """A vLLM on the cores that this process may use now. Raises Stop where it does not come up.

    It sees as many cores as it may use when it starts, and makes as many threads.
    """
    on_gpu = gpus.read().gpus
    engine = engines.find(EngineChoice(), find_home().engines, gpu=bool(on_gpu))
    if not engines.ready(engine):
        raise Stop(f"{engine.package} {engine.version} is not here yet; make it with: headgate up --model demo")
    folder, mark = Path(tempfile.mkdtemp(prefix="hg-bare-")), secrets.token_hex(8)
    model = demo_model.demo_model()
    model = model.model_copy(update={"name": name, "args": {**model.args, "max-num-seqs": at_once}})
    placed = Placed(
        model, None, "gpu" if on_gpu else "cpu", tuple(g.uuid for g in on_gpu[:1]), model.context, limit
    )  # fmt: skip
    socket, port = (None, free_port()) if tcp else (folder / "vllm.sock", None)
    address = f"unix:{socket}" if socket else f"http://127.0.0.1:{port}"
    child: subprocess.Popen[bytes] | None = None
    try:
        built = command.build(
            placed, python=engine.python, weights=str(_weights(engine.python, folder)), revision="", socket=socket,
            port=port, installation=mark, instance=name, inherited=os.environ,
        )  # fmt: skip
        log = folder / "vllm.log"
        with log.open("wb") as out:
            child = subprocess.Popen(
                built.args, env=built.environment, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )  # fmt: skip
        _serving(child, address, log)
        yield Vllm(name, address, f"{engine.package} {engine.version}", at_once, limit, model.context, mark)
    finally:
        asyncio.run(processes.end(processes.ours(mark), GRACE_S))
        if child is not None:
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _weights(python: Path, folder: Path) -> Path:
    """The demo model, built by the engine's own Python, which has what it takes. Raises Stop."""
    out = folder / "weights"
    words = [str(python), str(demo_model.__file__), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Stop(f"the demo model could not be built: {(done.stderr or done.stdout).strip()[-300:]}")
    return out


def _serving(child: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return once it serves its model. Raises Stop."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise Stop(f"vLLM ended at its start: {log.read_text(errors='replace').strip()[-600:]}")
        with contextlib.suppress(ProbeError):
            if asyncio.run(probe.models(Target(address))):
                return
        time.sleep(0.5)
    raise Stop(f"vLLM was not ready within {START_S:.0f} s; the last it said: {log.read_text(errors='replace')[-600:]}")
