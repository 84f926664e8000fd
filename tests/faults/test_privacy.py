"""The privacy faults of the catalogue: what must stay does, however it is written, wherever it stands, whatever fails.

The provider behind the real door counts every byte; the invariants of `conftest.py` hold that none came.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from router import traces
from router.records import DataClass
from serving.catalogue import KeyDefaults, Site
from serving.parameters import REFUSED
from tests.conftest import ROOT, ask
from tests.faults.cases import each
from tests.faults.conftest import FaultHouse
from tests.faults.wire import Outcome
from tests.leaks.canaries import credential, word
from tests.leaks.places import all_fields, places

HELD = ("data_class_not_cleared", "not_scannable")
EVERYTHING = sorted(all_fields() - REFUSED.keys() - {"headgate"})
LONG_ANSWER = "The lock keeper writes down each boat, its name, its load and the hour at which it came through. " * 2


async def started(house: FaultHouse, **site: Any) -> None:
    """A house whose hosted model takes every field, so that nothing but the class holds a request back."""
    big = {"parameters": EVERYTHING, "abilities": ["chat", "tools", "schema", "vision"]}
    await house.start(hosted=True, models={"big": big, **site.pop("models", {})}, **site)


async def held(house: FaultHouse, body: dict[str, Any], key: str | None = None, **more: Any) -> Outcome:
    """Ask the hosted model by its name with a key whose data is public; it must be refused for what it holds."""
    found = await house.tell({**ask("big"), **body}, key or house.key("public"), **more)
    assert found.status == 403 and found.code in HELD, (found.status, found.code, found.error)
    return found


def said(*texts: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for text in texts]}


# ---- who says what it is


async def test_pg_003_a_label_never_lowers(house: FaultHouse) -> None:
    await started(house)
    key = house.key("private")
    await held(house, {}, key, headers={"x-headgate-data-class": "public"})
    await held(house, {"headgate": {"data_class": "public"}}, key)
    label = {"x-headgate-data-class": "public", "x-headgate-reason": "published"}
    found = await house.tell(ask("big"), key, headers=label)
    assert (found.status, found.code) == (403, "declassify_not_allowed")


async def test_pg_003_what_was_found_is_not_lowered_by_whoever_may_lower(house: FaultHouse) -> None:
    """Nor is what is secret: the reason that is recorded speaks of what people said, not of what stands there."""
    await started(house)
    label = {"x-headgate-data-class": "public", "x-headgate-reason": "published"}
    key = house.key("private", scopes=frozenset({"declassify"}))
    await held(house, said(f"My token is {credential()}"), key, headers=label)
    await held(house, {}, house.key("secret", scopes=frozenset({"declassify"})), headers=label)


async def test_pg_018_what_no_pattern_can_know_stays_unless_somebody_said_that_it_is_public(house: FaultHouse) -> None:
    assert KeyDefaults().data_class is DataClass.private
    assert Site().keys.data_class is DataClass.private
    await started(house)
    texts = ("Anna has been ill since March; her doctor says it is the liver.",
             "We sign with the buyer on Tuesday, at nine a share.")  # fmt: skip
    for text in texts:
        await held(house, said(text), house.key("private"))


# ---- where it stands


@each({
    "at the end of 50 KB": (said("And on it went. " * 3200 + "{}"),),
    "at the end of 300 KB": (said("And on it went. " * 19_000 + "{}"),),
    "behind 300 KB of other messages": (said(*["And on it went. " * 600] * 32, "{}"),),
})  # fmt: skip
async def test_pg_005_every_byte_is_searched(house: FaultHouse, body: Any) -> None:
    await started(house)
    await held(house, filled(body))


async def test_pg_006_an_earlier_turn_counts_as_much_as_the_last(house: FaultHouse) -> None:
    await started(house)
    body = said("Here is my token: {}", "And what is the weather like?")
    body["messages"].insert(1, {"role": "assistant", "content": "Thank you."})
    await held(house, filled(body))


@each({
    "a tool's result": ({"role": "tool", "tool_call_id": "c1", "content": "It is {}"},),
    "in parts": ({"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "{}"}]},),
    "arguments": ({"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{{"token": "{}"}}'}}]},),
    "the old form": ({"role": "function", "name": "f", "content": "{}"},),
})  # fmt: skip
async def test_pg_007_results_and_arguments_of_tools(house: FaultHouse, message: Any) -> None:
    await started(house)
    body = ask("big")
    body["messages"].insert(0, filled(message))
    await held(house, body)


@each({place.name: (place,) for place in places("chat/completions") if " " in place.name and place.field not in (
    "headgate", "stream", "model", "")})  # fmt: skip
async def test_pg_008_every_string_and_key_of_what_would_leave(house: FaultHouse, place: Any) -> None:
    """Whatever is refused for its form never leaves either; nothing may be answered by the provider."""
    await started(house)
    body = ask("big")
    place.put(body, credential())
    found = await house.tell({**body, "model": "big"}, house.key("public"))
    assert found.status in (400, 403, 404), (found.status, found.body[:200])


@each({
    "a picture": ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],),
    "sound": ([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],),
    "a document": ([{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}}],),
    "a file kept elsewhere": ([{"type": "file", "file": {"file_id": "file-1"}}],),
    "a part of no known type": ([{"type": "hologram", "hologram": "AAAA"}],),
})  # fmt: skip
async def test_pg_009_what_nobody_can_read_is_private(house: FaultHouse, parts: Any) -> None:
    await started(house)
    found = await held(house, {"messages": [{"role": "user", "content": parts}]})
    assert "cannot be read" in found.error["message"]


# ---- how it is written

IBAN = "DE89" + "370400440532013000"
"""The one that every description of IBANs shows."""
CYRILLIC = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
HIDDEN: dict[str, Callable[[str], str]] = {
    "zero width space": lambda text: "\u200b".join(text),
    "soft hyphen": lambda text: "\u00ad".join(text),
    "direction marks": lambda text: "\u202e".join(text),
    "variation selectors": lambda text: "\ufe0f".join(text),
    "tags": lambda text: "".join(chr(0xE0000 + ord(one)) for one in text),
    "full width": lambda text: "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text),
}
CODED: dict[str, Callable[[str], str]] = {
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "hex": lambda text: text.encode().hex(),
    "percent": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "entities": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "escapes": lambda text: "".join(f"\\u{ord(one):04x}" for one in text),
    "two layers": lambda text: urllib.parse.quote(base64.b64encode(text.encode()).decode(), safe=""),
}


@each(HIDDEN)
async def test_pg_011_signs_that_nobody_sees(house: FaultHouse, hide: Any) -> None:
    await started(house)
    for text in (credential(), IBAN):
        await held(house, said(f"Please keep {hide(text)} for me."))


@each({"credential": credential, "IBAN": lambda: IBAN})
async def test_pg_013_letters_of_another_script_that_look_the_same(house: FaultHouse, make: Any) -> None:
    await started(house)
    await held(house, said(f"Please keep {make().translate(CYRILLIC)} for me."))


async def test_pg_013_a_word_of_two_scripts_is_suspicious_in_itself(house: FaultHouse) -> None:
    await started(house)
    await held(house, said(f"Please log in at {'paypal'.translate(CYRILLIC)} for me."))


@each(CODED)
async def test_pg_014_encoded(house: FaultHouse, code: Any) -> None:
    await started(house)
    for text in (f"token={credential()}", f"The account is {IBAN}."):
        await held(house, said(f"Please keep {code(text)} for me."))


# ---- what fails


async def test_pg_019_a_search_that_fails_inside_is_no_search(house: FaultHouse) -> None:
    """Whatever the library under it does: an error, nothing at all. More in tests/leaks/test_doubles.py."""
    await started(house)
    key = house.key("public")
    for fails in (MemoryError(), OSError("scratch in use"), ValueError()):
        with mock.patch("router.scanner.matcher.Matcher.scan", side_effect=fails):
            await held(house, {}, key)
    with mock.patch("router.scanner.matcher.Matcher.scan", return_value=None):
        await held(house, {}, key)


async def test_pg_021_rules_that_find_nothing_any_more_open_nothing(house: FaultHouse) -> None:
    """The planted examples are not found, so the self-test fails; until it passes again nothing counts as searched.

    It is no fault of the request, so the caller is told to come again.
    """
    await started(house)
    assert house.built is not None
    key, scanner = house.key("public"), house.built.gate._scanner
    with mock.patch("router.scanner.matcher.Matcher.scan", return_value=([], True)):
        assert scanner is not None and scanner.test(), "a scanner that finds nothing passes its test"
        plain = await house.tell(ask("big"), key)
    found = await house.tell({**ask("big"), **said(f"My token is {credential()}")}, key)
    assert {(one.status, one.code) for one in (plain, found)} == {(503, "door_closed")}
    assert scanner.test() == ""
    await held(house, said(f"My token is {credential()}"), key)


async def test_pg_020_the_worst_text_ends_and_stays_or_was_read_whole(house: FaultHouse) -> None:
    await started(house)
    house.may_leave = True
    house.most_stall_s = 1.0
    for piece in ("4111 ", "1-", "token ", "QUJD", "%41", "&#65;"):
        found = await house.tell({**ask("big"), **said(piece * (400_000 // len(piece)))}, house.key("public"))
        assert found.status == 200 or found.code in HELD, (piece, found.status, found.code)
        assert found.seconds < 10


async def test_pg_023_no_second_try_goes_where_the_first_may_not(house: FaultHouse) -> None:
    """Retry, fallback, escalation: the local one fails in every way, and what was found keeps it here."""
    await started(house)
    key = house.key("public", scopes=frozenset({"escalate"}))
    house.sent_again = 8  # a connection that is reset may have been at its end: then it is sent once more
    for script in ({"status": 500, "body": "{}"}, {"reset": 0}, {"cut": 10}, {"status": 429, "body": "{}"}):
        for one in house.replicas:
            one.script = script
        for headers in ({}, {"x-headgate-escalate": "low-confidence"}):
            for stream in (False, True):
                body = {**ask("auto", stream=stream), **said(f"My token is {credential()}")}
                found = await house.tell(body, key, headers=headers)
                assert found.status in (429, 502, 503), (script, found.status)
    assert house.leaked() == 0


async def test_pg_026_an_error_that_quotes_the_request_is_told_without_its_words(
    house: FaultHouse, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exporter of traces is here; logs are, and an exception can hold a text. Metrics hold none."""
    await started(house)
    text, made = word(), logging.getLogRecordFactory()
    house.unseen.add("failed")  # it fails before a byte is sent
    try:
        for module, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
            monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
        traces.install()
        with mock.patch("router.upstream.sending.Sending.send", side_effect=ValueError(text)):
            found = await house.tell({**ask("auto"), **said(text)}, house.key("private"))
        assert (found.status, found.code) == (500, "internal_error")
    finally:
        logging.setLogRecordFactory(made)
    assert "ValueError" in caplog.text and text not in caplog.text
    assert house.ledger is not None and text not in house.ledger.metrics.text().decode()


