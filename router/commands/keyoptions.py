"""The options of `keys create` and `keys set`: what a key may do, as a person writes it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, cast, get_args

import typer

from router.commands.context import Stop
from router.records import Latency
from serving.catalogue import LANES, REQUIREMENT, DataClass

ClassOption = Annotated[str | None, typer.Option("--data-class", help="public, internal, private or secret.")]
LanesOption = Annotated[str | None, typer.Option(help="Lanes it may use, e.g. private,cheap.")]
BudgetOption = Annotated[str | None, typer.Option("--budget", help="US dollars a calendar month, or none.")]
SubstituteOption = Annotated[
    bool | None, typer.Option("--substitute/--no-substitute", help="May another model answer for a named one?")
]
EscalateOption = Annotated[
    bool | None, typer.Option("--escalate/--no-escalate", help="May it ask for a stronger model by a header?")
]
DeclassifyOption = Annotated[
    bool | None, typer.Option("--declassify/--no-declassify", help="May it lower a request's class, with a reason?")
]
MediaOption = Annotated[
    str | None, typer.Option("--media-class", help="Class of parts nobody can read: images, audio, files, token ids.")
]
RequiresOption = Annotated[
    str | None,
    typer.Option(help="What a hosted model must promise: region:eu,tag:gdpr,no-training,no-retention; or none."),
]
RequestsOption = Annotated[
    str | None, typer.Option("--requests-per-minute", help="Requests it may make a minute, or none for no limit.")
]
TokensOption = Annotated[
    str | None, typer.Option("--tokens-per-minute", help="Tokens a minute, prompt and output together, or none.")
]
LatencyOption = Annotated[
    str | None, typer.Option(help="How its requests wait: interactive, or batch, behind those and for longer.")
]
ExpiresOption = Annotated[str | None, typer.Option(help="When it ends: 90d, 12h, or never.")]


def changes(
    data_class: str | None, lanes: str | None, budget: str | None, substitute: bool | None, escalate: bool | None,
    expires: str | None, requests: str | None = None, tokens: str | None = None, *, media: str | None = None,
    requires: str | None = None, declassify: bool | None = None, latency: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The options that were given, checked. Raises Stop with what would be right.

    `scopes` are those that were said something of, each with whether it is given; see `scopes`.
    """
    changed: dict[str, Any] = {}
    if data_class is not None:
        changed["data_class"] = _class("--data-class", data_class)
    if media is not None:
        changed["media_class"] = _class("--media-class", media)
    if requires is not None:
        changed["requires"] = _requirements(requires)
    if latency is not None:
        changed["latency"] = _latency(latency)
    if lanes is not None:
        changed["lanes"] = frozenset(filter(None, (lane.strip() for lane in lanes.split(","))))
        if unknown := changed["lanes"] - set(LANES):
            raise Stop(f"--lanes: no lane is called {sorted(unknown)[0]!r}; there are {', '.join(LANES)}")
        if not changed["lanes"]:
            raise Stop(f"--lanes: name at least one of {', '.join(LANES)}; to end a key: headgate keys revoke")
    if budget is not None:
        changed["budget_usd"] = _dollars(budget)
    if substitute is not None:
        changed["substitute"] = substitute
    said = {"escalate": escalate, "declassify": declassify}
    if given := {scope: may for scope, may in said.items() if may is not None}:
        changed["scopes"] = given
    if expires is not None:
        changed["expires"] = None if expires == "never" else time.time() + _length("--expires", expires)
    if requests is not None:
        changed["requests_per_minute"] = _a_minute("--requests-per-minute", requests)
    if tokens is not None:
        changed["tokens_per_minute"] = _a_minute("--tokens-per-minute", tokens)
    return changed


def scopes(had: Iterable[str], given: Mapping[str, bool]) -> frozenset[str]:
    """What a key may do besides asking, once what is `given` is taken in."""
    return frozenset(had).difference(given).union(scope for scope, may in given.items() if may)


def _class(option: str, text: str) -> DataClass:
    try:
        return DataClass.parse(text)
    except ValueError as wrong:
        raise Stop(f"{option}: {wrong}") from wrong


def _latency(text: str) -> Latency:
    if text not in get_args(Latency):
        raise Stop(f"--latency: {text[:40]!r} is no way to wait; give {' or '.join(get_args(Latency))}")
    return cast("Latency", text)


def _requirements(text: str) -> frozenset[str]:
    wanted = () if text == "none" else tuple(part.strip() for part in text.split(","))
    if odd := [one for one in wanted if not re.fullmatch(REQUIREMENT, one)]:
        known = "region:NAME, tag:NAME, no-training, no-retention, or none"
        raise Stop(f"--requires: {odd[0][:40]!r} is no requirement; give {known}")
    return frozenset(wanted)


def _a_minute(option: str, text: str) -> int | None:
    if text == "none":
        return None
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise Stop(f"{option}: {text!r} is no limit; give a whole number from 1 to 999999999, or none")
    return int(text)


def _dollars(text: str) -> float | None:
    if text == "none":
        return None
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", text):
        raise Stop(f"--budget: {text!r} is no amount in US dollars; give e.g. 20, 0.50 or none")
    return float(text)


def _length(option: str, text: str) -> float:
    """Seconds of a length of time that is not none at all."""
    if not (seconds := duration(option, text)):
        raise Stop(f"{option}: {text!r} is over at once; give e.g. 90d or 12h; to end a key: headgate keys revoke")
    return seconds


def duration(option: str, text: str) -> float:
    """Seconds of a text such as 90d, 12h, 30m, 10s."""
    found = re.fullmatch(r"(\d{1,6})([dhms])", text, re.ASCII)
    if not found:
        raise Stop(f"{option}: {text[:40]!r} is no length of time here; give e.g. 90d, 12h, 30m or 10s, up to 999999d")
    return float(int(found[1]) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[found[2]])


def team_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,63}", name):
        raise Stop(f"--team: {name[:80]!r} is no team name; use letters, digits, dots, dashes and spaces, at most 64")
    return name
