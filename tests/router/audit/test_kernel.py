"""The third count, with a real kernel: a real door alone in its network namespace, real TLS, a wire to a provider."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from router.audit.egress import Egress, audit
from router.audit.reconcile import Window
from router.audit.statement import kernel
from serving.home import Home
from tests.leaks import network

pytestmark = [pytest.mark.long, pytest.mark.skipif(not network.alone(), reason="no network namespaces here")]


@pytest.fixture
def root() -> Iterator[Path]:
    """With a path short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="hg-"))
    yield folder
    shutil.rmtree(folder)


def counted(root: Path, *sizes: int) -> Egress:
    """What an audit finds once ten requests of a size have left, and so many bytes past the door."""
    since = time.time() - 1
    program = [sys.executable, "-m", "tests.fakes.witnessed", str(root), *map(str, sizes)]
    subprocess.run([*network.alone(), *program], check=True, capture_output=True, env=network.environment())
    home = Home(root, root / "engines")
    return audit(home.ledger, home.book, home.book.with_name("kernel.jsonl"), Window(since, time.time()))


@pytest.mark.parametrize("size", [200, 200_000])
def test_what_the_kernel_counts_is_what_the_book_says_and_the_overhead(size: int, root: Path) -> None:
    found = counted(root, size)
    assert [one.sentence for one in found.discrepancies.shown] == []
    said = kernel(found)
    assert said["witness"] and found.requests == 10
    (group,) = found.sums
    booked = found.sums[group][2] + found.sums[group][3]
    assert said["explained"][0] == booked + 42 * said["packets"], "all ten were counted as sent whole"
    assert 0 < said["frame_bytes"] - booked < 10_000 + 0.1 * booked
    assert said["uncertain_bytes"] == said["frame_bytes"] - said["explained"][0]
    ended = [
        entry for entry in map(orjson.loads, found.book.path.read_bytes().splitlines()) if entry["kind"] == "ended"
    ]
    assert [entry["connections"] for entry in ended] == [1] + 9 * [0], "the book names what was opened"


def test_what_leaves_past_the_door_is_seen(root: Path) -> None:
    found = counted(root, 2000, 30_000)
    assert set(found.discrepancies.kinds) == {"kernel_more"}
    assert 10_000 < kernel(found)["unaccounted_bytes"] <= 40_000


def test_what_leaves_past_the_door_in_small_pieces_is_seen_as_well(root: Path) -> None:
    """Each datagram of eight bytes has headers of 42, and explains neither itself nor another."""
    found = counted(root, 2000, 8_000, 8)
    assert set(found.discrepancies.kinds) == {"kernel_more"}
    assert 8_000 < kernel(found)["unaccounted_bytes"] <= 1_000 * 50
