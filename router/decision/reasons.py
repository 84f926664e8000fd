"""A decision in words: its reason in one line, and the error for one without candidates. Pure."""

from __future__ import annotations

from router.decision.eligibility import Question
from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    LimitReached,
    NotFound,
    Unavailable,
    UnsupportedParameter,
)
from router.records import Candidate, Decision, Refusal


def reason(order: tuple[Candidate, ...], question: Question, refusals: list[Refusal], policy: str, trigger: str) -> str:
    """Why the first of the order is first, in one line; quotes nothing of the request."""
    traits, wish = question.traits, question.wish
    if not order:
        return f"refused: {main_refusal(refusals).rule}" if refusals else "refused: nothing is served"
    first = order[0]
    if traits.named is not None:
        asked = f"{traits.named} was named"
    else:
        asked = f"{policy} of {len(order)} eligible in {'lane ' + traits.lane if traits.lane else 'auto'}"
    if trigger == "overflow":
        asked += f"; overflow, since {' and '.join(_taken(c) for c in order if c.endpoint.full)}"
    elif wish is not None:
        full = any(wish.meets(candidate) for candidate in order)
        met = "first" if trigger else "was wanted and is full" if full else "was wanted, and none there may answer"
        asked += f"; {_wanted(wish.trigger)}: {wish.to} {met}"
    if first.endpoint.full:
        asked += f"; waits, since {' and '.join(_taken(c) for c in order if c.endpoint.full)}"
    return f"{asked}; {traits.data_class.name} data may go to {first.model.name} ({first.model.place})"


def _wanted(trigger: str) -> str:
    kind, _, name = trigger.partition(":")
    spoken = {"caller": f"the caller asked ({name})", "rule": f"rule {name}"}
    return spoken.get(kind, "the prompt may be too long for the local models")


def _taken(candidate: Candidate) -> str:
    endpoint = candidate.endpoint
    if endpoint.busy:
        return f"{endpoint.name} takes no more now"
    return f"{endpoint.name} is full ({endpoint.in_flight} of {endpoint.limit} in flight)"


PRECEDENCE = (
    "gpu_trouble", "not_ready", "door_closed", "budget_exceeded", "unpriced", "context_length_exceeded",
    "unsupported_parameter", "ability_missing", "lane_not_allowed", "data_class_not_cleared", "not_served",
    "route_not_offered", "other_lane", "other_model",
)  # fmt: skip
"""Which refusal answers the caller where there are several: the one that came closest to an answer first.

So it is the order of RULES from the end: whoever was refused for the length of the prompt may have the data.
"""


def main_refusal(refusals: list[Refusal] | tuple[Refusal, ...]) -> Refusal:
    """The refusal a caller is told. Those of other models than the named one say nothing and come last."""
    return min(refusals, key=lambda r: PRECEDENCE.index(r.rule))


def refused(decision: Decision, retry_after: int) -> HeadgateError:
    """The error for a decision without candidates: 503 only where waiting can help, else lasting with the remedy."""
    if not decision.refusals:
        return Unavailable("No model is served here yet; see: headgate status", retry_after=retry_after)
    main = main_refusal(decision.refusals)
    name = f" ({main.param[:80]!r})" if main.param and repr(main.param) not in main.reason else ""
    # A remedy that only tells more begins with "see: "; it changes nothing.
    told = main.remedy.startswith("see: ")
    way = f"S{main.remedy[1:]}" if told else f"To change it: {main.remedy}" if main.remedy else ""
    text = f"{main.reason}{name}. {way}".rstrip()
    if main.passing:
        code = None if main.rule == "not_ready" else main.rule
        return Unavailable(text, code=code, retry_after=retry_after)
    match main.rule:
        case "unsupported_parameter":
            return UnsupportedParameter(text, param=main.param)
        case "ability_missing" | "context_length_exceeded":
            return BadRequest(text, code=main.rule)
        case "budget_exceeded":
            return LimitReached(text)
        case "route_not_offered":
            return NotFound(text, code=main.rule)
        case "not_served":
            return NotFound(text, code="model_not_found", param="model")
    return Forbidden(text, code=main.rule)
