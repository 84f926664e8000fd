"""One decision: traits, the order of eligible candidates, and the refusals. Pure, so that it can be replayed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.decision.dialects import form_of
from router.decision.eligibility import ROUNDING_USD, against, judge, likely_fits, words, worst_cost
from router.decision.escalation import CONTEXT, wished
from router.decision.load import NONE, Load, expected, kept, looked
from router.decision.outgoing import dropped_for
from router.decision.policies import POLICIES, favoured, placed
from router.decision.question import Question, refuse
from router.decision.reasons import reason
from router.decision.sensitivity import data_class_of
from router.decision.traits import choices, describe
from router.errors import BadRequest, NotFound, dollars
from router.records import MOST_ATTEMPTS, Ask, Caller, Candidate, Decision, Findings, Refusal, Snapshot
from serving.catalogue import LANES, RouteSettings

UNSET = RouteSettings()
"""A route of which headgate.yaml says nothing."""


def decide(
    ask: Ask, caller: Caller, findings: Findings, snapshot: Snapshot, policy: str = "cheapest", *, look: bool = False
) -> Decision:  # fmt: skip
    """Who may answer, in which order, and why not the others. `look`: say how full each is, though it decides nothing.

    Raises NotFound for a model nobody knows, BadRequest where an ask cannot be decided at all, Forbidden where it
    asks for a stronger model and its key may not.
    """
    asked = _question(ask, caller, findings, snapshot)
    traits, route = asked.traits, asked.route
    droppable = frozenset(route.droppable)
    question, ranked, refusals = _ranked(asked, policy)
    refusals += _absent(question)
    check = route.check if route.check != "none" and _can_be_checked(ask) else ""
    load = NONE
    if len(ranked) > 1 or look:  # else there is nothing to choose by load
        ranked, kept_here = kept(ranked, question, _met)
        load = looked(ranked, question, always=look)
        refusals += kept_here
    order, beyond = _within_budget(_with_room_first(ranked, load.over), question, check)
    refusals += beyond
    trigger = _trigger(ranked, order, question, load)
    by = placed(order, question.favours) if question.favours else ""
    answers, known = choices(ask), words(question)
    worst = tuple([worst_cost(c, traits, answers) for c in order])
    return Decision(
        # What is decided is recorded, so names that only this caller knows end here.
        traits=traits if known is traits.parameters else traits._replace(parameters=known),
        order=order,
        refusals=tuple(refusals),
        policy=policy,
        reason=reason(order, question, refusals, policy, trigger, load.over, by),
        hold=most_cost(order, worst, bool(check)),
        worst=worst,
        dropped=dropped_for(ask, order[0], droppable) if order else (),
        droppable=droppable,
        trigger=trigger,
        check=check,
        predicted=expected(order, ask, traits),
        saturations=tuple([load.found.get(c.endpoint.name) for c in order]) if load.found else (),
        spilling=load.changed,
        chain=snapshot.chain,
        placed=by,
    )


def could_leave(ask: Ask, caller: Caller, findings: Findings, snapshot: Snapshot) -> bool:
    """Whether a hosted model would stand in the order if a search found nothing, so that there is reason to search.

    Most requests that must stay are known by their class and lanes alone. Raises as `decide` does. An error of this
    answer opens nothing: what was not searched is refused by the rule `searched`.
    """
    lanes = frozenset({ask.model}) if ask.model in ("private", "frontier") else caller.lanes
    reach = snapshot.catalogue.reach(snapshot.today)
    if not (reached := [reach[lane] for lane in lanes if lane in reach]):
        return False
    if data_class_of(ask, caller, findings, snapshot.catalogue.site).data_class > max(reached):
        return False
    supposed = findings._replace(searched=True, unread="")
    _, eligible, _ = _eligible(_question(ask, caller, supposed, snapshot))
    return any(candidate.model.place == "hosted" for candidate in eligible)


def _question(ask: Ask, caller: Caller, findings: Findings, snapshot: Snapshot) -> Question:
    site = snapshot.catalogue.site
    traits = describe(ask, caller, findings, site)
    _check_name(ask, snapshot)
    route = site.routes.get(ask.route, UNSET)
    return Question(ask, caller, traits, snapshot, route, wished(ask, caller, traits, site.escalate))


def _eligible(question: Question) -> tuple[Question, list[Candidate], list[Refusal]]:
    """Those that may answer, and why not the others; with the question as it was asked in the end."""
    candidates = _candidates(question.snapshot)
    eligible, refusals = judge(candidates, question)
    if _too_long(eligible, refusals, question) and not any(_met(c, question) for c in eligible):
        # What was wanted besides cannot be had, and a request that fits nowhere here helps nobody.
        question = question._replace(wish=CONTEXT)
        eligible, refusals = judge(candidates, question)
    return question, eligible, refusals


def _candidates(snapshot: Snapshot) -> list[Candidate]:
    return [Candidate(snapshot.models[e.model], e) for e in snapshot.endpoints if e.model in snapshot.models]


def _ranked(asked: Question, policy: str) -> tuple[Question, list[Candidate], list[Refusal]]:
    """The same, the preferred first; where nobody may answer, with every rule that stands in the way."""
    question, eligible, refusals = _eligible(asked)
    snapshot, traits = question.snapshot, question.traits
    if not eligible:
        return question, eligible, against(_candidates(snapshot), question)
    if len(eligible) < 2:  # nothing to put in order
        return question, eligible, refusals
    favours = favoured(eligible, question.ask, question.caller, snapshot.chain, snapshot.draw)
    question = question._replace(favours=favours) if favours else question
    ranked = POLICIES[policy](eligible, traits, snapshot.catalogue.site.run, snapshot.draw, favours)
    if question.wish is not None:
        ranked.sort(key=lambda candidate: not _met(candidate, question))
    return question, ranked, refusals


def _met(candidate: Candidate, question: Question) -> bool:
    """Whether the candidate is what is wanted first; for a prompt that is too long, any that is likely to hold it."""
    if question.wish is None or not likely_fits(candidate, question):
        return False
    return question.wish is CONTEXT or question.wish.meets(candidate)


def _too_long(eligible: Sequence[Candidate], refusals: Sequence[Refusal], question: Question) -> bool:
    """Whether local models are there for this request, and its prompt is likely too long for every one of them."""
    if question.traits.named is not None or question.traits.lane in ("private", "frontier"):
        return False
    near = [c for c in eligible if c.model.place == "local"]
    models = question.snapshot.models
    refused = any(r.rule == "context_length_exceeded" and models[r.model].place == "local" for r in refusals)
    return (refused or bool(near)) and not any(likely_fits(c, question) for c in near)


def _with_room_first(ranked: list[Candidate], over: Collection[str]) -> list[Candidate]:
    """What is full comes last: it is waited for only where nothing that has room may answer. Then what rests.

    What is saturated (`over`) and has room all the same is still asked, should those before it fail.
    """
    if len(ranked) < 2:
        return ranked

    def late(candidate: Candidate) -> tuple[bool, bool]:
        endpoint = candidate.endpoint
        return bool(endpoint.resting), endpoint.full or endpoint.name in over

    order = sorted(ranked, key=late)
    if over and len(order) > MOST_ATTEMPTS:
        open_here = (n for n, c in enumerate(order) if c.model.place == "local" and not c.endpoint.full)
        first = next(open_here, 0)
        if first >= MOST_ATTEMPTS:
            order.insert(MOST_ATTEMPTS - 1, order.pop(first))
    return order


def _can_be_checked(ask: Ask) -> bool:
    """Whether the answer will be there as a whole, and the caller gave a schema to hold it against."""
    return not ask.stream and form_of(ask.route, ask.body).get("type") == "json_schema"


def _trigger(ranked: Sequence[Candidate], order: Sequence[Candidate], question: Question, load: Load) -> str:
    """Why another model comes first than would without a wish and without load; "" where none does."""
    if not order:
        return ""
    if question.wish is not None and _met(order[0], question):
        return question.wish.trigger
    first = ranked[0]
    endpoint = first.endpoint
    full = first.model.place == "local" and (endpoint.full or endpoint.resting or endpoint.name in load.over)
    return "overflow" if full and order[0].model.place == "hosted" else ""


def most_cost(order: Sequence[Candidate], worst: Sequence[float | None], checked: bool = False) -> float | None:
    """US dollars the attempts can cost together. None where no price is known at all.

    A hosted attempt that fails may still be billed, so what comes after it is added; a local one then costs nothing,
    but where its whole answer is `checked` and found wanting.
    """
    if len(order) == 1:
        return worst[0]
    most, sent = None if order else 0.0, 0.0
    for number, (candidate, cost) in enumerate(zip(order, worst, strict=True)):
        # What is full is waited for, however far down it stands.
        waited = number < MOST_ATTEMPTS or (candidate.endpoint.full and candidate.model.place == "local")
        if cost is None or not waited:
            continue
        most = max(most or 0.0, sent + cost)
        sent += cost if checked or candidate.model.place == "hosted" else 0.0
    return most


def _within_budget(
    order: Sequence[Candidate], question: Question, check: str
) -> tuple[tuple[Candidate, ...], list[Refusal]]:
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
        worst = [worst_cost(c, question.traits, choices(question.ask)) for c in tried]
        most = most_cost(tried, worst, bool(check))
        if most is None or most == 0 or most <= left + ROUNDING_USD:
            kept.append(candidate)
            continue
        may = f"with those before it {candidate.name} may cost {dollars(most)}"
        reason = f"{may} and {dollars(left)} of the budget is left"
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
    if traits.named in [e.model for e in snapshot.endpoints]:
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
