"""A house for faults: replicas that fail, a place behind the door where leaked bytes are counted, short deadlines.

When a test ends, and after each case of one that has many, the global invariants are held against everything that
happened in it; none can forget them:

I1  data that may not leave: not a byte of it came to the door, nor to the provider behind it
I2  one well-formed outcome: `wire.py` reads every answer strictly
I3  the ledger: one opened and one closed event a request, one entry for each attempt, whoever it was made of, no hold
    left, and no key ever held and spent more than its budget
I4  nothing is left over: requests, tasks, threads, sockets, descriptors
I5  memory is bounded, and the loop is never held up: by work (its CPU time), nor by waiting (`waits.py`)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router import app
from router.ledger.entries import Ledger
from router.ledger.store import connect
from serving import catalogue
from serving.home import Home
from tests.conftest import House, instance
from tests.fakes.faults import Upstream
from tests.faults import wire
from tests.faults.waits import WAITS
from tests.faults.watch import MIB as MIB
from tests.faults.watch import Watch, descriptors, threads
from tests.faults.wire import Outcome
from tests.lookout import new_event_loop

NOT_REACHED = {"refused", "outside", "pool_full", "connect_timeout", "no_key", "barred", "door_closed", "not_recorded"}
"""Outcomes of attempts that brought not a byte to the upstream."""
NOT_LET_OUT = {"door_refused", "unreachable"}
"""And those of the door that brought not a byte to the provider."""
BUDGET_USD = 100.0
"""Of every key, unless a test says otherwise: ample, and yet a hold that is not given back shows."""
FAST: dict[str, Any] = {
    "first_byte_timeout_s": 1.0, "first_token_timeout_s": 0.3, "idle_timeout_s": 0.5, "total_timeout_s": 3.0,
    "keep_alive_s": 0.2, "queue_wait_s": 0, "header_timeout_s": 1.0, "body_timeout_s": 1.0, "write_timeout_s": 1.0,
}  # fmt: skip
"""Deadlines short enough to be waited for."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop the program runs on."""
    return {"uvloop": new_event_loop}


