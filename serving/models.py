"""The entries of the catalogue: a model, its weights and hardware, its price and clearance; a provider."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from serving.terms import RESERVED_NAMES, Ability, Class, DataClass, Label, Lane, Name, Place, Record

PROMISES = ("regions", "retention_days", "trains_on_data", "compliance")
"""What a provider promises of the data it is sent. What is not said is unknown, and what is unknown is not promised."""


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
    memory_gb: float = Field(gt=0, description="over all its GPUs where no shape is known, or in main memory")
    weights_gb: float | None = Field(None, gt=0, description="its safetensors in GB; else counted by the shape")
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
    clearance: Class | None = Field(None, description="hosted: highest data class it may receive; a local one: secret")
    approved: Approval | None = None
    same_as: Name | None = Field(None, description="the model whose weights these are, served elsewhere")
    # local
    repo: str = Field("", description="id on the model hub, or a folder's full path; demo is built here")
    revision: str = ""
    size_gb: float | None = Field(None, gt=0, description="bytes to fetch for the smallest variant, in GB")
    variants: tuple[Variant, ...] = ()
    args: dict[str, Any] = Field(default_factory=dict, description="vLLM flags, without the leading dashes")
    environment: dict[str, str] = Field(default_factory=dict, description="environment of the engine")
    limit: int = Field(0, ge=0, description="requests in flight at most; 0 leaves it to placement")
    shape: dict[str, Any] = Field(default_factory=dict, description="words of its config.json, to plan before a fetch")
    remote_code: bool = Field(False, description="the weights bring Python code that must run (trust_remote_code)")
    vetted: Vetted | None = None
    # hosted
    provider: str = ""
    provider_model: str = Field("", description="the provider's own name for it")
    regions: tuple[Label, ...] | None = Field(None, description="every region its data may be in; else the provider's")
    retention_days: float | None = Field(None, ge=0, description="days the provider keeps requests; else its own")
    trains_on_data: bool | None = Field(None, description="whether requests may train models; else the provider's")
    compliance: tuple[Label, ...] | None = Field(None, description="tags such as gdpr, hipaa; else the provider's")

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
        if self.place == "local" and self.clearance not in (None, DataClass.secret):
            # What stays is not searched before its answer, so nothing would hold a lower one against what is in it.
            raise ValueError(
                "a local model may receive everything: take `clearance` out; one that may not is entered as hosted, of "
                "a provider of yours with `private_ranges`, for then each request to it is searched"
            )
        if self.clearance is not None and self.place == "hosted" and self.clearance > DataClass.public:
            if self.clearance is DataClass.secret:
                raise ValueError("secret data never leaves; set `clearance` to private at most")
            if self.approved is None:
                raise ValueError("a clearance above public needs `approved: {by, contract, regions, until}`")
        return self

    def source(self, variant: Variant | None) -> tuple[str, str]:
        """The repo and the revision of a variant's weights. The model's revision is a commit of its own repo alone."""
        if variant is None or not variant.repo:
            return self.repo, (variant.revision if variant is not None else "") or self.revision
        return variant.repo, variant.revision

    def cleared_for(self, today: dt.date) -> DataClass:
        """The highest data class this model may receive on that day.

        Local models may receive everything; hosted ones public data, unless an approval that has not run out says more.
        """
        if self.place == "local":
            return DataClass.secret if self.clearance is None else self.clearance
        if self.clearance is None or self.approved is None or today > self.approved.until:
            return DataClass.public
        return self.clearance

    def kept_in(self, today: dt.date) -> frozenset[str]:
        """Every region the data of a hosted model may be in, by its entry and by its approval; empty is unknown."""
        agreed = self.approved.regions if self.approved is not None and today <= self.approved.until else ()
        return frozenset({*(self.regions or ()), *(region.lower() for region in agreed)})

    def unmet(self, requires: Iterable[str], today: dt.date) -> list[str]:
        """What of `requires` a hosted model does not promise on that day; a word nobody knows is promised by none.

        A region is kept where every region the data may be in is that one.
        """
        return [wanted for wanted in sorted(requires) if not self._promises(wanted, today)]

    def _promises(self, wanted: str, today: dt.date) -> bool:
        kind, _, name = wanted.partition(":")
        if kind == "region":
            return self.kept_in(today) == {name}
        if kind == "tag":
            return name in (self.compliance or ())
        if wanted == "no-training":
            return self.trains_on_data is False
        return wanted == "no-retention" and self.retention_days == 0


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
    regions: tuple[Label, ...] | None = Field(None, description="every region its data may be in; unknown if left out")
    retention_days: float | None = Field(None, ge=0, description="days it keeps requests; unknown if left out")
    trains_on_data: bool | None = Field(None, description="whether requests may train models; unknown if left out")
    compliance: tuple[Label, ...] | None = Field(None, description="tags such as gdpr, hipaa, soc2, or your own")
    docs: str = ""
