"""Faults of the network between the router and an upstream: refused, silent, slow, broken off, gone (UP-…)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router import app
from router.api.exchange import Exchange
from router.upstream.connection import HEAD_START_S, Connections
from serving.catalogue import RouterSettings
from tests.conftest import ask, until
from tests.fakes.faults import Upstream, events
from tests.faults.conftest import FaultHouse
from tests.faults.wire import Outcome

NAMED = "engine.test"


async def many(house: FaultHouse, count: int, key: str, **body: Any) -> list[Outcome]:
    """So many requests at once."""
    return list(await asyncio.gather(*(house.tell(ask("small", **body), key) for _ in range(count))))


def by_name(house: FaultHouse, monkeypatch: pytest.MonkeyPatch, lookup: Callable[[str, int], Any]) -> dict[str, Any]:
    """Serve `small` at a name that `lookup` resolves; returns the site's settings that allow it."""

    async def asked(host: str, port: int) -> list[Any]:
        found = lookup(host, port)
        found = await found if asyncio.iscoroutine(found) else found
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, 1, 6, "", (one, port)) for one in found]

    monkeypatch.setattr("router.upstream.names._ask_system", asked)
    url = f"http://{NAMED}:{house.local.port}"
    house.serve(url)
    return {"attach": [{"url": url, "name": "small", "allow_cleartext": True}]}


# ---- no connection


@pytest.mark.parametrize("stream", [False, True])
async def test_up_001_a_refused_replica_is_left_and_rests_at_once(house: FaultHouse, nobody: str, stream: bool) -> None:
    house.serve(nobody, house.local.address)
    await house.start()
    key = house.key()
    found = [await house.tell(ask(stream=stream), key) for _ in range(12)]
    assert {one.status for one in found} == {200}
    tried = [await house.attempts(one) for one in found]
    assert sum("refused" in one for one in tried) <= 1, "it was asked again though it refused"
    assert house.endpoint()["resting"] or not any("refused" in one for one in tried)
    refused = [a for one in found for a in (await house.closed(one))["attempts"] if a["outcome"] == "refused"]
    assert all(one["ms"] < 250 for one in refused), "what was refused was waited for"
    assert max(one.seconds for one in found) < 1


@pytest.mark.parametrize("model", ["small", "private", "cheap", "auto"])
async def test_up_002_all_refused_is_503_at_once_and_nothing_leaves(house: FaultHouse, nobody: str, model: str) -> None:
    house.serve(nobody, nobody)
    await house.start()
    for key in (house.key("private"), house.key()):
        for stream in (False, True):
            found = await house.tell(ask(model, stream=stream), key)
            assert (found.status, found.code) == (503, "no_local_capacity")
            assert 0 < int(found.headers["retry-after"]) <= 300
            assert found.seconds < 1
    assert house.endpoint("big")["state"] == "ready", "the hosted model was there to be asked"
    assert house.leaked() == 0


async def test_up_003_public_data_overflows_and_the_gate_sees_the_bytes_that_leave(
    house: FaultHouse, nobody: str
) -> None:
    house.may_leave = True
    house.serve(nobody)
    await house.start(hosted=True)
    found = await house.tell(ask("cheap"), house.key("public"))
    assert (found.status, found.headers["x-headgate-place"]) == (200, "hosted")
    assert (await house.attempts(found)) == ["refused", "answered"]
    closed = await house.closed(found)
    assert closed["trigger"] == found.headers["x-headgate-trigger"] == "overflow"
    (seen,) = house.provider.requests
    assert seen.json()["model"] == "far-1"
    book = [json.loads(line) for line in house.home.book.read_text().splitlines()]
    (sending,) = [one for one in book if one["kind"] == "sending"]
    assert hashlib.sha256(seen.body).hexdigest() in sending.values(), "the book names other bytes than those that left"
    for private in (house.key("private"), house.key("public")):
        labelled = await house.tell(ask("cheap", headgate={"data_class": "private"}), private)
        assert labelled.status == 503
    assert len(house.provider.requests) == 1


