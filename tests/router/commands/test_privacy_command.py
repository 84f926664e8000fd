"""`privacy why|release|test`: an operator sees what is remembered and what would be held back, and never any text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.ledger.history import History, open_history
from router.ledger.store import Event, Store, connect, verify
from router.records import Found
from router.scanner import allow
from serving.catalogue import DataClass
from serving.home import Home
from tests.fakes.asking import ask, caller
from tests.fakes.command_line import Said
from tests.fakes.remembering import ANSWER, FIRST, Searched, finding, talk
from tests.fakes.remembering import Said as Answered
from tests.fakes.rules import lay_out

Say = Callable[..., Said]
ME = caller()
MAIL = "kowalski" + "@" + "acme-widgets.pl"
NUMBERS = "PL61109010140000071219812874"
"""An IBAN of the format's own documentation."""
NOTES = f"Notes of Monday.\nNothing on this line.\nWrite to {MAIL}, please.\nThe account is {NUMBERS} at the bank.\n"


def opened(home: Home) -> History:
    return open_history(home.ledger, home.secret("history"), home.root / "history-begun", 30)


@pytest.fixture
def history(home: Home) -> Iterator[History]:
    with contextlib.closing(opened(home)) as made:
        texts = talk(FIRST)
        asked = ask(id="req_1", session="s1")
        made.note(ME, asked, texts, finding(texts, FIRST), said=Answered((ANSWER,)))
        made.flush()
        yield made


def shown(text: str) -> dict[str, str]:
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_why_says_what_is_remembered_and_no_text(history: History, say: Say) -> None:
    (past,) = history.past(ME, ask(session="new"), talk(ANSWER))
    said = say("privacy", "why", past.id)
    found = shown(said.out)
    assert said.code == 0, said.err
    assert found["id"] == past.id
    assert found["what"] == "an answer to a request that was above public by its content"
    assert (found["class"], found["team"], found["request"], found["found"]) == ("private", "search", "req_1", "card")
    assert f"headgate privacy release {past.id}" in said.out
    assert ANSWER[:20] not in said.out
    (one,) = say("privacy", "why", past.id[:7], "--json").json()
    assert (one["id"], one["kind"], one["found"]) == (past.id, "answer", ["card"])


def test_a_request_shows_all_that_it_left(history: History, say: Say) -> None:
    kinds = {one["kind"] for one in say("privacy", "why", "req_1", "--json").json()}
    assert kinds == {"message", "answer", "session"}


def test_release_clears_it_at_once_and_is_written_into_the_chain(history: History, home: Home, say: Say) -> None:
    (past,) = history.past(ME, ask(session="new"), talk(ANSWER))
    assert say("privacy", "release", past.id).code == 0
    assert not history.past(ME, ask(session="new"), talk(ANSWER))  # in a router that runs
    assert say("privacy", "why", past.id).code == 1
    with contextlib.closing(connect(home.ledger, read_only=True)) as db:
        ((at, body),) = db.execute("SELECT at, body FROM events WHERE kind = 'released'").fetchall()
        assert verify(db) == []
    event = json.loads(body)
    assert at > 0
    assert (event["mark"], event["by"], event["what"]) == (past.id, "headgate privacy release", "answer")
    assert event["user"]


def remembered(history: History, many: int, *kinds: str, request: str = "req_many") -> list[str]:
    """So many messages in which something of these kinds was found; what they said."""
    said = [f"{number}: {FIRST}" for number in range(many)]
    texts, some = talk(*said), tuple(Found(kind, DataClass.private) for kind in kinds)
    history.note(ME, ask(id=request, session=request), texts, Searched(some, "", (some,) * many))
    history.flush()
    return said


def test_several_ids_are_released_at_once_or_none(history: History, say: Say) -> None:
    ids = [one["id"] for one in say("privacy", "why", "req_1", "--json").json()]
    assert say("privacy", "release", *ids[:2], "0000").code == 1
    assert len(say("privacy", "why", "req_1", "--json").json()) == 3
    assert say("privacy", "release", *ids).code == 0
    assert not history.past(ME, ask(session="s1"), talk(FIRST, ANSWER))


