"""The nouns that travel through the router. Frozen; who sets a field is said where it is not plain.

What is made for every request is a named tuple: a frozen dataclass takes four times as long to make.

Times are Unix seconds unless a name ends in `_ms`; money is US dollars; sizes are tokens unless a name says bytes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from router.live import BY_DEMAND as BY_DEMAND
from router.live import LIKELY_BYTES_PER_TOKEN as LIKELY_BYTES_PER_TOKEN
from router.live import MOST_PICTURED as MOST_PICTURED
from router.live import SMALL_PROMPT as SMALL_PROMPT
from router.live import Endpoint as Endpoint
from router.live import Gpu as Gpu
from router.live import Met as Met
from router.live import Pace as Pace
from router.live import Prediction as Prediction
from router.live import Saturation as Saturation
from serving.catalogue import Catalogue, DataClass, Model
from serving.catalogue import Route as Route

Latency = Literal["interactive", "batch"]
Placed = Literal["", "prefix", "session", "work", "guard"]
"""`prefix`: it has read the prompt's beginning · `session`: its conversation goes there · `work`: it has less to do ·
`guard`: the same, since what affinity wanted has much more to do · empty: there was no choice."""

MOST_ATTEMPTS = 3
"""Candidates of an order that are tried at most; so many can cost something, and so many are held for."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: one API key and what it may do. Set by `ledger/keys.py`."""

    key: str
    """The key's id; the key itself is known to nobody but its holder."""
    team: str
    data_class: DataClass
    lanes: frozenset[str]
    substitute: bool = False
    """Whether a named model may be answered by another one."""
    scopes: frozenset[str] = frozenset()
    """What it may do besides asking: `escalate`, `declassify`."""
    budget_usd: float | None = None
    """US dollars this key may spend in a calendar month; None is no limit."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and output tokens together; None is no limit."""
    media_class: DataClass = DataClass.private
    """The class of parts that nobody can read: images, audio, files, token ids."""
    requires: frozenset[str] = frozenset()
    """What a hosted model must promise for this caller: `region:eu`, `tag:gdpr`, `no-training`, `no-retention`."""
    latency: Latency = "interactive"
    """How its requests wait where they do not say so themselves."""
    first: str = ""
    """The id of the key in whose place this one was made, and of that one in turn; "" where it is in nobody's."""

    @property
    def account(self) -> str:
        """The id under which counts and is remembered what outlives a rotation."""
        return self.first or self.key


class Ask(NamedTuple):
    """One parsed request. Set by `api/asking.py`."""

    id: str
    route: Route
    body: Mapping[str, Any]
    """The request body as parsed, without `headgate`."""
    size: int
    """Bytes of the body as received."""
    model: str
    """What the caller named: a model, a lane or `auto`."""
    stream: bool
    data_class: DataClass | None = None
    """A class the caller raised it to, by header or body; it lowers only with `declassify`, for a key that may."""
    session: str | None = None
    escalate: str | None = None
    """The caller's reason for asking for a stronger model: a short label, never text."""
    declassify: str | None = None
    """The caller's reason for lowering the class, where it asks for that: a short label, never text."""
    latency: Latency | None = None
    """How it may wait, where the request says so; else its key does."""


class Found(NamedTuple):
    """One kind of thing that detectors found in one place. The text itself is never kept. Set by `scanner/`."""

    kind: str
    """The kind's name, e.g. `card`; README.md lists them."""
    effect: DataClass
    """The class it gives the request."""
    count: int = 1  # type: ignore[assignment]  # the count of findings, not a tuple's own
    where: str = ""
    """A path of the API's own words, e.g. `messages[2].content`; never a name the caller made up."""


class Past(NamedTuple):
    """That a text, or the session, was classed before. Set by `ledger/history.py`."""

    data_class: DataClass
    why: str
    """One plain sentence, without any text of the request."""
    id: str
    """The entry's id: `headgate privacy why ID` shows it. Several of which the same is said, with spaces between."""


