"""Shared counters: no change is lost between processes, none waits long, and rows are used again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger import counters
from router.ledger.counters import ROW, Own, Shared, Stuck

FOREVER = 1e18


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "counted.table"
    counters.make(made)
    return made


@pytest.fixture
def shared(path: Path) -> Iterator[Shared]:
    with contextlib.closing(Shared(path)) as made:
        yield made


def _count(path: Path, start: Barrier, times: int) -> None:
    table = Shared(path)
    start.wait()
    for _ in range(times):
        with table as kept:
            kept.put("n", kept.get("n") + 1, FOREVER, 0.0)


def test_no_change_is_lost_between_processes(path: Path, shared: Shared) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    children = [context.Process(target=_count, args=(path, start, 2000)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    with shared as kept:
        assert kept.get("n") == 6000


def _turn(path: Path, numbers: tuple[int, int]) -> None:
    table = Shared(path)
    while True:
        for number in numbers:
            with table as kept:
                kept.put("n", number, FOREVER, 0.0)


def test_no_moment_of_a_change_shows_a_number_that_never_was(path: Path, shared: Shared) -> None:
    """Neither to who looks without the lock, nor to all once a worker was killed in that moment."""
    numbers = (3 * 10**12, 2**63 + 5)
    with shared as kept:
        kept.put("n", numbers[0], FOREVER, 0.0)
    child = multiprocessing.get_context("spawn").Process(target=_turn, args=(path, numbers))
    child.start()
    try:
        end = time.monotonic() + 20
        while shared.get("n") != numbers[1]:  # until it runs
            assert time.monotonic() < end
        seen = {shared.get("n") for _ in range(200_000)}
    finally:
        child.kill()
        child.join()
        child.close()
    assert seen <= set(numbers) and shared.get("n") in numbers


def test_a_disk_that_becomes_full_kills_nobody(path: Path) -> None:
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size  # a write into a hole of a mapped file needs the disk


def test_whoever_dies_inside_lets_go(path: Path, shared: Shared) -> None:
    pid = os.fork()
    if pid == 0:
        with Shared(path) as kept:
            kept.put("n", 7, FOREVER, 0.0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with shared as kept:
        assert kept.get("n") == 7


def test_a_lock_that_is_kept_is_an_error_and_waited_for_once(path: Path, shared: Shared) -> None:
    with contextlib.closing(Shared(path)) as other:
        with other:
            started = time.monotonic()
            for _ in range(200):
                with pytest.raises(Stuck), shared:
                    pass
            assert time.monotonic() - started < 100 * counters.WAIT_S  # not one wait for each
        with shared:  # free: no reason to be tired
            pass


@given(st.dictionaries(st.text(max_size=40), st.integers(-(10**30), 10**30), max_size=40))
def test_what_is_put_is_what_is_found(tmp_path_factory: pytest.TempPathFactory, numbers: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("counters") / "counted.table"
    counters.make(path)
    with contextlib.closing(Shared(path)) as shared, contextlib.closing(Shared(path)) as other:
        for kept in (shared, Own()):
            with kept:
                for name, number in numbers.items():
                    kept.put(name, number, FOREVER, 0.0)
                assert {name: kept.get(name) for name in numbers} == numbers
        with other:
            assert {name: other.get(name) for name in numbers} == numbers
            assert other.get("x" * 41) == 0


def test_a_full_file_uses_old_rows_again_and_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "ROWS", 8)
    counters.make(tmp_path / "small")
    with contextlib.closing(Shared(tmp_path / "small")) as shared, shared as kept:
        for number in range(8):
            kept.put(f"june {number}", number + 1, 30.0, 1.0)
        with pytest.raises(Stuck, match="no room"):
            kept.put("one more", 1, 30.0, 29.0)
        assert [kept.get(f"june {number}") for number in range(8)] == list(range(1, 9))
        for number in range(8):
            kept.put(f"july {number}", number + 100, 60.0, 31.0)
        assert [kept.get(f"july {number}") for number in range(8)] == list(range(100, 108))
        kept.put("july 3", 5, 60.0, 59.0)
        assert [kept.get("july 3"), kept.get("june 3"), kept.get("july 4")] == [5, 0, 104]


def test_a_new_file_takes_the_place_of_the_old_one_and_is_the_owners(path: Path, shared: Shared) -> None:
    with shared as kept:
        kept.put("n", 1, FOREVER, 0.0)
    counters.make(path, names=100_000)
    with contextlib.closing(Shared(path)) as again, again as kept:
        assert kept.get("n") == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 400_000 * ROW.size
