"""Callers that leave, stall, come in crowds, or ask again: cases CL-* of the fault catalogue."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import statistics
import threading
import time
from typing import Any

import openai
import pytest

from router.api.outlet import Outlet
from router.gate import AT_ONCE
from router.scanner.scanner import Scanner
from serving.catalogue import RouterSettings
from tests.conftest import ask, until
from tests.fakes.answers import event, streamed
from tests.faults import wire
from tests.faults.cases import each
from tests.faults.conftest import MIB, FaultHouse
from tests.faults.line import Line

SAID: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "completions": {"prompt": "Hello"},
    "responses": {"input": "Hello"},
    "messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
    "embeddings": {"input": "Hello"},
    "messages/count_tokens": {"messages": [{"role": "user", "content": "Hello"}]},
}
STREAMED = [route for route in SAID if route not in ("embeddings", "messages/count_tokens")]
PATIENT = {"first_byte_timeout_s": 30, "first_token_timeout_s": 30, "idle_timeout_s": 30, "total_timeout_s": 60}
"""Deadlines that never end what a caller is to end by leaving."""
LEFT_WITHIN_S = 1.0
"""Loose on purpose: the upstream's socket is closed in the same turn of the loop that sees the caller leave."""


def asked(route: str, key: str, *, stream: bool = False, **more: Any) -> bytes:
    body = {"model": "small", **SAID[route], **({"stream": True} if stream else {})}
    return wire.request(body, key, f"/v1/{route}", more)


async def ended(house: FaultHouse, count: int = 1) -> list[dict[str, Any]]:
    """The closing events of so many requests, in order."""
    assert house.built is not None

    def closed() -> list[dict[str, Any]]:
        return [event for events in house.rows().values() for event in events if event["kind"] == "closed"]

    await until(lambda: len(closed()) >= count, within_s=5)
    return closed()


async def leaves(house: FaultHouse, route: str, script: dict[str, Any], *, stream: bool, reset: bool = False) -> None:
    """Ask, leave once the upstream works on it, and see that the upstream is let go at once."""
    await house.start(router=PATIENT)
    house.fail_all(script)
    async with Line(house) as line:
        await line.send(asked(route, house.key(), stream=stream))
        await house.local.until(lambda: house.asked() == 1)
        if stream and len(script.get("stream", ())) > 1:
            await line.until(b"\n\n")  # an event has been passed on
        started = time.monotonic()
        line.leave(reset=reset)
        await house.local.until(lambda: house.local.left == 1)
        assert time.monotonic() - started < LEFT_WITHIN_S
    (event,) = await ended(house)
    assert event["outcome"] == "client_left"
    assert house.asked() == 1, "nobody else was asked after the caller had gone"


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("script", [{"never": True}, {"stream": [None], "bare": True}], ids=["no-head", "no-token"])
async def test_cl_001_leaves_before_the_first_token(house: FaultHouse, script: dict[str, Any], reset: bool) -> None:
    await leaves(house, "chat/completions", script, stream=True, reset=reset)


async def test_cl_001_the_upstream_is_let_go_in_a_moment(house: FaultHouse) -> None:
    """Half of the time within 50 ms; the slowest ones say more of a busy machine."""
    await house.start(router=PATIENT)
    house.fail_all({"stream": [None], "bare": True})
    key, engine, took = house.key(), house.local, list[float]()
    for number in range(1, 41):
        async with Line(house) as line:
            await line.send(asked("chat/completions", key, stream=True))
            await engine.until(lambda number=number: house.asked() == number)
            started = time.monotonic()
            line.leave()
            await engine.until(lambda number=number: engine.left == number)
            took.append(time.monotonic() - started)
    assert statistics.median(took) < 0.05, took
    assert {event["outcome"] for event in await ended(house, 40)} == {"client_left"}


@pytest.mark.parametrize("script", [{"never": True}, {"chunks": ['{"id":', None]}], ids=["no-head", "half-a-body"])
async def test_cl_003_leaves_while_a_whole_answer_is_awaited(house: FaultHouse, script: dict[str, Any]) -> None:
    await leaves(house, "chat/completions", script, stream=False)