async def test_up_004_a_black_hole_costs_a_second_and_piles_up_nothing(house: FaultHouse, black_hole: str) -> None:
    house.serve(black_hole, house.local.address, limit=3)  # as many as may be tried again at once
    house.most_stall_s = 0.5  # all its callers are on this loop as well
    await house.start(router={"total_timeout_s": 5.0, "queue_wait_s": 3})
    key = house.key()
    port = int(black_hole.rsplit(":", 1)[1])
    asked = asyncio.create_task(many(house, 12, key))
    most = 0
    while not asked.done():
        most = max(most, connecting(port))
        await asyncio.sleep(0.05)
    found = await asked
    assert {one.status for one in found} == {200}
    tried = [await house.attempts(one) for one in found]
    assert any("connect_timeout" in outcomes for outcomes in tried)
    assert 0 < most <= 3 + 2, "more sockets were connecting than there are places"  # two are the black hole's own


def connecting(port: int) -> int:
    """Sockets of this machine that wait for an answer to their SYN from this port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "02" and int(row[2].split(":")[1], 16) == port for row in rows)


# ---- silence before the answer


async def test_up_005_a_hung_replica_is_cut_at_the_first_token_deadline(house: FaultHouse) -> None:
    await house.start(replicas=2)
    house.replicas[0].script = {"never": True}
    key = house.key()
    cut = 0
    for _ in range(20):
        found = await house.tell(ask(stream=True), key)
        assert (found.status, found.text) == (200, "Hello wörld")
        cut += len(await house.attempts(found)) - 1
        if house.endpoint()["resting"]:
            break
    else:
        # Behind its replica after each failure, it is asked seldom; but what it did counts.
        assert cut >= 1
    assert house.replicas[0].left == cut, "the hung connection was not closed"


async def test_up_005_hung_replicas_fail_in_a_row_and_rest(house: FaultHouse) -> None:
    await house.start(router={"first_byte_timeout_s": 0.1})
    house.fail_all({"never": True})
    key = house.key()
    for _ in range(3):
        found = await house.tell(ask(stream=True), key)
        assert (found.status, found.code) == (504, "upstream_timeout")
    assert house.endpoint()["resting"]


@pytest.mark.parametrize("stream", [False, True])
async def test_up_006_a_reset_before_the_answer_is_asked_of_the_other(house: FaultHouse, stream: bool) -> None:
    await house.start(replicas=2)
    house.fail_first({"reset": 0})
    found = await house.tell(ask(stream=stream), house.key())
    assert found.status == 200
    assert len(await house.attempts(found)) == 2
    assert all(one.requests for one in house.replicas[:2])


async def test_up_006_a_stale_connection_is_asked_again_on_a_fresh_one(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    house.fail_all({"stale": True})
    assert (await house.tell(ask(), key)).status == 200
    house.sent_again = 1
    found = await house.tell(ask(), key)
    assert found.status == 200
    assert await house.attempts(found) == ["answered"]
    assert [r.peer for r in house.local.requests] == [1, 1, 2]


# ---- an answer that breaks off


@pytest.mark.parametrize("how", ["reset", "cut"])
async def test_up_007_a_stream_that_breaks_off_says_so_and_is_not_replayed(house: FaultHouse, how: str) -> None:
    await house.start(replicas=2)
    key = house.key()
    for number in range(3):
        whole = {"stream": ["one ", "two ", "three ", True, "four"], "bare": False}
        house.fail_first({**whole, how: 800})
        found = await house.tell(ask(stream=True), key)
        assert (found.status, found.code) == (200, "upstream_interrupted")
        assert found.text.startswith("one ")
        assert house.asked() == number + 1, "it was sent again"
        closed = await house.closed(found)
        assert closed["outcome"] == "cut"
        assert closed["output_tokens"] >= 1 and closed["estimated"] and closed["cost_usd"] > 0


async def test_up_007_streams_that_break_off_count_against_the_endpoint(house: FaultHouse) -> None:
    await house.start()
    house.fail_all({"stream": ["one", "two", "three"], "cut": 800})
    key = house.key()
    for _ in range(3):
        assert (await house.tell(ask(stream=True), key)).code == "upstream_interrupted"
    assert house.endpoint()["resting"]
    house.fail_all({})
    assert (await house.tell(ask(stream=True), key)).code == "ok", "the last one is never given up"


# ---- slowness


@pytest.mark.parametrize(("size", "pause_s"), [(1, 0.02), (1, 0.8), (2000, 0.02)])
async def test_up_009_a_byte_now_and_then_is_no_progress(house: FaultHouse, size: int, pause_s: float) -> None:
    """Slower than the idle deadline, and within it: bytes that never make an event do not count, however many."""
    await house.start(router={"total_timeout_s": 30.0})
    drip: list[Any] = [b"data: ", *(item for _ in range(400) for item in (b"x" * size, pause_s))]
    house.fail_all({"stream": [*events_of("one"), *drip], "bare": True})
    found = await house.tell(ask(stream=True), house.key())
    assert (found.status, found.code, found.text) == (200, "upstream_interrupted", "one")
    assert found.seconds < 5
    assert house.endpoint()["in_flight"] == 0


def events_of(text: str) -> list[Any]:
    return [{"id": "c1", "object": "chat.completion.chunk", "model": "m",
             "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}]  # fmt: skip


async def test_up_010_a_late_first_token_is_cut_while_another_may_answer(house: FaultHouse) -> None:
    await house.start(replicas=2, router={"first_byte_timeout_s": 20, "total_timeout_s": 20})
    house.fail_first({"stream": [True, "late"]})
    found = await house.tell(ask(stream=True), house.key())
    assert (found.status, found.text) == (200, "Hello wörld")
    assert found.seconds < 10
    assert len(await house.attempts(found)) == 2


async def test_up_010_the_last_candidate_is_waited_for_with_comments(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {"first_token_timeout_s": 0.1, "keep_alive_s": 0.1}
    await house.start(router={"first_byte_timeout_s": 20, "total_timeout_s": 20, "idle_timeout_s": 20, **late})
    house.fail_all({"gate": True})
    with_comments = mock.Mock(side_effect=Exchange.keep_alive)
    monkeypatch.setattr(Exchange, "keep_alive", lambda exchange: with_comments(exchange))
    asked = asyncio.create_task(house.tell(ask(stream=True), house.key()))
    await until(lambda: with_comments.call_count >= 3, asked)  # by then the first token is late as well
    house.local.gate.set()
    found = await asked
    assert (found.status, found.code, found.text) == (200, "ok", "Hello wörld")
    assert found.comments.count("keep-alive") >= 3
    assert await house.attempts(found) == ["answered"]


async def test_up_010_after_comments_another_may_still_answer_and_an_error_is_an_event(house: FaultHouse) -> None:
    await house.start(replicas=2, router={"first_token_timeout_s": 0.5})
    house.fail_first({"never": True})
    key = house.key()
    found = await house.tell(ask(stream=True), key)
    assert (found.code, found.text) == ("ok", "Hello wörld")
    assert "keep-alive" in found.comments
    house.fail_all({"never": True})
    found = await house.tell(ask(stream=True), key)
    assert (found.status, found.code) == (200, "upstream_timeout")
    assert "keep-alive" in found.comments and found.closed


async def test_up_010_by_the_defaults_the_last_candidate_has_the_whole_time(house: FaultHouse) -> None:
    """The deadlines as they are shipped, all of them made 250 times shorter: a first token after the one of the first
    byte, and before the end."""
    shipped = RouterSettings()
    names = ("first_byte_timeout_s", "first_token_timeout_s", "idle_timeout_s", "total_timeout_s", "keep_alive_s")
    short = {name: getattr(shipped, name) / 250 for name in names}
    await house.start(router=short)
    house.fail_all({"stream": [True, *events(["late"])], "bare": True})
    asked, began = asyncio.create_task(house.tell(ask(stream=True), house.key())), time.monotonic()
    await until(lambda: time.monotonic() - began > short["first_byte_timeout_s"] * 1.1, asked)
    house.local.gate.set()
    found = await asked
    assert (found.status, found.code, found.text) == (200, "ok", "late")
    assert "keep-alive" in found.comments
    assert await house.attempts(found) == ["answered"]


async def test_up_011_a_stall_in_the_middle_has_comments_and_is_cut(house: FaultHouse) -> None:
    await house.start()
    house.fail_all({"stream": ["one", None]})
    found = await house.tell(ask(stream=True), house.key())
    assert (found.status, found.code, found.text) == (200, "upstream_interrupted", "one")
    assert "keep-alive" in found.comments
    assert found.seconds < 3


async def test_up_012_a_peer_that_vanished_is_noticed_by_the_kernel(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    assert (await house.tell(ask(), key)).status == 200
    ours, *copies = sockets_to(house.local.port)  # uvloop holds one of its own
    for one in copies:
        one.close()
    with ours:
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        tcp = {name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in
               ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")}  # fmt: skip
    assert tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 20
    assert 0 < tcp["TCP_USER_TIMEOUT"] <= 20_000
    for peer in list(house.local.open):
        peer.transport.close()
    await until(lambda: not house.local.open)
    assert (await house.tell(ask(), key)).status == 200
    assert [r.peer for r in house.local.requests] == [1, 2], "a dead connection was handed out again"


def sockets_to(port: int) -> list[socket.socket]:
    """Copies of this process's sockets that are connected to this port."""
    found = []
    for one in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError), contextlib.ExitStack() as unless_it_is:
            if "socket:" not in str(one.readlink()):
                continue
            copy = unless_it_is.enter_context(socket.socket(fileno=os.dup(int(one.name))))
            if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                unless_it_is.pop_all()
                found.append(copy)
    return found


