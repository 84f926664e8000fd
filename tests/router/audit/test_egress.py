"""The balanced book: a month in which all is well balances, and whatever is done to one of its sources is found."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from router.audit.egress import Egress, audit
from router.audit.reconcile import Window
from router.door.book import open_book
from router.ledger.chain import Event, chain_hash
from router.ledger.store import Store
from serving.home import Home
from tests.fakes.month import START, Month, cut_off, rewritten

LINES = ("book.jsonl", "kernel.jsonl")


def counted(home: Home, window: Window, folder: Path | None = None) -> Egress:
    return audit(home.ledger, home.book, home.book.with_name("kernel.jsonl"), window, folder)


def sentences(found: Egress) -> list[str]:
    return [one.sentence for one in found.discrepancies.shown]


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    root = tmp_path_factory.mktemp("month")
    home = Home(root, root / "engines")
    home.make()
    return Month(home).write()


@pytest.fixture
def copy(month: Month, tmp_path: Path) -> Home:
    """The month in a folder of its own, to be spoilt."""
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    for name in (*LINES, *(f"{name}.head" for name in LINES)):
        (home.book.parent / name).write_bytes((month.home.book.parent / name).read_bytes())
    with (
        contextlib.closing(sqlite3.connect(month.home.ledger)) as whole,
        contextlib.closing(sqlite3.connect(home.ledger)) as db,
    ):
        whole.backup(db)
    return home


def test_a_month_in_which_all_is_well_balances(month: Month) -> None:
    found = counted(month.home, month.window)
    assert sentences(found) == []
    assert found.balanced and found.discrepancies.bytes == 0
    truth = month.truth
    assert (found.records.requests, found.requests) == (truth.requests, len(truth.left))
    (group,) = found.sums
    assert found.sums[group] == [len(truth.left), truth.sendings, truth.bytes, truth.sendings * 380]
    assert group == ("far", "api.far.example", "big", "public", "public")
    assert found.kernel.spans and sum(one.sure for one in found.kernel.booked) > truth.bytes * 0.6
    assert set(found.notes.kinds) <= {"given_up", "no_end", "under_way"} and found.notes.kinds["given_up"]


@pytest.mark.parametrize("seed", range(5))
def test_windows_side_by_side_count_each_request_once(seed: int, tmp_path: Path) -> None:
    """Wherever the edge falls, also between the ledger's row and the book's, nothing is counted twice or lost."""
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, seed=seed, requests=120, days=0.02, boots=2).write()
    middle = START + random.Random(seed).uniform(0.3, 0.7) * month.days * 86400
    parts = [Window(START - 1, middle), Window(middle, START + 1e6), Window(START - 1, START + 1e6)]
    first, second, whole = (counted(home, part) for part in parts)
    assert sentences(first) == sentences(second) == sentences(whole) == []
    for name in ("requests", "bytes"):
        sums = [sum(s[0 if name == "requests" else 2] for s in one.sums.values()) for one in (first, second, whole)]
        assert sums[0] + sums[1] in (sums[2], sums[2] + 1) if name == "requests" else sums[0] + sums[1] == sums[2]


# ---- one change in one source


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", LINES)
def test_one_byte_changed_in_the_doors_files_is_found(name: str, seed: int, copy: Home, month: Month) -> None:
    path, rng = copy.book.with_name(name), random.Random(seed)
    raw = bytearray(path.read_bytes())
    at = rng.randrange(len(raw))
    raw[at] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    assert not counted(copy, month.window).balanced


@pytest.mark.parametrize("where", [0, 0.1, 0.3, 0.5, 0.77, 0.9, 0.999, -1])
@pytest.mark.parametrize("name", LINES)
def test_one_line_dropped_from_the_doors_files_is_found(name: str, where: float, copy: Home, month: Month) -> None:
    path = copy.book.with_name(name)
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[int(where * len(lines)) if where >= 0 else -1]
    path.write_bytes(b"".join(lines))
    assert not counted(copy, month.window).balanced


def events(home: Home) -> list[int]:
    with contextlib.closing(sqlite3.connect(home.ledger)) as db:
        return [row for (row,) in db.execute("SELECT rowid FROM events ORDER BY writer, seq")]


@pytest.mark.parametrize("seed", range(10))
def test_one_byte_changed_in_the_ledger_is_found(seed: int, copy: Home, month: Month) -> None:
    rng = random.Random(seed)
    row, column = rng.choice(events(copy)), rng.choice(["writer", "kind", "request", "key", "body", "prev", "hash"])
    with contextlib.closing(sqlite3.connect(copy.ledger)) as db, db:
        (text,) = db.execute(f"SELECT {column} FROM events WHERE rowid = ?", (row,)).fetchone()
        if not text:  # the first event has no one before
            return
        at = rng.randrange(len(text))
        text = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        db.execute(f"UPDATE events SET {column} = ? WHERE rowid = ?", (text, row))
    assert not counted(copy, month.window).balanced


@pytest.mark.parametrize("column", ["at", "seq", "cost"])
def test_one_number_changed_in_the_ledger_is_found(column: str, copy: Home, month: Month) -> None:
    row = random.Random(column).choice(events(copy))
    with contextlib.closing(sqlite3.connect(copy.ledger)) as db, db:
        db.execute(f"UPDATE events SET {column} = COALESCE({column}, 0) + 100000 WHERE rowid = ?", (row,))
    assert not counted(copy, month.window).balanced


@pytest.mark.parametrize("where", [0, 0.2, 0.4, 0.6, 0.8, -1])
def test_one_row_dropped_from_the_ledger_is_found(where: float, copy: Home, month: Month) -> None:
    rows = events(copy)
    with contextlib.closing(sqlite3.connect(copy.ledger)) as db, db:
        db.execute("DELETE FROM events WHERE rowid = ?", (rows[int(where * len(rows)) if where >= 0 else -1],))
    assert not counted(copy, month.window).balanced


def test_the_last_row_of_every_writer_is_missed(copy: Home, month: Month) -> None:
    """A chain does not show that its end is gone; the writer's own note of how far it was does."""
    with contextlib.closing(sqlite3.connect(copy.ledger)) as db:
        ends = db.execute("SELECT writer, MAX(seq) FROM events GROUP BY writer").fetchall()
        assert len(ends) == month.boots * month.workers
    for writer, seq in ends:
        with contextlib.closing(sqlite3.connect(copy.ledger, isolation_level=None)) as db:
            kept = db.execute("SELECT * FROM events WHERE writer = ? AND seq = ?", (writer, seq)).fetchone()
            db.execute("DELETE FROM events WHERE writer = ? AND seq = ?", (writer, seq))
            assert not counted(copy, month.window).balanced, writer
            db.execute(f"INSERT INTO events VALUES ({','.join('?' * len(kept))})", kept)


