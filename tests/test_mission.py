"""The mission, a test for each of its sentences, on two real vLLM engines: one local, one in a hosted provider's place.

The local one stands on a GPU that is simulated (a stub of NVML), for there may be none here; all else is real:
processes, sockets, the door, the ledger, vLLM's own counters and admission limit, the official client.

That no file is needed to start, and two commands are enough, is in test_one_request.py; the example, containers and
units in tests/deploy; the benchmarks in tests/benchmarks; a driver that fails in every other way in test_gpus.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from serving.demo_model import demo_model
from tests.conftest import ROOT
from tests.fakes import nvml
from tests.installation import Installation

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine"), pytest.mark.timeout(600)]

MESSAGES: Any = [{"role": "user", "content": "Say something about the river, please."}]
HOSTED = {
    "place": "hosted", "context": 4096, "output": 256, "provider": "far", "provider_model": "far-1",
    "abilities": ["chat", "tools", "schema"], "parameters": "vllm",
}  # fmt: skip
MAY_STAND_STILL: Any = {"hang_after_s": 3600}
"""Here an engine is made to stand still on purpose; that one that hangs is taken out is in test_supervisor.py."""

ITEMS = 60
LONG_LIST: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "list",
        "schema": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9},
                   "minItems": ITEMS, "maxItems": ITEMS},
    },
}  # fmt: skip
"""Some 120 tokens at the least: more than the local model's output limit, less than the hosted one's."""


def site() -> dict[str, Any]:
    """Two places at the local model, one in the queue, three seconds to wait there."""
    demo = demo_model().model_dump(mode="json", exclude_unset=True, exclude={"name"}) | {
        "context": 1024, "output": 64, "limit": 2, "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "variants": [{"name": "gpu", "device": "gpu", "memory_gb": 3}],
    }  # fmt: skip
    demo["args"] |= {"enforce-eager": True, "enable-prefix-caching": True}
    return {
        "run": ["demo"],
        "models": {
            "demo": demo,
            "far-demo": {
                "context": 4096,
                "output": 256,
                "price": {"input": 2, "output": 10, "cached": 0.2},
                "abilities": ["chat", "completions", "tools", "schema"],
            },
            "far-gone": HOSTED | {"lanes": ["cheap"], "provider": "gone", "price": {"input": 5, "output": 11}},
            "far-spare": HOSTED | {"lanes": ["cheap"], "price": {"input": 6, "output": 12}},
            "far-unpriced": HOSTED | {"lanes": ["frontier"]},
        },
        "providers": {
            # Nobody listens on the port of discarded packets.
            "gone": {
                "enabled": True,
                "base_url": "http://127.0.0.1:9/v1",
                "key_env": "GONE",
                "private_ranges": ["127.0.0.0/8"],
            },
        },
        "routes": {"chat/completions": {"check": "json_schema"}},
        "escalate": [{"name": "proofs", "when": {"words": ["prove"]}}],
        "costs": {"gpu_hour_usd": 2.0, "throughput": {"demo": {"input": 1000, "output": 100}}, "frontier": "far-demo"},
        "router": {"queue_length": 1, "queue_wait_s": 3},
    }


class Team:
    """One key of the installation, used as an application uses it: through the official client."""

    def __init__(self, mission: Mission, key: str) -> None:
        self.key = key
        self._mission = mission
        self._client = openai.OpenAI(base_url=f"{mission.url}/v1", api_key=key, max_retries=0, timeout=120)

    def ask(self, model: str = "auto", messages: Any = MESSAGES, **more: Any) -> Any:
        """The answer, with its headers in `.headers` and its parsed form in `.parse()`."""
        more.setdefault("max_tokens", 4)
        if more["max_tokens"] is None:
            del more["max_tokens"]
        return self._client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)

    def place(self, model: str = "auto", messages: Any = MESSAGES, **more: Any) -> tuple[str, str | None]:
        """Where it was answered, and what triggered that."""
        headers = self.ask(model, messages, **more).headers
        return headers["x-headgate-place"], headers.get("x-headgate-trigger")


class Mission(Installation):
    """The installation with its keys and its simulated GPU."""

    def __init__(self, driver: Path, python: Path) -> None:
        self.gpu = driver / "state"
        self.gpu.write_text("cool")
        # Preloaded and not on the library path, which engines inherit: they are to see the machine as it is.
        environment = {"LD_PRELOAD": str(driver / "libnvidia-ml.so.1"), "NVML_FILE": str(self.gpu), "GONE": "k" * 24}
        super().__init__(site() | {"engine": {"python": str(python)} | MAY_STAND_STILL}, environment)

    def start(self) -> None:
        super().start()
        self.public = Team(self, self.make_key("public", "--escalate", team="web"))
        self.plain = Team(self, self.make_key("public", team="web"))
        self.private = Team(self, self.make_key("private", "--escalate", team="legal"))
        self.provider_bytes()

    def record(self, answer: Any) -> dict[str, Any]:
        """What the ledger holds of an answer or an error: the opened and the closed event as one."""
        headers = answer.response.headers if isinstance(answer, openai.APIStatusError) else answer.headers
        shown = self.run("explain", "--json", "--request", headers["x-request-id"]).stdout
        return {k: v for event in json.loads(shown)["events"] for k, v in event.items()}

    def instance(self) -> dict[str, Any]:
        found = json.loads(self.ask("serving", "/instances"))["instances"]
        return next(i for i in found if i["name"] == "demo")

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """The local engine computes nothing, as on a GPU with a very long prompt; its API server goes on answering."""
        found = [psutil.Process(pid) for pid in self.pids()]
        core = [one for one in found if one.name().startswith("VLLM::") or one.cmdline()[:1] == ["VLLM::EngineCore"]]
        assert core
        for one in core:
            one.suspend()
        try:
            yield
        finally:
            for one in core:
                one.resume()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Both places of the local model are taken, until the end of the block."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.standing_still())
            asked = [in_background(lambda: self.private.ask("demo")) for _ in range(2)]
            until(lambda: self.metric("headgate_in_flight", 'endpoint="demo"') == 2)
            yield
        for answer in asked:
            assert answer().headers["x-headgate-place"] == "local"

    def metric(self, *words: str) -> float:
        """The sum of the samples whose line holds all of `words`."""
        lines = [line for line in self.ask("admin", "/metrics").splitlines() if not line.startswith("#")]
        return sum(float(line.split()[-1]) for line in lines if all(word in line for word in words))


@pytest.fixture(scope="module")
def mission(tmp_path_factory: pytest.TempPathFactory, engine_python: Path) -> Iterator[Mission]:
    made = Mission(nvml.library(tmp_path_factory.mktemp("nvml")), engine_python)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def until(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `holds` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
    return found


# One endpoint, three lanes.


def test_the_lane_private_never_leaves(mission: Mission) -> None:
    before = mission.provider_bytes()
    assert mission.public.place("private") == ("local", None)
    assert mission.private.place("private") == ("local", None)
    with mission.full(), pytest.raises(openai.InternalServerError) as full:
        mission.public.ask("private")  # not even where local models are full and the data is public
    assert (full.value.status_code, full.value.code) == (503, "queue_timeout")
    assert mission.provider_bytes() == before


def test_the_lane_cheap_is_local_first_and_hosted_only_as_overflow(mission: Mission) -> None:
    assert mission.public.place("cheap") == ("local", None)
    with mission.full():
        assert mission.public.place("cheap") == ("hosted", "overflow")


def test_the_lane_frontier_is_hosted(mission: Mission) -> None:
    answer = mission.public.ask("frontier")
    assert (answer.headers["x-headgate-place"], answer.headers["x-headgate-model"]) == ("hosted", "far-demo")
    assert answer.parse().usage.completion_tokens == 4


def test_unsure_means_private(mission: Mission) -> None:
    """Token ids may say anything, so they stay; the same key's text may go."""
    client = openai.OpenAI(base_url=f"{mission.url}/v1", api_key=mission.plain.key, max_retries=0)
    text = client.completions.with_raw_response.create(model="frontier", prompt="The river flows", max_tokens=3)
    assert text.headers["x-headgate-place"] == "hosted"
    before = mission.provider_bytes()
    ids = list(range(20, 40))
    with pytest.raises(openai.PermissionDeniedError, match="cannot be read and so counts as private"):
        client.completions.create(model="frontier", prompt=ids, max_tokens=3)
    stays = client.completions.with_raw_response.create(model="auto", prompt=ids, max_tokens=3)
    assert stays.headers["x-headgate-place"] == "local"
    assert mission.provider_bytes() == before


