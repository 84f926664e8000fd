"""The door's own judgement of a permit: destination, data class, clearance. Pure: it is handed the key and the time.

It repeats what the router decided, from the door's own reading of catalogue and keys, and refuses where they differ.
Classes are names with an order of the door's own: a fault in the router's reckoning must not be one here as well.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

from router.errors import Forbidden
from router.permit import Permit
from router.records import Findings
from serving import parameters
from serving.catalogue import Catalogue, Model, Privacy, Provider, Site

PATHS = frozenset({"chat/completions", "completions", "embeddings"})
"""The only paths below a provider's base address that are ever called."""
RANKS = {"public": 0, "internal": 1, "private": 2, "secret": 3}
"""The data classes, by how little they may travel."""
EVERY_REQUEST = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options"})
"""Body fields that may leave whatever the model's entry lists; the output limits come on top."""
TOOL_TYPES = ("custom", "function")
"""Types of tools that the caller runs. Any other one the provider runs, and it may send what it is told anywhere."""
TOOL_FIELDS = frozenset(
    {"type", "function", "custom", "name", "description", "parameters", "strict", "format", "cache_control"}
)
"""Fields of such a tool. A provider may take a tool of its own under another name, without any type."""
FUNCTION_FIELDS = frozenset({"name", "description", "parameters", "strict"})
"""Those of one in `functions`, as OpenAI had it before there were tools."""
LABEL = re.compile(r"[a-z0-9_-]{1,40}")
"""The form of a reason for which a class is lowered: it goes into the book, so it must not be able to carry a text."""


@dataclass(frozen=True, slots=True)
class Key:
    """What the door needs of an API key's row. Times are Unix seconds."""

    id: str
    team: str
    data_class: str
    lanes: frozenset[str]
    expires: float | None
    revoked: float | None
    scopes: frozenset[str] = frozenset()
    media_class: str = "private"
    """The class of parts that nobody can read."""
    requires: frozenset[str] = frozenset()


class Verdict(NamedTuple):
    """Under what something may leave; all of it stands in the book."""

    data_class: str
    clearance: str
    rule: str
    """Why the model may have it: `public`, or `approved:` and the contract."""
    requires: tuple[str, ...]
    """What the model had to promise, and does."""
    found: Mapping[str, int]
    """How often the door's own scanner found each kind."""
    declassified: str
    """The reason for which its class was lowered; empty where it was not."""


class Used:
    """The permits that were accepted; each is accepted once.

    Bounded: when it is full, permits that have expired are forgotten, and none that expires as early is ever accepted
    again. So a clock that is set back opens nothing.
    """

    def __init__(self, limit: int = 20_000) -> None:
        self._limit = limit
        self._seen: dict[str, float] = {}
        self._forgotten = float("-inf")

    def take(self, permit: Permit, now: float) -> None:
        """Accept the permit. Raises Forbidden where it was accepted before, or where that can no longer be told."""
        if permit.id in self._seen or permit.expires <= self._forgotten:
            raise Forbidden("the permit was used before", code="permit_used")
        if len(self._seen) >= self._limit:
            self._forget(now)
        if len(self._seen) >= self._limit:
            raise Forbidden("too many permits are open at once; try again in a few seconds", code="permits_exhausted")
        self._seen[permit.id] = permit.expires

    def _forget(self, now: float) -> None:
        over = [expires for expires in self._seen.values() if expires < now]
        self._forgotten = max(over, default=self._forgotten)
        self._seen = {name: expires for name, expires in self._seen.items() if expires > self._forgotten}


def well_formed(permit: Permit) -> None:
    """The seal says who wrote the permit, not that its fields are of their kind. Raises Forbidden."""
    for field in fields(permit):
        value = getattr(permit, field.name)
        good = isinstance(value, int | float) if field.name == "expires" else isinstance(value, str)
        if not good:
            raise Forbidden(f"the permit's `{field.name}` is not of its kind", code="permit_invalid")