class FaultHouse(House):
    """The router of one test, and what it must have kept to when the test ends."""

    watch: Watch
    """Since the start."""

    def __init__(self, home: Home, upstreams: list[Upstream], provider: Upstream) -> None:
        super().__init__(home, upstreams[0], provider)
        self.replicas = upstreams
        self.served = False
        self.may_leave = False
        """Set by a test of public data: then bytes at the provider are no leak."""
        self.most_bytes = 48 * MIB
        """How much the process may grow: the cap of one answer that is read whole, and what tests need themselves."""
        self.most_stall_s = 0.1
        self.sent_again = 0
        """Requests that went out twice within one attempt: the race with a connection that the upstream closes."""
        self.unseen: set[str] = set()
        """Outcomes of attempts, beside NOT_REACHED, that upstreams other than ours had."""
        self.outcomes: list[Outcome] = []
        self.overspent: list[str] = []
        """Where holds and what was spent came to more than a budget."""
        self.door_sink: Upstream | None = None
        self.ledger: Ledger | None = None

    async def start(self, *, replicas: int = 1, hosted: bool = False, fast: bool = True, **site: Any) -> None:
        """Run the router with so many replicas of `small`, and `big` behind the door.

        With `hosted` it is the real door and its provider; without it something stands in the door's place that
        says it is open, and counts what comes. `fast`: with deadlines short enough to be waited for.
        """
        if not self.served:
            self.serve(*(one.address for one in self.replicas[:replicas]))
        site["router"] = (FAST if fast else {}) | site.get("router", {})
        models = {"big": {"lanes": ["cheap", "frontier"]}, **site.pop("models", {})}
        self._real_door = hosted
        read = functools.cache(catalogue.load)  # once for the router and for what stands in the door's place
        with mock.patch.object(app, "Ledger", self._remember), mock.patch.object(catalogue, "load", read):
            await super().start(hosted=True, models=models, **site)
        self.port = int(self.url.rsplit(":", 1)[1])
        await self._baseline()

    def serve(self, *addresses: str, **fields: Any) -> None:
        """Let serving publish these as the replicas `small`, `small-2` and so on. Before `start`."""
        self.served = True
        self.instances[:] = [
            instance("small" if not n else f"small-{n + 1}", one, **{"model": "small", **fields})
            for n, one in enumerate(addresses)
        ]

    def _remember(self, *given: Any, **more: Any) -> Ledger:
        self.ledger = Ledger(*given, **more)
        budgets = self.ledger.budgets
        hold = budgets.hold

        def watched(caller: Any, amount: float, now: float) -> Any:
            made = hold(caller, amount, now)
            if caller.budget_usd is not None and (used := budgets.used(caller.account, now)) > caller.budget_usd + 1e-9:
                self.overspent.append(f"{caller.key}: {used} of {caller.budget_usd}")
            return made

        budgets.hold = watched  # type: ignore[method-assign]
        return self.ledger

    def key(self, data_class: str = "private", team: str = "tests", **settings: Any) -> str:
        """A new key's text; with a budget, so that what is held for it is looked at."""
        return super().key(data_class, team, **{"budget_usd": BUDGET_USD, **settings})

    async def _start_door(self, config: Path) -> None:
        if self._real_door:
            await super()._start_door(config)
            return
        said = {"instance": "d", "policy": catalogue.load(config).version, "open": True, "closed_because": "",
                "providers": {"far": {"reason": ""}}}  # fmt: skip
        sink = Upstream(path=self.home.socket("door"), script={"body": json.dumps(said)})
        self.door_sink = await self._stack.enter_async_context(sink)

    # ---- asking

    async def tell(
        self, body: Any, key: str, path: str = "/v1/chat/completions", headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """Ask on a connection of its own; the answer has been read strictly."""
        return await self.send(wire.request(body, key, path, headers))

    async def send(self, asked: bytes, within_s: float = 20.0) -> Outcome:
        """Send these very bytes; the answer has been read strictly."""
        found = await wire.exchange(self.port, asked, within_s)
        self.outcomes.append(found)
        return found

    def fail_first(self, *scripts: dict[str, Any]) -> None:
        """The next requests meet these faults, whichever replica they go to; all later ones are answered."""
        shared = list(scripts)
        for one in self.replicas:
            one.then, one.script = shared, {}

    def fail_all(self, script: dict[str, Any]) -> None:
        """Every replica does this with every request."""
        for one in self.replicas:
            one.then, one.script = [], script

    def asked(self) -> int:
        """Requests that came to the replicas."""
        return sum(len(one.requests) for one in self.replicas)

    def endpoint(self, name: str = "small") -> dict[str, Any]:
        """What the router knows of this endpoint now."""
        assert self.built is not None
        return next(e for e in self.built.fleet.state()["endpoints"] if e["name"] == name)

    async def recorded(self) -> None:
        """Wait until everything that happened is in the ledger's file."""
        assert self.built is not None
        await self.built.store.durable()

    async def closed(self, outcome: Outcome) -> dict[str, Any]:
        """How the request of this answer ended, by the ledger."""
        assert self.built is not None
        await self.recorded()
        return next(e for e in self.built.store.events(outcome.id) if e["kind"] == "closed")

    async def attempts(self, outcome: Outcome) -> list[str]:
        """The outcomes of its attempts, in order."""
        return [a["outcome"] for a in (await self.closed(outcome))["attempts"]]

    # ---- the invariants

    async def hold_invariants(self) -> None:
        """I1 to I5, over everything since the start; may be asked again later."""
        watch = self.watch
        await self._nothing_left()
        self._nothing_leaked()
        await self.recorded()
        self._accounted()
        watch.excuse()  # the accounts are the test's own work
        assert watch.most - watch.start <= self.most_bytes, "I5: memory"
        assert watch.stall_s <= self.most_stall_s, f"I5: the loop was held up for {watch.stall_s:.3f} s"
        assert not WAITS.seen, f"I5: the loop had to wait: {WAITS.seen}"

    def leaked(self) -> int:
        """Bytes of requests that came to the door, or to the provider behind it."""
        at_door = [r for r in self.door_sink.requests if r.path != "/door"] if self.door_sink else []
        return self.provider.received.total() + sum(len(r.body) + 1 for r in at_door)

    def _nothing_leaked(self) -> None:
        assert self.may_leave or self.leaked() == 0, "I1: data that may not leave came to the door"

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """All events of the ledger by request."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        with contextlib.closing(connect(self.home.ledger, read_only=True)) as db:
            for kind, request, key, cost, body in db.execute(
                "SELECT kind, request, key, cost, body FROM events WHERE request != '' ORDER BY writer, seq"
            ):
                found[request].append({**json.loads(body), "kind": kind, "key": key, "cost": cost})
        return found

    def _accounted(self) -> None:
        rows = self.rows()
        seen = Counter(r.headers.get("x-request-id", "") for one in self.replicas for r in one.requests)
        spent: dict[str, float] = defaultdict(float)
        again, hosted = 0, list[dict[str, Any]]()
        for request, events in rows.items():
            events = [e for e in events if e["kind"] != "sending"]
            kinds = [e["kind"] for e in events]
            assert kinds in (["opened", "closed"], ["refused"], ["repeated"]), f"I3: {request} has {kinds}"
            if len(kinds) == 1:
                assert not seen[request], f"I3: what was {kinds[0]} was sent"
                continue
            spent[events[1]["key"]] += events[1]["cost"] or 0.0
            attempts = events[1]["attempts"]
            assert len([a for a in attempts if not for_want_of_room(a)]) <= 3, f"I3: {len(attempts)} attempts"
            local = [a for a in attempts if a["place"] == "local" and a["outcome"] not in NOT_REACHED | self.unseen]
            again += seen[request] - len(local)
            assert seen[request] >= len(local), f"I3: {local} in the ledger, {seen[request]} at the upstreams"
            hosted += [a for a in attempts if a["place"] == "hosted"]
        assert again <= self.sent_again, "I3: more came to the upstreams than is written down"
        assert set(seen) <= set(rows), "I3: an upstream saw a request that nobody wrote down"
        self._accounted_outside(hosted)
        for one in self.outcomes:
            if one.status == 200 or one.status >= 500:
                assert one.headers.get("x-request-id") in rows, "I3: an answer without a record"
        ids = [one.id for one in self.outcomes if "x-request-id" in one.headers]
        assert len(ids) == len(set(ids)), "I3: two answers with one id"
        assert not self.overspent, f"I3: held and spent beyond the budget: {self.overspent}"
        for key, cost in spent.items():
            caller: Any = mock.Mock(key=key, account=key)
            assert self.ledger is not None
            held = self.ledger.spent(caller)
            assert abs(held - cost) < 1e-9, f"I3: {held} is used of the budget, {cost} was settled"

    def _accounted_outside(self, attempts: list[dict[str, Any]]) -> None:
        """Hosted attempts, against what came to the provider; behind the real door also bytes against its book."""
        at_door = self.door_sink.requests if self.door_sink else []
        arrived = self.provider.requests if self._real_door else [r for r in at_door if r.path == "/send"]
        left = [a for a in attempts if a["outcome"] not in NOT_REACHED | NOT_LET_OUT | self.unseen]
        assert len(arrived) == len(left), f"I3: {left} in the ledger, {len(arrived)} at the provider"
        if not self._real_door:
            return
        book = [json.loads(line) for line in self.home.book.read_text().splitlines()]
        sent = {e["permit"]: e["sent_sha256"] for e in book if e["kind"] == "sending"}
        assert set(sent) <= {a.get("permit") for a in attempts}, "I3: the book has a permit that the ledger has not"
        bodies = Counter(hashlib.sha256(r.body).hexdigest() for r in arrived)
        assert bodies <= Counter(sent.values()), "I3: the provider got other bytes than stand in the book"

    async def _baseline(self) -> None:
        await self._quiet()
        self.tasks, self.threads = len(asyncio.all_tasks()), threads()
        self.descriptors = descriptors()
        self.watch = Watch()

    async def _quiet(self) -> None:
        """Let a poll that is under way end."""
        for _ in range(3):
            await asyncio.sleep(0.002)

    def _over(self) -> list[str]:
        """What is more than it was at the start."""
        assert self.built is not None and self.ledger is not None
        state, found = self.built.fleet.state(), []
        opened = self.ledger.metrics.open
        if state["in_flight"] or state["waiting"] or opened:
            found.append(f"{state['in_flight']} in flight, {state['waiting']} waiting, {opened} open")
        if (load := self.built.edge.load).open or load.bodies:
            found.append(f"{load.open} requests and {load.bodies} bytes of bodies still counted")
        outstanding = {e["name"]: e["outstanding"] for e in state["endpoints"] if e.get("outstanding")}
        if outstanding:
            found.append(f"tokens outstanding: {outstanding}")
        tasks = len(asyncio.all_tasks()) - 1  # the watch's own
        if tasks > self.tasks:
            found.append(f"{tasks} tasks, {self.tasks} at the start")
        if threads() > self.threads:
            found.append(f"{threads()} threads, {self.threads} at the start")
        # The door is another process, whose idle connection to here is as good as closed.
        more = descriptors() - self.descriptors
        if more.total() > (4 if self._real_door else 0):
            found.append(f"descriptors more than at the start: {dict(more)}")
        return found

    async def _nothing_left(self) -> None:
        """I4, within 2 seconds. Connections that wait for the next request are closed by the upstreams first."""
        upstreams = [*self.replicas, self.provider]
        end = time.monotonic() + 2.0
        hung_up = False
        while over := self._over() or (not hung_up and ["sockets"]):
            busy = [p for one in upstreams for p in one.open if p.answering is not None and not p.answering.done()]
            if not busy and not hung_up:
                hung_up = True
                for peer in [p for one in upstreams for p in one.open]:
                    peer.transport.abort()
            if time.monotonic() > end:
                raise AssertionError(f"I4: after 2 s: {over}; {len(busy)} upstream answers under way")
            await asyncio.sleep(0.01)


def for_want_of_room(attempt: dict[str, Any]) -> bool:
    """Whether an engine refused it since it was full: nothing was done there, and such tries are not counted."""
    return attempt["place"] == "local" and (attempt["outcome"], attempt["status"]) == ("overloaded", 503)


@pytest.fixture
async def house(home: Home) -> AsyncIterator[FaultHouse]:
    """See FaultHouse. The invariants are held when the test has passed."""
    async with Upstream() as one, Upstream() as two, Upstream() as three, Upstream() as provider:
        made = FaultHouse(home, [one, two, three], provider)
        with WAITS.looking():
            try:
                yield made
                if made.built is not None:
                    await made.hold_invariants()
            finally:
                WAITS.end()  # that a router waits for its threads when it stops is as it should be
                if watch := getattr(made, "watch", None):
                    await watch.end()
                await made.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens: bound, so that nobody else takes it, and every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that swallows every SYN: its queue of new connections is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
