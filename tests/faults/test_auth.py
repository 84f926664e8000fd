"""Who may ask, and who may see what the operator sees: cases AU-* of the fault catalogue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp
import pytest
import yaml

from router import keeper
from router.api import admin
from router.api.callers import authenticate
from router.errors import InvalidKey
from router.ledger.keys import LOOKS, KeyBook, new_text
from serving.home import Home
from tests.conftest import ask, free_port, until
from tests.faults import wire
from tests.faults.cases import each
from tests.faults.conftest import FaultHouse

CHAT = "/v1/chat/completions"
CANARY = "canary7f3a91c2e5"
"""Stands in every text that must not be found again."""


def headed(*lines: str, body: bytes = b"{}", path: str = CHAT) -> bytes:
    """A request with exactly these headers besides Host and Content-Length."""
    fixed = [f"POST {path} HTTP/1.1", "Host: headgate.test", f"Content-Length: {len(body)}"]
    return "\r\n".join([*fixed, *lines]).encode("latin-1") + b"\r\n\r\n" + body


async def seen(house: FaultHouse, path: str, key: str = "") -> wire.Outcome:
    """A page, on a connection of its own."""
    given = f"Authorization: Bearer {key}\r\n" if key else ""
    # Not by the house: pages are no requests for a model, and have no record.
    return await wire.exchange(house.port, f"GET {path} HTTP/1.1\r\nHost: headgate.test\r\n{given}\r\n".encode())


# ---- callers

WRONG = {
    "none": [],
    "empty": ["Authorization: Bearer"],
    "empty-and-a-space": ["Authorization: Bearer "],
    "basic": ["Authorization: Basic aGc6eA=="],
    "no-scheme": ["Authorization: KEY"],
    "two": ["Authorization: Bearer KEY", "Authorization: Bearer KEY"],
    "two-of-two-kinds": ["Authorization: Bearer KEY", "x-api-key: OTHER"],
    "list": ["Authorization: Bearer KEY, Bearer KEY"],
    "quotes": ['Authorization: Bearer "KEY"'],
    "sql": ["Authorization: Bearer hg_' OR '1'='1"],
    "another": ["Authorization: Bearer OTHER"],
    "shortened": ["Authorization: Bearer SHORT"],
    "long": [f"Authorization: Bearer {'x' * 8000}"],
    "cookie": ["Cookie: Authorization=KEY"],
}


@each(WRONG)
async def test_au_001_whoever_has_no_key_is_told_the_same(house: FaultHouse, lines: list[str]) -> None:
    await house.start()
    key = house.key()
    filled = [one.replace("KEY", key).replace("OTHER", OTHER).replace("SHORT", key[:-1]) for one in lines]
    found = await house.send(headed(*filled))
    assert (found.status, found.code, found.error["type"]) == (401, "invalid_api_key", "authentication_error")
    assert house.asked() == 0 and house.rows() == {}, "nobody behind the router heard of it, and nothing is written"


OTHER = new_text()


async def test_au_001_a_key_in_the_address_is_none(house: FaultHouse) -> None:
    """An address is written down by whatever stands between; a key that works there would be too."""
    await house.start()
    key = house.key()
    for name in ("key", "api_key", "api-key", "access_token", "x-api-key", "Authorization"):
        found = await house.send(headed(path=f"{CHAT}?{name}={key}"))
        assert (found.status, found.code) == (401, "invalid_api_key")
    assert house.asked() == 0


@each([b"\x00", b"KEY\x00", b"KEY\x7f", b"\x00KEY"])
async def test_au_001_a_key_with_a_control_character_never_arrives(house: FaultHouse, text: bytes) -> None:
    await house.start()
    given = text.replace(b"KEY", house.key().encode())
    found = await house.send(headed().replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer " + given + b"\r\n\r\n", 1))
    assert found.status in (400, 401) and house.asked() == 0


async def test_au_001_a_key_of_a_megabyte_is_refused_before_it_is_all_there(house: FaultHouse) -> None:
    await house.start()
    found = await house.send(headed(f"Authorization: Bearer hg_{'x' * 2**20}"))
    assert found.status == 431 and house.asked() == 0


async def test_au_001_a_refusal_takes_as_long_whether_the_id_is_known_or_not(house: FaultHouse) -> None:
    """The digest is made and compared either way: what a refusal costs says nothing of which ids there are."""
    await house.start()
    assert house.built is not None
    ring, known = house.built.keyring, house.key()
    ring.refresh()
    with mock.patch.object(ring, "_mac", wraps=ring._mac) as made:
        for text in (known[:-10] + "0123456789", OTHER, new_text()):
            with mock.patch.object(ring, "_may_look", return_value=False), pytest.raises(InvalidKey):
                authenticate([(b"x-api-key", text.encode())], ring, time.time())
    assert made.call_count == 3
    near, far = _seconds(ring, known[:-10] + "0123456789"), _seconds(ring, OTHER)
    assert max(near, far) < 20 * min(near, far) + 1e-4


def _seconds(ring: Any, text: str) -> float:
    """What one refusal takes, the middle of many."""
    taken = []
    with mock.patch.object(ring, "_may_look", return_value=False):
        for _ in range(201):
            begun = time.perf_counter()
            assert ring.find(text, 0.0) is None
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


async def test_au_006_a_revoked_and_an_expired_key_end_within_five_seconds_and_its_stream_may_finish(
    house: FaultHouse,
) -> None:
    """That it holds at every worker stands in tests/router/test_workers.py, for it takes real ones."""
    await house.start(fast=False)
    key = house.key()
    assert (await house.tell(ask("small"), key)).status == 200
    expiring = house.key(expires=time.time() + 0.2)
    house.fail_all({"stream": ["One", True, "Two"]})
    streaming = asyncio.create_task(house.tell(ask("small", stream=True), key))
    await until(lambda: house.asked() == 2)
    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        book.revoke(key.split("_")[1])
    revoked = time.monotonic()
    while (answered := await house.send(headed(f"Authorization: Bearer {key}"))).status != 401:
        assert time.monotonic() < revoked + 5, "the key still works"
        await asyncio.sleep(0.05)
    assert answered.code == "invalid_api_key"
    assert (await house.send(headed(f"Authorization: Bearer {expiring}"))).status == 401
    for one in house.replicas:
        one.gate.set()
    found = await streaming
    assert (found.status, found.code, found.text) == (200, "ok", "OneTwo")


async def test_au_008_without_a_key_nobody_gets_in(house: FaultHouse) -> None:
    """There is no key that works by default, and none by any of the usual words."""
    await house.start()
    with contextlib.closing(KeyBook(house.home.ledger, house.home.secret("pepper"))) as book:
        assert book.list() == []
    for word in ("", "sk-1234", "admin", "master", "test", "none", "null", "EMPTY", "hg_", "Bearer"):
        assert (await house.send(headed(f"Authorization: Bearer {word}"))).status == 401
    assert (await seen(house, "/v1/models")).status == 401


@pytest.mark.parametrize("name", ["admin-token", "auditor-token", "pepper", "permit"])
def test_au_008_an_empty_secret_stops_the_start(home: Home, name: str) -> None:
    """Empty is what a variable that nobody set makes of a file; it would be a token that everybody knows."""
    (home.secrets / name).write_text("\n")
    config = home.root / "headgate.yaml"
    config.write_text(yaml.safe_dump({"router": {"admin_port": free_port()}}))
    command = [sys.executable, "-m", "router", "--config", str(config), f"--port={free_port()}"]
    done = subprocess.run(
        command, env=keeper.environment(home, os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and f"{home.secrets / name} is empty" in done.stderr


async def test_au_009_guessing_costs_no_look_at_the_table_for_each(house: FaultHouse) -> None:
    await house.start()
    assert house.built is not None
    ring = house.built.keyring
    looks, begun = 0, time.monotonic()

    def look() -> None:
        nonlocal looks
        looks += 1

    with mock.patch.object(ring, "_look", look):
        for text in (new_text() for _ in range(3000)):
            assert ring.find(text, time.time()) is None
    assert 0 < looks <= LOOKS * (2 + time.monotonic() - begun)
    # What is no key by its own checksum is not even looked for.
    with mock.patch.object(ring, "_look", side_effect=AssertionError("looked")):
        for text in (new_text()[:-1] + "!" for _ in range(1000)):
            assert ring.find(text, time.time()) is None
    house.watch.excuse()
    key = house.key()
    await until(lambda: ring.find(key, time.time()) is not None), "a new key works all the same"
    assert (await house.tell(ask("small"), key)).status == 200


# ---- the operator

READS = ("/metrics", "/status", "/requests/req_1")


async def operator(
    house: FaultHouse, app: Any, method: str, path: str, *headers: tuple[str, str], body: bytes = b""
) -> tuple[int, str]:
    """Ask the admin API as it stands behind its lock, without a socket between."""
    assert house.built is not None
    said: list[dict[str, Any]] = []
    plain, _, query = path.partition("?")
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": plain, "raw_path": plain.encode(),
        "query_string": query.encode(), "root_path": "", "scheme": "http", "server": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    return said[0]["status"], b"".join(one.get("body", b"") for one in said[1:]).decode()


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


async def test_au_007_a_users_key_opens_nothing_of_the_operators(house: FaultHouse) -> None:
    await house.start()
    assert house.built is not None
    app = admin.with_token(house.built.admin, {"t" * 64: "admin", "a" * 64: "auditor"})
    key = house.key()
    for path in (*READS, "/openapi.json"):
        assert (await operator(house, app, "GET", path, bearer(key)))[0] == 403
        for given in ([], [bearer("")], [bearer("t" * 63)], [bearer("t" * 64)] * 2, [("x-api-key", "t" * 64)]):
            assert (await operator(house, app, "GET", path, *given))[0] == 401
        # Nor on the callers' own address, whatever is sent there.
        for token in (key, "t" * 64):
            found = await seen(house, path, token)
            assert found.status == 404 or path == "/openapi.json"
    assert (await operator(house, app, "POST", "/explain", bearer(key), body=b"{}"))[0] == 403


async def test_au_007_each_role_may_do_what_the_table_says_and_nothing_else(house: FaultHouse) -> None:
    """An auditor reads what was written down; a route that is not in the table nobody may use."""
    await house.start()
    assert house.built is not None
    app = admin.with_token(house.built.admin, {"t" * 64: "admin", "a" * 64: "auditor"})
    routes = {
        f"{method} /{route.path.split('/')[1]}"  # type: ignore[attr-defined]
        for route in house.built.admin.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert routes == set(admin.ROLES), "each route of the admin API has its roles"
    for path in READS:
        for token in ("t" * 64, "a" * 64):
            status, _ = await operator(house, app, "GET", path, bearer(token))
            assert status == (404 if path.startswith("/requests") else 200)
    body = json.dumps(ask("small")).encode()
    asked = [("content-type", "application/json")]
    assert (await operator(house, app, "POST", "/explain", bearer("a" * 64), *asked, body=body))[0] == 403
    assert (await operator(house, app, "POST", "/explain", bearer("t" * 64), *asked, body=body))[0] == 200
    for method, path in (("DELETE", "/requests/req_1"), ("POST", "/status"), ("GET", "/explain"), ("GET", "/keys"),
                         ("PUT", "/config"), ("GET", "//status"), ("GET", "/")):  # fmt: skip
        for token in ("t" * 64, "a" * 64):
            assert (await operator(house, app, method, path, bearer(token)))[0] == 403


async def test_au_007_nothing_is_changed_over_the_network(house: FaultHouse) -> None:
    """Keys and settings are changed by commands, on the machine itself: there is no route that could."""
    await house.start()
    assert house.built is not None
    changing = {route.path: route.methods for route in house.built.admin.routes if route.methods - {"GET", "HEAD"}}  # type: ignore[attr-defined]
    assert changing == {"/explain": {"POST"}}, "a dry run, which writes nothing"
    key = house.key()
    before = _table(house.home.ledger)
    for path in ("/v1/keys", "/keys", "/config", "/config/update", "/admin/keys", "/v1/teams"):
        found = await house.tell({"data_class": "public", "team": "other", "scopes": ["declassify"]}, key, path)
        assert found.status in (404, 405)
    assert _table(house.home.ledger) == before


def _table(ledger: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        return db.execute("SELECT * FROM keys").fetchall()


async def test_au_010_with_the_table_lost_known_keys_go_on_here_and_nothing_leaves(house: FaultHouse) -> None:
    await house.start()
    assert house.built is not None
    ring, known, public = house.built.keyring, house.key(), house.key("public")
    ring.refresh()
    late = house.key()
    broken = mock.Mock()
    broken.execute.side_effect = sqlite3.OperationalError("unable to open database file")
    with mock.patch.object(ring, "_db", broken):
        ring.refresh()
        assert (await house.tell(ask("small"), known)).status == 200, "a key that was known goes on"
        found = await house.tell(ask("small"), late)
        assert (found.status, found.code) == (401, "invalid_api_key"), "one that was not is refused"
        # What would leave must be on disk first, and the disk takes nothing.
        lost = mock.AsyncMock(side_effect=_ledger_error())
        with mock.patch.object(house.built.store, "durable", lost):
            away = await house.tell(ask("big"), public)
        assert away.status >= 403 and away.code != "ok"
    assert house.leaked() == 0


def _ledger_error() -> Exception:
    from router.ledger.store import LedgerError

    return LedgerError("the ledger is not being written: database or disk is full")


# ---- what is shown and written

SECRETS = ("pepper", "permit", "admin-token", "auditor-token", "installation")


async def test_au_012_no_list_page_or_number_shows_a_secret(house: FaultHouse) -> None:
    await house.start()
    assert house.built is not None
    key = house.key("private", team="search")
    other = house.key("public")
    house.may_leave = True  # what the public key asks
    assert (await house.tell(ask("small"), key)).status == 200
    await house.tell(ask("big"), other)
    request = await house.tell(ask("small"), key)
    await house.recorded()
    for name in SECRETS:
        house.home.secret(name)
    hidden = [key, key[12:-6], other, *((house.home.secrets / name).read_text().strip() for name in SECRETS), "k" * 20]
    shown = {path: (await seen(house, path, key)).body.decode() for path in
             ("/v1/models", "/openapi.json", "/health", "/ready", "/nothing", "/v1/models/nothing")}  # fmt: skip
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(house.home.socket("admin")))) as session:
        for path in ("/metrics", "/status", "/openapi.json", f"/requests/{request.id}", "/requests/nothing"):
            async with session.get(f"http://admin{path}") as answer:
                shown[f"admin {path}"] = await answer.text()
    for command in (["keys", "list"], ["keys", "list", "--json"], ["status", "--json"], ["doctor", "--json"],
                    ["config", "check"], ["providers", "list"], ["explain", "--request", request.id]):  # fmt: skip
        shown[" ".join(command)] = await _said(house.home, *command)
    for where, text in shown.items():
        found = [one[:6] for one in hidden if one in text]
        assert not found, f"{where} shows a secret: {found}"
    assert key.split("_")[1] in shown["keys list"] and key[-4:] in shown["keys list --json"], (
        "what names a key is shown"
    )


async def _said(home: Home, *command: str) -> str:
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.cli", *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=keeper.environment(home, os.environ) | {"FAR_KEY": "k" * 20}, cwd=home.root,
    )  # fmt: skip
    return (await running.communicate())[0].decode()


TOLD: dict[str, dict[str, Any]] = {
    "answered": {},
    "upstream-breaks": {"status": 500, "body": json.dumps({"error": {"message": f"could not read {CANARY}"}})},
    "upstream-refuses": {"status": 400, "body": json.dumps({"error": {"message": f"{CANARY} is too long"}})},
    "no-json": {"body": f"<html>{CANARY}</html>"},
    "reset": {"reset": 0},
}


@pytest.mark.parametrize("fault", TOLD)
async def test_au_013_at_the_level_debug_no_log_holds_a_text_or_a_key(
    house: FaultHouse, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    await house.start()
    key = house.key()
    asyncio.get_running_loop().set_debug(True)
    caplog.set_level(logging.DEBUG)
    house.fail_all(TOLD[fault])
    house.most_stall_s = 5.0  # the debug mode of the loop is slow
    body: dict[str, Any] = ask("small", user=CANARY, metadata={CANARY: CANARY})
    body["messages"][0]["content"] = CANARY
    for sent in (
        *(wire.request({**body, **more}, key) for more in ({}, {"stream": True}, {CANARY: 1})),
        headed(f"Authorization: Bearer {key}x", body=CANARY.encode()),
        headed(f"Authorization: Bearer {key}", body=b'{"model": ' + CANARY.encode()),
    ):
        await house.send(sent)
    asyncio.get_running_loop().set_debug(False)
    await house.recorded()
    printed = capfd.readouterr()
    logged = "\n".join(f"{one.getMessage()} {one.exc_text or ''} {one.args!r}" for one in caplog.records)
    for text in (logged, caplog.text, printed.out, printed.err):
        assert CANARY not in text and key not in text and not re.search(re.escape(key[12:40]), text)
    with contextlib.closing(sqlite3.connect(house.home.ledger)) as db:
        assert CANARY not in "".join(map(str, db.execute("SELECT * FROM events").fetchall()))
