"""One try at one endpoint: the request is sent, and its answer is read up to the commit point.

What may be sent where is decided before; here a hosted try gets its permit and an attached server its key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from router.errors import HeadgateError, Unavailable, UpstreamFailed
from router.permit import LIFETIME_S, Permit, body_hash, seal
from router.records import Ask, Caller, Candidate, Decision
from router.upstream.answer import Answer, Log, Unusable
from router.upstream.connection import Address, Connections, Response, UpstreamError
from router.upstream.failures import RETRY_AFTER_S, Failure, overloaded, refusal, unreachable, wrong_request
from router.upstream.fleet import Access, Fleet
from router.upstream.tries import Try
from router.upstream.wording import spoken

JSON = ("content-type", "application/json")
LATE = ("x-vllm-priority", "1")
"""By its scheduling policy, which serving sets, an engine of ours starts others first, and interrupts this one first
where its KV cache is short."""
SALTED = frozenset({"chat/completions", "completions", "responses", "messages"})
"""Routes on which vLLM keeps what it has read of a prompt for the next one."""


class Sending:
    """Knows how to reach every endpoint. Built once."""

    def __init__(
        self,
        connections: Connections,
        fleet: Fleet,
        door: Address | None,
        permit_secret: str,
        policy: str,
        outgoing: Callable[[Ask, Candidate, frozenset[str]], tuple[dict[str, Any], tuple[str, ...]]],
    ) -> None:
        self._connections, self._fleet, self._door = connections, fleet, door
        self._permit_secret, self._outgoing = permit_secret, outgoing
        # The router's own, not what the door says of itself: the door compares the two.
        self._policy = policy
        self._keys: dict[str, tuple[int, str]] = {}

    async def send(
        self, ask: Ask, caller: Caller, decision: Decision, candidate: Candidate, log: Log, held: Try, *,
        elsewhere: Callable[[], bool] | None = None,
    ) -> Answer:  # fmt: skip
        """Send it and read up to the commit point. The answer takes over what is `held` for it. Raises Failure.

        Whatever ends it before that, the caller leaving included, leaves the connection in `held` to be closed.
        `elsewhere`: see Connections.post.
        """
        body, dropped = self._outgoing(ask, candidate, decision.droppable)
        if ask.route in SALTED and _keeps_prompts(candidate):
            body["cache_salt"] = _salt(self._permit_secret, caller.team)
        raw = orjson.dumps(body)
        try:
            if candidate.model.place == "hosted":
                response = await self._to_door(ask, caller, decision, candidate, raw, log, held, elsewhere)
            else:
                late = decision.traits.latency == "batch" and not candidate.endpoint.attached
                response = await self._to_local(ask, candidate, raw, held, elsewhere, late=late)
            held.response = response
            if response.status != 200:
                raise await refusal(candidate, response)
            _check_kind(ask, candidate, response)
            hide = ask.stream and not (ask.body.get("stream_options") or {}).get("include_usage")
            answer = Answer(
                candidate, response, log, stream=ask.stream, hide_usage=hide, dropped=dropped, route=ask.route,
                done=held.over,
            )  # fmt: skip
            await answer.begin()
        except UpstreamError as failed:
            raise unreachable(candidate, failed) from failed
        except Unusable as failed:
            # A provider that says so in a stream it has begun may have worked by then, and bills that.
            if failed.full and candidate.model.place == "local":
                raise overloaded(candidate, 503) from failed
            if failed.wrong and candidate.model.place == "local":
                raise wrong_request(candidate, 400, spoken(failed.wrong)) from failed
            unusable = UpstreamFailed(f"{candidate.name} gave no usable answer: {failed}.")
            raise Failure(unusable, "unusable", blamed=True) from failed
        held.response = None
        return answer

    def _to_local(
        self, ask: Ask, candidate: Candidate, raw: bytes, held: Try, elsewhere: Callable[[], bool] | None, *,
        late: bool = False,
    ) -> Awaitable[Response]:  # fmt: skip
        """`late`: the engine, one of ours, may let others go before it."""
        try:
            access = self._fleet.access(candidate.endpoint.name)
        except KeyError as gone:
            raise UpstreamError("refused", "the endpoint is gone") from gone
        headers = [JSON, ("x-request-id", ask.id), LATE] if late else [JSON, ("x-request-id", ask.id)]
        if key := self._key(candidate, access):
            headers.append(("authorization", f"Bearer {key}"))
        stream = ask.stream
        return self._connections.post(
            access.address, f"/v1/{ask.route}", headers, raw, stream=stream, whole=not stream, elsewhere=elsewhere,
            sent=held.handed_over,
        )  # fmt: skip

    async def _to_door(
        self, ask: Ask, caller: Caller, decision: Decision, candidate: Candidate, raw: bytes, log: Log, held: Try,
        elsewhere: Callable[[], bool] | None,
    ) -> Response:  # fmt: skip
        """Hand it to the door, once it stands in the ledger, on disk, what is handed over under which permit."""
        assert self._door is not None
        door = self._fleet.door
        permit = Permit(
            id=secrets.token_hex(16), door=door.instance, request=ask.id, key=caller.key, team=caller.team,
            route=ask.route, provider=candidate.model.provider, model=candidate.model.name, path=ask.route,
            data_class=decision.traits.data_class.name, body=body_hash(raw), policy=self._policy,
            expires=time.time() + LIFETIME_S, declassified=decision.traits.declassified,
        )  # fmt: skip
        await _recorded(log, decision, permit, len(raw))
        held.permit = permit.id
        permit = replace(permit, expires=time.time() + LIFETIME_S)  # writing it down may have taken a while
        headers = [JSON, ("x-headgate-permit", seal(permit, self._permit_secret))]
        stream = ask.stream
        return await self._connections.post(
            self._door, "/send", headers, raw, stream=stream, whole=not stream, elsewhere=elsewhere,
            sent=held.handed_over,
        )  # fmt: skip

    def _key(self, candidate: Candidate, access: Access) -> str:
        """An attached server's key; a rotated file is read again. Raises Failure where it cannot be sent."""
        setting, key = "key_env", os.environ.get(access.key_env, "") if access.key_env else ""
        if access.key_file:
            setting = "key_file"
            try:
                key = self._from_file(access.key_file)
            except (OSError, ValueError):
                key = ""
        elif not key:  # the variable need not be set: most servers ask for no key
            return ""
        if not key or not (key.isascii() and key.isprintable()):
            # Neither the path nor what stands in it: callers read this.
            text = f"{candidate.name} cannot be asked: its attach[].{setting} in headgate.yaml gives no usable key."
            raise Failure(Unavailable(text, retry_after=RETRY_AFTER_S), "no_key", sent=False)
        return key

    def _from_file(self, name: str) -> str:
        path = Path(name).expanduser()
        changed = path.stat().st_mtime_ns
        known = self._keys.get(name)
        if known is None or known[0] != changed:
            known = self._keys[name] = changed, path.read_text().strip()
        return known[1]