@pytest.mark.parametrize("route", STREAMED)
async def test_cl_004_leaves_a_stream_on_every_route(house: FaultHouse, route: str) -> None:
    events = streamed(f"/v1/{route}")
    await leaves(house, route, {"stream": [*events[:-1], None], "bare": True}, stream=True)


@pytest.mark.parametrize("route", STREAMED)
async def test_cl_004_leaves_before_the_first_token_on_every_route(house: FaultHouse, route: str) -> None:
    await leaves(house, route, {"stream": [None], "bare": True}, stream=True)


@pytest.mark.parametrize("route", SAID)
async def test_cl_004_leaves_a_whole_answer_on_every_route(house: FaultHouse, route: str) -> None:
    await leaves(house, route, {"never": True}, stream=False)


@pytest.mark.parametrize("path", ["rerank", "audio/transcriptions", "audio/speech", "images/generations"])
async def test_cl_004_routes_that_are_not_offered_say_so(house: FaultHouse, path: str) -> None:
    await house.start()
    found = await house.tell({"model": "small", "query": "a", "documents": ["b"]}, house.key(), f"/v1/{path}")
    assert (found.status, house.asked()) == (404, 0)
    assert len(found.error["message"]) > 20


async def test_cl_005_leaves_the_queue(house: FaultHouse) -> None:
    house.serve(house.local.address, limit=1)
    await house.start(router={**PATIENT, "queue_wait_s": 30})
    assert house.built is not None
    engine, key, fleet = house.local, house.key(), house.built.fleet
    engine.script = {"gate": True}
    async with Line(house) as first, Line(house) as second:
        await first.send(asked("chat/completions", key))
        await engine.until(lambda: len(engine.requests) == 1)
        await second.send(asked("chat/completions", key))
        await until(lambda: fleet.state()["waiting"] == 1)
        second.leave()
        await until(lambda: fleet.state()["waiting"] == 0, within_s=LEFT_WITHIN_S)
        engine.gate.set()
        assert (await first.answer()).status == 200
    outcomes = [event["outcome"] for event in await ended(house, 2)]
    assert sorted(outcomes) in (["answered", "client_left"], ["answered", "left_queue"])
    assert len(engine.requests) == 1, "nothing was started for the one that left"


async def test_cl_005_who_leaves_the_queue_has_used_nothing(house: FaultHouse) -> None:
    """Nobody worked on it: the tokens that it took of the key's minute are there again."""
    house.serve(house.local.address, limit=1)
    await house.start(router={**PATIENT, "queue_wait_s": 30})
    assert house.built is not None
    engine, fleet, key = house.local, house.built.fleet, house.key(tokens_per_minute=600)
    engine.script = {"gate": True}
    async with Line(house) as first, Line(house) as second:
        await first.send(asked("chat/completions", house.key()))
        await engine.until(lambda: len(engine.requests) == 1)
        await second.send(wire.request(ask("small", max_tokens=64, n=8), key))
        await until(lambda: fleet.state()["waiting"] == 1)
        second.leave()
        await until(lambda: fleet.state()["waiting"] == 0, within_s=LEFT_WITHIN_S)
        engine.gate.set()
        assert (await first.answer()).status == 200
    assert remaining(await house.tell(ask("small", max_tokens=64), key)) > 500


@pytest.mark.parametrize("stream", [False, True])
async def test_cl_001_what_leaving_costs_of_a_minute(house: FaultHouse, stream: bool) -> None:
    """Of a stream what had come; of an answer that would have come whole all it was likely to take."""
    await house.start(router=PATIENT)
    key = house.key(tokens_per_minute=1000)
    house.fail_all({"stream": ["Hi", *[" there"] * 49, None]} if stream else {"never": True})
    async with Line(house) as line:
        await line.send(wire.request(ask("small", stream=stream, max_tokens=64, n=8), key))
        await house.local.until(lambda: house.asked() == 1)
        if stream:
            await line.until(b"Hi")
            for _ in range(49):
                await line.until(b" there")
        line.leave()
        (left,) = await ended(house)
    house.fail_all({})
    used = 1000 - remaining(await house.tell(ask("small", max_tokens=64), key))
    assert left["outcome"] == "client_left"
    if stream:
        assert 50 < used < 200, "50 pieces, the prompt, and the 64 + prompt that the second one asks for"
    else:
        assert used > 512


