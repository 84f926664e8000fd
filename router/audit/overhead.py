"""What bodies cost beyond their own bytes on the way out, as bounds; by it the kernel is held against the book.

Pure. Each term has its source; where the truth lies between two values both are said, and the rest is shown.
"""

from __future__ import annotations

from typing import NamedTuple

SMALLEST_FRAME = 42
"""Bytes of a frame that carries nothing of a request, at least: Ethernet 14 + ARP 28 (RFC 826)."""
LARGEST_HEADERS = 114
"""Bytes of headers a packet can have: Ethernet 14 + IPv6 40 (RFC 8200) + TCP 20 to 60 (RFC 9293)."""
RECORD_TEXT = 16_384
"""Bytes of text a TLS record holds at most (RFC 8446, 5.1)."""
RECORD = 29
"""Bytes a record adds at most: header 5 + nonce 8 + tag 16 (TLS 1.2 with AES-GCM, RFC 5288); TLS 1.3 adds 22: header 5
+ type 1 + tag 16 (RFC 8446, 5.2)."""
RECORDS = 4
"""Records a request has beyond the full ones of its body: its head, the end of each write, the alert on closing."""
HANDSHAKE = 6_144
"""Bytes a client says in a TLS handshake: two ClientHellos with a post-quantum share (1.9 KB each), the change of
cipher, Finished (RFC 8446, 4); and CONNECT to a proxy."""
DATAGRAM = 512
"""Bytes of a question to a name server (RFC 1035, 4.2.1)."""
SEGMENT = 8_960
"""Bytes of a segment that is sent again, with jumbo frames."""

FORMULA = (
    "bytes above TCP = frame bytes - packets * h, 42 <= h <= 114 (Ethernet 14 + ARP 28, RFC 826; or 14 + IPv6 40 + "
    "TCP 60, RFC 8200, RFC 9293; an ACK is a packet that carries nothing). At least: heads and bodies that were "
    "answered. At most: all heads and bodies + (requests * 4 + heads and bodies / 16384) * 29 of TLS records (RFC "
    "8446, 5; RFC 5288) + connections * 6144 of handshake (RFC 8446, 4) + datagrams * 512 (RFC 1035) + segments sent "
    "again * 8960."
)
"""The same in words, for statements."""


class Counted(NamedTuple):
    """What the kernel counted on the way out between two samples."""

    bytes: int
    packets: int
    connections: int = 0
    datagrams: int = 0
    again: int = 0
    """Segments that were sent again."""


class Booked(NamedTuple):
    """What the book says of the same time."""

    sure: int = 0
    """Bytes of heads and bodies that were sent whole in it: a good answer came."""
    possible: int = 0
    """Bytes of heads and bodies of which a part may have been sent in it, the sure ones among them."""
    requests: int = 0
    """How many those are."""


class Bounds(NamedTuple):
    """How many bytes, at least and at most."""

    least: int
    most: int


def above_tcp(counted: Counted) -> Bounds:
    """Bytes that connections carried, by the kernel's count."""
    least = counted.bytes - counted.packets * LARGEST_HEADERS
    return Bounds(max(0, least), max(0, counted.bytes - counted.packets * SMALLEST_FRAME))


def expected(booked: Booked, counted: Counted) -> Bounds:
    """Bytes that connections must have carried by the book: heads, bodies, and what TLS adds to them."""
    records = booked.possible // RECORD_TEXT + 1 if booked.requests else 0
    most = booked.possible + (booked.requests * RECORDS + records) * RECORD
    most += (counted.connections * HANDSHAKE) + (counted.datagrams * DATAGRAM) + (counted.again * SEGMENT)
    return Bounds(booked.sure, most)


def unaccounted(booked: Booked, counted: Counted) -> int:
    """Bytes that left by the kernel's count and cannot be explained by the book's; 0 where they can be."""
    return max(0, above_tcp(counted).least - expected(booked, counted).most)


def missing(booked: Booked, counted: Counted) -> int:
    """Bytes that left by the book's count and that the kernel never saw; 0 where it may have."""
    return max(0, expected(booked, counted).least - above_tcp(counted).most)
