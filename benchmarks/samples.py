"""What was measured of one request, and what many of them say together. Pure: no clock, no network.

Times are seconds since the run began. What is unknown is None, never 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BEHIND_S = 0.05
"""A generator that sent more than a tenth of its requests later than this fell behind: the load was another one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request."""

    number: int
    scheduled_s: float
    """When it was to be sent."""
    sent_s: float
    """When it was."""
    ended_s: float
    status: int | None = None
    """HTTP status; None where no answer came."""
    first_token_s: float | None = None
    """From the send to the first text, reasoning or tool call of a stream."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    model: str = ""
    place: str = ""
    trigger: str = ""
    error: str = ""
    """The error's code, or what went wrong on the way: no_connection, unfinished, cut. Empty where it was answered."""

    @property
    def late_s(self) -> float:
        return self.sent_s - self.scheduled_s

    @property
    def total_s(self) -> float:
        return self.ended_s - self.sent_s

    @property
    def answered(self) -> bool:
        return self.status == 200 and not self.error


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Three quantiles in seconds; all None where nothing was measured."""

    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run says."""

    sent: int
    answered: tuple[tuple[str, str, str, int], ...]
    """Model, place, trigger and how many it answered, most first."""
    refused: tuple[tuple[str, int], ...]
    """Error code and how many ended with it, most first."""
    first_token: Quantiles
    total: Quantiles
    late: Quantiles
    latest_s: float | None
    """The latest send of all."""
    behind: bool
    """Whether the generator itself could not keep to its arrivals."""
    span_s: float
    """From the first send to the last end."""
    prompt_tokens: int
    output_tokens: int
    without_usage: int
    """Answers that did not say how many tokens they took; they are not in the sums."""
    output_tokens_per_s: float | None

    @property
    def answered_count(self) -> int:
        return sum(count for *_, count in self.answered)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The nearest-rank quantile: the smallest value that at least a share `q` of all values does not exceed."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def quantiles(values: Sequence[float]) -> Quantiles:
    return Quantiles(quantile(values, 0.5), quantile(values, 0.9), quantile(values, 0.99))


def summary(samples: Sequence[Sample]) -> Summary:
    """Everything a table shows. Times of first token and total are of the answered ones alone."""
    good = [sample for sample in samples if sample.answered]
    answered = Counter((s.model, s.place, s.trigger) for s in good)
    refused = Counter(s.error or f"status {s.status}" for s in samples if not s.answered)
    counted = [(s.prompt_tokens, s.output_tokens) for s in good]
    known = [(p, o) for p, o in counted if p is not None and o is not None]
    span = max((s.ended_s for s in samples), default=0.0) - min((s.sent_s for s in samples), default=0.0)
    late = quantiles([s.late_s for s in samples])
    output = sum(o for _, o in known)
    return Summary(
        sent=len(samples),
        answered=tuple((*who, count) for who, count in answered.most_common()),
        refused=tuple(refused.most_common()),
        first_token=quantiles([s.first_token_s for s in good if s.first_token_s is not None]),
        total=quantiles([s.total_s for s in good]),
        late=late,
        latest_s=max((s.late_s for s in samples), default=None),
        behind=late.p90 is not None and late.p90 > BEHIND_S,
        span_s=span,
        prompt_tokens=sum(p for p, _ in known),
        output_tokens=output,
        without_usage=len(good) - len(known),
        output_tokens_per_s=output / span if span > 0 and known else None,
    )


def to_json(samples: Sequence[Sample], **more: Any) -> str:
    """A run as text: `more` (plan, machine, …), the summary and every sample."""
    said = dataclasses.asdict(summary(samples))
    return json.dumps({**more, "summary": said, "samples": [dataclasses.asdict(s) for s in samples]}, indent=1) + "\n"


def from_json(text: str) -> list[Sample]:
    """The samples that `to_json` wrote. Raises ValueError where it is no such text."""
    try:
        entries: list[Mapping[str, Any]] = json.loads(text)["samples"]
        return [Sample(**entry) for entry in entries]
    except (KeyError, TypeError) as broken:
        raise ValueError(f"this is no file of benchmarks.load: {broken}") from broken