# Escalation, within the caller's eligibility.


def test_the_caller_may_ask_for_a_stronger_model_with_the_scope_for_it(mission: Mission) -> None:
    wish = {"x-headgate-escalate": "low-confidence"}
    answer = mission.public.ask("cheap", extra_headers=wish)
    assert (answer.headers["x-headgate-place"], answer.headers["x-headgate-trigger"]) == (
        "hosted", "caller:low-confidence",
    )  # fmt: skip
    record = mission.record(answer)
    assert (record["escalate"], record["trigger"]) == ("low-confidence", "caller:low-confidence")
    with pytest.raises(openai.PermissionDeniedError, match="--escalate"):
        mission.plain.ask(extra_headers=wish)
    refused = mission.private.ask(extra_headers=wish)  # its data may not leave, whatever it wishes
    assert refused.headers["x-headgate-place"] == "local"
    assert (mission.record(refused)["escalate"], mission.record(refused)["trigger"]) == ("low-confidence", "")


def test_a_rule_escalates_and_is_named(mission: Mission) -> None:
    prove: Any = [{"role": "user", "content": "Prove that the river flows down."}]
    answer = mission.plain.ask(messages=prove)
    assert answer.headers["x-headgate-place"] == "hosted"
    assert "rule proofs" in answer.headers["x-headgate-reason"]
    assert mission.record(answer)["trigger"] == "rule:proofs"
    assert mission.private.place(messages=prove) == ("local", None)