def destination(permit: Permit, body: Mapping[str, Any], catalogue: Catalogue) -> tuple[Model, Provider]:
    """Where the permit leads, by the door's own catalogue. Raises Forbidden."""
    if permit.policy != catalogue.version:
        reason = f"the router decided under policy {permit.policy}, the door holds {catalogue.version}; restart both"
        raise Forbidden(reason, code="policy_mismatch")
    model = catalogue.models.get(permit.model)
    if model is None or model.place != "hosted":
        raise Forbidden(f"no hosted model is called {permit.model!r}", code="model_unknown")
    if body.get("model") != model.name:
        raise Forbidden("the body names another model than the permit", code="model_mismatch")
    provider = catalogue.providers.get(model.provider)
    if provider is None or permit.provider != model.provider:
        raise Forbidden(f"{model.name} is not served by {permit.provider!r}", code="provider_mismatch")
    if not provider.enabled:
        raise Forbidden(f"the provider {model.provider} is not enabled", code="provider_disabled")
    if permit.path not in PATHS or permit.route != permit.path:
        raise Forbidden(f"the path {permit.path!r} is never called for {permit.route!r}", code="path_not_allowed")
    return model, provider


def key_works(permit: Permit, key: Key | None, model: Model, now: float) -> Key:
    """The key, where it is good and may ask this model. Raises Forbidden."""
    if key is None:
        raise Forbidden(f"no key has the id {permit.key}", code="key_unknown")
    if key.revoked is not None:
        raise Forbidden(f"the key {key.id} was revoked", code="key_revoked")
    if key.expires is not None and now >= key.expires:
        raise Forbidden(f"the key {key.id} has expired", code="key_expired")
    if key.team != permit.team:
        raise Forbidden(f"the key {key.id} belongs to another team than the permit says", code="team_mismatch")
    if not key.lanes & set(model.lanes):
        raise Forbidden(f"the key {key.id} may use no lane of {model.name}", code="lane_not_allowed")
    return key


def claimed_class(permit: Permit, key: Key, site: Site) -> str:
    """The class the permit claims, where key, team and route can have as low a one. Raises Forbidden.

    A key that may declassify, and says why, can have a lower one, but what is secret stays it.
    """
    team, route = site.teams.get(key.team), {str(name): found for name, found in site.routes.items()}.get(permit.route)
    own = [(f"the key {key.id}", key.data_class)]
    own += [(f"the team {key.team}", team.data_class.name)] if team else []
    own += [(f"the route {permit.route}", route.data_class.name)] if route else []
    claimed = permit.data_class
    if {claimed, key.media_class, *(name for _, name in own)} - RANKS.keys():
        raise Forbidden("the data class of the key or of the permit is none of the four", code="data_class_unknown")
    if permit.declassified:
        if "declassify" not in key.scopes:
            raise Forbidden(f"the key {key.id} may not lower the data class", code="declassify_not_allowed")
        if not LABEL.fullmatch(permit.declassified):
            raise Forbidden("the reason for a lower class is no short label", code="permit_invalid")
        own = [(whose, name) for whose, name in own if name == "secret"]
    for whose, name in own:
        if RANKS[claimed] < RANKS[name]:
            reason = f"the permit claims {claimed} data for {whose}, whose data is {name}"
            raise Forbidden(reason, code="data_class_lowered")
    return claimed


def required(key: Key, route: str, site: Site) -> tuple[str, ...]:
    """What key, team and route together want a hosted model to promise."""
    team, of_route = site.teams.get(key.team), {str(n): found for n, found in site.routes.items()}.get(route)
    return tuple(sorted({*key.requires, *(team.requires if team else ()), *(of_route.requires if of_route else ())}))


def promised(requires: Iterable[str], model: Model, provider: Provider, today: dt.date) -> None:
    """Whether the model promises all of it, by its entry, else by its provider's. Raises Forbidden.

    What nobody says is not promised, and neither is a word that nobody here knows.
    """
    said = {name: getattr(model, name) for name in ("regions", "retention_days", "trains_on_data", "compliance")}
    said |= {name: getattr(provider, name) for name, value in said.items() if value is None}
    approved = model.approved
    agreed = approved.regions if approved is not None and today <= approved.until else ()
    regions = {region.lower() for region in (*(said["regions"] or ()), *agreed)}
    kept = {f"tag:{tag}" for tag in said["compliance"] or ()}
    kept |= {f"region:{region}" for region in regions} if len(regions) == 1 else set()
    kept |= {"no-training"} if said["trains_on_data"] is False else set()
    kept |= {"no-retention"} if said["retention_days"] == 0 else set()
    if missing := sorted(set(requires) - kept):
        reason = f"{model.name} does not promise {', '.join(missing)}, which this key, team or route requires"
        raise Forbidden(reason, code="requirement_not_met")


