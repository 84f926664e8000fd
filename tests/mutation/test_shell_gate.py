"""The gate's thin shell, with stand-ins for scanner, ledger and provider: what both processes ask before a byte leaves.

Quick, so that every mutant can be held against them; the real ones are tried in tests/router/door and tests/leaks.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from router.door import closing, judging, keys
from router.door.carrying import Parcel
from router.door.closing import ODD, Shut
from router.door.destination import DestinationError
from router.door.judging import Closed, Judge
from router.door.policy import Key
from router.door.searching import Search, Seen, Unsearched, missed
from router.errors import BadRequest, Forbidden, HeadgateError, Unavailable
from router.gate import Gate
from router.permit import Permit
from router.records import Findings
from router.scanner.reading import MOST_TEXTS
from router.scanner.search import Searched
from serving.catalogue import Approval, Catalogue, Model, Provider, Site
from tests.conftest import until
from tests.fakes.asking import ask, caller, hosted
from tests.router.test_gate import History, Scanner

NOW = dt.datetime(2026, 6, 15, 12, tzinfo=dt.UTC).timestamp()
MESSAGE = {"role": "user", "content": "Hello"}
BODY = {"model": "big", "messages": [MESSAGE]}
PERMIT = Permit(
    id="p1", door="d1", request="r1", key="k1", team="red", route="chat/completions", provider="far", model="big",
    path="chat/completions", data_class="public", body="", policy="", expires=NOW,
)  # fmt: skip
KEY = Key("k1", "red", "public", frozenset({"frontier"}), None, None)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


GOOD = Seen({}, "")


class Searching:
    """Gives what it is told to."""

    def __init__(self, seen: Seen | Exception, trouble: str) -> None:
        self.seen, self.trouble = seen, trouble
        self.effects = {"card": "private", "email": "internal"}
        self.asked: list[tuple[Any, bool]] = []

    async def search(self, body: Any, opaque: bool) -> Seen:
        self.asked.append((body, opaque))
        if isinstance(self.seen, Exception):
            raise self.seen
        return self.seen


class Way:
    """A destination that nobody goes to."""

    def __init__(self, provider: Provider) -> None:
        if provider.base_url.startswith("http:"):
            raise DestinationError("it may not be called")
        self.provider = provider


class Judged:
    """The door's judgement of a permit and a body; whatever is wrong about the world is said by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch, self.search = monkeypatch, Searching(GOOD, "")
        monkeypatch.setattr(judging, "Destination", Way)

    def __call__(
        self, body: Any = BODY, *, permit: Permit = PERMIT, key: Key | Exception = KEY, seen: Seen | Exception = GOOD,
        trouble: str = "", model: Model | None = None, site: dict[str, Any] | None = None, secret: str = "k" * 20,
        at: float = NOW, base_url: str = "https://far.example/v1",
    ) -> Parcel:  # fmt: skip
        def read(ledger: Path, name: str) -> Key:
            assert (ledger, name) == (Path("ledger"), permit.key)
            if isinstance(key, Exception):
                raise key
            return key

        self._patch.setattr(keys, "read_key", read)
        self.search = Searching(seen, trouble)
        far = Provider(enabled=True, base_url=base_url, key_env="FAR")
        big = model or hosted("big", provider="far", provider_model="big-1")
        catalogue = Catalogue(models={"big": big}, providers={"far": far}, site=Site(**(site or {})))
        environ = {"FAR": secret} if secret else {}
        judge = Judge(catalogue, Path("ledger"), cast(Search, self.search), environ, lambda: at)
        good = replace(permit, policy=permit.policy or catalogue.version)
        return asyncio.run(judge.judge(good, body if isinstance(body, bytes) else orjson.dumps(body)))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Judged:
    return Judged(monkeypatch)


def refused(judged: Judged, kind: type[HeadgateError], code: str, *given: Any, **more: Any) -> None:
    with pytest.raises(HeadgateError) as found:
        judged(*given, **more)
    assert (type(found.value), found.value.code) == (kind, code), found.value


