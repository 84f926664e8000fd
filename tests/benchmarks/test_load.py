"""The load generator: arrivals, what is sent and to whom, what is counted, and that it never waits for an answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import load
from benchmarks.asking import Asking, Seen, check_address, prompt
from benchmarks.installation import Stop
from benchmarks.load import Plan, arrivals, plan_of, run
from benchmarks.samples import Sample, from_json, quantile, summary, to_json
from tests.fakes.faults import Upstream, completion


def sample(number: int = 0, **changed: object) -> Sample:
    fields: dict[str, object] = {
        "scheduled_s": 0.0, "sent_s": 0.0, "ended_s": 1.0, "status": 200, "first_token_s": 0.2, "prompt_tokens": 9,
        "output_tokens": 3, "model": "demo", "place": "local",
    }  # fmt: skip
    return Sample(number=number, **fields | changed)  # type: ignore[arg-type]


# ---- arrivals


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    assert arrivals(5, 20, 7) == arrivals(5, 20, 7)
    assert arrivals(5, 20, 7) != arrivals(5, 20, 8)


def test_arrivals_are_a_poisson_process() -> None:
    rate, seconds = 50.0, 400.0
    times = arrivals(rate, seconds, 1)
    assert times == sorted(times) and times[0] > 0 and times[-1] < seconds
    # Counts of a Poisson process have the variance of their mean; five standard deviations of room.
    assert abs(len(times) - rate * seconds) < 5 * math.sqrt(rate * seconds)
    seen = Counter(map(int, times))
    counts = [seen[second] for second in range(int(seconds))]
    assert 0.7 < statistics.variance(counts) / statistics.mean(counts) < 1.3
    gaps = [b - a for a, b in itertools.pairwise(times)]
    # A steady beat would have a deviation near 0; exponential gaps have that of their mean.
    assert 0.9 < statistics.stdev(gaps) / statistics.mean(gaps) < 1.1


# ---- to whom


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/v1", "http://localhost:1", "http://[::1]:8080", "https://127.9.9.9"]
)
def test_this_machine_is_allowed(url: str) -> None:
    check_address(url, anywhere=False)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8080", "https://api.example.com/v1", "http://0.0.0.0:1", "http://127.0.0.1.example.com",
            "http://localhost.example.com"]
)  # fmt: skip
def test_another_machine_is_refused_unless_said_otherwise(url: str) -> None:
    with pytest.raises(Stop, match="--anywhere"):
        check_address(url, anywhere=False)
    check_address(url, anywhere=True)


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_what_is_no_address_is_refused_even_then(url: str) -> None:
    with pytest.raises(Stop, match="no address"):
        check_address(url, anywhere=True)


def test_the_command_refuses_another_machine_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--url", "http://10.0.0.7:8080", "--key", "k"]) == 1
    said = capsys.readouterr()
    assert "10.0.0.7 is not this machine" in said.err and said.err.count("\n") == 1 and not said.out


def test_the_key_may_come_from_the_environment() -> None:
    assert plan_of(load._options(["--url", "http://localhost:1"]), {"HEADGATE_KEY": "k"}).asking.key == "k"


# ---- what is asked


def test_prompts_differ_from_their_first_words_on_unless_told_otherwise() -> None:
    texts = [prompt(30, 1, number) for number in range(200)]
    assert len(set(texts)) == 200 and all(len(text.split()) == 30 for text in texts)
    assert len({" ".join(text.split()[:4]) for text in texts}) == 200
    assert prompt(30, 1, 5) == texts[5]
    same = Asking(url="", same_prompt=True)
    assert same.body(1) == same.body(2)


# ---- what is counted


def test_the_summary_says_who_answered_who_refused_and_how_fast() -> None:
    samples = [sample(n, ended_s=float(n + 1)) for n in range(10)]
    samples += [sample(10, model="far", place="hosted", trigger="overflow", ended_s=20.0, output_tokens=70)]
    samples += [sample(11, status=503, error="queue_full"), sample(12, status=None, error="no_connection")]
    found = summary(samples)
    assert found.sent == 13 and found.answered_count == 11
    assert found.answered == (("demo", "local", "", 10), ("far", "hosted", "overflow", 1))
    assert dict(found.refused) == {"queue_full": 1, "no_connection": 1}
    assert (found.total.p50, found.total.p90, found.total.p99) == (6.0, 10.0, 20.0)
    assert found.output_tokens == 100 and found.output_tokens_per_s == pytest.approx(100 / 20)


def test_what_is_unknown_is_not_counted_as_nothing() -> None:
    found = summary([sample(0, output_tokens=None, first_token_s=None), sample(1)])
    assert found.without_usage == 1 and found.output_tokens == 3
    assert found.first_token.p50 == 0.2
    empty = summary([sample(0, status=500, error="x")])
    assert empty.total.p50 is None and empty.output_tokens_per_s is None
    assert summary([]).late.p99 is None


def test_quantiles_are_of_the_nearest_rank() -> None:
    values = [float(v) for v in range(1, 101)]
    assert [quantile(values, q) for q in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert quantile([7.0], 0.99) == 7.0 and quantile([], 0.5) is None


def test_late_sends_are_owned_up_to() -> None:
    assert not summary([sample(n, sent_s=0.01) for n in range(100)]).behind
    late = [sample(n, sent_s=0.5 if n < 11 else 0.0) for n in range(100)]
    assert summary(late).behind and summary(late).latest_s == 0.5


def test_a_run_survives_its_file() -> None:
    samples = [sample(0), sample(1, status=None, error="unfinished", first_token_s=None, model="")]
    text = to_json(samples, plan={"rate": 2})
    assert from_json(text) == samples
    assert json.loads(text)["summary"]["sent"] == 2
    with pytest.raises(ValueError, match="no file"):
        from_json('{"samples": [{"number": 1}]}')


def test_neither_key_nor_header_values_are_written_down(tmp_path: Path) -> None:
    options = load._options(["--url", "http://localhost:1", "--key", "hg_hidden", "--header", "X-Mark: hidden too"])
    plan = plan_of(options, {})
    assert plan.asking.headers == {"X-Mark": "hidden too"}
    text = to_json([], plan=load.described(plan))
    assert "hidden" not in text and "X-Mark" in text and "hidden" not in repr(plan)


# ---- over a socket


def plan(upstream: Upstream, *times: float, **changed: object) -> Plan:
    asking = Asking(url=upstream.address, key="k", model="m", **changed)  # type: ignore[arg-type]
    return Plan(asking, rate=1, seconds=1, drain_s=0.4, arrivals=times)


async def test_a_stream_gives_its_first_token_its_usage_and_who_answered() -> None:
    script = {"headers": {"x-headgate-model": "demo", "x-headgate-place": "local", "x-headgate-trigger": "overflow"}}
    async with Upstream(script=script) as upstream:
        (found,) = await run(plan(upstream, 0.0))
    assert found.answered and 0 < (found.first_token_s or 0) <= found.total_s
    assert (found.model, found.place, found.trigger) == ("demo", "local", "overflow")
    assert (found.prompt_tokens, found.output_tokens) == (9, 3)
    asked = upstream.requests[0]
    assert asked.headers["authorization"] == "Bearer k" and asked.json()["stream_options"] == {"include_usage": True}


async def test_without_a_stream_there_is_no_first_token() -> None:
    async with Upstream(script={"body": completion()}) as upstream:
        (found,) = await run(plan(upstream, 0.0, stream=False))
    assert found.answered and found.first_token_s is None and found.output_tokens == 3


async def test_a_server_that_stalls_does_not_hold_up_the_sends() -> None:
    async with Upstream(script={"never": True}) as upstream:
        found = await run(plan(upstream, *(n * 0.01 for n in range(30))))
        assert len(upstream.requests) == 30
    assert {s.error for s in found} == {"unfinished"}
    assert max(s.sent_s for s in found) < 0.6, "the last was to be sent at 0.29 s"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"status": 503, "body": '{"error": {"message": "m", "code": "queue_full"}}'}, "queue_full"),
        ({"status": 500, "body": "broken"}, "status 500"),
        ({"status": 302, "body": "", "headers": {"location": "http://127.0.0.1:1/v1/chat/completions"}}, "status 302"),
        ({"cut": 400, "stream": ["a"] * 20}, "cut"),
        ({"body": "{}"}, "unreadable"),
        ({"headers": {"content-type": "text/event-stream"}, "body": 'data: {"choices": []}\n\n'}, "cut"),
        ({"headers": {"content-type": "text/event-stream"},
          "body": 'data: {"error": {"code": "upstream_cut"}}\n\ndata: [DONE]\n\n'}, "upstream_cut"),
    ],
)  # fmt: skip
async def test_what_went_wrong_is_told_apart(script: dict[str, object], error: str) -> None:
    async with Upstream(script=script) as upstream:
        (found,) = await run(plan(upstream, 0.0))
    assert found.error == error and not found.answered
    assert len(upstream.requests) == 1, "nothing is asked twice, and no redirect is followed"


async def test_nobody_there_is_an_answer_too() -> None:
    async with Upstream() as upstream:
        gone = plan(upstream, 0.0)
    (found,) = await run(gone)
    assert found.error == "no_connection" and found.status is None


def test_a_stream_may_arrive_in_any_pieces() -> None:
    text = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    text += (
        b'data: {"choices": [{"delta": {"reasoning": "hm"}}]}\n\ndata: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    )
    text += b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
    for size in (1, 7, len(text)):
        seen = Seen()
        seen.head(200, {})
        for start in range(0, len(text), size):
            seen.piece(text[start : start + size], at=start / 1000)
        seen.end()
        found = seen.sample(0, 0.0, 0.0, 1.0)
        assert found.answered and found.output_tokens == 2, size
        assert size != 1 or 0.07 < (found.first_token_s or 0) < 0.13, "the role alone is no token"


def test_a_plan_is_complete_on_the_command_line() -> None:
    given = ["--url", "http://localhost:1/v1", "--rate", "3", "--seconds", "4", "--no-stream", "--max-tokens", "5"]
    made = plan_of(load._options(given), {})
    assert (made.rate, made.seconds, made.asking.stream, made.asking.max_tokens) == (3, 4, False, 5)
    for wrong in (["--rate", "0"], ["--header", "nocolon"]):
        with pytest.raises(Stop):
            plan_of(load._options(["--url", "http://localhost:1", *wrong]), {})
    assert dataclasses.asdict(made)["seed"] == 1
