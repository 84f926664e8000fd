"""The live state of all that can answer: what serving and the door publish, what this router has in flight.

I/O without opinions: it polls, counts and takes snapshots; it does not decide. One task writes; readers get frozen
data.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import orjson
from pydantic import ValidationError

from router.records import Endpoint, Snapshot
from router.upstream.connection import Address, Connections, Deadlines, UpstreamError
from serving.catalogue import ABILITIES, Ability, Catalogue, Model

LOG = logging.getLogger("headgate.router")

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
        self._providers = _provider_places(catalogue)
        self._cleartext = _cleartext(catalogue)
        self._said: dict[str, str] = {}
        """What was last logged of each part that is asked."""
        self.models: dict[str, Model] = dict(catalogue.models)
        self.door = Door()
        self.instances: dict[str, Any] = {}
        """serving's last document, as it came."""
        self.heard = 0.0
        """When serving last answered; 0 is never."""

    async def run(self) -> None:
        """Poll until cancelled, whatever is answered."""
        while True:
            await asyncio.gather(self._ask_serving(), self._ask_door())
            starting = not self._local or any(e.state not in ("ready", "failed") for e in self._local)
            starting = starting or (self._door_address is not None and not self.door.at)
            await asyncio.sleep(POLL_WHILE_STARTING_S if starting else POLL_S)

    def snapshot(self, spent: float = 0.0) -> Snapshot:
        """Everything as it is now, frozen. `spent`: US dollars of the caller's key this month."""
        now = time.time()
        endpoints = [replace(e, in_flight=self._in_flight.get(e.name, 0)) for e in self._local]
        endpoints += [self._hosted(m, now) for m in self._catalogue.hosted()]
        return Snapshot(
            at=now, today=self.today(), catalogue=self._catalogue, models=self.models,
            endpoints=tuple(endpoints), spent=spent,
        )  # fmt: skip

    def today(self) -> dt.date:
        """The day that approvals are held against (UTC)."""
        return dt.datetime.now(dt.UTC).date()

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
            "door": asdict(self.door),
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
        elif why := self.door.providers.get(model.provider, "the door does not know this provider"):
            state, detail = "closed", why
        return Endpoint(
            name=model.name, model=model.name, address="door", state=state, detail=detail,
            in_flight=self._in_flight.get(model.name, 0), limit=model.limit,
        )  # fmt: skip

    async def _ask_serving(self) -> None:
        try:
            left_out = self._take_instances(await self._get(self._serving_address, "/instances"))
        except (UpstreamError, *ODD) as failed:
            # The engines outlive a supervisor that is restarting, so what was ready stays usable; an endpoint that is
            # gone too answers for itself when it is tried.
            self._say("serving", _why(failed))
        else:
            self._say("serving", f"{left_out} of its entries have no name of their own" if left_out else "")

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

    def _take_instances(self, document: Any) -> int:
        """Take serving's document, entry by entry; returns how many had to be left out. Raises one of ODD."""
        if not isinstance(document, dict) or document.get("version") != 1:
            raise ValueError("it speaks another version")
        if not isinstance(entries := document.get("instances"), list):
            raise ValueError("it gives no list of instances")
        models, access = dict(self._catalogue.models), {}
        endpoints: dict[str, Endpoint] = {}
        for found in entries:
            name = _name(found)
            if not name or name in endpoints:
                continue
            try:
                endpoints[name], reach = self._entry(found, name, models)
            except ODD as odd:
                models.setdefault(name, unlisted(name, 0))
                endpoints[name] = _failed(Endpoint(name, name, "", ""), f"serving's entry is wrong: {_why(odd)}")
                continue
            if reach is not None:
                access[name] = reach
        self.models, self._access, self._local = models, access, tuple(endpoints.values())
        self.instances, self.heard = document, time.time()
        return len(entries) - len(endpoints)

    def _entry(self, found: Any, name: str, models: dict[str, Model]) -> tuple[Endpoint, Access | None]:
        """One endpoint, and how to reach it where it may be reached; adds its model to `models`. Raises one of ODD."""
        model = _text(found, "model") or name
        endpoint = _endpoint(found, name, model)
        address = Address.parse(endpoint.address, ca_file=_text(found, "ca_file")) if endpoint.address else None
        reach = Access(address, _text(found, "key_env"), _text(found, "key_file")) if address else None
        if model not in models:
            models[model] = unlisted(model, endpoint.context, found.get("abilities"))
        if models[model].place == "hosted":
            detail = f"{model} is the name of a hosted model; give the server another one with attach[].name"
            return _failed(endpoint, detail), None
        if address is not None and (refused := self._refused(address)):
            return (endpoint if endpoint.state == "failed" else _failed(endpoint, refused)), None
        if reach is None and endpoint.state == "ready":
            return _failed(endpoint, "serving gives no address for it"), None
        return endpoint, reach

    def _refused(self, address: Address) -> str:
        """Why nothing may be sent there as to a local model, or "".

        Serving asks the same before it attaches a server. Asked here again on its own, so that one mistake is not
        enough for private data to leave.
        """
        if address.scheme == "unix":
            return ""
        host, literal = address.host, _literal(address.host)
        if _place(host, address.port) in self._providers:
            return f"{host} is a hosted provider of the catalogue and no server of this site"
        if literal is not None and literal.is_global:
            return f"{host} is a public address and no server of this site"
        if address.scheme == "https" and not address.ca_file:
            return f"https:// to {host} without the authority that signs it; set its attach[].ca_file"
        if address.scheme == "http" and not _loopback(host) and str(address) not in self._cleartext:
            return f"http:// to {host} is in clear text; set its attach[].allow_cleartext, or use https://"
        return ""


