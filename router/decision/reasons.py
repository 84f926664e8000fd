"""A decision in words: its reason in one line, and the error for one without candidates. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from router.decision.question import Question
from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    LimitReached,
    NotFound,
    Unavailable,
    UnsupportedParameter,
)
from router.records import Candidate, Decision, Endpoint, Placed, Refusal, Saturation

SHOWN = 3
"""Endpoints without room that are named; a reason is one line of a header."""


def reason(
    order: tuple[Candidate, ...], question: Question, refusals: list[Refusal], policy: str, trigger: str,
    over: Mapping[str, Saturation], by: Placed,
) -> str:  # fmt: skip
    """Why the first of the order is first, in one line; quotes nothing of the request.

    `over`: endpoints that are so full that what may leave goes elsewhere. `by`: what chose the first of them
    among its replicas.
    """
    traits, wish = question.traits, question.wish
    if not order:
        return f"refused: {main_refusal(refusals).rule}" if refusals else "refused: nothing is served"
    first = order[0]
    if traits.named is not None:
        asked = f"{traits.named} was named"
    else:
        asked = f"{policy} of {len(order)} eligible in {'lane ' + traits.lane if traits.lane else 'auto'}"
    if trigger == "overflow":
        asked += f"; overflow, since {_no_room(order, over)}"
    elif wish is not None:
        full = any(wish.meets(candidate) for candidate in order)
        met = "first" if trigger else "was wanted and is full" if full else "was wanted, and none there may answer"
        asked += f"; {_wanted(wish.trigger)}: {wish.to} {met}"
    if first.endpoint.full:
        asked += f"; waits, since {' and '.join(_taken(c) for c in order if c.endpoint.full)}"
    asked += _affinity(order[0].endpoint, question, by)
    return f"{asked}; {traits.data_class.name} data may go to {first.model.name} ({first.model.place})"


def _affinity(endpoint: Endpoint, question: Question, by: Placed) -> str:
    """What affinity had to do with the choice among replicas; empty where nothing."""
    if by == "prefix":
        return f"; {endpoint.name} has read {100 * endpoint.cached // question.ask.size} % of this prompt before"
    if by == "session":
        return f"; {endpoint.name} is where its session goes"
    return "; the replica of its session has much more to do" if by == "guard" else ""


def _wanted(trigger: str) -> str:
    kind, _, name = trigger.partition(":")
    spoken = {"caller": f"the caller asked ({name})", "rule": f"rule {name}"}
    return spoken.get(kind, "the prompt may be too long for the local models")


def _no_room(order: tuple[Candidate, ...], over: Mapping[str, Saturation]) -> str:
    """Why none of the local ones comes first, each with its numbers."""
    told = []
    for candidate in order:
        endpoint = candidate.endpoint
        if candidate.model.place != "local":
            continue
        if (found := over.get(endpoint.name)) is not None and not endpoint.wakes:
            told.append(f"{endpoint.name} is saturated ({found.value:.2f}: {found.why})")
        elif endpoint.full:
            told.append(_taken(candidate))
        elif endpoint.resting:
            told.append(f"{endpoint.name} rests ({endpoint.resting})")
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return " and ".join(told[:SHOWN]) + more


def _taken(candidate: Candidate) -> str:
    endpoint = candidate.endpoint
    if endpoint.wakes:
        return f"{endpoint.name} is {endpoint.state}"
    if endpoint.busy:
        return f"{endpoint.name} takes no more now"
    return f"{endpoint.name} is full ({endpoint.in_flight} of {endpoint.limit} in flight)"


PRECEDENCE = (
    "gpu_trouble", "not_ready", "door_closed", "budget_exceeded", "unpriced", "context_length_exceeded",
    "unsupported_parameter", "ability_missing", "lane_not_allowed", "requirement_not_met", "data_class_not_cleared",
    "not_scannable", "not_served", "route_not_offered", "other_lane", "batch_waits", "other_model",
)  # fmt: skip
"""Which refusal answers the caller where there are several: the one that came closest to an answer first.

So it is the order of RULES from the end: whoever was refused for the length of the prompt may have the data. What was
not searched whole is less than what was searched and is of too high a class.
"""


def main_refusal(refusals: list[Refusal] | tuple[Refusal, ...]) -> Refusal:
    """The refusal a caller is told. Those of other models than the named one say nothing and come last.

    Of a candidate with several the first counts: the others stand in its way too.
    """
    first: dict[tuple[str, str], Refusal] = {}
    for refusal in refusals:
        first.setdefault((refusal.model, refusal.endpoint), refusal)
    return min(first.values(), key=lambda r: PRECEDENCE.index(r.rule))


def _besides(main: Refusal, refusals: tuple[Refusal, ...]) -> list[str]:
    """What else stands in the way of the same candidate, each with what would change it."""
    others = [r for r in refusals if r is not main and (r.model, r.endpoint) == (main.model, main.endpoint)]
    return [f"Besides, {r.reason}. {_way(r)}".rstrip() for r in others]


def _in_turn(told: list[str]) -> str:
    """Sentences one after the other. A remedy that comes last has no full stop, for it is there to be copied."""
    return " ".join([*(f"{one.rstrip('.')}." for one in told[:-1]), told[-1]])


def _way(refusal: Refusal) -> str:
    """The remedy as a sentence. One that only tells more begins with "see: "; it changes nothing."""
    if refusal.remedy.startswith("see: "):
        return f"S{refusal.remedy[1:]}"
    return f"To change it: {refusal.remedy}" if refusal.remedy else ""


def refused(decision: Decision, retry_after: int) -> HeadgateError:
    """The error for a decision without candidates: 503 only where waiting can help, else lasting with the remedy."""
    if not decision.refusals:
        return Unavailable("No model is served here yet; see: headgate status", retry_after=retry_after)
    main = main_refusal(decision.refusals)
    name = f" ({main.param[:80]!r})" if main.param and repr(main.param) not in main.reason else ""
    first = f"{main.reason}{name}. {_way(main)}".rstrip()
    text = _in_turn([first, *_besides(main, decision.refusals)])
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
