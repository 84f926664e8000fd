"""The door's own search: nothing the router says of a body counts, and a scanner in trouble closes the door."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from router.door import searching
from router.door.searching import Search, Unsearched, missed
from router.records import Found
from router.scanner.matcher import Matcher
from router.scanner.scanner import Scanner, ScannerError
from router.scanner.search import Searched
from serving.catalogue import DataClass, Privacy

APPROVED = {"by": "security", "contract": "c1", "until": "2999-01-01"}
CARD, EMAIL = "my card is 4111 1111 1111 1111", "write to jo.banks@hospital-north.org"


def secret() -> str:
    """A token as code hosts give them, made here so that none stands in a file."""
    return "ghp_" + "".join("aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1zA"[n % 35] for n in range(36))


def says(text: str, model: str = "big") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


def trusted(house: Any, name: str, clearance: str) -> None:
    house.models.append(house.model(name, clearance=clearance, approved=APPROVED))


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "a message": lambda text: {"messages": [{"role": "user", "content": text}]},
    "a part": lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
    "an earlier turn": lambda text: {
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": "x"}]
    },
    "what a tool gave": lambda text: {"messages": [{"role": "tool", "tool_call_id": "1", "content": text}]},
    "a call of a tool": lambda text: {
        "messages": [
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": orjson.dumps({"a": text}).decode()},
                    }
                ],
            }
        ]
    },
    "a tool": lambda text: {"tools": [{"type": "function", "function": {"name": "f", "description": text}}]},
    "a key of a schema": lambda text: {
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"properties": {text: {"type": "string"}}}}}
        ]
    },
    "a stop": lambda text: {"stop": [text]},
    "the user": lambda text: {"user": text},
    "a form": lambda text: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "description": text}}
    },
}


@pytest.mark.parametrize("place", PLACES)
async def test_what_the_door_finds_itself_stays_whatever_the_permit_claims(house: Any, far: Any, place: str) -> None:
    """The permit is good, sealed by the router, and claims public: as a compromised router's would."""
    await house.start()
    for text in (CARD, EMAIL, secret()):
        body = house.body(**PLACES[place](text))
        status, mark, found = await house.send(body)
        assert (status, mark, found["error"]["code"]) == (403, "refused", "data_class_not_cleared"), text
        assert (far.bytes_seen, far.connections) == (0, 0)
        assert text not in str(found)
    assert (await house.send(house.body(**PLACES[place]("the weather is fine"))))[0] == 200
    written = house.home.book.read_text()
    assert (
        "4111 1111" not in written and "41111111" not in written and "banks" not in written and secret() not in written
    )


async def test_a_router_that_seals_what_it_likes_sends_what_a_public_key_could_have_sent(house: Any, far: Any) -> None:
    """Every claim for every key, text and model, under a good seal: what leaves is within the clearance."""
    ranks = ("public", "internal", "private", "secret")
    texts = {"public": "the weather is fine", "internal": EMAIL, "private": CARD, "secret": secret()}
    trusted(house, "trusted", "private")
    for name in ranks[1:]:
        house.add_key(f"of-{name}", name)
    await house.start()
    left = 0
    for key, claimed, (content, text), model in itertools.product(ranks, ranks, texts.items(), ("big", "trusted")):
        clearance = ranks.index("public" if model == "big" else "private")
        may = max(map(ranks.index, (key, claimed, content))) <= clearance and ranks.index(claimed) >= ranks.index(key)
        named = "kpublic" if key == "public" else f"of-{key}"
        raw = orjson.dumps(says(text, model))
        status, _, found = await house.send(raw, model=model, key=named, data_class=claimed)
        left += may
        assert (status == 200) is may, (key, claimed, content, model, found)
        assert len(far.requests) == left
    assert left == 1 + 18  # to a public model public text of a public key alone


