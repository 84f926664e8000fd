"""Weights from a model hub: found in its local cache, else fetched. Safetensors only, never pickled ones.

Imported, it starts itself with the engine's Python, since huggingface_hub lives there. Run as a script it does the work
and prints one line of JSON at a time: {"say"}, {"path"} or {"error"}. It knows nothing of the catalogue.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Pickled weights can run code, and the folder of original weights holds the same bytes a second time.
LEFT_OUT = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*")
SAY_EVERY_S = 5.0
Say = Callable[[str], None]
SEEN = frozenset({
    "PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "HEADGATE_INSTALLATION", "HEADGATE_INSTANCE",
})  # fmt: skip


REMEDY = (
    "copy its snapshot into this machine's hub cache, set HF_ENDPOINT to a mirror, "
    "or set `repo` in headgate.yaml to the full path of a folder that holds it"
)


class WeightsError(Exception):
    """The weights cannot be had; the text is one sentence with the remedy."""


def is_local(repo: str) -> bool:
    """Whether `repo` is a folder of this machine, used as it is, and no id on a hub."""
    return repo.startswith("/")


async def fetch(
    python: Path, repo: str, revision: str, say: Callable[[str], None], inherited: Mapping[str, str]
) -> str:
    """The folder that holds the weights of `repo` at `revision` (empty: the newest); fetched where it is not cached.

    `inherited` is the environment whose hub settings (HF_*), proxies and certificates count; proxies are seen by this
    download alone, never by an engine. The marks in it (HEADGATE_*) let a download whose starter was killed be found
    and ended. Raises WeightsError.
    """
    if is_local(repo):
        if not (Path(repo) / "config.json").is_file():
            raise WeightsError(f"{repo} holds no config.json; correct `repo`, or build or copy the model there")
        return repo
    environ = {key: value for key, value in inherited.items() if key in SEEN or key.startswith("HF_")}
    environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return await _script([str(python), "-P", __file__, repo, revision], environ, repo, say)


async def _script(command: list[str], environ: Mapping[str, str], repo: str, say: Say) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=dict(environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as broken:
        raise WeightsError(f"{command[0]} cannot be started: {broken.strerror}; check the engine") from broken
    assert process.stdout is not None
    last = "it printed nothing"
    try:
        async for raw in process.stdout:
            line = raw.decode(errors="replace").strip()
            found = _message(line)
            if "path" in found:
                return found["path"]
            if "error" in found:
                raise WeightsError(found["error"])
            if "say" in found:
                say(found["say"])
            last = line or last
        await process.wait()
    finally:
        if process.returncode is None:  # a number that was given back may be somebody else's by now
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    raise WeightsError(f"the weights of {repo} could not be fetched ({last[:300]}); correct that and start again")


def _message(line: str) -> dict[str, str]:
    """One line of the script, or nothing where a library printed it."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# What follows runs in the engine's Python.


def _tell(**message: str) -> None:
    print(json.dumps(message), flush=True)


def _main(repo: str, revision: str) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"repo_id": repo, "revision": revision or None, "ignore_patterns": list(LEFT_OUT)}
    try:
        path = Path(snapshot_download(**wanted, local_files_only=True))
        if _whole(path):
            return _tell(path=str(path))
    except HFValidationError:
        return _tell(error=f"{repo!r} is no id on the hub; write it as owner/name, or as a folder's full path")
    except LocalEntryNotFoundError:
        pass
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return _tell(error=f"the weights of {repo} are not here and HF_HUB_OFFLINE is set; {REMEDY}")
    return _download(repo, wanted)


def _download(repo: str, wanted: dict[str, Any]) -> None:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    # The base of the hub's own error: all errors of whichever HTTP library this release of it rests on.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        path = _snapshot(repo, wanted)
        if _whole(path):
            _tell(path=str(path))
        else:
            _tell(error=f"{repo} offers no safetensors; choose a repo or revision that does")
    except GatedRepoError:
        _tell(error=f"{repo} asks for its terms to be accepted; accept them on the hub and set HF_TOKEN")
    except RevisionNotFoundError:
        _tell(error=f"{repo} has no revision {wanted['revision']!r}; correct `revision`")
    except RepositoryNotFoundError:
        _tell(error=f"the hub has no {repo}, or it is private; correct `repo`, or set HF_TOKEN")
    except HfHubHTTPError as broken:
        _tell(error=f"the hub did not give {repo} ({_first(broken)}); {REMEDY}")
    except (OSError, transport) as broken:
        if isinstance(broken, OSError) and broken.errno == errno.ENOSPC:
            _tell(error=f"no disk space is left for {repo}; make room, or set HF_HOME to a folder on a larger disk")
        else:
            _tell(error=f"the model hub cannot be reached for {repo} ({_first(broken)}); {REMEDY}")


def _snapshot(repo: str, wanted: dict[str, Any]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    _tell(say=f"asking the hub for {repo}")
    done = threading.Event()
    info = HfApi().repo_info(repo, revision=wanted["revision"], files_metadata=True)
    size = sum(f.size or 0 for f in info.siblings or () if not _left_out(f.rfilename))
    _tell(say=f"downloading {repo}: {size / 1e9:.1f} GB")
    folder = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    threading.Thread(target=_watch, args=(repo, folder, size, done), daemon=True).start()
    try:
        # The branch itself, not its commit, so that the cache learns its name and finds it without the hub.
        return Path(snapshot_download(**wanted))
    finally:
        done.set()


def _whole(path: Path) -> bool:
    """Whether the snapshot holds its configuration and every file of weights that its index names."""
    if not (path / "config.json").is_file():
        return False
    indexes = list(path.glob("*.safetensors.index.json"))
    named = {name for index in indexes for name in json.loads(index.read_text()).get("weight_map", {}).values()}
    return all((path / name).is_file() for name in named) if named else any(path.glob("*.safetensors"))


def _left_out(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def _watch(repo: str, folder: Path, size: int, done: threading.Event) -> None:
    """Say how much has come, until told that it is done."""
    while not done.wait(SAY_EVERY_S):
        here = 0
        for blob in (folder / "blobs").glob("*"):
            with contextlib.suppress(OSError):
                here += blob.stat().st_blocks * 512
        _tell(say=f"downloading {repo}: {here / 1e9:.1f} of {size / 1e9:.1f} GB")


def _first(broken: Exception) -> str:
    return (str(broken).strip().splitlines() or [type(broken).__name__])[0][:200]


if __name__ == "__main__":
    # -P left this folder out of the module path; without it our files would stand in for others' modules.
    _main(sys.argv[1], sys.argv[2])
