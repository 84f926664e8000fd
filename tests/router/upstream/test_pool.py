"""Slots: never more at once than allowed, first come first served, and none is lost when somebody gives up."""

from __future__ import annotations

import asyncio

import pytest

from router.upstream.pool import Slots


async def in_line(slots: Slots, count: int) -> list[asyncio.Task[None]]:
    """So many that wait."""
    waiting = [asyncio.create_task(slots.turn()) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(slots.line) == count
    return waiting


async def test_who_came_first_is_first() -> None:
    slots = Slots(1)
    assert slots.take() and not slots.take()
    first, second = await in_line(slots, 2)
    slots.give()
    await first
    assert (second.done(), slots.left) == (False, 0)
    slots.give()
    await second
    slots.give()
    assert (slots.left, slots.take()) == (1, True)


async def test_who_gives_up_waiting_is_passed_over() -> None:
    slots = Slots(1)
    slots.take()
    first, second = await in_line(slots, 2)
    first.cancel()
    slots.give()  # before the one that was cancelled has run
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    slots.give()
    assert (slots.left, len(slots.line)) == (1, 0)


async def test_what_was_given_to_one_who_leaves_at_that_moment_goes_on() -> None:
    slots = Slots(1)
    slots.take()
    first, second = await in_line(slots, 2)
    slots.give()
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    slots.give()
    assert slots.left == 1


async def test_waiting_for_a_time_leaves_nothing_behind() -> None:
    slots = Slots(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await slots.turn()
    assert not slots.line
    slots.give()
    assert slots.left == 1
