"""Asks one part of Headgate on its Unix socket whether it works: exit code 0 where it answers 200, else 1.

`health.py NAME PATH`: the socket's name below $HEADGATE_HOME/run, and the path to ask. For containers, whose images
hold no curl; it needs the standard library alone and starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TIMEOUT_S = 3.0


def main(name: str, path: str) -> int:
    """The exit code; one sentence on stderr where it is not 0."""
    address = Path(os.environ.get("HEADGATE_HOME", "")) / "run" / f"{name}.sock"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as part:
            part.settimeout(TIMEOUT_S)
            part.connect(str(address))
            part.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            answer = part.recv(64).decode(errors="replace")
    except OSError as broken:
        print(f"health: {address} does not answer: {broken}", file=sys.stderr)
        return 1
    if answer.split(" ")[1:2] == ["200"]:
        return 0
    print(f"health: {name} answers {answer.splitlines()[:1]}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
