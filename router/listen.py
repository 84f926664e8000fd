"""Where the router answers callers, and what is refused before it starts to."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from serving.catalogue import ConfigError


@dataclass(frozen=True, slots=True)
class Listen:
    """An address for callers, with TLS where other machines are to use it."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: str | None = None
    tls_key: str | None = None


def check_public(listen: Listen, behind_proxy: bool) -> None:
    """Refuse to answer other hosts in clear. Raises ConfigError."""
    if bool(listen.tls_cert) != bool(listen.tls_key):
        raise ConfigError("--tls-cert and --tls-key go together")
    for file in filter(None, (listen.tls_cert, listen.tls_key)):
        if not Path(file).is_file():
            raise ConfigError(f"{file}: no such file")
    if listen.host in ("127.0.0.1", "::1", "localhost") or listen.tls_cert or behind_proxy:
        return
    raise ConfigError(
        f"--host {listen.host} would answer other machines in clear; add --tls-cert and --tls-key, or --behind-proxy "
        "where a proxy on this machine speaks TLS"
    )


def check_free(listen: Listen) -> None:
    """Refuse a port that is taken, or an address that is not this machine's. Raises ConfigError."""
    try:
        family = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(family[4])
    except OSError as taken:
        raise ConfigError(
            f"{listen.host}:{listen.port} cannot be used ({taken.strerror}); choose another with --port"
        ) from taken
