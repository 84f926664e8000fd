"""The inference routes: who asks and whether it is taken, before a byte of the body; then the ask, and its answer.

It knows nothing of sockets; what to answer is the pipeline's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from router.api.asking import asked_tokens, make_ask
from router.api.body import parse
from router.api.callers import authenticate
from router.api.exchange import Exchange
from router.api.heads import check_body
from router.api.idempotency import Claim, Idempotency, final
from router.api.shedding import Load
from router.errors import HeadgateError, WrongMethod
from router.ledger.keys import Keyring
from router.ledger.rates import Rates
from router.pipeline import Pipeline
from router.records import Ask, Caller, Route

ROUTES: dict[str, Route] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
BY_PATH: dict[bytes, Route] = {path.encode(): route for path, route in ROUTES.items()}


class Inference:
    """Answers the inference routes."""

    def __init__(
        self, pipeline: Pipeline, keyring: Keyring, rates: Rates, load: Load, max_body: int,
        idempotency: Idempotency | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._pipeline, self._keyring, self._rates, self._load = pipeline, keyring, rates, load
        self._max_body, self._clock = max_body, clock
        self._idempotency = Idempotency() if idempotency is None else idempotency

    def accept(self, exchange: Exchange) -> int:
        """What is looked at before the body comes; returns the bytes it may have at most. Raises HeadgateError."""
        head = exchange.head
        exchange.route = BY_PATH[head.path]
        if head.method != "POST":
            raise WrongMethod("Use POST.")
        exchange.caller = authenticate(head.headers, self._keyring, time.time())
        try:
            self._load.check(self._clock())
            check_body(head, self._max_body)
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
            ask = make_ask(exchange.id, route, parse(body), len(body), exchange.head.headers)
            claim = self._claim(exchange, exchange.caller, ask, body)
        except HeadgateError as error:
            self.refuse(exchange, error)
            raise
        if claim is None:
            await self._run(exchange, exchange.caller, ask)
        elif claim.kept is not None:
            exchange.repeat(claim.kept)
        else:
            await self._run_once(exchange, exchange.caller, ask, claim)

    def _claim(self, exchange: Exchange, caller: Caller, ask: Ask, body: bytes) -> Claim | None:
        """What the caller named this request, where it may be repeated. Raises HeadgateError."""
        given = None if ask.stream else exchange.head.value(b"idempotency-key")
        if given is None:
            return None
        return self._idempotency.claim(caller.key, ask.route, given, body, self._clock())

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
        tokens = asked_tokens(ask.size, ask.body)
        try:
            self._rates.admit(caller, tokens, self._clock())
        except HeadgateError as error:
            self.refuse(exchange, error)
            raise
        refused = False
        try:
            await self._pipeline.run(ask, caller, exchange)
        except HeadgateError:
            refused = exchange.reply is None
            raise
        finally:
            self._rates.settle(caller, tokens, 0 if refused else _used(exchange, tokens), self._clock())


def _used(exchange: Exchange, tokens: int) -> int:
    """The tokens a request has used; where nobody has said, as many as were taken for it.

    So it is where the caller left before there was an answer: a model was at work, and leaving must not be free.
    """
    if exchange.reply is None:
        return tokens
    usage = exchange.reply.usage
    return tokens if usage.prompt is None and usage.output is None else (usage.prompt or 0) + (usage.output or 0)
