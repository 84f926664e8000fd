"""Tries everything in a standing building: each place, each way out, each kind of text; then the same where it may go.

Held back first, then let out: so whatever is at the sink after the first part is a leak, and the second part shows
that those very ways were open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from router.api.inference import ROUTES
from router.decision.dialects import LOCAL_ONLY
from router.records import Route
from tests.leaks import network
from tests.leaks.building import AT_ONCE, Answer, Building
from tests.leaks.canaries import detected, found_in, word
from tests.leaks.compromised import try_the_door
from tests.leaks.places import Place, made, opaque, own_fields, places

SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
LONG = "And on it went, past the mill and the weir. " * 250
"""11 KB: more than the local models hold, so that a request with it is wanted elsewhere."""


class Way(NamedTuple):
    """One way by which a request could come to a provider."""

    name: str
    model: str
    key: str = ""
    """What stands behind the key's name."""
    body: Mapping[str, Any] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    long: bool = False
    local: bool = False
    """Whether data that may leave is answered here all the same."""


WAYS = (
    Way("primary", "big"),
    Way("primary, of a model that may have internal data", "inner"),
    Way("primary, streamed", "big", body={"stream": True}),
    Way("lane frontier", "frontier"),
    Way("auto", "auto", local=True),
    Way("lane cheap", "cheap", local=True),
    Way("lane private", "private", local=True),
    Way("retry", "failing"),
    Way("retry, streamed", "failing", body={"stream": True}),
    Way("fallback", "dropping"),
    Way("fallback, streamed", "dropping", body={"stream": True}),
    Way("overflow", "full"),
    Way("overflow, streamed", "full", body={"stream": True}),
    Way("cascade", "silly", body={"response_format": SCHEMA}),
    Way("escalation by the caller", "auto", "-escalates", headers={"x-headgate-escalate": "low-confidence"}),
    Way("escalation by a rule", "auto", "-ruled"),
    Way("context", "auto", long=True),
    Way("idempotency key", "big", headers={"idempotency-key": "\x00T"}),
)
"""Every way out there is. `test_matrix.py` holds what they trigger against the triggers that the code knows."""


class Try(NamedTuple):
    """One request of the matrix."""

    kind: str
    """`private` (the key's class), `found` (by the search), `opaque`, or `free` (it may leave)."""
    route: Route
    way: str
    place: str
    field: str
    text: str
    status: int
    code: str
    where: str
    trigger: str = ""
    """Why another model came first, without the name of the rule or the caller's reason."""


class Matrix:
    """All tries, as they were made."""

    def __init__(self, built: Building) -> None:
        self.built, self.tries, self.returned = built, list[Try](), list[str]()

    async def one(self, kind: str, route: Route, way: Way, place: Place | None) -> None:
        """Make one request and note what came of it."""
        text = detected(f"{way.name}, {place.name if place else route}") if kind == "found" else word()
        key = {"private": "private", "free": "free"}.get(kind, "public") + way.key
        body = made(
            route, place, text, way.model, **{n: v for n, v in way.body.items() if n != (place and place.field)}
        )
        if way.long:
            _lengthen(route, body)
        headers = {name: value.replace("\x00T", word()) for name, value in way.headers.items()}
        answer = await self.built.ask(route, body, key, headers)
        self.note(kind, route, way.name, place, text, answer)

    def note(self, kind: str, route: Route, way: str, place: Place | None, text: str, answer: Answer) -> None:
        name, field = (place.name, place.field) if place else ("-", "")
        where = answer.place or answer.headers.get("x-headgate-door", "")
        trigger = answer.headers.get("x-headgate-trigger", "").partition(":")[0]
        self.tries.append(Try(kind, route, way, name, field, text, answer.status, answer.code, where, trigger))
        if answer.status != 200 and kind == "found" and field and text.encode() in answer.body:
            self.returned.append(f"{route}, {way}, {name}: {answer.code}")


def _lengthen(route: Route, body: dict[str, Any]) -> None:
    field = "prompt" if route == "completions" else "input" if route in ("embeddings", "responses") else "messages"
    held = body.get(field)
    if isinstance(held, list):
        held.append({"role": "user", "content": LONG} if field == "messages" else LONG)
    elif isinstance(held, str):
        body[field] = f"{held} {LONG}"


