"""A month of an installation, made up: a ledger, a door's book and the kernel's samples that agree with each other.

All is written by the code that writes the real ones. Routers and doors are started, stopped and killed; requests stay
here, leave, are refused by either side, are tried again, are given up, get lost; some are under way at the edges.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from router.audit.reconcile import Window
from router.door.book import open_book
from router.ledger import bodies
from router.ledger.entries import settle_lost
from router.ledger.store import Event, Store
from router.records import Attempt, Outcome, Usage
from serving.home import Home

START = 1_790_000_000.0
DAY = 86400.0
FAR = {"provider": "far", "model": "big", "path": "chat/completions"}


@dataclass(slots=True)
class Truth:
    """What an audit of the window has to find."""

    requests: int = 0
    left: set[str] = field(default_factory=set)
    sendings: int = 0
    bytes: int = 0


@dataclass
class Month:
    """Make it with `write`; then its three files lie in the home folder."""

    home: Home
    seed: int = 1
    requests: int = 3000
    days: float = 30.0
    boots: int = 4
    workers: int = 2
    witness: bool = True
    """Whether the door is alone in its network namespace."""
    truth: Truth = field(default_factory=Truth)

    @property
    def samples(self) -> Path:
        return self.home.book.with_name("kernel.jsonl")

    @property
    def window(self) -> Window:
        """From half a day after the start to half a day before the end, so that both edges cut something."""
        return Window(START + DAY / 2, START + (self.days - 0.5) * DAY)

    def write(self) -> Month:
        """Write all three, in the order of time."""
        self.rng = random.Random(self.seed)
        self.now, self.number = START, 0
        self.wire = {"bytes": 1000, "packets": 10, "connections": 0, "datagrams": 0}
        self.sampled = START
        for boot in range(self.boots):
            self._boot(boot, last=boot == self.boots - 1)
        return self

    def _boot(self, boot: int, *, last: bool) -> None:
        """The life of one router and one door, up to an orderly stop or a kill."""
        self.stores = [Store(self.home.ledger, f"{boot:x}{worker:x}{self.rng.getrandbits(48):012x}")
                       for worker in range(self.workers)]  # fmt: skip
        settle_lost(self.stores[0], self.now)
        self.book = open_book(self.home.book, "v1", lambda: self.now)
        self.kernel = open_book(self.samples, "v1", lambda: self.now)
        self._sample()
        share = self.requests // self.boots
        step = self.days * DAY / self.boots / share
        for _ in range(share):
            self.now += step * self.rng.uniform(0.5, 1.5)
            self._request(self.rng.choice(self.stores))
            if self.now - self.sampled > 60:
                self._sample()
        if not last:  # killed while two were under way: the next start calls them lost
            for way in (self._lost, self._lost_at_once):
                way(self.stores[0], self._id())
        for store in self.stores:
            store.flush()
            store.close()
        self._sample()
        self.book.close()
        self.kernel.close()
        self.now = max(self.now, START + (boot + 1) * self.days * DAY / self.boots) + 2

    def _id(self) -> str:
        self.number += 1
        return f"req_{self.number:06d}{self.rng.getrandbits(32):08x}"

    def _request(self, store: Store) -> None:
        ways = [
            (self._local, 50), (self._answered, 30), (self._refused, 4), (self._tried_again, 4), (self._limited, 3),
            (self._door_refused, 3), (self._given_up, 2), (self._cut, 3), (self._no_end, 1), (self._door_gone, 1),
        ]  # fmt: skip
        (way,) = self.rng.choices([w for w, _ in ways], [n for _, n in ways])
        way(store, self._id())

    def killed(self) -> str:
        """One more router is killed after it has handed something over, and nobody starts another one."""
        store = Store(self.home.ledger, "killed")
        self.book = open_book(self.home.book, "v1", lambda: self.now)
        request = self._id()
        self._opened(store, request)
        self._handed(store, request)
        store.close()
        self.book.close()
        return request

    # ---- what both sides write

    def _event(self, store: Store, kind: str, request: str, body: dict[str, Any], cost: float | None = None) -> None:
        store.append(Event(self.now, kind, request, "k1", body, cost))
        if kind in ("opened", "refused") and self.window.holds(self.now):
            self.truth.requests += 1

    def _opened(self, store: Store, request: str) -> None:
        route = {"route": "chat/completions", "asked": "frontier", "data_class": "public", "reason": "r" * 300}
        self._event(store, "opened", request, route, 0.25)

    def _closed(self, store: Store, request: str, *attempts: Attempt, outcome: str = "answered") -> None:
        self.now += self.rng.uniform(0.01, 0.2)
        ended = Outcome(outcome, 200, attempts, Usage(10, 20), 0.01, total_ms=12.5)
        self._event(store, "closed", request, bodies.closed(None, ended), 0.01)

    def _handed(self, store: Store, request: str) -> dict[str, Any]:
        size = self.rng.randint(200, 20_000)
        permit = f"{self.rng.getrandbits(128):032x}"
        claims = FAR | {
            "permit": permit, "door": self.book.boot, "team": "red", "data_class": "public", "policy": "v1",
            "sha256": hashlib.sha256(permit.encode()).hexdigest(), "bytes": size, "lane": "frontier", "trigger": "",
        }  # fmt: skip
        self._event(store, "sending", request, claims)
        store.flush()  # as `durable` does: on disk before anything leaves
        self.now += 0.002
        return claims

    def _sent(self, request: str, claims: dict[str, Any]) -> None:
        size = claims["bytes"] + 40
        entry = FAR | {
            "permit": claims["permit"], "request": request, "key": "k1", "team": "red", "route": "chat/completions",
            "host": "api.far.example", "data_class": "public", "clearance": "public", "rule": "public", "policy": "v1",
            "received_sha256": claims["sha256"], "sent_sha256": "0" * 64, "sent_bytes": size, "head_bytes": 380,
            "claimed": "public", "requires": [], "found": {}, "declassified": "",
        }  # fmt: skip
        self.book.write("sending", entry, sync=False)

    def _left(self, request: str, claims: dict[str, Any]) -> None:
        """It is sent, and the kernel counts it."""
        self._sent(request, claims)
        size = claims["bytes"] + 40
        packets = size // 1448 + 8
        self.wire["bytes"] += size + 380 + 22 * (size // 16384 + 2) + 1900 + packets * 66 + 2 * 98
        self.wire["packets"] += packets + 2
        self.wire["connections"] += 1
        self.wire["datagrams"] += 2
        if self.window.holds(self.now - 0.002):
            self.truth.left.add(request)
            self.truth.sendings += 1
            self.truth.bytes += size

    def _ended(self, request: str, claims: dict[str, Any], ended: str = "answered", **more: Any) -> None:
        self.now += self.rng.uniform(0.1, 3.0)
        entry = {"permit": claims["permit"], "request": request, "status": 200, "ms": 5.0, "error": "", "bytes_in": 900}
        entry |= {"head_bytes_in": 300, "connections": 1}
        self.book.write("ended", {**entry, "ended": ended, "left": True, **more}, sync=False)

    def _sample(self) -> None:
        wire, self.sampled = self.wire, self.now + 3.1
        self.now += 3.1  # so that nothing straddles it by more than the edge
        sample = {
            "read_at": self.now, "namespace": "net:[4026532000]", "alone": self.witness, "again": 0,
            "interfaces": {"eth0": [wire["bytes"], wire["packets"], 5, 5]}, "connections": wire["connections"],
            "datagrams": wire["datagrams"],
        }  # fmt: skip
        self.now += 0.001
        self.kernel.write("sample", sample, sync=False)

    # ---- the ways of a request

    def _local(self, store: Store, request: str) -> None:
        self._opened(store, request)
        self._closed(store, request, Attempt("near", "near", "local", "answered", 200, 1.0))

    def _refused(self, store: Store, request: str) -> None:
        self._event(store, "refused", request, {"outcome": "refused", "status": 400, "error": "invalid_request"})

    def _answered(self, store: Store, request: str) -> None:
        self._opened(store, request)
        claims = self._handed(store, request)
        self._left(request, claims)
        self._ended(request, claims)
        self._closed(store, request, tried(claims))

    def _tried_again(self, store: Store, request: str) -> None:
        """The first provider cannot be reached, the second one breaks off, the third answers."""
        self._opened(store, request)
        first = self._handed(store, request)
        self._sent(request, first)
        self._ended(request, first, "failed", status=None, error="provider_unreachable", left=False)
        second = self._handed(store, request)
        self._left(request, second)
        self._ended(request, second, "failed", status=None, error="provider_failed")
        third = self._handed(store, request)
        self._left(request, third)
        self._ended(request, third)
        attempts = (tried(first, "unreachable", 502), tried(second, "error", 502), tried(third))
        self._closed(store, request, *attempts)

    def _limited(self, store: Store, request: str) -> None:
        self._opened(store, request)
        claims = self._handed(store, request)
        self._left(request, claims)
        self._ended(request, claims, status=429)
        self._closed(store, request, tried(claims, "rate_limited", 429), outcome="failed")

    def _door_refused(self, store: Store, request: str) -> None:
        self._opened(store, request)
        claims = self._handed(store, request)
        entry = {"permit": claims["permit"], "request": request, "key": "k1", "model": "big", "code": "not_scannable"}
        self.book.write("refused", entry, sync=False)
        self._closed(store, request, tried(claims, "door_refused", 403), outcome="failed")

    def _given_up(self, store: Store, request: str) -> None:
        self._opened(store, request)
        claims = self._handed(store, request)
        self._closed(store, request, tried(claims, "client_left", None), outcome="client_left")

    def _cut(self, store: Store, request: str) -> None:
        """The caller leaves while the answer comes."""
        self._opened(store, request)
        claims = self._handed(store, request)
        self._left(request, claims)
        self._ended(request, claims, "client_left")
        self._closed(store, request, tried(claims), outcome="client_left")

    def _no_end(self, store: Store, request: str) -> None:
        """The door is killed before it writes how that ended; another one is started."""
        self._opened(store, request)
        claims = self._handed(store, request)
        self._left(request, claims)
        self._sample()
        self.book.close()
        self.kernel.close()
        self.book = open_book(self.home.book, "v1", lambda: self.now)
        self.kernel = open_book(self.samples, "v1", lambda: self.now)
        self._sample()
        self._closed(store, request, tried(claims, "reset", None), outcome="failed")

    def _door_gone(self, store: Store, request: str) -> None:
        self._opened(store, request)
        self._closed(store, request, tried(self._handed(store, request), "door_closed", None), outcome="failed")

    def _lost(self, store: Store, request: str) -> None:
        self._opened(store, request)
        claims = self._handed(store, request)
        self._left(request, claims)
        self._ended(request, claims)

    def _lost_at_once(self, store: Store, request: str) -> None:
        self._opened(store, request)
        self._handed(store, request)


def cut_off(path: Path, lines: list[bytes]) -> None:
    """Leave a chained file with these of its first lines, and its note made to fit."""
    path.write_bytes(b"".join(lines))
    length, digest = sum(map(len, lines)), orjson.loads(lines[-1])["hash"]
    path.with_name(f"{path.name}.head").write_text(f"{length:020d} {digest} {length:020d}\n")


def rewritten(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change a chained file's entries, or leave some out, and make its chain and its note fit again."""
    last, lines = "", []
    for line in path.read_bytes().splitlines():
        if (entry := change(orjson.loads(line))) is None:
            continue
        fields = {name: value for name, value in entry.items() if name != "hash"} | {"prev": last}
        last = hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()
        lines.append(orjson.dumps({**fields, "hash": last}, option=orjson.OPT_SORT_KEYS) + b"\n")
    cut_off(path, lines)


def tried(claims: dict[str, Any], outcome: str = "answered", status: int | None = 200) -> Attempt:
    """One try at a hosted model, as the ledger has it."""
    sent = outcome == "answered"
    return Attempt("big", "big", "hosted", outcome, status, 3.0, "", sent, 0.01, None, claims["permit"])