def test_a_prompt_that_does_not_fit_the_local_model_escalates(mission: Mission) -> None:
    long: Any = [{"role": "user", "content": "The river flows down to the mill. " * 200}]
    assert mission.plain.place("cheap", long) == ("hosted", "context")
    with pytest.raises(openai.BadRequestError) as refused:
        mission.private.ask("cheap", long)
    assert refused.value.code == "context_length_exceeded"


def test_an_answer_that_breaks_the_schema_is_tried_once_on_the_next_model(mission: Mission) -> None:
    answer = mission.plain.ask(response_format=LONG_LIST, max_tokens=None)
    assert len(json.loads(answer.parse().choices[0].message.content)) == ITEMS
    assert (answer.headers["x-headgate-place"], answer.headers["x-headgate-trigger"]) == ("hosted", "cascade")
    record = mission.record(answer)
    assert [a["outcome"] for a in record["attempts"]] == ["check_failed", "answered"]
    assert (record["trigger"], record["check"]) == ("cascade", "passed")
    first, second = record["attempts"]
    assert record["cost_usd"] == pytest.approx(first["cost_usd"] + second["cost_usd"]) and first["cost_usd"] > 0
    before = mission.provider_bytes()
    kept = mission.private.ask(response_format=LONG_LIST, max_tokens=None)  # there is no next model for it
    assert (kept.headers["x-headgate-place"], kept.headers["x-headgate-check"]) == ("local", "failed")
    assert mission.provider_bytes() == before


