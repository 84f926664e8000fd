"""Load readings: what an engine does not say must never read as idle."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest

from serving.scrape import NARROW_PAGE, NEEDED, Load, parse, progress

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
vllm:prefix_cache_queries_total{engine="0",model_name="demo"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="demo"} 200.0
vllm:prefix_cache_queries_created{engine="0",model_name="demo"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="demo"} 768.0
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="4096",num_gpu_blocks="512"} 1.0
vllm:cache_config_info{block_size="16",engine="1",kv_cache_size_tokens="4096",num_gpu_blocks="512"} 1.0
process_resident_memory_bytes 1.0e+09
"""


def test_sums_over_ranks_and_takes_the_fullest_cache() -> None:
    assert parse(RANKS) == Load(5, 1, 0.75, False, 4, 5, 1200, 34, 1200, 768, 8192)


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
    older = parse("vllm:gpu_prefix_cache_queries_total 8\nvllm:gpu_prefix_cache_hits_total 4")
    assert (older.prefix_queries, older.prefix_hits) == (8, 4)


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",num_gpu_blocks="512"', 8192), ('block_size="16",num_gpu_blocks="None"', None),
        ('block_size="16",kv_cache_size_tokens="None",num_gpu_blocks="512"', 8192), ('block_size="16"', None),
        ('block_size="0",num_gpu_blocks="512"', None), ('block_size="-1",num_gpu_blocks="512"', None),
        ('kv_cache_size_tokens="1e9"', None), ('kv_cache_size_tokens="9999999999999999999"', None),
    ],
)  # fmt: skip
def test_what_the_cache_has_room_for_stands_in_labels(labels: str, tokens: int | None) -> None:
    assert parse(f"vllm:cache_config_info{{{labels}}} 1.0").kv_tokens == tokens


def test_the_blocks_that_each_rank_tells_are_those_of_all_ranks_together() -> None:
    rank = 'vllm:cache_config_info{{block_size="16",engine="{}",num_gpu_blocks="1024"}} 1.0'
    assert parse("\n".join(rank.format(number) for number in range(2))).kv_tokens == 16384


def test_a_request_turned_away_is_no_progress_and_a_token_is() -> None:
    """A stuck engine stands behind an API server that goes on turning requests away."""
    before = Load(running=2, output_tokens=7, rejections=1)
    assert progress(Load(running=2, output_tokens=7, rejections=90)) == progress(before)
    assert progress(Load(running=2, output_tokens=8, rejections=1)) != progress(before)


def test_the_page_that_is_asked_for_names_every_metric_that_is_read() -> None:
    asked = parse_qs(NARROW_PAGE.partition("?")[2])["name[]"]
    assert asked == [name for names in NEEDED for name in names]
    page = "\n".join(line for line in RANKS.splitlines() if line.partition("{")[0] in asked)
    assert parse(page) == parse(RANKS)


def test_one_sleeping_rank_means_asleep() -> None:
    ranks = [f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="awake"}} {1 - rank}' for rank in (0, 1)]
    assert parse("\n".join(ranks)).asleep is True


def test_a_label_may_hold_brackets_and_quotes() -> None:
    assert parse('vllm:num_requests_running{model_name="a \\"b\\" {c}",engine="0"} 2').running == 2