def approved(clearance: str, until: dt.date = dt.date(2026, 6, 15), **more: Any) -> Model:
    by = Approval(by="dpo", contract="dpa", until=until)
    return hosted("big", provider="far", provider_model="big-1", clearance=clearance, approved=by, **more)


def test_what_may_leave_is_a_parcel_of_what_was_judged(judged: Judged) -> None:
    parcel = judged()
    assert parcel.permit.id == "p1" and parcel.model.name == "big" and parcel.key == "k" * 20
    assert orjson.loads(parcel.body) == {"model": "big-1", "messages": [MESSAGE]}
    assert parcel.url == "https://far.example/v1/chat/completions"
    assert parcel.headers["accept"] == "application/json" and parcel.headers["authorization"] == "Bearer " + "k" * 20
    assert isinstance(parcel.way, Way)
    assert parcel.verdict == ("public", "public", "public", (), {}, "")
    assert judged.search.asked == [(orjson.loads(parcel.body), False)], "the very bytes that leave"
    streamed = judged({**BODY, "stream": True}, model=hosted("big", provider="far", parameters="vllm"))
    assert streamed.headers["accept"] == "text/event-stream"
    assert judged({**BODY, "stream": 1}, model=hosted("big", provider="far", parameters="vllm")).headers["accept"] != (
        "text/event-stream"
    )


def test_the_verdict_says_under_what_it_leaves(judged: Judged) -> None:
    inner = approved("internal", trains_on_data=False)
    key = replace(KEY, data_class="internal", scopes=frozenset({"declassify"}), requires=frozenset({"no-training"}))
    permit = replace(PERMIT, declassified="press")
    assert judged(model=inner, key=key, permit=permit).verdict == (
        "public", "internal", "public", ("no-training",), {}, "press"
    )  # fmt: skip
    found = judged(model=inner, seen=Seen({"email": 2}, "")).verdict
    assert found == ("internal", "internal", "approved:dpa", (), {"email": 2}, "")


def test_no_body_but_a_json_object_is_judged(judged: Judged) -> None:
    for body in (b"", b"{", b"[1]", b'"x"', b"null"):
        refused(judged, BadRequest, "invalid_json", body)


def test_a_body_that_cannot_be_written_again_stays(judged: Judged) -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(BadRequest) as found:
        judging._dump({"a": deep})
    assert found.value.code == "invalid_json"


def test_each_question_of_the_policy_is_asked(judged: Judged) -> None:
    """One case for each that judging asks, so that none of them can be left out."""
    refused(judged, Forbidden, "policy_mismatch", permit=replace(PERMIT, policy="v0"))
    refused(judged, Closed, "ledger_lost", key=keys.LedgerLost("the ledger is gone"))
    refused(judged, Forbidden, "key_revoked", key=replace(KEY, revoked=1.0))
    refused(judged, Forbidden, "key_expired", key=replace(KEY, expires=NOW))
    refused(judged, Forbidden, "data_class_lowered", key=replace(KEY, data_class="internal"))
    refused(judged, Forbidden, "data_class_lowered", site={"teams": {"red": {"data_class": "internal"}}})
    refused(judged, Forbidden, "requirement_not_met", key=replace(KEY, requires=frozenset({"no-training"})))
    refused(
        judged, Forbidden, "requirement_not_met", site={"routes": {"chat/completions": {"requires": ["no-training"]}}}
    )
    refused(judged, Forbidden, "field_not_allowed", {**BODY, "base_url": "x"})
    refused(judged, Forbidden, "tool_not_allowed", {**BODY, "tools": [{"type": "mcp"}]})
    refused(judged, Forbidden, "destination_refused", base_url="http://far.example/v1")
    refused(judged, Unavailable, "provider_key_missing", secret="")
    refused(judged, BadRequest, "media_url_not_allowed", {
        **BODY, "messages": [{"role": "user", "content": [{**PICTURE, "image_url": {"url": "https://a.example/b.png"}}]}],
    })  # fmt: skip


