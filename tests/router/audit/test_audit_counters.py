"""The kernel's counters as they are read, and the bounds of what TLS and TCP add."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.audit import counters, overhead
from router.audit.overhead import Booked, Counted
from router.door import witness
from router.door.book import verify
from router.door.witness import counting
from tests.house import ROOT

DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     999       9    0    0    0     0          0         0      999       9    0    0    0     0       0          0
  eth0: 1000     20    0    0    0     0          0         0     3000      40    0    0    0     0       0          0
"""  # noqa: E501
SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm ActiveOpens PassiveOpens RetransSegs
Tcp: 1 7 8 3
Udp: InDatagrams OutDatagrams
Udp: 5 11
"""
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address: str, inode: int) -> str:
    return f"   0: {address}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1\n"


def test_what_is_sent_is_read_without_loopback() -> None:
    assert counters.interfaces(DEV) == {"eth0": [3000, 40, 1000, 20]}
    found = counters.protocols(SNMP, "Udp6OutDatagrams 4\nUdp6InDatagrams 2\n")
    assert found == {"connections": 7, "datagrams": 15, "again": 3}


def test_a_socket_of_somebody_else_shows_that_the_namespace_is_shared(tmp_path: Path) -> None:
    for name, text in (("dev", DEV), ("snmp", SNMP), ("tcp", HEAD + row("0100007F", 77) + row("00000000", 0))):
        (tmp_path / "net").mkdir(exist_ok=True)
        (tmp_path / "net" / name).write_text(text)
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns/net").symlink_to("net:[42]")
    (tmp_path / "fd").mkdir()
    found = counters.read(tmp_path)
    assert (found["alone"], found["namespace"], found["interfaces"]["eth0"][0]) == (False, "net:[42]", 3000)
    (tmp_path / "fd/3").symlink_to("socket:[77]")
    assert counters.read(tmp_path)["alone"], "that one is ours"
    (tmp_path / "net/udp").write_text(HEAD + row("0B00007F", 99))
    assert counters.read(tmp_path)["alone"], "Docker's name server listens everywhere"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(counters.CountersError, match="cannot be read"):
        counters.read(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/net/dev").exists(), reason="no /proc here")
def test_this_machine_is_shared_with_others() -> None:
    """A socket of another process, as the router's beside a door without a container."""
    program = "from router.audit import counters; print(counters.read()['alone'])"
    with socket.create_server(("127.0.0.1", 0)):
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def sample(at: float, sent: int, **more: Any) -> dict[str, Any]:
    return {
        "read_at": at, "boot": "b", "namespace": "n", "alone": True, "interfaces": {"eth0": [sent, sent // 100, 0, 0]},
        "connections": 0, "datagrams": 0, "again": 0, **more,
    }  # fmt: skip


def test_what_was_counted_lies_between_two_samples() -> None:
    found = list(counters.intervals(iter([sample(0, 1000), sample(60, 5000), sample(120, 5000)])))
    assert [(i.start, i.end, i.counted.bytes, i.counted.packets) for i in found] == [(0, 60, 4000, 40), (60, 120, 0, 0)]


@pytest.mark.parametrize(
    "changed", [{"alone": False}, {"boot": "c"}, {"namespace": "m"}, {"interfaces": {}}, {"interfaces": {"e": [9] * 4}}]
)
def test_counters_of_another_boot_or_namespace_or_of_others_say_nothing(changed: dict[str, Any]) -> None:
    assert list(counters.intervals(iter([sample(0, 1000), sample(60, 5000, **changed)]))) == []
    assert list(counters.intervals(iter([sample(0, 5000), sample(60, 1000)]))) == [], "they began anew"


def real(body: int, packets: int, *, opened: bool = True, datagrams: int = 2) -> Counted:
    """What the kernel counts of one request over TLS 1.3 and IPv4."""
    text = body + 400
    said = text + 22 * (text // 16384 + 2) + 2000 * opened + packets * 66
    return Counted(said + datagrams * (42 + 60), packets + datagrams, datagrams)


def booked(body: int, *, connections: int = 1, answers: int = 2000) -> Booked:
    size = body + 400
    return Booked(size, size, 1, connections, answers, 15)


@pytest.mark.parametrize("body", [10, 1000, 16_384, 1_000_000, 16_000_000])
@pytest.mark.parametrize("acknowledged", [1, 500])
def test_a_request_is_explained_by_its_body_and_the_overhead(body: int, acknowledged: int) -> None:
    """However many packets only acknowledge an answer that comes word by word."""
    counted, said = real(body, body // 1448 + 6 + acknowledged), booked(body, answers=acknowledged * 150)
    assert overhead.unaccounted(said, counted) == overhead.missing(said, counted) == 0
    assert overhead.unaccounted(Booked(), counted) > body
    assert overhead.missing(booked(body * 3 + 90_000), counted) > 0
    assert overhead.uncertain(said, counted) == counted.bytes - 42 * counted.packets - body - 400


def test_nothing_may_leave_while_nothing_is_asked() -> None:
    assert overhead.unaccounted(Booked(), Counted(0, 0)) == 0
    assert overhead.unaccounted(Booked(), Counted(20 * 42, 20)) == 0, "neighbours are looked for"
    assert overhead.unaccounted(Booked(), Counted(5_000 + 6 * 66, 6)) > 4_500


SMUGGLED = 50_000


@pytest.mark.parametrize("piece", [1, 8, 40, 72, 512])
@pytest.mark.parametrize("way", ["datagrams", "segments", "connections", "again"])
def test_what_is_cut_into_small_pieces_explains_itself_no_better(way: str, piece: int) -> None:
    """Whatever it is counted as by the kernel: what is allowed is made of what the book names."""
    pieces = SMUGGLED // piece
    packets = pieces * (4 if way == "connections" else 1)
    beside = Counted(
        packets * (42 if way == "datagrams" else 66) + SMUGGLED, packets,
        pieces if way == "datagrams" else 0, pieces if way == "again" else 0,
    )  # fmt: skip
    most = 2_000
    assert overhead.unaccounted(Booked(), beside) >= beside.bytes - most
    own = real(1000, 8)
    both = Counted(*(a + b for a, b in zip(own[:4], beside[:4], strict=True)))
    most += 8_000 if way == "datagrams" else 20_000  # ACKs that the book's answers may have taken, or all sent twice
    assert overhead.unaccounted(booked(1000), both) >= beside.bytes - most


def test_only_what_the_book_names_is_allowed_to_the_byte() -> None:
    """A connection that was there before has no handshake and asks no name; what is left over is said."""
    counted = real(1000, 8, opened=False, datagrams=0)
    kept = booked(1000, connections=0)
    assert overhead.unaccounted(kept, counted) == 0 and overhead.uncertain(kept, counted) < 400
    beside = counted._replace(bytes=counted.bytes + 2_000, packets=counted.packets + 2)
    assert overhead.unaccounted(kept, beside) > 1_500
    assert overhead.unaccounted(booked(1000), beside) == 0 and overhead.uncertain(booked(1000), beside) > 1_900


def test_while_a_request_has_no_end_only_the_number_of_packets_is_open() -> None:
    counted = real(1000, 5_000)
    assert overhead.unaccounted(booked(1000), counted) > 0
    going = booked(1000)._replace(going=1)
    assert overhead.unaccounted(going, counted) == 0
    assert overhead.unaccounted(going, counted._replace(bytes=counted.bytes + 200_000)) > 90_000


async def test_the_door_takes_samples_from_its_start_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(100))
    monkeypatch.setattr(counters, "read", lambda: {"n": next(numbers)})
    async with counting(tmp_path / "book.jsonl", "v1", every_s=0.001):
        while len((tmp_path / witness.NAME).read_bytes().splitlines()) < 5:
            await asyncio.sleep(0.001)
    found = [orjson.loads(line) for line in (tmp_path / witness.NAME).read_bytes().splitlines()]
    assert [one["kind"] for one in found] == ["opened", *["sample"] * (len(found) - 1)]
    assert [one["n"] for one in found[1:]] == list(range(len(found) - 1))
    assert verify(tmp_path / witness.NAME) == []


async def test_a_door_without_counters_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is a witness and no gate."""

    def broken() -> dict[str, Any]:
        raise counters.CountersError("no /proc")

    monkeypatch.setattr(counters, "read", broken)
    async with counting(tmp_path / "book.jsonl", "v1"):
        pass
    (tmp_path / "no").write_text("")
    async with counting(tmp_path / "no" / "book.jsonl", "v1"):
        pass
