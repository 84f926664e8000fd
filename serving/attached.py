"""A vLLM server that already runs and was attached by its URL: looked at every few seconds, never signalled.

Knows its address, what it serves and its load.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from math import inf
from pathlib import Path

from serving import probe
from serving.catalogue import OWN_NETWORKS, RESERVED_NAMES, Attached, Provider
from serving.endpoint import Timing, View, Watch
from serving.instance import State
from serving.life import Life
from serving.probe import ProbeError, ServedModel, Target, TooLate

_PORTS = {"http": 80, "https": 443}


class AttachedServer:
    """One attached server and its state."""

    def __init__(
        self, attached: Attached, timing: Timing, inherited: Mapping[str, str], providers: frozenset[str],
        inside: Sequence[str] = OWN_NETWORKS,
    ) -> None:  # fmt: skip
        self._attached = attached
        self._timing = timing
        self._inherited = inherited
        self._providers, self._inside = providers, inside
        self._address = _bare(probe.address(attached.url))
        where = self._address.partition("://")[2].partition("/")[0] or self._address
        self.called = attached.name or caller_name(where)
        """By what it is known while it has not said what it serves."""
        self._served: list[ServedModel] = []
        # Asked for a token only where it stands still: it is not ours to look after, nor to end.
        self._watch = Watch(Target(self._address), replace(timing, idle_s=inf, frozen_s=inf, stall_s=inf))
        self._life: Life | None = None
        """Where it answers and its load can be read."""
        self.looked = asyncio.Event()
        """Set once it is known, as far as it can be: what it serves, or why that cannot be said."""
        self._late = False
        """Whether it gave no answer in time to the last look."""
        self._state: State = "waiting"
        self._detail = ""
        self._since = time.time()

    async def run(self) -> None:
        """Look at it for ever, one look after the other; each is bounded in time."""
        if refused := refusal(self._attached, self._providers, self._inside):
            self._set("failed", refused)
            self.looked.set()
            return
        looked_at = -self._timing.attached_s
        try:
            while True:
                if self._late or not self._answers() or time.monotonic() - looked_at >= self._timing.attached_s:
                    await self._look()
                    self.looked.set()
                    looked_at = time.monotonic()
                if self._life is not None:
                    await self._watch.read()
                    self._judge(self._life)
                pause = self._watch.pause_s(self._attached.limit) if self._answers() else self._timing.attached_s
                await asyncio.sleep(pause)
        finally:
            if self._life is not None:
                self._life.end()

    def broke(self, where: str) -> None:
        """Its task ended by a mistake of ours; until it runs again nobody sends there."""
        self._gone("failed", where)
        self.looked.set()

    def views(self) -> list[View]:
        """One for each model it serves; one that names the address while it has not yet said what it serves."""
        name = self._attached.name
        if not self._served:
            return [self._view(self.called, name or "", "", 0)]
        # A name given stands for the first model; LoRA adapters beside it keep their own.
        called = [caller_name(served.name) for served in self._served]
        called[0] = name or called[0]
        return [
            self._view(call, call, served.name, served.context)
            for call, served in zip(called, self._served, strict=True)
        ]

    def _view(self, name: str, model: str, served: str, context: int) -> View:
        given = self._attached
        return View(
            name=name,
            model=model,
            served=served,
            state=self._state,
            detail=self._detail,
            since=self._since,
            address=self._address,
            attached=True,
            context=context,
            limit=given.limit,
            metrics=given.metrics,
            key_env=given.key_env,
            key_file=given.key_file,
            ca_file=given.ca_file,
            load=self._watch.load,
            load_age_s=self._watch.age_s(),
            preempted_s=self._watch.preempted_s(),
        )

    def _answers(self) -> bool:
        """Whether it says what it serves; one whose engine stands still does that too."""
        return self._state in ("ready", "stalled")

    async def _look(self) -> None:
        """Ask what it serves."""
        try:
            if missing := self._missing():
                self._gone("failed", missing)
                return
            self._watch.target = target = Target(self._address, self._key(), self._attached.ca_file, self._inside)
            served = await probe.models(target)
        except TooLate as failed:
            # Once proves nothing: it may be reading a very large request.
            if self._late or not self._answers():
                self._gone("unreachable", str(failed))
            self._late = True
        except ProbeError as failed:
            self._refused(failed)
        except OSError as broken:
            where = self._attached.key_file or self._attached.key_env
            self._gone("failed", f"its key cannot be read: {broken.strerror or broken} ({where})")
        else:
            if served:
                self._found(served)
            else:
                self._gone("unreachable", "it answers and serves no model")

    def _found(self, served: list[ServedModel]) -> None:
        """It answers. Where it did not before, or serves another model by now, nothing of before counts."""
        self._late, before, self._served = False, self._served, served
        if self._answers() and before[0].name == served[0].name:
            return
        self._gone("ready", "")
        self._watch.moved_at = time.monotonic()
        if self._attached.metrics == "vllm":
            self._life = Life(self._watch, served[0].name, None, (), on_cpu=False)

    def _judge(self, life: Life) -> None:
        """Whether its engine stands still: pages that are answered say nothing of that."""
        if self._watch.load is not None:
            life.look()
            self._set("stalled" if life.stall else "ready", life.stall)

    def _gone(self, state: State, detail: str) -> None:
        """It is not, or no longer, what it was: what is known of its engine is forgotten."""
        if self._life is not None:
            self._life.end()
        self._life = None
        self._set(state, detail)

    def _refused(self, failed: ProbeError) -> None:
        if failed.status in (401, 403):
            where = self._attached.key_file or self._attached.key_env
            mend = f"check the key in {where}" if where else "name its key with `key_env` or `key_file`"
            self._gone("wrong key", f"{failed}; {mend}")
        else:
            self._gone("unreachable", str(failed))

    def _missing(self) -> str:
        """What the configuration names and is not there, or "". Looked at each time: a file may come later."""
        given = self._attached
        if given.ca_file:
            try:
                ssl.create_default_context(cafile=given.ca_file)
            except FileNotFoundError:
                return f"ca_file {given.ca_file} does not exist"
            except OSError as broken:  # no certificate in it is an OSError too
                return f"ca_file {given.ca_file} cannot be used: {broken.strerror}"
        if given.key_env and not given.key_file and not self._key():
            return f"{given.key_env} is not set where Headgate was started"
        return ""

    def _key(self) -> str:
        """Read anew each time, so that a changed key file counts at once. Raises OSError."""
        given = self._attached
        try:
            if given.key_file:
                key = Path(given.key_file).expanduser().read_text().strip()
            else:
                key = self._inherited.get(given.key_env, "").strip() if given.key_env else ""
        except (ValueError, RuntimeError):  # no UTF-8, or the home of somebody who does not exist
            raise OSError("it is no text, or not there") from None
        # As the router has it, which could not send another either.
        if key and not (key.isascii() and key.isprintable()):
            raise OSError("a key is one line of plain characters")
        return key

    def _set(self, state: State, detail: str) -> None:
        if state != self._state:
            self._since = time.time()
        self._state, self._detail = state, detail


def caller_name(served: str) -> str:
    """A name callers can use for what a server calls its model, which may be a path or hold any character."""
    cleaned = re.sub(r"[^A-Za-z0-9._:/@-]+", "-", served).lstrip("._:/@-")[:120] or "model"
    return f"{cleaned}-model" if cleaned in RESERVED_NAMES else cleaned


def provider_hosts(providers: Iterable[Provider]) -> frozenset[str]:
    """Where the hosted providers of the catalogue answer: what must never be taken for a server of this site."""
    found = set()
    for provider in providers:
        try:
            parts = urllib.parse.urlsplit(provider.base_url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            continue
        if host:
            found.add(_place(host, port or _PORTS.get(parts.scheme, 0)))
    return frozenset(found)


def refusal(
    attached: Attached, providers: frozenset[str] = frozenset(), inside: Sequence[str] = OWN_NETWORKS
) -> str:  # fmt: skip
    """Why this address may not be used, with the remedy, or "". `providers` comes from `provider_hosts`.

    An attached server counts as local, and so gets data that may never leave: it must be shown to be the site's own.
    """
    if attached.url.startswith("unix:"):
        return ""
    try:
        parts = urllib.parse.urlsplit(attached.url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "its url cannot be read"  # the error repeats it, and what somebody took for a place to put a password
    # Letters beyond ASCII may become another host's name on the way to the network.
    if not re.fullmatch(r"[0-9A-Za-z.:_-]+", host):
        return "its url names no host"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "its url holds more than an address; put a key into `key_env` or `key_file`"
    if _place(host, port or _PORTS.get(parts.scheme, 0)) in providers:
        return f"{host} is a hosted provider of the catalogue, and what is attached counts as local; enable it instead"
    literal = _literal(host)
    if literal is not None and literal.is_global:
        return f"{host} is a public address, and what is attached counts as local; give an address of your own network"
    if parts.scheme == "https" and not attached.ca_file:
        line = json.dumps(attached.url)
        return (
            f"https:// to {host} needs `ca_file`, the authority that signs it: else any public server would count as "
            f"local; put it into headgate.yaml: attach: [{{url: {line}, ca_file: /path/to/ca.pem}}]"
        )
    if parts.scheme == "http" and not attached.allow_cleartext and not _loopback(host):
        return f"http:// to {host} would send requests in clear text; use https:// or set `allow_cleartext: true`"
    if literal is not None and not literal.is_loopback and not any(literal in ip_network(one) for one in inside):
        return f"{host} lies in none of this site's networks; if it is one of its servers, add its network to `inside:`"
    return ""


def _bare(url: str) -> str:
    """The address without what may be a password in it. One that held more is refused; it is published all the same."""
    return url if url.startswith("unix:") else re.sub(r"[?#].*", "", re.sub(r"//[^/?#]*@", "//", url))


def _place(host: str, port: int) -> str:
    """A host as one text however it is written; on loopback several servers share it, and the port tells them apart."""
    if _loopback(host):
        return f"loopback:{port}"
    return str(_literal(host) or host.lower().rstrip("."))


def _loopback(host: str) -> bool:
    literal = _literal(host)
    return host == "localhost" if literal is None else literal.is_loopback


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is, in any form that a connection would take, with IPv4 inside IPv6 unwrapped."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        try:
            # 134744072 and 0x8.8 are addresses too.
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    # Not 6to4: its bytes go to a relay, whatever address is written inside.
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found
