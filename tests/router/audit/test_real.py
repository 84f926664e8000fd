"""A real router and a real door: what they wrote down agrees, whatever became of the requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

from router.audit.egress import Egress, audit
from router.audit.reconcile import Window
from router.door.witness import NAME
from tests.conftest import House, ask, until

SINCE = time.time() - 3600


def counted(house: House) -> Egress:
    home = house.home
    return audit(home.ledger, home.book, home.book.with_name(NAME), Window(SINCE, time.time()))


async def test_what_a_router_and_its_door_write_down_agrees(house: House) -> None:
    """Answered, refused here, kept here, refused by the provider, and given up in the middle."""
    await house.start(hosted=True)
    assert house.built is not None
    public, private = house.key("public"), house.key("private")
    replies = [await house.post(ask("big"), public) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert (await house.post(ask("big"), private)).status == 403
    assert (await house.post(ask("small"), private)).status == 200
    house.provider.script = {"status": 429, "body": json.dumps({"error": {"message": "slow down"}})}
    assert (await house.post(ask("big"), public)).status == 429
    await house.built.store.durable()
    book = house.home.book
    await until(lambda: book.read_bytes().count(b'"kind":"ended"') == 4)
    found = counted(house)
    assert [one.sentence for one in found.discrepancies.shown] == []
    assert (found.records.requests, found.requests, found.notes.kinds) == (6, 4, {})
    (group,) = found.sums
    bodies = [json.loads(line)["sent_bytes"] for line in book.read_bytes().splitlines() if b'"kind":"sending"' in line]
    assert (group.provider, group.model, group.data_class) == ("far", "big", "public")
    assert found.sums[group][:3] == [4, 4, sum(bodies)]
    assert found.kernel.samples and found.kernel.shared == found.kernel.samples, "the router has sockets there too"


async def test_what_is_under_way_is_no_discrepancy(house: House) -> None:
    await house.start(hosted=True)
    assert house.built is not None
    house.provider.script = {"delay_s": 30}
    waiting = asyncio.create_task(house.post(ask("big"), house.key("public")))
    book = house.home.book
    await until(lambda: b'"kind":"sending"' in book.read_bytes(), None)
    found = counted(house)
    assert found.balanced and found.requests == 1 and set(found.notes.kinds) == {"under_way"}
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await until(lambda: b'"kind":"ended"' in book.read_bytes())
    await house.built.store.durable()
    assert counted(house).balanced