class Findings(NamedTuple):
    """What the scanner saw. Set by `scanner/` and `gate.py`."""

    scanned: int
    """Bytes of text read."""
    opaque: tuple[str, ...]
    """Parts that cannot be read (images, audio, files, token ids), by their path in the body."""
    fetches: bool = False
    """Whether media are named by an address that whoever answers would fetch."""
    searched: bool = False
    """Whether detectors and history were asked. What was not searched never leaves."""
    found: tuple[Found, ...] = ()
    past: tuple[Past, ...] = ()
    """What the session and the texts of it were before."""
    unread: str = ""
    """Why not every byte was searched: `budget`, `timeout`, `error`, `scanner`; empty where every byte was."""


class Source(NamedTuple):
    """Something that gives a request a class above public. Set by `decision/sensitivity.py`."""

    kind: str
    """`key`, `team`, `route`, `request` (a label), `past`, `found`, `media` (a part nobody can read), `unread`."""
    data_class: DataClass
    why: str
    """One plain sentence that quotes nothing of the request."""
    name: str = ""
    """What would have to change: the kind of finding, or the entry of the history."""


class Traits(NamedTuple):
    """What the ask needs. Set by `decision/traits.py`."""

    data_class: DataClass
    why_class: str
    """Where the class came from, in words."""
    needs: frozenset[str]
    """Abilities a model must have."""
    parameters: frozenset[str]
    """Body fields that change the answer and must be honoured."""
    prompt_tokens: int
    """Upper bound: a token is at least one byte of text."""
    output_tokens: int | None
    """The caller's own limit, for all choices together; None leaves it to the model."""
    lane: str | None
    """The lane the caller chose, if any."""
    named: str | None
    """The model the caller named, if any."""
    classes: tuple[str, ...] = ()
    """Everything that gave the request a class above public, one plain sentence each, the highest first. What a caller
    who may has lowered stands there too."""
    unsearched: str = ""
    """Why it was not searched whole, and so must stay; empty where every byte was searched."""
    declassified: str = ""
    """The reason for which a caller who may has lowered the class; empty where nobody has."""
    requires: frozenset[str] = frozenset()
    """What a hosted model must promise: those of key, team and route together."""
    sources: tuple[Source, ...] = ()
    """`classes` as data."""
    latency: Latency = "interactive"
    """`batch` waits for local capacity where there is any for it, behind what is interactive."""


class Chain(NamedTuple):
    """How a prompt begins. Set by `decision/prefix.py`; it stays in this process's memory."""

    hashes: tuple[int, ...]
    """Of ever longer beginnings, each a keyed hash of all up to there."""
    sizes: tuple[int, ...]
    """The bytes of text up to there."""
    asked: int
    """Bytes of the whole request."""


class Snapshot(NamedTuple):
    """All live state, frozen once per request."""

    at: float
    today: dt.date
    catalogue: Catalogue
    models: Mapping[str, Model]
    """The catalogue's models and those found on attached servers."""
    endpoints: tuple[Endpoint, ...]
    spent: float
    """Settled and held this month by the caller's key; 0 where it has no budget."""
    draw: float = 0.0
    """A random number in [0, 1), drawn once per request, for the choice among replicas."""
    chain: Chain | None = None
    """How this request's prompt begins; None where nobody asked, since nothing depends on it."""


class Candidate(NamedTuple):
    """A model at an endpoint, with its live state."""

    model: Model
    endpoint: Endpoint

    @property
    def name(self) -> str:
        return self.model.name if self.endpoint.name == self.model.name else f"{self.model.name}@{self.endpoint.name}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A candidate ruled out."""

    model: str
    endpoint: str
    rule: str
    """The rule's name; also the error code where nothing else is left."""
    reason: str
    """One sentence for a person."""
    remedy: str = ""
    """The line that would change it."""
    param: str | None = None
    passing: bool = False
    """True where waiting can help."""


