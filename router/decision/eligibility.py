"""Which candidates may answer: every rule passes, or refuses with its reason and the line that would change it.

Pure. A rule is one function with the signature of `Rule`; RULES is their order. While somebody may answer, the first
that refuses is recorded, and of those of privacy (clearance.py) all that do; where nobody may, every rule that refuses.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.decision.clearance import PRIVACY, cleared, idle, promised, refusals_of, searched
from router.decision.dialects import LOCAL_ONLY
from router.decision.outgoing import may_drop
from router.decision.question import Question, Rule, refuse
from router.decision.sensitivity import UNASKED
from router.decision.traits import choices, prompts
from router.errors import dollars
from router.records import LIKELY_BYTES_PER_TOKEN, Candidate, Gpu, Refusal, Traits
from serving.catalogue import LANES
from serving.parameters import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    HARMLESS,
    MESSAGES,
    OPENAI_CHAT,
    REFUSED,
    REFUSED_TEMPLATE_KEYS,
    RESPONSES,
    RESPONSES_ALONE_REFUSED,
    accepted,
)

WORDS = CHAT.union(COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES, OPENAI_CHAT, REFUSED, *HARMLESS.values())
"""The field names of the APIs themselves. Any other name in a body is the caller's own text."""
ROUNDING_USD = 1e-9
"""Sums of money in floats are off by less than this; the budget itself counts exactly."""
OUT_OF_MEMORY_GB = 0.2
"""A GPU with less free memory than this is about to fail: vLLM takes 92 % of a board and leaves more than this free."""


def offered(candidate: Candidate, question: Question) -> Refusal | None:
    """The model is asked in this dialect: hosted ones are not asked in every one."""
    if question.ask.route not in LOCAL_ONLY or candidate.model.place == "local":
        return None
    reason = f"{candidate.model.name} is hosted, and only local models answer on /v1/{question.ask.route} for now"
    return refuse(candidate, "route_not_offered", reason, remedy="name a local model, or ask on /v1/chat/completions")


def capable(candidate: Candidate, question: Question) -> Refusal | None:
    """The model has every ability the request needs."""
    if question.traits.needs <= candidate.model.abilities:
        return None
    listed = ", ".join(sorted(question.traits.needs - candidate.model.abilities))
    remedy = f"in headgate.yaml, models.{candidate.model.name}.abilities, if it can after all"
    return refuse(candidate, "ability_missing", f"{candidate.model.name} has not: {listed}", remedy=remedy)


def honours(candidate: Candidate, question: Question) -> Refusal | None:
    """The model takes every body field that would change the answer."""
    given, route = question.traits.parameters, question.ask.route
    takes = accepted(route, candidate.model.parameters)
    unknown = () if given <= takes else given - takes - may_drop(frozenset(question.route.droppable), route)
    if not unknown:
        return _template(candidate, question) if "chat_template_kwargs" in given else None
    name = min(unknown)
    # Reasons are recorded, and a record holds no text of the request; the caller is told the name as `param`.
    if name not in words(question):
        reason = f"{candidate.model.name} does not take a field of this request that the API does not know"
        return refuse(candidate, "unsupported_parameter", reason, remedy="leave it out", param=name)
    why = REFUSED.get(name) or (RESPONSES_ALONE_REFUSED.get(name) if question.ask.route == "responses" else None)
    why = f": {why}" if why else ""
    reason = f"{candidate.model.name} does not take the parameter {name!r}{why}"
    return refuse(candidate, "unsupported_parameter", reason, remedy=f"leave {name!r} out", param=name)


def _template(candidate: Candidate, question: Question) -> Refusal | None:
    """Arguments of the chat template may not put another template, or other messages, in place of those checked."""
    given = question.ask.body.get("chat_template_kwargs")
    wrong = sorted(REFUSED_TEMPLATE_KEYS & given.keys()) if isinstance(given, dict) else []
    if not wrong:
        return None
    param = f"chat_template_kwargs.{wrong[0]}"
    reason = f"{candidate.model.name} does not take {param!r} from callers"
    return refuse(candidate, "unsupported_parameter", reason, remedy=f"leave {param!r} out", param=param)


