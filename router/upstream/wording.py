"""Pure: what an upstream says in an error answer, and its words about a request as a sentence for the caller.

Engines hand on their validator's own notation: mappings as Python writes them, places with class names in them, a link
for developers. Shapes are those of vLLM 0.32 and of the FastAPI that it and others are built on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

MOST_READ = 10_000
"""Characters of a message that are looked at; a validator has a line for each of many ways to read one field."""
LONGEST = 500
"""Characters of a sentence."""
MOST_POINTS = 3
"""Faults of a request that are told; the others are often the same one, seen by another branch of a validator."""
INNER = re.compile(r"Traceback \(most recent call last\)|^\s+File \"", re.MULTILINE)
PLACES = re.compile(
    r"\b[a-z]+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|(?<![\w/])/(?:[\w.+-]+/)+[\w.+-]*|\b0x[0-9a-f]{6,16}\b",
    re.IGNORECASE,
)
"""Addresses, paths of files, and places in memory, which help whoever breaks into an engine."""
LISTED = re.compile(r"""'loc': (.{1,300}?), 'msg': ('(?:[^'\\\n]|\\.){1,500}'|"(?:[^"\\\n]|\\.){1,500}")""")
"""One fault as FastAPI lists it, in Python's notation: where, and what."""
PRINTED = re.compile(r"^(\S{1,300})\n  (\S.{0,500}?) \[type=\w+", re.MULTILINE)
"""One fault as pydantic prints it: a line that says where, a line that says what."""
ASIDE = re.compile(r" ?\(parameter=([\w.]{1,100})[^()]{0,300}\)$")
"""The parameter, which `param` names."""
STEP = re.compile(r"[\w-]+(?:\[[^\]]*\])?")
INNER_STEP = re.compile(r"^function-|\[(?!\d+\])")
"""A step of a place that is the validator's own; `[0]` is a place in a list."""


class Said(NamedTuple):
    """An error answer, as far as it says something."""

    message: str = ""
    code: str = ""
    param: str | None = None
    """The field of the request that is meant."""
    no_route: bool = False
    """Whether the server has no such path at all."""


def said(body: bytes) -> Said:
    """What an error body says, in OpenAI's, Anthropic's or FastAPI's form; nothing where it is none of them."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return Said()
    if not isinstance(found, dict):
        return Said()
    error = found.get("error", found)
    if isinstance(error, str):
        return Said(error[:MOST_READ])
    if not isinstance(error, dict):
        return Said()
    message, code = error.get("message"), error.get("code")
    if message is None and "detail" in found:
        return _by_fastapi(found["detail"])
    return Said(
        message[:MOST_READ] if isinstance(message, str) else "", code if isinstance(code, str) else "",
        place(error.get("param")) or None,
    )  # fmt: skip


def spoken(message: str) -> Said:
    """What a message alone says; vLLM names the field at its end."""
    named = ASIDE.search(message)
    return Said(message[:MOST_READ], param=place(named[1]) or None if named else None)


def _by_fastapi(detail: Any) -> Said:
    """Its own errors: a text, or a list of faults."""
    if isinstance(detail, str):
        return Said(detail[:MOST_READ], no_route=detail == "Not Found")
    faults = [one for one in detail if isinstance(one, dict)] if isinstance(detail, list) else []
    points = [(_steps(one.get("loc")), one["msg"]) for one in faults if isinstance(one.get("msg"), str)]
    return Said(_joined(points), param=points[0][0] or None) if points else Said()


def sentence(message: str) -> str:
    """An upstream's words about a request, fit for its caller: what is wrong and where, short, on one line."""
    text = _joined(list(_points(message))) or ASIDE.sub("", message)
    text = cleaned(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def cleaned(text: str) -> str:
    """On one line and without addresses, paths or inner state; empty where it is nothing but inner state."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    # As it came, for some of it is told by its lines, and as it would be read.
    return "" if INNER.search(text) or INNER.search(flat) else PLACES.sub("…", flat)


def place(where: object) -> str:
    """A field of the request, as its sender would name it: without `body` and the names of a validator's classes."""
    if not isinstance(where, str) or len(where) > 300:
        return ""
    steps = STEP.findall(where)
    if steps[:1] == ["body"]:
        steps = steps[1:]
    return ".".join(step for step in steps if not (step[0].isupper() or INNER_STEP.search(step)))


def _steps(loc: object) -> str:
    return place(".".join(map(str, loc))) if isinstance(loc, list) else place(loc)


def _points(message: str) -> Iterator[tuple[str, str]]:
    """Every fault in a validator's notation: where and what."""
    for where, what in LISTED.findall(message):
        yield place(where), re.sub(r"\\(.)", r"\1", what[1:-1])
    for where, what in PRINTED.findall(message):
        yield place(where), what


def _joined(points: list[tuple[str, str]]) -> str:
    """The first few as a sentence; each one once."""
    told = list(dict.fromkeys(f"{where}: {_plain(what)}" if where else _plain(what) for where, what in points))
    more = f"; and {len(told) - MOST_POINTS} more" if len(told) > MOST_POINTS else ""
    return f"{'; '.join(told[:MOST_POINTS])}{more}." if told else ""


def _plain(what: str) -> str:
    return what.removeprefix("Value error, ").rstrip(".")