async def test_up_013_a_slow_replica_gets_little_work_and_does_not_rest(house: FaultHouse) -> None:
    """Twenty times slower. By number and not by time: what a busy machine does to both is the same."""
    await house.start(replicas=2)
    house.replicas[0].script = {"delay_s": 0.6}
    house.replicas[1].script = {"delay_s": 0.03}
    key, left = house.key(), list(range(200))

    async def go_on() -> None:
        while left:
            left.pop()
            assert (await house.tell(ask(), key)).status == 200

    await asyncio.gather(*(go_on() for _ in range(6)))
    slow, fast = (len(one.requests) for one in house.replicas[:2])
    assert slow / (slow + fast) < 0.1, (slow, fast)
    assert not house.endpoint()["resting"]


@pytest.mark.parametrize("status", [429, 500])
async def test_up_014_failing_fast_attracts_nothing(house: FaultHouse, status: int) -> None:
    await house.start(replicas=2)
    house.replicas[0].script = {"status": status, "body": "{}"}
    house.replicas[1].script = {"delay_s": 0.05}
    key = house.key()
    for _ in range(10):
        assert {one.status for one in await many(house, 2, key)} == {200}
    failing, well = (len(one.requests) for one in house.replicas[:2])
    assert well == 20
    assert failing <= 2, "it failed fast and was asked for it"


