"""What is known of the load of endpoints and GPUs, and what is made of it for a request.

Frozen, and part of the nouns of `records.py`, which gives all of them. What is not known is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LIKELY_BYTES_PER_TOKEN = 4
"""About what common text has in common tokenizers, where a model's own ratio is not known or not asked for."""
MOST_PICTURED = 4096.0
"""Tokens that a request with pictures is taken to have at most: its bytes say nothing of them."""
SMALL_PROMPT = 512.0
"""Tokens of a prompt up to which a request's own overhead hides how fast they are read."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that an endpoint runs on, as serving last read it. None is unknown. Set by `upstream/fleet.py`."""

    uuid: str
    index: int
    memory_free_gb: float | None = None
    """GB of 10^9 bytes."""
    utilisation: float | None = None
    """Share of time in which it worked, 0 to 1."""
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()
    """Why its clocks are held down now."""
    fault: str = ""
    """Why it must not be used; empty where nothing is wrong."""
    name: str = ""
    memory_total_gb: float | None = None
    power_w: float | None = None
    memory_used_gb: float | None = None
    memory_temperature_c: float | None = None
    energy_j: float | None = None
    """Joules it has used since serving first read it."""
    ecc: int | None = None
    """Errors in its memory that could not be corrected, since its driver was loaded."""
    xid: int | None = None
    """The last fatal error that its driver reported; None is none."""
    recovery: str | None = None
    """What its driver says must be done before it is whole again; `none` where it is."""
    warnings: tuple[str, ...] = ()
    """What should be seen to, though it may be used."""
    others_gb: float | None = None
    """GB that processes hold there which are not serving's."""


class Pace(NamedTuple):
    """What this router has learned of an endpoint from its own requests there. None is not known yet. Set by
    `upstream/pace.py`."""

    prefill: float | None = None
    """Prompt tokens it reads in a second, of those that it does not have in its prefix cache."""
    decode: float | None = None
    """Tokens a second of one more request beside those that run now."""
    first_s: float | None = None
    """Seconds to the first token of a tiny prompt where nothing else is asked."""
    drain: float | None = None
    """Requests that end there in a second while it is full."""
    ratio: float | None = None
    """Bytes of a request a token of its prompt."""
    prompt: float | None = None
    """Prompt tokens of a request on average, without those it has in its prefix cache."""
    at_once: int | None = None
    """Requests it works on at the same time, where it lets others wait and it is known how fast they end."""


BY_DEMAND = frozenset({"asleep", "waking"})
"""States of a local model that runs by demand and is not here: a request that waits for it brings it."""


