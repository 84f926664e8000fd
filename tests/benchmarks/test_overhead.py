"""CPU accounting, the medians, the fixed upstream over a real socket, and what is said where a tool is missing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import closed, cpu, kept, machine, nginx, overhead, peers, picture
from benchmarks.asking import Asking
from benchmarks.closed import Done, read_wrk
from benchmarks.figures import Case, Figure, Reading, figures, first_tokens
from benchmarks.gateways import not_searched
from benchmarks.goals import README, goals, markdown, missed, placed
from benchmarks.installation import Stop, free_port, part_of
from benchmarks.memory import held_kb
from benchmarks.profiling import lines, of_script, of_stacks
from benchmarks.upstream import Peer, Script
from serving import probe
from serving.probe import Target
from tests.fakes.faults import Upstream

STAT = "4242 (a (b) c) S 1 4242 4242 0 -1 4194560 900 0 3 0 {user} {system} 0 0 20 0 7 0 12345 1000 200"

# ---- CPU


def test_cpu_time_is_user_and_system_whatever_the_process_is_called() -> None:
    assert cpu.ticks(STAT.format(user=150, system=25)) == 175
    with pytest.raises(ValueError, match="no line"):
        cpu.ticks("")


def test_a_process_that_works_is_seen_to_work() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = cpu.seconds([child.pid])
        end = time.monotonic() + 10
        while cpu.between(before, cpu.seconds([child.pid]))[child.pid] < 0.1:
            assert time.monotonic() < end
        assert (cpu.resident_mb(child.pid) or 0) > 1
    finally:
        child.kill()
        child.wait()
    assert cpu.seconds([child.pid]) == {} and cpu.resident_mb(child.pid) is None


def test_a_process_that_came_counts_whole_and_one_that_went_is_not_guessed() -> None:
    assert cpu.between({1: 2.0}, {1: 2.5, 7: 0.25}) == {1: 0.5, 7: 0.25}
    with pytest.raises(ValueError, match="7"):
        cpu.between({1: 2.0, 7: 1.0}, {1: 2.5})


def test_an_engine_begins_on_one_core_and_all_else_moves_to_the_others() -> None:
    mine = cpu.cores()
    with cpu.first_core() as leave:
        assert cpu.cores() == mine[:1]
        leave([])
        assert cpu.cores() == (mine[1:] or mine)
    assert cpu.cores() == mine


def test_processes_are_told_apart_by_their_command() -> None:
    python = [sys.executable, "-P", "-m"]
    parts = [part_of([*python, module, "--x"]) for module in ("router", "serving", "router.door", "router.keeper")]
    assert parts == ["router", "serving", "door", "keeper"]
    assert part_of(["nginx: worker"]) == part_of([]) == "other"


# ---- the figures

CASES = (Case("one", 1), Case("streams", 2, streams=3, pieces=100))


def reading(case: str, target: str, units: int, p50: float = 0.001, **used: float) -> Reading:
    done = Done(requests=units, errors=0, seconds=2.0, p50=p50, p99=0.01, first_token_p50=p50 * 2, first_token_p99=0.02)
    return Reading(case, target, units, used, done)


READINGS = (
    reading("one", "direct", 2000, p50=0.0004),
    *(reading("one", "nginx", 1000, p50=0.0005, nginx=s) for s in (0.02, 0.03, 0.08)),
    *(reading("one", "headgate", 1000, router=s, serving=0.06) for s in (0.2, 0.24, 0.9)),
    reading("one", "smg", 1000, smg=0.48),
    reading("streams", "nginx", 1000, nginx=0.01),
    reading("streams", "headgate", 1000, router=0.025, serving=0.005),
)


def test_medians_and_the_ratio_to_nginx() -> None:
    found = {(f.case, f.target): f for f in figures(CASES, READINGS)}
    assert found["one", "nginx"].cpu_us == pytest.approx(30)
    router, everything = found["one", "router"], found["one", "headgate, all processes"]
    assert (router.cpu_us, router.lowest, router.highest) == tuple(pytest.approx(v) for v in (240, 200, 900))
    assert router.ratio == pytest.approx(8) and everything.ratio == pytest.approx(10)
    assert router.ratio_smg == pytest.approx(0.5) and found["one", "smg"].ratio == pytest.approx(16)
    assert router.per_s == 500 and router.added_p50_ms == pytest.approx(0.6)
    assert found["one", "direct"].cpu_us is None
    streams = found["streams", "router"]
    assert (streams.unit, streams.ratio) == ("chunk", pytest.approx(2.5))
    assert streams.p50_ms == pytest.approx(2.0) and streams.added_p50_ms is None, "there was no direct round"


def test_the_figures_survive_their_file() -> None:
    made = figures(CASES, READINGS)
    text = json.dumps([dataclasses.asdict(f) for f in made])
    assert [Figure(**entry) for entry in json.loads(text)] == made


def test_the_first_token_is_held_against_that_without_anything_in_between() -> None:
    readings = [reading("streams", "direct", 1, p50=0.0005), reading("streams", "headgate", 1, p50=0.001)]
    direct, through = first_tokens(readings, {"direct": 32, "headgate": 32})
    assert (direct.p50_ms, direct.added_p50_ms) == (pytest.approx(1.0), 0)
    assert through.added_p50_ms == pytest.approx(1.0) and through.added_p99_ms == pytest.approx(0)
    (alone,) = first_tokens(readings[1:], {"headgate": 32})
    assert alone.added_p50_ms is None, "nothing to compare with"


def test_memory_of_a_stream_is_what_it_added() -> None:
    assert held_kb(70.0, 100.0, 1000) == pytest.approx(30)
    assert held_kb(70.0, 100.0, 0) is None


# ---- the goals


def overloaded(ratio: float, behind: bool = False, slower: float = 2.0) -> dict[str, object]:
    below = {"behind": False, "good_p99_s": 0.1}
    over = {"behind": behind, "good_p99_s": 0.1 * slower}
    return {"ratio": ratio, "slower": slower, "below": below, "peak": {"behind": False}, "over": over}


def result(**changed: object) -> dict[str, object]:
    """A result in which every goal is just met."""

    def figure(case: str, us: float) -> dict[str, object]:
        return {"case": case, "target": "router", "cpu_us": us, "ratio": 6.0, "ratio_smg": 0.65}

    return {
        "figures": [figure("1 connection", 200), figure("32 connections", 150), figure("32 streams", 25)],
        "first_token": [{"target": "headgate", "added_p50_ms": 1.0, "added_p99_ms": 5.0}],
        "memory": [{"target": "headgate", "idle_mb": 120.0, "streams": 1000, "kb_per_stream": 40.0}],
        "vllm": {"ratio": 0.98, "low": 0.97, "high": 0.99}, "overload": overloaded(0.9), **changed,
    }  # fmt: skip


def test_goals_that_are_just_met_are_met() -> None:
    found = goals(result())
    assert len(found) == 14 and [goal.met for goal in found] == [True] * 14
    assert "95 % interval 97.0 to 99.0" in found[11].said


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"overload": overloaded(0.89)}, "goodput"),
        ({"overload": overloaded(0.95, slower=2.1)}, "admitted"),
        ({"vllm": {"ratio": 0.979, "low": 0.97, "high": 0.99}}, "real vLLM"),
        ({"memory": [{"target": "headgate", "idle_mb": 121.0, "streams": 1000, "kb_per_stream": 1.0}]}, "idle router"),
        ({"first_token": [{"target": "headgate", "added_p50_ms": 0.5, "added_p99_ms": 5.1}]}, "p99"),
    ],
)
def test_a_goal_that_is_missed_is_said_to_be(changed: dict[str, object], name: str) -> None:
    (goal,) = missed(goals(result(**changed)))
    assert name in goal.name
    assert "**missed**" in markdown([goal])


def test_an_interval_too_wide_to_judge_by_gives_no_verdict() -> None:
    noisy = goals(result(vllm={"ratio": 1.5, "low": 0.4, "high": 5.0}))[11]
    assert (noisy.met, noisy.verdict) == (None, "no verdict") and "too noisy" in noisy.said
    assert markdown([noisy]).endswith("| no verdict |")
    for behind in goals(result(overload=overloaded(0.95, behind=True)))[12:]:
        assert behind.verdict == "no verdict" and "fell behind" in behind.said


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = goals({"figures": []})
    assert {goal.met for goal in found} == {None} and not missed(found)
    assert markdown(found).count("not measured") == len(found)


def test_what_is_kept_of_an_engines_throughput_is_by_run_and_by_its_own_cpu() -> None:
    def leg(tokens_per_s: float, cpu_s: float) -> kept.Leg:
        return kept.Leg(tokens_per_s, cpu_s, tokens_per_s * 3)

    # The machine was taken from the engine for a while in the second run: it shows in the rate alone.
    runs = [
        {"direct": [leg(1000, 3), leg(1000, 3)], "headgate": [leg(990, 3), leg(990, 3)]},
        {"direct": [leg(1000, 3), leg(1000, 3)], "headgate": [leg(990, 3), leg(495, 1.5)]},
    ]
    found = kept.compared(runs)
    assert found["runs"][1] == {"direct": 1000, "headgate": 742.5}
    assert found["per_engine_cpu"]["value"] == pytest.approx(0.99) and found["ratio"] < 0.9


def test_the_readmes_goals_are_those_of_the_last_result() -> None:
    last = max(machine.RESULTS.glob("overhead-*.json"))
    page = README.read_text()
    assert placed(page, markdown(goals(json.loads(last.read_text())))) == page, (
        "python -m benchmarks.goals FILE --write"
    )
    with pytest.raises(ValueError, match="no marks"):
        placed("a page", "a table")


# ---- where the time goes


def test_stacks_become_shares_by_function_and_by_module() -> None:
    text = (
        "run (uvloop/loop.py:10);answer (router/api/protocol.py:7);write (router/api/protocol.py:90) 60\n"
        "run (uvloop/loop.py:10);answer (router/api/protocol.py:8);loads (json/decoder.py:3) 20\n"
        "run (uvloop/loop.py:11) 20\n"
    )
    found = of_stacks(text)
    assert found["samples"] == 100
    assert found["by_function"][0] == {"function": "write (router/api/protocol.py)", "own": 60.0, "with_calls": 60.0}
    assert found["by_module"] == {"router/api/protocol.py": 80.0, "uvloop/loop.py": 20.0}
    assert of_stacks("")["by_function"] == []


SCRIPT = """
    ffffffff81a6 tcp_sendmsg ([kernel.kallsyms])
    ffffffff8130 ksys_write ([kernel.kallsyms])
    ffffffff8200 do_syscall_64 ([kernel.kallsyms])
    7f00aa11 write (/lib/x86_64-linux-gnu/libc.so.6)

    ffffffff81b2 do_epoll_wait ([kernel.kallsyms])
    ffffffff81b1 __x64_sys_epoll_pwait ([kernel.kallsyms])

    7f00bb22 std::foo(int) (/somewhere/loop.cpython-311-x86_64-linux-gnu.so)

    7f00cc33 [unknown] (/usr/bin/python3.11)
