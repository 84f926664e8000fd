"""Two network namespaces with one wire between them, where the kernel allows it; a network of one host where not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

HERE, SINK = "203.0.113.8", "203.0.113.9"
"""Addresses that are kept for documentation: nobody has them."""
WAYS = (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"])


@functools.cache
def alone() -> tuple[str, ...]:
    """The command before a command that gives it a network of its own; empty where the kernel or we may not."""
    for way in WAYS:
        try:
            tried = subprocess.run([*way, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if tried.returncode == 0:
            return tuple(way)
    return ()


def ip(*words: str, pid: int | None = None) -> None:
    """`ip` in this namespace, or in that of a process of ours."""
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net"] if pid else []
    subprocess.run([*inside, "ip", *words], check=True, capture_output=True, timeout=20)


def joined(pid: int) -> None:
    """A wire from here to the namespace of `pid`: every address that is not here lies there, whatever it is."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "out", "type", "veth", "peer", "name", "in", "netns", str(pid))
    # Without an address of version 6 nobody looks for neighbours or routers: the kernel sends nothing by itself.
    ip("link", "set", "out", "addrgenmode", "none")
    ip("addr", "add", f"{HERE}/31", "dev", "out")
    ip("link", "set", "out", "up")
    ip("link", "set", "lo", "up", pid=pid)
    ip("addr", "add", f"{SINK}/31", "dev", "in", pid=pid)
    ip("link", "set", "in", "up", pid=pid)
    ip("route", "add", "default", "via", SINK)
    ip("route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100", pid=pid)
    ip("rule", "add", "iif", "in", "lookup", "100", "priority", "10", pid=pid)


def certificate(folder: Path) -> Path:
    """A certificate for the sink's addresses, with its key, in one file."""
    pem = folder / "sink.pem"
    names = f"subjectAltName=IP:{SINK},IP:127.0.0.1"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=sink", "-addext", names, "-keyout", str(pem), "-out", str(pem)]
    subprocess.run(make, check=True, capture_output=True)
    return pem


def sent_bytes() -> int:
    """Bytes that the kernel has sent over the wire, by its own counter."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (fields,) = [line.split(":")[1].split() for line in lines if line.strip().startswith("out:")]
    return int(fields[8])


def python(*words: str) -> list[str]:
    """This Python, with what it is to run."""
    return [sys.executable, *words]


def environment(**more: str) -> dict[str, str]:
    """The environment of a process of the matrix, without anybody's proxies."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    root = Path(__file__).parent.parent.parent
    return {**kept, "PYTHONPATH": str(root), **more}
