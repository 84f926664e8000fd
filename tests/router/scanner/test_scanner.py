"""The scanner can be relied on, or says that it cannot: its file, its self-test, its threads, its failures."""

from __future__ import annotations

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hyperscan
import pytest

from router.scanner.kinds import Kind
from router.scanner.matcher import Matcher, MatcherError, Pattern, compiled, loaded
from router.scanner.scanner import Scanner, ScannerError
from serving.catalogue import DataClass
from tests.fakes.searching import KINDS, NUMBER, WORD, Rules, kinds, scanner, search


def kept(folder: Path) -> Path:
    (found,) = folder.glob("*")
    return found


def test_patterns_are_compiled_once_and_kept_for_their_owner_alone(tmp_path: Path, monkeypatch: Any) -> None:
    scanner(tmp_path / "rules")
    file = kept(tmp_path / "rules")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def never(_: object) -> Matcher:
        raise AssertionError("it was compiled again")

    monkeypatch.setattr("router.scanner.scanner.compiled", never)
    assert kinds(search(scanner(tmp_path / "rules"), NUMBER)) == {"number": 1}


@pytest.mark.parametrize("broken", [b"", b"headgate patterns 1\n", b"x" * 4000, None])
def test_a_broken_file_is_made_anew(tmp_path: Path, broken: bytes | None) -> None:
    scanner(tmp_path)
    whole = kept(tmp_path).read_bytes()
    kept(tmp_path).write_bytes(whole[:-100] + b"y" * 100 if broken is None else broken)
    assert kinds(search(scanner(tmp_path), NUMBER)) == {"number": 1}
    assert len(kept(tmp_path).read_bytes()) == len(whole)


def test_other_rules_have_another_file_and_the_old_one_goes(tmp_path: Path) -> None:
    scanner(tmp_path)
    before = kept(tmp_path)
    Scanner(Rules(hash="another one"), tmp_path)
    assert kept(tmp_path) != before


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert kinds(search(scanner(tmp_path / "taken"), NUMBER)) == {"number": 1}


def test_a_pattern_that_does_not_compile_is_named(tmp_path: Path) -> None:
    wrong = Kind("own:projects", DataClass.private, (r"(?=look)ahead",))
    with pytest.raises(ScannerError, match="own:projects: the patterns do not compile"):
        scanner(tmp_path, *KINDS, wrong)


def test_a_kind_whose_example_is_not_found_stops_the_start(tmp_path: Path) -> None:
    deaf = Kind("deaf", DataClass.private, (r"\bnever\b",), planted=("something else",))
    with pytest.raises(ScannerError, match="a planted deaf was not found"):
        scanner(tmp_path, *KINDS, deaf)


def test_a_kind_that_finds_everything_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ScannerError, match="a plain sentence holds mad"):
        scanner(tmp_path, Kind("mad", DataClass.private, ("[a-z]",)))


def test_while_the_self_test_fails_nothing_counts_as_searched(tmp_path: Path, monkeypatch: Any) -> None:
    used = scanner(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Matcher, "scan", lambda *_: ([], True))
        assert used.test() == "a planted number was not found"
    assert (search(used, "hello").unread, search(used, NUMBER).found) == ("scanner", ())
    assert used.test() == ""
    assert search(used, "hello").unread == ""


@pytest.mark.parametrize("failure", [MatcherError("a pass failed"), ValueError("x"), MemoryError(), RecursionError()])
def test_a_search_that_fails_is_unread_and_its_text_is_not_logged(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    used = scanner(tmp_path)

    def fail(_: Matcher, data: bytes, _most: int) -> None:
        failure.args = (data.decode(),)
        raise failure

    monkeypatch.setattr(Matcher, "scan", fail)
    with caplog.at_level(logging.DEBUG):
        searched = search(used, WORD)
    assert (searched.unread, searched.by_text) == ("error", ((),))
    assert type(failure).__name__ in caplog.text
    assert "heron" not in caplog.text


def test_a_check_that_fails_is_unread(tmp_path: Path) -> None:
    kind = Kind(
        "odd", DataClass.private, (r"\bodd [a-z]+\b",), lambda text: bool(1 / (len(text) - 9)), planted=("odd one",)
    )
    used = scanner(tmp_path, kind)
    assert search(used, "odd three").unread == "error"


def test_many_threads_search_at_once(tmp_path: Path) -> None:
    """Two threads with one scratch memory make Hyperscan refuse, or worse."""
    used = scanner(tmp_path)
    text = f"{'nothing here ' * 2000} {NUMBER} {'nothing here ' * 2000}"
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: search(used, text), range(64)))
    assert all((kinds(one), one.unread) == ({"number": 1}, "") for one in found)


def test_a_pass_that_cannot_run_raises(monkeypatch: Any) -> None:
    one = compiled([Pattern("abc")])

    class Busy:
        def scan(self, *_: object, **__: object) -> None:
            raise hyperscan.ScratchInUseError("in use")

    monkeypatch.setattr(one, "_database", Busy())
    monkeypatch.setattr(hyperscan, "Scratch", lambda _: None)
    with pytest.raises(MatcherError, match="ScratchInUseError"):
        one.scan(b"abc", 10)


def test_a_database_that_is_none_cannot_be_loaded() -> None:
    for data in (b"", b"nonsense" * 100):
        with pytest.raises(MatcherError):
            loaded(data)


def test_more_matches_than_are_wanted_are_said_to_be_more() -> None:
    hits, whole = compiled([Pattern("a")]).scan(b"a" * 100, 10)
    assert (len(hits), whole) == (11, False)
