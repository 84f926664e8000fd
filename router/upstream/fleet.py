"""The live state of all that can answer: what serving and the door publish, what this router has in flight.

I/O without opinions: it polls, counts and takes snapshots; it does not decide. One task writes; readers get frozen
data.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import orjson

from router.records import Endpoint, Snapshot
from router.upstream.connection import Address, Connections, Deadlines, UpstreamError
from serving.catalogue import ABILITIES, Catalogue, Model

POLL_S = 1.0
POLL_WHILE_STARTING_S = 0.25
POLL_DEADLINES = Deadlines(connect_s=1.0, first_byte_s=2.0, idle_s=2.0, total_s=4.0)
DOOR_STALE_S = 5.0
"""Seconds after which a silent door counts as closed."""


@dataclass(frozen=True, slots=True)
class Door:
    """What the door last said of itself."""

    instance: str = ""
    policy: str = ""
    open: bool = False
    detail: str = "it has not answered yet"
    providers: tuple[tuple[str, str], ...] = ()
    """Provider name and why it cannot be used ("" where it can)."""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a local endpoint."""

    address: Address
    key_env: str = ""
    key_file: str = ""


class Fleet:
    """Polls serving and door; hands out snapshots."""

    def __init__(self, catalogue: Catalogue, connections: Connections, serving: Address, door: Address | None) -> None:
        self._catalogue, self._connections = catalogue, connections
        self._serving_address, self._door_address = serving, door
        self._local: tuple[Endpoint, ...] = ()
        self._access: dict[str, Access] = {}
        self._in_flight: dict[str, int] = {}
        self.models: dict[str, Model] = dict(catalogue.models)
        self.door = Door()
        self.instances: dict[str, Any] = {}
        """serving's last document, as it came."""
        self.heard = 0.0
        """When serving last answered; 0 is never."""

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.gather(self._ask_serving(), self._ask_door())
            starting = not self._local or any(e.state not in ("ready", "failed") for e in self._local)
            await asyncio.sleep(POLL_WHILE_STARTING_S if starting else POLL_S)

    def snapshot(self, spent: float = 0.0) -> Snapshot:
        """Everything as it is now, frozen. `spent`: US dollars of the caller's key this month."""
        now = time.time()
        endpoints = [replace(e, in_flight=self._in_flight.get(e.name, 0)) for e in self._local]
        endpoints += [self._hosted(m, now) for m in self._catalogue.hosted()]
        return Snapshot(
            at=now, today=dt.datetime.now(dt.UTC).date(), catalogue=self._catalogue, models=self.models,
            endpoints=tuple(endpoints), spent=spent,
        )  # fmt: skip

    def access(self, endpoint: str) -> Access:
        """How to reach a local endpoint. Raises KeyError for one that is gone."""
        return self._access[endpoint]

    @contextmanager
    def busy(self, endpoint: str) -> Iterator[None]:
        """Count one request at `endpoint` while inside."""
        self._in_flight[endpoint] = self._in_flight.get(endpoint, 0) + 1
        try:
            yield
        finally:
            self._in_flight[endpoint] -= 1

    def in_flight(self) -> int:
        return sum(self._in_flight.values())

    def state(self) -> dict[str, Any]:
        """Everything known, as data: for `headgate status` and the admin API."""
        return {
            "endpoints": [asdict(e) for e in self.snapshot().endpoints],
            "door": asdict(self.door) | {"providers": dict(self.door.providers)},
            "serving": self.instances,
            "serving_heard": self.heard,
            "in_flight": self.in_flight(),
        }

    def _hosted(self, model: Model, now: float) -> Endpoint:
        state, detail = "ready", ""
        if self._door_address is None or now - self.door.at > DOOR_STALE_S:
            state, detail = "closed", f"the door does not answer ({self.door.detail})"
        elif not self.door.open:
            state, detail = "closed", self.door.detail
        elif self.door.policy != self._catalogue.version:
            state, detail = "closed", "the door holds another version of the policy; restart both: headgate up"
        elif why := dict(self.door.providers).get(model.provider, "the door does not know this provider"):
            state, detail = "closed", why
        return Endpoint(
            name=model.name, model=model.name, address="door", state=state, detail=detail,
            in_flight=self._in_flight.get(model.name, 0), limit=model.limit,
        )  # fmt: skip

    async def _ask_serving(self) -> None:
        try:
            self._take_instances(await self._get(self._serving_address, "/instances"))
        except (UpstreamError, ValueError, KeyError, TypeError):
            # The engines outlive a supervisor that is restarting, so what was ready stays usable; an endpoint that is
            # gone too answers for itself when it is tried.
            return

    async def _ask_door(self) -> None:
        if self._door_address is None:
            return
        try:
            found = await self._get(self._door_address, "/door")
            providers = tuple(
                (str(n), "" if not p["reason"] else str(p["reason"])) for n, p in found["providers"].items()
            )
            self.door = Door(
                str(found["instance"]), str(found["policy"]), found["open"] is True, str(found["closed_because"]),
                providers, time.time(),
            )  # fmt: skip
        except (UpstreamError, ValueError, KeyError, TypeError) as failed:
            self.door = replace(self.door, detail=str(failed) or "unreadable answer")

    async def _get(self, address: Address, path: str) -> Any:
        response = await self._connections.get(address, path, deadlines=POLL_DEADLINES)
        try:
            body = await response.read()
        finally:
            response.close()
        # The door answers 503 with the same document while it is closed.
        return orjson.loads(body)

    def _take_instances(self, document: dict[str, Any]) -> None:
        if document["version"] != 1:
            raise ValueError("serving speaks another version")
        models, access, endpoints = dict(self._catalogue.models), {}, []
        for found in document["instances"]:
            name = found["model"] or found["name"]
            if name not in models:
                models[name] = unlisted(name, found["context"])
            endpoint = _endpoint(found, name)
            if models[name].place == "hosted":
                detail = f"{name} is the name of a hosted model; give the server another one with attach[].name"
                endpoint = replace(endpoint, state="failed", detail=detail)
            endpoints.append(endpoint)
            if found["address"]:
                address = Address.parse(found["address"], ca_file=found.get("ca_file") or "")
                access[found["name"]] = Access(address, found.get("key_env") or "", found.get("key_file") or "")
        self.models, self._access, self._local = models, access, tuple(endpoints)
        self.instances, self.heard = document, time.time()


def unlisted(name: str, context: int) -> Model:
    """The entry of a local model that no catalogue lists (the demo, an attached server): able until shown not to be."""
    context = context or 4096
    return Model(
        name=name, place="local", lanes=("private", "cheap"), context=context, output=min(1024, max(1, context // 4)),
        abilities=frozenset(ABILITIES),
    )  # fmt: skip


def _endpoint(found: dict[str, Any], model: str) -> Endpoint:
    load = found.get("load") or {}
    return Endpoint(
        name=found["name"], model=model, address=found["address"] or "", state=found["state"],
        detail=found.get("detail") or "", limit=found.get("limit") or 0, running=load.get("running"),
        waiting=load.get("waiting"), asleep=load.get("asleep"), attached=bool(found.get("attached")),
        context=found.get("context") or 0, served=found.get("served") or "",
    )  # fmt: skip
