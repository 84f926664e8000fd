"""Where tests connect to: this machine, by loopback and Unix sockets, or what a test names by its marker `reaches`.

An audit hook sees sockets and look-ups of this process in Python; uvloop has its own in C, so tests run on a loop that
asks here first. What other processes do, and what goes past both, is seen by the kernel in tests/leaks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from typing import Any

import uvloop

HERE = frozenset({None, "", "localhost", "0.0.0.0", "::", b"localhost", b""})
LOOKS_UP = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
"""Audit events of looking up a name; the first argument says which."""


class Strayed(PermissionError):
    """A test would have left this machine; it was not let go."""


class Lookout:
    """What was tried since a test began."""

    def __init__(self) -> None:
        self.strays: list[str] = []
        self.allowed: frozenset[str] = frozenset()
        self._set_up = False

    def set_up(self) -> None:
        """Look from now on, for as long as the process lives: an audit hook cannot be taken away."""
        if not self._set_up:
            self._set_up = True
            sys.addaudithook(self.heard)

    def heard(self, event: str, args: tuple[Any, ...]) -> None:
        """One audit event. Raises Strayed."""
        if event in LOOKS_UP:
            self.ask_name(args[0], event)
        elif event in ("socket.connect", "socket.sendto") and args[0].family in (socket.AF_INET, socket.AF_INET6):
            self.ask(args[1][0], event)

    def ask_name(self, host: Any, how: str) -> None:
        """Whether `host` may be looked up; an address is no question to anybody. Raises Strayed."""
        if _address(host) is None:
            self.ask(host, how)

    def ask(self, host: Any, how: str) -> None:
        """Whether `host` may be reached. Raises Strayed."""
        if host in HERE or host in self.allowed or _loopback(host):
            return
        self.strays.append(f"{how}: {host!r}")
        raise Strayed(f"a test may not reach {host!r} ({how}); mark it with @pytest.mark.reaches where it must")


class Loop(uvloop.Loop):
    """uvloop, which connects without Python's sockets, with the same question before each."""

    async def create_connection(self, protocol_factory: Any, host: Any = None, *more: Any, **named: Any) -> Any:
        LOOKOUT.ask(host, "uvloop")
        return await super().create_connection(protocol_factory, host, *more, **named)

    async def getaddrinfo(self, host: Any, *more: Any, **named: Any) -> Any:
        LOOKOUT.ask_name(host, "uvloop")
        return await super().getaddrinfo(host, *more, **named)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The loop the program runs on, watched."""
    return Loop()


def _loopback(host: Any) -> bool:
    found = _address(host)
    return found is not None and found.is_loopback


def _address(host: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is, None for a name."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found


LOOKOUT = Lookout()
"""One for each process, as audit hooks are."""
