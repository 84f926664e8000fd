"""Who takes memory or gives it back waits for whoever starts there, and for nobody else."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from serving.turns import MAIN, Turns


class Held:
    """Somebody who has a turn, or waits for it."""

    def __init__(self, turn: AbstractAsyncContextManager[None]) -> None:
        self._turn, self._done, self.has = turn, asyncio.Event(), False
        self._task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._turn:
            self.has = True
            await self._done.wait()

    async def end(self) -> None:
        self._done.set()
        await self._task


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_engines_start_one_by_one_and_others_sleep_and_wake_beside() -> None:
    turns = Turns()
    starts = Held(turns.start(("a", "b")))
    await settled()
    assert starts.has and turns.starting
    next_start, same, beside = Held(turns.start(("c",))), Held(turns.alone(("b", MAIN))), Held(turns.alone(("c",)))
    await settled()
    assert (next_start.has, same.has, beside.has) == (False, False, True)
    await starts.end()
    await settled()
    assert same.has and not next_start.has, "one wakes there"
    await beside.end()
    await settled()
    assert next_start.has
    await same.end()
    await next_start.end()
    assert not turns.starting


async def test_one_without_a_gpu_starts_in_main_memory_and_models_fall_asleep_one_after_the_other() -> None:
    turns = Turns()
    first = Held(turns.alone(("a", MAIN)))
    await settled()
    other, on_cpu = Held(turns.alone(("b", MAIN))), Held(turns.start(()))
    await settled()
    assert (first.has, other.has, on_cpu.has) == (True, False, False)
    await first.end()
    await settled()
    assert other.has != on_cpu.has
    await other.end()
    await on_cpu.end()


async def test_whether_a_place_is_free_can_be_asked_without_waiting() -> None:
    turns = Turns()
    assert turns.free(("a", MAIN))
    async with turns.alone(("a",)):
        assert not turns.free(("b", "a")) and turns.free(("b", MAIN))
    assert turns.free(("a", MAIN))


async def test_places_named_in_any_order_lock_nobody_out() -> None:
    turns = Turns()
    async with asyncio.timeout(10):
        for _ in range(50):
            pair = Held(turns.alone(("a", "b"))), Held(turns.alone(("b", "a")))
            await settled()
            for one in pair:
                await one.end()


async def test_who_gives_up_waiting_keeps_nothing() -> None:
    turns = Turns()
    first = Held(turns.alone(("b",)))
    await settled()
    waits = asyncio.create_task(turns.alone(("a", "b")).__aenter__())
    await settled()
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    await first.end()
    async with asyncio.timeout(10), turns.alone(("a", "b")):
        pass