# Overflow, and the queue for what may not leave.


def test_at_the_limit_what_may_leave_overflows_to_the_cheapest(mission: Mission) -> None:
    with mission.full():
        answer = mission.plain.ask()
        assert (answer.headers["x-headgate-model"], answer.headers["x-headgate-trigger"]) == ("far-demo", "overflow")
        assert "demo is saturated (1.00: 2 of 2 places taken)" in answer.headers["x-headgate-reason"]
    assert mission.record(answer)["trigger"] == "overflow"
    assert mission.metric("headgate_overflow_total", 'from_model="demo"', 'to_model="far-demo"') >= 1


def test_what_may_not_leave_waits_for_room_and_is_answered_here(mission: Mission) -> None:
    with mission.full():
        waiting = in_background(mission.private.ask)
        until(lambda: mission.metric("headgate_queue_length") == 1)
    answer = waiting()
    assert answer.headers["x-headgate-place"] == "local"
    record = mission.record(answer)
    assert record["outcome"] == "answered" and record["queued_ms"] > 0


def test_the_queue_is_bounded_and_has_a_deadline(mission: Mission) -> None:
    before = mission.provider_bytes()
    with mission.full():
        waiting = in_background(mission.private.ask)
        until(lambda: mission.metric("headgate_queue_length") == 1)
        with pytest.raises(openai.InternalServerError) as turned_away:
            mission.private.ask()
        with pytest.raises(openai.InternalServerError) as too_late:
            waiting()
    for error, code, outcomes in (
        # By how fast the engine was until now it may be clear before the deadline that it is waited for in vain.
        (turned_away, "queue_full", ("queue_full",)), (too_late, "queue_timeout", ("deadline_passed", "hopeless")),
    ):  # fmt: skip
        assert (error.value.status_code, error.value.code) == (503, code)
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert mission.record(error.value)["outcome"] in outcomes
    assert mission.provider_bytes() == before


def test_who_leaves_the_queue_is_accounted_for(mission: Mission) -> None:
    before = mission.metric("headgate_queue_left_total", "left_queue")
    with mission.full():
        with socket.create_connection(("127.0.0.1", mission.port)) as caller:
            body = json.dumps({"model": "demo", "messages": MESSAGES}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mission.private.key}\r\n"
            caller.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: mission.metric("headgate_queue_length") == 1)
        until(lambda: mission.metric("headgate_queue_length") == 0)
        until(lambda: mission.metric("headgate_queue_left_total", "left_queue") == before + 1)


def test_vllms_own_admission_limit_overflows_too(mission: Mission) -> None:
    """Others keep the engine busy, which this router cannot know: vLLM answers 503, and that is believed."""
    with contextlib.ExitStack() as others:
        others.enter_context(mission.standing_still())
        taken: list[http.client.HTTPConnection] = []
        # One place may be that of the supervisor's probe for a while, so both must be taken by others.
        until(lambda: refused_past_the_router(mission, taken, others) and len(taken) == 2, 90.0)
        answer = mission.plain.ask()
        assert (answer.headers["x-headgate-place"], answer.headers["x-headgate-trigger"]) == ("hosted", "overflow")
        record = mission.record(answer)
        assert (record["attempts"][0]["endpoint"], record["attempts"][0]["outcome"]) == ("demo", "overloaded")
        waiting = in_background(mission.private.ask)
        until(lambda: mission.metric("headgate_queue_length") == 1)
    assert waiting().headers["x-headgate-place"] == "local"


def test_a_provider_that_is_down_is_passed_over_and_alone_it_is_a_clear_502(mission: Mission) -> None:
    with mission.full():
        answer = mission.plain.ask("cheap")
        assert answer.headers["x-headgate-model"] == "far-spare"
        tried = [(a["model"], a["outcome"]) for a in mission.record(answer)["attempts"]]
        assert tried == [("far-gone", "unreachable"), ("far-spare", "answered")]
    with pytest.raises(openai.InternalServerError, match="cannot be reached") as failed:
        mission.plain.ask("far-gone")
    assert failed.value.status_code == 502


