"""Where the router answers callers, and what is refused before it starts to."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.catalogue import ConfigError

LOG = logging.getLogger("headgate.router")
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (recognised, not bound)
"""Addresses that mean "all of them", and the one of them a caller on this machine uses."""

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What the kernel says of an address that this machine has not."""
KINDS = ("DNS", "IP Address")
"""The names in a certificate that a client compares with."""


@dataclass(frozen=True, slots=True)
class Listen:
    """An address for callers, with TLS where other machines are to use it."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: str | None = None
    tls_key: str | None = None


def check_public(listen: Listen, behind_proxy: bool) -> None:
    """Refuse to answer other hosts in clear, and a certificate that cannot work. Raises ConfigError."""
    if bool(listen.tls_cert) != bool(listen.tls_key):
        raise ConfigError("--tls-cert and --tls-key go together; give both or neither")
    for file in filter(None, (listen.tls_cert, listen.tls_key)):
        if not Path(file).is_file():
            raise ConfigError(f"{file}: no such file; give the path of a PEM file")
    if listen.tls_cert and listen.tls_key:
        certificate_names(listen.tls_cert, listen.tls_key)
    if listen.tls_cert or behind_proxy or _loopback(listen.host):
        return
    raise ConfigError(
        f"--host {listen.host} would answer other machines in clear; add --tls-cert and --tls-key, or --behind-proxy "
        "where a proxy on this machine speaks TLS"
    )


def check_free(listen: Listen, setting: str = "--port") -> None:
    """Refuse a port that is taken, or an address that is not this machine's. Raises ConfigError naming `setting`."""
    try:
        made, _ = _bound(listen)
    except OSError as taken:
        ours = taken.errno in (errno.EADDRINUSE, errno.EACCES)
        mend = f"choose another port with {setting}" if ours else "choose an address of this machine with --host"
        raise ConfigError(f"{listen.host}:{listen.port} cannot be used ({taken.strerror}); {mend}") from taken
    for one in made:
        one.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """Sockets made before anything runs: they stay in the network they were made in, wherever their process goes."""

    callers: list[socket.socket]
    operator: list[socket.socket]


def opened(listen: Listen, operator_port: int, alone: bool) -> Opened:
    """All that a router listens to on TCP; `operator_port` 0 is none. Raises OSError."""
    operator = bound(Listen(port=operator_port)) if operator_port else []
    return Opened(bound(listen) if alone else shared(listen), operator)


def shared(listen: Listen) -> list[socket.socket]:
    """Sockets bound to the address, which other processes of this user may bind as well. Raises OSError."""
    return bound(listen, together=True)


def bound(listen: Listen, together: bool = False) -> list[socket.socket]:
    """Sockets bound to the address; with `together` other processes of this user may bind it too. Raises OSError.

    A name may stand for addresses that this machine has not, as localhost does for ::1 where there is no IPv6: the
    others are bound, and the log says which are not.
    """
    made, absent = _bound(listen, together)
    if absent:
        there = ", ".join(one.getsockname()[0] for one in made)
        LOG.warning("%s: answers at %s, not at %s: not an address of this machine", listen.host, there, absent)
    return made


def _bound(listen: Listen, together: bool = False) -> tuple[list[socket.socket], str]:
    """The sockets, and the addresses that this machine has not. Raises OSError where it has none of them."""
    found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    absent: dict[str, OSError] = {}
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                made.append(_one(family, address, together))
            except OSError as failed:
                if failed.errno not in ABSENT:
                    raise
                absent[str(address[0])] = failed
        if not made:
            raise next(iter(absent.values()))
    except OSError:
        for one in made:
            one.close()
        raise
    return made, ", ".join(absent)


def _one(family: int, address: Any, together: bool) -> socket.socket:
    """One socket, bound. Raises OSError."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if together:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def url(listen: Listen) -> str:
    """The address for callers, without /v1: with TLS under a name that the certificate is for."""
    host = ANY.get(listen.host, listen.host)
    if listen.tls_cert and listen.tls_key and (names := certificate_names(listen.tls_cert, listen.tls_key)):
        plain = [name for name in names if "*" not in name]
        if host not in names and plain:
            host = plain[0]
    return f"{'https' if listen.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{listen.port}"


def certificate_names(cert: str, key: str) -> list[str]:
    """The names and addresses a certificate is for.

    Found by a handshake in memory, so that a key that does not belong to it, or an expired certificate, is found before
    anything starts. Raises ConfigError.
    """
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The password is given, for otherwise OpenSSL would ask for it on the terminal of a service.
        server.load_cert_chain(cert, key, password=lambda: b"")
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is what is trusted here
        client.load_verify_locations(cert)
        found = _shake(client, server).getpeercert() or {}
    except ssl.SSLCertVerificationError as wrong:
        raise ConfigError(f"--tls-cert {cert} would not be accepted: {wrong.verify_message}; renew it") from wrong
    except (ssl.SSLError, OSError) as wrong:
        reason = (getattr(wrong, "reason", None) or wrong.strerror or "unreadable").replace("_", " ").lower()
        raise ConfigError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used ({reason}); give a PEM certificate and its own key, "
            "without a password"
        ) from wrong
    names: Any = found.get("subjectAltName", ())
    return [_plain(kind, name) for kind, name in names if kind in KINDS]


def _plain(kind: str, name: str) -> str:
    """The usual spelling: OpenSSL writes ::1 as 0:0:0:0:0:0:0:1."""
    return name if kind == "DNS" else str(ipaddress.ip_address(name.strip()))


def _shake(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """The client's side of a handshake between the two."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    waiting = True
    while waiting:
        waiting = False
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting = True
    return ends[0]


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
