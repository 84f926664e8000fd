"""Whether an address is one of the site's own, so that what must stay may be sent there.

Its own are loopback and the networks of `inside:`, an allow-list: "not a public address" would take in what carriers
share, tunnels that lead out, and the cloud's own service. Serving asks the same before it attaches a server. Asked here
again on its own, so that one mistake is not enough for private data to leave. Nothing is resolved and nothing is
connected to; what a name led to, and what a socket is connected to, is asked of `Inside.outside`.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from router.upstream.address import Address
from serving.catalogue import Catalogue


class Inside:
    """What the configuration says of addresses: whose are hosted providers, and which may be asked in clear text."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._providers = _provider_places(catalogue)
        self._cleartext = _cleartext(catalogue)
        self._networks = tuple(ipaddress.ip_network(one) for one in ("127.0.0.0/8", "::1/128", *catalogue.site.inside))

    def refusal(self, address: Address) -> str:
        """Why nothing may be sent there as to a local model, or ""."""
        if address.scheme == "unix":
            return ""
        host, literal = address.host, _literal(address.host)
        if _place(host, address.port) in self._providers:
            return f"{host} is a hosted provider of the catalogue and no server of this site"
        if literal is not None and self.outside(host):
            if literal.is_global:
                return f"{host} is a public address and no server of this site"
            return f"{host} lies in none of the networks of this site; add its own to `inside:` of headgate.yaml"
        if address.scheme == "https" and not address.ca_file:
            return f"https:// to {host} without the authority that signs it; set its attach[].ca_file"
        if address.scheme == "http" and not _loopback(host) and str(address) not in self._cleartext:
            return f"http:// to {host} is in clear text; set its attach[].allow_cleartext, or use https://"
        return ""

    def outside(self, ip: str) -> bool:
        """Whether an IP address is in none of this site's networks, whatever name led to it."""
        literal = _literal(ip.partition("%")[0])  # a link-local address may name its interface
        return literal is None or not any(literal in network for network in self._networks)


def _provider_places(catalogue: Catalogue) -> frozenset[str]:
    found = set()
    for provider in catalogue.providers.values():
        with suppress(ValueError):
            parts = urlsplit(provider.base_url)
            if parts.hostname:
                found.add(_place(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)))
    return frozenset(found)


def _cleartext(catalogue: Catalogue) -> frozenset[str]:
    """The addresses that the site itself allows in clear text, as serving publishes them: without a final /v1."""
    found = set()
    for given in catalogue.site.attach:
        if given.allow_cleartext and given.url.startswith("http:"):
            with suppress(ValueError):
                found.add(str(Address.parse(given.url.rstrip("/").removesuffix("/v1"))))
    return frozenset(found)


def _place(host: str, port: int) -> str:
    """A host as one text however it is written; on loopback the port tells servers apart."""
    if _loopback(host):
        return f"loopback:{port}"
    return str(_literal(host) or host.lower().rstrip("."))


def _loopback(host: str) -> bool:
    literal = _literal(host)
    return host == "localhost" if literal is None else literal.is_loopback


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is in any form that a connection would take; None for a name."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    # Not 6to4: its bytes go to a relay, whatever address is written inside.
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found
