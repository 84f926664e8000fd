"""One request, one opened and one closed event, however it ended; and no word of what was asked in either."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.api.body import parse
from router.api.inference import make_ask
from router.decision.reasons import refused
from router.errors import BadRequest, Forbidden, HeadgateError, LimitReached, Unavailable, UpstreamFailed
from router.ledger import store as store_module
from router.ledger.budgets import Budgets
from router.ledger.entries import Entry, Ledger, priced
from router.ledger.metrics import Metrics
from router.ledger.prices import Prices
from router.ledger.store import LedgerError, Store
from router.records import Attempt, Decision, Gpu, Usage
from serving.catalogue import Catalogue, Model, Price, Site
from tests.fakes.asking import ask, caller, decided, endpoint, hosted, local

WHO = caller("private", budget_usd=10.0)
NEAR = local()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "ledger.sqlite")
    yield made
    with contextlib.suppress(LedgerError):
        made.close()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store, Budgets(), Metrics())


def attempt(outcome: str, status: int | None, detail: str = "") -> Attempt:
    return Attempt("near", "near", "local", outcome, status, 1.234, detail)


def both(ledger: Ledger, request: str = "req_1") -> tuple[dict[str, Any], dict[str, Any]]:
    """The two events of a request, and there are exactly two."""
    ledger.store.flush()
    opened, *_, closed = ledger.store.events(request)
    assert (opened["kind"], closed["kind"]) == ("opened", "closed")
    assert opened["key"] == closed["key"] == WHO.key
    return opened, closed


def test_an_attempt_keeps_all_that_is_known_of_it_when_it_is_priced() -> None:
    values: dict[str, Any] = {name: object() for name in Attempt._fields}
    found = priced(Attempt(**values), 0.5)
    assert {name: getattr(found, name) for name in values} == values | {"cost": 0.5}


def settled(ledger: Ledger, usd: float) -> None:
    assert ledger.spent(WHO) == pytest.approx(usd)
    assert b"headgate_requests_open 0.0" in ledger.metrics.text()


def test_answered(ledger: Ledger) -> None:
    decision = decided(ask(), WHO, NEAR)
    with ledger.entry(ask(), WHO, decision) as entry:
        assert ledger.spent(WHO) == decision.hold > 0  # held while it runs
        entry.attempts.append(attempt("answered", 200))
        entry.model, entry.usage = NEAR, Usage(10, 20, 5)
        entry.first_byte()
    opened, closed = both(ledger)
    assert (opened["cost"], opened["hold_usd"], opened["data_class"]) == (decision.hold, decision.hold, "private")
    assert [(c["model"], c["endpoint"], c["place"], c["full"]) for c in opened["order"]] == [
        ("near", "near", "local", False)
    ]
    assert (opened["team"], opened["asked"], opened["bytes"]) == ("search", "auto", 80)
    assert (closed["outcome"], closed["status"], closed["model"], closed["place"]) == ("answered", 200, "near", "local")
    assert (closed["prompt_tokens"], closed["output_tokens"], closed["cached_tokens"]) == (10, 20, 5)
    assert closed["cost"] == closed["cost_usd"] == pytest.approx((10 * 1 + 20 * 2) / 1e6)
    assert (closed["estimated"], closed["unpriced"], closed["error"]) == (False, False, "")
    assert 0 <= closed["first_byte_ms"] <= closed["total_ms"]
    assert closed["attempts"][0]["outcome"] == "answered"
    settled(ledger, 50 / 1e6)


def test_refused(ledger: Ledger) -> None:
    decision = decided(ask("frontier"), WHO, NEAR, hosted())
    with pytest.raises(Forbidden), ledger.entry(ask("frontier"), WHO, decision):
        raise refused(decision, 10)
    opened, closed = both(ledger)
    assert {r["rule"] for r in opened["refusals"]} == {"other_lane", "data_class_not_cleared"}
    assert all(r["reason"] for r in opened["refusals"])
    assert (closed["outcome"], closed["status"], closed["error"]) == ("refused", 403, "data_class_not_cleared")
    assert (closed["model"], closed["cost"]) == (None, 0)
    settled(ledger, 0)


def test_upstream_failure(ledger: Ledger) -> None:
    with pytest.raises(UpstreamFailed), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.attempts.append(attempt("reset", None, "near did not give a usable answer"))
        raise UpstreamFailed("near did not give a usable answer")
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"], closed["error"]) == ("failed", 502, "upstream_bad_response")
    assert closed["attempts"][0]["detail"] == "near did not give a usable answer"  # our own words may stay
    settled(ledger, 0)


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [("door_refused", True), ("door_closed", True), ("unreachable", True), ("error", False), ("bad_request", False)],
)
def test_the_door_s_reason_is_kept_and_an_upstream_s_words_are_not(ledger: Ledger, outcome: str, kept: bool) -> None:
    reason = "data_class_not_cleared: it holds what counts as private (card)"
    with pytest.raises(Forbidden), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.attempts.append(attempt(outcome, 403, reason))
        raise Forbidden("no", code="data_class_not_cleared")
    assert both(ledger)[1]["attempts"][0]["detail"] == (reason if kept else "")


class Surprise(Exception):
    """A bug nobody thought of."""


@pytest.mark.parametrize("error", [Surprise, KeyError, AssertionError, SystemExit, KeyboardInterrupt, MemoryError])
def test_exception(ledger: Ledger, error: type[BaseException]) -> None:
    with pytest.raises(error), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)):
        raise error
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"], closed["error"]) == ("failed", 500, "internal_error")
    settled(ledger, 0)


async def test_cancellation(ledger: Ledger) -> None:
    started = asyncio.Event()

    async def work() -> None:
        with ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
            entry.model, entry.estimated_output = NEAR, 7
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"]) == ("client_left", 499)
    # What was delivered is charged, as far as it is known.
    assert (closed["prompt_tokens"], closed["output_tokens"], closed["estimated"]) == (80, 7, True)
    settled(ledger, (80 + 14) / 1e6)


@pytest.mark.parametrize(("model", "sent"), [(NEAR, True), (NEAR, False), (hosted(), False)])
def test_who_leaves_while_a_local_model_is_at_work_pays_for_the_prompt(
    ledger: Ledger, model: Model, sent: bool
) -> None:
    """Else a budget could be had for nothing by leaving; where nobody was given the request nothing is paid."""
    with pytest.raises(asyncio.CancelledError), ledger.entry(ask(), WHO, decided(ask(), WHO, model)) as entry:
        entry.attempts.append(Attempt(model.name, model.name, model.place, "client_left", None, 5.0, sent=sent))
        raise asyncio.CancelledError
    _, closed = both(ledger)
    cost = 80e-6 if sent else 0.0
    assert (closed["cost_usd"], closed["estimated"]) == (pytest.approx(cost), sent)
    assert closed["prompt_tokens"] == (80 if sent else None)
    settled(ledger, cost)


def test_who_leaves_while_tokens_are_counted_pays_nothing(ledger: Ledger) -> None:
    """No model reads that prompt."""
    model, counting = NEAR, ask()._replace(route="messages/count_tokens")
    with pytest.raises(asyncio.CancelledError), ledger.entry(counting, WHO, decided(counting, WHO, model)) as entry:
        entry.attempts.append(Attempt(model.name, model.name, model.place, "client_left", None, 5.0, sent=True))
        raise asyncio.CancelledError
    _, closed = both(ledger)
    assert (closed["cost_usd"], closed["prompt_tokens"]) == (0.0, 0)
    settled(ledger, 0.0)


def test_a_local_model_that_failed_is_nobodys_bill(ledger: Ledger) -> None:
    with pytest.raises(asyncio.CancelledError), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.attempts.append(Attempt("near", "near", "local", "error", 500, 5.0, sent=True))
        raise asyncio.CancelledError
    assert both(ledger)[1]["cost_usd"] == 0


def test_a_cut_stream_is_no_success(ledger: Ledger) -> None:
    with ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.model, entry.outcome, entry.usage = NEAR, "cut", Usage(10, 3)
    assert both(ledger)[1]["outcome"] == "cut"


@pytest.mark.parametrize("usage", [Usage(), Usage(prompt=10), Usage(output=20)])
def test_unknown_usage_is_estimated_and_marked(ledger: Ledger, usage: Usage) -> None:
    with ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.model, entry.usage, entry.estimated_output = NEAR, usage, 9
    _, closed = both(ledger)
    assert closed["estimated"] is True
    assert closed["prompt_tokens"] == (usage.prompt or 80)
    assert closed["output_tokens"] == (usage.output or 9)
    assert closed["cost"] > 0


def test_an_embedding_has_no_output_so_none_is_estimated(ledger: Ledger) -> None:
    asked = ask("near", "embeddings")
    with ledger.entry(asked, WHO, decided(asked, WHO, NEAR)) as entry:
        entry.model, entry.usage = NEAR, Usage(prompt=10)
    _, closed = both(ledger)
    assert (closed["prompt_tokens"], closed["output_tokens"], closed["estimated"]) == (10, 0, False)


@pytest.mark.parametrize("usage", [Usage(10, 20), Usage()])
def test_unpriced_is_null_and_never_0(ledger: Ledger, usage: Usage) -> None:
    model = local(price=None)
    decision = decided(ask(), WHO, model)
    with ledger.entry(ask(), WHO, decision) as entry:
        entry.model, entry.usage = model, usage
        entry.attempts.append(attempt("answered", 200))
    opened, closed = both(ledger)
    assert (opened["cost"], opened["hold_usd"]) == (None, None)
    assert (closed["cost"], closed["cost_usd"], closed["unpriced"]) == (None, None, True)
    assert b'headgate_unpriced_total{model="near"} 1.0' in ledger.metrics.text()
    assert b"headgate_cost_usd_total{" not in ledger.metrics.text()
    settled(ledger, 0)


def test_a_free_answer_is_0_and_not_null(ledger: Ledger) -> None:
    model = local(price=Price(input=0, output=0))
    with ledger.entry(ask(), WHO, decided(ask(), WHO, model)) as entry:
        entry.model, entry.usage = model, Usage(10, 20)
    _, closed = both(ledger)
    assert (closed["cost"], closed["unpriced"]) == (0.0, False)


def test_an_unpriced_answer_charges_no_other_models_price(ledger: Ledger, store: Store) -> None:
    who = caller(budget_usd=10.0)  # public data: the order holds a free local and a dear hosted model
    free, dear = local(price=None), hosted(lanes=("cheap",))
    decision = decided(ask(), who, free, dear)
    assert len(decision.order) == 2 and decision.hold
    with ledger.entry(ask(), who, decision) as entry:
        assert ledger.spent(who) == decision.hold  # a fallback could reach the dear one
        entry.model, entry.usage = free, Usage(1, 1)
    assert ledger.spent(who) == 0


def tried(place: Model, outcome: str, *, sent: bool) -> Attempt:
    return Attempt(place.name, place.name, place.place, outcome, None, 1.0, sent=sent)


@pytest.mark.parametrize("ended", [asyncio.CancelledError, UpstreamFailed("no answer"), KeyError])
def test_what_a_provider_may_have_worked_on_is_paid_however_it_ended(ledger: Ledger, ended: Any) -> None:
    far, who = hosted(), caller(budget_usd=10.0)
    decision = decided(ask("frontier"), who, far)
    with pytest.raises(BaseException), ledger.entry(ask("frontier"), who, decision) as entry:  # noqa: B017
        entry.attempts.append(tried(far, "reset", sent=True))
        raise ended
    _, closed = both(ledger)
    assert closed["cost"] == closed["attempts"][0]["cost_usd"] == decision.hold > 0
    assert (closed["estimated"], closed["unpriced"], closed["model"]) == (True, False, None)
    assert ledger.spent(who) == pytest.approx(decision.hold)


def test_the_cost_is_the_sum_over_the_attempts(ledger: Ledger) -> None:
    who, one, two = caller(budget_usd=10.0), hosted("one"), hosted("two", price=Price(input=20, output=60))
    decision = decided(ask("frontier"), who, one, two)
    with ledger.entry(ask("frontier"), who, decision) as entry:
        entry.attempts += [tried(one, "door_closed", sent=False), tried(one, "error", sent=True)]
        entry.attempts.append(tried(two, "answered", sent=True))
        entry.model, entry.usage = two, Usage(10, 20)
    _, closed = both(ledger)
    costs = [a["cost_usd"] for a in closed["attempts"]]
    assert costs == [0, decision.worst[0], pytest.approx((10 * 20 + 20 * 60) / 1e6)]
    assert decision.hold >= closed["cost"] == pytest.approx(sum(costs))
    assert (closed["estimated"], closed["prompt_tokens"], closed["output_tokens"]) == (True, 10, 20)


def test_an_unpriced_attempt_is_said_and_hides_no_other_cost(ledger: Ledger) -> None:
    who, dark, far = caller(), hosted("dark", price=None), hosted()
    decision = decided(ask("frontier"), who, dark, far)
    with ledger.entry(ask("frontier"), who, decision) as entry:
        entry.attempts += [tried(dark, "reset", sent=True), tried(far, "answered", sent=True)]
        entry.model, entry.usage = far, Usage(10, 20)
    _, closed = both(ledger)
    assert [a["cost_usd"] for a in closed["attempts"]] == [None, closed["cost"]]
    assert closed["cost"] == pytest.approx((10 * 10 + 20 * 50) / 1e6)
    assert closed["unpriced"] is True


def test_a_hosted_answer_of_unknown_usage_costs_what_it_may_have_cost(ledger: Ledger) -> None:
    far, who = hosted(), caller(budget_usd=10.0)
    decision = decided(ask("frontier"), who, far)
    with ledger.entry(ask("frontier"), who, decision) as entry:
        entry.attempts.append(tried(far, "answered", sent=True))
        entry.model, entry.usage, entry.estimated_output = far, Usage(prompt=10), 3
    _, closed = both(ledger)
    assert (closed["cost"], closed["estimated"], closed["output_tokens"]) == (decision.hold, True, 3)


def test_a_budget_that_ends_meanwhile_is_refused_and_recorded(ledger: Ledger) -> None:
    decision = decided(ask(), WHO, NEAR)
    poor = caller("private", budget_usd=0.0)
    with pytest.raises(LimitReached), ledger.entry(ask(), poor, decision):
        raise AssertionError("it must not run")
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"], closed["error"]) == ("refused", 429, "budget_exceeded")
    settled(ledger, 0)


def test_a_fault_while_money_is_held_ends_the_request_on_record(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ledger.budgets, "hold", fails)
    with pytest.raises(RuntimeError), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)):
        raise AssertionError("it must not run")
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"], closed["error"]) == ("failed", 500, "internal_error")
    settled(ledger, 0)


def test_a_full_spool_stops_even_local_answers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SPOOL_LIMIT", 0)
    with pytest.raises(Unavailable) as stopped, ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)):
        raise AssertionError("it must not run")
    assert (stopped.value.code, stopped.value.retry_after) == ("ledger_unavailable", 30)
    settled_open = ledger.metrics.text()
    assert b"headgate_requests_open 0.0" in settled_open and ledger.spent(WHO) == 0


def test_a_full_spool_takes_no_refusals_either_and_they_are_counted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SPOOL_LIMIT", 0)
    appended: list[object] = []
    monkeypatch.setattr(ledger.store, "append", appended.append)
    ledger.refused("req_1", WHO, "chat/completions", Unavailable("No.", code="ledger_unavailable"))
    assert appended == [] and b"ledger_unavailable" in ledger.metrics.text()


async def test_nothing_may_leave_without_a_record_on_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(timeout_s: float = 2.0) -> None:
        raise LedgerError("the ledger is not being written: disk full")

    with ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        await entry.durable()
        assert len(ledger.store.events("req_1")) == 1
        monkeypatch.setattr(ledger.store, "durable", slow)
        with pytest.raises(Unavailable) as stopped:
            await entry.durable()
    assert (stopped.value.code, stopped.value.retry_after) == ("ledger_unavailable", 10)
    monkeypatch.undo()


def aside(model: Model, usage: Usage, detail: str = "") -> Attempt:
    """An answer that was not passed on since it failed its check."""
    sent = model.place == "hosted"
    return Attempt(model.name, model.name, model.place, "check_failed", 200, 1.0, detail, sent, usage=usage)


@pytest.mark.parametrize(
    ("first", "usage", "cost", "estimated"),
    [
        (local(), Usage(10, 20), (10 * 1 + 20 * 2) / 1e6, False),
        (local(), Usage(), 80 * 1 / 1e6, True),
        (hosted("one"), Usage(10, 20), (10 * 10 + 20 * 50) / 1e6, False),
        (hosted("one"), Usage(10), None, True),  # what it may have cost at most
    ],
)
def test_an_answer_that_was_set_aside_is_paid_too(
    ledger: Ledger, first: Model, usage: Usage, cost: float | None, estimated: bool
) -> None:
    far, who = hosted(lanes=("cheap",)), caller(budget_usd=10.0)
    decision = decided(ask(), who, first, far)
    with ledger.entry(ask(), who, decision) as entry:
        entry.attempts += [aside(first, usage, "choice 0: no JSON"), tried(far, "answered", sent=True)]
        entry.model, entry.usage, entry.trigger, entry.check = far, Usage(1, 2), "cascade", "passed"
    _, closed = both(ledger)
    paid, answered = (a["cost_usd"] for a in closed["attempts"])
    worst = dict(zip((c.model.name for c in decision.order), decision.worst, strict=True))[first.name]
    assert paid == pytest.approx(worst if cost is None else cost)
    assert closed["cost"] == pytest.approx(paid + answered)
    assert (closed["estimated"], closed["prompt_tokens"], closed["output_tokens"]) == (estimated, 1, 2)
    assert (closed["trigger"], closed["check"], closed["attempts"][0]["detail"]) == (
        "cascade", "passed", "choice 0: no JSON",
    )  # fmt: skip
    assert closed["attempts"][0]["prompt_tokens"] == usage.prompt
    assert "prompt_tokens" not in closed["attempts"][1]


@pytest.mark.parametrize("outcome", ["queue_full", "deadline_passed"])
def test_a_queue_that_let_nobody_in_is_its_own_outcome(ledger: Ledger, outcome: str) -> None:
    with pytest.raises(Unavailable), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.outcome, entry.queued_ms = outcome, 12.345
        raise Unavailable("No room.", code="queue_timeout")
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"], closed["error"]) == (outcome, 503, "queue_timeout")
    assert closed["queued_ms"] == pytest.approx(12.345, abs=0.01)


@pytest.mark.parametrize(("known", "told"), [("left_queue", "left_queue"), ("", "client_left"), ("cut", "client_left")])
def test_whoever_left_the_queue_did_not_leave_an_answer(ledger: Ledger, known: str, told: str) -> None:
    with pytest.raises(asyncio.CancelledError), ledger.entry(ask(), WHO, decided(ask(), WHO, NEAR)) as entry:
        entry.outcome = known
        raise asyncio.CancelledError
    _, closed = both(ledger)
    assert (closed["outcome"], closed["status"]) == (told, 499)


def test_lane_and_source_of_the_price_are_on_record(store: Store) -> None:
    unpriced = local("dark", price=None)
    prices = Prices(Catalogue(models={"near": NEAR, "dark": unpriced}, providers={}, site=Site()), {}, 0.0)
    ledger = Ledger(store, Budgets(), Metrics(), prices)
    found = []
    for number, (model, asked) in enumerate([(NEAR, "auto"), (NEAR, "cheap"), (unpriced, "dark"), (None, "auto")]):
        this = ask(asked, id=f"req_{number}", escalate="hard" if number else None)
        who = caller("private", scopes=frozenset({"escalate"}))
        with ledger.entry(this, who, decided(this, who, NEAR, unpriced)) as entry:
            entry.model, entry.usage = model, Usage(1, 1)
        opened, closed = both(ledger, f"req_{number}")
        found.append((closed["lane"], closed["price_source"], opened["escalate"]))
    assert found == [("auto", "set", None), ("cheap", "set", "hard"), ("named", "", "hard"), ("auto", "", "hard")]


def test_the_load_that_was_known_is_on_record_and_what_was_not_is_null(ledger: Ledger) -> None:
    gpu = Gpu("GPU-1", 0, memory_free_gb=3.5, utilisation=0.9, throttle=("hw_thermal",))
    busy = endpoint(NEAR, in_flight=2, limit=2, running=2, waiting=1, kv_use=0.7, gpus=(gpu,))
    decision = decided(ask(), WHO, NEAR, endpoints=[busy, endpoint(NEAR, name="near-2")])
    with ledger.entry(ask(), WHO, decision) as entry:
        entry.model = NEAR
    opened, _ = both(ledger)
    load = {c.pop("endpoint"): c for c in opened["order"]}
    assert load["near"] == {
        "model": "near", "place": "local", "full": True, "in_flight": 2, "limit": 2, "resting": "",
        "outstanding": 0, "running": 2, "waiting": 1,
        "kv_use": 0.7, "gpus": [{"index": 0, "utilisation": 0.9, "memory_free_gb": 3.5, "throttle": ["hw_thermal"],
                                 "fault": ""}],
    }  # fmt: skip
    assert load["near-2"] == {
        "model": "near", "place": "local", "full": False, "in_flight": 0, "limit": None, "resting": "",
        "outstanding": 0, "running": None,
        "waiting": None, "kv_use": None, "gpus": [],
    }  # fmt: skip
    assert (opened["trigger"], opened["check"]) == ("", "")


def canary() -> str:
    return f"canary{secrets.token_hex(8)}"


def planted(word: str) -> list[Any]:
    """Asks that carry `word` in every place a body has."""
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\0\0\0\0").decode()
    url = {"url": f"data:image/png;name={word};base64,{png}{word * 2}"}
    deep = {"role": "user", "content": [{"type": "image_url", "image_url": url, word: {word: [word]}}]}
    chat: dict[str, Any] = {
        "messages": [{"role": "system", "content": word, "name": word}, {"role": word, word: word}, deep],
        "tools": [{"type": "function", "function": {"name": word, "parameters": {"properties": {word: word}}}}],
        "tool_choice": {"function": {"name": word}}, "response_format": {"type": word, word: word}, "stop": [word],
        "metadata": {"session_id": word, word: word}, "user": word, "safety_identifier": word, "store": word,
        "prompt_cache_key": word, "service_tier": word, "logit_bias": {word: word}, "prediction": {"content": word},
        "reasoning_effort": word, "chat_template_kwargs": {word: word}, "api_key": word, "stream_options": {word: 1},
        "headgate": {"data_class": "private"},
    }  # fmt: skip
    unknown = {"messages": [], word: word, f"{word}.file_id": 1, "x": {word: {"file_id": word}}}
    nested = {"messages": [{word: {"image_url": url["url"]}}]}
    plain = {"prompt": [word, f"{word} {word}"], "suffix": word, word: 1}
    vectors = {"input": [word], "user": word, "encoding_format": word}
    routes = ["chat/completions"] * 3 + ["completions", "embeddings"]
    bodies = [chat, unknown, nested, plain, vectors]
    headers = [(b"x-headgate-session", word.encode()), (b"authorization", word.encode())]
    asks = []
    for number, (route, body) in enumerate(zip(routes, bodies, strict=True)):
        raw = json.dumps({"model": "near", **body}).encode()
        asks.append(make_ask(f"req_{number}", route, parse(raw), len(raw), headers))  # type: ignore[arg-type]
        asks.append(make_ask(f"req_{number}b", route, parse(raw), len(raw), []))  # type: ignore[arg-type]
    return asks


def fail(word: str, entry: Entry) -> HeadgateError:
    """Upstreams quote what they refuse, in messages and even in codes."""
    entry.attempts.append(attempt("bad_request", 400, f"Input should be a number, input: {word}"))
    entry.usage, entry.model = Usage(1, 1), NEAR
    return BadRequest(f"Invalid value: {word}", code=f"invalid value {word}", param=word)


@pytest.mark.parametrize("data_class", ["public", "private"])
def test_no_word_of_a_request_is_in_the_ledgers_files_or_metrics(ledger: Ledger, store: Store, data_class: str) -> None:
    word, who, count = canary(), caller(data_class), 0
    models = (NEAR, hosted(), hosted("big", parameters={"temperature"}))
    for asked in planted(word):
        decision = decided(asked, who, *models)
        with pytest.raises(BadRequest), ledger.entry(asked, who, decision) as entry:
            raise fail(word, entry)
        count += 1
    store.flush()
    for file in store.path.parent.iterdir():
        assert word.encode() not in file.read_bytes()
    assert word.encode() not in ledger.metrics.text()
    with contextlib.closing(store_module.connect(store.path, read_only=True)) as db:
        assert db.execute("SELECT COUNT(*) FROM events").fetchone() == (2 * count,)
        kept = " ".join(str(row) for row in db.execute("SELECT * FROM events"))
    assert word not in kept
    assert '"chat_template_kwargs"' in kept  # names of the API's own fields are kept


def test_whoever_has_the_ledger_cannot_try_names_of_sessions(store: Store) -> None:
    """The same name under another installation's secret is another one; under its own it stays the same one."""
    names = []
    for number, secret in enumerate(("ours", "ours", "theirs", "", "")):
        ledger = Ledger(store, Budgets(), Metrics(), secret=secret)
        asked = ask(id=f"req_s{number}", session="jones")
        with ledger.entry(asked, WHO, decided(asked, WHO, NEAR)) as entry:
            entry.model = NEAR
        names.append(both(ledger, f"req_s{number}")[0]["session"])
    assert names[0] == names[1] and len(set(names)) == 4
    assert hashlib.sha256(f"{WHO.key}\0jones".encode()).hexdigest()[:16] not in names


