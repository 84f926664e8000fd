"""The simulation: no request is lost or leaves that may not, more is never quicker, and it is the same for a seed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against, routers, simulate, virtual
from benchmarks.cell import simulated
from benchmarks.day import Day, traffic
from benchmarks.mix import Planned, plan
from benchmarks.replica import Job, Profile, Replica, profile_of
from benchmarks.scene import Far, setup_of
from benchmarks.spill import Counted, Row, figures

PROFILE = Profile(20_000.0, ((1, 200.0), (4, 700.0), (8, 1200.0)), at_once=8, limit=32)
CAPACITY = PROFILE.capacity(160, 80)


def offered(router: str, load: float, seconds: float = 20.0, replicas: int = 1) -> tuple[list[Row], Counted]:
    planned = [dataclasses.replace(one, prompt=160) for one in plan(CAPACITY * load * replicas, seconds, 3)]
    setup = setup_of(router, PROFILE, replicas, Far(), 0.5, 5)
    rows, counted = simulated(setup, planned, seconds)
    assert len(rows) == len(planned)  # every request ends, and once
    return rows, counted


# ---- the engine


def flood(profile: Profile, count: int, prompt: int, output: int) -> tuple[list[Job], float, Replica]:
    async def main() -> tuple[list[Job], float, Replica]:
        replica = Replica(profile)
        jobs = [job for _ in range(count) if (job := replica.submit(prompt, output)) is not None]
        ended = [await job.ended for job in jobs]
        return jobs, max(ended), replica

    return virtual.run(main())


def test_an_engine_alone_with_one_request_takes_what_its_profile_says() -> None:
    (job,), end, _ = flood(PROFILE, 1, 2000, 101)
    assert job.first.result() == pytest.approx(2000 / 20_000)
    assert end == pytest.approx(2000 / 20_000 + 100 / 200)


def test_a_full_engine_gets_done_what_its_profile_says_and_makes_every_token() -> None:
    profile = dataclasses.replace(PROFILE, limit=10_000)
    _, end, replica = flood(profile, 800, 160, 80)
    assert 800 / end == pytest.approx(profile.capacity(160, 80), rel=0.05)
    assert replica.tokens == pytest.approx(800 * 80)
    assert (replica.running, replica.waiting) == (0, 0)


def test_an_engine_admits_as_many_as_its_limit_and_runs_as_many_as_fit() -> None:
    async def main() -> None:
        replica = Replica(dataclasses.replace(PROFILE, kv_tokens=500))
        taken = [replica.submit(150, 50) for _ in range(40)]
        assert sum(job is not None for job in taken) == 32
        assert (replica.running, replica.waiting, replica.kv_use) == (2, 30, 0.8)

    virtual.run(main())


def test_more_at_once_is_never_quicker_for_one_and_never_slower_for_all() -> None:
    speeds = [1 / PROFILE.step_s(n) for n in range(1, 9)]
    assert speeds == sorted(speeds, reverse=True)
    totals = [n / PROFILE.step_s(n) for n in range(1, 9)]
    assert totals == sorted(totals)


def test_time_is_made_up_and_passes_in_order() -> None:
    async def main() -> list[float]:
        loop, seen = asyncio.get_running_loop(), list[float]()

        async def one(after: float) -> None:
            await asyncio.sleep(after)
            seen.append(loop.time())

        await asyncio.gather(one(3600.0), one(1.0), one(86400.0))
        return seen

    assert virtual.run(main()) == pytest.approx([1.0, 3600.0, 86400.0])


def test_what_never_comes_is_an_error_and_no_standstill() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="never comes"):
        virtual.run(main())


# ---- the routers


@pytest.mark.parametrize("router", routers.ROUTERS)
@pytest.mark.parametrize("load", [0.5, 2.0, 5.0])
def test_every_request_ends_once_and_no_private_one_leaves(router: str, load: float) -> None:
    rows, counted = offered(router, load)
    assert all(row.good != (row.status == 503) for row in rows)
    assert all(row.place == "local" for row in rows if row.private and row.good)
    assert counted.marked_bytes == 0
    assert all(row.first is not None and row.place for row in rows if row.good)


def test_idle_engines_never_overflow() -> None:
    for router in routers.ROUTERS:
        rows, _ = offered(router, 0.1)
        assert {row.place for row in rows} == {"local"}


def test_the_more_is_asked_the_more_leaves_and_costs() -> None:
    found = [figures(*_listed(offered(routers.PREDICTED, load)), 1000.0) for load in (0.5, 1.0, 2.0, 4.0)]
    for name in ("hosted", "cost_usd", "tokens_per_s"):
        values = [one[name] for one in found]
        assert values == sorted(values) and values[0] < values[-1], name


def test_the_longer_a_wait_is_allowed_the_less_leaves() -> None:
    planned = [dataclasses.replace(one, prompt=160) for one in plan(CAPACITY * 1.5, 20.0, 3)]
    left = []
    for allowed in (0.1, 0.5, 1.5):
        rows, _ = simulated(setup_of(routers.PREDICTED, PROFILE, 1, Far(), allowed, 5), planned, 20.0)
        left.append(sum(row.place == "hosted" for row in rows))
    assert left == sorted(left, reverse=True) and left[0] > left[-1]


def test_predicting_keeps_the_engine_full_and_public_requests_quick_at_twice_its_capacity() -> None:
    mine = figures(*_listed(offered(routers.PREDICTED, 2.0, 40.0)), CAPACITY * 80)
    others = figures(*_listed(offered(routers.ERROR, 2.0, 40.0)), CAPACITY * 80)
    assert mine["of_maximum"] > 0.95 and mine["overtaken"] == 0
    assert mine["public"]["first_s"]["p95"] < 1.0 < others["public"]["first_s"]["p95"]


def test_batch_waits_here_where_an_interactive_request_leaves() -> None:
    planned = [Planned(n / 50, False, 80, 160, "auto", n % 2 == 0) for n in range(300)]
    setup = setup_of(routers.PREDICTED, PROFILE, 1, Far(), 0.5, 5)
    rows, _ = simulated(setup, planned, 10.0)
    late, quick = rows[0::2], rows[1::2]
    assert {row.place for row in late if row.good} == {"local"}
    assert sum(row.place == "hosted" for row in quick) > len(quick) / 2


def _listed(found: tuple[list[Row], Counted]) -> tuple[list[list[Row]], list[Counted]]:
    return [found[0]], [found[1]]


# ---- a day


DAY = ["--gpus=4", "--cell=2", "--window=2", "--warm=1", "--jobs=1", "--prompt=3000", "--output=80", "--peak=2.5"]


def engine_file(folder: Path) -> Path:
    path = folder / "engine.json"
    path.write_text(json.dumps({"prefill_per_s": 20_000, "decode": [[1, 200], [8, 1200]], "at_once": 8, "limit": 32}))
    return path


def test_a_day_is_the_same_for_a_seed_and_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def once(seed: int, name: str) -> list[dict[str, Any]]:
        words = [*DAY, f"--engine={engine_file(tmp_path)}", f"--seed={seed}", f"--out={tmp_path / name}"]
        assert simulate.main(words) == 0, capsys.readouterr().err
        (path,) = (tmp_path / name).glob("simulate-4gpus-*.json")
        assert path.with_suffix(".png").stat().st_size > 10_000
        found: list[dict[str, Any]] = json.loads(path.read_text())["days"]
        return found

    first, again, other = once(1, "a"), once(1, "b"), once(2, "c")
    assert first == again != other
    assert [day["router"] for day in first] == list(routers.ROUTERS)
    for day in first:
        assert day["gpu_usd"] == pytest.approx(4 * 24 * simulate.GPU_HOUR_USD)
        assert day["saved_usd"] == pytest.approx(day["instead_usd"] - day["hosted_usd"] - day["gpu_usd"])
        assert day["private_bytes_out"] == 0 and day["simulated"] > 100
        assert sum(hour["hosted_usd"] for hour in day["hours"]) == pytest.approx(day["hosted_usd"])
        assert [hour["asked"] for hour in day["hours"]] == [hour["asked"] for hour in first[0]["hours"]]
    assert first[0]["hosted_usd"] == 0 < first[3]["hosted_usd"]
    assert "predicted wait" in capsys.readouterr().out


def test_the_busiest_hour_has_the_peak_and_the_quietest_a_quarter_of_it() -> None:
    day = Day(100.0)
    assert max(range(24), key=day.rate) == 15 and day.rate(15) == pytest.approx(100)
    assert day.rate(3) == pytest.approx(25)
    assert day.requests() == pytest.approx(100 / 1.6 * 86400, rel=0.001)


def test_sizes_and_kinds_of_a_day_are_what_they_are_said_to_be() -> None:
    asked = list(traffic(Day(400.0), 15, 0.5, 60.0, 1))
    assert len(asked) == pytest.approx(200 * 60, rel=0.05)
    assert sum(one.output for one in asked) / len(asked) == pytest.approx(300, rel=0.05)
    assert sum(one.private for one in asked) / len(asked) == pytest.approx(0.4, abs=0.02)
    assert sum(one.batch for one in asked) / len(asked) == pytest.approx(0.15, abs=0.02)
    assert all(one.lane == "auto" for one in asked if one.private)


# ---- against what was measured


def test_a_run_that_was_simulated_checks_out_exactly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The check simulates the run's own arrivals: held against itself nothing is off."""
    engine = {"prefill_per_s": 20_000, "decode": [[1, 200], [8, 1200]], "at_once": 8, "limit": 32,
              "prompt_tokens": 160, "requests_per_s": 10.0, "output_per_s": 800.0, "first_s": 0.02}  # fmt: skip
    result: dict[str, Any] = {
        "kind": "overflow", "engine": engine, "price": {"input": 2, "output": 10}, "first_ms": 400, "pause_ms": 15,
        "allowed_s": 0.5, "deadline_s": 5, "private": 0.4, "outputs": [40, 80], "rounds": 1, "seconds": 3.0,
        "loads": [1.0, 2.0], "maximum": 800.0, "steps": [{"router": name} for name in routers.ROUTERS],
    }  # fmt: skip
    result["steps"] = against.checked(result)
    assert [(s["router"], s["load"]) for s in result["steps"]][:2] == [("local only", 1.0), ("local only", 2.0)]
    (tmp_path / "r.json").write_text(json.dumps(result))
    assert simulate.main(["--check", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    assert "median difference: hosted 0.00 %, public p50 0.00 s" in said


def test_what_is_no_engine_and_no_result_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert simulate.main([f"--engine={tmp_path / 'x.json'}"]) == 1
    assert simulate.main([f"--check={tmp_path / 'x.json'}"]) == 1
    assert "describes no engine" in (said := capsys.readouterr().err) and "no result of" in said
    with pytest.raises(ValueError, match="no engine"):
        profile_of({"prefill_per_s": 1, "decode": [], "at_once": "many", "limit": 1})
