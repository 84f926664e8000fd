"""The door's routes as a raw ASGI application: what it says of itself, the word that closes it, the only way out.

`_send` is the whole story of a request: check, judge, write down, carry, write down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from router import permit as permits
from router.door import closing, keys, policy
from router.door.book import Book, BookError
from router.door.carrying import Answer, Message, Parcel, Progress, Receive, Send, carry
from router.door.closing import Shut
from router.door.destination import head_bytes
from router.door.judging import Closed, Judge
from router.door.searching import Search
from router.errors import Forbidden, HeadgateError, NotFound, TooLarge
from router.permit import Permit, PermitError
from serving.catalogue import Catalogue
from serving.home import Home

log = logging.getLogger("headgate.door")

SLACK = 64 * 1024
"""Bytes a body may have beyond what the router takes from a client: fields the router adds."""
MOST_SAID = 4096
"""Bytes of the operator's word on closing it."""
LOOK_S = 1.0
"""How often it is looked whether the operator has closed it, besides before each sending."""
TEST_EVERY_S = 60.0
"""How often the scanner tests itself."""
TIME_EVERY_S = 600.0
"""How often it is written down what time it is: a clock that is set back while the door is down takes no more away."""


class ClientLeft(Exception):
    """The router went away before its request was whole."""


class Door:
    """The state of one boot. Made inside a running loop; `close` it after the last request."""

    def __init__(
        self, catalogue: Catalogue, home: Home, book: Book, search: Search, environ: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.instance = book.boot
        """The id that permits are bound to; the book's entries of this boot carry it too."""
        self._catalogue, self._ledger, self._book, self._search = catalogue, home.ledger, book, search
        self._secret, self._clock = home.secret("permit"), clock
        self._judge = Judge(catalogue, home.ledger, search, environ, book.time.now)
        self._used = policy.Used()
        self._limit = int(catalogue.site.router.max_body_mb * 2**20) + SLACK
        self._busy: set[asyncio.Task[Any]] = set()
        self._marker = closing.marker(home.book)
        self._shut: Shut | None = None
        self._cut = asyncio.Event()
        """Set while the operator has closed it: what is under way ends."""
        self._looking = asyncio.Lock()
        self._trouble = ""
        """The scanner's, as the book has it."""

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
        await self._judge.close()

    # ---- open or closed

    async def watch(self) -> None:
        """Look for the operator's word each second, and let the scanner test itself each minute. Until cancelled."""
        await asyncio.gather(self._watch_marker(), self._watch_scanner(), self._watch_time())

    async def look(self) -> None:
        """Whether the operator has closed it since; a change goes into the book, and ends what is under way."""
        async with self._looking:
            found, before = closing.look(self._marker), self._shut
            if found == before:
                return
            self._shut = found
            if found is None:
                self._cut.clear()
                since = before.at if before else 0.0
                await self._note("door_opened", {"by": "operator", "since": since})
            else:
                self._cut.set()
                entry = {"by": "operator", "since": found.at, "user": found.by, "reason": found.reason}
                await self._note("door_closed", entry)

    async def test(self) -> None:
        """Let the scanner test itself, and write down where that closes or opens the door."""
        await self._search.test()
        trouble, before = self._search.trouble, self._trouble
        if trouble == before:
            return
        self._trouble = trouble
        if trouble:
            await self._note("door_closed", {"by": "scanner", "reason": trouble})
        else:
            await self._note("door_opened", {"by": "scanner", "reason": before})

    async def _watch_marker(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def _watch_scanner(self) -> None:
        while True:
            await asyncio.sleep(TEST_EVERY_S)
            await self.test()

    async def _watch_time(self) -> None:
        while True:
            await asyncio.sleep(TIME_EVERY_S)
            await self._book.remember()

    async def _note(self, kind: str, entry: dict[str, Any]) -> None:
        log.warning("%s: by the %s %s", kind, entry["by"], entry.get("reason", ""))
        try:
            await self._book.noted(kind, entry)
        except BookError as full:
            log.error("%s could not be written: %s", kind, full)

    async def status(self) -> dict[str, Any]:
        """What the door says of itself; where the book was in trouble, it is tried again."""
        await self.look()
        why = str(self._shut or "") or self._search.trouble
        try:
            if self._book.trouble:
                await self._book.probe()
            await asyncio.to_thread(keys.check, self._ledger)
        except (BookError, keys.LedgerLost) as closed:
            why = why or str(closed)
        return {
            "instance": self.instance,
            "policy": self._catalogue.version,
            "open": not why,
            "closed_because": why,
            "operator": self._shut._asdict() if self._shut else None,
            "scanner": {"trouble": self._search.trouble, "passed_s_ago": self._search.passed_s_ago},
            "providers": {name: self._judge.provider(name) for name in self._catalogue.providers},
        }

    async def _route(self, scope: Message, receive: Receive, answer: Answer) -> None:
        match scope["method"], scope["path"]:
            case "GET", "/door":
                status = await self.status()
                await answer.whole(200 if status["open"] else 503, orjson.dumps(status), None)
            case "POST", "/look":  # the operator's commands, which want no error for an answer
                await answer.whole(200, orjson.dumps(await self.status()), None)
            case "POST", "/close":
                await self._close(receive, answer)
            case "POST", "/send":
                await self._send(scope, receive, answer)
            case _:
                missing = NotFound("the door has GET /door, POST /look, POST /close and POST /send")
                await answer.whole(missing.status, missing.envelope(), "refused")

    async def _close(self, receive: Receive, answer: Answer) -> None:
        """The operator's word by the socket: it may come from where this door's files are not. There is no such way to
        open it, for the router can speak here too."""
        try:
            word = await _read_body(receive, MOST_SAID)
        except TooLarge:
            word = b""
        try:
            if await asyncio.to_thread(closing.look, self._marker) is None:  # who closed it first stands there
                await asyncio.to_thread(closing.close, self._marker, closing.told(word, self._clock()))
        except OSError as full:
            failed = Closed(f"the door cannot write that it is closed: {full.strerror}", code="door_closed")
            await answer.error(failed, "refused")
        else:
            await answer.whole(200, orjson.dumps(await self.status()), None)

    # ---- the way out

    async def _send(self, scope: Message, receive: Receive, answer: Answer) -> None:
        permit: Permit | None = None
        try:
            body = await _read_body(receive, self._limit)
            permit = self._open(scope, body)
            await self.look()
            self._hold()
            parcel = await self._judge.judge(permit, body)
            await self._write_sending(parcel)
        except HeadgateError as refusal:
            await self._refuse(permit, refusal, answer)
            return
        started, progress = time.monotonic(), Progress()
        try:
            # Asked again, for all of that took its time; from here to the first byte nothing is awaited.
            self._hold()
            await carry(parcel, receive, answer, progress, self._cut)
        except Closed as closed:
            progress.left, progress.error = False, closed.code
            await answer.error(closed, "closed")
        except asyncio.CancelledError:
            progress.error = "door_stopped"
            raise
        finally:
            await self._write_ended(parcel, progress, (time.monotonic() - started) * 1000)

    def _hold(self) -> None:
        """The operator's word. Raises Closed."""
        if shut := self._shut or closing.look(self._marker):
            raise Closed(str(shut), code="door_closed")

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
            "claimed": permit.data_class,
            "policy": permit.policy,
            "received_sha256": permit.body,
            "sent_sha256": permits.body_hash(parcel.body),
            "sent_bytes": len(parcel.body),
            "head_bytes": head_bytes(parcel.url, parcel.headers, parcel.body),
            **parcel.verdict._asdict(),
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
            "head_bytes_in": progress.head_bytes_in,
            "connections": progress.connections,
            "left": progress.left,
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