async def each(jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run all of them, a few at a time."""
    left = iter(list(jobs))

    async def work() -> None:
        for job in left:
            await job()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())


def brief(route: Route) -> list[Place]:
    """One place of every field that means something on this route, by its meaning where it has one."""
    own = own_fields(route)
    chosen: dict[str, Place] = {}
    for place in reversed(places(route)):
        if place.field in own and (place.field not in chosen or place.name.endswith(" value")):
            chosen[place.field] = place
    return list(chosen.values())


async def try_everything(built: Building) -> dict[str, Any]:
    """The whole matrix. Returns the report."""
    began, matrix = time.monotonic(), Matrix(built)
    holding = asyncio.create_task(built.ask("chat/completions", made("chat/completions", None, "", "full"), "private"))
    await built.upstreams["full-0"].until(lambda: built.upstreams["full-0"].answering)
    await _held_back(matrix)
    door = await try_the_door(built)
    held, sent = await built.came(), network.sent_bytes() if built.alone else 0
    at = {"held back": time.monotonic() - began}
    before = len(matrix.tries)
    await _let_out(matrix)
    await built.operator("/metrics")
    await built.operator("/status")
    free, sent_then = await built.came(), network.sent_bytes() if built.alone else 0
    built.upstreams["full-0"].gate.set()
    await holding
    at["all"] = time.monotonic() - began
    secret = [one.text for one in matrix.tries[:before]] + [one["text"] for one in door]
    texts = secret + [one.text for one in matrix.tries[before:]]
    return {
        "alone": built.alone, "seconds": at, "tries": [one._asdict() for one in matrix.tries], "door": door,
        "held": _counted(held) | {"sent_bytes": sent}, "free": _counted(free) | {"sent_bytes": sent_then},
        "leaked": _among(secret, free), "arrived": _among([one.text for one in matrix.tries[before:]], free),
        "in_heads": found_in(texts, "".join(free["heads"]).encode()),
        "written": _written(built, texts), "returned": matrix.returned,
    }  # fmt: skip


async def _held_back(matrix: Matrix) -> None:
    """Nothing of this may reach the sink."""
    jobs: list[tuple[str, Route, Way, Place]] = []
    for route in ROUTES.values():
        jobs += [("found", route, WAYS[0], place) for place in places(route)]
        jobs += [("opaque", route, WAYS[0], place) for place in opaque(route)]
        jobs += [("private", route, WAYS[0], place) for place in brief(route)]
        jobs += [("private", route, way, _everywhere()) for way in WAYS[1:]]
        for way in WAYS[1:]:
            # Where no hosted model is ever asked, one place for each way is enough.
            chosen = [_everywhere()] if route in LOCAL_ONLY else brief(route)
            jobs += [("found", route, way, place) for place in chosen]
            jobs += [("opaque", route, way, place) for place in opaque(route)[-3:]]
    await each([lambda job=job: matrix.one(*job) for job in jobs])  # type: ignore[misc]
    for route in ("chat/completions", "completions", "embeddings"):
        for place in brief(route):
            for kind, key in (("found", "public"), ("private", "private")):
                text = detected(place.name) if kind == "found" else word()
                answer = await matrix.built.explain(made(route, place, text, "big"), key)
                matrix.note(kind, route, "dry run", place, text, answer)


async def _let_out(matrix: Matrix) -> None:
    """The same ways and places with a harmless word and a key whose data is public."""
    jobs = []
    for route in (route for route in ROUTES.values() if route not in LOCAL_ONLY):
        jobs += [("free", route, WAYS[0], place) for place in places(route)]
        jobs += [("free", route, way, None) for way in WAYS[1:]]
    await each([lambda job=job: matrix.one(*job) for job in jobs])  # type: ignore[misc]
    text = word()
    headers = {"user-agent": text, "x-headgate-session": text, "x-other": text, "traceparent": text, "cookie": text}
    body = made("chat/completions", None, "", "big")
    answer = await matrix.built.ask("chat/completions", body, "free", headers, f"?q={text}")
    matrix.note("free", "chat/completions", "headers and query", None, text, answer)


def _everywhere() -> Place:
    """A text in several fields at once, of those that break no request."""

    def put(body: dict[str, Any], text: str) -> None:
        for name in ("metadata", "user", "x_field_nobody_knows"):
            body[name] = {text: text} if name == "metadata" else text

    return Place("everywhere", "", put)


def _counted(came: dict[str, Any]) -> dict[str, Any]:
    return {name: came[name] for name in ("connections", "bytes", "packets")} | {"requests": len(came["bodies"])}


def _among(texts: list[str], came: dict[str, Any]) -> list[str]:
    return found_in(texts, ("".join(came["heads"] + came["bodies"]) + came["raw"]).encode("utf-8", "replace"))


def _written(built: Building, texts: list[str]) -> list[str]:
    """Files of the installation, and what the operator was shown, that hold any of the texts."""
    kept = {str(file.relative_to(built.home.root)): file.read_bytes()
            for file in built.home.root.rglob("*") if file.is_file()}  # fmt: skip
    kept |= {f"what the operator was shown ({number})": data for number, data in enumerate(built.said)}
    return [f"{name}: {found[:3]}" for name, data in kept.items() if (found := found_in(texts, data))]
