"""`status`: what a person sees of models, their load, GPUs and what is wrong, on a terminal of 80 columns."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from router.commands import context
from router.commands.status import numbers, show
from router.ledger.recent import last
from serving import processes
from serving.home import Home
from tests.conftest import instance
from tests.fakes.command_line import Headgate, Said, Server, eventually

URL = "unix:/nowhere"
NOW = 1000.0


def gpu(index: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{index}", "name": "H200", "index": index, "memory_total_gb": 141.0, "memory_free_gb": 20.25,
        "utilisation": 0.87, "power_w": 612.4, "temperature_c": 71.0, "throttle": [], "fault": "", **changed,
    }  # fmt: skip


def endpoint(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "name": name, "address": URL, "state": "ready", "detail": "", "in_flight": 3, "limit": 4, "running": 2,
        "waiting": 1, "kv_use": 0.124, **changed,
    }  # fmt: skip


def said(instances: list[Any], gpus: list[Any], endpoints: list[Any], url: str = "", **more: Any) -> list[str]:
    """The lines on a narrow terminal, without what pads them."""
    state = {
        "serving": {"instances": instances, "gpus": gpus, "gpu_note": "no driver"}, "serving_heard": NOW - 1,
        "endpoints": endpoints, "door": None, "ledger": {"healthy": True}, "waiting": 0, **more,
    }  # fmt: skip
    file = io.StringIO()
    show(state, url, NOW, Console(file=file, width=80, markup=False, highlight=False))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def cells(lines: list[str], first: str) -> list[str]:
    """The row that begins with this cell."""
    return next(row for line in lines if (row := [c.strip() for c in line.split("  ") if c.strip()])[:1] == [first])


def test_each_model_is_shown_with_its_load() -> None:
    lines = said(
        [instance("small", URL, gpus=["GPU-0"]), instance("theirs", "http://gpu-7:8000", attached=True, limit=0)],
        [gpu()], [endpoint("small"), endpoint("theirs", limit=0, running=None, waiting=None, kv_use=None),
                  endpoint("far", address="door", limit=9)], "http://h:1", waiting=2,
    )  # fmt: skip
    assert lines[0] == "endpoint  http://h:1/v1"
    assert cells(lines, "small") == ["small", "3 of 4", "2", "1", "12%", "GPU 0", "ready"]
    assert cells(lines, "theirs") == ["theirs", "3", "unknown", "unknown", "unknown", "attached", "ready"]
    assert cells(lines, "far") == ["far", "3 of 9", "door", "ready"]
    assert "theirs: attached at http://gpu-7:8000" in lines and "queue     2 waiting for local room" in lines


def test_of_a_model_that_sleeps_it_is_said_why_and_when_it_would_be_here() -> None:
    asleep = instance("other", URL, state="asleep", detail="requests wait for small", ready_in_s=61.7)
    lines = said([asleep], [], [endpoint("other", state="asleep", in_flight=0, running=None)])
    assert cells(lines, "other")[-1] == "asleep"
    words = "other: asleep, a request wakes it: requests wait for small"
    assert f"{words} (asked for, it would be here in about 62 s)" in " ".join(lines)


def test_who_waits_is_told_where_it_is_more_than_a_number() -> None:
    queue = {"interactive": 3, "batch": 4, "teams": 2}
    lines = said([], [], [], waiting=7, queue=queue)
    assert "queue     7 waiting for local room (4 of them batch, of 2 teams)" in lines
    queue = {"interactive": 7, "batch": 0, "teams": 1}
    assert "queue     7 waiting for local room" in said([], [], [], waiting=7, queue=queue)


def test_why_requests_overflow_is_seen_at_a_glance() -> None:
    here, far = [instance("small", URL), instance("second", URL)], endpoint("far", address="door")
    saturations = {
        "small": {"value": 1.25, "why": "5 of 4 places taken", "over": True},
        "second": {"value": 0.5, "why": "2 of 4 places taken", "over": False},
    }
    near = [endpoint("small"), endpoint("second")]
    lines = said(here, [], [*near, far], saturations=saturations)
    words = "small: saturated (1.25: 5 of 4 places taken), so what may leave goes elsewhere"
    assert words in lines and not any("second: sat" in line for line in lines)
    assert words not in said(here, [], near, saturations=saturations), "without a provider nothing can leave"


def test_several_workers_are_counted_and_one_is_not_worth_a_line() -> None:
    assert "workers   2 of 3 answer; worker 2 does not" in said([], [], [], workers={"count": 3, "answer": [1, 3]})
    assert "workers   3 of 3 answer" in said([], [], [], workers={"count": 3, "answer": [1, 2, 3]})
    assert not any("workers" in line for line in said([], [], [], workers={"count": 1, "answer": [1]}))


def test_what_isolation_is_worth_is_said_in_plain_words() -> None:
    fine, leaking = instance("small", URL, way_out=""), instance("second", URL, way_out="it has a route out, by eth0")
    lines = said([fine, leaking], [], [], isolation={"asked": True, "way_out": ""})
    assert "isolation the kernel knows no way out" in lines
    whole = " ".join(lines)
    assert (
        "second: isolation NOT ENFORCED by the kernel: it has a route out, by eth0" in whole
        and "small: iso" not in whole
    )
    lines = said([], [], [], isolation={"asked": True, "way_out": "it has a route out, by eth0"})
    assert "isolation NOT ENFORCED by the kernel: it has a route out, by eth0" in lines
    for unasked in ({}, {"isolation": {"asked": False, "way_out": ""}}):
        assert not any("isolation" in line for line in said([], [], [], **unasked))


def test_what_its_prefix_cache_saves_is_shown_where_it_is_known() -> None:
    two = [instance("small", URL), instance("second", URL)]
    known = endpoint("small", prefix_queries=1000, prefix_hits=800)
    shown = said(two, [], [known, endpoint("second", prefix_queries=100, prefix_hits=0)])
    assert "cached    of their prompts: small 80%, second 0%" in shown
    for unknown in ({"prefix_queries": 1000}, {"prefix_queries": 0, "prefix_hits": 0}, {}):
        shown = said(two, [], [known, endpoint("second", **unknown)])
        assert "cached    of their prompts: small 80%" in shown
    assert not any("cached" in line for line in said(two, [], [endpoint("small"), endpoint("second")]))


def test_a_full_kv_cache_is_said_while_it_is_news() -> None:
    lines = said([instance("small", URL, load={"preempted_s": 3.2})], [], [endpoint("small")])
    assert "small: its KV cache is full; 3 s ago it began a request again" in lines
    for passed in (61, None):
        quiet = said([instance("small", URL, load={"preempted_s": passed})], [], [endpoint("small")])
        assert not any("KV cache" in line for line in quiet)


def test_what_should_be_seen_to_and_who_else_uses_a_gpu_is_said() -> None:
    lines = said([], [gpu(others_gb=7.5, warnings=["PCIe runs on 4 of 16 lanes"])], [])
    text = " ".join(" ".join(lines).split())
    assert "others hold 7.5 GB" in text and "4 of 16 lanes" in text
    assert "others" not in " ".join(said([], [gpu(others_gb=0.0)], []))


def test_each_gpu_is_shown_and_unknown_is_said() -> None:
    hot = gpu(1, throttle=["hardware thermal"])
    mute = gpu(2, memory_free_gb=None, utilisation=None, power_w=None, temperature_c=None, throttle=None)
    lines = said([], [gpu(), hot, mute, gpu(3, fault="GPU is lost", throttle=None)], [])
    assert cells(lines, "0") == ["0", "H200", "87%", "120.8 of 141", "612", "71"]
    assert cells(lines, "1")[-1] == "hardware thermal"
    assert cells(lines, "2") == ["2", "H200", *["unknown"] * 5]
    assert cells(lines, "3")[-1] == "GPU is lost"


def test_what_serving_said_long_ago_is_not_shown_as_if_it_were_now() -> None:
    lines = said([instance("small", URL)], [gpu()], [endpoint("small")], serving_heard=NOW - 60)
    assert cells(lines, "0") == ["0", "H200", *["unknown"] * 5]
    assert "serving: it has not answered for 60 s; see: headgate logs serving" in lines
    late = said([], [gpu()], [], serving={"instances": [], "gpus": [gpu()], "gpus_age_s": 30.0})
    assert cells(late, "0") == ["0", "H200", *["unknown"] * 5]  # serving answers, and the driver does not


def test_without_a_router_servings_own_readings_are_shown() -> None:
    load = {"running": 5, "waiting": 0, "kv_use": 0.5}
    state = {"serving": {"instances": [instance("small", URL, load=load)], "gpus": []}, "endpoints": [], "door": None}
    file = io.StringIO()
    show(state, "", NOW, Console(file=file, width=80, markup=False, highlight=False))
    assert cells(file.getvalue().splitlines(), "small")[:5] == ["small", "unknown of 4", "5", "0", "50%"]
    assert "router: it does not answer; see: headgate logs router\n" in file.getvalue()
    assert "GPUs      unknown\n" in file.getvalue()


def test_what_is_wrong_is_shown_and_how_a_log_ends() -> None:
    broken = instance("small", URL, state="failed", detail="died", restarts=2, log=["\x1b[31mKeyError\x1b[0m [/x]"])
    closed = [endpoint(n, state="closed", detail="no key", address="door", in_flight=0) for n in ("a", "b")]
    assert "history: the disk is full" in said([], [], [], history={"trouble": "the disk is full"})
    broken_scanner = said([], [], [], scanner={"trouble": "a planted card was not found"})
    assert "scanner: a planted card was not found; nothing leaves until it works" in broken_scanner
    lines = said([broken], [], closed, ledger={"healthy": False, "trouble": "the disk is full"})
    for line in (
        "ledger: the disk is full", "a, b: closed: no key", "small: FAILED: died (started again 2 times)",
        "  KeyError [/x]", "GPUs      no driver",
    ):  # fmt: skip
        assert line in lines


def test_a_server_that_the_router_will_not_use_is_not_called_ready() -> None:
    """It bears a hosted model's name, under which the door's endpoint is known too."""
    why = "far is the name of a hosted model; give the server another one with attach[].name"
    refused, behind = endpoint("far", state="failed", detail=why), endpoint("far", address="door", limit=9)
    lines = said([instance("far", "http://gpu-7:8000", attached=True)], [], [refused, behind])
    assert [line.split()[0] for line in lines].count("far") == 2
    assert cells(lines, "far")[-2:] == ["attached", "failed"]
    assert f"far: FAILED: {why}" in " ".join(lines)


def test_nothing_of_a_large_machine_is_cut_off_in_a_narrow_terminal() -> None:
    names = [f"deepseek-v4.1-flash-{n:02}" for n in range(3)]
    cards = [gpu(n, name="NVIDIA RTX PRO 6000 Blackwell Server Edition") for n in range(8)]
    models = [instance(n, URL, gpus=[f"GPU-{i}" for i in range(8)], limit=1024) for n in names]
    lines = said(models, cards, [endpoint(n, in_flight=1000, limit=1024, kv_use=None) for n in names])
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert cells(lines, names[0]) == [names[0], "1000 of 1024", "2", "1", "unknown", "GPU 0-7", "ready"]


@pytest.mark.parametrize(
    ("indexes", "text"), [([0], "0"), ([0, 1], "0,1"), ([3, 1, 2], "1-3"), ([0, 2, 3], "0,2,3"), ([], "unknown")]
)
def test_numbers_in_short(indexes: list[int], text: str) -> None:
    assert numbers(indexes) == text


def worker(home: Home, number: int) -> int:
    """The pid of one of the router's workers."""
    wanted = f"\0--worker\0{number}\0"
    pids = [process.pid for process in processes.ours(home.installation())]
    return next(pid for pid in pids if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().decode())