async def test_pg_027_an_error_inside_the_gate_stays_here_and_is_answered_here(house: FaultHouse) -> None:
    await started(house)
    key = house.key("public")
    with mock.patch("router.scanner.reading.texts", side_effect=KeyError("x")):
        await held(house, {}, key)
        found = await house.tell(ask("auto"), key)
    assert found.headers["x-headgate-place"] == "local"


async def test_pg_028_a_session_that_was_private_stays_it(house: FaultHouse) -> None:
    await started(house)
    key, session = house.key("public"), {"x-headgate-session": "morning"}
    first = await house.tell({**ask("auto"), **said(f"My token is {credential()}")}, key, headers=session)
    assert first.headers["x-headgate-place"] == "local"
    await held(house, said("And what is the weather like?"), key, headers=session)
    await held(house, {"headgate": {"data_class": "public"}, **said("And now?")}, key, headers=session)


async def test_pg_028_what_was_private_stays_it_in_a_new_session(house: FaultHouse) -> None:
    """By the hashes of the message, and of the answer that was given to it; neither holds a token any more."""
    await started(house)
    house.fail_all(
        {
            "body": json.dumps(
                {
                    "id": "c",
                    "object": "chat.completion",
                    "model": "m",
                    "choices": [
                        {"index": 0, "message": {"role": "assistant", "content": LONG_ANSWER}, "finish_reason": "stop"}
                    ],
                }
            )
        }
    )
    key = house.key("public")
    message = f"My token is {credential()}; {LONG_ANSWER[::-1]}"
    first = await house.tell({**ask("auto"), **said(message)}, key, headers={"x-headgate-session": "one"})
    assert first.headers["x-headgate-place"] == "local"
    body = said("Please shorten that.")
    body["messages"].insert(0, {"role": "assistant", "content": LONG_ANSWER})
    found = await held(house, body, key, headers={"x-headgate-session": "two"})
    assert "answer to an earlier request" in found.error["message"]
    # The same words without the token are another message; the same message, token and all, needs no history.
    house.may_leave = True
    told = await house.tell({**ask("big"), **said("Please shorten that.")}, key)
    assert told.status == 200, told.error


