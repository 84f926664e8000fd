"""What is told of the router as it is now: metrics and state for the operator, and why it is not ready.

Worked out when somebody asks, and for no request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from router.decision.prediction import wait_s
from router.decision.saturation import overflows, saturation
from router.gate import Gate
from router.ledger.metrics import Live
from router.ledger.store import Store
from router.records import Endpoint
from router.upstream.fleet import Fleet
from router.upstream.room import Room
from router.watchdog import Watchdog
from serving import isolation
from serving.catalogue import Site


@dataclass(frozen=True, slots=True)
class Overview:
    """Those who know, asked together."""

    fleet: Fleet
    room: Room
    store: Store
    gate: Gate
    watchdog: Watchdog
    site: Site
    workers: int
    """How many the router should have."""

    def live(self) -> Live:
        """What the metrics show of now."""
        fleet, gate, queued = self.fleet, self.gate, self.room.queued()
        endpoints, leaves = fleet.snapshot().endpoints, fleet.door_open is not None
        near, allowed_s = _ready(endpoints), self.site.router.allowed_wait_s.least
        return Live(
            endpoints, fleet.gpus, self.room.waiting(), len(asyncio.all_tasks()), self.store.healthy, fleet.door_open,
            not gate.forgets if leaves else None, not gate.trouble if leaves else None, self.workers,
            queued["batch"], queued["teams"],
            saturations={e.name: saturation(e, allowed_s).value for e in near}, waits={e.name: wait_s(e) for e in near},
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What the operator is told; of isolation what the kernel says now, not what was asked of it at the start."""
        gate, asked = self.gate, self.site.isolate
        return self.fleet.state() | {
            "saturations": self._saturations(),
            "isolation": {"asked": asked, "way_out": isolation.way_out() if asked else ""},
            "history": {"trouble": gate.forgets},
            # Without a provider there is no scanner.
            "scanner": {"trouble": "" if self.fleet.door_open is None else gate.trouble},
        }

    def _saturations(self) -> dict[str, dict[str, Any]]:
        """How full each local endpoint is, why, and whether what may leave goes elsewhere; by the shortest wait that a
        lane allows, like `spilling`."""
        settings, told = self.site.router, {}
        for endpoint in _ready(self.fleet.snapshot().endpoints):
            found = saturation(endpoint, settings.allowed_wait_s.least)
            over = overflows(found, spilling=endpoint.spilling, back=settings.back_at)
            told[endpoint.name] = {**found._asdict(), "over": over}
        return told

    def unready(self) -> str:
        """Why no caller should be sent here now; empty where they may."""
        if stood := self.watchdog.trouble():
            return stood
        if self.store.full:
            return "the ledger takes no more records"
        if not any(e.state == "ready" or e.wakes for e in self.fleet.snapshot().endpoints):
            return "no model is ready"
        return ""


def _ready(endpoints: tuple[Endpoint, ...]) -> list[Endpoint]:
    """The local ones that answer now."""
    return [e for e in endpoints if e.address != "door" and e.state == "ready"]
