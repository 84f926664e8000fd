"""Finds a provider's key, in its file or in the door's environment.

It keeps none: a file is read at each sending, so that a rotated key is used from the next request on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serving.catalogue import Provider


class KeyMissing(Exception):
    """There is no usable key; the text names the variable or the file, never the key."""


def provider_key(name: str, provider: Provider, environ: Mapping[str, str]) -> str:
    """The key, or "" for a provider that is configured to need none. Raises KeyMissing."""
    if provider.key_file:
        where, found = f"the file {provider.key_file}", _read(name, Path(provider.key_file).expanduser())
    elif provider.key_env:
        where, found = f"the variable {provider.key_env}", environ.get(provider.key_env, "").strip()
    else:
        return ""
    if not found:
        raise KeyMissing(f"no key for the provider {name}: {where} is empty or not set where the door runs")
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise KeyMissing(f"the key of the provider {name} in {where} is not one line of plain characters")
    return found


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as broken:
        raise KeyMissing(f"no key for the provider {name}: the file {path}: {broken.strerror}") from broken
