"""A router that is no longer ours: it seals good permits that claim too little, and speaks to the real door."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import fields
from typing import Any

import orjson

from router.api.inference import ROUTES
from router.door.policy import PATHS
from router.permit import LIFETIME_S, Permit, body_hash, seal
from router.records import Route
from serving import catalogue
from tests.leaks.building import AT_ONCE, Building
from tests.leaks.canaries import detected, word
from tests.leaks.places import Place, base, made, opaque, places

TAKEN_OUT = frozenset({"headgate"})
"""Fields that the door takes out before it looks: what stands there stays, and the rest may go."""


async def try_the_door(built: Building) -> list[dict[str, Any]]:
    """Every place of every path the door knows, claimed to be public. Returns what was tried and what it said."""
    async with built.door.get("/door") as answer:
        instance = (await answer.json())["instance"]
    policy = catalogue.load(built.config).version
    found: list[dict[str, Any]] = []
    jobs: list[tuple[str, Route, Place]] = []
    for route in (route for route in ROUTES.values() if route in PATHS):
        jobs += [("found", route, place) for place in places(route) if place.field not in TAKEN_OUT]
        jobs += [("opaque", route, place) for place in opaque(route)]
        jobs += [("private", route, Place("its key's class", "", lambda body, text: body.update(user=text)))]
    left = iter(jobs)

    async def work() -> None:
        for kind, route, place in left:
            text = detected(place.name) if kind == "found" else word()
            body = orjson.dumps(made(route, place, text, "big"))
            key = built.keys["private" if kind == "private" else "public"].split("_")[1]
            token = seal(permit(body, route, instance, policy, key), built.home.secret("permit"))
            async with built.door.post("/send", data=body, headers={"x-headgate-permit": token}) as answer:
                said = await answer.read()
            found.append({
                "kind": kind, "route": route, "place": place.name, "field": place.field, "text": text,
                "status": answer.status, "door": answer.headers.get("x-headgate-door", ""),
                "code": orjson.loads(said)["error"]["code"] if answer.status >= 400 else "",
            })  # fmt: skip

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return found


def permit(body: bytes, route: Route, instance: str, policy: str, key: str) -> Permit:
    """A permit that the door's own seal vouches for, and that says of everything what opens most."""
    claims: dict[str, Any] = {
        "id": secrets.token_hex(8), "door": instance, "request": "req_1", "key": key, "team": "tests", "route": route,
        "provider": "far", "model": "big", "path": route, "data_class": "public", "body": body_hash(body),
        "policy": policy, "expires": time.time() + LIFETIME_S,
    }  # fmt: skip
    assert base(route)
    return Permit(**{one.name: claims[one.name] for one in fields(Permit) if one.name in claims})
