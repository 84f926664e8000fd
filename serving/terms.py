"""The words that catalogue and headgate.yaml share: places, lanes, routes, abilities, data classes, names."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

Place = Literal["local", "hosted"]
Lane = Literal["private", "cheap", "frontier"]
Route = Literal["chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens"]
"""The inference routes, as the path below /v1/."""
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
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