class Decision(NamedTuple):
    """What was decided, and why. Set by `decision/`."""

    traits: Traits
    order: tuple[Candidate, ...]
    """First those that have room, then those that are full; what is full is waited for."""
    refusals: tuple[Refusal, ...]
    policy: str
    reason: str
    """Why the first of the order is first, in one line; sent as `x-headgate-reason`."""
    hold: float | None
    """US dollars set aside: the most its attempts can cost together. None: no price in the order is known."""
    worst: tuple[float | None, ...] = ()
    """US dollars each of the order can cost at most; None is unpriced."""
    dropped: tuple[str, ...] = ()
    """Body fields the first of the order does not take and that are left out."""
    droppable: frozenset[str] = frozenset()
    """What the route's `droppable` says may be left out."""
    trigger: str = ""
    """Why another model than the first choice comes first: `caller:LABEL`, `rule:NAME`, `context`, `overflow`."""
    check: str = ""
    """What a whole answer is held against: `json_schema`, or nothing."""
    predicted: tuple[Prediction | None, ...] = ()
    """What each of the order was expected to do; None where nothing is known of it, as of hosted models."""
    saturations: tuple[Saturation | None, ...] = ()
    """How full each of the order was; () where that decided nothing, since none but local models may answer."""
    spilling: tuple[tuple[str, bool], ...] = ()
    """Endpoints that have become saturated by this decision's look, or are no longer."""
    chain: Chain | None = None
    """That of the snapshot."""
    placed: Placed = ""
    """By what the first of the order was chosen among its replicas."""

    @property
    def lane(self) -> str:
        """The lane that was asked for; `named` where the caller named a model, else `auto`."""
        return self.traits.lane or ("named" if self.traits.named else "auto")


class Usage(NamedTuple):
    """Token counts of one answer; None is unknown."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None


class Attempt(NamedTuple):
    """One try at one endpoint."""

    model: str
    endpoint: str
    place: str
    outcome: str
    """`answered`, `check_failed` (answered, and another model was asked instead), `bad_request` (the model's server
    refused the request itself), `client_left`, `stopped` (the router was, before it ended), or what went wrong."""
    status: int | None
    ms: float
    detail: str = ""
    sent: bool = False
    """Whether it was handed over and not refused, so that a model may have worked on it. A provider's is then charged
    at its worst cost where its usage is unknown, a local model's at its prompt where the caller left."""
    cost: float | None = 0.0
    """US dollars; None is unpriced. Set by `ledger/entries.py` when the request has ended."""
    usage: Usage | None = None
    """That of an answer which was set aside; the outcome's usage is that of the answer that was passed on."""
    permit: str = ""
    """The id of the permit under which it was handed to the door; empty for a local one."""


class Outcome(NamedTuple):
    """How the request ended."""

    outcome: str
    """`answered`, `refused` (here), `bad_request` (by the model's server, for the request itself), `failed`, `cut`,
    `client_left`, `stopped`, `lost`; in the queue `queue_full`, `pushed_out`, `hopeless`, `deadline_passed`,
    `left_queue`."""
    status: int
    attempts: tuple[Attempt, ...] = ()
    usage: Usage = Usage()
    cost: float | None = None
    """US dollars, the sum of what is known over the attempts; None is unpriced."""
    estimated: bool = False
    """Whether usage or cost was estimated since the upstream did not say."""
    first_byte_ms: float | None = None
    queued_ms: float | None = None
    """How long it waited for room; None where it did not have to."""
    trigger: str = ""
    """That of the decision, or `overflow` or `cascade` where only the attempts showed it."""
    check: str = ""
    """`passed` or `failed` where the answer was held against something."""
    total_ms: float = 0.0
    error: str = ""
    finish: str = ""
    """Why a stream ended, in the upstream's word; `missing` where it ended as it should and gave no reason."""
    replaced: bool = False
    """Whether a stream had bytes that are no UTF-8, and U+FFFD was passed on in their place."""
    predicted: Prediction | None = None
    """What the endpoint that answered was expected to do."""
    met: Met | None = None
    """What it did."""
