"""One provider's address, and the only HTTP client there is: exact host, vetted addresses, no redirects.

It knows where bytes may go, not what they say; dialects and permits are other files.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from serving.catalogue import Provider

CONNECT_S = 5.0
IDLE_S = 600.0
"""Seconds without a byte from the provider after which it is given up, should nobody else do: the router's deadlines
are no longer than that."""
HEADER_LINE = 8190
HEADERS = 64 * 1024
"""Bytes of a provider's answer headers: each line, and all together."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|[0-9a-f:.]*:[0-9a-f:.]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_NEVER = tuple(ipaddress.ip_network(text) for text in ("100.64.0.0/10", "192.88.99.0/24", "2001::/23", "3fff::/20"))
"""Shared by customers of a carrier, relays of 6to4, the IETF's own protocols, documentation: Python's tables of what
is global differ from release to release."""


class AddressRefused(OSError):
    """The provider's address is not one that may be called; the text says why. Nothing was sent."""


class DestinationError(ValueError):
    """A provider is configured in a way the door will not follow; one sentence."""


def ranges(provider: Provider) -> tuple[Network, ...]:
    """The networks the site allows this provider to be in. Raises DestinationError."""
    try:
        return tuple(ipaddress.ip_network(text) for text in provider.private_ranges)
    except ValueError as broken:
        raise DestinationError(f"private_ranges: {broken}") from broken


def vet(address: str, allowed: Iterable[Network], *, cleartext: bool) -> None:
    """Raise AddressRefused unless the address is global, or inside `allowed`. Clear HTTP needs the latter."""
    found = unwrapped(ipaddress.ip_address(address.partition("%")[0]))
    if any(found in network for network in allowed if network.version == found.version):
        return
    if cleartext:
        raise AddressRefused(f"http:// is allowed only into private_ranges, and {address} lies outside of them")
    if not _is_global(found):
        raise AddressRefused(f"{address} is not a global address and lies outside of private_ranges")


def unwrapped(address: Address) -> Address:
    """The IPv4 address that a mapped, 6to4, Teredo or NAT64 address leads to; else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if inner := address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1]):
        return inner
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def _is_global(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST6:
        return False
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    return address.is_global


def split(provider: Provider) -> tuple[str, str]:
    """Scheme and host of the provider's base address. Raises DestinationError."""
    try:
        parts = urlsplit(provider.base_url)
        host, _port = parts.hostname or "", parts.port
    except ValueError as broken:
        raise DestinationError(f"base_url cannot be read: {broken}") from broken
    if parts.scheme not in ("https", "http") or not _HOST.fullmatch(host):
        raise DestinationError("base_url must be https:// (or http:// into private_ranges) with a plain host name")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise DestinationError("base_url must hold no user, password, query or fragment")
    if re.search(r"[^!-~]|[\\%]|\.\.|//", parts.path):
        raise DestinationError("the path of base_url must be plain, without escapes or empty parts")
    if parts.scheme == "http" and provider.proxy:
        raise DestinationError("http:// and `proxy` do not go together: the proxy would read everything")
    return parts.scheme, host


def check(provider: Provider) -> None:
    """What the settings alone say of whether anything can ever be sent there. Raises DestinationError.

    Where a name leads to is not asked: that is vetted at each connection.
    """
    scheme, host = split(provider)
    allowed = ranges(provider)
    _vet_literal(host, allowed, cleartext=scheme == "http")
    if scheme == "http" and not allowed:
        raise DestinationError(
            f"http:// goes into private_ranges only: name the networks {host} lies in, or use https://"
        )
    if provider.proxy and not _is_proxy(provider.proxy):
        raise DestinationError("proxy must be http://HOST:PORT")


