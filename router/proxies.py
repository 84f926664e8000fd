"""Proxies that the environment names: nothing that carries a request obeys one, and the log says so at the start."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


def ignored(environ: Mapping[str, str]) -> str:
    """One line for the log that names the variables, never what stands in them; "" where there are none."""
    found = sorted(name for name, value in environ.items() if value and name.lower() in NAMES)
    if not found:
        return ""
    return (
        f"{', '.join(found)}: a proxy of the environment is not used for requests; "
        "a provider's own is providers.NAME.proxy in headgate.yaml"
    )
