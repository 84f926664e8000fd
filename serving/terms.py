"""The words that catalogue and headgate.yaml share: places, lanes, routes, abilities, data classes, names."""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

Place = Literal["local", "hosted"]
Lane = Literal["private", "cheap", "frontier"]
Route = Literal["chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens"]
"""The inference routes, as the path below /v1/."""
NO_OUTPUT: frozenset[Route] = frozenset({"embeddings", "messages/count_tokens"})
"""Routes on which no text is made: no output to be limited or paid, and nothing to stream."""
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
REQUIREMENT = r"^(region:[a-z0-9-]{1,32}|tag:[a-z0-9-]{1,32}|no-training|no-retention)$"
Requirement = Annotated[str, Field(pattern=REQUIREMENT)]
"""What a key, team or route asks of a hosted model before anything may go there."""
Label = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
"""A region or a compliance tag, as requirements name it."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as wrong:
        raise ValueError(f"{text!r} is no network ({wrong}); write it like 10.0.0.0/8") from None


Network = Annotated[str, AfterValidator(_network)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
