"""What is simulated, as the router knows it: its settings, made-up engines, a provider, and who asks. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from benchmarks.mix import Planned
from benchmarks.replica import Profile
from benchmarks.routers import LOCAL, settings_of
from router.records import Ask, Caller, Findings
from serving.catalogue import LANES, Catalogue, DataClass, Model, Price, Provider, RouterSettings, Site

BYTES_PER_TOKEN = 4
HERE, FAR = "here", "far"
"""The local model and the hosted one."""
SEARCHED = Findings(scanned=0, opaque=(), searched=True)
"""What the scanner says of each request: its class is then that of its key."""


@dataclass(frozen=True, slots=True)
class Far:
    """A hosted model of fixed speed, with US dollars a million tokens."""

    first_s: float = 0.4
    pause_s: float = 0.015
    input: float = 2.0
    output: float = 10.0

    def cost(self, prompt: int, output: int) -> float:
        return (prompt * self.input + output * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Setup:
    """A router's settings, and what stands behind it."""

    profile: Profile
    replicas: int
    known: int
    """The limit of each engine as the router knows it; 0 is unknown."""
    router: RouterSettings
    hosted: bool
    provider: Far = Far()
    teams: int = 1
    """Of private callers, who share what they wait for."""


def setup_of(router: str, profile: Profile, replicas: int, provider: Far, allowed_s: float, deadline_s: int) -> Setup:
    """One of the four routers of the overflow benchmark in front of so many made-up engines. Pure."""
    known, said = settings_of(router, profile.at_once, profile.limit, allowed_s, deadline_s, 200 * replicas)
    return Setup(profile, replicas, known, RouterSettings.model_validate(said), router != LOCAL, provider)


def ask_of(one: Planned, number: int) -> Ask:
    """The request as the router would have parsed it; of its text only the length counts."""
    body: dict[str, Any] = {
        "model": one.lane, "messages": [{"role": "user", "content": "-"}], "max_tokens": one.output, "stream": True,
    }  # fmt: skip
    return Ask(
        id=str(number), route="chat/completions", body=body, size=max(1, one.prompt) * BYTES_PER_TOKEN, model=one.lane,
        stream=True, latency="batch" if one.batch else None,
    )  # fmt: skip


@functools.cache
def caller(data_class: DataClass, number: int = 0) -> Caller:
    """A caller of one team whose data has that class."""
    name = f"{data_class.name}-{number}"
    return Caller(name, name, data_class, frozenset(LANES))


def catalogue(setup: Setup) -> Catalogue:
    """A local model, and a hosted one where one is allowed."""
    far, known = setup.provider, {"context": 1 << 20, "output": 4096}
    local = Model(name=HERE, place="local", lanes=("private", "cheap"), limit=setup.known, **known)
    hosted = Model(
        name=FAR, place="hosted", lanes=("cheap", "frontier"), provider=FAR, provider_model=FAR,
        price=Price(input=far.input, output=far.output), **known,
    )  # fmt: skip
    return Catalogue(
        models={HERE: local, FAR: hosted} if setup.hosted else {HERE: local},
        providers={FAR: Provider(enabled=setup.hosted, base_url="http://127.0.0.1:9/v1")},
        site=Site(router=setup.router),
    )