@pytest.mark.parametrize("script", [{"status": 500, "body": "{}"}, {"reset": 0}])
async def test_up_016_where_all_fail_the_local_ones_are_still_asked(house: FaultHouse, script: dict[str, Any]) -> None:
    await house.start(replicas=2)
    house.fail_all(script)
    key = house.key("private")
    for _ in range(8):
        before = house.asked()
        found = await house.tell(ask("cheap"), key)
        assert found.status in (502, 503)
        assert house.asked() > before, "nobody was asked"
    assert house.endpoint("small")["resting"] or house.endpoint("small-2")["resting"]
    house.fail_all({})
    assert (await house.tell(ask("cheap"), key)).status == 200
    assert house.leaked() == 0


# ---- names


async def test_up_017_a_name_server_that_is_gone_does_not_take_the_endpoint_with_it(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def lookup(host: str, _: int) -> list[str]:
        looked.append(host)
        if len(looked) > 1:
            raise socket.gaierror(socket.EAI_NONAME, "NXDOMAIN")
        return ["127.0.0.1"]

    monkeypatch.setattr("router.upstream.names.FRESH_S", 0.0)
    await house.start(**by_name(house, monkeypatch, lookup))
    key = house.key()
    for number in range(3):
        house.local.script = {"close": True}  # so that each connects anew
        found = await house.tell(ask(), key)
        assert found.status == 200, number
    assert len(looked) >= 2


async def test_up_017_an_unknown_or_slow_name_is_bounded_by_the_connect_deadline(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = asyncio.Event()

    async def slow() -> list[str]:
        await enough.wait()
        return []

    failing: list[Any] = [socket.gaierror(socket.EAI_AGAIN, "SERVFAIL")]

    def lookup(host: str, port: int) -> Any:
        if failing:
            raise failing.pop()
        return slow()

    await house.start(**by_name(house, monkeypatch, lookup))
    key = house.key()
    for _ in range(2):
        found = await house.tell(ask(), key)
        assert (found.status, found.code) == (503, "no_local_capacity")
        assert found.seconds < 3
    enough.set()


async def test_up_018_a_local_name_that_leads_outside_is_not_connected_to(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    places = ["127.0.0.1"]
    await house.start(**by_name(house, monkeypatch, lambda *_: places))
    key = house.key("private")
    house.local.script = {"close": True}
    assert (await house.tell(ask(), key)).status == 200
    places[:] = ["203.0.113.9", "8.8.8.8"]
    monkeypatch.setattr("router.upstream.names.FRESH_S", 0.0)
    connected: list[Any] = []
    loop = asyncio.get_running_loop()
    real = loop.create_connection

    async def watched(make: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        connected.append(host)
        return await real(make, host, port, **more)

    monkeypatch.setattr(loop, "create_connection", watched)
    await house.tell(ask(), key)  # may still go where the name led last; it is looked up again meanwhile
    for _ in range(3):
        found = await house.tell(ask(), key)
        assert found.status in (502, 503)
        assert await house.attempts(found) == ["outside"]
    assert not {"203.0.113.9", "8.8.8.8"} & set(connected), "something went out of the house"
    said = [one for one in caplog.records if one.levelname == "ERROR" and "leads out of this site" in one.getMessage()]
    assert said and all("small" in one.getMessage() for one in said), "nobody was told"


async def test_up_021_an_address_without_a_route_costs_a_moment(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with black_hole_v6() as port:
        if port is None:
            pytest.skip("no IPv6 on this machine")
        asked: list[str] = []
        began: list[float] = []

        def lookup(*_: Any) -> list[str]:
            return ["::1", "127.0.0.1"]

        site = by_name(house, monkeypatch, lookup)
        loop = asyncio.get_running_loop()
        real = loop.create_connection

        async def led(make: Any, host: Any = None, at: Any = None, **more: Any) -> Any:
            if at == house.local.port:
                asked.append(host)
                began.append(loop.time())
            return await real(make, host, port if host == "::1" else at, **more)

        monkeypatch.setattr(loop, "create_connection", led)
        await house.start(**site)
        found = await house.tell(ask(), house.key())
        assert found.status == 200
        assert asked[:2] == ["::1", "127.0.0.1"]
        assert HEAD_START_S <= 0.3, "what the catalogue allows; the rest is the machine's"
        assert began[1] - began[0] < 2 * HEAD_START_S and found.seconds < 1


class black_hole_v6:
    """A port on ::1 that swallows every SYN; None where there is no IPv6."""

    def __enter__(self) -> int | None:
        self.sockets = [socket.socket(socket.AF_INET6) for _ in range(4)]
        try:
            self.sockets[0].bind(("::1", 0))
        except OSError:
            return None
        self.sockets[0].listen(0)
        for one in self.sockets[1:]:
            one.setblocking(False)
            one.connect_ex(self.sockets[0].getsockname())
        return int(self.sockets[0].getsockname()[1])

    def __exit__(self, *_: object) -> None:
        for one in self.sockets:
            one.close()


async def test_up_019_a_redirect_is_never_followed(house: FaultHouse) -> None:
    await house.start()
    key = house.key("private")
    evil = house.replicas[2]
    for status in (301, 302, 307, 308):
        house.fail_all({"status": status, "headers": {"location": f"{evil.address}/v1/chat/completions"}, "body": "x"})
        found = await house.tell(ask(), key)
        assert (found.status, found.code) == (502, "upstream_bad_response")
        assert "location" not in found.headers
    assert evil.accepted == 0
    assert house.endpoint()["resting"], "it does not count as a failure"


async def test_up_019_a_redirecting_replica_is_left_for_the_other(house: FaultHouse) -> None:
    await house.start(replicas=2)
    house.fail_first({"status": 302, "headers": {"location": "https://evil.example/"}, "body": ""})
    found = await house.tell(ask(), house.key())
    assert found.status == 200
    assert len(await house.attempts(found)) == 2


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


async def test_up_022_proxies_of_the_environment_are_ignored_and_the_start_says_so(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.may_leave = True
    async with Upstream() as proxy:
        for name in PROXIES:
            monkeypatch.setenv(name, proxy.address)
        monkeypatch.setenv("NO_PROXY", "nothing.example")
        await house.start(hosted=True)
        assert (await house.tell(ask("small"), house.key())).status == 200
        assert (await house.tell(ask("big"), house.key("public"))).status == 200
        assert proxy.accepted == 0
        for said in (caplog.text, (house.home.logs / "door.log").read_text()):
            assert all(name in said for name in PROXIES)
            assert proxy.address not in said, "it may hold a password"
    assert len(house.provider.requests) == 1


# ---- full


async def test_up_025_what_is_full_is_waited_for_in_a_bounded_queue(house: FaultHouse) -> None:
    house.serve(house.local.address, limit=2)
    await house.start(router={"queue_length": 3, "queue_wait_s": 1, "first_byte_timeout_s": 20, "total_timeout_s": 20})
    house.fail_all({"gate": True})
    key = house.key("private")
    asked = [asyncio.create_task(house.tell(ask("small"), key)) for _ in range(12)]
    await until(lambda: sum(one.done() for one in asked) == 10)
    refused = [one.result() for one in asked if one.done()]
    assert sorted(one.code for one in refused) == ["queue_full"] * 7 + ["queue_timeout"] * 3
    assert all(one.status == 503 and int(one.headers["retry-after"]) > 0 for one in refused)
    ended = [(await house.closed(one))["outcome"] for one in refused]
    assert sorted(ended) == ["deadline_passed"] * 3 + ["queue_full"] * 7
    assert house.asked() == 2, "what was refused had been sent"
    house.local.gate.set()
    assert sorted([(await one).status for one in asked]) == [200] * 2 + [503] * 10


async def test_up_025_a_place_that_becomes_free_goes_to_whoever_waits(house: FaultHouse) -> None:
    house.serve(house.local.address, limit=2)
    await house.start(router={"queue_length": 20, "queue_wait_s": 5})
    house.local.script = {"delay_s": 0.02}
    found = await many(house, 16, house.key("private"))
    assert {one.status for one in found} == {200}
    assert house.local.most <= 2


async def test_up_025_the_queue_is_fair_to_every_team(house: FaultHouse) -> None:
    """One team has thirty waiting when another one asks five things: those are answered among its first."""
    house.serve(house.local.address, limit=1)
    patient = {"queue_wait_s": 20, "first_byte_timeout_s": 20, "total_timeout_s": 20}
    await house.start(router={"queue_length": 40, **patient})
    house.fail_all({"gate": True})
    loud, quiet, order = house.key(team="loud"), house.key(team="quiet"), []

    async def tell(team: str, key: str) -> None:
        assert (await house.tell(ask("small"), key)).status == 200
        order.append(team)

    asked = [asyncio.create_task(tell("loud", loud)) for _ in range(31)]
    assert house.built is not None
    fleet = house.built.fleet
    await until(lambda: fleet.state()["waiting"] == 30)
    asked += [asyncio.create_task(tell("quiet", quiet)) for _ in range(5)]
    await until(lambda: fleet.state()["waiting"] == 35)
    house.local.gate.set()
    await asyncio.gather(*asked)
    assert order[:12].count("quiet") == 5, order


async def test_up_025_connections_are_bounded_and_so_is_the_line_for_one(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of which nobody knows how much it takes: then the number of connections to it is what is full."""
    monkeypatch.setattr(app, "Connections", functools.partial(Connections, max_per_address=2))
    monkeypatch.setattr("router.upstream.connection.WAITING", 3)
    house.serve(house.local.address, limit=0)
    await house.start(router={"first_byte_timeout_s": 20, "total_timeout_s": 20})
    house.fail_all({"gate": True})
    key = house.key("private")
    asked = [asyncio.create_task(house.tell(ask("small"), key)) for _ in range(12)]
    await until(lambda: sum(one.done() for one in asked) >= 7)  # at once; three wait until a connection is overdue
    await until(lambda: sum(one.done() for one in asked) == 10)
    refused = [one.result() for one in asked if one.done()]
    assert {(one.status, one.code) for one in refused} == {(503, "overloaded")}
    assert all(int(one.headers["retry-after"]) > 0 for one in refused)
    assert {tuple(await house.attempts(one)) for one in refused} == {("pool_full",)}
    assert house.local.accepted == house.asked() == 2
    assert not house.endpoint()["resting"], "it is not the server's fault"
    house.local.gate.set()
    assert sorted([(await one).status for one in asked]) == [200] * 2 + [503] * 10
