"""What waits for one thread: no team's work keeps another's waiting for long, nor takes all the room there is."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from router.backlog import Backlog
from tests.conftest import until


class Slow:
    """Work that is done one piece after the other, each once it may be."""

    def __init__(self) -> None:
        self.may, self.done = threading.Semaphore(0), list[str]()

    def __call__(self, name: str) -> None:
        self.may.acquire()
        self.done.append(name)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def backlog(slow: Slow) -> Iterator[Backlog]:
    made = Backlog("test", 100)
    yield made
    slow.may.release(1000)
    made.close()


def test_teams_take_turns(slow: Slow, backlog: Backlog) -> None:
    for number in range(4):
        assert backlog.add("many", 1, lambda number=number: slow(f"many {number}"))
    assert backlog.add("few", 1, lambda: slow("few"))
    slow.may.release(5)
    backlog.close()
    assert slow.done.index("few") <= 2
    assert [name for name in slow.done if name != "few"] == [f"many {number}" for number in range(4)]


async def test_one_team_leaves_room_for_others_and_gets_its_own_back(slow: Slow, backlog: Backlog) -> None:
    assert backlog.add("many", 40, lambda: slow("1"))
    assert not backlog.add("many", 11, lambda: slow("no"))
    assert backlog.add("many", 10, lambda: slow("2"))
    assert backlog.add("few", 50, lambda: slow("3"))
    assert not backlog.add("third", 1, lambda: slow("no"))
    slow.may.release(3)
    await until(lambda: backlog.waiting == 0)
    assert backlog.add("many", 90, lambda: slow("one that is larger than a share"))
    slow.may.release()
    backlog.close()
    assert "no" not in slow.done and len(slow.done) == 4


async def test_work_that_fails_gives_its_room_back(slow: Slow, backlog: Backlog) -> None:
    def fail() -> None:
        raise ValueError

    assert backlog.add("a", 60, fail)
    await until(lambda: backlog.waiting == 0)
    assert backlog.add("a", 60, lambda: slow("next"))


def test_after_its_end_it_takes_nothing(slow: Slow) -> None:
    backlog = Backlog("test", 100)
    slow.may.release()
    assert backlog.add("a", 1, lambda: slow("before"))
    backlog.close()
    with pytest.raises(RuntimeError):
        backlog.add("a", 1, lambda: slow("after"))
    assert (slow.done, backlog.waiting) == (["before"], 0)
