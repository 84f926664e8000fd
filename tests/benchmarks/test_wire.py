"""The light client and the upstream's ways: what is heard of an answer, open and closed loops, streams held open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks import memory, overload, rounds, wire
from benchmarks.asking import Asking
from benchmarks.figures import Case
from benchmarks.gateways import Gateway
from benchmarks.gateways import direct as direct_to
from benchmarks.openloop import Kind, OpenLoop, Sent
from benchmarks.upstream import LATE, SILENT, STAMP, Capacity, Peer, Script
from benchmarks.wire import Heard, Wire
from tests.conftest import until
from tests.fakes.faults import Upstream


@contextlib.asynccontextmanager
async def upstream(capacity: Capacity | None = None, chunks: int = 5) -> AsyncIterator[Gateway]:
    """The fixed upstream in this process, as a target without anything in between."""
    loop, script = asyncio.get_running_loop(), Script(chunks=chunks, pause_s=0.002)
    server = await loop.create_server(lambda: Peer(script, loop, capacity), "127.0.0.1", 0)
    async with server:
        yield direct_to(server.sockets[0].getsockname()[1])


async def heard_from(script: dict[str, object], stream: bool = True) -> Heard:
    async with Upstream(script=script) as fake:
        where = wire.place(Asking(url=fake.address, key="k", stream=stream))
        return await (await where.connect()).asked(where.request)


async def test_a_stream_is_heard_to_its_end() -> None:
    async with upstream() as target:
        heard = await wire.closed([wire.place(target.asking(stream=True))], 3, 2)
    assert len(heard) == 6 and all(h.good and h.sent < h.first < h.ended and h.texts >= 6 for h in heard)


async def test_a_whole_answer_is_heard_and_the_connection_used_again() -> None:
    async with Upstream() as fake:
        where = wire.place(Asking(url=fake.address, key="k", stream=False))
        heard = await wire.closed([where], 1, 3)
        assert fake.accepted == 1 and fake.requests[0].headers["authorization"] == "Bearer k"
    assert [h.good for h in heard] == [True] * 3


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ({"status": 503, "body": "{}"}, 503),
        ({"cut": 400, "stream": ["a"] * 20}, 200),
        ({"headers": {"content-type": "text/event-stream"}, "body": 'data: {"choices": []}\n\n'}, 200),
        ({"headers": {"content-type": "text/event-stream"},
          "body": 'data: {"error": {"code": "upstream_cut"}}\n\ndata: [DONE]\n\n'}, 0),
        ({"raw": "nonsense\r\n\r\n"}, 0),
    ],
)  # fmt: skip
async def test_an_answer_that_did_not_come_to_its_end_is_no_good_one(script: dict[str, object], status: int) -> None:
    heard = await heard_from(script)
    assert not heard.good and heard.status == status and heard.ended


async def test_an_open_loop_keeps_its_rate_whatever_the_server_does() -> None:
    async with Upstream(script={"never": True}) as fake:
        kinds = [Kind(wire.place(Asking(url=fake.address, stream=False)), 1.0, (0.05, 0.1))]
        sent = await OpenLoop(kinds, rate=100).run(0.3)
    assert len(sent) == 30 and all(s.left and s.heard and not s.heard.good for s in sent)
    due = [s.due for s in sent]
    assert due == sorted(due) and due[-1] - due[0] == pytest.approx(0.29)


async def test_a_caller_that_leaves_is_gone_and_the_others_stay() -> None:
    async with upstream(chunks=60) as target:
        where = wire.place(target.asking(stream=True))
        kinds = [Kind(where, 0.5), Kind(where, 0.5, (0.01, 0.03))]
        gone: list[Sent] = []
        loop = OpenLoop(kinds, rate=100)
        assert await loop.run(0.3, gone.append) == [] and loop.open == 0
    assert len(gone) == 30 and {s.kind for s in gone} == {0, 1}
    assert all(s.left == (s.kind == 1) and bool(s.heard and s.heard.good) == (s.kind == 0) for s in gone)


async def test_a_silent_stream_is_held_and_a_late_one_comes() -> None:
    async with upstream() as target:
        where = wire.place(target.asking(SILENT, stream=True))
        async with wire.held(where, 30, at_once=10) as heard:
            assert len(heard) == 30 and all(h.first and not h.ended for h in heard)
        late = await wire.closed([wire.place(target.asking(LATE, stream=True))], 1, 1)
        assert late[0].good and late[0].first - late[0].sent > 0.2


async def test_a_stamped_stream_says_when_the_upstream_had_the_request() -> None:
    async with upstream() as target:
        (plain,) = await wire.closed([wire.place(target.asking(stream=True))], 1, 1)
        (stamped,) = await wire.closed([wire.place(target.asking(STAMP, stream=True))], 1, 1)
    assert plain.reached == 0 and (plain.good, stamped.good) == (True, True)
    assert stamped.sent < stamped.reached + 1e-6 <= stamped.first + 1e-5, "the stamp has whole microseconds"
    found = rounds.done([stamped])
    assert found.reached_p50 is not None and found.back_p50 is not None
    assert found.reached_p50 + found.back_p50 == pytest.approx(found.first_token_p50)
    assert rounds.done([plain]).reached_p50 is None


async def test_the_upstream_refuses_what_is_beyond_its_slots_and_its_queue() -> None:
    async with upstream(Capacity(slots=2, service_s=0.05, queue=3)) as target:
        where = wire.place(target.asking())
        heard = await wire.closed([where], 9, 1)
        assert sorted(h.status for h in heard) == [200] * 5 + [503] * 4
        assert [h.status for h in await wire.closed([where], 1, 2)] == [200, 200], "there is room again"


async def test_a_caller_that_leaves_the_queue_does_not_keep_its_slot() -> None:
    async with upstream(Capacity(slots=1, service_s=0.02, queue=5)) as target:
        where = wire.place(target.asking())
        wires: list[Wire] = [await where.connect() for _ in range(4)]
        for each in wires:
            each.ask(where.request, lambda _: None)
            each.leave()
        await until(lambda: not any(each.open for each in wires))
        assert [h.status for h in await wire.closed([where], 1, 1)] == [200]


async def test_goodput_counts_what_came_in_time_and_refusals_apart() -> None:
    def sent(due: float, status: int, took: float) -> Sent:
        return Sent(0, due, Heard(due, status=status, ended=due + took, whole=status > 0))

    made = [sent(n / 10, 200, 0.1) for n in range(50)] + [sent(5 + n / 10, 503, 0.01) for n in range(40)]
    made += [sent(9 + n / 10, 200, overload.PATIENCE_S + 1) for n in range(9)] + [Sent(0, 9.9, None)]
    said = overload.said(made, 10.0)
    assert said["asked"] == 80 and said["good"] == 30 and said["refused"] == 40 and said["other"] == 10
    assert said["good_per_s"] == pytest.approx(30 / 8) and said["refusal_p99_s"] == pytest.approx(0.01)
    assert said["good_p99_s"] == pytest.approx(0.1), "neither refusals nor what came too late is admitted"
    assert not said["behind"]
    assert overload.slower(said, {**said, "good_p99_s": 0.3}) == pytest.approx(3)
    assert overload.slower(overload.said([sent(0, 503, 0.01)], 10.0), said) is None, "nothing was admitted"


def test_a_slow_gateway_is_given_less() -> None:
    slow = Gateway("slow", "http://127.0.0.1:1", "", "", dict, effort=0.25)
    assert rounds.at_once(Case("streams", 32, 4, 100), slow) == 8


async def test_what_is_measured_of_streams_is_their_number_and_their_first_token(tmp_path: Path) -> None:
    async with upstream() as target:
        case = Case("streams", 2, 3, 5)
        found = await asyncio.to_thread(rounds.measure, case, target, 1.0, tmp_path)
        held = await asyncio.to_thread(memory.measured, target, 0.0)
    assert found.units == 30 and 0 < (found.done.first_token_p50 or 0) < (found.done.p50 or 0) and not found.cpu_s
    assert held.streams == target.streams and held.idle_mb == 0