# What the GPUs and engines do is part of the decision.


def test_engine_and_gpu_load_are_shown_everywhere(mission: Mission) -> None:
    def explained() -> Any:
        shown = json.loads(mission.run("explain", "--json", given=json.dumps({"messages": MESSAGES})).stdout)
        return shown["order"][0]  # of a private key: the local model alone

    with mission.full():
        demo = explained()
        assert (demo["in_flight"], demo["limit"], demo["full"]) == (2, 2, True)
    with stuck(mission):
        demo = until(lambda: (d := explained())["running"] == 1 and d)  # by vLLM's own count
    assert (demo["in_flight"], demo["waiting"], demo["full"]) == (0, 0, False) and 0 < demo["kv_use"] < 1
    assert demo["gpus"][0]["utilisation"] == 0.25
    assert {"running", "waiting", "kv_use", "preemptions", "rejections"} <= mission.instance()["load"].keys()
    (gpu, *_) = json.loads(mission.ask("serving", "/instances"))["gpus"]
    assert (gpu["utilisation"], gpu["power_w"], gpu["temperature_c"]) == (0.25, 123.0, 51.0)
    status = mission.run("status").stdout
    assert "Test Card" in status and "25%" in status and "51" in status


def test_of_two_replicas_the_less_loaded_one_answers(mission: Mission) -> None:
    """A second router with nothing of its own: both engines are attached to it as one model."""
    provider = f"http://127.0.0.1:{mission.provider_port}"
    twins = [
        {"url": mission.instance()["address"], "name": "twin", "limit": 4},
        {"url": provider, "name": "twin", "limit": 4, "key_env": "TWIN"},
    ]
    replicas = Installation({"attach": twins, "engine": MAY_STAND_STILL}, {"TWIN": "k" * 24})

    def order() -> list[Any]:
        body = json.dumps({"model": "twin", "messages": MESSAGES})
        found = json.loads(replicas.run("explain", "--json", given=body).stdout)
        assert len(found["order"]) == 2, found["refusals"]
        return list(found["order"])

    def first() -> str:
        return str(order()[0]["endpoint"])

    def at_work() -> set[str]:
        """Those whose engine says that it works on something."""
        return {str(one["endpoint"]) for one in order() if one["running"]}

    try:
        replicas.start()
        until(lambda: first() == "twin")
        with stuck(mission):
            until(lambda: at_work() == {"twin"})  # until that is known chance decides between the two
            assert first() == "twin-2"
            client = openai.OpenAI(base_url=f"{replicas.url}/v1", api_key=replicas.first_key, max_retries=0)
            raw = client.chat.completions.with_raw_response.create(model="twin", messages=MESSAGES, max_tokens=2)
            shown = replicas.run("explain", "--request", raw.headers["x-request-id"]).stdout
            assert "twin-2: answered" in shown
        until(lambda: first() == "twin")
    finally:
        replicas.stop()


@pytest.mark.parametrize(("state", "says"), [("full", "out of memory"), ("lost everywhere", "GPU is lost")])
def test_a_gpu_in_trouble_takes_its_endpoint_out_with_that_reason(mission: Mission, state: str, says: str) -> None:
    def refusals() -> str:
        shown = json.loads(mission.run("explain", "--json", given=json.dumps({"messages": MESSAGES})).stdout)
        return " ".join(r["reason"] for r in shown["refusals"] if r["endpoint"] == "demo")

    before = mission.provider_bytes()
    mission.gpu.write_text(state)
    try:
        until(lambda: says in refusals())
        if says == "GPU is lost":  # nothing that runs there will ever answer
            until(lambda: mission.instance()["state"] == "failed")
        with pytest.raises(openai.InternalServerError, match=says) as refused:
            mission.private.ask()
        assert (refused.value.status_code, refused.value.code) in ((503, "gpu_trouble"), (503, "no_local_capacity"))
        assert mission.provider_bytes() == before
        assert mission.plain.place()[0] == "hosted"
    finally:
        mission.gpu.write_text("cool")
        until(lambda: not refusals(), 300.0)  # once it is well an engine that was ended is started again
    assert mission.private.place() == ("local", None)


