"""What bodies cost beyond their own bytes on the way out, as bounds; by it the kernel is held against the book.

Pure. What is allowed is made of what the book names: requests, connections, bytes sent and received. The kernel's own
counts only ever narrow it; else what is cut into enough datagrams, packets or connections would explain itself. Each
term has its source; what cannot be told from overhead is said as a number of bytes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SMALLEST_FRAME = 42
"""Bytes of a frame that carries nothing of a request, at least: Ethernet 14 + ARP 28 (RFC 826)."""
HEADERS = 86
"""Bytes of headers a packet has at most: Ethernet 14 + IPv6 40 (RFC 8200) + TCP 20 (RFC 9293) + timestamps 12 (RFC
7323). What a few packets have beyond that, as at the start of a connection, is within `HANDSHAKE`."""
RECORD_TEXT = 16_384
"""Bytes of text a TLS record holds at most (RFC 8446, 5.1)."""
RECORD = 29
"""Bytes a record adds at most: header 5 + nonce 8 + tag 16 (TLS 1.2 with AES-GCM, RFC 5288); TLS 1.3 adds 22: header 5
+ type 1 + tag 16 (RFC 8446, 5.2)."""
RECORDS = 4
"""Records a request has beyond the full ones of its body: its head, the end of each write, the alert on closing."""
HANDSHAKE = 4_608
"""Bytes a client says to begin a connection: two ClientHellos with a post-quantum share (1.9 KB each), the change of
cipher, Finished (RFC 8446, 4); and CONNECT to a proxy."""
SETUP = 32
"""Packets of a connection that carry nothing of a request: the tries of up to eight addresses (RFC 8305), its
handshake and ACKs of certificates."""
QUESTIONS, QUESTION = 16, 128
"""Datagrams to name servers for a connection: A and AAAA, twice, to three servers (resolv.conf(5)), some with a search
domain; and the bytes of each beyond the name: header 12, type and class 4, EDNS 11 (RFC 1035, 6891), a domain."""
SMALLEST_SEGMENT = 536
"""Bytes of a full segment at least (RFC 9293, 3.7.1)."""
PACKETS = 16
"""Packets of a request beyond its full segments: the end of each write, ACKs of an answer's beginning, and closing."""
ACKED = 64
"""Bytes of an answer that one ACK stands for, at least: a stream's event in a TLS record of its own has more."""
SEGMENT = 8_960
"""Bytes of a segment that is sent again, with jumbo frames; what is named goes out twice at most."""
IDLE = 12
"""Packets a minute that nobody asks for: neighbours are looked for and answered (RFC 826, 4861), groups joined."""

FORMULA = (
    "Frame bytes at least: heads and bodies that were answered, in this interval alone + packets * 42 (Ethernet 14 + "
    "ARP 28, RFC 826). At most: s + min(s, segments sent again * 8960) + q * (128 + the longest name of a host) + "
    "min(packets - datagrams + q, p) * 86 (Ethernet 14 + IPv6 40 + TCP 32; RFC 8200, 9293, 7323), where by the book "
    "s = heads and bodies + (requests * 4 + heads and bodies / 16384) * 29 of TLS records (RFC 8446, 5; RFC 5288) + "
    "connections * 4608 of handshake (RFC 8446, 4); q = min(datagrams, connections * 16) questions for names (RFC "
    "1035); p = s / 536 + requests * 16 + bytes of answers / 64 of ACKs + connections * 32 + minutes * 12 + q, and as "
    "many as there were while a request has no end in the book. A request counts until 45 s after its end, when its "
    "connection is closed; all else until 1 s after. The kernel's packets, datagrams and segments sent again only "
    "lower what is allowed. Beyond it is unaccounted; between the two, uncertain: it cannot be told from overhead."
)
"""The same in words, for statements."""


class Counted(NamedTuple):
    """What the kernel counted on the way out between two samples."""

    bytes: int
    packets: int
    datagrams: int = 0
    again: int = 0
    """Segments that were sent again."""
    seconds: float = 60.0


class Booked(NamedTuple):
    """What the book says of the same time."""

    sure: int = 0
    """Bytes of heads and bodies that were sent whole in it: a good answer came."""
    possible: int = 0
    """Bytes of heads and bodies of which a part may have been sent in it, the sure ones among them."""
    requests: int = 0
    """How many those are, those of which nothing left after all, and those whose connection may be closed in it."""
    connections: int = 0
    """Opened for them, or tried."""
    answers: int = 0
    """Bytes that came back."""
    name: int = 0
    """The length of the longest host's name among them."""
    going: int = 0
    """Requests without an end: nobody can say how much came back."""


class Bounds(NamedTuple):
    """How many bytes, at least and at most."""

    least: int
    most: int


def explained(booked: Booked, counted: Counted) -> Bounds:
    """Bytes of frames by the book: heads and bodies, and what TLS, TCP and the looking up of names add to them."""
    records = booked.possible // RECORD_TEXT + booked.requests * RECORDS
    said = booked.possible + records * RECORD + booked.connections * HANDSHAKE
    questions = min(counted.datagrams, booked.connections * QUESTIONS)
    packets = said // SMALLEST_SEGMENT + booked.requests * PACKETS + booked.answers // ACKED + questions
    packets += booked.connections * SETUP + math.ceil(counted.seconds / 60) * IDLE
    streams = counted.packets - (counted.datagrams - questions)  # what is a datagram and no question is no ACK
    packets = streams if booked.going else min(streams, packets)
    said += min(said, counted.again * SEGMENT)
    most = said + questions * (QUESTION + booked.name) + packets * HEADERS
    return Bounds(booked.sure + counted.packets * SMALLEST_FRAME, most)


def unaccounted(booked: Booked, counted: Counted) -> int:
    """Bytes that left by the kernel's count and cannot be explained by the book's; 0 where they can be."""
    return max(0, counted.bytes - explained(booked, counted).most)


def missing(booked: Booked, counted: Counted) -> int:
    """Bytes that left by the book's count and that the kernel never saw; 0 where it may have."""
    return max(0, explained(booked, counted).least - counted.bytes)


def uncertain(booked: Booked, counted: Counted) -> int:
    """Bytes that left by the kernel's count and may be overhead, or something else: the book cannot tell."""
    bounds = explained(booked, counted)
    return max(0, min(counted.bytes, bounds.most) - bounds.least)
