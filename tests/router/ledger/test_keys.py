"""API keys: their form, what lies on disk of them, and how soon a change is seen."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import sqlite3
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger.keys import BASE62, LOOKS, KeyBook, KeyError_, Keyring, new_text, well_formed
from router.ledger.store import LedgerError
from serving.catalogue import LANES, DataClass, KeyDefaults

NOW = time.time()
PEPPER = secrets.token_hex(32)
DEFAULTS = KeyDefaults()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def book(path: Path) -> Iterator[KeyBook]:
    with contextlib.closing(KeyBook(path, PEPPER)) as made:
        yield made


@pytest.fixture
def ring(path: Path, book: KeyBook) -> Iterator[Keyring]:
    with contextlib.closing(Keyring(path, PEPPER)) as made:
        yield made


def test_a_key_has_an_id_256_bits_and_a_checksum() -> None:
    text = new_text()
    prefix, name, rest = text.split("_")
    assert (prefix, len(name), len(rest)) == ("hg", 8, 43 + 6)
    assert 62**43 > 2**256
    assert set(name + rest) <= set(string.ascii_letters + string.digits)
    assert well_formed(text) == name
    assert len({new_text() for _ in range(100)}) == 100


@given(st.data())
def test_a_mistyped_key_is_not_well_formed(data: st.DataObject) -> None:
    text = new_text()
    place = data.draw(st.integers(0, len(text) - 1))
    wrong = data.draw(st.sampled_from(BASE62 + "_\x00é ").filter(lambda c: c != text[place]))
    assert well_formed(text[:place] + wrong + text[place + 1 :]) is None
    other = (place + 1) % len(text)
    if text[place] != text[other]:
        low, high = sorted((place, other))
        assert well_formed(text[:low] + text[high] + text[low + 1 : high] + text[low] + text[high + 1 :]) is None


@given(st.text(max_size=80))
def test_noise_is_not_well_formed_and_never_crashes(text: str) -> None:
    assert well_formed(text) is None
    assert well_formed(f"hg_{text}_{text}") is None


def test_a_mistyped_key_costs_no_look_at_the_table(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked() -> None:
        raise AssertionError("it was looked up")

    monkeypatch.setattr(ring, "refresh", looked)
    text = new_text()
    for wrong in (text[:-1] + ("0" if text[-1] != "0" else "1"), "", "hg", "\x00" * 58, "é" * 58, "x" * 2**20):
        assert ring.find(wrong, NOW) is None
    with pytest.raises(AssertionError):
        ring.find(text, NOW)  # well formed, unknown: that one is looked up


def test_au_009_guessing_costs_no_look_for_each_and_a_new_key_is_still_found(
    ring: Keyring, book: KeyBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, really = 0, Keyring.refresh

    def looked(it: Keyring) -> None:
        nonlocal looks
        looks += 1
        really(it)

    monkeypatch.setattr(Keyring, "refresh", looked)
    for guess in [new_text() for _ in range(5000)]:
        assert ring.find(guess, NOW) is None
    assert LOOKS <= looks < 1000
    _, text = book.create("search", DataClass.public, DEFAULTS)
    ring.refresh()  # as every second
    assert ring.find(text, NOW) is not None


def test_a_caller_is_made_once_for_each_reading_of_the_table(ring: Keyring, book: KeyBook) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS, requests_per_minute=60, tokens_per_minute=1000)
    caller = ring.find(text, NOW)
    assert caller is not None and caller is ring.find(text, NOW) and caller is ring.by_id(key.id)
    assert (caller.requests_per_minute, caller.tokens_per_minute) == (60, 1000)


def test_the_text_is_nowhere_on_disk(path: Path, book: KeyBook) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS)
    secret = text.split("_")[2]
    for file in path.parent.iterdir():
        raw = file.read_bytes()
        assert secret.encode() not in raw
        assert secret[:20].encode() not in raw
        assert PEPPER.encode() not in raw
    assert key.mac == hmac.new(PEPPER.encode(), text.encode(), "sha256").hexdigest()
    assert secret not in repr(book.list())


def test_another_pepper_opens_nothing(path: Path, book: KeyBook) -> None:
    _, text = book.create("search", DataClass.public, DEFAULTS)
    with contextlib.closing(Keyring(path, secrets.token_hex(32))) as other:
        assert other.find(text, NOW) is None


def test_hashes_are_compared_in_constant_time(book: KeyBook, ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring.refresh()
    assert ring.find(text, NOW) is None  # its word is final
    assert compared == [(key.mac, key.mac)]


def test_the_right_id_with_another_secret_is_refused(book: KeyBook, ring: Keyring) -> None:
    from router.ledger.keys import _checksum

    _, text = book.create("search", DataClass.public, DEFAULTS)
    body = text[:-7] + ("0" if text[-7] != "0" else "1")
    forged = body + _checksum(body)
    assert well_formed(forged) == well_formed(text)
    assert ring.find(forged, NOW) is None
    assert ring.find(text, NOW) is not None


def test_a_new_key_works_at_once_with_its_settings(book: KeyBook, ring: Keyring) -> None:
    defaults = KeyDefaults(lanes=("private", "cheap"), budget_usd=5)
    plain, text = book.create("search", DataClass.internal, defaults)
    caller = ring.find(text, NOW)
    assert caller is not None
    assert (caller.key, caller.team, caller.data_class) == (plain.id, "search", DataClass.internal)
    assert (caller.lanes, caller.substitute, caller.budget_usd) == ({"private", "cheap"}, False, 5)
    _, text = book.create("x", DataClass.public, defaults, lanes=frozenset(), substitute=True, budget_usd=None)
    caller = ring.find(text, NOW)
    assert caller is not None
    assert (caller.lanes, caller.substitute, caller.budget_usd) == (frozenset(), True, None)


def test_what_a_key_requires_and_the_class_of_its_media_come_to_its_caller(book: KeyBook, ring: Keyring) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS)
    caller = ring.find(text, NOW)
    assert caller is not None
    assert (caller.media_class, caller.requires, caller.scopes) == (DataClass.private, frozenset(), frozenset())
    wanted = frozenset({"region:eu", "no-training"})
    book.set(key.id, media_class=DataClass.public, requires=wanted, scopes=frozenset({"declassify"}))
    ring.refresh()
    caller = ring.find(text, NOW)
    assert caller is not None
    assert (caller.media_class, caller.requires, caller.scopes) == (DataClass.public, wanted, {"declassify"})
    new, _ = book.rotate(key.id, 60)
    assert (new.media_class, new.requires) == (DataClass.public, wanted)


def test_how_a_keys_requests_wait_comes_to_its_caller(book: KeyBook, ring: Keyring) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS)
    assert ring.find(text, NOW).latency == "interactive"  # type: ignore[union-attr]
    book.set(key.id, latency="batch")
    ring.refresh()
    assert ring.find(text, NOW).latency == "batch"  # type: ignore[union-attr]
    assert book.rotate(key.id, 60)[0].latency == "batch"


@pytest.mark.parametrize("column", ["data_class", "media_class"])
def test_a_class_that_is_none_is_no_key_with_a_lower_one(path: Path, book: KeyBook, column: str) -> None:
    key, _ = book.create("search", DataClass.public, DEFAULTS)
    book._db.execute(f"UPDATE keys SET {column}='open' WHERE id=?", (key.id,))
    with pytest.raises(LedgerError, match="cannot be read"):
        Keyring(path, PEPPER)


def test_what_the_operator_changes_is_seen_after_a_refresh(book: KeyBook, ring: Keyring) -> None:
    key, text = book.create("search", DataClass.private, DEFAULTS)
    assert ring.find(text, NOW) is not None
    book.set(key.id, data_class=DataClass.public, lanes={"frontier"}, budget_usd=2.5, substitute=True, team="ads")
    ring.refresh()
    caller = ring.find(text, NOW)
    assert caller is not None
    assert (caller.data_class, caller.lanes, caller.team) == (DataClass.public, {"frontier"}, "ads")
    assert (caller.budget_usd, caller.substitute) == (2.5, True)
    book.set(key.id, budget_usd=None)
    ring.refresh()
    assert ring.by_id(key.id) is not None and ring.by_id(key.id).budget_usd is None  # type: ignore[union-attr]


def test_a_revoked_key_is_refused_and_stays_so(book: KeyBook, ring: Keyring) -> None:
    key, text = book.create("search", DataClass.public, DEFAULTS)
    assert ring.find(text, NOW)
    first = book.revoke(key.id).revoked
    ring.refresh()
    assert ring.find(text, NOW) is None
    assert book.revoke(key.id).revoked == first  # when it ended stays on record
    book.set(key.id, data_class=DataClass.private)
    ring.refresh()
    assert ring.find(text, NOW) is None
    with pytest.raises(KeyError_, match="no longer works"):
        book.rotate(key.id, 60)


def test_a_key_ends_at_its_moment(book: KeyBook, ring: Keyring) -> None:
    _, text = book.create("search", DataClass.public, DEFAULTS, expires=NOW + 60)
    assert ring.find(text, NOW + 59.999) is not None
    assert ring.find(text, NOW + 60) is None


def test_rotation_keeps_the_settings_and_ends_the_old_key_after_the_overlap(book: KeyBook, ring: Keyring) -> None:
    old, old_text = book.create("search", DataClass.internal, DEFAULTS, lanes=frozenset({"cheap"}), budget_usd=3.0)
    new, new_text_ = book.rotate(old.id, overlap_s=3600)
    ring.refresh()
    assert new_text_ != old_text
    assert (new.team, new.data_class, new.lanes, new.budget_usd) == ("search", DataClass.internal, {"cheap"}, 3.0)
    assert ring.find(old_text, time.time() + 3500) and ring.find(new_text_, time.time() + 3500)
    assert ring.find(old_text, time.time() + 3601) is None
    assert ring.find(new_text_, time.time() + 3601) is not None


def test_what_counts_for_a_key_goes_on_under_the_first_of_those_it_was_rotated_from(
    book: KeyBook, ring: Keyring
) -> None:
    first, _ = book.create("search", DataClass.public, DEFAULTS)
    second, _ = book.rotate(first.id, 60)
    third, _ = book.rotate(second.id, 60)
    other, _ = book.create("search", DataClass.public, DEFAULTS)
    ring.refresh()
    accounts = [caller.account for key in (first, second, third, other) if (caller := ring.by_id(key.id))]
    assert accounts == [first.id, first.id, first.id, other.id]


def test_rotation_never_lengthens_a_life(book: KeyBook, ring: Keyring) -> None:
    old, old_text = book.create("search", DataClass.public, DEFAULTS, expires=time.time() + 10)
    _, text = book.rotate(old.id, overlap_s=3600)
    ring.refresh()
    assert ring.find(old_text, time.time() + 11) is None
    assert ring.find(text, time.time() + 11) is None


@pytest.mark.parametrize("name", ["", "nobody", "a' OR '1'='1", "\x00", "é"])
def test_an_unknown_id_is_refused(book: KeyBook, name: str) -> None:
    book.create("search", DataClass.public, DEFAULTS)
    for act in (book.find, book.revoke, lambda n: book.set(n, team="x"), lambda n: book.rotate(n, 1)):
        with pytest.raises(KeyError_, match="no key has the id"):
            act(name)
    assert [key.team for key in book.list()] == ["search"]


def test_only_settings_can_be_set(book: KeyBook) -> None:
    key, _ = book.create("search", DataClass.public, DEFAULTS)
    for wrong in ({"mac": "0"}, {"id": "x"}, {"team=''--": "x"}, {}):
        with pytest.raises(AssertionError):
            book.set(key.id, **wrong)
    assert book.list() == [key]


def test_a_table_that_cannot_be_read_keeps_the_known_keys_and_never_raises(
    path: Path, book: KeyBook, ring: Keyring
) -> None:
    _, text = book.create("search", DataClass.public, DEFAULTS)
    ring.refresh()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.executescript("ALTER TABLE keys RENAME TO gone")
    ring.refresh()  # the task that calls this every second must live on
    assert ring.find(text, NOW) is not None
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.executescript("ALTER TABLE gone RENAME TO keys")
        other.execute("UPDATE keys SET revoked=1")
        other.commit()
    ring.refresh()
    assert ring.find(text, NOW) is None


def test_a_row_of_an_unknown_class_is_no_key_of_any_class(path: Path, book: KeyBook) -> None:
    book.create("search", DataClass.public, DEFAULTS)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE keys SET data_class='open'")
        other.commit()
    with pytest.raises(LedgerError, match="'open' is no data class"):
        Keyring(path, PEPPER)


def test_a_locked_table_is_one_clear_error(path: Path, book: KeyBook) -> None:
    book._db.execute("PRAGMA busy_timeout=20")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match=r"cannot be changed: .*locked"):
            book.create("search", DataClass.public, DEFAULTS)


def test_the_defaults_let_a_key_use_all_lanes_with_private_data(book: KeyBook) -> None:
    assert DEFAULTS.data_class is DataClass.private
    assert book.create("search", DEFAULTS.data_class, DEFAULTS)[0].lanes == set(LANES)