async def test_pg_029_a_chain_of_answers_kept_elsewhere_is_refused(house: FaultHouse) -> None:
    await started(house)
    key = house.key("public")
    for path, body in (("/v1/responses", {"input": "Hi"}), ("/v1/chat/completions", ask())):
        found = await house.tell({**body, "model": "auto", "previous_response_id": "resp_1"}, key, path)
        assert found.status in (400, 404), found.body
    assert house.asked() == 0


@each(["http://{}.example/", "https://{}.example/a.png", "ftp://{}.example"])
async def test_pg_032_no_address_of_a_caller_is_looked_up(house: FaultHouse, url: str) -> None:
    asked: list[Any] = []
    await started(house)
    url = url.format(secrets.token_hex(8))
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    with mock.patch("socket.getaddrinfo", lambda *given, **_: asked.append(given)):
        for model in ("auto", "small", "big"):
            found = await house.tell({**body, "model": model}, house.key("public"))
            assert (found.status, found.code) == (400, "media_url_not_allowed")
    assert asked == []


async def test_pg_033_what_one_team_has_sent_makes_no_other_teams_answer_come_sooner(house: FaultHouse) -> None:
    """vLLM keeps the prompts it has read apart by a salt, which is each team's own and which nobody outside knows."""
    await house.start()
    for team in ("red", "red", "blue"):
        await house.tell(ask(), house.key("private", team))
    salts = [json.loads(r.body)["cache_salt"] for one in house.replicas for r in one.requests]
    assert salts[0] == salts[1] != salts[2] and all(len(salt) >= 32 for salt in salts)
    found = await house.tell(ask(cache_salt="mine"), house.key("private"))
    assert (found.status, found.code) == (400, "unsupported_parameter")


