"""`explain`: what a dry run and a record tell a person, in words that hold."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from typing import Any

from rich.console import Console

from router.commands.explained import show_decision, show_record
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from serving.home import Home
from tests.fakes.command_line import Headgate, Server


def asked(home: Home, path: str) -> tuple[int, str]:
    """A dry run of the admin API itself: its status and text."""

    async def exchange() -> tuple[int, str]:
        connections = Connections(Deadlines(connect_s=1, first_byte_s=10, idle_s=10, total_s=15), Bounds())
        try:
            address = Address.parse(f"unix:{home.socket('admin')}")
            answer = await connections.post(address, path, [], b'{"messages": []}')
            return answer.status, (await answer.read()).decode()
        finally:
            await connections.close()

    return asyncio.run(exchange())


def test_a_dry_run_without_a_key_names_no_key_that_is_not_there(headgate: Headgate, vllm: Server) -> None:
    headgate.site("providers: {openai: {enabled: true, base_url: 'http://127.0.0.1:9/v1', key_env: OUR_KEY}}\n")
    assert headgate.up(vllm.url, OUR_KEY="planted").code == 0
    body = json.dumps({"model": "frontier", "messages": []})
    usual = headgate("explain", stdin=body).out
    assert "private: new keys are private" in usual and "(none)" not in usual and "key KEY is" not in usual
    assert "headgate keys set KEY --data-class public" in usual
    chosen = headgate("explain", "--data-class", "internal", stdin=body).out
    assert "internal: --data-class says so" in chosen and ", since --data-class says so" in chosen
    local = headgate("explain", stdin=json.dumps({"model": "river", "messages": [], "max_tokens": 5})).out
    assert re.search(r"held +nothing \(no price is known\); at most \d+ prompt tokens", local)

    status, text = asked(headgate.home, "/explain?data_class=pubic")
    assert status == 400 and "public, internal, private, secret" in text


CARD = {"index": 0, "utilisation": 0.87, "memory_free_gb": 20.25, "throttle": ["power cap"], "fault": ""}
NEAR = {
    "model": "near", "endpoint": "near-1", "place": "local", "full": True, "in_flight": 16, "limit": 16, "running": 15,
    "waiting": 2, "kv_use": 0.93, "gpus": [CARD, {**CARD, "index": 1, "utilisation": None, "memory_free_gb": None,
                                                   "throttle": [], "fault": "GPU is lost"}],
}  # fmt: skip
FAR = {"model": "far", "endpoint": "far", "place": "hosted", "full": False, "in_flight": 1, "limit": None, "gpus": []}
DECISION = {
    "asked": "auto", "data_class": "public", "why_class": "k1 is public", "order": [FAR, NEAR], "reason": "overflow",
    "trigger": "overflow", "check": "json_schema", "hold_usd": 0.01, "prompt_tokens_at_most": 30, "refusals": [],
}  # fmt: skip
CLOSED = {
    "kind": "closed", "attempts": [], "outcome": "answered", "status": 200, "total_ms": 1200.1, "estimated": False,
    "prompt_tokens": 10, "output_tokens": 20, "cost_usd": 0.000123,
}  # fmt: skip


def lines(show: Callable[..., None], *given: Any) -> list[str]:
    file = io.StringIO()
    show(*given, Console(file=file, width=80, markup=False, highlight=False))
    return file.getvalue().splitlines()


def record(**closed: Any) -> list[str]:
    opened = {"kind": "opened", "key": "k1", "team": "t", "route": "chat/completions", **DECISION}
    return lines(show_record, {"request": "req_1", "events": [opened, {**CLOSED, **closed}]})


def test_the_load_of_each_candidate_is_shown_as_it_was_known_then() -> None:
    shown = lines(show_decision, DECISION)
    for line in (
        "trigger    overflow", "load       far: 1 in flight",
        "load       near-1: 16 of 16 in flight, full, running 15, waiting 2, KV 93%",
        "           GPU 0: busy 87%, 20.2 GB free, power cap",
        "           GPU 1: busy unknown, memory unknown, GPU is lost",
        "check      a whole answer is held against json_schema",
    ):  # fmt: skip
        assert line in shown


def test_a_load_that_nobody_knew_is_unknown() -> None:
    mute = {**NEAR, "full": False, "limit": None, "running": None, "waiting": None, "kv_use": None, "gpus": []}
    shown = lines(show_decision, {**DECISION, "order": [mute]})
    assert "load       near-1: 16 in flight, running unknown, waiting unknown, KV unknown" in shown


def test_how_a_request_went_on_after_its_decision_is_shown() -> None:
    shown = record(queued_ms=512.3, trigger="cascade", check="passed", price_source="list")
    assert {"waited     512 ms in all for local room", "trigger    overflow", "trigger    cascade"} <= set(shown)
    assert {"checked    passed", "cost       $0.000123, by list price"} <= set(shown)
    assert "cost       $0.000123, by GPU-hours" in record(price_source="gpu-hours")
    assert [line for line in record(trigger="overflow") if line.startswith("trigger")] == ["trigger    overflow"]


def test_a_repeat_and_a_release_are_shown_as_what_they_are() -> None:
    repeated = {"kind": "repeated", "key": "k1", "team": "t", "route": "embeddings", "first": "req_1", "status": 200}
    released = {"kind": "released", "mark": "m1", "user": "ann", "at": 1.0, "key": "", "cost": None}
    shown = lines(show_record, {"request": "req_2", "events": [repeated, released]})
    assert "ended      given the answer to req_1 again, status 200, at no cost" in shown
    assert "released   what was remembered of it (m1), by ann" in shown


def test_a_record_of_an_earlier_release_is_shown_without_what_it_does_not_hold() -> None:
    old = {name: value for name, value in DECISION.items() if name not in ("trigger", "check")}
    old["order"] = [{"model": "near", "endpoint": "near-1", "place": "local"}]
    shown = lines(show_decision, old)
    assert "goes to    near (local)" in shown
    assert not any(line.startswith(("load", "trigger", "check")) for line in shown)
    assert "cost       $0.000123" in record()


def test_a_refusal_of_the_door_is_told_with_its_own_reason() -> None:
    why = "data_class_not_cleared: it holds what counts as private (card), and big may receive public data at most"
    tried = {"endpoint": "big", "outcome": "door_refused", "detail": why, "ms": 11}
    shown = record(outcome="failed", status=403, error="data_class_not_cleared", attempts=[tried], cost_usd=0)
    assert f"tried      big: door_refused after 11 ms: {why}" in shown
    (ended,) = [number for number, line in enumerate(shown) if line.startswith("ended")]
    assert shown[ended] == "ended      failed, status 403, 1200.1 ms: data_class_not_cleared"
    assert not shown[ended + 1].startswith(" "), "the reason was told already"


def test_an_end_for_which_no_rule_spoke_is_told_in_words() -> None:
    shown = record(outcome="queue_full", status=503, error="queue_full")
    assert shown[-2].strip().startswith("local models are full and router.queue_length requests wait already, or this")
    assert record(outcome="failed", status=502, error="a_providers_own")[-2].startswith("ended")


def test_what_was_refused_before_a_decision_is_told_in_words_with_what_would_change_it() -> None:
    event = {"kind": "refused", "key": "k1", "team": "t", "route": "chat/completions", "outcome": "refused",
             "status": 403, "error": "declassify_not_allowed"}  # fmt: skip
    shown = lines(show_record, {"request": "req_1", "events": [event]})
    assert shown[-2:] == [
        "ended      refused, status 403: declassify_not_allowed",
        "           the key may not lower the data class; headgate keys set k1 --declassify",
    ]
