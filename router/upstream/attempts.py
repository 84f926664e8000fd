"""Attempts: the order is tried from the first to the last, one try each, until one answers.

Layers, outermost first: `first_answer` (fallback along the order) → `once` (one try) → `_send_local` or `_send_hosted`.
Nothing here can widen the order, and a request whose class exceeds a model's clearance is stopped again right here.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from router.errors import Forbidden, HeadgateError, UpstreamFailed
from router.permit import LIFETIME_S, Permit, body_hash, seal
from router.records import Ask, Attempt, Caller, Candidate, Decision
from router.upstream.answer import Answer, Log, Unusable
from router.upstream.connection import Address, Connections, Response, UpstreamError
from router.upstream.failures import Failure, refusal, unreachable
from router.upstream.fleet import Fleet


class Attempts:
    """Sends asks to endpoints. Built once, with what it needs to reach them."""

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

    async def first_answer(self, ask: Ask, caller: Caller, decision: Decision, log: Log) -> Answer:
        """Fallback: walk the order until one answers. Raises the error that tells the caller most."""
        errors: list[HeadgateError] = []
        for candidate in decision.order:
            started = time.monotonic()
            try:
                answer = await self.once(ask, caller, decision, candidate, log)
            except Failure as failed:
                ms = (time.monotonic() - started) * 1000
                log.attempts.append(_attempt(candidate, failed.outcome, failed.status, ms, failed.error.code))
                if failed.final:
                    raise failed.error from failed
                errors.append(failed.error)
                continue
            ms = (time.monotonic() - started) * 1000
            log.attempts.append(_attempt(candidate, "answered", answer.status, ms))
            log.model, log.status = candidate.model, answer.status
            return answer
        raise next((e for e in errors if e.retry_after), errors[0])

    async def once(self, ask: Ask, caller: Caller, decision: Decision, candidate: Candidate, log: Log) -> Answer:
        """One try at one endpoint, counted as in flight until the answer is closed. Raises Failure."""
        if decision.traits.data_class > candidate.model.cleared_for(self._fleet.snapshot().today):
            # The rule in eligibility has already refused this; whoever comes here met a bug, and it ends here.
            raise Failure(Forbidden("This request may not be sent there.", code="data_class_not_cleared"), "barred")
        body, dropped = self._outgoing(ask, candidate, decision.droppable)
        raw = orjson.dumps(body)
        with ExitStack() as stack:
            stack.enter_context(self._fleet.busy(candidate.endpoint.name))
            try:
                if candidate.model.place == "hosted":
                    await log.durable()
                    response = await self._send_hosted(ask, caller, decision, candidate, raw)
                else:
                    response = await self._send_local(ask, candidate, raw)
            except UpstreamError as failed:
                raise Failure(unreachable(candidate, failed), failed.kind) from failed
            stack.callback(response.close)
            if response.status != 200:
                raise await refusal(candidate, response)
            expected = "text/event-stream" if ask.stream else "application/json"
            if not response.headers.get("content-type", "").startswith(expected):
                wrong = UpstreamFailed(f"{candidate.name} answered something else than {expected}.")
                raise Failure(wrong, "wrong_type", 200)
            hide = ask.stream and not (ask.body.get("stream_options") or {}).get("include_usage")
            answer = Answer(
                candidate, response, log, stream=ask.stream, hide_usage=hide, dropped=dropped, cleanup=stack.pop_all()
            )
        try:
            await answer.begin()
        except UpstreamError as failed:
            answer.close()
            raise Failure(unreachable(candidate, failed), failed.kind) from failed
        except Unusable as failed:
            answer.close()
            raise Failure(UpstreamFailed(f"{candidate.name} gave no usable answer: {failed}"), "unusable") from failed
        except BaseException:
            answer.close()
            raise
        return answer

    async def _send_local(self, ask: Ask, candidate: Candidate, raw: bytes) -> Response:
        try:
            access = self._fleet.access(candidate.endpoint.name)
        except KeyError as gone:
            raise UpstreamError("refused", "the endpoint is gone") from gone
        headers = [("content-type", "application/json"), ("x-request-id", ask.id)]
        if key := _key(access.key_env, access.key_file):
            headers.append(("authorization", f"Bearer {key}"))
        return await self._connections.post(access.address, f"/v1/{ask.route}", headers, raw)

    async def _send_hosted(
        self, ask: Ask, caller: Caller, decision: Decision, candidate: Candidate, raw: bytes
    ) -> Response:
        assert self._door is not None
        door = self._fleet.door
        permit = Permit(
            id=secrets.token_hex(16), door=door.instance, request=ask.id, key=caller.key, team=caller.team,
            route=ask.route, provider=candidate.model.provider, model=candidate.model.name, path=ask.route,
            data_class=decision.traits.data_class.name, body=body_hash(raw), policy=self._policy,
            expires=time.time() + LIFETIME_S,
        )  # fmt: skip
        headers = [("content-type", "application/json"), ("x-headgate-permit", seal(permit, self._permit_secret))]
        return await self._connections.post(self._door, "/send", headers, raw)


def _attempt(candidate: Candidate, outcome: str, status: int | None, ms: float, detail: str = "") -> Attempt:
    return Attempt(candidate.model.name, candidate.endpoint.name, candidate.model.place, outcome, status, ms, detail)


def _key(env: str, file: str) -> str:
    """An attached server's key, read at each use so that a rotated file works."""
    if file:
        return Path(file).expanduser().read_text().strip()
    return os.environ.get(env, "") if env else ""
