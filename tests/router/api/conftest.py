"""Callers' connections are tested on the event loop that the program runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.lookout import new_event_loop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops a test runs on, by name."""
    own = {"uvloop": new_event_loop}
    return own if item.path.name == "test_protocol.py" else {"asyncio": asyncio.new_event_loop}