def unlisted(name: str, context: int, abilities: list[Ability] | None = None) -> Model:
    """The entry of a local model that no catalogue lists (the demo, an attached server): able until shown not to be."""
    context = context or 4096
    return Model(
        name=name, place="local", lanes=("private", "cheap"), context=context, output=min(1024, max(1, context // 4)),
        abilities=frozenset(ABILITIES if abilities is None else abilities),
    )  # fmt: skip


def _endpoint(found: dict[str, Any], name: str, model: str) -> Endpoint:
    load = found.get("load") or {}
    asleep = load.get("asleep")
    return Endpoint(
        name=name, model=model, address=_text(found, "address"), state=_text(found, "state") or "unknown",
        detail=_text(found, "detail"), limit=_count(found, "limit") or 0, running=_count(load, "running"),
        waiting=_count(load, "waiting"), asleep=None if asleep is None else bool(asleep),
        attached=bool(found.get("attached")), context=_count(found, "context") or 0, served=_text(found, "served"),
    )  # fmt: skip


def _failed(endpoint: Endpoint, detail: str) -> Endpoint:
    return replace(endpoint, state="failed", detail=detail)


def _name(found: Any) -> str:
    """The name of serving's entry where it is one that a person can use, else ""."""
    name = found.get("name") if isinstance(found, dict) else None
    try:
        return unlisted(name, 0).name if isinstance(name, str) else ""
    except ValidationError:
        return ""


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {key} is no text")
    return value or ""


def _count(found: dict[str, Any], key: str) -> int | None:
    value = found.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"its {key} is no count")
    return value


def _why(failed: Exception) -> str:
    """One line; of a record's own mistake, what is wrong with it and not what it held."""
    if isinstance(failed, ValidationError):
        return str(failed.errors()[0]["msg"])
    if isinstance(failed, KeyError):
        return f"{failed} is missing"
    return (str(failed).splitlines() or [""])[0][:200] or "unreadable answer"


def _provider_places(catalogue: Catalogue) -> frozenset[str]:
    found = set()
    for provider in catalogue.providers.values():
        with suppress(ValueError):
            parts = urlsplit(provider.base_url)
            if parts.hostname:
                found.add(_place(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)))
    return frozenset(found)


def _cleartext(catalogue: Catalogue) -> frozenset[str]:
    """The addresses that the site itself allows in clear text, as serving publishes them: without a final /v1."""
    found = set()
    for given in catalogue.site.attach:
        if given.allow_cleartext and given.url.startswith("http:"):
            with suppress(ValueError):
                found.add(str(Address.parse(given.url.rstrip("/").removesuffix("/v1"))))
    return frozenset(found)


def _place(host: str, port: int) -> str:
    """A host as one text however it is written; on loopback the port tells servers apart."""
    if _loopback(host):
        return f"loopback:{port}"
    return str(_literal(host) or host.lower().rstrip("."))


def _loopback(host: str) -> bool:
    literal = _literal(host)
    return host == "localhost" if literal is None else literal.is_loopback


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is in any form that a connection would take; None for a name."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    inside = found.ipv4_mapped or found.sixtofour if isinstance(found, ipaddress.IPv6Address) else None
    return inside or found
