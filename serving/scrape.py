"""vLLM's /metrics text as load readings. Pure: text in, numbers out.

Knows the names vLLM gives its metrics, old and new. What is absent or absurd is None, never 0: a reader that takes
"unknown" for "idle" would send everything to the one engine nobody can see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

RUNNING = ("vllm:num_requests_running",)
WAITING = ("vllm:num_requests_waiting",)
KV_USE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
SLEEP = ("vllm:engine_sleep_state",)
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
REJECTIONS = ("vllm:admission_rejections_total", "vllm:admission_rejections")
PROMPT_TOKENS = ("vllm:prompt_tokens_total", "vllm:prompt_tokens")
OUTPUT_TOKENS = ("vllm:generation_tokens_total", "vllm:generation_tokens")

ABSURD = 1e15
"""No counter of an engine reaches this; a larger number is a fault of the one who sent it."""

_LINE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[^"}]|"(?:\\.|[^"\\])*")*\})?[ \t]+(\S+)')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\.|[^"\\])*)"')


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine says it does now, over all its data-parallel ranks. None is unknown."""

    running: int | None = None
    waiting: int | None = None
    kv_use: float | None = None
    """Share of the KV cache in use, 0 to 1, of the fullest rank."""
    asleep: bool | None = None
    """True where any rank sleeps: a sleeping engine takes requests and never answers them."""
    preemptions: int | None = None
    """Since the engine started, as are the following."""
    rejections: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    labels: dict[str, str]
    value: float


def parse(text: str) -> Load:
    """Read one /metrics document."""
    samples: dict[str, list[_Sample]] = {}
    for name, sample in _samples(text):
        samples.setdefault(name, []).append(sample)
    return Load(
        running=_sum(samples, RUNNING),
        waiting=_sum(samples, WAITING),
        kv_use=_fullest(samples, KV_USE),
        asleep=_asleep(samples),
        preemptions=_sum(samples, PREEMPTIONS),
        rejections=_sum(samples, REJECTIONS),
        prompt_tokens=_sum(samples, PROMPT_TOKENS),
        output_tokens=_sum(samples, OUTPUT_TOKENS),
    )


def _samples(text: str) -> Iterator[tuple[str, _Sample]]:
    for line in text.splitlines():
        if not line.startswith("vllm:"):
            continue
        if (match := _LINE.match(line)) is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            value = math.nan
        yield match[1], _Sample(dict(_LABEL.findall(match[2] or "")), value)


def _first(samples: dict[str, list[_Sample]], names: tuple[str, ...]) -> list[_Sample]:
    return next((samples[name] for name in names if name in samples), [])


def _sane(value: float) -> bool:
    return math.isfinite(value) and 0 <= value < ABSURD


def _sum(samples: dict[str, list[_Sample]], names: tuple[str, ...]) -> int | None:
    """The sum over all label sets; one bad number makes the whole unknown, for a part would look like the whole."""
    found = _first(samples, names)
    if not found or not all(_sane(sample.value) for sample in found):
        return None
    return int(sum(sample.value for sample in found))


def _fullest(samples: dict[str, list[_Sample]], names: tuple[str, ...]) -> float | None:
    found = _first(samples, names)
    if not found or not all(_sane(sample.value) and sample.value <= 1 for sample in found):
        return None
    return max(sample.value for sample in found)


def _asleep(samples: dict[str, list[_Sample]]) -> bool | None:
    awake = [s for s in _first(samples, SLEEP) if s.labels.get("sleep_state") == "awake"]
    if not awake or not all(s.value in (0, 1) for s in awake):
        return None
    return any(s.value == 0 for s in awake)