def test_many_entries_are_all_released_and_none_is_hidden(history: History, say: Say) -> None:
    said = remembered(history, 70, "card")
    shown = say("privacy", "why", "req_many").out
    assert shown.count("req_many") == 20 + 1 + 1 and "and 51 more" in shown
    assert len(say("privacy", "why", "req_many", "--json").json()) == 71
    assert "and 51 more" in say("privacy", "release", "req_many").out
    assert not history.past(ME, ask(session="req_many"), talk(*said))


def held(home: Home, request: str, marks: str) -> None:
    """The ledger says that a request was decided, and which entries counted then."""
    with contextlib.closing(Store(home.ledger)) as store:
        store.append(Event(1.0, "opened", request, "k1", {"marks": marks.split()}))


def test_what_held_a_request_back_is_released_by_its_id(history: History, home: Home, say: Say) -> None:
    said = remembered(history, 30, "card")
    found = history.past(ME, ask(session="new"), talk(*said, ANSWER))
    held(home, "req_held", " ".join(past.id for past in found))
    assert sum(len(past.id.split()) for past in found) == 31
    assert say("privacy", "release", "--from", "req_held").code == 0
    assert not history.past(ME, ask(session="new"), talk(*said, ANSWER))
    assert history.past(ME, ask(session="s1"), talk("Hi")), "what did not count for it stays"
    assert "it was released" in say("privacy", "release", "--from", "req_held").err
    assert "no decision on a request" in say("privacy", "release", "--from", "req_none").err


def test_what_is_there_for_one_kind_alone_is_released_by_it(history: History, say: Say) -> None:
    both = remembered(history, 1, "credential_github", "iban", request="req_2")
    one = remembered(history, 2, "credential_github", "credential_slack", request="req_3")
    said = say("privacy", "release", "--kind", "credential")
    assert said.code == 0 and "2 entries stay" in said.out, said.all
    assert not history.past(ME, ask(session="req_3"), talk(one[1]))
    assert history.past(ME, ask(session="new"), talk(*both))
    assert history.past(ME, ask(session="new"), talk(FIRST))
    none = say("privacy", "release", "--kind", "credential")
    assert none.code == 1 and "2 are there for it and for others too" in none.err


@pytest.mark.parametrize("given", [(), ("0000", "--kind", "card"), ("--from", "req_1", "--kind", "card")])
def test_it_is_said_in_one_way_what_is_released(history: History, say: Say, given: tuple[str, ...]) -> None:
    said = say("privacy", "release", *given)
    assert said.code == 1 and "one of these alone" in said.err
    assert len(say("privacy", "why", "req_1", "--json").json()) == 3


def test_a_router_that_was_killed_is_told_of(history: History, home: Home, say: Say) -> None:
    assert "killed" not in say("doctor").out
    (home.root / "history-begun-running-0").touch()  # as one leaves it behind whose lock has ended with it
    with contextlib.closing(opened(home)) as again:
        assert again.killed == 1
        assert "a router was killed before" in say("doctor").out
    with contextlib.closing(opened(home)) as again:
        assert again.killed == 0


@pytest.mark.parametrize("name", ["0000", "xyz", "", "%", "req_none"])
def test_an_id_that_nothing_has(history: History, say: Say, name: str) -> None:
    for command in ("why", "release"):
        said = say("privacy", command, name)
        assert said.code == 1
        assert "nothing is remembered under" in said.err


def test_without_a_ledger_nothing_is_remembered(say: Say) -> None:
    assert "there is no ledger yet" in say("privacy", "why", "0000").err


def test_a_lost_history_is_shown_and_released(history: History, home: Home, say: Say) -> None:
    assert say("privacy", "why", "lost").out.strip() == "The history is whole."
    assert say("privacy", "release", "lost").code == 1
    history.close()
    for file in home.root.glob("ledger.sqlite*"):
        file.unlink()
    with contextlib.closing(open_history(home.ledger, home.secret("history"), home.root / "history-begun", 30)) as new:
        (past,) = new.past(ME, ask(), talk("Hi"))
        assert past.id == "lost"
        assert "every request counts as private" in say("privacy", "why", "lost").out
        assert "the history of what was private was lost" in say("doctor").out
        assert say("privacy", "release", "lost").code == 0
        assert not new.past(ME, ask(), talk("Hi"))
        assert "history" not in say("doctor").out