def remaining(found: wire.Outcome) -> int:
    """What the key has left of its tokens while this answer's own are still taken."""
    assert found.status == 200, found
    return int(found.headers["x-ratelimit-remaining-tokens"])


async def test_cl_005_leaves_during_a_retry(house: FaultHouse) -> None:
    await house.start(replicas=2, router=PATIENT)
    house.fail_first({"status": 503}, {"never": True})
    async with Line(house) as line:
        await line.send(asked("chat/completions", house.key()))
        await house.local.until(lambda: house.asked() == 2)
        line.leave()
        await house.local.until(lambda: sum(one.left for one in house.replicas) == 1)
    (event,) = await ended(house)
    assert (event["outcome"], len(event["attempts"]), house.asked()) == ("client_left", 2, 2)


async def test_cl_005_leaves_while_it_waits_to_try_again(house: FaultHouse) -> None:
    """The engine has refused it once for want of room, and is left alone for a moment."""
    await house.start(router={**PATIENT, "queue_wait_s": 30})
    assert house.built is not None
    fleet = house.built.fleet
    house.fail_all({"status": 503, "body": "{}"})
    async with Line(house) as line:
        await line.send(asked("chat/completions", house.key()))
        await until(lambda: house.asked() == 1 and fleet.state()["waiting"] == 1)
        line.leave()
        await until(lambda: fleet.state()["waiting"] == 0, within_s=LEFT_WITHIN_S)
    (event,) = await ended(house)
    assert (event["outcome"], [one["outcome"] for one in event["attempts"]]) == ("left_queue", ["overloaded"])
    assert house.asked() == 1, "it was asked again for somebody who had left"