async def test_what_an_approved_model_may_have_leaves_and_the_book_says_what_was_found(house: Any, far: Any) -> None:
    trusted(house, "inner", "internal")
    trusted(house, "trusted", "private")
    await house.start()
    for text, model, wanted in (
        (EMAIL, "inner", "internal"), (CARD, "inner", ""), (CARD, "trusted", "private"), (secret(), "trusted", ""),
    ):  # fmt: skip
        status, _, found = await house.send(orjson.dumps(says(text, model)), model=model)
        assert status == (200 if wanted else 403), found
    await house.ended(2)
    sent = [entry for entry in house.book() if entry["kind"] == "sending"]
    assert [(e["claimed"], e["data_class"], e["rule"]) for e in sent] == [
        ("public", "internal", "approved:c1"), ("public", "private", "approved:c1"),
    ]  # fmt: skip
    assert sent[0]["found"] == {"email": 1} and sent[1]["found"] == {"card": 1}


async def test_the_translated_bytes_are_searched_not_those_that_came(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialect that puts something in is searched with what it puts in."""
    from router.door.providers import openai

    real = openai.translate
    monkeypatch.setattr(openai, "translate", lambda *given: {**real(*given), "user": CARD})
    await house.start()
    assert (await house.send())[2]["error"]["code"] == "data_class_not_cleared"
    assert far.bytes_seen == 0


async def test_the_sites_own_words_and_effects_count_in_the_door(house: Any, far: Any) -> None:
    house.site = {"privacy": {
        "effects": {"email": "public"}, "own": [{"name": "project", "data_class": "internal", "words": ["Bluebird"]}],
    }}  # fmt: skip
    await house.start()
    assert (await house.send(house.body(messages=[{"role": "user", "content": "of BLUEBIRD"}])))[0] == 403
    assert far.bytes_seen == 0
    assert (await house.send(house.body(messages=[{"role": "user", "content": EMAIL}])))[0] == 200


class Odd:
    """A scanner that does anything but its work."""

    def __init__(self, does: Callable[..., Any]) -> None:
        self.search = does
        self.trouble = ""

    def test(self) -> None:
        return


def raises(*_: object) -> Searched:
    raise MemoryError("no room for: " + CARD)


ODD: dict[str, Callable[..., Any]] = {
    "raises": raises,
    "gives nothing": lambda *_: None,
    "gives something else": lambda *_: [],
    "has looked at no text": lambda *_: Searched((), 0, "", ()),
    "did not finish": lambda texts, _: Searched((), 9, "budget", ((),) * len(texts)),
    "says that it failed": lambda texts, _: Searched((), 9, "error", ((),) * len(texts)),
    "finds a kind nobody knows": lambda texts, _: Searched(
        (Found("new", DataClass.public),), 9, "", ((),) * len(texts)
    ),
    "finds what it calls harmless": lambda texts, _: Searched(
        (Found("card", DataClass.public, 0),), 9, "", ((),) * len(texts)
    ),
}


@pytest.mark.parametrize("does", ODD)
async def test_a_scanner_that_does_not_do_its_work_lets_nothing_out(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    await house.start()
    monkeypatch.setattr(Scanner, "search", lambda self, *given: ODD[does](*given))
    status, mark, found = await house.send()
    assert (status, mark) == (403, "refused") and found["error"]["code"] in ("not_scannable", "data_class_not_cleared")
    assert far.bytes_seen == 0 and CARD not in str(found) + house.home.book.read_text()
    monkeypatch.undo()
    assert (await house.send())[0] == 200


async def test_a_scanner_that_hangs_is_given_up_and_the_door_goes_on(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.start()
    over = threading.Event()
    monkeypatch.setattr(searching, "SEARCH_S", 0.05)
    monkeypatch.setattr(Scanner, "search", lambda self, *_: over.wait())
    for _ in range(searching.THREADS + 2):  # more than there are threads
        status, mark, found = await house.send()
        assert (status, mark, found["error"]["code"]) == (403, "refused", "not_scannable")
    assert far.bytes_seen == 0 and (await house.status())["open"] is True
    over.set()
    monkeypatch.undo()
    assert (await house.send())[0] == 200


async def closed(house: Any, far: Any, word: str) -> None:
    """The door runs, is closed for this reason, and says so in its book."""
    await house.start()
    said = await house.status()
    assert said["open"] is False and word in said["closed_because"], said
    status, mark, found = await house.send()
    assert (status, mark, found["error"]["code"]) == (503, "closed", "scanner_failed")
    assert far.bytes_seen == 0
    (entry,) = [e for e in house.book() if e["kind"] == "door_closed"]
    assert entry["by"] == "scanner" and word in entry["reason"]


async def test_rules_that_do_not_compile_close_it(house: Any, far: Any) -> None:
    house.site = {"privacy": {"own": [{"name": "broken", "pattern": "(unclosed"}]}}
    await closed(house, far, "")


async def test_an_effect_of_no_kind_closes_it(house: Any, far: Any) -> None:
    house.site = {"privacy": {"effects": {"emial": "secret"}}}
    await closed(house, far, "emial")


async def test_a_missing_package_closes_it_and_does_not_end_it(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "router.scanner.scanner", None)
    await closed(house, far, "cannot be used")


async def test_a_scanner_that_cannot_start_closes_it(house: Any, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ScannerError("the rules cannot be kept")

    monkeypatch.setattr(Scanner, "__init__", broken)
    await closed(house, far, "cannot be kept")


async def test_a_self_test_that_fails_closes_it_and_one_that_passes_opens_it(
    house: Any, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.door.app.TEST_EVERY_S", 0.01)
    await house.start()
    assert (await house.send())[0] == 200
    before = far.bytes_seen
    # As Hyperscan does without a handler: it looks for nothing, and says nothing of it.
    with monkeypatch.context() as deaf:
        deaf.setattr(Matcher, "scan", lambda self, data, most: ([], True))
        await told(house, "door_closed", 1)
        status, mark, found = await house.send()
        assert (status, mark, found["error"]["code"]) == (503, "closed", "scanner_failed") and far.bytes_seen == before
        assert "planted" in (await house.status())["closed_because"]
    await told(house, "door_opened", 1)
    assert (await house.send())[0] == 200


async def told(house: Any, kind: str, count: int) -> None:
    async with asyncio.timeout(10):
        while sum(entry["kind"] == kind for entry in house.book()) < count:
            await asyncio.sleep(0.01)


async def test_a_self_test_that_is_overdue_closes_it(house: Any) -> None:
    now = [time.monotonic()]
    search = Search(Privacy(), house.home.book.with_name("rules"), lambda: now[0])
    assert search.trouble and search.passed_s_ago is None
    await search.test()
    assert (search.trouble, search.passed_s_ago) == ("", 0.0)
    now[0] += searching.STALE_S + 1
    assert "overdue" in search.trouble
    await search.test()
    assert search.trouble == ""
    search.close()
    with pytest.raises(Unsearched):
        await search.search({}, False)


MEDIA = "data:image/png;base64," + "A" * 400


@pytest.mark.parametrize(
    ("body", "given", "opaque", "left_out"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, {"messages", "role", "user", "content", "a"}, False, False),
        ({"messages": [{"role": "user", "content": "a"}]}, {"messages", "role", "user", "content"}, False, True),
        ({"messages": [{"role": "user", "content": "a"}]}, {"messages", "user", "content", "a"}, False, True),
        ({"x": {"y": [{"z": ["deep"]}]}}, {"x", "y", "z"}, False, True),
        ({"x": MEDIA}, {"x"}, False, True),
        ({"x": MEDIA}, {"x"}, True, False),
        ({"x": "A" * 400}, {"x"}, True, False),
        ({"x": "name.png"}, {"x"}, True, True),
        ({"model": "m", "n": 1, "stop": None, "y": ""}, {"model", "n", "stop", "y"}, False, False),
        ({"model": "m"}, set(), False, True),
    ],
)
def test_a_text_that_the_scanner_was_not_given_is_noticed(
    body: dict[str, Any], given: set[str], opaque: bool, left_out: bool
) -> None:
    assert missed(body, given, opaque) is left_out
