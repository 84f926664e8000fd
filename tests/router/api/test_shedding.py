"""When no more is taken, and how much memory one worker may have."""

from __future__ import annotations

import pytest

from router.api.shedding import LOOK_S, Level, Load, level, most_of_bodies, own_share, resident
from router.errors import Overloaded

MB = 2**20


@pytest.mark.parametrize(
    ("used", "expected"),
    [(0, Level.fine), (92, Level.fine), (93, Level.closing), (95, Level.closing), (96, Level.shedding)],
)
def test_the_level_of_memory(used: int, expected: Level) -> None:
    assert level(used * MB, 100 * MB) is expected
    assert level(used * MB, 0) is Level.fine


def system(**files: str) -> dict[str, str]:
    return {"/proc/self/cgroup": "0::/app\n", "/proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\n", **files}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (system(), 1000 * 1024),
        (system(**{"/sys/fs/cgroup/app/memory.max": "500000\n"}), 500_000),
        (system(**{"/sys/fs/cgroup/memory.max": "500000\n"}), 500_000),
        (system(**{"/sys/fs/cgroup/app/memory.max": "max\n"}), 1000 * 1024),
        (system(**{"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}), 1000 * 1024),
        (system(**{"/sys/fs/cgroup/memory/memory.limit_in_bytes": "400000\n"}), 400_000),
        ({}, 0),
    ],
)
def test_the_share_of_one_worker(files: dict[str, str], expected: int) -> None:
    def read(path: str) -> str:
        return files.get(path, "")

    assert own_share(0, 1, read) == expected
    assert own_share(0, 2, read) == expected // 2
    assert own_share(64, 2, read) == 64 * MB


def test_memory_is_looked_at_seldom() -> None:
    looks: list[int] = []

    def used() -> int:
        looks.append(1)
        return 99 * len(looks)

    load = Load(10, 100, used)
    assert [load.level(now) for now in (0.0, LOOK_S / 2, LOOK_S)] == [Level.shedding] * 3
    assert len(looks) == 2


def test_what_is_one_too_many_is_refused_with_a_time_to_try_again() -> None:
    load = Load(2, 0)
    load.open = 1
    load.check(0.0)
    load.open = 2
    with pytest.raises(Overloaded) as refused:
        load.check(0.0)
    assert refused.value.retry_after


def test_without_memory_one_request_at_a_time_goes_on() -> None:
    """Else a process whose memory is not given back would refuse for ever."""
    load = Load(2, 100, lambda: 99)
    load.check(0.0)
    load.open = 1
    with pytest.raises(Overloaded) as refused:
        load.check(0.0)
    assert refused.value.retry_after


def test_bodies_together_have_a_bound_and_one_alone_always_goes_on() -> None:
    load = Load(10, 8 * 100, lambda: 0, max_body=60)  # so that 100 bytes are held at most
    load.open = 1
    load.hold(130)
    load.open = 2
    with pytest.raises(Overloaded) as refused:
        load.hold(10)
    assert refused.value.retry_after
    load.free(140)
    load.hold(60)
    load.check(0.0, 40)
    with pytest.raises(Overloaded):
        load.check(0.0, 41)
    assert load.bodies == 60, "what a head says is not held"


@pytest.mark.parametrize(("memory", "expected"), [(0, 64 * 16), (8 * 100, 100), (8, 16)])
def test_the_bound_of_bodies_is_a_part_of_the_memory_and_never_less_than_one(memory: int, expected: int) -> None:
    assert most_of_bodies(16, memory) == expected


def test_this_process_has_some_memory() -> None:
    assert resident() > MB
