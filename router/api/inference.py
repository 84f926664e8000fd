"""The inference routes: who asks and whether it is taken, before a byte of the body; then the ask, and its answer.

It knows nothing of sockets; what to answer is the pipeline's business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from router.api.asking import asked_tokens, make_ask
from router.api.body import AT_ONCE, parse
from router.api.callers import authenticate
from router.api.exchange import Exchange
from router.api.heads import check_body
from router.api.idempotency import Claim, Idempotency, final
from router.api.shedding import Load
from router.errors import BadRequest, HeadgateError, WrongMethod
from router.ledger.keys import Keyring
from router.ledger.rates import Rates
from router.pipeline import Pipeline
from router.records import LIKELY_BYTES_PER_TOKEN, Ask, Caller, Route, Usage

ROUTES: dict[str, Route] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages/count_tokens",
}
BY_PATH: dict[bytes, Route] = {path.encode(): route for path, route in ROUTES.items()}


class Inference:
    """Answers the inference routes."""

    def __init__(
        self, pipeline: Pipeline, keyring: Keyring, rates: Rates, load: Load, max_body: int,
        aside: Executor | None = None, idempotency: Idempotency | None = None,
        clock: Callable[[], float] = time.monotonic, today: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`clock`: seconds, for limits; `today`: Unix seconds that never go back, which the ends of keys are held
        against."""
        self._pipeline, self._keyring, self._rates, self._load = pipeline, keyring, rates, load
        self._max_body, self._clock, self._today = max_body, clock, today
        self._aside = aside
        """Where large bodies are parsed; None is the loop's own threads."""
        self._idempotency = Idempotency() if idempotency is None else idempotency

    def accept(self, exchange: Exchange) -> int:
        """What is looked at before the body comes; returns the bytes it may have at most. Raises HeadgateError."""
        head = exchange.head
        exchange.route = BY_PATH[head.path]
        if head.method != "POST":
            raise WrongMethod("Use POST.")
        exchange.caller = authenticate(head.headers, self._keyring, self._today())
        try:
            check_body(head, self._max_body)
            self._load.check(self._clock(), head.length)
        except HeadgateError as error:
            self.refuse(exchange, error)
            raise
        return self._max_body

    def refuse(self, exchange: Exchange, error: HeadgateError) -> None:
        """Account for a request that ends before there is a decision; whose it is must be known."""
        if exchange.caller is not None:
            self._pipeline.refuse(exchange.id, exchange.caller, BY_PATH[exchange.head.path], error)

    async def answer(self, exchange: Exchange, body: bytes) -> None:
        """Answer, once the body is whole. Raises HeadgateError; nothing was written then, or a stream has begun."""
        assert exchange.caller is not None
        try:
            route = BY_PATH[exchange.head.path]
            parsed = parse(body) if len(body) <= AT_ONCE else await self._parse_aside(body)
            ask = make_ask(exchange.id, route, parsed, len(body), exchange.head.headers)
            claim = self._claim(exchange, exchange.caller, ask, body)
        except HeadgateError as error:
            self.refuse(exchange, error)
            raise
        if claim is None:
            await self._run(exchange, exchange.caller, ask)
        elif claim.kept is not None:
            self._admit(exchange, exchange.caller, 0)
            self._pipeline.repeat(exchange.id, exchange.caller, route, claim.kept.request_id, claim.kept.status)
            exchange.repeat(claim.kept)
        else:
            await self._run_once(exchange, exchange.caller, ask, claim)

    async def _parse_aside(self, body: bytes) -> dict[str, Any]:
        """Parse a large body while the loop turns. Raises HeadgateError."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, parse, body)

    def _claim(self, exchange: Exchange, caller: Caller, ask: Ask, body: bytes) -> Claim | None:
        """What the caller named this request, where it may be repeated. Raises HeadgateError."""
        given = [] if ask.stream else [value for name, value in exchange.head.headers if name == b"idempotency-key"]
        if not given:
            return None
        if len(given) > 1:
            raise BadRequest("Send one Idempotency-Key, not several.", param="Idempotency-Key")
        choices = f"{ask.data_class} {ask.escalate} {ask.declassify}"  # headers make them as well
        return self._idempotency.claim(caller.key, ask.route, given[0], body, self._clock(), choices)

    async def _run_once(self, exchange: Exchange, caller: Caller, ask: Ask, claim: Claim) -> None:
        """Answer, and keep what was answered for whoever repeats the request; nothing is kept where the client left."""
        try:
            await self._run(exchange, caller, ask)
            if exchange.kept is not None:
                self._idempotency.keep(claim, exchange.kept)
        except HeadgateError as error:
            exchange.fail(error)
            if exchange.kept is not None and final(error):
                self._idempotency.keep(claim, exchange.kept)
        finally:
            self._idempotency.let_go(claim)

    async def _run(self, exchange: Exchange, caller: Caller, ask: Ask) -> None:
        """Through the pipeline, within the caller's limits of speed."""
        if ask.stream:
            exchange.stream()
        if caller.requests_per_minute is None and caller.tokens_per_minute is None:
            await self._pipeline.run(ask, caller, exchange)
            return
        tokens = asked_tokens(ask)
        self._admit(exchange, caller, tokens)
        refused = False
        try:
            await self._pipeline.run(ask, caller, exchange)
        except HeadgateError:
            refused = exchange.reply is None
            raise
        finally:
            used = 0 if refused or not exchange.worked else _used(exchange, ask, tokens)
            self._rates.settle(caller, tokens, used, self._clock())

    def _admit(self, exchange: Exchange, caller: Caller, tokens: int) -> None:
        """Take it from the caller's limits. Raises TooFast."""
        try:
            self._rates.admit(caller, tokens, self._clock())
        except HeadgateError as error:
            self.refuse(exchange, error)
            raise


def _used(exchange: Exchange, ask: Ask, tokens: int) -> int:
    """The tokens a request has used; where nobody can say, as many as were taken for it.

    So it is where the caller left before there was a whole answer: a model was at work, and leaving must not be free.
    Of a stream it can be counted what has come.
    """
    reply = exchange.reply
    usage = Usage() if reply is None else reply.usage
    if ask.stream and usage.output is None:  # it says so at its end, and that was not reached
        prompt = ask.size // LIKELY_BYTES_PER_TOKEN if usage.prompt is None else usage.prompt
        return prompt + (0 if reply is None else reply.pieces)
    return tokens if usage.prompt is None and usage.output is None else (usage.prompt or 0) + (usage.output or 0)