"""


def test_perfs_stacks_become_shares_by_library_symbol_and_system_call() -> None:
    found = of_script(SCRIPT)
    assert found["samples"] == 4
    assert found["by_library"] == {
        "[kernel.kallsyms]": 50.0, "loop.cpython-311-x86_64-linux-gnu.so": 25.0, "python3.11": 25.0,
    }  # fmt: skip
    assert found["by_system_call"] == {"write": 25.0, "epoll_pwait": 25.0}
    assert found["by_symbol"]["std::foo(int) (loop.cpython-311-x86_64-linux-gnu.so)"] == 25.0
    assert of_script("")["samples"] == 0
    said = lines({"perf": found})
    assert said == ["by library: [kernel.kallsyms] 50 %, loop.cpython-311-x86_64-linux-gnu.so 25 %, python3.11 25 %",
                    "by system call: write 25 %, epoll_pwait 25 %"]  # fmt: skip


# ---- the load


def test_wrks_figures_are_read_and_its_silence_is_an_error() -> None:
    found = read_wrk("Running 1s test\n 2000 requests in 2s\nRESULT 2000 3 2000000 450 9100\n")
    assert found == Done(requests=1997, errors=3, seconds=2.0, p50=0.00045, p99=0.0091)
    with pytest.raises(Stop, match="unable to connect"):
        read_wrk("", "unable to connect to 127.0.0.1:1 Connection refused")


@pytest.mark.skipif(not closed.has_wrk(), reason="wrk is not installed")
async def test_wrk_sends_our_body_and_key(tmp_path: Path) -> None:
    async with Upstream() as upstream:
        asking = Asking(url=upstream.address, key="hg_k", stream=False, extra={"stop": 'a"\\b'})
        done = await asyncio.to_thread(closed.wrk, asking, 2, 1, tmp_path)
        asked = upstream.requests[0]
    assert done.requests > 0 and done.errors == 0 and (done.p50 or 0) > 0
    assert asked.body == asking.body(0) and asked.headers["authorization"] == "Bearer hg_k"
    assert (tmp_path / "post.lua").stat().st_mode & 0o077 == 0, "it holds the key"


async def test_a_closed_loop_asks_again_only_after_the_answer() -> None:
    async with Upstream(script={"delay_s": 0.05}) as upstream:
        samples = await closed.keep_asking(Asking(url=upstream.address, stream=False), 2, 0.4)
        assert upstream.accepted == 2
    assert all(s.answered for s in samples) and 4 <= len(samples) <= 18
    assert sorted(s.number for s in samples) == list(range(len(samples))), "every prompt is another one"


async def test_the_upstream_answers_as_serving_and_the_load_expect() -> None:
    loop, port = asyncio.get_running_loop(), free_port()
    script = Script(size=400, chunks=5, chunk_size=190, pause_s=0.001)
    server = await loop.create_server(lambda: Peer(script, loop), "127.0.0.1", port)
    async with server:
        target = Target(f"http://127.0.0.1:{port}")
        (served,) = await probe.models(target)
        assert (served.name, served.context) == ("bench", 32768)
        assert "vllm:num_requests_running" in await probe.metrics(target)
        asking = Asking(url=target.url)
        streams = await closed.ask_times(asking, 2, 2)
        whole = await closed.ask_times(dataclasses.replace(asking, stream=False), 2, 2)
    assert [s.output_tokens for s in streams] == [5] * 4 and all(s.answered for s in streams + whole)
    assert script.whole.endswith(b"}") and len(script.whole.partition(b"\r\n\r\n")[2]) == 400
    assert len(script.pieces) == 7 and b"\r\nbe\r\ndata: " in script.pieces[0], "190 bytes a chunk"


# ---- what may be missing


def test_without_nginx_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(Stop, match="apt-get install nginx-light"), nginx.running(1, tmp_path):
        pass


def test_without_matplotlib_there_is_a_sentence_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    monkeypatch.setattr(overhead, "run", lambda _: pytest.fail("it measured"))
    assert overhead.main([]) == 1
    assert "matplotlib" in capsys.readouterr().err


def test_a_part_that_cannot_be_measured_costs_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def no_engine() -> dict[str, object]:
        raise Stop("headgate up did not succeed: no room")

    found = overhead.attempted(no_engine)
    assert found == {"failed": "headgate up did not succeed: no room"} and "no room" in capsys.readouterr().out
    assert goals(result(vllm=found))[11].met is None


def test_a_peer_that_is_not_installed_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    ways = {peer.name: peers.running(peer, tmp_path / "none", free_port(), tmp_path) for peer in peers.PEERS}
    with contextlib.ExitStack() as stack:
        there, absent = overhead.started(stack, ways)
    assert there == [] and absent.keys() == {"smg", "litellm"}
    assert all("--install-peers" in why for why in absent.values())


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ('headgate_requests_total{lane="auto",model="bench",outcome="answered",place="local"} 5.0', ""),
        ("", "local model"),
        ('headgate_requests_total{lane="auto",model="bench-far",outcome="answered",place="hosted"} 1.0', "local model"),
        ('headgate_refusals_total{model="bench-far",rule="cleared"} 5.0\n'
         'headgate_requests_total{lane="auto",model="bench",outcome="answered",place="local"} 5.0', "refused"),
    ],
)  # fmt: skip
def test_the_row_that_searches_is_only_there_where_it_searches(page: str, why: str) -> None:
    assert why in not_searched(page) and bool(why) == bool(not_searched(page))


def test_a_peer_that_does_not_start_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "smg" / "bin" / "smg"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho no room here\nexit 3\n")
    program.chmod(0o700)
    with (
        pytest.raises(Stop, match="no room here"),
        peers.running(peers.PEERS[0], tmp_path, free_port(), tmp_path / "s"),
    ):
        pass


# ---- the machine


def test_the_machine_is_named_without_its_name() -> None:
    found = machine.describe("vllm 0.0")
    assert found["cores"] == os.cpu_count() and found["vllm"] == "vllm 0.0" and found["memory_gb"] > 0
    text = json.dumps(found)
    assert os.uname().nodename not in text and str(Path.home()) not in text


def test_result_files_say_what_when_and_where(tmp_path: Path) -> None:
    plain = {"cores": 2, "gpus": [], "date": "2026-11-21"}
    assert machine.result_path("cost", plain, tmp_path).name == "cost-2026-11-21-2cpu.json"
    cards = {**plain, "gpus": [{"name": "NVIDIA H200"}, {"name": "NVIDIA H200"}]}
    assert machine.word(cards) == "2x-h200"
    assert machine.cpu_model("processor : 0\nmodel name\t: Some CPU @ 2GHz\n") == "Some CPU @ 2GHz"
    assert machine.cpu_model("") is None
