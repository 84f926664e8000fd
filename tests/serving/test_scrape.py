"""Load readings: what an engine does not say must never read as idle."""

from __future__ import annotations

import pytest

from serving.scrape import Load, parse

RANKS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 2.0
vllm:num_requests_running{engine="1",model_name="demo"} 3.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 0.0
vllm:num_requests_waiting{engine="1",model_name="demo"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="demo",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="demo"} 0.75
vllm:engine_sleep_state{engine="0",model_name="demo",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="demo",sleep_state="weights_offloaded"} 0.0
vllm:num_preemptions_total{engine="0",model_name="demo"} 4.0
vllm:admission_rejections_total{model_name="demo",reason="queued_reqs"} 5.0
vllm:prompt_tokens_total{engine="0",model_name="demo"} 1.2e+03
vllm:prompt_tokens_created{engine="0",model_name="demo"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="demo"} 34.0
process_resident_memory_bytes 1.0e+09
"""


def test_sums_over_ranks_and_takes_the_fullest_cache() -> None:
    assert parse(RANKS) == Load(5, 1, 0.75, False, 4, 5, 1200, 34)


@pytest.mark.parametrize("text", ["", "<html>not metrics</html>", "process_cpu_seconds_total 3\n", "vllm:\nvllm:x{ 1"])
def test_what_is_absent_is_unknown_and_never_zero(text: str) -> None:
    assert parse(text) == Load()


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e18", "many"])
def test_an_absurd_number_makes_the_whole_reading_unknown(value: str) -> None:
    text = f'vllm:num_requests_running{{engine="0"}} 2\nvllm:num_requests_running{{engine="1"}} {value}\n'
    assert parse(text).running is None


def test_a_share_above_one_is_unknown() -> None:
    assert parse("vllm:kv_cache_usage_perc 75.0").kv_use is None


def test_a_name_of_an_older_vllm_is_understood() -> None:
    assert parse('vllm:gpu_cache_usage_perc{model_name="demo"} 0.5').kv_use == 0.5


def test_one_sleeping_rank_means_asleep() -> None:
    ranks = [f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="awake"}} {1 - rank}' for rank in (0, 1)]
    assert parse("\n".join(ranks)).asleep is True


def test_a_label_may_hold_brackets_and_quotes() -> None:
    assert parse('vllm:num_requests_running{model_name="a \\"b\\" {c}",engine="0"} 2').running == 2
