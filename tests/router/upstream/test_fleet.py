"""The fleet: serving's word is checked before anything is sent, and no answer, however odd, hides the other models."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from router.upstream import fleet as fleets
from router.upstream.connection import Address, Bounds, Connections, Deadlines
from router.upstream.fleet import Fleet, unlisted
from serving.catalogue import Attached, Catalogue, Model, Provider, Site
from serving.home import Home
from tests.conftest import instance, until
from tests.fakes.upstream import Upstream

CATALOGUE = Catalogue(
    models={
        "small": Model(name="small", place="local", lanes=("private",), context=4096, output=64),
        "big": Model(
            name="big", place="hosted", lanes=("frontier",), context=4096, output=64, provider="far", provider_model="b"
        ),
    },
    providers={
        "far": Provider(enabled=True, base_url="https://api.provider.example/v1"),
        "near": Provider(base_url="http://127.0.0.1:4000/v1"),
        "odd": Provider(base_url="https://["),
    },
    site=Site(
        attach=(
            Attached(url="http://gpu-7.internal:8000/v1/", allow_cleartext=True),
            Attached(url="http://gpu-8.internal:8000"),
            Attached(url="unix:/x", allow_cleartext=True),
            Attached(url="http://8.8.8.8:8000", allow_cleartext=True),
        )
    ),
    version="v",
)


@pytest.fixture
async def connections() -> AsyncIterator[Connections]:
    made = Connections(Deadlines(), Bounds())
    yield made
    await made.close()


@pytest.fixture
def fleet(connections: Connections, tmp_path: Path) -> Fleet:
    return Fleet(CATALOGUE, connections, Address.parse(f"unix:{tmp_path}/none"), None)


def document(*instances: Any) -> dict[str, Any]:
    return {"version": 1, "host": "h", "boot": "b", "at": 0, "gpus": [], "gpu_note": "", "instances": list(instances)}


def state(fleet: Fleet, name: str = "x") -> tuple[str, str, bool]:
    """State and detail of an endpoint, and whether it can be reached."""
    endpoint = next(e for e in fleet.snapshot().endpoints if e.name == name)
    try:
        fleet.access(name)
    except KeyError:
        return endpoint.state, endpoint.detail, False
    return endpoint.state, endpoint.detail, True


@pytest.mark.parametrize(
    ("address", "ca_file"),
    [
        ("unix:/run/engine.sock", ""), ("http://127.0.0.1:8000", ""), ("http://localhost:8000", ""),
        ("http://[::1]:8000", ""), ("http://gpu-7.internal:8000", ""), ("https://gpu-9.internal:8000", "/etc/ca.pem"),
        ("https://10.0.0.9", "/etc/ca.pem"),
    ],
)  # fmt: skip
def test_what_is_this_sites_own_is_reached(fleet: Fleet, address: str, ca_file: str) -> None:
    fleet._take_instances(document(instance("x", address, ca_file=ca_file)))
    assert state(fleet) == ("ready", "", True)
    assert fleet.access("x").address.ca_file == ("" if address.startswith("unix") else ca_file)


@pytest.mark.parametrize(
    ("address", "ca_file", "words"),
    [
        ("https://gpu-9.internal:8000", "", "attach[].ca_file"),
        ("https://anything.example", "", "attach[].ca_file"),
        ("http://gpu-8.internal:8000", "/etc/ca.pem", "allow_cleartext"),
        ("http://gpu-7.internal:8001", "", "allow_cleartext"),
        ("http://10.0.0.7:8000", "", "allow_cleartext"),
        ("http://localhost.invalid:8000", "", "allow_cleartext"),
        ("http://8.8.8.8:8000", "", "public address"),
        ("https://8.8.8.8", "/etc/ca.pem", "public address"),
        ("https://[::ffff:8.8.8.8]", "/etc/ca.pem", "public address"),
        ("https://134744072", "/etc/ca.pem", "public address"),
        ("https://api.provider.example", "/etc/ca.pem", "hosted provider"),
        ("https://API.provider.example.:444", "/etc/ca.pem", "hosted provider"),
        ("http://localhost:4000", "", "hosted provider"),
    ],
)
def test_servings_word_alone_opens_no_address(fleet: Fleet, address: str, ca_file: str, words: str) -> None:
    """Serving refuses these too; this holds where its own check is wrong or gone."""
    fleet._take_instances(document(instance("x", address, ca_file=ca_file, attached=True)))
    found, detail, reached = state(fleet)
    assert (found, reached) == ("failed", False) and words in detail


def test_servings_own_reason_is_kept_where_it_refused_first(fleet: Fleet) -> None:
    fleet._take_instances(document(instance("x", "https://a.example", state="failed", detail="put it into the file")))
    assert state(fleet) == ("failed", "put it into the file", False)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "two words"}, {"model": "auto"}, {"model": 7}, {"address": "ftp://x"}, {"address": "http://a/b"},
        {"address": ["unix:/x"]}, {"address": ""}, {"context": "many"}, {"context": -1}, {"limit": True},
        {"load": "full"}, {"load": {"running": "two"}}, {"state": 1}, {"ca_file": 1}, {"key_env": {}}, {"served": []},
        {"detail": 1.5}, {"model": "big"},
    ],
)  # fmt: skip
def test_one_odd_entry_fails_alone_and_says_why(fleet: Fleet, changed: dict[str, Any]) -> None:
    odd = instance("x", "unix:/x") | changed
    assert fleet._take_instances(document(odd, instance("small", "unix:/run/small"))) == 0
    found, detail, reached = state(fleet)
    assert (found, reached) == ("failed", False) and detail and "\n" not in detail
    assert state(fleet, "small") == ("ready", "", True)
    assert {e.model for e in fleet.snapshot().endpoints} <= set(fleet.snapshot().models)


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, {"name": None}, {"name": ""}, {"name": "a b"}, {"name": "auto"}])
def test_an_entry_without_a_usable_name_is_left_out(fleet: Fleet, odd: Any) -> None:
    assert fleet._take_instances(document(odd, instance("small", "unix:/run/small"))) == 1
    assert [e.name for e in fleet.snapshot().endpoints] == ["small", "big"]


def test_a_second_entry_of_one_name_does_not_take_over_the_first(fleet: Fleet) -> None:
    assert fleet._take_instances(document(instance("small", "unix:/a"), instance("small", "unix:/b"))) == 1
    assert str(fleet.access("small").address) == "unix:/a"


def test_an_entry_that_says_little_is_taken(fleet: Fleet) -> None:
    fleet._take_instances(document({"name": "x", "state": "starting"}))
    assert state(fleet) == ("starting", "", False)


def test_the_day_is_the_snapshots(fleet: Fleet) -> None:
    assert fleet.today() == fleet.snapshot().today == dt.datetime.now(dt.UTC).date()


ODD_ANSWERS = [
    "not json", "[]", "null", "7", '"x"', "{}", '{"version": 2}', '{"version": 1}', '{"version": 1, "instances": {}}',
    "[" * 5000, '{"version": 1, "instances": [null, 3]}', '{"instance": 1, "policy": 2, "open": 3, "providers": []}',
    '{"instance": 1, "policy": 2, "open": true, "closed_because": "", "providers": {"far": null}}',
]  # fmt: skip


@pytest.fixture
async def polled(
    connections: Connections, home: Home, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Fleet, Upstream, Upstream, asyncio.Task[None]]]:
    """A fleet that polls without rest, and the serving and the door that it asks."""
    monkeypatch.setattr(fleets, "POLL_S", 0.002)
    monkeypatch.setattr(fleets, "POLL_WHILE_STARTING_S", 0.002)
    async with Upstream(path=home.socket("serving")) as serving, Upstream(path=home.socket("door")) as door:
        serving.script = door.script = {"body": "{}"}
        fleet = Fleet(CATALOGUE, connections, Address.parse(serving.address), Address.parse(door.address))
        task = asyncio.create_task(fleet.run())
        yield fleet, serving, door, task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_no_answer_ends_the_polling_and_each_trouble_is_logged_once(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]], caplog: pytest.LogCaptureFixture
) -> None:
    fleet, serving, door, task = polled
    caplog.set_level(logging.INFO, "headgate.router")
    for text in ODD_ANSWERS:
        serving.script = door.script = {"body": text}
        enough = len(serving.requests) + 3, len(door.requests) + 3
        await until(lambda n=enough: len(serving.requests) > n[0] and len(door.requests) > n[1], task)
        assert fleet.snapshot().endpoints[-1].state == "closed"
    for part in ("serving: ", "door: "):
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith(part)]
        assert said and all(one != after for one, after in itertools.pairwise(said))


async def test_what_answers_again_is_used_again(
    polled: tuple[Fleet, Upstream, Upstream, asyncio.Task[None]], caplog: pytest.LogCaptureFixture
) -> None:
    fleet, serving, door, task = polled
    caplog.set_level(logging.INFO, "headgate.router")
    await until(lambda: len(caplog.records) == 2, task)
    serving.script = {"body": json.dumps(document(instance("small", "unix:/run/small")))}
    fine = {"instance": "i", "policy": "v", "open": True, "closed_because": "", "providers": {"far": {"reason": None}}}
    door.script = {"body": json.dumps(fine)}
    await until(lambda: [e.state for e in fleet.snapshot().endpoints] == ["ready", "ready"], task)
    messages = {r.getMessage() for r in caplog.records}
    assert {"serving: it speaks another version", "serving answers again", "door answers again"} <= messages
    assert json.loads(json.dumps(fleet.state()))["door"]["providers"] == {"far": ""}


def test_an_unlisted_model_can_do_what_serving_says_of_it() -> None:
    assert unlisted("demo", 0, ["chat"]).abilities == {"chat"}
    assert "embeddings" in unlisted("theirs", 0).abilities