def test_pg_034_that_sizes_and_times_of_streams_tell_something_is_said() -> None:
    page = (ROOT / "README.md").read_text().partition("## What leaves this machine")[2].partition("\n## ")[0]
    assert "how large" in page and "when" in page


SEARCHES = """
import sys
seen = []
sys.addaudithook(lambda event, given: seen.append((event, given)) if event in (
    "socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "urllib.Request") else None)
from pathlib import Path
from router.records import Findings
from router.scanner import rules
from router.scanner.reading import texts
from router.scanner.scanner import Scanner
from serving.catalogue import Privacy
import router.app, router.door.app, router.cli, serving.catalogue
scanner = Scanner(rules.of(Privacy()), Path(sys.argv[1]))
text = "Write to anna" + chr(64) + "riverbank.co.uk, call +44 20 7946 0958, pay DE89" + "370400440532013000 or http://a.b.example/c"
found = scanner.search(texts({"messages": [{"role": "user", "content": text}]}))
assert found.found, found
assert not seen, seen
"""


def test_pg_035_no_library_calls_home(tmp_path: Any) -> None:
    """Importing all of it and searching a text with addresses and numbers opens no connection and looks up no name."""
    run = subprocess.run([sys.executable, "-c", SEARCHES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def filled(value: Any) -> Any:
    """`value` with a credential of its own in place of each `{}`."""
    if isinstance(value, str):
        return value.format(credential()) if "{}" in value else value
    if isinstance(value, dict):
        return {name: filled(one) for name, one in value.items()}
    return [filled(one) for one in value] if isinstance(value, list) else value
