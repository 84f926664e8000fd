"""What each endpoint has lately read of prompts, as this router knows it: a memory of chains, and how far it is true.

An estimate, for the choice among replicas and for predictions. Engines forget in their own order and for their own
reasons, so what they say of their caches corrects it: with each answer, or where they do not, by their readings.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from router.records import LIKELY_BYTES_PER_TOKEN, Chain, Endpoint, Usage

MOST_BYTES = 16
"""Bytes a token beyond which a request is no text: those of pictures say nothing of tokens, and nothing is learned."""
UNKNOWN_TOKENS = 100_000
"""Tokens that an engine is taken to keep which does not say how many: a small one."""
MOST = 32_768
"""Beginnings that are kept of one endpoint: about 5 MB of memory."""
STEP = 0.2
"""How far one answer, or one reading, moves what was learned."""
ENOUGH = 2048
"""Tokens that were believed to be there, before readings can say that they were not."""
LEAST_TRUST = 0.01
"""So that it can still be learned that it is better again."""


@dataclass(slots=True)
class Memory:
    """Of one endpoint."""

    known: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """By the hash of a beginning, the bytes it has beyond the one before it; what was not used for longest first."""
    size: int = 0
    """Bytes of all of them: a beginning that several prompts share counts once, as in an engine."""
    trust: float = 1.0
    """The share of what is believed to be there that is."""
    bytes_per_token: float = LIKELY_BYTES_PER_TOKEN
    tokens: int = UNKNOWN_TOKENS
    """How many the engine keeps."""
    restarts: int | None = None
    confirms: bool = False
    """Whether its answers say how much of the prompt was there."""
    hits: int | None = None
    """Tokens that it has found there, by its own count, when it was last read."""
    found: float = 0.0
    believed: float = 0.0
    """Tokens of late, by its readings and by this memory; older ones count ever less."""


class Prefixes:
    """The memories of all endpoints. Built once; used in the event loop alone."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        """What the chains of this process are made with."""
        self._of: dict[str, Memory] = {}

    def cached(self, endpoint: str, chain: Chain) -> int:
        """Bytes of the request that the endpoint need not read again; 0 where nothing is known."""
        memory = self._of.get(endpoint)
        if memory is None or chain.hashes[0] not in memory.known:  # what is longer is forgotten first
            return 0
        known = memory.known
        for mark, size in zip(reversed(chain.hashes), reversed(chain.sizes), strict=True):
            if mark in known:
                return int(memory.trust * size * chain.asked / chain.sizes[-1])
        return 0

    def sent(self, endpoint: str, chain: Chain | None) -> None:
        """The endpoint has read this prompt: its first token has come. None: nobody looked how it begins."""
        memory = self._of.get(endpoint)
        if chain is None or memory is None:  # a hosted one, or one that is gone
            return
        known = memory.known
        # The longest first, so that of one prompt the end is forgotten before its beginning, as engines do.
        for number in range(len(chain.hashes) - 1, -1, -1):
            mark = chain.hashes[number]
            if mark not in known:
                known[mark] = size = chain.sizes[number] - (chain.sizes[number - 1] if number else 0)
                memory.size += size
            else:
                known.move_to_end(mark)
        _bound(memory)

    def ended(self, endpoint: str, chain: Chain | None, cached: int, usage: Usage) -> None:
        """An answer to this prompt has ended. `cached`: the bytes of its request that were believed to be there."""
        memory = self._of.get(endpoint)
        if chain is None or memory is None or not usage.prompt or chain.asked > MOST_BYTES * usage.prompt:
            return
        asked = chain.asked
        memory.bytes_per_token += STEP * (asked / usage.prompt - memory.bytes_per_token)
        believed = usage.prompt * cached / asked
        if usage.cached is not None:
            memory.confirms = True
            if believed >= 1:
                _learn(memory, usage.cached / believed)
        else:
            memory.believed += believed

    def heard(self, endpoints: Iterable[Endpoint]) -> None:
        """Take up what serving says of the engines. One that is not ready, or was started again, remembers nothing."""
        before, self._of = self._of, {}
        for endpoint in endpoints:
            memory = before.get(endpoint.name) or Memory()
            if _lost(memory, endpoint):
                memory.known.clear()
                memory.size, memory.hits, memory.found, memory.believed = 0, None, 0.0, 0.0
            memory.restarts, memory.tokens = endpoint.restarts, endpoint.kv_tokens or memory.tokens
            _read(memory, endpoint)
            self._of[endpoint.name] = memory


def _bound(memory: Memory) -> None:
    """Forget what was not used for longest, as far as the engine cannot have kept it."""
    most, known = memory.tokens * memory.bytes_per_token, memory.known
    while memory.size > most or len(known) > MOST:
        memory.size -= known.popitem(last=False)[1]


def _lost(memory: Memory, endpoint: Endpoint) -> bool:
    """Whether its cache is empty now: it is not up, it sleeps, or it was started again, by its counts."""
    if endpoint.state != "ready" or endpoint.asleep:
        return True
    again = memory.restarts is not None and endpoint.restarts != memory.restarts
    return again or (endpoint.prefix_hits is not None and endpoint.prefix_hits < (memory.hits or 0))


def _read(memory: Memory, endpoint: Endpoint) -> None:
    """Hold what was believed against what the engine has counted since it was last read.

    That includes the requests of others, so it shows only that too much was believed. Answers that say it are better.
    """
    hits, before = endpoint.prefix_hits, memory.hits
    memory.hits = before if hits is None else hits
    if hits is None or before is None or memory.confirms:
        return
    memory.found += hits - before
    if memory.believed < ENOUGH:
        return
    _learn(memory, memory.found / memory.believed)
    memory.found *= 1 - STEP
    memory.believed *= 1 - STEP


def _learn(memory: Memory, true: float) -> None:
    """`true`: the share of what was believed that was there; more than 1 where it was more."""
    memory.trust += STEP * (min(1.0, memory.trust * true) - memory.trust)
    memory.trust = max(LEAST_TRUST, memory.trust)