def words(question: Question) -> frozenset[str]:
    """The asked fields that are words of an API or of some model's entry, so that they may be recorded."""
    if question.traits.parameters <= WORDS:  # nearly always
        return question.traits.parameters
    models = question.snapshot.models.values()
    listed = {name for m in models if m.parameters != "vllm" for name in m.parameters}
    return question.traits.parameters & (WORDS | listed)


def fits(candidate: Candidate, question: Question) -> Refusal | None:
    """Prompt and answer fit the model's context. The prompt is estimated kindly; the engine has the last word."""
    context = candidate.endpoint.context or candidate.model.context
    # No common text has over 8 bytes a token, so this only refuses what cannot fit. Of pictures bytes say nothing.
    prompt = 0 if "vision" in question.traits.needs else question.ask.size // 8 // prompts(question.ask)
    wanted = question.traits.output_tokens
    if prompt + (wanted or 1) <= context:  # even all choices together
        return None
    output = wanted // choices(question.ask) if wanted else 0
    if prompt + max(output, 1) <= context:
        return None
    reason = f"{candidate.model.name} takes {context} tokens; this needs about {prompt} for the prompt"
    reason += f" and {output} for the answer" if output else ""
    return refuse(candidate, "context_length_exceeded", reason, remedy="shorten the prompt or lower max_tokens")


