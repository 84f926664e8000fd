"""Which data class a request has: the highest that anybody or anything gives it. Pure.

What people say (key, team, route, the caller's label) may be lowered by a key that may, with a reason. What detectors
found, what was private before and what nobody could read may not: detection is a veto, and the door has it as well.
Whatever is secret stays secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from router.errors import BadRequest, Forbidden
from router.records import Ask, Caller, Findings, Found, Source
from serving import parameters
from serving.catalogue import DataClass, Site

SCOPE = "declassify"
"""What a key must be allowed for its caller to lower the class."""
PLACE = re.compile(r"(messages|prompt|input|prediction|system)(\[\d{1,6}\])*(\.(content|output)(\[\d{1,6}\])*)?")
"""The start of a path that is made of the API's own words. The rest may hold keys, and a key can be text."""
STEP = re.compile(r"([a-z_]{1,40})(\[\d{1,7}\])*")
SPOKEN = frozenset({
    "arguments", "content", "default", "description", "enum", "format", "function", "items", "json_schema", "name",
    "output", "properties", "query", "reasoning", "refusal", "schema", "summary", "text", "thinking", "title",
    "tool_calls",
}).union(
    parameters.CHAT, parameters.COMPLETIONS, parameters.EMBEDDINGS, parameters.RESPONSES, parameters.MESSAGES,
    parameters.BOOKKEEPING,
)  # fmt: skip
"""Words that a path to a finding may be made of."""
UNASKED = "it was not searched, for it could not leave"
BROKEN = "the scanner does not work"
UNREAD = {
    "budget": "it was too much to be searched whole",
    "timeout": "its search did not end in time",
    "error": "its search failed",
    "scanner": BROKEN,
}
"""Why not every byte was searched, in words, by what `Findings.unread` says."""
MOST_NAMED = 4
"""Entries of the history that a sentence names; `headgate explain` names all of them."""
SAID = ("key", "team", "route")
"""Sources that a caller who may can lower, unless they say secret."""


class Classed(NamedTuple):
    """The class of a request, and everything that had a part in it."""

    data_class: DataClass
    why: str
    sources: tuple[Source, ...] = ()
    """What gave it a class above public, the highest first; also what the caller has lowered."""
    declassified: str = ""


def data_class_of(ask: Ask, caller: Caller, findings: Findings, site: Site) -> Classed:
    """The class and where it comes from, in words that quote nothing of the request.

    Of several that say the same, the key is named first. Raises Forbidden where the caller lowers and its key may not,
    BadRequest where it does not say to what.
    """
    if ask.declassify is not None:
        _may_lower(ask, caller)
    sources = [*_said(ask, caller, site), *_seen(caller, findings)]
    if len(sources) > 1:
        sources.sort(key=lambda source: -source.data_class)
    if ask.declassify is not None and (lowered := _lowered(ask, caller, sources)) is not None:
        return lowered
    if sources:
        return Classed(sources[0].data_class, sources[0].why, tuple(sources))
    return Classed(DataClass.public, f"key {caller.key} is public")


def _lowered(ask: Ask, caller: Caller, sources: list[Source]) -> Classed | None:
    """The class once the caller's label takes the place of what people said; None where that is no lower one.

    What the request itself holds may make it as high again: then that is why, and nothing that people said.
    """
    label = ask.data_class
    assert label is not None
    kept = [source for source in sources if not lowers(ask, source)]
    if len(kept) == len(sources) or label >= sources[0].data_class:
        return None
    highest = max([label, *(s.data_class for s in kept)])
    why = kept[0].why if highest > label else f"key {caller.key} lowered it to {label.name}: {ask.declassify}"
    lowered = highest < sources[0].data_class
    return Classed(highest, why, tuple(sources), (ask.declassify or "") if lowered else "")


def lowers(ask: Ask, source: Source) -> bool:
    """Whether the caller's label takes the place of this source."""
    return ask.declassify is not None and source.kind in SAID and source.data_class is not DataClass.secret


def unsearched(findings: Findings) -> str:
    """Why the request was not searched whole; "" where every byte of it was."""
    if not findings.searched:
        return UNASKED
    return UNREAD.get(findings.unread, "not every byte of it was searched") if findings.unread else ""


def _may_lower(ask: Ask, caller: Caller) -> None:
    if SCOPE not in caller.scopes:
        raise Forbidden(
            f"Key {caller.key} may not lower the data class. To change it: headgate keys set {caller.key} --declassify;"
            " or leave x-headgate-reason out.", code="declassify_not_allowed",
        )  # fmt: skip
    if ask.data_class is None:
        text = "x-headgate-reason says why the data class is lowered: send x-headgate-data-class with it."
        raise BadRequest(text, param="x-headgate-reason")


def _said(ask: Ask, caller: Caller, site: Site) -> list[Source]:
    """What people say: the key, the team, the route, the request itself."""
    said = [("key", f"key {caller.key}", caller.data_class)]
    if (team := site.teams.get(caller.team)) is not None:
        said.append(("team", f"team {caller.team}", team.data_class))
    if (route := site.routes.get(ask.route)) is not None:
        said.append(("route", f"the route {ask.route}", route.data_class))
    sources = [Source(kind, name, f"{who} is {name.name}") for kind, who, name in said if name > DataClass.public]
    if ask.data_class is not None and ask.data_class > DataClass.public:
        sources.append(Source("request", ask.data_class, f"the request says {ask.data_class.name}"))
    return sources


def _seen(caller: Caller, findings: Findings) -> list[Source]:
    """What the request itself gives it: its past, what was found in it, and what nobody could read or search."""
    sources: list[Source] = []
    for past in findings.past:
        if past.data_class > DataClass.public:
            why = f"{past.why}{_entries(past.id)}, so it is {past.data_class.name}"
            sources.append(Source("past", past.data_class, why, past.id))
    if findings.found:
        sources += _found(findings.found)
    if findings.opaque and caller.media_class > DataClass.public:
        place = PLACE.match(findings.opaque[0])
        where, name = place[0] if place else "a part of the body", caller.media_class.name
        sources.append(Source("media", caller.media_class, f"{where} cannot be read and so counts as {name}"))
    if findings.searched and findings.unread:
        sources.append(Source("unread", DataClass.private, f"{unsearched(findings)}, so it counts as private"))
    return sources


def _entries(ids: str) -> str:
    """The first entries of the history by their ids, and how many more there are."""
    named = ids.split()
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    word = "entry" if len(named) == 1 else "entries"
    return f" ({word} {', '.join(named[:MOST_NAMED])}{more} of the history)" if named else ""


def _found(found: Iterable[Found]) -> Iterator[Source]:
    """One source for each kind of finding, however many places it stands in."""
    kinds: dict[tuple[str, DataClass], list[Found]] = {}
    for one in found:
        if one.effect > DataClass.public:
            kinds.setdefault((one.kind, one.effect), []).append(one)
    for (kind, effect), each in kinds.items():
        count = sum(one.count for one in each)
        findings, counts = ("1 finding", "counts") if count == 1 else (f"{count} findings", "count")
        first = "" if count == 1 else ", the first"
        why = f"{findings} of the kind {kind}{first} in {_place(each[0].where)} {counts} as {effect.name}"
        yield Source("found", effect, why, kind)


def _place(path: str) -> str:
    """The start of a path, as far as it is made of the API's own words."""
    steps = []
    for step in path.split("."):
        found = STEP.fullmatch(step)
        if found is None or found[1] not in SPOKEN:
            break
        steps.append(step)
    return ".".join(steps) or "a part of the body"