@pytest.mark.parametrize("state", ["absurd", "broken"])
def test_a_driver_that_lies_or_fails_is_unknown_and_stops_nothing(mission: Mission, state: str) -> None:
    def utilisation() -> Any:
        gpus = json.loads(mission.ask("serving", "/instances"))["gpus"]
        return gpus[0]["utilisation"] if gpus else None

    mission.gpu.write_text(state)
    try:
        until(lambda: utilisation() is None)
        until(lambda: "25%" not in mission.run("status").stdout)
        assert mission.private.place() == ("local", None)
    finally:
        mission.gpu.write_text("cool")
        until(lambda: utilisation() == 0.25)


# Every decision is written down, with its reasons and its cost.


def test_every_request_has_its_cost_and_what_has_no_price_is_called_unpriced(mission: Mission) -> None:
    near, far = mission.record(mission.private.ask()), mission.record(mission.plain.ask("far-demo"))
    # 2 $/h over 1000 and 100 tokens a second, half of the hours used.
    per_input, per_output = 2 / 3600 / 1000 / 0.5, 2 / 3600 / 100 / 0.5
    cached = near["cached_tokens"] or 0
    expected = (near["prompt_tokens"] - cached) * per_input + near["output_tokens"] * per_output
    assert (near["cost_usd"], near["price_source"]) == (pytest.approx(expected), "gpu-hours")
    cached = far["cached_tokens"] or 0
    expected = ((far["prompt_tokens"] - cached) * 2 + cached * 0.2 + far["output_tokens"] * 10) / 1e6
    assert (far["cost_usd"], far["price_source"]) == (pytest.approx(expected), "set")
    unknown = mission.record(mission.plain.ask("far-unpriced"))
    assert (unknown["cost_usd"], unknown["unpriced"], unknown["price_source"]) == (None, True, "")


def test_cached_tokens_are_counted_as_such(mission: Mission) -> None:
    twice: Any = [{"role": "user", "content": "The keeper writes each change into a book. " * 12}]
    mission.private.ask(messages=twice)
    again = mission.record(mission.private.ask(messages=twice))
    assert again["cached_tokens"] > 0
    rate = 2 / 3600 / 0.5
    expected = ((again["prompt_tokens"] - again["cached_tokens"]) / 1000 + again["output_tokens"] / 100) * rate
    assert again["cost_usd"] == pytest.approx(expected)


@pytest.mark.parametrize("by", ["team", "model", "lane"])
def test_the_costs_and_what_was_saved(mission: Mission, by: str) -> None:
    mission.private.ask(), mission.plain.ask("frontier"), mission.plain.ask("far-unpriced")
    found = json.loads(mission.run("costs", "--json", "--by", by).stdout)
    names = {row[by] for row in found["rows"]}
    assert names >= {"team": {"web", "legal"}, "model": {"demo", "far-demo"}, "lane": {"auto", "frontier"}}[by]
    assert found["saving"]["frontier"] == "far-demo" and found["saving"]["requests"] > 0
    assert "everything to far-demo would have cost" in mission.run("costs", "--by", by).stdout.lower()


