"""The door's own judgement of a permit: destination, data class, clearance. Pure: it is handed the key and the time.

It repeats what the router decided, from the door's own reading of catalogue and keys, and refuses where they differ.
Classes are names with an order of the door's own: a fault in the router's reckoning must not be one here as well.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from router.errors import Forbidden
from router.permit import Permit
from router.records import Findings
from serving import parameters
from serving.catalogue import Catalogue, Model, Provider

PATHS = frozenset({"chat/completions", "completions", "embeddings"})
"""The only paths below a provider's base address that are ever called."""
RANKS = {"public": 0, "internal": 1, "private": 2, "secret": 3}
"""The data classes, by how little they may travel."""
EVERY_REQUEST = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options"})
"""Body fields that may leave whatever the model's entry lists; the output limits come on top."""


@dataclass(frozen=True, slots=True)
class Key:
    """What the door needs of an API key's row. Times are Unix seconds."""

    id: str
    team: str
    data_class: str
    lanes: frozenset[str]
    expires: float | None
    revoked: float | None


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
    if permit.path not in PATHS:
        raise Forbidden(f"the path {permit.path!r} is never called", code="path_not_allowed")
    return model, provider


def key_class(permit: Permit, key: Key | None, model: Model, now: float) -> str:
    """The class the request has at least: its key's, or a higher one the permit claims. Raises Forbidden."""
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
    own, claimed = key.data_class, permit.data_class
    if own not in RANKS or claimed not in RANKS:
        raise Forbidden("the data class of the key or of the permit is none of the four", code="data_class_unknown")
    if RANKS[claimed] < RANKS[own]:
        reason = f"the permit claims {claimed} data for the key {key.id}, whose data is {own}"
        raise Forbidden(reason, code="data_class_lowered")
    return claimed


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


def cleared(data_class: str, findings: Findings, model: Model, highest: str) -> str:
    """The final class of what would leave, held against the model's clearance `highest`. Raises Forbidden."""
    if RANKS[data_class] > RANKS[highest]:
        reason = f"{model.name} may receive {highest} data at most, and this is {data_class}"
        raise Forbidden(reason, code="data_class_not_cleared")
    # What cannot be read may hold anything.
    final = "private" if findings.opaque and RANKS[data_class] < RANKS["private"] else data_class
    if RANKS[final] > RANKS[highest]:
        reason = f"{findings.opaque[0]} cannot be read and counts as private; {model.name} may receive {highest}"
        raise Forbidden(reason, code="not_scannable")
    return final