async def _recorded(log: Log, decision: Decision, permit: Permit, size: int) -> None:
    """Return once it is on disk what is about to be handed over: before that nothing leaves. Raises Failure."""
    claims = {
        "permit": permit.id, "door": permit.door, "team": permit.team, "provider": permit.provider,
        "model": permit.model, "path": permit.path, "data_class": permit.data_class, "policy": permit.policy,
        "sha256": permit.body, "bytes": size, "lane": decision.lane, "trigger": decision.trigger,
    }  # fmt: skip
    try:
        await log.sending(claims)
    except HeadgateError as late:
        raise Failure(late, "not_recorded") from late


def _keeps_prompts(candidate: Candidate) -> bool:
    """Whether a vLLM answers: ours, or an attached server that has a vLLM's metrics."""
    endpoint = candidate.endpoint
    return candidate.model.place == "local" and (not endpoint.attached or endpoint.running is not None)


@lru_cache(maxsize=1024)
def _salt(secret: str, team: str) -> str:
    """What keeps the engine's memory of prompts apart by team: a prompt that another team has sent is not answered
    sooner, so nobody can find out by the clock what others ask. Without the secret it cannot be guessed."""
    return hmac.new(secret.encode(), b"cache_salt\0" + team.encode(), hashlib.sha256).hexdigest()[:32]


def _check_kind(ask: Ask, candidate: Candidate, response: Response) -> None:
    """Raises Failure unless an answer of the kind that was asked for begins here."""
    expected = "text/event-stream" if ask.stream else "application/json"
    if not response.headers.get("content-type", "").startswith(expected):
        other = UpstreamFailed(f"{candidate.name} answered something else than {expected}.")
        raise Failure(other, "wrong_type", 200, blamed=True)
