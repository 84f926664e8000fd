"""Records for tests of decisions and of the ledger, built directly: small, and every field can be said."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from router.decision.decide import decide
from router.decision.question import Question
from router.decision.traits import describe
from router.records import Ask, Caller, Candidate, Decision, Endpoint, Findings, Route, Snapshot
from router.scanner.reading import read
from serving.catalogue import LANES, Approval, Catalogue, DataClass, Model, Price, RouteSettings, Site

TODAY = dt.date(2026, 6, 15)
MESSAGES = [{"role": "user", "content": "Hello"}]


def approval(until: dt.date = TODAY) -> Approval:
    return Approval(by="dpo", contract="dpa-1", until=until)


def local(name: str = "near", **changed: Any) -> Model:
    """A local model with a rate of $1 and $2 a million tokens."""
    fields: dict[str, Any] = {
        "name": name, "place": "local", "lanes": ("private", "cheap"), "context": 4096, "output": 64,
        "abilities": {"chat", "completions", "embeddings", "tools", "schema", "logprobs"}, "price": PRICE,
    }  # fmt: skip
    return Model(**fields | changed)


def hosted(name: str = "far", **changed: Any) -> Model:
    """A hosted model, cleared for public data, at $10 and $50 a million tokens."""
    fields: dict[str, Any] = {
        "name": name, "place": "hosted", "lanes": ("frontier",), "context": 100_000, "output": 1000,
        "provider": "cloud", "provider_model": f"{name}-1", "abilities": {"chat", "tools", "schema"},
        "parameters": {"max_tokens", "temperature", "tools", "tool_choice", "response_format", "stream_options"},
        "price": Price(input=10, output=50),
    }  # fmt: skip
    return Model(**fields | changed)


PRICE = Price(input=1, output=2)


def endpoint(model: Model, **changed: Any) -> Endpoint:
    address = "unix:/near.sock" if model.place == "local" else "door"
    fields: dict[str, Any] = {"name": model.name, "model": model.name, "address": address, "state": "ready"}
    return Endpoint(**fields | changed)


def caller(data_class: str = "public", **changed: Any) -> Caller:
    fields: dict[str, Any] = {
        "key": "k1", "team": "search", "data_class": DataClass[data_class], "lanes": frozenset(LANES),
    }  # fmt: skip
    return Caller(**fields | changed)


def ask(
    model: str = "auto", route: Route = "chat/completions", raised: str | None = None, size: int = 80,
    id: str = "req_1", session: str | None = None, escalate: str | None = None, declassify: str | None = None,
    **body: Any
) -> Ask:  # fmt: skip
    """An ask of 80 bytes. `body`: fields beside the model and the text."""
    text: dict[str, dict[str, Any]] = {
        "chat/completions": {"messages": MESSAGES}, "completions": {"prompt": "Hi"}, "embeddings": {"input": "Hi"},
        "responses": {"input": "Hi"}, "messages": {"messages": MESSAGES},
        "messages/count_tokens": {"messages": MESSAGES},
    }  # fmt: skip
    return Ask(
        id=id, route=route, body={"model": model, **text[route], **body}, size=size, model=model,
        stream=body.get("stream") is True, data_class=DataClass[raised] if raised else None, session=session,
        escalate=escalate, declassify=declassify,
    )  # fmt: skip


def searched(body: Mapping[str, Any], **seen: Any) -> Findings:
    """What the scanner gives for a body in which it found nothing, unless `seen` says otherwise."""
    return read(body)._replace(**{"searched": True} | seen)


def snapshot(*models: Model, endpoints: list[Endpoint] | None = None, spent: float = 0.0, **site: Any) -> Snapshot:
    """All of `models` are listed, and each is served unless `endpoints` says otherwise."""
    listed = {m.name: m for m in models}
    served = [endpoint(m) for m in models] if endpoints is None else endpoints
    return Snapshot(
        at=0.0, today=TODAY, catalogue=Catalogue(models=listed, providers={}, site=Site(**site)), models=listed,
        endpoints=tuple(served), spent=spent,
    )  # fmt: skip


def question(asked: Ask, who: Caller, seen: Snapshot) -> Question:
    """What a rule is asked of a request that was searched and in which nothing was found."""
    site = seen.catalogue.site
    route = site.routes.get(asked.route, RouteSettings())
    return Question(asked, who, describe(asked, who, searched(asked.body), site), seen, route)


def candidate(model: Model, **changed: Any) -> Candidate:
    return Candidate(model, endpoint(model, **changed))


def decided(asked: Ask, who: Caller, *models: Model, findings: Findings | None = None, **state: Any) -> Decision:
    """The decision over these models, all served and ready unless `state` says otherwise; searched, nothing found."""
    return decide(asked, who, searched(asked.body) if findings is None else findings, snapshot(*models, **state))
