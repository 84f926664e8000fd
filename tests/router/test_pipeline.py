"""The life of a request: whoever sends a large one does not make all others wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from router import pipeline
from router.decision.limits import MOST_TOOLS
from router.scanner import reading
from tests.conftest import House, ask


async def test_a_large_body_is_looked_through_beside_the_loop(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 KB in many parts take 20 ms and more: no other caller's stream may stand still for that."""
    await house.start()
    key, read, check = house.key(), reading.read, pipeline.check
    where: list[tuple[str, bool]] = []

    def noted(what: str, does: Any) -> Any:
        def run(given: Any) -> Any:
            where.append((what, threading.current_thread() is threading.main_thread()))
            return does(given)

        return run

    monkeypatch.setattr(reading, "read", noted("read", read))
    monkeypatch.setattr(pipeline, "check", noted("check", check))
    assert (await house.post(ask("small"), key)).status == 200
    assert where == [("check", True), ("read", True)]
    where.clear()
    parts = [{"type": "text", "text": "a"}] * (pipeline.AT_ONCE // 20)
    large = ask("small") | {"messages": [{"role": "user", "content": parts}]}
    await house.post(large, key)
    assert where == [("check", False), ("read", False)]


async def test_what_asks_for_too_much_is_refused_beside_the_loop_as_well(house: House) -> None:
    await house.start()
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 1000, "parameters": {}}}
    refused = await house.post(ask("small", tools=[tool] * (MOST_TOOLS + 1)), house.key())
    assert (refused.status, refused.error["param"]) == (400, "tools")
    (event,) = await house.events(refused)
    assert event["kind"] == "refused", "it is accounted for"