async def test_cl_005_leaves_while_the_gate_scans(house: FaultHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is public and could leave, so it is searched first, in a thread since it is long; nobody is asked after it."""
    searching, go_on = threading.Event(), threading.Event()
    search = Scanner.search

    def slowly(scanner: Scanner, texts: Any) -> Any:
        searching.set()
        assert go_on.wait(20)
        return search(scanner, texts)

    await house.start(router=PATIENT)
    monkeypatch.setattr(Scanner, "search", slowly)
    try:
        async with Line(house) as line:
            long = {**ask("cheap"), "messages": [{"role": "user", "content": "a word " * AT_ONCE}]}
            await line.send(wire.request(long, house.key("public")))
            await until(searching.is_set)
            line.leave()
            await until(lambda: house.rows(), within_s=LEFT_WITHIN_S)
    finally:
        go_on.set()
    ((event,),) = house.rows().values()
    assert (event["kind"], event["error"]) == ("refused", "client_left")
    monkeypatch.undo()
    assert (await house.tell(ask("small"), house.key())).status == 200, "by then its search has long ended"
    assert house.asked() == 1 and house.leaked() == 0


async def test_cl_005_leaves_while_its_body_is_on_the_way(house: FaultHouse) -> None:
    """Before there is a request to scan: nothing is asked, nothing is opened."""
    await house.start()
    async with Line(house) as line:
        await line.send(asked("chat/completions", house.key())[:-5])
        line.leave()
    found = await house.tell(ask("small"), house.key())
    assert (found.status, house.asked()) == (200, 1)


class All:
    """Several lines as one."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines

    async def __aenter__(self) -> None:
        for line in self.lines:
            await line.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        for line in self.lines:
            await line.__aexit__(None, None, None)


# ---- slow readers

DELTA = event({"choices": [{"index": 0, "delta": {"content": "x" * 16_000}, "finish_reason": None}]})


def long_stream(deltas: int) -> dict[str, Any]:
    """So many deltas of 16 KB, and the end."""
    return {"chunks": [*[DELTA] * deltas, b"data: [DONE]\n\n"], "headers": {"content-type": "text/event-stream"}}


async def test_cl_006_a_reader_that_stops_is_let_go(house: FaultHouse) -> None:
    await house.start(router={**PATIENT, "write_timeout_s": 1.0})
    house.fail_all(long_stream(4000))
    async with Line(house, receive=4096) as line:
        await line.send(asked("chat/completions", house.key(), stream=True))
        await line.until(b"\n\n")
        line.stop_reading()
        await house.local.until(lambda: house.local.blocked > 0)
        held_back = house.local.sent
        assert held_back < 24 * 2**20, "the kernel's buffers and a little more, of 64 MB"
        await house.local.until(lambda: house.local.left == 1, within_s=10)
        assert house.local.sent - held_back < 8 * 2**20
        line.go_on_reading()
        came = await line.ended()
        assert b"[DONE]" not in came, "it cannot be taken for a whole answer"
    (event,) = await ended(house)
    assert event["outcome"] in ("client_left", "failed"), event["outcome"]


async def test_cl_006_a_reader_that_is_slow_and_reads_on_is_served(house: FaultHouse) -> None:
    await house.start(router={**PATIENT, "write_timeout_s": 1.5})
    house.fail_all(long_stream(900))
    async with Line(house, receive=16_384) as line:
        await line.send(asked("chat/completions", house.key(), stream=True))
        await line.until(b"\n\n")
        for _ in range(10):
            line.stop_reading()
            await asyncio.sleep(0.3)  # slow on purpose; in all longer than the deadline
            line.go_on_reading()
            await line.reader.readexactly(200_000)
        last, part = b"", b"-"
        while part and b"data: [DONE]\n\n" not in last:
            part = await line.reader.read(65_536)
            last = last[-20:] + part
            assert b'"error"' not in last
        assert part, "it was cut"
    assert house.local.blocked > 0


async def test_cl_006_readers_that_are_slow_do_not_make_an_engine_rest(house: FaultHouse) -> None:
    """What they do not take in the whole time is cut, and that is no fault of the endpoint."""
    await house.start(replicas=2, router={**PATIENT, "total_timeout_s": 1.0, "write_timeout_s": 20.0})
    house.fail_all(long_stream(4000))
    key, lines = house.key(), [Line(house, receive=4096) for _ in range(6)]
    async with All(lines):
        for line in lines:
            await line.send(asked("chat/completions", key, stream=True))
            await line.until(b"\n\n")
            line.stop_reading()
        await house.local.until(lambda: sum(one.left for one in house.replicas) == 6, within_s=10)
        for line in lines:
            line.go_on_reading()
            came = await line.ended()
            assert b"upstream_interrupted" in came and b"[DONE]" not in came, "it cannot be taken for a whole answer"
    assert [event["outcome"] for event in await ended(house, 6)] == ["cut"] * 6
    assert not house.endpoint("small")["resting"] and not house.endpoint("small-2")["resting"]


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
async def test_cl_006_many_that_stop_hold_little_memory(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Each at most 256 KB of the router's: what waits to be written, and what its answer holds back."""
    descriptors_for(4 * count)
    house.most_bytes, house.most_stall_s = count * MIB, 1.0  # the clients and the upstream are on this loop as well
    outlets: list[Outlet] = []
    made = Outlet.__init__
    monkeypatch.setattr(Outlet, "__init__", lambda out, *given: (outlets.append(out), made(out, *given))[1])
    house.serve(house.local.address, limit=0)
    await house.start(router={**PATIENT, "write_timeout_s": 60.0})
    assert house.built is not None
    house.fail_all(long_stream(4000))
    key, lines = house.key(budget_usd=None), [Line(house, receive=4096) for _ in range(count)]
    async with All(lines):
        for line in lines:
            await line.send(asked("chat/completions", key, stream=True))
            await line.until(b"\n\n")
            line.stop_reading()
        await house.local.until(lambda: house.local.blocked >= count, within_s=60)
        house.fail_all({})
        assert (await house.tell(ask("small"), key)).status == 200, "others are served meanwhile"
        waiting = [out._transport.get_write_buffer_size() for out in outlets if not out._transport.is_closing()]
        pools = house.built.connections._pools.values()
        held = [wire._response.held for pool in pools for wire in pool.open if wire._response is not None]
        assert sum(size > 0 for size in waiting) >= count, "they are not behind"
        assert max(waiting) + max(held) <= 256 * 1024, (max(waiting), max(held))
        assert house.built.edge.load.open == count
    assert house.watch.most - house.watch.start < count * MIB  # the upstream's own buffers are in it too


def descriptors_for(count: int) -> None:
    """Let this process have so many more open files than usual, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 512
    if soft < wanted and hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine lets a process have {hard} descriptors, {wanted} are needed")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# ---- crowds and halves


async def test_cl_008_of_too_many_connections_the_oldest_idle_one_goes(house: FaultHouse) -> None:
    await house.start(router={**PATIENT, "max_connections": 8})
    house.fail_all({"stream": ["Hel", True, "lo"]})
    key = house.key()
    async with Line(house) as busy:
        await busy.send(asked("chat/completions", key, stream=True))
        await house.local.until(lambda: house.asked() == 1)
        idle = [Line(house) for _ in range(12)]
        async with All(idle):
            for line in idle[:5]:
                assert await line.ended() == b"", "the oldest that wait for nothing are closed"
            house.local.script = {}
            await idle[-1].send(asked("chat/completions", key))
            assert (await idle[-1].answer()).status == 200
            house.local.gate.set()
            assert (await busy.answer()).text == "Hello"


async def test_cl_008_ten_thousand_that_wait_for_nothing(house: FaultHouse) -> None:
    """With the cap that is shipped: whoever asks is answered, among the first, in the middle and at the end."""
    crowd, cap = 10_000, RouterSettings().max_connections
    descriptors_for(crowd + cap)
    house.most_bytes, house.most_stall_s = 512 * MIB, 2.0  # both ends of them are in this process
    await house.start(router=PATIENT, fast=False)
    key, loop, idle = house.key(), asyncio.get_running_loop(), list[socket.socket]()
    house.fail_all({"stream": ["Hel", True, "lo"]})
    try:
        async with Line(house) as busy:
            await busy.send(asked("chat/completions", key, stream=True))
            await house.local.until(lambda: house.asked() == 1)
            house.local.script = {}
            for start in range(0, crowd, 500):
                some = [socket.socket() for _ in range(500)]
                idle += some
                for one in some:
                    one.setblocking(False)
                await asyncio.gather(*(loop.sock_connect(one, ("127.0.0.1", house.port)) for one in some))
                assert (await house.tell(ask("small"), key)).status == 200, start
            await until(lambda: sum(over(one) for one in idle) >= crowd - cap)
            assert all(over(one) for one in idle[: crowd - cap - 500]), "others went than the oldest"
            assert not over(idle[-1])
            house.local.gate.set()
            assert (await busy.answer()).text == "Hello"
    finally:
        for one in idle:
            one.close()


def over(one: socket.socket) -> bool:
    """Whether the router has ended this connection, on which it never says anything."""
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_cl_009_half_a_close_is_no_leaving(house: FaultHouse, stream: bool) -> None:
    await house.start(router=PATIENT)
    house.fail_all({"gate": True})
    async with Line(house) as line:
        await line.send(asked("chat/completions", house.key(), stream=stream))
        line.end_sending()
        await house.local.until(lambda: house.asked() == 1)
        await asyncio.sleep(0.1)
        assert house.local.left == 0
        house.local.gate.set()
        found = await line.answer()
        assert (found.status, found.code) == (200, "ok")
        assert await line.ended() == b""
    assert (await house.closed(found))["outcome"] == "answered"


def expecting(key: str, size: int) -> bytes:
    """The head of a request that waits for leave to send its body."""
    head = wire.request(b"", key, headers={"expect": "100-continue", "content-length": str(size)})
    assert head.endswith(b"\r\n\r\n")
    return head


async def test_cl_011_a_wrong_key_is_refused_before_its_body(house: FaultHouse) -> None:
    await house.start()
    async with Line(house) as line:
        await line.send(expecting("hg_not_a_key", 10 * 2**20))
        came = await line.ended()
        assert came.startswith(b"HTTP/1.1 401 ") and b"100 Continue" not in came
        assert b"invalid_api_key" in came


async def test_cl_011_a_good_key_is_told_to_go_on(house: FaultHouse) -> None:
    await house.start()
    body = json.dumps(ask("small", user="u" * 2000)).encode()
    async with Line(house) as line:
        await line.send(expecting(house.key(), len(body)))
        assert await line.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(body)
        assert (await line.answer()).status == 200


# ---- asking again


async def test_cl_012_the_official_client_hardly_asks_again(house: FaultHouse) -> None:
    house.most_stall_s = 2.0  # the client works on the same loop
    await house.start(replicas=2)
    house.fail_all({"status": 500, "body": "{}"})
    calls, wide = 30, asyncio.Semaphore(5)
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.key(), max_retries=2) as client:

        async def call() -> None:
            async with wide:
                with pytest.raises(openai.APIStatusError):
                    await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "Hi"}])

        await asyncio.gather(*(call() for _ in range(calls)))
    await ended(house, calls)
    house.threads = threading.active_count()  # the client looks names up in threads of its own
    rows = len(house.rows())
    print(f"{calls} calls, {rows} requests at the router, {house.asked()} at the upstreams")
    assert calls <= rows <= 1.2 * calls


TEMPORARY: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "headers": {"retry-after": "7"}, "body": "{}"},
    "503": {"status": 503, "body": "{}"},
}


@pytest.mark.parametrize("form", TEMPORARY)
async def test_cl_012_the_official_client_comes_back_as_often_as_it_may_where_waiting_can_help(
    house: FaultHouse, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """An outage that lasts is asked about three times by each call, each time after the wait that it was told.

    So much more than 1.2 times: the other way would be to tell it that waiting is of no use, which is not so.
    """
    told: list[float] = []
    reckoned = openai.AsyncOpenAI._calculate_retry_timeout

    def at_once(client: openai.AsyncOpenAI, *given: Any, **more: Any) -> float:
        told.append(reckoned(client, *given, **more))
        return 0.0

    monkeypatch.setattr(openai.AsyncOpenAI, "_calculate_retry_timeout", at_once)
    house.most_stall_s = 2.0  # the client works on the same loop
    await house.start()
    house.fail_all(TEMPORARY[form])
    calls = 10
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.key(), max_retries=2) as client:
        for _ in range(calls):
            with pytest.raises(openai.APIStatusError):
                await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "Hi"}])
    await ended(house, 3 * calls)
    house.threads = threading.active_count()  # the client looks names up in threads of its own
    print(f"{calls} calls, {len(house.rows())} requests at the router, {house.asked()} at the upstreams")
    assert len(house.rows()) == 3 * calls == len(told) + calls
    assert all(1 <= one <= 7 for one in told), "it was not told how long to wait"
    assert house.asked() <= 3 * calls, "the router multiplied it"
    if form == "503":
        assert house.asked() <= calls, "an engine that is full is left alone for a moment, whoever asks"


async def test_cl_012_a_final_answer_says_so_and_a_wait_says_how_long(house: FaultHouse) -> None:
    await house.start()
    key = house.key()
    assert (await house.tell(ask("nobody"), key)).headers["x-should-retry"] == "false"
    house.fail_all({"status": 500, "body": "{}"})
    assert (await house.tell(ask("small"), key)).headers["x-should-retry"] == "false"
    house.fail_all({"status": 429, "headers": {"retry-after": "7"}, "body": "{}"})
    short = (await house.tell(ask("small"), key)).headers
    assert 1 <= int(short["retry-after"]) <= 7 and 0 < int(short["retry-after-ms"]) <= 7000
    assert "x-should-retry" not in short


async def test_cl_012_a_long_wait_is_not_for_the_client_to_sit_out(house: FaultHouse) -> None:
    await house.start()
    house.fail_all({"status": 429, "headers": {"retry-after": "120"}, "body": "{}"})
    long = (await house.tell(ask("small"), house.key())).headers
    assert 61 <= int(long["retry-after"]) <= 120
    assert long["x-should-retry"] == "false"


async def test_cl_013_of_two_with_one_name_one_is_executed(house: FaultHouse) -> None:
    await house.start(router=PATIENT)
    house.fail_all({"gate": True})
    key = house.key()
    asking = wire.request(ask("small"), key, headers={"idempotency-key": "n1"})
    async with Line(house) as first, Line(house) as second:
        await first.send(asking)
        await house.local.until(lambda: house.asked() == 1)
        await second.send(asking)
        late = await second.answer()
        assert (late.status, late.code) == (409, "idempotency_in_progress")
        house.local.gate.set()
        found = await first.answer()
        assert found.status == 200
    again = await wire.exchange(house.port, asking)
    assert (again.status, again.body, house.asked()) == (200, found.body, 1), "the answer that is kept"
    other = await house.tell(ask("small", user="u"), key, headers={"idempotency-key": "n1"})
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert house.asked() == 1


async def test_cl_013_a_name_belongs_to_its_key(house: FaultHouse) -> None:
    await house.start()
    for key in (house.key(), house.key()):
        found = await house.tell(ask("small"), key, headers={"idempotency-key": "n1"})
        assert found.status == 200
    assert house.asked() == 2


async def test_cl_013_streams_are_not_kept(house: FaultHouse) -> None:
    await house.start()
    key, named = house.key(), {"idempotency-key": "n1"}
    for _ in range(2):
        assert (await house.tell(ask("small", stream=True), key, headers=named)).text == "Hello wörld"
    assert house.asked() == 2


FAILING: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "body": "{}"}, "500": {"status": 500, "body": "{}"}, "502": {"status": 502, "body": "{}"},
    "503": {"status": 503, "body": "{}"}, "504": {"status": 504, "body": "{}"}, "page": {"body": "<html>"},
    "reset": {"reset": 0}, "late": {"never": True},
}  # fmt: skip


@each({name: (name, script) for name, script in FAILING.items()})
async def test_cl_013_what_went_wrong_is_not_kept(house: FaultHouse, name: str, script: dict[str, Any]) -> None:
    """Nobody has been answered: whoever asks again under the same name is answered anew, as soon as that goes."""
    await house.start(router={"first_byte_timeout_s": 0.3})
    key, named = house.key(), {"idempotency-key": name}
    house.fail_first(script)
    assert (await house.tell(ask("small"), key, headers=named)).status in (429, 502, 503, 504)
    async with asyncio.timeout(5):  # one that said it is full is left alone for a second
        while (found := await house.tell(ask("small"), key, headers=named)).status != 200:
            assert "x-headgate-replayed" not in found.headers
            await asyncio.sleep(0.1)
    assert "x-headgate-replayed" not in found.headers
    again = await wire.exchange(house.port, wire.request(ask("small"), key, headers=named))
    assert (again.body, again.headers["x-headgate-replayed"]) == (found.body, "true")


async def test_cl_013_what_is_wrong_with_the_request_itself_is_kept(house: FaultHouse) -> None:
    await house.start()
    wrong = {"error": {"message": "temperature must be at most 2", "type": "BadRequestError", "code": 400}}
    house.fail_all({"status": 400, "body": json.dumps(wrong)})
    asking = wire.request(ask("small"), house.key(), headers={"idempotency-key": "n1"})
    first, again = await house.send(asking), await wire.exchange(house.port, asking)
    assert (first.status, again.status, again.body, house.asked()) == (400, 400, first.body, 1)


async def test_cl_013_one_that_left_does_not_block_its_name(house: FaultHouse) -> None:
    await house.start(router=PATIENT)
    house.fail_all({"never": True})
    asking = wire.request(ask("small"), house.key(), headers={"idempotency-key": "n1"})
    async with Line(house) as line:
        await line.send(asking)
        await house.local.until(lambda: house.asked() == 1)
        line.leave()
        await house.local.until(lambda: house.local.left == 1)
    house.fail_all({})
    await ended(house)
    assert (await house.send(asking)).status == 200
