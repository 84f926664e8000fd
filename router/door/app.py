"""The door's two routes as a raw ASGI application: what it says of itself, and the only way out.

`_send` is the whole story of a request: check, judge, write down, carry, write down.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from router import permit as permits
from router.door import keys, policy
from router.door.book import Book, BookError
from router.door.carrying import Answer, Message, Parcel, Progress, Receive, Send, carry
from router.door.destination import Destination, DestinationError
from router.door.provider_keys import KeyMissing, provider_key
from router.door.providers import openai
from router.errors import BadRequest, Forbidden, HeadgateError, NotFound, TooLarge, Unavailable
from router.permit import Permit, PermitError
from router.scanner import reading
from serving.catalogue import Catalogue
from serving.home import Home

log = logging.getLogger("headgate.door")

SLACK = 64 * 1024
"""Bytes a body may have beyond what the router takes from a client: fields the router adds."""


class Closed(Unavailable):
    """Nothing may leave now: book or ledger cannot be used."""


class ClientLeft(Exception):
    """The router went away before its request was whole."""


class Door:
    """The state of one boot. Made inside a running loop; `close` it after the last request."""

    def __init__(
        self,
        catalogue: Catalogue,
        home: Home,
        book: Book,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.instance = book.boot
        """The id that permits are bound to; the book's entries of this boot carry it too."""
        self._catalogue = catalogue
        self._ledger = home.ledger
        self._secret = home.secret("permit")
        self._book = book
        self._environ = environ
        self._clock = clock
        self._used = policy.Used()
        self._limit = int(catalogue.site.router.max_body_mb * 2**20) + SLACK
        self._busy: set[asyncio.Task[Any]] = set()
        self._ways: dict[str, Destination] = {}
        self._barred: dict[str, str] = {}
        for name, provider in catalogue.providers.items():
            if provider.enabled:
                try:
                    self._ways[name] = Destination(provider)
                except DestinationError as wrong:
                    self._barred[name] = str(wrong)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            await self._route(scope, receive, Answer(send))
        except ClientLeft:
            pass
        finally:
            self._busy.discard(task)

    async def close(self) -> None:
        """Let cancelled requests write how they ended, then close all connections."""
        if self._busy:
            await asyncio.wait(self._busy, timeout=2)
        for way in self._ways.values():
            await way.close()

    async def _route(self, scope: Message, receive: Receive, answer: Answer) -> None:
        match scope["method"], scope["path"]:
            case "GET", "/door":
                status = await self.status()
                await answer.whole(200 if status["open"] else 503, orjson.dumps(status), None)
            case "POST", "/send":
                await self._send(scope, receive, answer)
            case _:
                missing = NotFound("the door has GET /door and POST /send")
                await answer.whole(missing.status, missing.envelope(), "refused")

    async def status(self) -> dict[str, Any]:
        """What the door says of itself; where the book was in trouble, it is tried again."""
        why = ""
        try:
            if self._book.trouble:
                await self._book.probe()
            await asyncio.to_thread(keys.check, self._ledger)
        except (BookError, keys.LedgerLost) as closed:
            why = str(closed)
        return {
            "instance": self.instance,
            "policy": self._catalogue.version,
            "open": not why,
            "closed_because": why,
            "providers": {name: self._provider(name) for name in self._catalogue.providers},
        }

    def _provider(self, name: str) -> dict[str, Any]:
        provider = self._catalogue.providers[name]
        key, why = "present", ""
        try:
            provider_key(name, provider, self._environ)
        except KeyMissing as missing:
            key, why = "missing", str(missing)
        if not provider.enabled:
            why = f"the provider {name} is not enabled"
        return {"enabled": provider.enabled, "key": key, "reason": self._barred.get(name, why)}

    async def _send(self, scope: Message, receive: Receive, answer: Answer) -> None:
        permit: Permit | None = None
        try:
            body = await _read_body(receive, self._limit)
            permit = self._open(scope, body)
            parcel = await self._judge(permit, body)
            await self._write_sending(parcel)
        except HeadgateError as refusal:
            await self._refuse(permit, refusal, answer)
            return
        started, progress = time.monotonic(), Progress()
        try:
            await carry(parcel, receive, answer, progress)
        except asyncio.CancelledError:
            progress.error = "door_stopped"
            raise
        finally:
            await self._write_ended(parcel, progress, (time.monotonic() - started) * 1000)

    def _open(self, scope: Message, body: bytes) -> Permit:
        """The permit, checked and used up. Raises Forbidden."""
        tokens = [value for name, value in scope["headers"] if name == b"x-headgate-permit"]
        if len(tokens) != 1:
            raise Forbidden("a request needs exactly one x-headgate-permit", code="permit_missing")
        now = self._clock()
        try:
            token = tokens[0].decode("latin-1")
            permit = permits.check(token, self._secret, door=self.instance, body=body, now=now)
        except (PermitError, TypeError) as wrong:
            # A TypeError is a sealed permit whose fields are of another kind.
            raise Forbidden(f"the permit does not hold: {wrong}", code="permit_invalid") from wrong
        policy.well_formed(permit)
        self._used.take(permit, now)
        return permit

    async def _judge(self, permit: Permit, body: bytes) -> Parcel:
        """Everything the door must find for itself before a byte may leave. Raises HeadgateError."""
        parsed = _parse(body)
        model, provider = policy.destination(permit, parsed, self._catalogue)
        try:
            key = await asyncio.to_thread(keys.read_key, self._ledger, permit.key)
        except keys.LedgerLost as lost:
            raise Closed(str(lost), code="ledger_lost") from lost
        now = self._clock()
        data_class = policy.key_class(permit, key, model, now)
        sent = openai.translate(parsed, permit.path, model, provider)
        policy.fields_allowed(sent, permit.path, model)
        findings = reading.read(sent)
        if findings.fetches:
            reason = "a part names an address that the provider would fetch; send the media itself, as a data: URL"
            raise BadRequest(reason, code="media_url_not_allowed")
        clearance = policy.clearance(model, dt.datetime.fromtimestamp(now, dt.UTC).date())
        data_class = policy.cleared(data_class, findings, model, clearance)
        if model.provider not in self._ways:
            reason = f"the provider {model.provider} cannot be used: {self._barred.get(model.provider, '')}"
            raise Forbidden(reason, code="destination_refused")
        try:
            secret = provider_key(model.provider, provider, self._environ)
        except KeyMissing as missing:
            raise Unavailable(str(missing), code="provider_key_missing") from missing
        return Parcel(
            permit=permit,
            model=model,
            data_class=data_class,
            clearance=clearance,
            way=self._ways[model.provider],
            url=openai.address(permit.path, provider),
            headers=openai.headers(secret, sent.get("stream") is True, provider),
            body=_dump(sent),
            key=secret,
        )

    async def _refuse(self, permit: Permit | None, refusal: HeadgateError, answer: Answer) -> None:
        claims = (permit.id, permit.request, permit.key, permit.model) if permit else ("", "", "", "")
        entry = dict(zip(("permit", "request", "key", "model"), claims, strict=True))
        log.warning("refused %s: %s", entry["request"] or "a request without a valid permit", refusal.code)
        try:
            await self._book.refused({**entry, "code": refusal.code})
        except BookError as full:
            log.error("a refusal could not be written: %s", full)
        await answer.error(refusal, "closed" if isinstance(refusal, Closed) else "refused")

    async def _write_sending(self, parcel: Parcel) -> None:
        permit = parcel.permit
        entry = {
            "permit": permit.id,
            "request": permit.request,
            "key": permit.key,
            "team": permit.team,
            "route": permit.route,
            "provider": permit.provider,
            "model": permit.model,
            "path": permit.path,
            "host": parcel.way.host,
            "data_class": parcel.data_class,
            "clearance": parcel.clearance,
            "policy": permit.policy,
            "received_sha256": permit.body,
            "sent_sha256": permits.body_hash(parcel.body),
            "sent_bytes": len(parcel.body),
        }
        try:
            await self._book.sending(entry)
        except BookError as full:
            log.error("the door is closed: %s", full)
            raise Closed(str(full), code="book_not_written") from full

    async def _write_ended(self, parcel: Parcel, progress: Progress, ms: float) -> None:
        entry = {
            "permit": parcel.permit.id,
            "request": parcel.permit.request,
            "status": progress.status,
            "bytes_in": progress.bytes_in,
            "ms": round(ms, 1),
            "ended": progress.ended,
            "error": progress.error,
        }
        log.info("%s to %s: %s %s", entry["request"], parcel.permit.provider, progress.ended, progress.error)
        try:
            await self._book.ended(entry)
        except BookError as full:
            log.error("the end of %s could not be written: %s", entry["request"], full)


async def _read_body(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(f"the body is over {limit} bytes")
        if not message.get("more_body", False):
            return bytes(body)


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
