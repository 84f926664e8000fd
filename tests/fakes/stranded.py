"""Run inside a network of its own: tries every way out it is told of, and says in JSON which it found.

`stranded.py PORT`: a TCP port on the host's loopback. Knows nothing of this project.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys


def reached(family: int, kind: int, *address: object) -> bool:
    """Whether the kernel lets a socket connect there."""
    with contextlib.suppress(OSError), socket.socket(family, kind) as tried:
        tried.settimeout(2)
        tried.connect(address)
        return True
    return False


def back(pid: int) -> bool:
    """Whether this process may enter the network of `pid`."""
    try:
        place = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    except OSError:
        return False
    return ctypes.CDLL(None, use_errno=True).setns(place, 0) == 0


def own_loopback() -> bool:
    """Whether processes in here can speak to each other."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 0)) as server:
        return reached(socket.AF_INET, socket.SOCK_STREAM, *server.getsockname())
    return False


def main() -> None:
    port = int(sys.argv[1])
    v4, v6, tcp, udp = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
    print(json.dumps({
        "host's loopback": reached(v4, tcp, "127.0.0.1", port),
        "TCP": reached(v4, tcp, "192.0.2.1", 80), "UDP": reached(v4, udp, "192.0.2.1", 53),
        "TCP over IPv6": reached(v6, tcp, "2001:db8::1", 80), "UDP over IPv6": reached(v6, udp, "2001:db8::1", 53),
        "private network": reached(v4, udp, "10.0.0.1", 53), "link": reached(v4, udp, "169.254.169.254", 80),
        "back": back(os.getppid()), "own loopback": own_loopback(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