def test_the_session_groups_requests_of_one_key_without_its_words(ledger: Ledger) -> None:
    names = {}
    for number, (who, session) in enumerate(
        [(WHO, "anna@example.com"), (WHO, "anna@example.com"), (WHO, "bob"), (WHO, None)]
    ):
        asked = ask(id=f"req_{number}", session=session)
        with ledger.entry(asked, who, decided(asked, who, NEAR)) as entry:
            entry.model = NEAR
        names[number] = both(ledger, f"req_{number}")[0]["session"]
    assert names[0] == names[1] and names[0] != names[2] and names[3] is None
    assert "anna" not in names[0]


def test_a_decision_on_record_says_all_that_explains_it(ledger: Ledger) -> None:
    asked = ask("near", metadata={"a": 1}, temperature=0.5)
    far = hosted("twin", same_as="near", parameters=frozenset())
    slow = endpoint(NEAR, state="starting", name="near-2")
    decision: Decision = decided(asked, caller(), NEAR, far, endpoints=[endpoint(NEAR), slow, endpoint(far)])
    with ledger.entry(asked, caller(), decision) as entry:
        entry.model = NEAR
    opened, _ = both(ledger)
    assert (opened["parameters"], opened["dropped"], opened["needs"]) == (["temperature"], ["metadata"], ["chat"])
    assert [(r["model"], r["endpoint"], r["rule"]) for r in opened["refusals"]] == [
        ("near", "near-2", "not_ready"), ("twin", "twin", "unsupported_parameter"),
    ]  # fmt: skip
    assert opened["reason"].startswith("near was named")
    assert opened["why_class"] == "key k1 is public"
