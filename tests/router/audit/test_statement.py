"""The signed statement: a small program that shares no code with ours verifies it; nobody can change it unseen."""

from __future__ import annotations

import hashlib
import json
import random
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.audit import statement
from router.audit.egress import audit
from router.audit.ledger import IN_SHORT
from router.audit.reconcile import Window
from router.ledger.chain import Event, chain_hash
from serving.home import Home
from tests.fakes.month import START, Month, cut_off
from tests.house import ROOT

PROGRAM = ROOT / "deploy" / "verify_statement.py"


def verified(folder: Path, *more: str, python: tuple[str, ...] = (sys.executable, "-I")) -> tuple[int, str]:
    """What the program says, alone: no folder of ours is on its path."""
    done = subprocess.run(
        [*python, str(PROGRAM), str(folder), *more], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Month, Path, dict[str, Any]]:
    """A month, and the statement of it."""
    root = tmp_path_factory.mktemp("signed")
    home = Home(root / "home", root / "engines")
    home.make()
    month, folder = Month(home, requests=600, days=5).write(), root / "out"
    folder.mkdir()
    found = audit(home.ledger, home.book, month.samples, month.window, folder)
    said = statement.content(found, installation=home.installation(), machine="here", made_at=month.now)
    statement.export(folder, said, statement.signing_key(home))
    return month, folder, said


@pytest.fixture
def folder(made: tuple[Month, Path, dict[str, Any]], tmp_path: Path) -> Path:
    """The statement, to be spoilt."""
    out = tmp_path / "out"
    out.mkdir()
    for file in made[1].iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def test_it_says_what_was_true_and_is_verified_by_the_program(made: tuple[Month, Path, dict[str, Any]]) -> None:
    month, folder, said = made
    truth = month.truth
    assert (said["requests"], said["left"], said["bytes"]) == (truth.requests, len(truth.left), truth.bytes)
    assert said["unaccounted_bytes"] == 0 and said["verdict"] == "balanced" and said["kernel"]["witness"]
    (to,) = said["to"]
    assert (to["provider"], to["host"], to["model"], to["data_class"]) == ("far", "api.far.example", "big", "public")
    code, out = verified(folder)
    assert code == 0, out
    assert "Verified: balanced, 0 bytes unaccounted." in out
    assert f"{truth.requests} requests, {len(truth.left)} left, {truth.bytes} bytes" in out
    assert statement.fingerprint(statement.signing_key(month.home).public_key()) in out


def test_it_is_verified_without_any_package(folder: Path) -> None:
    """`-S`: a Python that has none at all."""
    code, out = verified(folder, python=(sys.executable, "-I", "-S"))
    assert code == 0, out
    (folder / "statement.sig").write_bytes(b"\0" * 64)
    assert verified(folder, python=(sys.executable, "-I", "-S"))[0] == 1


def test_of_a_statement_that_is_not_there_the_file_is_named(tmp_path: Path) -> None:
    code, out = verified(tmp_path / "gone")
    missing = f"[Errno 2] No such file or directory: '{tmp_path}/gone/key.pem'"
    assert (code, out) == (1, f"NOT VERIFIED\n  it cannot be read: {missing}\n")


@pytest.mark.parametrize("name", ["statement.json", "statement.sig", "ledger.jsonl", "book.jsonl", "kernel.jsonl"])
@pytest.mark.parametrize("seed", range(3))
def test_one_byte_changed_is_not_verified(name: str, seed: int, folder: Path) -> None:
    rng, file = random.Random(f"{name}{seed}"), folder / name
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(7)
    file.write_bytes(raw)
    code, out = verified(folder)
    assert code == 1 and "NOT VERIFIED" in out


