"""Fields inside messages, parts, tools and schemas, as the official client's own request models name them.

The tables of the code name the fields of a body; what stands inside those is read off here, so that a field that comes
with the next release of the client is tried without a line of ours.
"""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import typing_extensions
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as Chat
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming as Responses

REQUESTS: dict[str, Any] = {"chat/completions": Chat, "responses": Responses}
"""The request model of each route for which the client has one with something inside."""
LISTS = (list, collections.abc.Iterable, collections.abc.Sequence, tuple)


class Step(NamedTuple):
    """One field of one model on the way to a text."""

    model: Any
    field: str
    listed: bool
    """Whether it holds a list of what comes next."""


class Inner(NamedTuple):
    """One field of a model inside a body, by the way that leads there."""

    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return ".".join(step.field for step in self.steps)

    def body(self, text: str) -> dict[str, Any]:
        """The fields of a body in which the text stands there, with the words beside it that say what it is."""
        value: Any = text
        for model, field, listed in reversed(self.steps):
            value = _words(model) | {field: [value] if listed else value}
        return {self.steps[0].field: value[self.steps[0].field]}


def inner(route: str) -> list[Inner]:
    """Every field of every model inside the request model of a route, each by one of the ways to it."""
    root = REQUESTS[route]
    ways: dict[Any, tuple[Step, ...]] = {root: ()}
    found, left = [], [root]
    while left:
        model = left.pop(0)
        for field, kind in typing_extensions.get_type_hints(model).items():
            if model is not root:
                found.append(Inner((*ways[model], Step(model, field, False))))
            for below, listed in _models(kind):
                if below not in ways:
                    ways[below] = (*ways[model], Step(model, field, listed))
                    left.append(below)
    return found


def _models(kind: Any, listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """The models that a value of this kind can be made of, and whether it is a list of them."""
    if typing_extensions.is_typeddict(kind):
        yield kind, listed
    for part in typing.get_args(kind):
        yield from _models(part, listed or typing.get_origin(kind) in LISTS)


def _words(model: Any) -> dict[str, Any]:
    """The fields without which nobody knows which model it is: its `type` or `role`, where there is but one word."""
    found = {}
    for field, kind in typing_extensions.get_type_hints(model, include_extras=True).items():
        (inside,) = typing.get_args(kind) if typing.get_origin(kind) is typing_extensions.Required else (None,)
        words = typing.get_args(inside) if typing.get_origin(inside) is typing.Literal else ()
        if len(words) == 1:
            found[field] = words[0]
    return found
