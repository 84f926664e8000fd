"""The door's own reckoning: what the router got wrong, in code both could share, still does not leave."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from router.door import policy
from serving.catalogue import DataClass, Model
from serving.home import Home
from tests.conftest import ROOT, House, ask
from tests.fakes.faults import Upstream

BROKEN_DOOR = """
import sys
from serving import catalogue
catalogue.Model.cleared_for = lambda self, today: catalogue.DataClass.secret
assert catalogue.Model.cleared_for(None, None) is catalogue.DataClass.secret
from router.door.__main__ import main
sys.exit(main())
"""


class Broken(House):
    """Its door, too, runs with a `cleared_for` that clears everything."""

    async def _start_door(self, config: Path) -> None:
        environment = {**os.environ, "HEADGATE_HOME": str(self.home.root), "PYTHONPATH": str(ROOT), "FAR_KEY": "k" * 20}
        self.door = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BROKEN_DOOR, "--config", str(config), env=environment
        )
        self._stack.push_async_callback(self.door.wait)
        self._stack.callback(self.door.terminate)


async def test_a_broken_cleared_for_in_router_and_door_lets_nothing_out(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "cleared_for", lambda self, today: DataClass.secret)
    async with Upstream() as local, Upstream() as provider:
        house = Broken(home, local, provider)
        try:
            await house.start(hosted=True)
            for data_class in ("internal", "private", "secret"):
                reply = await house.post(ask("big"), house.key(data_class))
                assert (reply.status, reply.error["code"]) == (403, "data_class_not_cleared")
                assert "The door refused it" in reply.error["message"]  # so the router had let it through
                assert provider.accepted == 0
            assert (await house.post(ask("big"), house.key("public"))).status == 200
        finally:
            await house.close()


APPROVED = {"by": "security", "contract": "c1", "until": dt.date(2030, 1, 31)}
LAST, AFTER = dt.date(2030, 1, 31), dt.date(2030, 2, 1)


@pytest.mark.parametrize(
    ("changed", "today", "highest"),
    [
        ({}, LAST, "private"),
        ({"clearance": DataClass.internal}, LAST, "internal"),
        ({}, AFTER, "public"),
        ({"approved": None}, LAST, "public"),
        ({"clearance": None}, LAST, "public"),
        ({"clearance": DataClass.secret}, LAST, "public"),
        ({"place": "local"}, LAST, "public"),
        ({"place": "elsewhere"}, LAST, "public"),
    ],
)
def test_the_clearance_is_public_unless_all_of_it_says_more(changed: dict[str, Any], today: Any, highest: str) -> None:
    good = Model(
        name="big", place="hosted", lanes=("frontier",), context=10, output=5, provider="far", provider_model="big-1",
        clearance=DataClass.private, approved=APPROVED,
    )  # fmt: skip
    assert policy.clearance(good.model_copy(update=changed), today) == highest


def test_the_doors_order_of_classes_is_the_catalogues() -> None:
    assert {member.name: member.value for member in DataClass} == policy.RANKS