@pytest.mark.parametrize("name", ["ledger.jsonl", "book.jsonl", "kernel.jsonl"])
def test_one_line_left_out_is_not_verified(name: str, folder: Path) -> None:
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    del lines[len(lines) // 2]
    (folder / name).write_bytes(b"".join(lines))
    assert verified(folder)[0] == 1


def test_a_signer_who_lies_about_the_sums_is_found_out(made: tuple[Month, Path, dict[str, Any]], folder: Path) -> None:
    """The signature is good; the excerpts say otherwise."""
    month, _, said = made
    for changed in (
        said | {"bytes": said["bytes"] - 1}, said | {"left": said["left"] - 1}, said | {"to": []},
        said | {"to": [said["to"][0] | {"host": "other.example"}]},
    ):  # fmt: skip
        statement.export(folder, changed, statement.signing_key(month.home))
        code, out = verified(folder)
        assert code == 1 and "the statement" in out


def test_a_key_of_somebody_else_does_not_verify(made: tuple[Month, Path, dict[str, Any]], tmp_path: Path) -> None:
    other = Home(tmp_path / "other", tmp_path / "engines")
    other.make()
    out = tmp_path / "theirs"
    out.mkdir()
    statement.export(out, made[2], statement.signing_key(other))
    assert verified(made[1], "--key", str(out / "key.pem"))[0] == 1
    assert verified(made[1], "--key", str(made[1] / "key.pem"))[0] == 0
    slip = [sys.executable, str(PROGRAM), str(made[1]), "--pubkey", str(out / "key.pem")]
    done = subprocess.run(slip, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout, "it does not mean the folder's own key"


def test_a_key_file_that_holds_more_than_one_key_is_refused(
    made: tuple[Month, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """What verifies would pass over the first line, and the fingerprint would be that of the true key in it."""
    other = Home(tmp_path / "other", tmp_path / "engines")
    other.make()
    out = tmp_path / "theirs"
    out.mkdir()
    statement.export(out, made[2], statement.signing_key(other))
    true = (made[1] / "key.pem").read_text()
    forged = true.splitlines()[1] + "\n" + (out / "key.pem").read_text()
    for text in (forged, true + forged, true.replace("-----END", "=\n-----END"), ""):
        (out / "key.pem").write_text(text)
        assert verified(out)[0] == 1


def exported(home: Home, month: Month, out: Path) -> dict[str, Any]:
    """The statement of what lies in a home."""
    out.mkdir()
    found = audit(home.ledger, home.book, home.book.with_name("kernel.jsonl"), month.window, out)
    said = statement.content(found, installation="i", machine="m", made_at=month.now)
    statement.export(out, said, statement.signing_key(home))
    return said


def test_a_statement_that_names_discrepancies_is_verified_and_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=200, days=3, boots=1).write()
    lines = home.book.read_bytes().splitlines(keepends=True)
    half = next(n for n, line in enumerate(lines) if n > len(lines) // 2 and b'"kind":"sending"' in line)
    cut_off(home.book, lines[:half])
    said = exported(home, month, tmp_path / "out")
    assert said["verdict"] == "not balanced" and said["unaccounted_bytes"] > 0
    code, printed = verified(tmp_path / "out")
    assert code == 2 and "not balanced" in printed and "only_ledger" in printed and "NOT" not in printed


def test_a_changed_line_that_the_statement_names_is_verified_and_one_that_it_does_not_name_is_not(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=200, days=3, boots=1).write()
    lines = home.book.read_bytes().splitlines(keepends=True)
    half = next(n for n, line in enumerate(lines) if n > len(lines) // 2 and b'"route":"chat' in line)
    lines[half] = lines[half].replace(b'"route":"chat', b'"route":"that')
    home.book.write_bytes(b"".join(lines))
    said = exported(home, month, tmp_path / "out")
    assert said["discrepancies"]["kinds"] == {"changed": 1}
    assert verified(tmp_path / "out")[0] == 2
    lied = said | {"verdict": "balanced", "discrepancies": {"count": 0, "kinds": {}, "bytes": 0, "shown": []}}
    statement.export(tmp_path / "out", lied, statement.signing_key(home))
    code, printed = verified(tmp_path / "out")
    assert code == 1 and "book.jsonl, line" in printed


# ---- every field of every source, changed by a signer who makes chains and hashes fit


ALONE = {
    "ledger sending": {"at", "bytes", "cost", "lane", "trigger"},
    "ledger closed": {
        "at", "attempts", "cached_tokens", "check", "cost", "cost_usd", "error", "estimated", "finish", "first_byte_ms",
        "key", "lane", "model", "outcome", "output_tokens", "place", "price_source", "prompt_tokens", "queued_ms",
        "replaced", "request", "status", "total_ms", "trigger", "unpriced",
    },
    "ledger in short": {"at", "request"},
    "book opened": {"at", "boot", "format", "pid", "policy"},
    "book sending": {"declassified", "found", "requires", "route", "sent_sha256"},
    "book ended": {"boot", "bytes_in", "ended", "error", "head_bytes_in", "ms", "request", "status"},
    "book refused": {"at", "boot", "code", "key", "model"},
    "kernel opened": {"at", "boot", "format", "pid", "policy"},
    "kernel sample": {"at", "connections"},
}  # fmt: skip
"""Fields that one source alone has, and that may change without a sum being another: that they are what was written
down, their chain alone can say. Of none of them does it depend what left, to whom, or under which class."""
CHAIN = {"hash", "prev", "seq", "kind", "writer"}


def other(value: Any) -> Any:
    """Something else of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 100_000
        case str():
            return f"x{value[1:]}"
        case dict():
            return {name: other(one) for name, one in value.items()} or {"x": 1}
        case list():
            return [other(one) for one in value] or ["x"]
    return 1


def fits(records: list[dict[str, Any]]) -> list[bytes]:
    """The lines of an excerpt once every hash and chain of it is made to fit again."""
    last, lines = dict[str, str](), []
    for record in records:
        one, writer = dict(record), record.get("writer", "")
        if "prev" in one:
            one["prev"] = last.get(writer, one["prev"])
            if writer:
                event = Event(one["at"], one["kind"], one["request"], one["key"], {}, one["cost"])
                one["hash"] = chain_hash(one["prev"], writer, one["seq"], event, one["body"])
            else:
                del one["hash"]
                raw = orjson.dumps(one, option=orjson.OPT_SORT_KEYS)
                one["hash"] = hashlib.sha256(raw).hexdigest()
        last[writer] = one["hash"]
        lines.append(orjson.dumps(one, option=orjson.OPT_SORT_KEYS) + b"\n")
    return lines


def signed_again(folder: Path, name: str, lines: list[bytes], home: Home) -> None:
    """Put these lines into an export, with all hashes that the statement has of them, and sign it."""
    said, whole = json.loads((folder / "statement.json").read_bytes()), b"".join(lines)
    (folder / name).write_bytes(whole)
    digest = hashlib.sha256(whole).hexdigest()
    said["excerpts"][name] = {"lines": len(lines), "bytes": len(whole), "sha256": digest}
    if name == "ledger.jsonl":
        within = [one for one in map(json.loads, lines) if said["since_at"] <= one["at"] < said["until_at"]]
        hashes = "".join(one["hash"] for one in within).encode()
        said["sources"]["ledger"] |= {"sha256": hashlib.sha256(hashes).hexdigest(), "events": len(within)}
    statement.export(folder, said, statement.signing_key(home))


def sort_of(name: str, record: dict[str, Any]) -> str:
    kind = "in short" if name == "ledger.jsonl" and "body" not in record else record["kind"]
    return f"{name.removesuffix('.jsonl')} {kind}"


def says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What the program ends with, in this process."""
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), str(folder)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("name", ["ledger.jsonl", "book.jsonl", "kernel.jsonl"])
def test_what_a_signer_changes_in_one_source_is_found_by_the_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=40, days=0.1, boots=2).write()
    whole = audit_all(home, month, tmp_path / "out")
    assert whole["verdict"] == "balanced" and whole["kernel"]["unaccounted_bytes"] == 0
    records = [json.loads(line) for line in (tmp_path / "out" / name).read_bytes().splitlines()]
    unseen: dict[str, set[str]] = {}
    spoilt = tmp_path / "spoilt"
    for sort in sorted({sort_of(name, record) for record in records}):
        of_sort = [n for n, record in enumerate(records) if sort_of(name, record) == sort]
        at = of_sort[len(of_sort) // 2]
        inside = json.loads(records[at].get("body", "{}"))
        for field in sorted((records[at].keys() | inside.keys()) - CHAIN - {"body"}):
            changed = dict(records[at])
            if field in inside:
                changed["body"] = orjson.dumps(inside | {field: other(inside[field])}).decode()
            else:
                changed[field] = other(changed[field])
            shutil.copytree(tmp_path / "out", spoilt)
            signed_again(spoilt, name, fits([*records[:at], changed, *records[at + 1 :]]), home)
            if says(spoilt, monkeypatch) == 0:
                unseen.setdefault(sort, set()).add(field)
            shutil.rmtree(spoilt)
    assert {sort: fields - ALONE[sort] for sort, fields in unseen.items() if fields - ALONE[sort]} == {}


@pytest.mark.parametrize("name", ["ledger.jsonl", "book.jsonl", "kernel.jsonl"])
def test_what_a_signer_leaves_out_of_one_source_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any one record, and the chain made to fit around the gap: whatever was asked, has left, or was counted."""
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=30, days=0.1, boots=2).write()
    audit_all(home, month, tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / name).read_bytes().splitlines()]
    book = [json.loads(line) for line in (tmp_path / "out" / "book.jsonl").read_bytes().splitlines()]
    sent = {entry["permit"] for entry in book if entry["kind"] == "sending"}
    found = []
    for at, record in enumerate(records):
        signed_again(tmp_path / "out", name, fits([*records[:at], *records[at + 1 :]]), home)
        found.append(says(tmp_path / "out", monkeypatch) == 1)
        permit = record.get("permit") or json.loads(record.get("body", "{}")).get("permit")
        told = record["kind"] == "sending" and permit in sent
        asked = name == "ledger.jsonl" and record["kind"] in ("opened", "refused")
        assert found[-1] or not (told or asked or record["kind"] == "sample"), record
    assert sum(found) > len(found) // 2


def audit_all(home: Home, month: Month, out: Path) -> dict[str, Any]:
    """The statement of all of a month."""
    out.mkdir()
    window = Window(START - 1, START + 1e6)
    found = audit(home.ledger, home.book, month.samples, window, out)
    said = statement.content(found, installation="i", machine="m", made_at=month.now)
    statement.export(out, said, statement.signing_key(home))
    return said


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    assert statement.signing_key(home).sign(b"x") == statement.signing_key(home).sign(b"x")
    assert stat.S_IMODE((home.secrets / "statement").stat().st_mode) == 0o600


def test_an_export_holds_ids_numbers_and_hashes_only(made: tuple[Month, Path, dict[str, Any]]) -> None:
    """What a decision was made of, and why, stays in the ledger."""
    for file in made[1].iterdir():
        assert b"r" * 300 not in file.read_bytes(), file
    events = [json.loads(line) for line in (made[1] / "ledger.jsonl").read_bytes().splitlines()]
    assert {event["kind"] for event in events if "body" in event} == {"sending", "closed"}
    assert {name for event in events if "body" not in event for name in event} == set(IN_SHORT)


def test_the_program_is_short_and_shares_no_code() -> None:
    text = PROGRAM.read_text()
    assert len(text.splitlines()) < 200
    assert "router" not in text and "serving" not in text.replace("observing", "")