def test_of_a_class_that_the_model_may_not_have_nothing_is_searched(judged: Judged) -> None:
    refused(judged, Forbidden, "data_class_not_cleared", permit=replace(PERMIT, data_class="internal"))
    assert judged.search.asked == []


def test_an_approval_ends_with_its_day(judged: Judged) -> None:
    permit = replace(PERMIT, data_class="internal")
    assert judged(model=approved("internal"), permit=permit).verdict.clearance == "internal"
    late = approved("internal", until=dt.date(2026, 6, 14))
    refused(judged, Forbidden, "data_class_not_cleared", model=late, permit=permit)
    midnight = dt.datetime(2026, 6, 16, 0, 30, tzinfo=dt.UTC).timestamp()
    refused(judged, Forbidden, "data_class_not_cleared", model=approved("internal"), permit=permit, at=midnight)


def test_what_the_door_s_scanner_says_counts(judged: Judged) -> None:
    refused(judged, Closed, "scanner_failed", trouble="it tested itself badly")
    assert judged.search.asked == []
    refused(judged, Forbidden, "not_scannable", seen=Unsearched("it hangs"))
    refused(judged, Forbidden, "not_scannable", seen=Seen({}, "missed"))
    refused(judged, Forbidden, "data_class_not_cleared", seen=Seen({"card": 1}, ""))
    refused(judged, Forbidden, "data_class_not_cleared", seen=Seen({"a kind that is new": 1}, ""))


def test_what_nobody_can_read_has_the_class_that_the_key_says(judged: Judged) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": [PICTURE]}]}
    refused(judged, Forbidden, "not_scannable", body)
    assert judged.search.asked[0][1] is True
    assert judged(body, key=replace(KEY, media_class="public")).verdict.data_class == "public"


# ---- whether every text was given to the scanner


@pytest.mark.parametrize(
    "body",
    [
        {"text": "seen"}, {"model": "any model at all", "text": "seen"}, {"text": ["seen", {"text": "seen"}]},
        {"text": {"text": {"text": ["seen", 1, None, True, ""]}}}, {"text": 5}, {},
    ],
)  # fmt: skip
def test_what_was_given_is_not_missed(body: dict[str, Any]) -> None:
    assert missed(body, {"text", "seen", "model"}, False) is False


@pytest.mark.parametrize(
    "body",
    [
        {"text": "other"}, {"other": "seen"}, {"text": ["seen", "other"]}, {"text": [["other"]]},
        {"text": {"other": 1}}, {"text": [{"text": "other"}]}, {"text": {"model": "other"}},
        {"text": "seen", "texts": 1},
    ],
)  # fmt: skip
def test_what_was_not_given_is_missed_wherever_it_stands(body: dict[str, Any]) -> None:
    for opaque in (False, True):
        assert missed(body, {"text", "seen", "model"}, opaque) is True


def test_only_the_bytes_of_media_may_be_left_out_and_only_beside_a_part_that_nobody_reads() -> None:
    for data in ("data:image/png;base64,AAAA", "A" * 256, "data:;base64,", "aB+/=_-9" * 32):
        assert missed({"text": data}, {"text"}, True) is False, data
        assert missed({"text": data}, {"text"}, False) is True, data
    for text in ("A" * 255, "A" * 300 + " ", "data:image/png;base64,AAAA and more", "data:" + "a" * 201 + ";base64,A"):
        assert missed({"text": text}, {"text"}, True) is True, text


# ---- the router's own gate


@pytest.mark.parametrize(
    ("searched", "unread"),
    [
        (Searched((), 2**30, "", ()), "error"), (Searched((), 2**30, "", ((), ())), "error"),
        (Searched((), 0, "budget", ((),)), "budget"), (Searched((), 2**30, "", ((),)), ""),
    ],
)  # fmt: skip
async def test_the_router_believes_what_fits_the_texts_it_gave(searched: Searched, unread: str) -> None:
    gate = Gate(Scanner(lambda: searched))
    found = (await gate.search(ask(), caller(), Findings(5, ()))).findings
    assert (found.searched, found.unread) == (True, unread)
    gate.close()


