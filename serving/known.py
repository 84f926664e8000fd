"""What is known of models from what lies on this machine: weights that were fetched, and engines that ran before.

The files belong to others (a model hub's cache, a folder of the site): numbers are read of them and nothing is trusted.
Nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from serving.catalogue import Model, Variant
from serving.demo_model import REPO
from serving.engines import Engine
from serving.gpus import Readings
from serving.home import Home
from serving.options import Found, Known, flags
from serving.placement import Placed
from serving.shapes import shape

LARGEST = 8 * 2**20
"""Bytes of a file that is read; the index of the largest models has about five million."""
KEPT = 200
"""Engines remembered; the one that was seen longest ago goes first."""
SANE_GB = 60.0
"""What lies beside weights and cache on one GPU; a number beyond it is a mistake, of ours or of the engine's."""


def known(models: Iterable[Model], home: Home, readings: Readings, engine: str, environ: Mapping[str, str]) -> Found:
    """By model and variant: its shape, the size of its weights, and what its engine was seen to need on these GPUs."""
    before = measured(home)
    found = {}
    for model in models:
        for variant in model.variants:
            folder = folder_of(model, variant, home, environ)
            own = _json(folder / "config.json") if folder is not None else None
            seen = [before.get(key(model, variant, variant.gpus, gpu.name, engine), {}) for gpu in readings.gpus]
            overhead = max((_gb(one.get("overhead_gb")) or 0.0 for one in seen), default=0.0)
            found[model.name, variant.name] = Known(
                shape(own) if own is not None else None,
                weights_in(folder) if folder is not None else None,
                overhead or None,
            )
    return found


def folder_of(model: Model, variant: Variant, home: Home, environ: Mapping[str, str]) -> Path | None:
    """Where its weights lie, if they are here: a folder of the site's, the demo's, or one in the hub's cache."""
    repo, revision = model.source(variant)
    if repo == REPO:
        return _with_config(home.models / REPO)
    if repo.startswith("/"):
        return _with_config(Path(repo))
    if not repo:
        return None
    snapshots = cache(environ) / f"models--{repo.replace('/', '--')}"
    try:
        commit = revision or (snapshots / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        return None
    if not commit or "/" in commit or commit.startswith("."):
        return None
    return _with_config(snapshots / "snapshots" / commit)


def cache(environ: Mapping[str, str]) -> Path:
    """The model hub's cache on this machine."""
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{caches}/huggingface"
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()


def weights_in(folder: Path) -> float | None:
    """Bytes of all tensors: by the index where there is one, else by the files; None where some are missing."""
    index = _json(folder / "model.safetensors.index.json")
    try:
        if index is not None and (total := float((index.get("metadata") or {}).get("total_size") or 0)) > 0:
            return total
        files = list(folder.glob("*.safetensors")) if index is None else []
        return float(sum(file.stat().st_size for file in files)) or None
    except (OSError, TypeError, ValueError, AttributeError):
        return None


# What engines were seen to need.


def named(engine: Engine) -> str:
    """The engine, as readings of it are kept."""
    return f"{engine.package} {engine.version}".strip() or str(engine.python)


def seen(home: Home, placed: Placed, readings: Readings, engine: str) -> dict[str, Any]:
    """What was reported when it ran as it is placed now; empty where it never did."""
    gpu = next((g.name for g in readings.gpus if g.uuid in placed.gpus), "")
    return measured(home).get(key(placed.model, placed.variant, len(placed.gpus), gpu, engine), {})


def key(model: Model, variant: Variant | None, gpus: int, gpu: str, engine: str) -> str:
    """What a reading holds for: these weights with these flags over so many of this GPU under this engine."""
    said = [
        model.name, variant.name if variant else "", *model.source(variant), gpus, gpu, engine, flags(model, variant),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]


def measured(home: Home) -> dict[str, dict[str, Any]]:
    """What was reported by engines that ran here, by `key`; empty where nothing can be read."""
    found = _json(_file(home)) or {}
    return {name: one for name, one in found.items() if isinstance(one, dict)}


def reported(placed: Placed, home: Home, readings: Readings, engine: str, tokens: int) -> None:
    """Remember how many tokens its cache really has, and what that says of the rest. OSError is the caller's."""
    gpu = next((g for g in readings.gpus if g.uuid in placed.gpus), None)
    if gpu is None or placed.need is None or not placed.tokens or tokens <= 0:
        return
    before = measured(home)
    before.pop(at := key(placed.model, placed.variant, len(placed.gpus), gpu.name, engine), None)
    before[at] = {
        "model": placed.model.name, "variant": placed.variant.name if placed.variant else "", "gpu": gpu.name,
        "gpus": len(placed.gpus), "engine": engine, "predicted_tokens": placed.tokens, "reported_tokens": tokens,
        "predicted_overhead_gb": round(placed.need.overhead_gb, 3), "overhead_gb": _overhead(placed, tokens),
    }  # fmt: skip
    path = _file(home)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(dict(list(before.items())[-KEPT:]), indent=1) + "\n")
    draft.replace(path)


def _overhead(placed: Placed, tokens: int) -> float | None:
    """What it needs beside weights and cache, by the cache it has; None where a flag fixed the cache."""
    fixed = "kv-cache-memory-bytes" in flags(placed.model, placed.variant)
    if fixed or placed.need is None or not placed.tokens or placed.gpu_gb is None:
        return None
    # The cache is what was left over: the bytes it has less are needed elsewhere.
    cache_gb = (placed.gpu_gb - placed.need.beside_gb) * tokens / placed.tokens
    return _gb(round(placed.gpu_gb - placed.need.weights_gb - cache_gb, 3))


def _file(home: Home) -> Path:
    return home.root / "measured.json"


def _gb(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < SANE_GB else None


def _with_config(folder: Path) -> Path | None:
    return folder if (folder / "config.json").is_file() else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > LARGEST:
            return None
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
