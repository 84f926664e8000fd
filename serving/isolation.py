"""`isolate: true`: a process in a network of its own that leads nowhere, and what the kernel says of that.

A socket belongs for ever to the network namespace it was made in. So whoever answers callers opens that socket first
and enters an empty namespace then: callers still reach it, and whatever it opens afterwards leads nowhere. Unix sockets
in the file system work on both sides. As a script, `isolation.py COMMAND…`, it runs a command so.

Where the kernel does not allow it nothing is pretended: each function answers with a sentence that says so.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NEWUSER, NEWNET = 0x10000000, 0x40000000
"""Flags of unshare(2)."""
NO_NEW_PRIVILEGES, DROP_FROM_BOUNDS = 38, 24
"""Of prctl(2)."""
CAPABILITIES_VERSION = 0x20080522
LEADING_BACK = (12, 16, 19, 21, 39)
"""Capabilities that lead back to the host's network: NET_ADMIN, SYS_MODULE, SYS_PTRACE, SYS_ADMIN, BPF."""
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446
"""System calls, with these numbers on every architecture."""
LANDLOCK_ASK_VERSION, LANDLOCK_CONNECT_TCP, LANDLOCK_NETWORK_VERSION = 1, 2, 4
INTERFACE_FLAGS, SET_INTERFACE_FLAGS, UP = 0x8913, 0x8914, 1
"""Of ioctl(2) on a socket, and the flag of an interface that is up."""
ASKED = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "203.0.113.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses of the documentation: nobody's, but a default route leads there."""
LOCAL_ONLY = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""What tells an engine that its processes find each other on loopback, since there is nothing else."""
PROC = Path("/proc")


def refusal(urls: Iterable[str]) -> str:
    """Why servers at these addresses cannot be asked from a network of its own, with the remedy, or "". Pure."""
    for url in urls:
        if not url.startswith("unix:"):
            return (
                f"isolate: true leaves the router no way to {url}; attach that server by a Unix socket "
                "(url: unix:/path/to.sock), or set isolate: false"
            )
    return ""


def wrapped(args: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs `args` in a network of its own. Pure."""
    # -I -S: nothing but the standard library is needed, and nothing is taken from where it happens to run.
    return (sys.executable, "-I", "-S", str(Path(__file__)), *args)


def enter(connects: bool = False) -> str:
    """Enter an empty network namespace with this process; "" where the kernel then knows no way out.

    Else the sentence that says why not. To be called before there is a second thread, and after the sockets for callers
    are open. Without `connects` it gives up TCP connections for good, also with the sockets that it has.
    """
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has no network namespaces"
    threads = len(list((PROC / "self" / "task").iterdir()))
    if threads > 1:
        return f"it has {threads} threads already, and only one can move"
    libc, before = _libc(), _namespace()
    refused = _tried(libc) or _unshare(libc)
    if not refused:
        _raise_loopback()
    _give_up(libc)
    if not connects and _give_up_tcp(libc) and refused:
        refused += "; it can at least open no TCP connection (Landlock)"
    if refused:
        return refused
    return "the kernel left it in the network it was in" if _namespace() == before else way_out()


def way_out(pid: int | None = None) -> str:
    """The way out that the kernel knows for a process, this one by default; "" where there is none."""
    who = "self" if pid is None else str(pid)
    try:
        v4, v6 = ((PROC / who / "net" / name) for name in ("route", "ipv6_route"))
        found = interfaces(v4.read_text(), v6.read_text() if v6.exists() else "")
    except OSError as broken:
        return f"its routes cannot be read ({broken.strerror})"
    if found:
        return f"it has a route out, by {', '.join(found)}"
    return _answered() if pid is None else ""


def interfaces(v4: str, v6: str) -> list[str]:
    """The interfaces but loopback that routes lead to, out of /proc/net/route and /proc/net/ipv6_route. Pure."""
    named = [line.split()[0] for line in v4.splitlines()[1:] if line.strip()]
    named += [line.split()[-1] for line in v6.splitlines() if line.strip()]
    return sorted({name for name in named if name != "lo"})


