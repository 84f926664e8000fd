"""The live state of all that can answer: what serving and the door publish, and what `room.py` counts.

I/O without opinions: it polls and takes snapshots; it does not decide. One task writes; readers get frozen data.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import orjson

from router.records import Candidate, Chain, Endpoint, Gpu, Pace, Snapshot
from router.upstream import instances
from router.upstream.connection import Address, Connections, Deadlines, UpstreamError
from router.upstream.demand import Demand, sleeper
from router.upstream.health import Health
from router.upstream.inside import Inside
from router.upstream.instances import STALE_S, Instances, slowed
from router.upstream.instances import Access as Access
from router.upstream.pace import Paces
from router.upstream.prefixes import Prefixes
from router.upstream.room import Room
from serving.catalogue import LANES, Catalogue, Model, Price

LOG = logging.getLogger("headgate.router")

DAY_S = 86400
POLL_S = 1.0
POLL_OFTEN_S = 0.25
"""While something starts, or an engine is between half full and full."""
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
        health: Health | None = None, clock: Callable[[], float] = time.time, paces: Paces | None = None,
    ) -> None:  # fmt: skip
        """`rate` gives the internal rate of a local model that no catalogue lists, `share` this worker's of a limit.

        `clock`: the time that approvals are held against, which never goes back.
        """
        self._clock = clock
        self._catalogue, self._connections, self._room, self._rate = catalogue, connections, room, rate
        self._share, self._health, self.paces = share, health or Health(), paces or Paces()
        self._spilling: set[str] = set()
        """Endpoints that were saturated when they were last looked at."""
        self.prefixes = Prefixes()
        self._replicated: frozenset[str] = frozenset()
        """Local models of which there is more than one endpoint."""
        self._serving_address, self._door_address = serving, door
        self.demand = Demand(connections, serving)
        """What requests wait for that sleeps."""
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
        """Poll both until cancelled, whatever is answered; each alone, for serving relies on being heard in time."""
        await asyncio.gather(self._follow_serving(), self._follow_door())

    async def _follow_serving(self) -> None:
        while True:
            await self._ask_serving()
            local = self._known.endpoints
            starting = not local or any(e.state not in ("ready", "failed", "asleep") for e in local)
            # serving reads an engine that fills up more often, which is of use only where that is heard of.
            often = starting or any(instances.filling(e, self._room.in_flight(e.name)) for e in local)
            await asyncio.sleep(min(POLL_OFTEN_S, POLL_S) if often else POLL_S)

    async def _follow_door(self) -> None:
        while self._door_address is not None:
            await self._ask_door()
            await asyncio.sleep(POLL_S if self.door.at else min(POLL_OFTEN_S, POLL_S))

    def snapshot(self, spent: float = 0.0, chain: Chain | None = None, *, look: bool = True) -> Snapshot:
        """Everything as it is now, frozen. `spent`: US dollars of the caller's key this month. `chain`: how the prompt
        begins, so that it is said which endpoint has read how much of it; None where that is of no use. `look`: say
        what was learned of local endpoints also where no decision depends on it."""
        now, moment = time.time(), time.monotonic()
        # Old readings would tell of a load that is long gone; the engines themselves may well go on.
        read = self._known.endpoints if now - self.heard <= STALE_S else map(instances.unread, self._known.endpoints)
        if look or self._replicated or self._far:
            endpoints = [e.now(*self._live(e.name, e.limit), *self._learned(e, moment)) for e in read]
        else:
            endpoints = [e.now(*self._live(e.name, e.limit)) for e in read]
        if chain is not None:
            cached = self.prefixes.cached
            endpoints = [e._replace(cached=much) if (much := cached(e.name, chain)) else e for e in endpoints]
        endpoints += [self._hosted(m, now) for m in self._far]
        return Snapshot(
            at=now, today=self.today(), catalogue=self._catalogue, models=self.models,
            endpoints=tuple(endpoints), spent=spent, draw=random.random(), chain=chain,  # noqa: S311, it spreads load
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

    def _learned(self, endpoint: Endpoint, now: float) -> tuple[Pace | None, int, int, bool]:
        """What its own requests have shown of a local endpoint, as `Endpoint.now` takes it."""
        there = self.paces.known(endpoint.name)
        if there is None:
            return None, 0, 0, False
        pace, others = there.pace(now, self._room.drained(endpoint.name)), 0 if endpoint.stale else there.others
        return pace, there.unstarted(now), others, endpoint.name in self._spilling

    def spill(self, changed: Iterable[tuple[str, bool]]) -> None:
        """Note which endpoints a decision has found saturated, and which no longer."""
        for name, spills in changed:
            if spills:
                self._spilling.add(name)
            else:
                self._spilling.discard(name)

    def compares(self, model: str, substitute: bool) -> bool:
        """Whether it matters to a request for this model, lane or `auto` what endpoints have read of its prompt: there
        are replicas to choose among, or it may go elsewhere by what is expected here."""
        if substitute or model == "auto" or model in LANES:
            return bool(self._replicated or (self._far and self._known.endpoints))
        return model in self._replicated

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

    def ready_in_s(self, endpoints: Iterable[str]) -> float | None:
        """Seconds until the first of these that sleep is likely to answer, as last heard; None is unknown."""
        wanted = frozenset(endpoints)
        known = [e.ready_in_s for e in self._known.endpoints if e.name in wanted and e.wakes]
        return min((seconds for seconds in known if seconds is not None), default=None)

    def sleeper(self, waited: Sequence[Candidate]) -> str | None:
        """The model that a request wakes which waits for one of these, as they are by now."""
        if not any(e.wakes for e in self._known.endpoints):
            return None
        now = {e.name: e for e in self._known.endpoints}
        return sleeper([c._replace(endpoint=now.get(c.endpoint.name, c.endpoint)) for c in waited])

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
            "queue": self._room.queued(),
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
        limits = {name: self._health.limit(name, limit, now) for name, limit in limits.items()}
        for name, limit in limits.items():
            if limit and self._health.on_trial(name, now):
                limits[name] = min(limit, self._room.in_flight(name) + 1)
        return limits

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
                self.paces.restarted(endpoint.name)
        self.paces.only([e.name for e in known.endpoints])
        self.prefixes.heard(known.endpoints)
        count = Counter([e.model for e in known.endpoints])
        self._replicated = frozenset([model for model, number in count.items() if number > 1])
        self._spilling.intersection_update([e.name for e in known.endpoints])
        self._hold_against_ours(document, known.endpoints)
        self._known = replace(
            known, endpoints=tuple([self._shared(e, slowed(e.limit, e.gpus)) for e in known.endpoints])
        )  # fmt: skip
        self.instances, self.heard = document, time.time()
        return self._known.left_out

    def _shared(self, endpoint: Endpoint, places: int) -> Endpoint:
        """With the places it has in all, and this worker's share of them."""
        return endpoint._replace(limit=self._share(places), places=places)

    def _hold_against_ours(self, document: Any, endpoints: Iterable[Endpoint]) -> None:
        """What an engine says it has, and this router has not sent, is others'."""
        now = time.monotonic()
        listed = [found for found in document["instances"] if isinstance(found, dict)]
        entries = {found["name"]: found.get("load") for found in listed if isinstance(found.get("name"), str)}
        for endpoint in endpoints:
            there, load = self.paces.there(endpoint.name, endpoint.model), entries.get(endpoint.name)
            if endpoint.running is None or not isinstance(load, dict):
                there.read(None, 0, now)
                continue
            age = load.get("age_s")
            age = age if isinstance(age, int | float) and 0 <= age <= STALE_S else 0.0
            there.read(endpoint.running, endpoint.waiting or 0, now - age)


@lru_cache(maxsize=2)
def _day(number: int) -> dt.date:
    """A day (UTC) by its number since 1970 began."""
    return dt.date(1970, 1, 1) + dt.timedelta(days=number)


def _why(failed: Exception) -> str:
    """One line."""
    if isinstance(failed, KeyError):
        return f"{failed} is missing"
    return (str(failed).splitlines() or [""])[0][:200] or "unreadable answer"