# ---- what no chain can show: a row that was never written, or was written to fit


def forged(home: Home, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change or leave out the first `sending` of the window in the ledger, and make its chain whole again."""
    done = False
    with contextlib.closing(sqlite3.connect(home.ledger)) as db, db:
        rows = db.execute("SELECT rowid, writer, seq, at, kind, request, key, cost, body FROM events ORDER BY rowid")
        heads: dict[str, tuple[int, str]] = {}
        for row, writer, _, at, kind, request, key, cost, body in rows.fetchall():
            if kind == "sending" and at > START + 2 * 86400 and not done:
                done, changed = True, change(orjson.loads(body))
                if changed is None:
                    db.execute("DELETE FROM events WHERE rowid = ?", (row,))
                    continue
                body = orjson.dumps(changed).decode()
            seq, head = heads.get(writer, (0, ""))
            digest = chain_hash(head, writer, seq + 1, Event(at, kind, request, key, {}, cost), body)
            heads[writer] = (seq + 1, digest)
            new = (-row, seq + 1, body, head, digest, row)
            db.execute("UPDATE events SET rowid = ?, seq = ?, body = ?, prev = ?, hash = ? WHERE rowid = ?", new)
        db.execute("DELETE FROM settled")
        db.execute("CREATE TABLE again AS SELECT * FROM events ORDER BY rowid DESC")
        db.execute("DELETE FROM events")
        db.execute("INSERT INTO events SELECT * FROM again ORDER BY rowid")
        db.execute("DROP TABLE again")


def test_a_row_of_the_book_without_one_of_the_ledger_is_named(copy: Home, month: Month) -> None:
    gone: list[dict[str, Any]] = []
    forged(copy, lambda body: gone.append(body))
    found = counted(copy, month.window)
    (one,) = found.discrepancies.shown
    assert one.kind == "only_book" and one.bytes == gone[0]["bytes"] + 40
    assert gone[0]["permit"] in one.sentence and "api.far.example" in one.sentence and one.request in one.sentence


@pytest.mark.parametrize(
    ("field", "value"),
    [("model", "small"), ("sha256", "f" * 64), ("data_class", "private"), ("provider", "other"), ("policy", "v0")],
)
def test_what_differs_between_ledger_and_book_is_named(field: str, value: str, copy: Home, month: Month) -> None:
    forged(copy, lambda body: body | {field: value})
    (one,) = counted(copy, month.window).discrepancies.shown
    assert one.kind == "differs" and value in one.sentence and one.permit in one.sentence


@pytest.mark.parametrize(
    "field", ["key", "team", "provider", "model", "path", "policy", "received_sha256", "boot", "claimed"]
)
def test_what_the_book_says_otherwise_is_named(field: str, copy: Home, month: Month) -> None:
    done: list[str] = []

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["kind"] != "sending" or entry["at"] < START + 2 * 86400 or done:
            return entry
        done.append(entry["permit"])
        return entry | {field: "internal" if field == "claimed" else "other"}

    rewritten(copy.book, change)
    found = counted(copy, month.window).discrepancies
    assert found.kinds["differs"] >= 1 and all(one.permit == done[0] for one in found.shown if one.permit)


def test_a_row_of_the_ledger_without_one_of_the_book_is_named(copy: Home, month: Month) -> None:
    """The book is cut off in the middle, its note made to fit: as whole a chain as before."""
    lines = copy.book.read_bytes().splitlines(keepends=True)
    answered = next(n for n, line in enumerate(lines) if n > len(lines) // 2 and b'"kind":"sending"' in line)
    cut_off(copy.book, lines[:answered])
    found = counted(copy, month.window)
    assert set(found.discrepancies.kinds) <= {"only_ledger", "kernel_more"} and found.discrepancies.kinds["only_ledger"]
    lost = orjson.loads(lines[answered])
    assert any(lost["permit"] in one and lost["request"] in one for one in sentences(found))


# ---- the kernel


def spoilt(home: Home, change: Callable[[int, int], int]) -> None:
    """The kernel's samples again, where from one on another number of bytes has left: a chain as whole as before.

    `change` takes the bytes and those of that one sample.
    """
    path = home.book.with_name("kernel.jsonl")
    entries = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    path.unlink()
    path.with_name("kernel.jsonl.head").unlink()
    book, now, start = None, [0.0], 0
    for number, entry in enumerate(entries):
        now[0] = entry["at"]
        if entry["kind"] == "opened":
            if book:
                book.close()
            book = open_book(path, "v1", lambda: now[0])
            continue
        if number > len(entries) // 2:
            entry["interfaces"]["eth0"][0] = change(entry["interfaces"]["eth0"][0], start)
        else:
            start = entry["interfaces"]["eth0"][0]
        fields = {k: v for k, v in entry.items() if k not in ("kind", "seq", "boot", "at", "prev", "hash")}
        assert book
        book.write("sample", fields, sync=False)
    assert book
    book.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda sent, start: sent, ""), (lambda sent, start: sent + 40_000, "kernel_more"),
        (lambda sent, start: start + (sent - start) // 3, "kernel_less"),
    ],
)  # fmt: skip
def test_bytes_that_the_book_does_not_have_are_seen_by_the_kernel(
    change: Callable[[int, int], int], kind: str, copy: Home, month: Month
) -> None:
    spoilt(copy, change)
    found = counted(copy, month.window)
    assert set(found.discrepancies.kinds) == ({kind} if kind else set())


def test_a_namespace_that_others_share_is_no_witness(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    Month(home, requests=40, days=0.05, boots=1, witness=False).write()
    found = counted(home, Window(START, START + 1e6))
    assert found.balanced and found.kernel.spans == [] and found.kernel.shared == found.kernel.samples > 0
    assert found.requests > 0


# ---- what is no discrepancy, and is told as what it is


def test_the_order_of_rows_in_the_file_means_nothing(copy: Home, month: Month) -> None:
    """Upgrades write them anew, writer by writer: a start that calls something lost may stand before it was opened."""
    for order in ("writer, seq", "writer DESC, seq"):
        with contextlib.closing(sqlite3.connect(copy.ledger)) as db, db:
            db.execute(f"CREATE TABLE again AS SELECT * FROM events ORDER BY {order}")
            db.execute("DELETE FROM events")
            db.execute("INSERT INTO events SELECT * FROM again ORDER BY rowid")
            db.execute("DROP TABLE again")
        found = counted(copy, month.window)
        assert sentences(found) == [] and found.verdict == "balanced" and found.requests == len(month.truth.left)


def test_a_router_that_was_killed_and_never_started_again_balances_however_late_it_is_asked(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    month = Month(home, requests=60, days=0.1, boots=1)
    month.write()
    store = month.killed()
    found = counted(home, Window(START - 1, START + 40 * 86400))
    assert sentences(found) == [] and found.verdict == "balanced" and found.notes.kinds["under_way"] == 1
    late = Store(home.ledger, "later")
    late.append(Event(START + 30 * 86400, "refused", "req_late", "k1", {}))
    late.close()
    found = counted(home, Window(START - 1, START + 40 * 86400))
    assert found.discrepancies.kinds["only_ledger"] == 1 and store, "somebody wrote since, and did not call it lost"


def test_what_an_earlier_release_sent_is_not_reconciled_and_counted(copy: Home, month: Month) -> None:
    """Its books have no format, no note, and fewer fields; its ledger nothing of what was handed over."""
    fewer = {"claimed", "rule", "head_bytes", "left", "connections", "format", "head_bytes_in"}
    middle = START + 15 * 86400
    boots = [entry["boot"] for entry in map(orjson.loads, copy.book.read_bytes().splitlines()) if entry["at"] < middle]
    first = set(boots) - {boots[-1]}

    def change(entry: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in entry.items() if k not in fewer} if entry["boot"] in first else entry

    rewritten(copy.book, change)
    entries = [entry for entry in map(orjson.loads, copy.book.read_bytes().splitlines()) if entry["kind"] == "sending"]
    old = [entry["permit"] for entry in entries if entry["boot"] in first]
    unsaid(copy, set(old))
    for name in ("kernel.jsonl", "kernel.jsonl.head"):  # it took no samples
        copy.book.with_name(name).unlink()
    found = counted(copy, month.window)
    assert sentences(found) == [] and found.verdict == "cannot say"
    within = [e for e in entries if e["boot"] in first and month.window.holds(e["at"])]
    assert found.earlier[1] == len(within) and found.earlier[0] == len({e["request"] for e in within}) > 10
    (doubt,) = found.doubts.shown
    assert f"not reconciled, {found.earlier[0]:,} requests" in doubt.sentence
    later = counted(copy, Window(middle + 86400, month.window.until))
    assert later.verdict == "balanced" and later.requests > 0, "what came after is reconciled as ever"


def unsaid(home: Home, permits: set[str]) -> None:
    """Take the word of these out of the ledger, as if its release had not written any, and make its chains fit."""
    with contextlib.closing(sqlite3.connect(home.ledger)) as db, db:
        rows = db.execute("SELECT writer, at, kind, request, key, cost, body FROM events ORDER BY writer, seq")
        heads: dict[str, tuple[int, str]] = {}
        kept = []
        for writer, at, kind, request, key, cost, body in rows.fetchall():
            said = orjson.loads(body)
            if kind == "sending" and said["permit"] in permits:
                continue
            for attempt in said.get("attempts", ()):
                if attempt.get("permit") in permits:
                    del attempt["permit"]
            seq, head = heads.get(writer, (0, ""))
            text = orjson.dumps(said).decode()
            digest = chain_hash(head, writer, seq + 1, Event(at, kind, request, key, {}, cost), text)
            heads[writer] = (seq + 1, digest)
            kept.append((writer, seq + 1, at, kind, request, key, cost, text, head, digest))
        db.execute("DELETE FROM settled")
        db.execute("DELETE FROM events")
        db.executemany("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?)", kept)


def test_an_answer_that_began_before_the_window_is_no_end_without_a_beginning(copy: Home, month: Month) -> None:
    """However long it took: an hour and more."""
    entries = [orjson.loads(line) for line in copy.book.read_bytes().splitlines()]
    ended = next(e for e in entries if e["kind"] == "ended" and e["at"] > START + 20 * 86400)
    sent = next(e for e in entries if e["kind"] == "sending" and e["permit"] == ended["permit"])
    for took in (0.01, 61, 3601):

        def change(entry: dict[str, Any], took: float = took) -> dict[str, Any]:
            ends = entry["kind"] == "ended" and entry["permit"] == sent["permit"]
            return entry | {"at": sent["at"] + took + 1} if ends else entry

        rewritten(copy.book, change)
        assert sentences(counted(copy, Window(sent["at"] + took, month.window.until))) == []


# ---- nothing there, and what is going on


def test_an_installation_without_anything_balances(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "engines")
    home.make()
    found = counted(home, Window(0.0, START))
    assert found.balanced and (found.records.requests, found.requests) == (0, 0)


def test_a_line_that_is_just_being_written_is_no_fault(copy: Home, month: Month) -> None:
    with copy.book.open("ab") as book:
        book.write(b'{"at":17')
    assert counted(copy, month.window).balanced
