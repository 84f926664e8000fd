"""vLLM's /metrics text as load readings. Pure: text in, numbers out.

Knows the names vLLM gives its metrics, old and new, and looks for those alone: the page has hundreds of others. What is
absent or absurd is None, never 0: a reader that takes "unknown" for "idle" would send everything to the one engine
nobody can see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import urlencode

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
SLEEP = ("vllm:engine_sleep_state",)
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
REJECTIONS = ("vllm:admission_rejections_total", "vllm:admission_rejections")
PROMPT_TOKENS = ("vllm:prompt_tokens_total", "vllm:prompt_tokens")
OUTPUT_TOKENS = ("vllm:generation_tokens_total", "vllm:generation_tokens")
PREFIX_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries_total")
PREFIX_HITS = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits_total")
CACHE = ("vllm:cache_config_info",)

NEEDED = (
    RUNNING, WAITING, KV_USE, SLEEP, PREEMPTIONS, REJECTIONS, PROMPT_TOKENS, OUTPUT_TOKENS, PREFIX_QUERIES,
    PREFIX_HITS, CACHE,
)  # fmt: skip
NARROW_PAGE = "/metrics/?" + urlencode([("name[]", name) for names in NEEDED for name in names])
"""The page with nothing but these names, for which vLLM works a sixth as long. The final slash leads to the part of
vLLM that takes names; where there is no such part, the whole page is asked for."""

ABSURD = 1e15
"""No counter of an engine reaches this; a larger number is a fault of the one who sent it."""

_REST = re.compile(r'(\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\.|[^"\\])*)"')


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine says it does now, over all its data-parallel ranks. None is unknown."""

    running: int | None = None
    waiting: int | None = None
    kv_use: float | None = None
    """Share of the KV cache in use, 0 to 1, of the fullest rank. What only the prefix cache holds counts as free."""
    asleep: bool | None = None
    """True where any rank sleeps: a sleeping engine takes requests and never answers them."""
    preemptions: int | None = None
    """Since the engine started, as are the other counts below."""
    rejections: int | None = None
    """Requests its own admission limit turned away."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prefix_queries: int | None = None
    """Prompt tokens that were looked up in the prefix cache; `prefix_hits` those of them that were there."""
    prefix_hits: int | None = None
    kv_tokens: int | None = None
    """Tokens that the KV cache of all ranks together has room for."""


def progress(load: Load) -> Load:
    """What only an engine that works can change: an API server turns requests away with a stuck engine behind."""
    return replace(load, rejections=None)


class _Sample(NamedTuple):
    labels: str
    value: float

    def label(self, name: str) -> str | None:
        return dict(_LABEL.findall(self.labels)).get(name)


def parse(text: str) -> Load:
    """Read one /metrics document."""
    text = "\n" + text
    return Load(
        running=_sum(_first(text, RUNNING)),
        waiting=_sum(_first(text, WAITING)),
        kv_use=_fullest(_first(text, KV_USE)),
        asleep=_asleep(_first(text, SLEEP)),
        preemptions=_sum(_first(text, PREEMPTIONS)),
        rejections=_sum(_first(text, REJECTIONS)),
        prompt_tokens=_sum(_first(text, PROMPT_TOKENS)),
        output_tokens=_sum(_first(text, OUTPUT_TOKENS)),
        prefix_queries=_sum(_first(text, PREFIX_QUERIES)),
        prefix_hits=_sum(_first(text, PREFIX_HITS)),
        kv_tokens=_capacity(_first(text, CACHE)),
    )


def _samples(text: str, name: str) -> Iterator[_Sample]:
    """All samples of one metric. `text` begins with a line's end."""
    mark, at = "\n" + name, 0
    while (at := text.find(mark, at)) >= 0:
        at += len(mark)
        if (match := _REST.match(text, at)) is None:
            continue  # the name of another metric that only begins like this one
        try:
            value = float(match[2])
        except ValueError:
            value = math.nan
        yield _Sample(match[1] or "", value)


def _first(text: str, names: tuple[str, ...]) -> list[_Sample]:
    """The samples under the first of the names that the engine uses."""
    return next((found for name in names if (found := list(_samples(text, name)))), [])


def _sane(value: float) -> bool:
    return math.isfinite(value) and 0 <= value < ABSURD


def _sum(found: list[_Sample]) -> int | None:
    """The sum over all label sets; one bad number makes the whole unknown, for a part would look like the whole."""
    if not found or not all(_sane(sample.value) for sample in found):
        return None
    return int(sum(sample.value for sample in found))


def _fullest(found: list[_Sample]) -> float | None:
    if not found or not all(_sane(sample.value) and sample.value <= 1 for sample in found):
        return None
    return max(sample.value for sample in found)


def _asleep(found: list[_Sample]) -> bool | None:
    awake = [sample for sample in found if sample.label("sleep_state") == "awake"]
    if not awake or not all(sample.value in (0, 1) for sample in awake):
        return None
    return any(sample.value == 0 for sample in awake)


def _capacity(found: list[_Sample]) -> int | None:
    """Tokens, from what stands in the labels: each rank tells its own tokens, and the blocks of all ranks together."""
    tokens = [_count(sample.label("kv_cache_size_tokens")) for sample in found]
    known = [count for count in tokens if count]
    if known:
        return sum(known) if len(known) == len(tokens) else None
    sizes = [(_count(s.label("num_gpu_blocks")), _count(s.label("block_size"))) for s in found]
    return max((blocks * size for blocks, size in sizes if blocks and size), default=None)


def _count(label: str | None) -> int | None:
    return int(label) if label and re.fullmatch(r"[0-9]{1,15}", label) else None
