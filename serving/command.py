"""A placed model as vLLM's command line and environment. Pure.

It alone decides where an engine listens and what of our environment it sees; the catalogue cannot change either.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.placement import Placed
from serving.spare import WHOLE

INHERITED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|HF_HOME|HF_HUB_CACHE|XDG_CACHE_HOME|TMPDIR"
    r"|OMP_NUM_THREADS"
)
"""What an engine may see of our own environment. Keys, proxies and PYTHONPATH stay out."""

OURS = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # setproctitle would write over the environment in /proc, by which our processes are found again.
    "SPT_NOENV": "1",
    "PYTHONUNBUFFERED": "1",
    # A crash in native code then says in the log where it was.
    "PYTHONFAULTHANDLER": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
}
DEFAULTS = {"VLLM_ENGINE_READY_TIMEOUT_S": "3600"}
CPU_DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "1"}
BARRED_VARIABLES = frozenset({
    "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "PYTHONPATH", "PATH", "VLLM_MEDIA_URL_ALLOW_REDIRECTS",
    "VLLM_MEDIA_CONNECTOR",
})  # fmt: skip
NOWHERE = "none.invalid"
"""The one domain an engine may fetch pictures from. It cannot exist, and an empty list would mean all of them."""

# Where it listens, who may ask, what it is called, which weights it has: Headgate's to say, not the catalogue's.
BARRED = {
    **dict.fromkeys(("host", "port", "uds", "grpc", "grpc-port", "headless", "root-path"), "engines listen privately"),
    **dict.fromkeys(("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-ciphers"), "engines listen privately"),
    **dict.fromkeys(("api-key", "middleware"), "only the router reaches an engine"),
    **dict.fromkeys(("config",), "write its flags under `args:`"),
    **dict.fromkeys(("model", "revision"), "set `repo` and `revision`"),
    **dict.fromkeys(("served-model-name",), "callers use the entry's name"),
    **dict.fromkeys(("max-num-queued-reqs",), "set `limit`"),
    **dict.fromkeys(("allowed-media-domains", "allowed-local-media-path"), "an engine fetches nothing"),
}


@dataclass(frozen=True, slots=True)
class Command:
    """What is started: the arguments and the whole environment."""

    args: tuple[str, ...]
    environment: dict[str, str]

    def shell(self) -> str:
        """One line that can be pasted into a shell; without the ids that mark a process as ours."""
        shown = {k: v for k, v in self.environment.items() if k == "CUDA_VISIBLE_DEVICES" or not INHERITED.fullmatch(k)}
        given = [f"{k}={shlex.quote(v)}" for k, v in sorted(shown.items()) if not k.startswith("HEADGATE_")]
        return " ".join([*given, shlex.join(self.args)])


def build(
    placed: Placed,
    *,
    python: Path,
    weights: str,
    revision: str,
    socket: Path | None,
    port: int | None,
    installation: str,
    instance: str,
    inherited: Mapping[str, str],
) -> Command:
    """The command of one instance, listening on `socket`, else on loopback `port`.

    `weights` is a folder or an id on the hub; `revision` counts only for the latter. Raises ValueError where the
    catalogue sets what is not its own to set, or asks for another number of GPUs than it was given.
    """
    if socket is not None:
        listen = ["--uds", str(socket)]
    elif port is not None:
        listen = ["--host", "127.0.0.1", "--port", str(port)]
    else:
        raise ValueError(f"{placed.model.name}: neither a socket nor a port to listen on")
    args = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", weights, *listen]
    args += ["--served-model-name", placed.model.name, "--max-num-queued-reqs", str(placed.limit)]
    if revision and not weights.startswith("/"):
        args += ["--revision", revision]
    for key, value in _flags(placed).items():
        args += _rendered(placed, key, value)
    return Command(tuple(args), _environment(placed, installation, instance, inherited))


def _flags(placed: Placed) -> dict[str, Any]:
    """Our defaults, with the model's flags and then the variant's laid over."""
    given = {**_checked(placed, placed.model.args)}
    if placed.variant is not None:
        given |= _checked(placed, placed.variant.args)
    flags: dict[str, Any] = {
        "max-model-len": placed.context,
        # Cached tokens are cheaper; without this the engine does not say how many there were.
        "enable-prompt-tokens-details": True,
        "disable-uvicorn-access-log": True,
        # First come first served among equals; the router says which requests may come after others.
        "scheduling-policy": "priority",
        "trust-remote-code": placed.model.remote_code,
        # Else a caller's image_url makes the engine fetch whatever address it names, inside this network or outside.
        "allowed-media-domains": [NOWHERE],
    }
    if placed.device == "cpu":
        # Compiling takes longer than it saves on the small models that a CPU serves, and needs a compiler.
        flags["enforce-eager"] = True
    else:
        flags |= _spread(placed, given)
        if placed.need is not None:
            # More than are let in need no places; vLLM would keep memory for up to 1024.
            flags["max-num-seqs"] = placed.limit
        if placed.sleeps:
            flags["enable-sleep-mode"] = True
        # Where others hold memory an engine that asks for more than is free does not start at all.
        given.pop("gpu-memory-utilization", None)
        if placed.taken != WHOLE:
            flags["gpu-memory-utilization"] = placed.taken
    return {**flags, **given}


def _spread(placed: Placed, given: Mapping[str, Any]) -> dict[str, int]:
    """Tensor parallelism over the GPUs that the catalogue's other kinds of parallelism leave."""
    others = int(given.get("data-parallel-size", 1)) * int(given.get("pipeline-parallel-size", 1))
    tensor = int(given.get("tensor-parallel-size", len(placed.gpus) // others))
    if tensor * others != len(placed.gpus):
        raise ValueError(
            f"{placed.model.name}: its flags ask for {max(tensor, 1) * others} GPUs, "
            f"and its variant for {len(placed.gpus)}; make `gpus` and the parallel sizes agree"
        )
    return {"tensor-parallel-size": tensor} if tensor > 1 else {}


def _checked(placed: Placed, args: Mapping[str, Any]) -> dict[str, Any]:
    """The catalogue's flags, spelt with dashes. Raises ValueError for one that is not the catalogue's to set."""
    checked = {}
    for key, value in args.items():
        head, dot, rest = key.partition(".")
        flag = head.replace("_", "-")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", flag) or not re.fullmatch(r"[\w.-]*", rest):
            raise ValueError(f"{placed.model.name}: {key!r} is no vLLM flag; write it without dashes in front")
        # vLLM's parser takes any unambiguous beginning of a flag for the flag.
        for barred, why in BARRED.items():
            if barred.startswith(flag):
                raise ValueError(f"{placed.model.name}: the flag `{key}` cannot be set in `args:`; {why}")
        checked[flag + dot + rest] = value
    return checked


def _rendered(placed: Placed, key: str, value: Any) -> list[str]:
    if value is True:
        return [f"--{key}"]
    if value is False or value is None:
        return []
    if isinstance(value, list | tuple) and all(isinstance(item, str | int | float) for item in value):
        return [f"--{key}", *map(_word, value)] if value else []
    if isinstance(value, dict | list | tuple):
        return [f"--{key}", json.dumps(value)]
    if isinstance(value, str | int | float):
        # A value that begins with a dash would be read as the next flag.
        return [f"--{key}={value}"] if str(value).startswith("-") else [f"--{key}", str(value)]
    raise ValueError(f"{placed.model.name}: the flag `{key}` has a value of a kind that no flag takes")


def _word(item: object) -> str:
    if str(item).startswith("-"):
        raise ValueError(f"an item of a list may not begin with a dash: {item}")
    return str(item)


def _environment(placed: Placed, installation: str, instance: str, inherited: Mapping[str, str]) -> dict[str, str]:
    if barred := BARRED_VARIABLES & set(placed.model.environment):
        raise ValueError(f"{placed.model.name}: `environment:` cannot set {', '.join(sorted(barred))}")
    return {
        **{key: value for key, value in inherited.items() if INHERITED.fullmatch(key)},
        **DEFAULTS,
        **(CPU_DEFAULTS if placed.device == "cpu" else {}),
        **placed.model.environment,
        # The pages that put it to sleep and wake it. Its socket is for our user alone, and the router asks no other
        # pages than those of the API.
        **({"VLLM_SERVER_DEV_MODE": "1"} if placed.sleeps else {}),
        **OURS,
        "CUDA_VISIBLE_DEVICES": ",".join(placed.gpus),
        "HEADGATE_INSTALLATION": installation,
        "HEADGATE_INSTANCE": instance,
    }
