"""The live state of all that can answer: what serving and the door publish, and what `room.py` counts.

I/O without opinions: it polls and takes snapshots; it does not decide. One task writes; readers get frozen data.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from router.records import Endpoint, Gpu, Snapshot
from router.upstream import instances
from router.upstream.connection import Address, Connections, Deadlines, UpstreamError
from router.upstream.health import Health
from router.upstream.inside import Inside
from router.upstream.instances import STALE_S, Instances
from router.upstream.instances import Access as Access
from router.upstream.room import Room
from serving.catalogue import Catalogue, Model, Price

LOG = logging.getLogger("headgate.router")

DAY_S = 86400
POLL_S = 1.0
POLL_WHILE_STARTING_S = 0.25
POLL_DEADLINES = Deadlines(connect_s=1.0, first_byte_s=2.0, idle_s=2.0, total_s=4.0)
DOOR_STALE_S = 5.0
"""Seconds after which a silent door counts as closed."""
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError)
"""What reading a document of any other shape than the agreed one can raise."""


@dataclass(frozen=True, slots=True)
class Door:
    """What the door last said of itself."""

    instance: str = ""
    policy: str = ""
    open: bool = False
    detail: str = "it has not answered yet"
    providers: Mapping[str, str] = field(default_factory=dict)
    """By name, why a provider cannot be used; "" where it can."""
    at: float = 0.0


class Fleet:
    """Polls serving and door; hands out snapshots."""

    def __init__(
        self, catalogue: Catalogue, connections: Connections, serving: Address, door: Address | None, room: Room,
        rate: Callable[[str], Price | None] = lambda _: None, share: Callable[[int], int] = lambda limit: limit,
        health: Health | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`rate` gives the internal rate of a local model that no catalogue lists, `share` this worker's of a limit.

        `clock`: the time that approvals are held against, which never goes back.
        """
        self._clock = clock
        self._catalogue, self._connections, self._room, self._rate = catalogue, connections, room, rate
        self._share, self._health = share, health or Health()
        self._serving_address, self._door_address = serving, door
        self._inside = Inside(catalogue)
        self._far = catalogue.hosted()
        """The hosted models, whose providers are enabled."""
        self._known = Instances(dict(catalogue.models))
        self._said: dict[str, str] = {}
        """What was last logged of each part that is asked."""
        self.door = Door()
        self.instances: dict[str, Any] = {}
        """serving's last document, as it came."""
        self.heard = 0.0
        """When serving last answered; 0 is never."""

    async def run(self) -> None:
        """Poll until cancelled, whatever is answered."""
        while True:
            await asyncio.gather(self._ask_serving(), self._ask_door())
            local = self._known.endpoints
            starting = not local or any(e.state not in ("ready", "failed") for e in local)
            starting = starting or (self._door_address is not None and not self.door.at)
            await asyncio.sleep(POLL_WHILE_STARTING_S if starting else POLL_S)

    def snapshot(self, spent: float = 0.0) -> Snapshot:
        """Everything as it is now, frozen. `spent`: US dollars of the caller's key this month."""
        now = time.time()
        # Old readings would tell of a load that is long gone; the engines themselves may well go on.
        read = self._known.endpoints if now - self.heard <= STALE_S else map(instances.unread, self._known.endpoints)
        endpoints = [e.now(*self._live(e.name, e.limit)) for e in read]
        endpoints += [self._hosted(m, now) for m in self._far]
        return Snapshot(
            at=now, today=self.today(), catalogue=self._catalogue, models=self.models,
            endpoints=tuple(endpoints), spent=spent, draw=random.random(),  # noqa: S311, it spreads load
        )  # fmt: skip

    def _live(self, name: str, limit: int) -> tuple[int, int, bool, int, str, bool, float]:
        """What this router itself knows of an endpoint now, as `Endpoint.now` takes it."""
        room, health = self._room, self._health
        in_flight, full, outstanding = room.in_flight(name), room.is_told_full(name), room.outstanding(name)
        if health.well(name):  # nearly always
            return in_flight, limit, full, outstanding, "", False, 1.0
        now = time.monotonic()
        resting, failing, share = health.resting(name, now), health.failing(name, now), health.share(name, now)
        return in_flight, health.limit(name, limit, now), full, outstanding, resting, failing, share

    @property
    def models(self) -> Mapping[str, Model]:
        """The catalogue's models and those that only serving knows, by name."""
        return self._known.models

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs as they were last read; none where that is too long ago."""
        return self._known.gpus if time.time() - self.heard <= STALE_S else ()

    @property
    def door_open(self) -> bool | None:
        """Whether the door lets anything out; None where no provider is enabled, so that there is no door."""
        if self._door_address is None:
            return None
        return self.door.open and time.time() - self.door.at <= DOOR_STALE_S

    def today(self) -> dt.date:
        """The day that approvals are held against (UTC)."""
        return _day(int(self._clock() // DAY_S))

    def access(self, endpoint: str) -> Access:
        """How to reach a local endpoint. Raises KeyError for one that is gone."""
        return self._known.access[endpoint]

    def state(self) -> dict[str, Any]:
        """Everything known, as data: for `headgate status` and the admin API."""
        return {
            "endpoints": [{**e._asdict(), "gpus": [asdict(g) for g in e.gpus]} for e in self.snapshot().endpoints],
            "door": asdict(self.door),
            "serving": self.instances,
            "serving_heard": self.heard,
            "in_flight": self._room.total(),
            "waiting": self._room.waiting(),
        }

    def _hosted(self, model: Model, now: float) -> Endpoint:
        state, detail = "ready", ""
        if self._door_address is None or now - self.door.at > DOOR_STALE_S:
            state, detail = "closed", f"the door does not answer ({self.door.detail})"
        elif not self.door.open:
            state, detail = "closed", self.door.detail
        elif self.door.policy != self._catalogue.version:
            state, detail = "closed", "the door holds another version of the policy; restart both: headgate up"
        elif why := self.door.providers.get(model.provider, "the door does not know this provider"):
            state, detail = "closed", why
        return Endpoint(
            model.name, model.name, "door", state, detail, *self._live(model.name, self._share(model.limit))
        )  # fmt: skip

    def _limits(self) -> dict[str, int]:
        """How many requests each endpoint takes at once that could take one now, by name; 0 is no limit."""
        limits = {m.name: self._share(m.limit) for m in self._far}
        limits |= {e.name: e.limit for e in self._known.endpoints if e.state == "ready" and not e.asleep}
        now = time.monotonic()
        return {name: self._health.limit(name, limit, now) for name, limit in limits.items()}

    async def _ask_serving(self) -> None:
        try:
            left_out = self._take(await self._get(self._serving_address, "/instances"))
        except (UpstreamError, *ODD) as failed:
            # The engines outlive a supervisor that is restarting, so what was ready stays usable; an endpoint that is
            # gone too answers for itself when it is tried.
            self._say("serving", _why(failed))
        else:
            self._say("serving", f"{left_out} of its entries have no name of their own" if left_out else "")
        # Here and not once the door has answered too: a slow door must not keep those who wait for local room.
        self._room.refresh(self._limits())

    async def _ask_door(self) -> None:
        if self._door_address is None:
            return
        try:
            found = await self._get(self._door_address, "/door")
            providers = {str(n): "" if not p["reason"] else str(p["reason"]) for n, p in found["providers"].items()}
            self.door = Door(
                str(found["instance"]), str(found["policy"]), found["open"] is True, str(found["closed_because"]),
                providers, time.time(),
            )  # fmt: skip
        except (UpstreamError, *ODD) as failed:
            self.door = replace(self.door, detail=_why(failed))
            self._say("door", self.door.detail)
        else:
            self._say("door", "")

    def _say(self, part: str, trouble: str) -> None:
        """Log what is wrong with a part, once for each change."""
        if trouble == self._said.get(part, ""):
            return
        self._said[part] = trouble
        if trouble:
            LOG.warning("%s: %s", part, trouble)
        else:
            LOG.info("%s answers again", part)

    async def _get(self, address: Address, path: str) -> Any:
        response = await self._connections.get(address, path, deadlines=POLL_DEADLINES)
        try:
            body = await response.read()
        finally:
            response.close()
        # The door answers 503 with the same document while it is closed.
        return orjson.loads(body)

    def _take(self, document: Any) -> int:
        """Take serving's document; returns how many entries had to be left out. Raises ValueError where it is none."""
        before = {e.name: e.state for e in self._known.endpoints}
        known = instances.read(document, self._catalogue, self._inside, self._rate)
        self._health.only([*(e.name for e in known.endpoints), *(m.name for m in self._far)])
        for endpoint in known.endpoints:
            if endpoint.state == "ready" != before.get(endpoint.name, "ready"):
                self._health.restarted(endpoint.name, time.monotonic())
        self._known = replace(
            known, endpoints=tuple(e._replace(limit=self._share(e.limit)) for e in known.endpoints)
        )  # fmt: skip
        self.instances, self.heard = document, time.time()
        return self._known.left_out


@lru_cache(maxsize=2)
def _day(number: int) -> dt.date:
    """A day (UTC) by its number since 1970 began."""
    return dt.date(1970, 1, 1) + dt.timedelta(days=number)


def _why(failed: Exception) -> str:
    """One line."""
    if isinstance(failed, KeyError):
        return f"{failed} is missing"
    return (str(failed).splitlines() or [""])[0][:200] or "unreadable answer"