def clearance(model: Model, today: dt.date) -> str:
    """The highest class that may leave to this model on that day. Whatever is missing, over or odd: public."""
    approved = model.approved
    if model.place != "hosted" or model.clearance is None or approved is None or today > approved.until:
        return "public"
    name = model.clearance.name
    return name if name in ("internal", "private") else "public"


def fields_allowed(sent: Mapping[str, Any], path: str, model: Model) -> None:
    """Only fields that the model is known to take may leave, for another may say where a request goes.

    `path` is one of PATHS. Raises Forbidden.
    """
    takes = parameters.accepted(cast(parameters.Route, path), model.parameters)
    if odd := sorted(sent.keys() - takes - EVERY_REQUEST - parameters.OUTPUT_LIMITS):
        raise Forbidden(f"{model.name} takes no field of this name", code="field_not_allowed", param=odd[0])


def tools_allowed(sent: Mapping[str, Any]) -> None:
    """Only tools that the caller runs itself may leave: one that the provider runs carries on what it is told.

    Raises Forbidden.
    """
    for name, known in (("tools", TOOL_FIELDS), ("functions", FUNCTION_FIELDS)):
        given = sent.get(name)
        if given is None:
            continue
        if not isinstance(given, list) or not all(_is_the_callers(tool, known) for tool in given):
            raise Forbidden(f"the provider would run what stands in {name}", code="tool_not_allowed", param=name)


def _is_the_callers(tool: Any, known: frozenset[str]) -> bool:
    named = isinstance(tool, Mapping) and tool.keys() <= known
    return named and (known is FUNCTION_FIELDS or tool.get("type") in TOOL_TYPES)


def rule(model: Model, data_class: str) -> str:
    """Under which rule a cleared class may leave, for the book. The contract is the site's own word for it."""
    if data_class == "public" or model.approved is None:
        return "public"
    return f"approved:{model.approved.contract}"


def effects(privacy: Privacy, shipped: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The class of each kind of finding: the site's for the longest name that stands for it, else the shipped one.

    `shipped`: the rows of what is looked for. Of several of one name the highest counts; the site's own words have
    the class that stands beside them.
    """
    table: dict[str, str] = {}
    for kind, name in [*shipped, *((f"own:{own.name}", own.data_class.name) for own in privacy.own)]:
        standing = [given for given in privacy.effects if kind == given or kind.startswith(f"{given}_")]
        here = privacy.effects[max(standing, key=len)].name if standing else name
        table[kind] = max(here, table.get(kind, here), key=lambda each: RANKS.get(each, RANKS["secret"]))
    return table


def found_class(found: Mapping[str, int], table: Mapping[str, str]) -> tuple[str, str]:
    """The highest class that what was found gives a body, and the kind that gives it.

    A kind that nobody here knows counts as secret.
    """
    ranked = [(table.get(kind, "secret"), kind) for kind, count in sorted(found.items()) if count]
    ranked = [(name if name in RANKS else "secret", kind) for name, kind in ranked]
    return max(ranked, key=lambda each: RANKS[each[0]], default=("public", ""))


def within(claimed: str, model: Model, highest: str) -> None:
    """Whether the class alone that the permit claims is within the clearance. Raises Forbidden."""
    if RANKS[claimed] > RANKS[highest]:
        reason = f"{model.name} may receive {highest} data at most, and this is {claimed}"
        raise Forbidden(reason, code="data_class_not_cleared")


def cleared(
    claimed: str, findings: Findings, unread: str, by_scanner: tuple[str, str], media: str, model: Model, highest: str
) -> str:
    """The final class of what would leave, held against the model's clearance `highest`. Raises Forbidden.

    `by_scanner` is what `found_class` gives, `unread` why not every byte was searched, `media` the class of parts
    that nobody can read.
    """
    within(claimed, model, highest)
    name, kind = by_scanner
    if RANKS[name] > RANKS[highest]:
        reason = f"it holds what counts as {name} ({kind}), and {model.name} may receive {highest} data at most"
        raise Forbidden(reason, code="data_class_not_cleared")
    final = max(claimed, name, key=RANKS.__getitem__)
    if unread:  # it may hold what is secret, and no clearance covers that
        raise Forbidden("not every byte of it was searched, so it stays", code="not_scannable")
    if findings.opaque:
        final = max(final, media, key=RANKS.__getitem__)
    if RANKS[final] > RANKS[highest]:
        reason = (
            f"a part of it cannot be read, so it counts as {final}; {model.name} may receive {highest} data at most"
        )
        raise Forbidden(reason, code="not_scannable")
    return final
