"""What load means for what may leave: it overflows where here it would wait for long, and what must stay does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decision.decide import decide
from router.ledger.bodies import decision_json
from router.records import Decision, Endpoint, Gpu, Pace
from tests.fakes.asking import ask, caller, decided, endpoint, hosted, local, searched, snapshot

NEAR, FAR = local(lanes=("private", "cheap")), hosted(lanes=("cheap", "frontier"))
DEAR = hosted("dear", lanes=("cheap", "frontier"), price={"input": 20, "output": 90})
PACE = Pace(prefill=1000.0, decode=50.0, first_s=0.05, drain=2.0, ratio=4.0, prompt=400.0)
BEHIND: dict[str, Any] = {"in_flight": 1, "limit": 4, "unstarted": 3000, "pace": PACE}
"""A place is free, and three seconds of reading are before whoever takes it."""


def models(decision: Decision) -> list[str]:
    return [candidate.model.name for candidate in decision.order]


def choose(
    data_class: str = "public", model: str = "auto", state: dict[str, Any] | None = None, **more: Any
) -> Decision:
    """Over one local and two hosted models; `state` is that of the local endpoint."""
    site, who = more.pop("site", {}), more.pop("who", {})
    near = endpoint(NEAR, **(BEHIND if state is None else state))
    served = [near, endpoint(FAR), endpoint(DEAR)]
    return decided(ask(model, **more), caller(data_class, **who), NEAR, FAR, DEAR, endpoints=served, **site)


def test_what_may_leave_goes_to_the_cheapest_where_it_would_wait_here() -> None:
    found = choose()
    assert models(found) == ["far", "dear", "near"] and found.trigger == "overflow"
    assert found.reason == (
        "cheapest of 3 eligible in auto; overflow, since near is saturated (1.50: a wait of 3.00 s where 2 s are"
        " allowed); public data may go to far (hosted)"
    )
    near = decision_json(found)["order"][2]
    assert near["saturation"] == {"value": 1.5, "why": "a wait of 3.00 s where 2 s are allowed"}
    assert near["predicted"] == {"wait_ms": 3000.0, "first_token_ms": 3070.0, "tokens_per_s": 50.0}
    assert found.predicted[0] is None and found.spilling == (("near", True),)


@pytest.mark.parametrize("more", [{"data_class": "private"}, {"model": "near"}, {"model": "private"}])
def test_what_must_stay_stays(more: dict[str, Any]) -> None:
    """By its class, by the model that was named, by its lane: it waits, and is not even looked at for overflow."""
    found = choose(**more)
    assert models(found) == ["near"] and found.trigger == "" and found.saturations == ()
    assert found.predicted[0] is not None


def test_a_named_model_is_that_model_unless_its_key_says_otherwise() -> None:
    assert models(choose(model="near", who={"substitute": True})) == ["far", "dear", "near"]


def test_a_budget_bounds_it() -> None:
    found = choose(who={"budget_usd": 0.06})
    assert models(found)[0] == "far" and "dear" not in models(found)
    assert models(choose(who={"budget_usd": 0.001})) == ["near"]


@pytest.mark.parametrize(
    "state", [{}, {"stale": True}, {"kv_use": 1.0, "waiting": 5}, {"limit": 1}, {"pace": PACE, "limit": 4}]
)
def test_an_idle_endpoint_never_overflows(state: dict[str, Any]) -> None:
    """However long the prompt: a request's own reading is no wait."""
    found = choose(state=state, size=1000)
    assert models(found) == ["near", "far", "dear"] and found.trigger == ""


def test_readings_that_are_too_old_send_away_what_may_leave_and_nothing_else() -> None:
    state = {"in_flight": 1, "limit": 4, "stale": True}
    found = choose(state=state)
    assert models(found)[0] == "far" and "too old" in found.reason
    assert models(choose("private", state=state)) == ["near"]


def test_one_without_metrics_lives_by_the_routers_own_count() -> None:
    assert models(choose(state={"in_flight": 3, "limit": 4}))[0] == "near"
    assert models(choose(state={"in_flight": 4, "limit": 4}))[0] == "far"


def test_it_comes_back_only_well_below() -> None:
    at = {**BEHIND, "unstarted": 1800}  # nine tenths of what is allowed
    assert models(choose(state=at))[0] == "near"
    still = choose(state={**at, "spilling": True})
    assert models(still)[0] == "far" and still.spilling == ()
    back = choose(state={**BEHIND, "unstarted": 1500, "spilling": True})
    assert models(back)[0] == "near" and back.spilling == (("near", False),)


def test_each_lane_has_its_own_wait() -> None:
    site = {"router": {"allowed_wait_s": {"cheap": 10}}}
    assert models(choose(model="cheap", site=site))[0] == "near"
    assert models(choose(model="auto", site=site))[0] == "far"
    # Whether an endpoint is spilling is kept by the shortest of them, or lanes would take it from each other.
    assert choose(model="cheap", site=site).spilling == (("near", True),)


