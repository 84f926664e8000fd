"""What every exchange with an upstream needs said: the address, the deadlines, the bounds, and how it can fail.

Pure; opens nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal[
    "refused", "outside", "pool_full", "connect_timeout", "first_byte_timeout", "first_token_timeout", "idle_timeout",
    "reset", "bad_response", "too_large", "closed", "unread",
]  # fmt: skip
"""`too_large`: a body that is read whole. `unread`: whoever takes the answer was too slow for it; all others but
`pool_full` are about the upstream."""


class UpstreamError(Exception):
    """An upstream could not be asked, or its answer did not come whole. The text is one sentence without secrets."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind


@dataclass(frozen=True, slots=True)
class Address:
    """Where an upstream listens."""

    scheme: Literal["unix", "http", "https"]
    host: str
    port: int
    path: str
    """The socket's path; empty but for `unix`."""
    ca_file: str = ""
    """PEM file of the authorities that may have signed an `https` address; empty: those the system trusts."""

    @classmethod
    def parse(cls, text: str, ca_file: str = "") -> Address:
        """Read `unix:/path`, `http://host:port` or `https://host:port`. Raises ValueError with one sentence."""
        wrong = f"not an address: {text!r} (unix:/path, http://host:port or https://host:port is expected)"
        if not text.isprintable():  # urlsplit would silently leave line ends out
            raise ValueError(wrong)
        if text.startswith("unix:/"):
            return cls("unix", "", 0, text.removeprefix("unix:"))
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as broken:
            raise ValueError(wrong) from broken
        extra = parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None
        if not re.fullmatch(r"[0-9A-Za-z.:_-]+", host) or extra or port == 0:
            raise ValueError(wrong)
        if parts.scheme == "http":
            return cls("http", host, port or 80, "", ca_file)
        if parts.scheme == "https":
            return cls("https", host, port or 443, "", ca_file)
        raise ValueError(wrong)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        if self.scheme == "unix":
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds each phase may take. `first_byte_s` runs from sending to the first byte of the body, of a stream to its
    head; `first_token_s` from sending to a stream's first delta, and only where whoever asks says that somebody else
    may answer; `idle_s` is for what brings the answer on after that, an event of a stream or some bytes of another
    body, and for an upstream that does not take the request; `total_s` covers all of it."""

    connect_s: float = 1.0
    first_byte_s: float = 300.0
    first_token_s: float = 60.0
    idle_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an answer may take in bytes: its header section, a body that is read whole, and what waits for a slow
    reader; and how many lines of headers."""

    header_bytes: int = 65_536
    header_lines: int = 128
    body_bytes: int = 64 * 1024 * 1024
    buffer_bytes: int = 262_144