async def test_without_a_scanner_all_of_it_is_unread() -> None:
    gate = Gate("it needs a package")
    found = (await gate.search(ask(), caller(), Findings(5, ()))).findings
    assert (found.searched, found.unread) == (True, "scanner")
    gate.close()


async def test_what_is_not_noted_yet_is_private_and_has_no_entry_to_name() -> None:
    gate = Gate(Scanner(), History(), wait_s=0.01)
    awaited = gate.expect(caller().team)
    (past,) = (await gate.search(ask(), caller(), Findings(5, ()))).findings.past
    assert (past.data_class.name, past.id) == ("private", "")
    awaited.set_result(None)
    assert (await gate.search(ask(), caller(), Findings(5, ()))).findings.past == ()
    gate.close()


async def test_a_team_of_which_nothing_can_be_noted_is_private_and_has_no_entry_to_name() -> None:
    history = History()
    history.fails = 2
    gate = Gate(Scanner(), history)
    awaited = gate.expect(caller().team)
    noting = gate.noting(ask(), caller(), await gate.search(ask(), caller(), Findings(5, ())))
    assert noting is not None
    noting.ended(None)
    awaited.set_result(None)
    await until(lambda: gate.forgets)
    (past,) = (await gate.search(ask(), caller(), Findings(5, ()))).findings.past
    assert (past.data_class.name, past.id) == ("private", "")
    gate.close()


# ---- open or closed


def test_what_was_closed_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "closed.json"
    assert closing.look(path) is None
    closing.close(path, Shut(1000.0, "jo", "two\nlines " + "x" * 300))
    assert closing.look(path) == Shut(1000.0, "jo", ("two lines " + "x" * 300)[:200])
    assert orjson.loads(path.read_bytes()).keys() == {"at", "by", "reason"}
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    closing.close(path, Shut(1001.0, "al", ""))
    assert closing.look(path) == Shut(1001.0, "al", "")


@pytest.mark.parametrize(
    "odd",
    [b"", b"{", b"[]", b"null", b'{"at": "soon", "by": "", "reason": ""}', b'{"at": 1}', b'{"at": 1, "by": ""}',
     b'{"by": "", "reason": ""}', b'{"at": 1, "reason": ""}', b"\xff\xff"],
)  # fmt: skip
def test_whatever_is_odd_about_the_file_means_closed(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "closed.json"
    path.write_bytes(odd)
    assert closing.look(path) == ODD
    assert closing.look(tmp_path) == ODD, "a folder in its place"
    assert closing.look(tmp_path / "gone" / "closed.json") == ODD, "without its folder nobody can tell"


def test_the_word_that_closes_is_taken_in_any_form() -> None:
    assert closing.told(b'{"by": " jo\\n", "reason": "why"}', 5.0) == Shut(5.0, "jo", "why")
    for odd in (b"", b"{", b"[]", b"3", b'{"by": "jo"}', b'{"reason": "x"}'):
        assert closing.told(odd, 5.0) == Shut(5.0, "", "")


def test_it_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and folder are synced, the file before it gets its name."""
    order: list[str] = []
    real, named = closing.os.fsync, Path.replace

    def synced(number: int) -> None:
        about = closing.os.fstat(number)
        order.append("folder" if stat.S_ISDIR(about.st_mode) else "whole file" if about.st_size else "empty file")
        real(number)

    monkeypatch.setattr(closing.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda self, to: order.append("name") or named(self, to))
    closing.close(tmp_path / "closed.json", Shut(1.0, "jo", "x"))
    assert order == ["whole file", "name", "folder"]


async def test_as_many_texts_as_are_searched_are_searched() -> None:
    for more, unread in ((0, ""), (1, "budget")):
        body = {"metadata": {"text": [f"text {number}" for number in range(MOST_TEXTS + more)]}}
        gate = Gate(Scanner(lambda: Searched((), 10**6, "", ((),) * MOST_TEXTS)))
        found = await gate.search(ask(size=1000)._replace(body=body), caller(), Findings(10, ()))
        gate.close()
        assert found.findings.unread == unread