def test_a_replica_that_is_free_takes_it_before_anybody_else() -> None:
    served = [endpoint(NEAR, name="a", **BEHIND), endpoint(NEAR, name="b"), endpoint(FAR)]
    found = decided(ask(), caller(), NEAR, FAR, endpoints=served)
    assert [c.name for c in found.order] == ["near@b", "far", "near@a"] and found.trigger == ""


def test_what_has_room_is_still_asked_where_all_others_fail() -> None:
    """Three tries at most: one of them is the local one."""
    more = [hosted(f"far-{n}", lanes=("cheap",)) for n in range(4)]
    served = [endpoint(NEAR, **BEHIND), *(endpoint(m) for m in more)]
    found = decided(ask(), caller(), NEAR, *more, endpoints=served)
    assert models(found)[2] == "near" and len(found.order) == 5


def test_a_batch_request_waits_while_a_local_model_may_answer() -> None:
    who = {"latency": "batch"}
    for state in (BEHIND, {"in_flight": 4, "limit": 4}, {"busy": True}):
        found = choose(state=state, who=who)
        assert models(found) == ["near"] and found.trigger == ""
        assert {r.model: r.rule for r in found.refusals} == {"far": "batch_waits", "dear": "batch_waits"}
    for state in ({"state": "failed"}, {"resting": "it refuses connections; 9 s more"}):
        assert models(choose(state=state, who=who))[0] == "far"
    assert models(choose(model="frontier", who=who)) == ["far", "dear"]
    # Whoever names a hosted model means that one, though the key would take another.
    assert models(choose(model="far", who={**who, "substitute": True}))[0] == "far"


@pytest.mark.parametrize("budget", [None, 0.0, 1e-6, 1.0])
@pytest.mark.parametrize("state", [{}, {"state": "failed"}, {"resting": "it failed"}, {"busy": True}])
def test_no_caller_is_refused_since_batch_waits(budget: float | None, state: dict[str, Any]) -> None:
    """Where that keeps anybody out, a local model is there to be waited for: so the READMEs have no such error."""
    found = choose(state=state, who={"latency": "batch", "budget_usd": budget})
    assert models(found) == ["near"] or "batch_waits" not in {refusal.rule for refusal in found.refusals}


def test_where_only_local_models_may_answer_nothing_is_looked_at_but_for_explain() -> None:
    who, asked = caller("private"), ask()
    seen = snapshot(NEAR, FAR, endpoints=[endpoint(NEAR, **BEHIND), endpoint(FAR)])
    findings = searched(asked.body)
    assert decide(asked, who, findings, seen).saturations == ()
    explained = decide(asked, who, findings, seen, look=True)
    assert explained.saturations[0] is not None and explained.saturations[0].value == pytest.approx(1.5)
    assert explained.spilling == () and models(explained) == ["near"]


LIVE = st.fixed_dictionaries({
    "in_flight": st.integers(0, 9), "limit": st.integers(0, 6), "others": st.integers(0, 9), "busy": st.booleans(),
    "unstarted": st.integers(0, 10**6), "spilling": st.booleans(), "stale": st.booleans(),
    "kv_use": st.none() | st.floats(0, 1), "waiting": st.none() | st.integers(0, 9),
    "resting": st.sampled_from(["", "it failed"]),
    "pace": st.none() | st.builds(
        Pace, *[st.none() | st.floats(0.01, 1e6) for _ in Pace._fields]
    ),
})  # fmt: skip


@settings(max_examples=300)
@given(
    st.lists(LIVE, min_size=1, max_size=3), st.sampled_from(["public", "internal", "private", "secret"]),
    st.sampled_from(["auto", "cheap", "private", "near"]), st.booleans(), st.sampled_from(["interactive", "batch"]),
)  # fmt: skip
def test_no_load_ever_sends_away_what_must_stay(
    live: list[dict[str, Any]], data_class: str, model: str, substitute: bool, latency: Any
) -> None:
    """And none refuses it either: who may answer is the same whatever the load; only their order is another."""
    near: list[Endpoint] = [endpoint(NEAR, name=f"near-{n}", **state) for n, state in enumerate(live)]
    who = caller(data_class, substitute=substitute, latency=latency)
    found = decided(ask(model), who, NEAR, FAR, endpoints=[*near, endpoint(FAR)])
    idle = decided(ask(model), who, NEAR, FAR, endpoints=[*(endpoint(NEAR, name=e.name) for e in near), endpoint(FAR)])
    here = {c.name for c in found.order if c.model.place == "local"}
    assert here == {c.name for c in idle.order if c.model.place == "local"} == {f"near@{e.name}" for e in near}
    if data_class != "public" or model == "private" or (model == "near" and not substitute):
        assert all(c.model.place == "local" for c in found.order) and found.trigger != "overflow"


def test_a_gpu_that_is_slowed_down_by_heat_is_still_used() -> None:
    """Its endpoint has fewer places meanwhile (upstream/instances.py); the last one here must not be taken away."""
    hot = {"gpus": (Gpu("g", 0, throttle=("hardware thermal", "power brake")),)}
    assert models(choose("private", state=hot)) == ["near"]
    assert choose("private", state={"gpus": (Gpu("g", 0, fault="GPU is lost"),)}).order == ()