class Endpoint(NamedTuple):
    """An address that serves a model, with its live state. Set by `upstream/fleet.py`."""

    name: str
    model: str
    address: str
    """`unix:/path`, `http://host:port` or `https://host:port`; for hosted models `door`."""
    state: str
    """`ready`, or what it is doing instead."""
    detail: str = ""
    in_flight: int = 0
    """Requests this router has there now."""
    limit: int = 0
    """Requests it takes at once; 0 is unknown."""
    busy: bool = False
    """Whether it has just said itself that it takes no more."""
    outstanding: int = 0
    """Prompt tokens, as this router estimates them, of its requests there that have not been answered to the end."""
    resting: str = ""
    """Why it is left alone for now: it failed in a row, or it asked for a pause. It comes last in every order."""
    failing: bool = False
    """Whether it failed in the last moments: then it comes behind the other endpoints of its model."""
    share: float = 1.0
    """The share of what its replicas get that it may have; less than 1 for a while after a rest, and never 0."""
    running: int | None = None
    """Requests the engine itself says it runs; None is unknown."""
    waiting: int | None = None
    kv_use: float | None = None
    """Share of its KV cache in use, 0 to 1."""
    asleep: bool | None = None
    attached: bool = False
    served: str = ""
    """What the server itself calls the model; empty is the catalogue's name."""
    context: int = 0
    """Tokens the running engine takes, where it says so; 0 is unknown."""
    gpus: tuple[Gpu, ...] = ()
    restarts: int | None = None
    """Starts of a local engine after its first; None for what is not started here."""
    prompt_tokens: int | None = None
    """All that the engine has read since it started, by its own count; `output_tokens` all it has made."""
    output_tokens: int | None = None
    pace: Pace | None = None
    """What was learned of it; None is nothing yet."""
    unstarted: int = 0
    """Prompt tokens, as expected, of this router's requests there whose first token has not come."""
    others: int = 0
    """Requests there that are not this router's, by the engine's own count; 0 where it is unknown or old."""
    cached: int = 0
    """Bytes at the beginning of this request that it has lately read; 0 is unknown."""
    spilling: bool = False
    """Whether it was saturated when it was last looked at, so that it takes back what may leave only well below."""
    stale: bool = False
    """Whether the engine's readings, which it once gave, are too old to be believed."""
    places: int = 0
    """Requests it takes at once in all, of which `limit` is this worker's share; 0 is unknown."""
    prefix_queries: int | None = None
    """Prompt tokens that the engine looked up in its prefix cache since it started; `prefix_hits` those it found."""
    prefix_hits: int | None = None
    preemptions: int | None = None
    """Requests it has interrupted for want of KV cache since it started."""
    preempted_s: float | None = None
    """Seconds since it was last seen to do that; None is never, or unknown."""
    rejections: int | None = None
    """Requests that its own admission limit has turned away since it started."""
    kv_tokens: int | None = None
    """Tokens its KV cache has room for."""
    gpu_memory_gb: float | None = None
    """GB that its processes hold on all its GPUs."""
    ready_in_s: float | None = None
    """Seconds until one that sleeps is likely to answer whoever waits for it; None is unknown."""
    swaps: tuple[tuple[str, int], ...] = ()
    """How often one that runs by demand came and went: `start`, `stop`, `sleep`, `wake`."""

    @property
    def wakes(self) -> bool:
        """Whether it sleeps and comes for a request that waits. Nothing is sent there before it is `ready`."""
        return self.state in BY_DEMAND

    @property
    def full(self) -> bool:
        """Whether another request would have to wait: all its places are taken, it has said so itself, or it sleeps."""
        return self.busy or 0 < self.limit <= self.in_flight or self.state in BY_DEMAND

    def now(
        self, in_flight: int, limit: int, busy: bool, outstanding: int, resting: str, failing: bool, share: float,
        pace: Pace | None = None, unstarted: int = 0, others: int = 0, spilling: bool = False, cached: int = 0,
    ) -> Endpoint:  # fmt: skip
        """The endpoint with what the router itself knows of it now. Field by field: `_replace` takes three times as
        long, for every endpoint at every request."""
        return Endpoint(
            self.name, self.model, self.address, self.state, self.detail, in_flight, limit, busy, outstanding, resting,
            failing, share, self.running, self.waiting, self.kv_use, self.asleep, self.attached, self.served,
            self.context, self.gpus, self.restarts, self.prompt_tokens, self.output_tokens, pace, unstarted, others,
            cached, spilling, self.stale, self.places, self.prefix_queries, self.prefix_hits, self.preemptions,
            self.preempted_s, self.rejections, self.kv_tokens, self.gpu_memory_gb, self.ready_in_s, self.swaps,
        )  # fmt: skip


class Prediction(NamedTuple):
    """What a request would meet at an endpoint now. None is unknown. Set by `decision/prediction.py`."""

    wait_s: float | None = None
    """Seconds before its first prompt token is read."""
    first_token_s: float | None = None
    """Seconds before its first token comes, that wait included."""
    tokens_per_s: float | None = None
    """Tokens a second after that."""


class Saturation(NamedTuple):
    """How full an endpoint is. Set by `decision/saturation.py`."""

    value: float
    """1 is full; then what may leave overflows."""
    why: str
    """The reading that counts, with its numbers."""


class Met(NamedTuple):
    """What a request met at the endpoint that answered it. None is unknown. Set by `upstream/pace.py`."""

    endpoint: str
    wait_s: float | None = None
    """Seconds there before its first prompt token was read, as those before it show."""
    first_token_s: float | None = None
    """Seconds from sending it to its first token."""
    tokens_per_s: float | None = None