def test_another_worker_answers_the_operator_while_the_first_one_stands_still(
    headgate: Headgate, say: Callable[..., Said], vllm: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "NEXT_S", 2.0)
    headgate.site("router: {workers: 2}\n")
    up = headgate.up(vllm.url)
    assert up.code == 0, up.all
    eventually(lambda: "workers   2 of 2 answer\n" in say("status").out)
    asked = say("chat", "Hello").out.rpartition("headgate explain --request ")[2].strip()
    # Each worker writes what it answered, a moment later: one that is stopped with it in hand has told nobody yet.
    eventually(lambda: [one.outcome for one in last(headgate.home.ledger, 1)] == ["answered"])
    # Within ten seconds nobody has ended it, within fifteen it is still there; so what takes long is asked by itself.
    first = worker(headgate.home, 1)
    os.kill(first, signal.SIGSTOP)
    assert "workers   1 of 2 answer; worker 1 does not\n" in say("status").out
    assert f"request    {asked}" in say("explain", "--request", asked).out
    os.kill(first, signal.SIGCONT)
    assert asked in say("explain", "--last", "1").out
    eventually(lambda: "workers   2 of 2 answer\n" in say("status").out)
    os.kill(worker(headgate.home, 1), signal.SIGSTOP)
    doctor = say("doctor")
    assert doctor.code == 1 and "wrong worker 1 of the router's 2 does not answer\n" in doctor.out, doctor.all
