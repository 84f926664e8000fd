"""The bodies of events, as data: what was asked and decided, and how it ended. Pure; never any text of a request."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from router.records import Ask, Attempt, Caller, Candidate, Decision, Met, Outcome, Prediction
from serving.catalogue import PROMISES, Model


def opened(ask: Ask, caller: Caller, decision: Decision, secret: str) -> dict[str, Any]:
    """The body of an `opened` event: who asked for what, and the decision. Never any text of the request.

    `secret`: what names of sessions are hashed with.
    """
    return {
        "route": ask.route, "asked": ask.model, "stream": ask.stream, "bytes": ask.size, "team": caller.team,
        "session": _session(ask, caller, secret), "escalate": ask.escalate, **decision_json(decision),
    }  # fmt: skip


def _session(ask: Ask, caller: Caller, secret: str) -> str | None:
    """A name for the session that groups requests of one key; the caller's own is text and may name a person.

    Made with a secret, for whoever has the ledger could try names.
    """
    if ask.session is None:
        return None
    said = f"{caller.key}\0{ask.session}".encode("utf-8", "surrogatepass")
    return hmac.new(secret.encode(), said, hashlib.sha256).hexdigest()[:16]


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as data: for the ledger, `headgate explain` and the admin API."""
    traits = decision.traits
    return {
        "data_class": traits.data_class.name,
        "why_class": traits.why_class,
        "classes": list(traits.classes),
        "marks": [mark for source in traits.sources if source.kind == "past" for mark in source.name.split()],
        "declassified": traits.declassified,
        "unsearched": traits.unsearched,
        "requires": sorted(traits.requires),
        "needs": sorted(traits.needs),
        "parameters": sorted(traits.parameters),
        "prompt_tokens_at_most": traits.prompt_tokens,
        "policy": decision.policy,
        "reason": decision.reason,
        "trigger": decision.trigger,
        "check": decision.check,
        **({"latency": decision.traits.latency} if decision.traits.latency != "interactive" else {}),
        **({"placed": decision.placed} if decision.placed else {}),
        "order": _order(decision),
        "refusals": [
            {"model": r.model, "endpoint": r.endpoint, "rule": r.rule, "reason": r.reason, "remedy": r.remedy}
            for r in decision.refusals
        ],
        "hold_usd": decision.hold,
        "dropped": list(decision.dropped),
    }


def _order(decision: Decision) -> list[dict[str, Any]]:
    """Each of the order; what is known of none is left out."""
    found, predicted, saturations = [], decision.predicted, decision.saturations
    for number, candidate in enumerate(decision.order):
        one = _candidate(candidate)
        if candidate.endpoint.cached:
            one["cached_bytes"] = candidate.endpoint.cached
        if predicted and (expected := predicted[number]) is not None:
            one["predicted"] = _rounded(expected)
        if saturations and (full := saturations[number]) is not None:
            one["saturation"] = {"value": round(full.value, 3), "why": full.why}
        found.append(one)
    return found


def _rounded(found: Prediction | Met) -> dict[str, float | None]:
    """Times and speed as they are recorded."""
    first_ms = None if found.first_token_s is None else round(found.first_token_s * 1000, 2)
    wait_ms = None if found.wait_s is None else round(found.wait_s * 1000, 2)
    speed = None if found.tokens_per_s is None else round(found.tokens_per_s, 2)
    return {"wait_ms": wait_ms, "first_token_ms": first_ms, "tokens_per_s": speed}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """One of the order with what was known of its load; what is not known is null."""
    endpoint = candidate.endpoint
    found = {
        "model": candidate.model.name, "endpoint": endpoint.name, "place": candidate.model.place,
        "full": endpoint.full, "in_flight": endpoint.in_flight, "limit": endpoint.limit or None,
        "resting": endpoint.resting, "outstanding": endpoint.outstanding,
        "running": endpoint.running, "waiting": endpoint.waiting, "kv_use": endpoint.kv_use,
        "gpus": [
            {"index": gpu.index, "utilisation": gpu.utilisation, "memory_free_gb": gpu.memory_free_gb,
             "throttle": list(gpu.throttle), "fault": gpu.fault}
            for gpu in endpoint.gpus
        ],
    }  # fmt: skip
    return found if candidate.model.place == "local" else found | {"cleared": cleared(candidate.model)}


def cleared(model: Model) -> dict[str, Any]:
    """What a hosted model may receive, by whose word, and what its provider promises; what nobody says is left out."""
    said = {name: getattr(model, name) for name in PROMISES}
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
    known = {name: value for name, value in found.items() if value is not None}
    if (approved := model.approved) is None or model.clearance is None:
        return {"clearance": "public", **known}
    regions = {"regions": [*known.get("regions", ()), *approved.regions]} if approved.regions else {}
    by = {"by": approved.by, "contract": approved.contract, "until": approved.until.isoformat()}
    return {"clearance": model.clearance.name, "approved": by, **known, **regions}


def closed(model: Model | None, outcome: Outcome, *, lane: str | None = None, price_source: str = "") -> dict[str, Any]:
    """The body of a `closed` event. Never any text of the request or the answer."""
    return {
        "outcome": outcome.outcome,
        "status": outcome.status,
        "model": model.name if model else None,
        "place": model.place if model else None,
        "lane": lane,
        "trigger": outcome.trigger,
        "check": outcome.check,
        "attempts": [_attempt(attempt) for attempt in outcome.attempts],
        "prompt_tokens": outcome.usage.prompt,
        "output_tokens": outcome.usage.output,
        "cached_tokens": outcome.usage.cached,
        "cost_usd": outcome.cost,
        "price_source": price_source,
        "unpriced": outcome.cost is None or any(a.cost is None for a in outcome.attempts),
        "estimated": outcome.estimated,
        "queued_ms": outcome.queued_ms and round(outcome.queued_ms, 2),
        "first_byte_ms": outcome.first_byte_ms and round(outcome.first_byte_ms, 2),
        "total_ms": round(outcome.total_ms, 2),
        "error": outcome.error,
        "finish": outcome.finish,
        "replaced": outcome.replaced,
        **_foreseen(outcome),
    }


def _foreseen(outcome: Outcome) -> dict[str, Any]:
    """What was predicted beside what came of it; nothing where nothing was predicted."""
    if outcome.predicted is None:
        return {}
    met = {} if outcome.met is None else {"met": _rounded(outcome.met)}
    return {"predicted": _rounded(outcome.predicted), **met}


OURS = frozenset({"answered", "check_failed", "door_refused", "door_closed", "unreachable"})
"""Outcomes whose words are ours, the last three the door's. With an error's status any other's are the upstream's, and
engines quote what they refuse."""


def _attempt(attempt: Attempt) -> dict[str, Any]:
    ours = attempt.status is None or attempt.outcome in OURS
    found = {
        "model": attempt.model, "endpoint": attempt.endpoint, "place": attempt.place, "outcome": attempt.outcome,
        "status": attempt.status, "ms": round(attempt.ms, 2), "detail": attempt.detail if ours else "",
        "cost_usd": attempt.cost,
    }  # fmt: skip
    if (usage := attempt.usage) is not None:
        found |= {"prompt_tokens": usage.prompt, "output_tokens": usage.output, "cached_tokens": usage.cached}
    return found | {"permit": attempt.permit, "sent": attempt.sent} if attempt.permit else found
