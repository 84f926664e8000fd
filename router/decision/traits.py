"""What an ask needs: abilities, parameters, tokens. Pure; reads the parsed body and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.decision.sensitivity import data_class_of
from router.errors import BadRequest
from router.records import Ask, Caller, Findings, Route, Traits
from serving.catalogue import LANES
from serving.parameters import BOOKKEEPING, OUTPUT_LIMITS

ABILITY_OF_ROUTE: dict[Route, str] = {
    "chat/completions": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
}
TEXT_OF_ROUTE: dict[Route, str] = {"chat/completions": "messages", "completions": "prompt", "embeddings": "input"}
"""The field that carries the text; on another route the same name is a field like any other."""
BYTES_PER_TOKEN = 1
"""Upper bound for holds: no tokenizer in use makes more tokens than there are UTF-8 bytes."""


def describe(ask: Ask, caller: Caller, findings: Findings) -> Traits:
    """All a decision needs to know of the ask. Raises BadRequest where a field that is counted is no count."""
    data_class, why = data_class_of(ask, caller, findings)
    _check(ask.body)
    if findings.fetches:
        raise BadRequest(
            "Pictures and other media are sent inside the request, as data: URLs; addresses are not fetched.",
            code="media_url_not_allowed", param="messages",
        )  # fmt: skip
    return Traits(
        data_class=data_class,
        why_class=why,
        needs=frozenset(_needs(ask)),
        parameters=frozenset(name for name, value in ask.body.items() if _says_something(ask, name, value)),
        prompt_tokens=ask.size // BYTES_PER_TOKEN,
        output_tokens=_output_tokens(ask),
        lane=ask.model if ask.model in LANES else None,
        named=None if ask.model in LANES or ask.model == "auto" else ask.model,
    )


def choices(ask: Ask) -> int:
    """How many answers are asked for: `n` for each prompt. Raises BadRequest where `n` is no count."""
    return prompts(ask) * (_count(ask.body, "n", at_least=1) or 1)


def prompts(ask: Ask) -> int:
    """How many prompts or inputs one request carries. A list of numbers is one, given as token ids."""
    given = ask.body.get("input" if ask.route == "embeddings" else "prompt")
    many = isinstance(given, list) and any(isinstance(item, str | list) for item in given)
    return len(given) if many and isinstance(given, list) else 1


def _says_something(ask: Ask, name: str, value: Any) -> bool:
    """Whether a model must honour this field: not where it has no value or changes no answer."""
    if name in ("model", TEXT_OF_ROUTE[ask.route]):
        return False
    if name == "stream":
        return value is True and ask.route == "embeddings"  # every model of the other routes streams
    return value is not None and name not in BOOKKEEPING


def _needs(ask: Ask) -> set[str]:
    body, needs = ask.body, {ABILITY_OF_ROUTE[ask.route]}
    if body.get("tools") or body.get("functions"):
        needs.add("tools")
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type") not in (None, "text"):
        needs.add("schema")
    if body.get("structured_outputs"):
        needs.add("schema")
    logprobs = body.get("logprobs")
    if logprobs is not None and logprobs is not False:  # in completions 0 asks for the chosen token alone
        needs.add("logprobs")
    if any("image" in kind or "video" in kind for kind in _kinds_of_parts(body)):
        needs.add("vision")
    return needs


def _kinds_of_parts(body: Mapping[str, Any]) -> Iterator[str]:
    """The types of all content parts of all messages; a part without a type counts by its keys."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping):
                yield str(part["type"]) if "type" in part else " ".join(part)


def _output_tokens(ask: Ask) -> int | None:
    """The limit the caller set, for all choices together; an embedding has no output at all."""
    if ask.route == "embeddings":
        return 0
    given = [_count(ask.body, name) for name in sorted(OUTPUT_LIMITS)]
    # Both given: upstreams differ in which one counts, so the higher one is held.
    limit = max((number for number in given if number is not None), default=None)
    return None if limit is None else limit * choices(ask)


def _count(body: Mapping[str, Any], name: str, at_least: int = 0) -> int | None:
    """A whole number. "5" or 5.0 would be read as 5 by some upstreams and not be counted here, so they are refused."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < at_least:
        raise BadRequest(f"The field {name!r} must be a whole number, at least {at_least}.", param=name)
    return value


def _check(body: Mapping[str, Any]) -> None:
    _count(body, "n", at_least=1)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise BadRequest("The field 'stream_options' must be an object.", param="stream_options")
