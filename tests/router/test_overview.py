"""What the operator is told of the router as it is now."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.conftest import House, ask, instance, until


async def told(house: House) -> tuple[dict[str, Any], dict[str, float]]:
    """How full each endpoint is by the state, and the gauges of it by the metrics."""
    connector = aiohttp.UnixConnector(str(house.home.socket("admin")))
    async with aiohttp.ClientSession("http://admin", connector=connector) as operator:
        state = await (await operator.get("/status")).json()
        page = await (await operator.get("/metrics")).text()
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
    gauges = {name: float(value) for name, value in lines if name.startswith("headgate_endpoint_")}
    return state["saturations"], gauges


async def test_how_full_an_endpoint_is_is_told_by_what_it_has_now(house: House) -> None:
    """By state and metrics alike; of one that does not answer, nothing."""
    house.instances[:] = [instance("small", house.local.address, limit=2), instance("off", "", state="failed")]
    await house.start(router={"back_at": 0.5})
    key, where = house.key(), '{endpoint="small",model="small"}'
    saturation, wait = f"headgate_endpoint_saturation{where}", f"headgate_endpoint_wait_seconds{where}"
    seen, gauges = await told(house)
    assert seen == {"small": {"value": 0.0, "why": "it is idle", "over": False}}
    assert (gauges[saturation], gauges[wait]) == (0.0, 0.0) and saturation.replace("small", "off") not in gauges
    house.local.script = {"gate": True}
    open_ones = []
    for taken, over in ((1, False), (2, True)):
        open_ones.append(asyncio.create_task(house.post(ask("small"), key)))
        await until(lambda: len(house.local.requests) == len(open_ones))
        seen, gauges = await told(house)
        assert seen["small"] == {"value": taken / 2, "why": f"{taken} of 2 places taken", "over": over}
        assert gauges[saturation] == taken / 2 and wait not in gauges, "nobody can say yet how fast it reads"
    house.local.gate.set()
    await asyncio.gather(*open_ones)
    assert (await told(house))[0]["small"]["value"] == 0.0


async def test_one_that_overflowed_lately_does_so_until_it_is_well_below(house: House) -> None:
    house.instances[0]["limit"] = 2
    await house.start(router={"back_at": 0.5})
    assert house.built is not None
    house.built.fleet.spill((("small", True),))
    house.local.script = {"gate": True}
    one = asyncio.create_task(house.post(ask("small"), house.key()))
    await until(lambda: len(house.local.requests) == 1)
    assert (await told(house))[0]["small"]["over"], "half full, and below half it would be over"
    house.local.gate.set()
    await one
    assert not (await told(house))[0]["small"]["over"]
