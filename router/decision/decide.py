"""One decision: traits, the order of eligible candidates, and the refusals. Pure, so that it can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router.decision.eligibility import ROUNDING_USD, Question, judge, refuse, words, worst_cost
from router.decision.outgoing import dropped_for
from router.decision.policies import POLICIES
from router.decision.traits import choices, describe
from router.errors import (
    BadRequest,
    Forbidden,
    HeadgateError,
    LimitReached,
    NotFound,
    Unavailable,
    UnsupportedParameter,
)
from router.records import MOST_ATTEMPTS, Ask, Caller, Candidate, Decision, Findings, Refusal, Snapshot, Traits
from serving.catalogue import LANES, RouteSettings


def decide(ask: Ask, caller: Caller, findings: Findings, snapshot: Snapshot, policy: str = "cheapest") -> Decision:
    """Who may answer, in which order, and why not the others.

    Raises NotFound for a model nobody knows, BadRequest where an ask cannot be decided at all.
    """
    traits = describe(ask, caller, findings)
    _check_name(ask, snapshot)
    route = snapshot.catalogue.site.routes.get(ask.route, RouteSettings())
    droppable = frozenset(route.droppable)
    question = Question(ask, caller, traits, snapshot, route)
    candidates = [Candidate(snapshot.models[e.model], e) for e in snapshot.endpoints if e.model in snapshot.models]
    eligible, refusals = judge(candidates, question)
    refusals += _absent(question)
    order, beyond = _within_budget(POLICIES[policy](eligible, traits), question)
    refusals += beyond
    worst = tuple(worst_cost(c, traits, choices(ask)) for c in order)
    return Decision(
        # What is decided is recorded, so names that only this caller knows end here.
        traits=replace(traits, parameters=words(question)),
        order=order,
        refusals=tuple(refusals),
        policy=policy,
        reason=_reason(order, traits, refusals, policy),
        hold=most_cost(order, worst),
        worst=worst,
        dropped=dropped_for(ask, order[0], droppable) if order else (),
        droppable=droppable,
    )


def most_cost(order: Sequence[Candidate], worst: Sequence[float | None]) -> float | None:
    """US dollars the attempts can cost together. None where no price is known at all.

    A hosted attempt that fails may still be billed, so what comes after it is added; a local one then costs nothing.
    """
    most, sent = None if order else 0.0, 0.0
    for candidate, cost in list(zip(order, worst, strict=True))[:MOST_ATTEMPTS]:
        if cost is None:
            continue
        most = max(most or 0.0, sent + cost)
        sent += cost if candidate.model.place == "hosted" else 0.0
    return most


def _within_budget(order: Sequence[Candidate], question: Question) -> tuple[tuple[Candidate, ...], list[Refusal]]:
    """The order without the fallbacks that the key's budget no longer covers after those before them.

    Each alone is affordable, so the request itself goes on; held all together they would refuse it.
    """
    budget = question.caller.budget_usd
    if budget is None:
        return tuple(order), []
    left = max(budget - question.snapshot.spent, 0.0)
    kept: list[Candidate] = []
    refusals: list[Refusal] = []
    for candidate in order:
        tried = [*kept, candidate]
        most = most_cost(tried, [worst_cost(c, question.traits, choices(question.ask)) for c in tried])
        if most is None or most == 0 or most <= left + ROUNDING_USD:
            kept.append(candidate)
            continue
        reason = f"with those before it {candidate.name} may cost ${most:.4f} and ${left:.4f} of the budget is left"
        remedy = f"headgate keys set {question.caller.key} --budget USD"
        refusals.append(refuse(candidate, "budget_exceeded", reason, remedy=remedy))
    return tuple(kept), refusals


def _check_name(ask: Ask, snapshot: Snapshot) -> None:
    if ask.route == "embeddings" and (ask.model == "auto" or ask.model in LANES):
        raise BadRequest(
            "Embeddings of different models do not mix, so name one model instead of a lane or auto.",
            code="model_required", param="model",
        )  # fmt: skip
    if ask.model in snapshot.models or ask.model in LANES or ask.model == "auto":
        return
    served = sorted({e.model for e in snapshot.endpoints})
    known = ", ".join([*served, "auto", *LANES])
    raise NotFound(f"No model is called {ask.model[:80]!r}. There are: {known}", code="model_not_found", param="model")


def _absent(question: Question) -> list[Refusal]:
    """Refusals of what was asked for and is not there at all: no endpoint could say so for itself."""
    traits, snapshot = question.traits, question.snapshot
    if traits.named is None:
        return _absent_lane(question)
    if any(e.model == traits.named for e in snapshot.endpoints):
        return []
    model = snapshot.models[traits.named]
    if model.place == "hosted":
        reason, remedy = f"provider {model.provider} is not enabled", f"headgate providers add {model.provider}"
    elif model.name in snapshot.catalogue.site.run:
        reason = f"{model.name} is to run here and is not served yet"
        return [Refusal(model.name, "", "not_ready", reason, "see: headgate status", passing=True)]
    else:
        reason, remedy = f"{model.name} is in the catalogue and not running", f"headgate models add {model.name}"
    return [Refusal(model.name, "", "not_served", reason, remedy)]


def _absent_lane(question: Question) -> list[Refusal]:
    """A lane, or `auto`, in which nothing is served that this caller could send this class of data to."""
    lane, caller, snapshot = question.traits.lane, question.caller, question.snapshot
    served = [snapshot.models[e.model] for e in snapshot.endpoints if e.model in snapshot.models]
    here = [m for m in served if lane is None or lane in m.lanes]
    if lane is not None and lane not in caller.lanes:
        remedy = f"headgate keys set {caller.key} --lanes {','.join(sorted({*caller.lanes, lane}))}"
        refusal = Refusal("", "", "lane_not_allowed", f"key {caller.key} may not use the lane {lane}", remedy)
        return [] if here else [refusal]
    if lane == "frontier":
        missing = Refusal("", "", "not_served", "no hosted provider is enabled", "headgate providers add NAME")
        return [] if here else [missing]
    could = [m for m in here if question.traits.data_class <= m.cleared_for(snapshot.today)]
    if not any(m.place == "local" for m in served) and not any(caller.lanes & set(m.lanes) for m in could):
        return [Refusal("", "", "not_ready", "no local model is served now", "see: headgate status", passing=True)]
    if not here:
        reason = f"no model that is served is in the lane {lane}"
        return [Refusal("", "", "not_served", reason, "in headgate.yaml, models.NAME.lanes")]
    return []


def _reason(order: tuple[Candidate, ...], traits: Traits, refusals: list[Refusal], policy: str) -> str:
    if not order:
        return f"refused: {main_refusal(refusals).rule}" if refusals else "refused: nothing is served"
    first = order[0]
    if traits.named is not None:
        asked = f"{traits.named} was named"
    else:
        asked = f"{policy} of {len(order)} eligible in {'lane ' + traits.lane if traits.lane else 'auto'}"
    return f"{asked}; {traits.data_class.name} data may go to {first.model.name} ({first.model.place})"


PRECEDENCE = (
    "not_ready", "door_closed", "budget_exceeded", "unpriced", "context_length_exceeded", "unsupported_parameter",
    "ability_missing", "lane_not_allowed", "data_class_not_cleared", "not_served", "other_lane", "other_model",
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
        case "not_served":
            return NotFound(text, code="model_not_found", param="model")
    return Forbidden(text, code=main.rule)
