"""Which requests are to go to a stronger model first: the caller asks, or a rule of headgate.yaml matches. Pure.

It only says what is wanted. Who may answer is the rules' business, so nothing here can send data anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from router.decision.dialects import turns
from router.errors import Forbidden
from router.records import LIKELY_BYTES_PER_TOKEN, Ask, Caller, Candidate, Route, Traits
from serving.catalogue import LANES, EscalationRule

SCOPE = "escalate"
"""What a key must be allowed for its caller's own wish to count."""
MOST_SEARCHED = 200_000
"""Characters in which a rule's words are looked for, the newest message first: a rule is a preference, not a guard."""


@dataclass(frozen=True, slots=True)
class Wish:
    """That a request should go to `to` (a lane or a model) first, and what asked for it."""

    trigger: str
    """`caller:LABEL`, `rule:NAME` or `context`."""
    to: str

    def meets(self, candidate: Candidate) -> bool:
        """Whether the candidate is what is wanted."""
        return self.to in candidate.model.lanes if self.to in LANES else candidate.model.name == self.to


CONTEXT = Wish("context", "frontier")
"""What is wanted where the prompt fits no local model."""


def wished(ask: Ask, caller: Caller, traits: Traits, rules: Sequence[EscalationRule]) -> Wish | None:
    """What is wanted for this ask, if anything; the caller's own wish comes before the rules.

    A named model is that model, and the lane `private` is left for nothing. Raises Forbidden where the caller asks
    and its key may not.
    """
    if ask.escalate is not None and SCOPE not in caller.scopes:
        raise Forbidden(
            f"Key {caller.key} may not ask for a stronger model. To change it: headgate keys set {caller.key} "
            "--escalate; or leave x-headgate-escalate out.", code="escalation_not_allowed",
        )  # fmt: skip
    if traits.named is not None or traits.lane in ("private", "frontier"):
        return None
    if ask.escalate is not None:
        return Wish(f"caller:{ask.escalate}", "frontier")
    text = said(ask.body, ask.route) if any(r.when.words for r in rules) else ""
    rule = next((r for r in rules if matches(r, ask, caller, traits, text)), None)
    return None if rule is None else Wish(f"rule:{rule.name}", rule.to)


def matches(rule: EscalationRule, ask: Ask, caller: Caller, traits: Traits, text: str) -> bool:
    """Whether every condition that the rule gives holds. `text`: what the user says, by `said`."""
    when = rule.when
    if when.key not in (None, caller.key) or when.team not in (None, caller.team):
        return False
    if when.route not in (None, ask.route):
        return False
    if when.tools not in (None, "tools" in traits.needs) or when.needs_schema not in (None, "schema" in traits.needs):
        return False
    likely = 0 if "vision" in traits.needs else ask.size / LIKELY_BYTES_PER_TOKEN  # of pictures bytes say nothing
    if when.tokens_over is not None and likely <= when.tokens_over:
        return False
    return not when.words or _pattern(when.words).search(text) is not None


@lru_cache(maxsize=1024)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words, whole, in text without capitals."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word.casefold()) for word in words)})(?!\w)")


def said(body: Mapping[str, Any], route: Route = "chat/completions") -> str:
    """What the user says, without capitals: the text of user messages, the newest first, or the prompt.

    Not the system's words, which never change. At most MOST_SEARCHED characters, so that a rule costs milliseconds.
    """
    left, parts = MOST_SEARCHED, []
    for text in _said(body, route):
        parts.append(text[:left].casefold())
        if (left := left - len(text)) <= 0:
            break
    return "\n".join(parts)


def _said(body: Mapping[str, Any], route: Route) -> Iterator[str]:
    for turn in reversed(turns(route, body)):
        if isinstance(turn, Mapping) and turn.get("role") == "user":
            yield from _texts(turn.get("content"))
    if route == "responses":
        yield from _texts(given) if isinstance(given := body.get("input"), str) else ()
    else:
        yield from _texts(body.get("prompt"))


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, list):
        for part in given:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
