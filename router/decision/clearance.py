"""The rules of privacy: who may receive what, who promises what is required, and what was searched. Pure.

Each refusal says why in words for whoever answers for the data, and names the line that would change it.
"""

from __future__ import annotations

from collections.abc import Collection

from router.decision.question import Question, Rule, refuse
from router.decision.sensitivity import BROKEN, SCOPE, UNASKED, lowers
from router.records import Candidate, Refusal, Source
from serving.catalogue import DataClass

LONG = 100
"""Characters of ids from which on a remedy names the request that they held back instead."""


def cleared(candidate: Candidate, question: Question) -> Refusal | None:
    """The request's data class is within the model's clearance."""
    model, wanted = candidate.model, question.traits.data_class
    clearance = model.cleared_for(question.snapshot.today)
    if wanted <= clearance:
        return None
    reason = f"{model.name} ({model.place}) may receive {clearance.name} data; this is {wanted.name}"
    reason += f", since {question.traits.why_class}"
    return refuse(candidate, "data_class_not_cleared", reason, remedy=_clearing(candidate, question, clearance))


def _clearing(candidate: Candidate, question: Question, clearance: DataClass) -> str:
    """The lines that would change it: one for each source above the clearance, or the one that raises the clearance."""
    wanted, model = question.traits.data_class, candidate.model
    above = [_line(source, question, clearance) for source in question.traits.sources if source.data_class > clearance]
    lines = ["; and ".join(dict.fromkeys(filter(None, above)))]
    if wanted is not DataClass.secret:
        approved = "approved: {by, contract, regions, until}"
        lines.append(f"in headgate.yaml, models.{model.name}: {{clearance: {wanted.name}, {approved}}}")
    else:
        lines[0] += "; secret data never leaves"
    return "; or ".join(filter(None, lines))


def _line(source: Source, question: Question, clearance: DataClass) -> str:
    """What would lower one source to the clearance; "" where no line helps, as for a search that did not end."""
    caller, ask, name = question.caller, question.ask, source.name
    if lowers(ask, source):
        return ""  # it is lowered already
    match source.kind:
        case "key" | "team" | "route" if SCOPE in caller.scopes and source.data_class is not DataClass.secret:
            return f"send x-headgate-data-class: {clearance.name} with a word in x-headgate-reason"
        case "key":
            return f"headgate keys set {caller.key} --data-class {clearance.name}"
        case "media":
            return f"headgate keys set {caller.key} --media-class {clearance.name}"
        case "team":
            return f"in headgate.yaml, teams.{caller.team}.data_class: {clearance.name}"
        case "route":
            return f"in headgate.yaml, routes.{ask.route}.data_class: {clearance.name}"
        case "request":
            return f"leave x-headgate-data-class: {source.data_class.name} out"
        case "past":
            return f"headgate privacy release {name if len(name) < LONG else f'--from {ask.id}'}" if name else ""
        case "found":
            everywhere = f"for all requests, in headgate.yaml, privacy.effects: {{{name}: {clearance.name}}}"
            return f"take the {name} out of the request ({everywhere})"
    return ""


def promised(candidate: Candidate, question: Question) -> Refusal | None:
    """A hosted model promises all that key, team and route require of it; what is unknown is not promised."""
    model, requires = candidate.model, question.traits.requires
    if not requires or model.place == "local":
        return None
    unmet = model.unmet(requires, question.snapshot.today)
    if not unmet:
        return None
    spoken, fields = zip(*(_asked(wanted) for wanted in unmet), strict=True)
    reason = f"{model.name} (hosted) does not promise {' and '.join(spoken)}"
    if known := sorted(model.kept_in(question.snapshot.today)) if "region" in "".join(unmet) else []:
        reason += f" (its data may be in {', '.join(known)})"
    reason += f"; required by {_requirers(question, unmet)}"
    remedy = f"if its provider promises that, in headgate.yaml, models.{model.name}: {{{', '.join(fields)}}}"
    if not question.caller.requires.isdisjoint(unmet):
        left = ",".join(sorted(question.caller.requires.difference(unmet))) or "none"
        remedy += f"; or headgate keys set {question.caller.key} --requires {left}"
    return refuse(candidate, "requirement_not_met", reason, remedy=remedy)


def _asked(wanted: str) -> tuple[str, str]:
    """A requirement in words, and the field of headgate.yaml that would say it is met."""
    kind, _, name = wanted.partition(":")
    match kind:
        case "region":
            return f"to keep data in {name} alone", f"regions: [{name}]"
        case "tag":
            return f"what {name} asks for", f"compliance: [{name}]"
        case "no-training":
            return "not to train on what it is sent", "trains_on_data: false"
        case "no-retention":
            return "not to keep what it is sent", "retention_days: 0"
    return f"{wanted!r}, which is no requirement", ""


def _requirers(question: Question, unmet: Collection[str]) -> str:
    """Who requires it, as a person would look for it."""
    caller, site = question.caller, question.snapshot.catalogue.site
    team = site.teams.get(caller.team)
    named = [
        (caller.requires, f"key {caller.key}"),
        (team.requires if team else (), f"team {caller.team}"),
        (question.route.requires, f"the route {question.ask.route}"),
    ]
    return ", ".join(who for requires, who in named if not set(unmet).isdisjoint(requires))


def searched(candidate: Candidate, question: Question) -> Refusal | None:
    """What goes to a hosted model was searched whole. The last of the rules, so that whatever else is in the way is
    said instead: what cannot leave for another reason is not searched at all."""
    if candidate.model.place == "local" or not question.traits.unsearched:
        return None
    why = question.traits.unsearched
    reason = f"nothing goes to {candidate.model.name} (hosted) that was not searched whole: {why}"
    if why == BROKEN:  # no fault of this request, and mended one day
        return refuse(candidate, "door_closed", reason, remedy="see: headgate status", passing=True)
    return refuse(candidate, "not_scannable", reason, remedy="name a local model or auto, or send less at once")


PRIVACY: tuple[Rule, ...] = (searched, cleared, promised)
"""Where one of these refuses first, all of them that refuse are said: each has a line of its own that must change."""


def idle(rule: Rule, candidate: Candidate, question: Question) -> bool:
    """Whether a refusal by this rule helps nobody, since the scanner does not work: its class from that alone is no
    reason to change anything; and where it has too high a class without that, no working scanner would help."""
    if question.traits.unsearched != BROKEN or candidate.model.place == "local":
        return False
    known = (source.data_class for source in question.traits.sources if source.kind != "unread")
    lasting = max(known, default=DataClass.public) > candidate.model.cleared_for(question.snapshot.today)
    return rule is (searched if lasting else cleared)


def refusals_of(candidate: Candidate, question: Question, first: Rule, refusal: Refusal) -> list[Refusal]:
    """Every privacy rule's refusal; `refusal` is that of `first`, the one that was asked already.

    That a request was not searched is said only where nothing else is in the way: for that it was not.
    """
    if not question.traits.requires and question.traits.unsearched in ("", UNASKED):
        return [refusal]  # no other has anything to say; nearly always
    told = (rule for rule in PRIVACY if not idle(rule, candidate, question))
    given = [refusal if rule is first else rule(candidate, question) for rule in told]
    found = [each for each in given if each is not None]
    return found[1:] if len(found) > 1 and question.traits.unsearched == UNASKED else found
