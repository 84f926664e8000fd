"""Everything the door finds out for itself before a byte may leave, from its own catalogue, ledger and scanner.

It writes nothing down and sends nothing: it says yes, with the parcel that may go, or why not.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from router.door import keys, policy
from router.door.carrying import Parcel
from router.door.destination import Destination, DestinationError
from router.door.policy import Verdict
from router.door.provider_keys import KeyMissing, provider_key
from router.door.providers import openai
from router.door.searching import Search, Seen, Unsearched
from router.errors import BadRequest, Forbidden, Unavailable
from router.permit import Permit
from router.scanner import reading
from serving.catalogue import Catalogue, Model


class Closed(Unavailable):
    """Nothing may leave now: the operator, the book, the ledger or the scanner says so."""


class Judge:
    """What one boot judges by. Made inside a running loop; `close` it after the last request."""

    def __init__(
        self, catalogue: Catalogue, ledger: Path, search: Search, environ: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`clock`: the time that approvals and keys are held against, which never goes back."""
        self._catalogue, self._ledger, self._search = catalogue, ledger, search
        self._environ, self._clock = environ, clock
        self._ways: dict[str, Destination] = {}
        self._barred: dict[str, str] = {}
        for name, provider in catalogue.providers.items():
            if provider.enabled:
                try:
                    self._ways[name] = Destination(provider)
                except DestinationError as wrong:
                    self._barred[name] = str(wrong)

    async def close(self) -> None:
        """Close all connections."""
        for way in self._ways.values():
            await way.close()

    def provider(self, name: str) -> dict[str, Any]:
        """What is said of a provider: whether it could be asked now, and why not."""
        provider = self._catalogue.providers[name]
        key, why = "present", ""
        try:
            provider_key(name, provider, self._environ)
        except KeyMissing as missing:
            key, why = "missing", str(missing)
        if not provider.enabled:
            why = f"the provider {name} is not enabled"
        return {"enabled": provider.enabled, "key": key, "reason": self._barred.get(name, why)}

    async def judge(self, permit: Permit, body: bytes) -> Parcel:
        """What may leave under this permit, translated. Raises HeadgateError."""
        parsed = _parse(body)
        model, provider = policy.destination(permit, parsed, self._catalogue)
        try:
            row = await asyncio.to_thread(keys.read_key, self._ledger, permit.key)
        except keys.LedgerLost as lost:
            raise Closed(str(lost), code="ledger_lost") from lost
        now = self._clock()
        today = dt.datetime.fromtimestamp(now, dt.UTC).date()
        key = policy.key_works(permit, row, model, now)
        claimed = policy.claimed_class(permit, key, self._catalogue.site)
        requires = policy.required(key, permit.route, self._catalogue.site)
        policy.promised(requires, model, provider, today)
        sent = openai.translate(parsed, permit.path, model, provider)
        policy.fields_allowed(sent, permit.path, model)
        policy.tools_allowed(sent)
        raw = _dump(sent)
        # Of a class the model may not have, nothing is searched: the answer is no whatever stands in it.
        clearance = policy.clearance(model, today)
        policy.within(claimed, model, clearance)
        verdict = await self._inside(permit, claimed, requires, raw, key, model, clearance)
        if model.provider not in self._ways:
            reason = f"the provider {model.provider} cannot be used: {self._barred.get(model.provider, '')}"
            raise Forbidden(reason, code="destination_refused")
        try:
            secret = provider_key(model.provider, provider, self._environ)
        except KeyMissing as missing:
            raise Unavailable(str(missing), code="provider_key_missing") from missing
        return Parcel(
            permit=permit, model=model, verdict=verdict, way=self._ways[model.provider],
            url=openai.address(permit.path, provider),
            headers=openai.headers(secret, sent.get("stream") is True, provider), body=raw, key=secret,
        )  # fmt: skip

    async def _inside(
        self, permit: Permit, claimed: str, requires: tuple[str, ...], raw: bytes, key: policy.Key, model: Model,
        clearance: str,
    ) -> Verdict:  # fmt: skip
        """Read and search the very bytes that would leave. Raises HeadgateError."""
        sent = orjson.loads(raw)
        findings = reading.read(sent)
        if findings.fetches:
            reason = "a part names an address that the provider would fetch; send the media itself, as a data: URL"
            raise BadRequest(reason, code="media_url_not_allowed")
        seen = await self._seen(sent, bool(findings.opaque))
        found = policy.found_class(seen.found, self._search.effects)
        data_class = policy.cleared(claimed, findings, seen.unread, found, key.media_class, model, clearance)
        return Verdict(
            data_class, clearance, policy.rule(model, data_class), requires, dict(seen.found), permit.declassified
        )

    async def _seen(self, sent: dict[str, Any], opaque: bool) -> Seen:
        if trouble := self._search.trouble:
            raise Closed(f"the door cannot search what would leave: {trouble}", code="scanner_failed")
        try:
            return await self._search.search(sent, opaque)
        except Unsearched as failed:
            raise Forbidden(f"the door could not search it ({failed})", code="not_scannable") from failed


def _parse(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as broken:
        raise BadRequest("the body is not JSON", code="invalid_json") from broken
    if not isinstance(parsed, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    return parsed


def _dump(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as deep:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from deep
