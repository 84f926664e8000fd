"""The signed statement: a small program that shares no code with ours verifies it; nobody can change it unseen."""

from __future__ import annotations

import json
import random
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router.audit import statement
from router.audit.egress import audit
from serving.home import Home
from tests.fakes.month import Month
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
    assert said["unaccounted_bytes"] == 0 and said["balanced"] and said["kernel"]["witness"]
    (to,) = said["to"]
    assert (to["provider"], to["host"], to["model"], to["data_class"]) == ("far", "api.far.example", "big", "public")
    code, out = verified(folder)
    assert code == 0, out
    assert "Verified." in out and f"{truth.requests} requests, {len(truth.left)} left, {truth.bytes} bytes" in out
    assert statement.fingerprint(statement.signing_key(month.home).public_key()) in out


def test_it_is_verified_with_openssl_alone(folder: Path) -> None:
    """`-S`: a Python that has no packages at all."""
    code, out = verified(folder, python=(sys.executable, "-I", "-S"))
    assert code == 0, out
    (folder / "statement.sig").write_bytes(b"\0" * 64)
    assert verified(folder, python=(sys.executable, "-I", "-S"))[0] == 1


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


def test_a_statement_that_names_discrepancies_is_verified_and_says_so(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=200, days=3, boots=1).write()
    lines = home.book.read_bytes().splitlines(keepends=True)
    half = next(n for n, line in enumerate(lines) if n > len(lines) // 2 and b'"kind":"sending"' in line)
    home.book.write_bytes(b"".join(lines[:half]))
    home.book.with_name("book.jsonl.head").unlink()
    out = tmp_path / "out"
    out.mkdir()
    found = audit(home.ledger, home.book, month.samples, month.window, out)
    said = statement.content(found, installation="i", machine="m", made_at=month.now)
    statement.export(out, said, statement.signing_key(home))
    assert not said["balanced"] and said["unaccounted_bytes"] > 0
    code, printed = verified(out)
    assert code == 2 and "in the ledger alone" in printed and "NOT" not in printed


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    assert statement.signing_key(home).sign(b"x") == statement.signing_key(home).sign(b"x")
    assert stat.S_IMODE((home.secrets / "statement").stat().st_mode) == 0o600


def test_an_export_holds_ids_numbers_and_hashes_only(made: tuple[Month, Path, dict[str, Any]]) -> None:
    """What a decision was made of, and why, stays in the ledger."""
    for file in made[1].iterdir():
        assert b"r" * 300 not in file.read_bytes(), file
    events = [json.loads(line) for line in (made[1] / "ledger.jsonl").read_bytes().splitlines()]
    assert {event["kind"] for event in events} == {"sending", "closed"}


def test_the_program_is_short_and_shares_no_code() -> None:
    text = PROGRAM.read_text()
    assert len(text.splitlines()) <= 200
    assert "router" not in text and "serving" not in text.replace("observing", "")
