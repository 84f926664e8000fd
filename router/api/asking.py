"""Pure: from a parsed body and its headers to the ask, with what the caller chose for this one request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from router.api.body import text_field
from router.errors import BadRequest
from router.records import LIKELY_BYTES_PER_TOKEN, Ask, Latency, Route
from serving.catalogue import NO_OUTPUT, DataClass

MAX_SESSION = 200
CHOICES = frozenset({"data_class", "escalate", "latency", "reason"})
"""What a body may choose in `headgate: {…}`."""
LABEL = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
"""The form of a reason for escalation, or for a lower class. It is written down, so it must not be able to hold text of
the request."""
ASKED_OUTPUT = ("max_completion_tokens", "max_output_tokens", "max_tokens")
UNSAID_OUTPUT = 1000
"""Tokens that are taken of a minute for an answer whose limit nobody gave, until it is known what it had.

Not the most that the model could write: that is often more than a minute's tokens, so that one short question would
keep all others of its key waiting. Most answers are shorter than this; what one has more is taken afterwards.
"""


def make_ask(
    request_id: str, route: Route, body: dict[str, Any], size: int, headers: Iterable[tuple[bytes, bytes]]
) -> Ask:
    """The parsed request with the choices made in headers or in `headgate: {…}`. Raises BadRequest."""
    choices = body.pop("headgate", {})
    if not isinstance(choices, dict) or not choices.keys() <= CHOICES:
        raise BadRequest(f"The field 'headgate' is an object with: {', '.join(sorted(CHOICES))}.", param="headgate")
    given: dict[bytes, str] = {}
    raised: list[Any] = []
    for name, value in headers:
        if name.startswith(b"x-headgate-"):
            given[name] = value.decode("latin-1")
            if name == b"x-headgate-data-class":
                # Every label counts, however often the header stands there and whoever added it: the highest one wins.
                raised += [label.strip() for label in given[name].split(",")]
    if "data_class" in choices:
        raised.append(choices["data_class"])
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise BadRequest("The field 'stream' must be true or false.", param="stream")
    return Ask(
        id=request_id, route=route, body=body, size=size, model=text_field(body, "model"), stream=stream,
        data_class=max(map(_class, raised)) if raised else None,
        session=_session(given.get(b"x-headgate-session"), body),
        escalate=_label(choices.get("escalate") or given.get(b"x-headgate-escalate"), "x-headgate-escalate"),
        declassify=_label(choices.get("reason") or given.get(b"x-headgate-reason"), "x-headgate-reason"),
        latency=_latency(given.get(b"x-headgate-latency", choices.get("latency"))),
    )  # fmt: skip


def asked_tokens(ask: Ask) -> int:
    """About how many tokens a request will use: what its text may be, and the output it asks for or is likely to get.

    Every answer counts: `n` of them for each prompt.
    """
    prompt, body = ask.size // LIKELY_BYTES_PER_TOKEN, ask.body
    if ask.route in NO_OUTPUT:
        return prompt
    asked = [body.get(name) for name in ASKED_OUTPUT]
    output = max((n for n in asked if isinstance(n, int) and n > 0), default=UNSAID_OUTPUT)
    choices, given = body.get("n"), body.get("prompt") if ask.route == "completions" else None
    # A list of numbers is one prompt, given as token ids.
    prompts = len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
    return prompt + output * prompts * (choices if isinstance(choices, int) and choices > 0 else 1)


def _class(text: Any) -> DataClass:
    try:
        return DataClass.parse(text)
    except ValueError as unknown:
        raise BadRequest(f"x-headgate-data-class: {unknown}", param="x-headgate-data-class") from unknown


def _label(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and LABEL.fullmatch(value.strip()):
        return value.strip()
    form = "a short reason of small letters, digits, - and _, at most 40, such as low-confidence"
    raise BadRequest(f"{name}: give {form}.", param=name)


def _latency(value: Any) -> Latency | None:
    if value is None:
        return None
    text = value.strip().lower() if isinstance(value, str) else value
    if text == "interactive":
        return "interactive"
    if text == "batch":
        return "batch"
    told = "x-headgate-latency: give interactive (somebody waits for the answer) or batch (it may come later)."
    raise BadRequest(told, param="x-headgate-latency")


def _session(header: str | None, body: dict[str, Any]) -> str | None:
    """The name a caller gave its conversation, in one of the two places that clients use.

    Not what names more than one: `prompt_cache_key` is a bucket of a cache, which applications share among all their
    users, and `user` and `safety_identifier` are a person.
    """
    metadata = body.get("metadata")
    said = metadata.get("session_id") if isinstance(metadata, dict) else None
    return next((name[:MAX_SESSION] for name in (header, said) if name and isinstance(name, str)), None)