def test_metrics_tell_the_same_story(mission: Mission) -> None:
    mission.plain.ask("frontier"), mission.private.ask()
    for words in (
        ("headgate_requests_total", 'model="demo"', 'outcome="answered"'),
        ("headgate_decisions_total", 'lane="frontier"', 'place="hosted"'),
        ("headgate_tokens_total", 'kind="output"'),
        ("headgate_cost_usd_total", 'place="local"'),
        ("headgate_first_token_seconds_count", 'place="hosted"'),
        ("headgate_instance_state", 'state="ready"'),
        ("headgate_endpoint_limit", 'endpoint="demo"'),
        ("headgate_gpu_utilisation",),
        ("headgate_door_open",),
    ):
        assert mission.metric(*words) > 0, words


def test_every_byte_that_left_is_in_the_book_of_the_door(mission: Mission) -> None:
    """Three counts that know nothing of each other: the ledger, the door's book, the provider's side."""
    before, sent = mission.provider_bytes(), len(in_the_book(mission))
    answer = mission.plain.ask("frontier")
    (new,) = in_the_book(mission)[sent:]
    assert new["request"] == answer.headers["x-request-id"] and new["model"] == "far-demo"
    assert mission.record(answer)["place"] == "hosted"
    assert mission.provider_bytes() > before
    mission.private.ask()
    assert len(in_the_book(mission)) == sent + 1


def test_the_example_for_two_gpus_is_read(mission: Mission) -> None:
    mission.run("config", "check", "--config", str(ROOT / "deploy" / "headgate.example.yaml"))


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start it in a thread; the returned function waits for its result, or raises what it raised."""
    found: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except openai.OpenAIError as failed:
            found.append((None, failed))

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(120)
        value, failed = found[0]
        if failed is not None:
            raise failed
        return value

    return result


@contextlib.contextmanager
def past_the_router(mission: Mission) -> Iterator[None]:
    """A long answer that somebody else has the local engine stream, from its beginning on."""
    with contextlib.closing(asked_past_the_router(mission, stream=True)) as connection:
        answer = connection.getresponse()
        assert answer.status == 200
        answer.readline()
        yield


@contextlib.contextmanager
def stuck(mission: Mission) -> Iterator[None]:
    """The local engine stands still in the middle of somebody else's answer, by its own count.

    On a busy machine the answer may have ended by the time the engine stands; then another one is asked for. And its
    API server may be behind: what the engine said last is still to be read.
    """
    for _ in range(10):
        until(lambda: running_by_its_own_count(mission) == 0)
        with past_the_router(mission), mission.standing_still():
            for _ in range(30):
                if running_by_its_own_count(mission) == 1:
                    yield
                    return
                time.sleep(0.1)
    raise AssertionError("no answer lasted until the engine stood still")


def running_by_its_own_count(mission: Mission) -> float:
    """How many requests the local engine says it runs."""
    found = re.search(r"^vllm:num_requests_running\{[^}]*\} (\S+)", engine_metrics(mission), re.MULTILINE)
    assert found is not None
    return float(found[1])


def engine_metrics(mission: Mission) -> str:
    """What the local engine's API server says of it."""
    connection = http.client.HTTPConnection("localhost")
    with contextlib.closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(mission.instance()["address"].removeprefix("unix:"))
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def refused_past_the_router(
    mission: Mission, taken: list[http.client.HTTPConnection], others: contextlib.ExitStack
) -> bool:
    """Whether the local engine takes no more now. One that takes it does not answer while it stands still: then the
    place is `taken` until the end of `others`."""
    connection = asked_past_the_router(mission, stream=False)
    others.callback(connection.close)
    assert connection.sock is not None
    connection.sock.settimeout(1.0)
    try:
        return connection.getresponse().status == 503
    except TimeoutError:
        taken.append(connection)
        return False


def asked_past_the_router(mission: Mission, *, stream: bool) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(mission.instance()["address"].removeprefix("unix:"))
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 900, "ignore_eos": True, "stream": stream}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    return connection


def in_the_book(mission: Mission) -> list[dict[str, Any]]:
    """The sendings in the door's book."""
    entries = [json.loads(line) for line in mission.home.book.read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == "sending"]
