"""A loop that stands still is told of, with the place and without what it works on."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from router.watchdog import Watchdog


async def test_what_it_works_on_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    def works(text: str) -> None:
        time.sleep(0.6 if text else 0)

    with Watchdog(limit_s=0.2).watching():
        await asyncio.sleep(0.05)
        with caplog.at_level(logging.ERROR, "headgate.router"):
            works("the river turns back")
    (told,) = [one.getMessage() for one in caplog.records]
    assert "works (test_watchdog.py:" in told and "river" not in told


async def test_a_loop_that_turns_is_well() -> None:
    dog = Watchdog(limit_s=2.0)
    with dog.watching():
        for _ in range(5):
            await asyncio.sleep(0.02)
        assert dog.trouble() == ""


async def test_it_is_told_for_a_while_and_not_for_ever() -> None:
    dog = Watchdog(limit_s=0.1, told_s=0.4)
    with dog.watching():
        time.sleep(0.4)
        assert "stood still" in dog.trouble()
        end = time.monotonic() + 10
        while dog.trouble():
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
