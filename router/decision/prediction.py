"""What a request would meet at an endpoint now: its wait, its first token, its speed. Pure.

By what was learned of the endpoint; what is not known is None, and then nothing is decided by it.
"""

from __future__ import annotations

from router.records import LIKELY_BYTES_PER_TOKEN, MOST_PICTURED, SMALL_PROMPT, Endpoint, Pace, Prediction

NOTHING = Prediction()


def tokens_of(endpoint: Endpoint, size: int, *, pictured: bool = False) -> float:
    """Prompt tokens of a request of so many bytes, as its model's tokenizer has been found to make them."""
    ratio = endpoint.pace.ratio if endpoint.pace is not None else None
    tokens = size / (ratio or LIKELY_BYTES_PER_TOKEN)
    return min(tokens, MOST_PICTURED) if pictured else tokens


def predict(endpoint: Endpoint, prompt_tokens: float, cached_tokens: float = 0.0) -> Prediction:
    """What a request of so many tokens would meet, of which the endpoint has so many in its prefix cache."""
    pace = endpoint.pace
    if pace is None:
        return NOTHING
    wait, own = wait_s(endpoint), max(1.0, prompt_tokens - cached_tokens)
    first = None
    if wait is not None and pace.prefill is not None:
        first = wait + (pace.first_s or 0.0) + own / pace.prefill
    elif wait is not None and pace.first_s is not None and own <= SMALL_PROMPT:
        first = wait + pace.first_s
    return Prediction(wait, first, pace.decode)


def wait_s(endpoint: Endpoint) -> float | None:
    """Seconds before the first token of another request's prompt is read: its own length does not matter."""
    pace = endpoint.pace
    place = _place_s(endpoint, pace)
    ahead = endpoint.unstarted + _of_others(endpoint, pace)
    if not ahead:
        return place
    if place is None or pace is None or pace.prefill is None:
        return None
    return max(place, ahead / pace.prefill)


def _place_s(endpoint: Endpoint, pace: Pace | None) -> float | None:
    """Seconds before it has a place for one more; None where nobody can say."""
    over = -1
    if endpoint.limit > 0:
        everywhere = endpoint.in_flight + endpoint.others - (endpoint.places or endpoint.limit)
        over = max(endpoint.in_flight - endpoint.limit, everywhere)
    if pace is not None and pace.at_once is not None:
        over = max(over, endpoint.in_flight + endpoint.others - pace.at_once)
    if over < 0:
        return None if endpoint.busy else 0.0
    return None if pace is None or not pace.drain else (over + 1) / pace.drain


def _of_others(endpoint: Endpoint, pace: Pace | None) -> float:
    """Prompt tokens that others let wait there: by the engine's own count of those that wait, as long as ours are."""
    if not endpoint.others or not endpoint.waiting or pace is None or pace.prompt is None:
        return 0.0
    return min(endpoint.others, endpoint.waiting) * pace.prompt