def likely_fits(candidate: Candidate, question: Question) -> bool:
    """Whether the prompt fits by a fair guess of its tokens; `fits` refuses only what cannot fit at all."""
    context = candidate.endpoint.context or candidate.model.context
    if "vision" in question.traits.needs:
        return True
    prompt = question.ask.size // LIKELY_BYTES_PER_TOKEN // prompts(question.ask)
    return prompt + max((question.traits.output_tokens or 0) // choices(question.ask), 1) <= context


def allowed(candidate: Candidate, question: Question) -> Refusal | None:
    """The caller's key may use one of the model's lanes, and the model is in the lane asked for or is wanted first."""
    model, caller, lane, wish = candidate.model, question.caller, question.traits.lane, question.wish
    if wish is not None and wish.meets(candidate):
        lane = wish.to if wish.to in LANES else None
    if lane is not None and lane not in model.lanes:
        return refuse(candidate, "other_lane", f"{model.name} is not in the lane {lane}")
    if lane in caller.lanes if lane else not caller.lanes.isdisjoint(model.lanes):
        return None
    wanted = lane or model.lanes[0]
    reason = f"key {caller.key} may not use the lane {wanted}"
    lanes = ",".join(sorted({*caller.lanes, wanted}))
    return refuse(candidate, "lane_not_allowed", reason, remedy=f"headgate keys set {caller.key} --lanes {lanes}")


def same_identity(candidate: Candidate, question: Question) -> Refusal | None:
    """A named model is that model: only the same weights may answer, unless the key says otherwise."""
    named, model = question.traits.named, candidate.model
    if named is None or named in (model.name, model.same_as):
        return None
    other = question.snapshot.models[named]
    if other.same_as == model.name or (other.same_as and other.same_as == model.same_as):
        return None
    may = question.caller.substitute or question.route.substitute
    if may and "embeddings" not in question.traits.needs:
        return None
    remedy = f"headgate keys set {question.caller.key} --substitute"
    return refuse(candidate, "other_model", f"{named} was named, and {model.name} is another model", remedy=remedy)


def affordable(candidate: Candidate, question: Question) -> Refusal | None:
    """The worst cost fits what is left of the key's budget. Local models without a rate cost no money that is paid."""
    caller, model = question.caller, candidate.model
    if caller.budget_usd is None:
        return None
    cost = worst_cost(candidate, question.traits, choices(question.ask))
    if cost is None:
        if model.place == "local":
            return None
        reason = f"{model.name} has no price, so it cannot be held against the key's budget"
        remedy = f"in headgate.yaml, models.{model.name}.price: {{input, output}}"
        return refuse(candidate, "unpriced", reason, remedy=remedy)
    left = caller.budget_usd - question.snapshot.spent
    if cost <= left + ROUNDING_USD or cost == 0:
        return None
    reason = f"{model.name} may cost {dollars(cost)} and {dollars(left)} of the key's budget is left"
    return refuse(candidate, "budget_exceeded", reason, remedy=f"headgate keys set {caller.key} --budget USD")


def ready(candidate: Candidate, question: Question) -> Refusal | None:
    """The endpoint answers now: started, healthy and, for hosted models, the door is open; or it sleeps and comes for
    whoever waits for it."""
    endpoint = candidate.endpoint
    if (endpoint.state == "ready" and not endpoint.asleep) or (endpoint.wakes and candidate.model.place == "local"):
        return None
    state = "asleep" if endpoint.asleep else endpoint.state
    reason = f"{endpoint.name} is {state}" + (f": {endpoint.detail}" if endpoint.detail else "")
    rule = "not_ready" if candidate.model.place == "local" else "door_closed"
    return refuse(candidate, rule, reason, remedy="see: headgate status", passing=True)


def gpu_healthy(candidate: Candidate, question: Question) -> Refusal | None:
    """None of its GPUs is lost or out of memory. What cannot be read is no reason; one that is held down by heat has
    fewer places (`slowed` in upstream/instances.py)."""
    for gpu in candidate.endpoint.gpus:
        if trouble := _trouble(gpu):
            reason = f"{candidate.endpoint.name} runs on GPU {gpu.index}, which {trouble}"
            return refuse(candidate, "gpu_trouble", reason, remedy="see: headgate status", passing=True)
    return None


def _trouble(gpu: Gpu) -> str:
    if gpu.fault:
        return f"must not be used: {gpu.fault}"
    if gpu.memory_free_gb is not None and gpu.memory_free_gb < OUT_OF_MEMORY_GB:
        return f"is out of memory ({gpu.memory_free_gb:.2f} GB free)"
    return ""


RULES: tuple[Rule, ...] = (
    same_identity, offered, cleared, promised, allowed, capable, honours, fits, affordable, ready, gpu_healthy,
    searched,
)  # fmt: skip


def judge(candidates: Iterable[Candidate], question: Question) -> tuple[list[Candidate], list[Refusal]]:
    """Sort the candidates into those that may answer and the refusals of the others."""
    eligible: list[Candidate] = []
    refusals: list[Refusal] = []
    for candidate in candidates:
        for rule in RULES:
            if (refusal := rule(candidate, question)) is not None:
                refusals += refusals_of(candidate, question, rule, refusal) if rule in PRIVACY else [refusal]
                break
        else:
            eligible.append(candidate)
    return eligible, refusals


def against(candidates: Iterable[Candidate], question: Question) -> list[Refusal]:
    """Every rule that stands against each of these; the first of each candidate is the one that `judge` gives.

    Asked where nobody may answer: whoever lifts the first obstacle alone would meet the next one. Another model than
    the named one was not asked for, and nothing else about it is of interest.
    """
    found: list[Refusal] = []
    for candidate in candidates:
        telling = (rule for rule in RULES if not idle(rule, candidate, question))
        given = [(rule, refusal) for rule in telling if (refusal := rule(candidate, question)) is not None]
        if len(given) > 1 and question.traits.unsearched == UNASKED:
            given = [(rule, refusal) for rule, refusal in given if rule is not searched]  # for the others it was not
        if given and given[0][0] is same_identity:
            given = given[:1]
        elif given and given[0][0] in PRIVACY:
            given.sort(key=lambda one: PRIVACY.index(one[0]) if one[0] in PRIVACY else len(PRIVACY))
        found += [refusal for _, refusal in given]
    return found


def worst_cost(candidate: Candidate, traits: Traits, answers: int = 1) -> float | None:
    """US dollars it can cost at most; None where the model is unpriced.

    `answers`: how many are asked for; it counts where the caller left the limit of each to the model.
    """
    price = candidate.model.price
    if price is None:
        return None
    output = candidate.model.output * answers if traits.output_tokens is None else traits.output_tokens
    return price.cost(traits.prompt_tokens, output)
