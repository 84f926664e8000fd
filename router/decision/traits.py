"""What an ask needs: abilities, parameters, tokens. Pure; reads the parsed body and nothing else."""

from __future__ import annotations

from router.decision import inline
from router.decision.dialects import ABILITY, LIMIT, LOCAL_ONLY, MANY, MEDIA, TEXT, form_of, parts, turns
from router.decision.limits import check_stored, count
from router.decision.sensitivity import data_class_of, unsearched
from router.errors import BadRequest
from router.records import Ask, Caller, Findings, Route, Traits
from serving.catalogue import LANES, NO_OUTPUT, Site
from serving.parameters import BOOKKEEPING, HARMLESS

BYTES_PER_TOKEN = 1
"""Upper bound for holds: no tokenizer in use makes more tokens than there are UTF-8 bytes."""

NEEDS = {route: frozenset({ability}) for route, ability in ABILITY.items()}
SILENT: dict[Route, frozenset[str]] = {
    route: BOOKKEEPING.union(
        text, {"model"}, HARMLESS[route] if route in LOCAL_ONLY else (), () if route in NO_OUTPUT else {"stream"}
    )
    for route, text in TEXT.items()
}
"""The fields that change no answer, and those that every model of a route takes."""


def describe(ask: Ask, caller: Caller, findings: Findings, site: Site) -> Traits:
    """All a decision needs to know of the ask. Raises BadRequest where a field is not of its form, or asks too much,
    and Forbidden where the caller lowers its class and may not."""
    classed = data_class_of(ask, caller, findings, site)
    check_stored(ask, findings)
    if findings.fetches:
        raise BadRequest(
            "Pictures and other media are sent inside the request, as data: URLs; addresses are not fetched.",
            code="media_url_not_allowed", param=MEDIA.get(ask.route, "messages"),
        )  # fmt: skip
    if findings.opaque:
        inline.check(ask.route, ask.body)
    named = None if ask.model in LANES or ask.model == "auto" else ask.model
    return Traits(
        data_class=classed.data_class,
        why_class=classed.why,
        needs=_needs(ask),
        parameters=_parameters(ask),
        prompt_tokens=ask.size // BYTES_PER_TOKEN,
        output_tokens=_output_tokens(ask),
        lane=None if named is not None or ask.model == "auto" else ask.model,
        named=named,
        classes=tuple([source.why for source in classed.sources]),
        unsearched=unsearched(findings),
        declassified=classed.declassified,
        requires=_requires(ask, caller, site),
        sources=classed.sources,
        latency=ask.latency or caller.latency,
    )


def _requires(ask: Ask, caller: Caller, site: Site) -> frozenset[str]:
    """What a hosted model must promise for this ask: whatever its key, its team or its route requires."""
    if not site.teams and not site.routes:
        return caller.requires
    team, route = site.teams.get(caller.team), site.routes.get(ask.route)
    return caller.requires.union(team.requires if team else (), route.requires if route else ())


def choices(ask: Ask) -> int:
    """How many answers are asked for: `n` for each prompt. Raises BadRequest where `n` is no count."""
    given = ask.body.get("n")
    return prompts(ask) if given is None else prompts(ask) * (count(ask.body, "n", at_least=1) or 1)


def prompts(ask: Ask) -> int:
    """How many prompts or inputs one request carries. A list of numbers is one, given as token ids."""
    if ask.route not in MANY:
        return 1
    given = ask.body.get(MANY[ask.route])
    if not isinstance(given, list) or not any(isinstance(item, str | list) for item in given):
        return 1
    return len(given)


def _parameters(ask: Ask) -> frozenset[str]:
    """The fields a model must honour: not one that has no value or changes no answer."""
    silent = SILENT[ask.route]
    names = frozenset([name for name, value in ask.body.items() if value is not None and name not in silent])
    # Every model of the other routes streams.
    return names - {"stream"} if ask.route in NO_OUTPUT and not ask.body.get("stream") else names


def _needs(ask: Ask) -> frozenset[str]:
    """The abilities the answer takes. Reasoning is none of them: a model that cannot answers without."""
    body, more = ask.body, []
    if body.get("tools") or body.get("functions"):
        more.append("tools")
    if body.get("structured_outputs") or form_of(ask.route, body).get("type") not in (None, "text"):
        more.append("schema")
    if _wants_logprobs(ask):
        more.append("logprobs")
    kinds = _kinds_of_parts(ask)
    if kinds and any("image" in kind or "video" in kind for kind in kinds):
        more.append("vision")
    return NEEDS[ask.route].union(more) if more else NEEDS[ask.route]


def _wants_logprobs(ask: Ask) -> bool:
    if ask.route == "responses":
        include = ask.body.get("include")
        return isinstance(include, list) and "message.output_text.logprobs" in include
    logprobs = ask.body.get("logprobs")
    return logprobs is not None and logprobs is not False  # in completions 0 asks for the chosen token alone


def _kinds_of_parts(ask: Ask) -> list[str]:
    """The types of all content parts of all messages; a part without a type counts by its keys."""
    kinds: list[str] = []
    for turn in turns(ask.route, ask.body):
        if isinstance(turn, dict) and (type(turn.get("content")) is not str or "output" in turn):
            kinds += [str(part["type"]) if "type" in part else " ".join(part) for part in parts(turn)]
    return kinds


def _output_tokens(ask: Ask) -> int | None:
    """The limit the caller set, for all choices together; an embedding or a count has no output at all."""
    if ask.route in NO_OUTPUT:
        return 0
    # Both of OpenAI's names given: upstreams differ in which one counts, so the higher one is held.
    limit: int | None = None
    for name in LIMIT[ask.route]:
        if name in ask.body and (given := count(ask.body, name)) is not None:
            limit = given if limit is None else max(limit, given)
    return None if limit is None else limit * choices(ask)
