"""The only other host: a provider over TLS that keeps every byte, and a listener for every packet beside it.

`python -m tests.leaks.sink CERTIFICATE PORT` answers on standard output: a line when it listens, and for every line on
standard input a line of JSON: what came since the start. In a network namespace of its own every address is its own,
so that a packet to anywhere at all arrives here and is seen.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
import threading
from collections import Counter

from tests.fakes.faults import Peer, Upstream

ANY_PROTOCOL = 3
LINK_NOISE = {0x0806, 0x88CC}
"""ARP and LLDP: no packets of anybody's data."""
ICMP6 = 58


class Tap(threading.Thread):
    """Every packet that arrives at this namespace, by protocol and destination."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ANY_PROTOCOL))
        self.seen: Counter[str] = Counter()
        self.data = bytearray()

    def run(self) -> None:
        while True:
            frame, about = self.socket.recvfrom(65535)
            if about[2] != socket.PACKET_OUTGOING and about[0] != "lo" and (name := named(frame)):
                self.seen[name] += 1
                self.data += frame


def named(frame: bytes) -> str:
    """Protocol and destination of a packet; "" for what only keeps the link going."""
    (kind,) = struct.unpack("!H", frame[12:14])
    if kind in LINK_NOISE:
        return ""
    if kind == 0x86DD:
        # Neighbours that look for each other, also behind a header that routers are to look at.
        noise = frame[20] == ICMP6 or (frame[20] == 0 and frame[54] == ICMP6)
        return "" if noise else f"ipv6 {socket.inet_ntop(socket.AF_INET6, frame[38:54])}"
    if kind != 0x0800:
        return f"ethertype {kind:#x}"
    start = 14 + (frame[14] & 15) * 4
    port = struct.unpack("!H", frame[start + 2 : start + 4])[0] if frame[23] in (6, 17) else 0
    protocol = {6: "tcp", 17: "udp"}.get(frame[23], f"protocol {frame[23]}")
    return f"{protocol} {socket.inet_ntoa(frame[30:34])}:{port}"


async def main(certificate: str, port: int, tapped: bool) -> None:
    """Answer like a provider until standard input ends."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    tap = Tap() if tapped else None
    if tap:
        tap.start()
    upstream = Upstream(tls=tls)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(upstream), "0.0.0.0", port, ssl=tls)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        heads = [json.dumps([r.method, r.path, r.headers]) for r in upstream.requests]
        bodies = [r.body.decode("utf-8", "replace") for r in upstream.requests]
        packets = dict(tap.seen) if tap else {}
        report = {"connections": upstream.accepted, "bytes": upstream.received.total(), "packets": packets}
        raw = tap.data.decode("latin-1") if tap else ""
        print(json.dumps(report | {"heads": heads, "bodies": bodies, "raw": raw}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), "tap" in sys.argv[3:]))