# ---- test


@pytest.fixture
def patterns(home: Home) -> None:
    """As after the first time: compiling takes seconds."""
    lay_out(home)


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.usefixtures("patterns")
def test_a_text_shows_kinds_and_lines_before_anything_is_configured(say: Say, tmp_path: Path) -> None:
    assert not allow.allowed("email", MAIL, ())  # else there is nothing to be found
    said = say("privacy", "test", written(tmp_path, "notes.txt", NOTES))
    assert said.code == 1, said.all
    assert MAIL not in said.all
    assert NUMBERS not in said.all
    assert "notes.txt: private, stays here: no hosted model that is enabled may receive more than public" in said.out
    rows = {line.split()[0]: line.split(None, 3)[1:] for line in said.out.splitlines()[2:4]}
    assert rows == {"iban": ["private", "1", "line 4"], "email": ["internal", "1", "line 3"]}


@pytest.mark.usefixtures("patterns")
def test_what_is_harmless_may_leave(say: Say, tmp_path: Path) -> None:
    said = say("privacy", "test", written(tmp_path, "readme.md", "# A project\nIt adds numbers.\n"))
    assert said.code == 0
    assert "public, may leave" in said.out


@pytest.mark.usefixtures("patterns")
def test_requests_are_read_as_requests(say: Say, tmp_path: Path) -> None:
    talked = {
        "model": "auto",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": NOTES}],
    }
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}
    clean = {"messages": [{"role": "user", "content": "Hello"}]}
    one = say("privacy", "test", written(tmp_path, "one.json", json.dumps(talked)), "--json")
    (report,) = one.json()
    assert {row["kind"]: row["where"] for row in report["found"]} == {
        "iban": ["messages[1].content"], "email": ["messages[1].content"],
    }  # fmt: skip
    many = written(tmp_path, "many.jsonl", "\n".join(map(json.dumps, (clean, talked, image))))
    said = say("privacy", "test", many, "--json")
    (report,) = said.json()
    assert said.code == 1
    assert report["meaning"].startswith("2 of 3 requests stay here")
    where = {row["kind"]: row["where"] for row in report["found"]}
    assert where["iban"] == ["line 2: messages[1].content"]
    assert where["unreadable"] == ["line 3: messages[0]"]


@pytest.mark.usefixtures("patterns")
def test_what_an_approved_model_may_receive_does_not_stay(say: Say, tmp_path: Path) -> None:
    (tmp_path / "headgate.yaml").write_text(
        "providers: {far: {enabled: true, base_url: 'https://far.example/v1', key_env: FAR_KEY}}\n"
        "models: {big: {place: hosted, provider: far, provider_model: b, context: 1000, output: 10, lanes: [frontier],"
        " abilities: [chat], price: {input: 1, output: 1}, clearance: internal,"
        " approved: {by: dpo, contract: c, until: 2099-01-01}}}\n"
    )
    mail = written(tmp_path, "mail.txt", f"Write to {MAIL}.")
    assert say("privacy", "test", mail).code == 0
    both = say("privacy", "test", mail, written(tmp_path, "notes.txt", NOTES))
    assert both.code == 1
    assert "1 of 2 would stay here." in both.out


@pytest.mark.usefixtures("patterns")
def test_a_file_that_cannot_be_read(say: Say, tmp_path: Path) -> None:
    said = say("privacy", "test", str(tmp_path / "none.txt"))
    assert (said.code, "No such file" in said.err) == (1, True)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    said = say("privacy", "test", str(tmp_path / "picture.png"))
    assert said.code == 1
    assert "unreadable" in said.out


@pytest.mark.usefixtures("patterns")
def test_nothing_of_a_file_is_kept(say: Say, home: Home, tmp_path: Path) -> None:
    say("privacy", "test", written(tmp_path, "notes.txt", NOTES))
    held = b"".join(file.read_bytes() for file in home.root.rglob("*") if file.is_file())
    assert MAIL.encode() not in held
    assert not home.ledger.exists()
