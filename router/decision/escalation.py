"""Which requests are to go to a stronger model first: the caller asks, or a rule of headgate.yaml matches. Pure.

It only says what is wanted. Who may answer is the rules' business, so nothing here can send data anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from router.errors import Forbidden
from router.records import Ask, Caller, Candidate, Traits
from serving.catalogue import LANES, EscalationRule

SCOPE = "escalate"
"""What a key must be allowed for its caller's own wish to count."""
LIKELY_BYTES_PER_TOKEN = 4
"""About what English text has in common tokenizers; a rule over tokens means the likely size, not the upper bound."""


@dataclass(frozen=True, slots=True)
class Wish:
    """That a request should go to `to` (a lane or a model) first, and what asked for it."""

    trigger: str
    """`caller:LABEL`, `rule:NAME` or `context`."""
    to: str

    def meets(self, candidate: Candidate) -> bool:
        """Whether the candidate is what is wanted."""
        if self.to in LANES:
            return self.to in candidate.model.lanes and "private" not in candidate.model.lanes
        return candidate.model.name == self.to


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
    rule = next((r for r in rules if matches(r, ask, caller, traits)), None)
    return None if rule is None else Wish(f"rule:{rule.name}", rule.to)


def matches(rule: EscalationRule, ask: Ask, caller: Caller, traits: Traits) -> bool:
    """Whether every condition that the rule gives holds."""
    when = rule.when
    if when.key not in (None, caller.key) or when.team not in (None, caller.team):
        return False
    if when.route not in (None, ask.route):
        return False
    if when.tools not in (None, "tools" in traits.needs) or when.needs_schema not in (None, "schema" in traits.needs):
        return False
    if when.tokens_over is not None and ask.size / LIKELY_BYTES_PER_TOKEN <= when.tokens_over:
        return False
    return not when.words or any(_pattern(when.words).search(text) for text in said(ask.body))


@lru_cache(maxsize=1024)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the words, whole. Alternatives without repetition: the time is linear in the text."""
    return re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words), re.IGNORECASE)


def said(body: Mapping[str, Any]) -> Iterator[str]:
    """What the user says: the text of user messages, or the prompt. Not the system's words, which never change."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("role") == "user":
            yield from _texts(message.get("content"))
    yield from _texts(body.get("prompt"))


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, str):
        yield given
    elif isinstance(given, list):
        for part in given:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