def _is_proxy(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(_HOST.fullmatch(host))


def _vet_literal(host: str, allowed: tuple[Network, ...], *, cleartext: bool) -> None:
    """An address instead of a name never meets the resolver, so it is vetted here. Raises DestinationError."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    try:
        vet(host, allowed, cleartext=cleartext)
    except AddressRefused as refused:
        raise DestinationError(f"base_url: {refused}") from refused


class VettedResolver(AbstractResolver):
    """Resolves one host, and gives only addresses that were vetted; the connection is made to exactly those."""

    def __init__(self, host: str, allowed: tuple[Network, ...], *, cleartext: bool) -> None:
        self._host = host
        self._allowed = allowed
        self._cleartext = cleartext
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The vetted addresses of the provider's own host. Raises AddressRefused for any other, or a bad address."""
        if host != self._host:
            raise AddressRefused(f"{host} is not the provider's host")
        found = await self._inner.resolve(host, port, family)
        # One bad address refuses them all: a name that mixes them is an attack or a mistake.
        for result in found:
            vet(result["host"], self._allowed, cleartext=self._cleartext)
        return found

    async def close(self) -> None:
        await self._inner.close()


class Destination:
    """One enabled provider and its pooled connections. Made inside a running loop; `close` it."""

    def __init__(self, provider: Provider) -> None:
        """Raises DestinationError where the provider's configuration cannot be followed."""
        self._scheme, self.host = split(provider)
        self._ranges = ranges(provider)
        self._proxy = provider.proxy
        self._resolver: VettedResolver | None = None
        _vet_literal(self.host, self._ranges, cleartext=self._scheme == "http")
        try:
            trust = ssl.create_default_context(cafile=provider.ca_file or None)
        except OSError as broken:
            raise DestinationError(f"ca_file {provider.ca_file} cannot be used: {broken}") from broken
        self._session = aiohttp.ClientSession(
            connector=self._connector(trust),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_connect=CONNECT_S, sock_read=IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            trace_configs=[_telling()],
            max_line_size=HEADER_LINE,
            max_field_size=HEADER_LINE,
        )

    def _connector(self, trust: ssl.SSLContext) -> aiohttp.TCPConnector:
        # Behind a proxy the addresses met are the proxy's: the site named it, and it resolves the host itself.
        if self._proxy:
            return aiohttp.TCPConnector(ssl=trust, limit=0, use_dns_cache=False)
        cleartext = self._scheme == "http"
        self._resolver = VettedResolver(self.host, self._ranges, cleartext=cleartext)
        return aiohttp.TCPConnector(
            ssl=trust, limit=0, use_dns_cache=False, resolver=self._resolver, socket_factory=self._socket
        )

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The last place before a connection: whatever led here, the address is vetted again."""
        family, kind, proto, _, address = info
        vet(str(address[0]), self._ranges, cleartext=self._scheme == "http")
        return socket.socket(family, kind, proto)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, connecting: Callable[[], None] | None = None
    ) -> aiohttp.ClientResponse:
        """Send once; the answer's body is still to be read. Raises aiohttp.ClientError or TimeoutError.

        `connecting`: called where a connection is opened for it.
        """
        # From a stream, so that a large body goes out in pieces and the loop goes on in between.
        return await self._session.post(
            url, data=io.BytesIO(body), headers=headers, allow_redirects=False, proxy=self._proxy or None,
            trace_request_ctx=connecting,
        )  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        # TLS transports close in the loop's next turn.
        await asyncio.sleep(0)


def _telling() -> aiohttp.TraceConfig:
    """Tells whoever posts of a connection that is opened for it."""

    async def begins(_session: object, context: Any, _params: object) -> None:
        if connecting := context.trace_request_ctx:
            connecting()

    telling = aiohttp.TraceConfig()
    telling.on_connection_create_start.append(begins)
    return telling


def refused(error: BaseException) -> AddressRefused | None:
    """The AddressRefused behind a client's error, if that was the reason."""
    cause = getattr(error, "os_error", error)
    return cause if isinstance(cause, AddressRefused) else None


def head_bytes(url: str, headers: Mapping[str, str], body: bytes) -> int:
    """The size of a request's line and headers as they go out, besides what TLS and a proxy add."""
    parts = urlsplit(url)
    line = f"POST {parts.path} HTTP/1.1"
    lines = [line, f"host: {parts.netloc}", f"content-length: {len(body)}", *(f"{n}: {v}" for n, v in headers.items())]
    return sum(len(each) + 2 for each in lines) + 2


def header_bytes(answer: aiohttp.ClientResponse) -> int:
    """The size of an answer's headers."""
    return sum(len(name) + len(value) + 4 for name, value in answer.raw_headers)