def _answered() -> str:
    """Ask for a way by a datagram socket that is never written to: this sees rules that no table shows."""
    for family, address in ASKED:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.connect((address, 9))
        except OSError:
            continue
        return f"the kernel knows a way to {address}"
    return ""


def _libc() -> Any:
    """The system calls that Python has no name for. Imported here, since most starts have no use for it."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _namespace() -> int:
    return (PROC / "self" / "ns" / "net").stat().st_ino


def _unshare(libc: Any) -> str:
    """A new network namespace: by the right to, else by being the only user of a user namespace. "" or why not."""
    if libc.unshare(NEWNET) == 0:
        return ""
    from ctypes import get_errno

    user, group = os.geteuid(), os.getegid()
    if libc.unshare(NEWUSER | NEWNET) != 0:
        return f"the kernel does not let this process have a network of its own ({os.strerror(get_errno())})"
    try:
        # Each id stands for itself, so that files and sockets belong to whom they did.
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            (PROC / "self" / name).write_text(line)
    except OSError as broken:
        return f"the kernel does not say who this process is in a network of its own ({broken.strerror})"
    return ""


def _tried(libc: Any) -> str:
    """What comes of it in a child. Where ids may not be mapped it fails half way, and nobody comes back from there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, _unshare(libc).encode())
            os.close(writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        refused = said.read().decode()
    _, status = os.waitpid(child, 0)
    return refused if status == 0 else "trying it in a process of its own failed"


def _raise_loopback() -> None:
    """Engines speak to their own processes on it. Where it stays down an engine says so itself."""
    import fcntl

    request = struct.pack("16sH22x", b"lo", UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, SET_INTERFACE_FLAGS, request)
        except OSError as broken:
            _say(f"loopback stays down ({broken.strerror})")


def _give_up(libc: Any) -> None:
    """Give up, for this process and all it starts, the rights by which it could go back."""
    from ctypes import create_string_buffer

    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for one in LEADING_BACK:
        libc.prctl(DROP_FROM_BOUNDS, one, 0, 0, 0)
    header = struct.pack("Ii", CAPABILITIES_VERSION, 0)
    held = create_string_buffer(24)
    if libc.capget(header, held) != 0:
        return
    kept = ~sum(1 << one for one in LEADING_BACK)
    low, high = kept & 0xFFFFFFFF, (kept >> 32) & 0xFFFFFFFF
    words = struct.unpack("6I", held.raw)
    libc.capset(header, struct.pack("6I", *(w & low for w in words[:3]), *(w & high for w in words[3:])))


def _give_up_tcp(libc: Any) -> bool:
    """By Landlock, where the kernel has it: a caller's socket is one of the host's, and could be connected anew."""
    if libc.syscall(LANDLOCK_CREATE, None, 0, LANDLOCK_ASK_VERSION) < LANDLOCK_NETWORK_VERSION:
        return False
    handled = struct.pack("QQ", 0, LANDLOCK_CONNECT_TCP)
    rules = libc.syscall(LANDLOCK_CREATE, handled, len(handled), 0)
    if rules < 0:
        return False
    try:
        return bool(libc.syscall(LANDLOCK_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _say(text: str) -> None:
    print(f"isolation: {text}", file=sys.stderr, flush=True)


def main(args: Sequence[str]) -> int:
    """Run a command in a network of its own; where that is not to be had it runs all the same, and the log says so."""
    if not args:
        _say("give a command to run")
        return 2
    if trouble := enter(connects=True):
        _say(f"NOT ENFORCED by the kernel: {trouble}")
    try:
        os.execvp(args[0], list(args))  # noqa: S606 serving's own command line
    except OSError as broken:
        _say(f"{args[0]}: {broken.strerror}")
    return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
